"""Small pieces of SQL trees.  Identifiers are quoted and values are literals of the tree, never text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import sqlglot
from sqlglot import exp

from mlsql.design.schema import Input

DIALECT = "duckdb"


@lru_cache(maxsize=4096)
def _parsed(sql: str) -> exp.Expr:
    tree: exp.Expr = sqlglot.parse_one(sql, dialect=DIALECT)
    return tree


def scalar(sql: str) -> exp.Expr:
    """The tree of a validated scalar expression; in parentheses unless it binds tightly by itself."""
    tree = _parsed(sql).copy()
    if isinstance(tree, exp.Column | exp.Func | exp.Cast | exp.Paren | exp.Literal | exp.Case):
        return tree
    return exp.paren(tree)


def name(identifier: str) -> exp.Identifier:
    """A quoted identifier."""
    return exp.to_identifier(identifier, quoted=True)


def column(identifier: str, table: str | None = None) -> exp.Column:
    """A quoted column, of a table alias if given."""
    return exp.Column(this=name(identifier), table=None if table is None else name(table))


def number(value: float) -> exp.Expr:
    """A numeric literal that reads back as the same double."""
    text = repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return exp.Literal.number(text) if value >= 0 else exp.Neg(this=exp.Literal.number(text[1:]))


def as_double(sql: str, dtype: str) -> exp.Expr:
    """The expression in double precision, cast only where its type is another."""
    tree = scalar(sql)
    return tree if dtype.upper() == "DOUBLE" else exp.cast(tree, exp.DataType.Type.DOUBLE)


def shifted(tree: exp.Expr, shift: float) -> exp.Expr:
    """`tree - shift`, or the tree itself for a shift of zero."""
    if shift == 0:
        return tree
    if shift < 0:
        return exp.Add(this=tree, expression=number(-shift))
    return exp.Sub(this=tree, expression=number(shift))


def times(factors: Sequence[exp.Expr]) -> exp.Expr:
    """A product, left to right."""
    result = factors[0]
    for factor in factors[1:]:
        result = exp.Mul(this=result, expression=factor)
    return result


def total(tree: exp.Expr) -> exp.Expr:
    """`SUM(tree)`."""
    return exp.Sum(this=tree)


def call(function: str, *arguments: exp.Expr) -> exp.Expr:
    """A function by its name, as the engine spells it."""
    return exp.Anonymous(this=function, expressions=list(arguments))


def aliased(tree: exp.Expr, alias: str) -> exp.Expr:
    """`tree AS "alias"`."""
    return exp.alias_(tree, name(alias))


def is_floating(dtype: str) -> bool:
    """Types that can hold NaN and infinity."""
    return dtype.upper() in ("DOUBLE", "FLOAT")


def present(inputs: Iterable[Input]) -> list[exp.Expr]:
    """Conditions that each input has a value: not NULL and, for floating types, not NaN."""
    conditions: list[exp.Expr] = []
    for item in inputs:
        conditions.append(exp.not_(exp.Is(this=scalar(item.sql), expression=exp.Null())))
        if is_floating(item.dtype):
            conditions.append(exp.not_(call("ISNAN", scalar(item.sql))))
    return conditions


def render(tree: exp.Expr) -> str:
    """Readable SQL text."""
    return tree.sql(dialect=DIALECT, pretty=True)


def unique(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Names made distinct without regard to case, as identifiers are compared, by a counter."""
    seen = {t.lower() for t in taken}
    result = []
    for item in names:
        candidate, counter = item, 2
        while candidate.lower() in seen:
            candidate, counter = f"{item} {counter}", counter + 1
        seen.add(candidate.lower())
        result.append(candidate)
    return result
