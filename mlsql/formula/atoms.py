"""Text of one column, call or SQL expression to an `Atom`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError

from mlsql.errors import FormulaError
from mlsql.formula.terms import Atom
from mlsql.formula.tokens import Token

CENTERING_CALLS = ("group_center", "grand_center", "group_mean")
SPECIAL_CALLS = ("I", "C", *CENTERING_CALLS)


def column_atom(name: str) -> Atom:
    """The atom of a plain column."""
    return Atom(name=name, sql=exp.column(exp.to_identifier(name, quoted=True)).sql("duckdb"))


def sql_atom(text: str, name: str | None = None) -> Atom:
    """The atom of a SQL scalar expression.

    Raises
    ------
    FormulaError
        When the text is not SQL, or is not a scalar of one row (aggregate, window, subquery, several statements).
    """
    try:
        tree = sqlglot.parse_one(text, dialect="duckdb")
    except (ParseError, TokenError) as error:
        detail = str(error).splitlines()[0]
        raise FormulaError(f"{text!r} is not a SQL scalar expression: {detail}") from error
    if not isinstance(tree, exp.Condition | exp.Paren | exp.Cast | exp.Case) or isinstance(tree, exp.Query):
        raise FormulaError(f"{text!r} is not a SQL scalar expression of a row's columns")
    for node in tree.walk():
        if isinstance(node, exp.AggFunc | exp.Window | exp.Query | exp.Subquery):
            raise FormulaError(
                f"{text!r} uses {node.sql('duckdb')!r}, which looks beyond one row; use group_mean(x), "
                "group_center(x) or grand_center(x), or compute the column in the data's query"
            )
    if name is None and isinstance(tree, exp.Column) and len(tree.parts) == 1:
        return column_atom(tree.name)
    _quote_names(tree)
    shown = name if name is not None else " ".join(text.split())
    return Atom(name=shown, sql=tree.sql("duckdb"))


def call_atom(name: str, text: str, inner: str, arguments: Sequence[Sequence[Token]], source: str) -> Atom:
    """The atom of a call `name(...)`.

    Parameters
    ----------
    name, text, inner : str
        The function, the whole call, and what stands between its parentheses.
    arguments : sequence of token lists
        The arguments' tokens, split at top-level commas.
    source : str
        The formula, for arguments' texts.
    """
    shown = " ".join(text.split())
    if name == "I":
        return sql_atom(inner, shown)
    if name == "C":
        return _factor_atom(shown, arguments, source)
    if name in CENTERING_CALLS:
        return _centered_atom(name, shown, arguments, source)
    return sql_atom(text, shown)


def offset_atom(argument: Sequence[Token], source: str) -> Atom:
    """The atom of `offset(...)`: one number per row, as it is."""
    atom = _inner_atom(argument, source)
    if atom.kind != "value" or atom.centering != "none" or atom.categorical:
        raise FormulaError(
            "an offset is subtracted as it is: give it a column or an expression, not centred, no factor"
        )
    return atom


def _argument_text(argument: Sequence[Token], source: str) -> str:
    return source[argument[0].start : argument[-1].end + 1]


def _inner_atom(argument: Sequence[Token], source: str) -> Atom:
    """An argument of C() or of a centring function: a column, a call, or an expression."""
    if len(argument) == 1 and argument[0].kind in {"name", "quoted"}:
        return column_atom(argument[0].text)
    if argument[0].kind == "name" and argument[0].text in SPECIAL_CALLS and len(argument) > 2:
        inner = argument[2:-1]
        if not inner:
            raise FormulaError(f"{_argument_text(argument, source)!r} needs an argument")
        return call_atom(
            argument[0].text,
            _argument_text(argument, source),
            _argument_text(inner, source),
            split_arguments(inner),
            source,
        )
    return sql_atom(_argument_text(argument, source))


def split_arguments(tokens: Sequence[Token]) -> list[list[Token]]:
    """Split tokens at commas outside parentheses."""
    depth = 0
    arguments: list[list[Token]] = [[]]
    for token in tokens:
        depth += (token.kind == "(") - (token.kind == ")")
        if token.kind == "," and depth == 0:
            arguments.append([])
        else:
            arguments[-1].append(token)
    return arguments


def _factor_atom(shown: str, arguments: Sequence[Sequence[Token]], source: str) -> Atom:
    reference: str | None = None
    for extra in arguments[1:]:
        named = len(extra) == 3 and extra[0].text == "ref" and extra[1].kind == "="
        if not named or extra[2].kind not in {"string", "number", "name"}:
            raise FormulaError(f"{shown}: C() takes a column and ref='level', found {_argument_text(extra, source)!r}")
        reference = extra[2].text
    inner = _inner_atom(arguments[0], source)
    if inner.kind != "value" or inner.centering != "none":
        raise FormulaError(f"{shown}: centre the factor, not the other way round: group_center(C(x))")
    return replace(inner, name=inner.name if reference is None else shown, categorical=True, reference=reference)


def _centered_atom(name: str, shown: str, arguments: Sequence[Sequence[Token]], source: str) -> Atom:
    if len(arguments) > 2 or not arguments[0] or not arguments[-1]:
        raise FormulaError(f"{shown}: {name}() takes a column and, if wanted, the group")
    group = _argument_text(arguments[1], source) if len(arguments) == 2 else None
    inner = _inner_atom(arguments[0], source)
    if inner.centering != "none":
        raise FormulaError(f"{shown}: the column is centred already; centre once")
    if name == "group_mean":
        if inner.kind == "group_mean":
            raise FormulaError(f"{shown}: a group mean of a group mean is the same value; write group_mean once")
        return replace(inner, name=shown, kind="group_mean", group=group)
    if name == "group_center":
        if inner.kind == "group_mean":
            if group is None or inner.group is None or group.split() == inner.group.split():
                raise FormulaError(f"{shown}: a group mean centred within its group is zero in every row; leave it out")
            raise FormulaError(
                f"{shown}: the mean over {inner.group} cannot be centred within {group}; compute that column in the "
                "data's query"
            )
        return replace(inner, name=shown, centering="group", group=group)
    if group is not None and inner.group is not None and group.split() != inner.group.split():
        raise FormulaError(f"{shown}: one group is {group}, the other {inner.group}; name the mean's group alone")
    return replace(inner, name=shown, centering="grand", group=group or inner.group)


def _quote_names(tree: exp.Expr) -> None:
    for identifier in tree.find_all(exp.Identifier):
        identifier.set("quoted", True)
