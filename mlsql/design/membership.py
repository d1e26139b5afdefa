"""Multiple membership: which units a row belongs to, as the user describes it and as the engine needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Literal

import numpy as np
import sqlglot
from sqlglot import exp

from mlsql._arrays import Array, IntArray
from mlsql.design.schema import NUMERIC, columns_read, comparable
from mlsql.errors import DataError, DesignError, FormulaError
from mlsql.formula.atoms import column_atom
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import Atom, Term

if TYPE_CHECKING:
    import pyarrow as pa

SUM_CALL = "membership_sum"

_WIDE = ("HUGEINT", "UHUGEINT", "BIGNUM")
"""Integers that are matched as text, which fractions are not."""

_TIMES = tuple(t for t in NUMERIC if t not in _WIDE)


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """A table that tells which units of a factor each row belongs to, and with which weight.

    Attributes
    ----------
    data : path, table name, SQL text, or frame
        The membership table: one row per set and unit (and time); whatever `fit` takes as data.
    on : sequence of str, or str
        Columns that both tables have: rows of the data with the same values have the same set of units.
    unit : str, optional
        Column of the units; the factor's name if not given.
    weight : str, optional
        Column or SQL expression of the membership table; 1 if not given.  With it, a unit may come several times in a
        set, and its weights are added.
    normalise : bool
        Divide the weights by their sum within each row's set: effects are averaged.
    time : str, optional
        Column of both tables: a row at time t takes every membership with time <= t, so that effects accumulate.
    decay : float, optional
        What is left of a membership after one unit of time, in (0, 1]: weights are multiplied by decay^(t - h).
    units : like data, optional
        One row per unit, with the unit's column: predictors for `membership_sum(x, factor)`.

    Examples
    --------
    >>> import mlsql
    >>> mlsql.Membership("history.parquet", on="child", time="year", decay=0.8).on
    ('child',)
    """

    data: object
    on: Sequence[str] | str
    unit: str | None = None
    weight: str | None = None
    normalise: bool = False
    time: str | None = None
    decay: float | None = None
    units: object = None

    def __post_init__(self) -> None:
        on = (self.on,) if isinstance(self.on, str) else tuple(self.on)
        if not on or not all(isinstance(c, str) and c for c in on):
            raise DesignError(f"Membership: on is {self.on!r}; name the columns that identify a row's set of units")
        named = [c.lower() for c in (*on, *filter(None, [self.time]))]
        twice = next((c for i, c in enumerate(named) if c in named[:i]), None)
        if twice is not None:
            raise DesignError(f"Membership: column {twice!r} is given twice in on and time; once is enough")
        object.__setattr__(self, "on", on)
        if self.decay is None:
            return
        if isinstance(self.decay, bool) or not isinstance(self.decay, Real) or not 0 < self.decay <= 1:
            raise DesignError(
                f"Membership: decay is {self.decay!r}; it is the share of an effect that is left after one unit of "
                "time, above 0 and at most 1"
            )
        if self.time is None:
            raise DesignError("Membership: decay needs time=, the column that tells when a membership was")

    @property
    def columns(self) -> tuple[str, ...]:
        """`on` as the tuple that it always is."""
        return tuple(self.on)


@dataclass(frozen=True, slots=True)
class MembershipSum:
    """A predictor of the units, summed over a row's set with the set's weights: `membership_sum(degree, teacher)`.

    Attributes
    ----------
    factor : str
    sql : str
        Scalar expression over the table's columns.
    column : str
        Name that the data's relation gives the sum.
    """

    factor: str
    sql: str
    column: str

    @property
    def shown(self) -> str:
        """`membership_sum(degree, teacher)`."""
        return f"{SUM_CALL}({_plain(self.sql)}, {self.factor})"


@dataclass(frozen=True, slots=True)
class MembershipTable:
    """The sets of units of one factor; rows with equal sets share one pattern number.

    Attributes
    ----------
    units : pyarrow.Table
        The unit's key in a column named like the factor, one row per unit, in key order.
    pattern, unit : (m,) of int
        Entries of the incidence, in order of pattern, then unit: pattern numbers from 1 (0 is the empty set, without
        entries), and positions in `units`; a pair occurs once.
    weight : (m,)
        Positive.
    rows_without : int
        Rows of the data whose set is empty.
    unused : int
        Units of the membership table that no row has; they are not in `units`.
    """

    units: pa.Table
    pattern: IntArray
    unit: IntArray
    weight: Array
    rows_without: int = 0
    unused: int = 0

    @property
    def n_units(self) -> int:
        """Units."""
        return int(self.units.num_rows)

    def restricted(self, patterns: IntArray) -> MembershipTable:
        """The entries of some patterns; units that only others have are dropped and counted as unused.

        Parameters
        ----------
        patterns : array of int
            Pattern numbers that occur, in any order, repeated or not.
        """
        kept = np.isin(self.pattern, patterns)
        used, unit = np.unique(self.unit[kept], return_inverse=True)
        return replace(
            self,
            units=self.units.take(used),
            pattern=self.pattern[kept],
            unit=unit.astype(np.int64),
            weight=self.weight[kept],
            unused=self.unused + self.n_units - len(used),
        )

    def entries(self, patterns: IntArray) -> tuple[IntArray, IntArray, Array]:
        """The incidence of cells (or rows) with given pattern numbers.

        Parameters
        ----------
        patterns : (cells,) of int

        Returns
        -------
        cell, unit : (m,) of int
        weight : (m,)
            In order of cell, then unit.
        """
        first = np.searchsorted(self.pattern, patterns, side="left")
        count = np.searchsorted(self.pattern, patterns, side="right") - first
        cell = np.repeat(np.arange(len(patterns), dtype=np.int64), count)
        within = np.arange(len(cell)) - np.repeat(np.cumsum(count) - count, count)
        at = np.repeat(first, count) + within
        return cell, self.unit[at], self.weight[at]


def unused_warning(factor: str, unused: int, complete: bool = False) -> str:
    """What is said of units that no row, or no complete row, belongs to."""
    verb = "unit of the membership table has" if unused == 1 else "units of the membership table have"
    rows = "no complete row" if complete else "no row"
    return (
        f"memberships of {factor}: {unused:,} {verb} {rows} of the data and {'was' if unused == 1 else 'were'} left out"
    )


def check_factors(spec: ModelSpec, memberships: Mapping[str, Membership]) -> None:
    """Refuse memberships that the model does not use, and uses that they do not have.

    Raises
    ------
    FormulaError
    """
    if not isinstance(memberships, Mapping):
        raise FormulaError(
            f"memberships is a {type(memberships).__name__}; pass a mapping from factors to their memberships: "
            "{'teacher': mlsql.Membership(...)}"
        )
    names = [f.name for f in spec.factors]
    for factor, given in memberships.items():
        if not isinstance(given, Membership):
            raise FormulaError(f"memberships[{factor!r}] is a {type(given).__name__}; pass a mlsql.Membership")
        key = column_atom(factor).sql
        for known in spec.factors:
            if len(known.keys) > 1 and key in known.columns:
                raise FormulaError(
                    f"the factor {known.name} combines {factor}, whose units come from a membership table, with "
                    f"another column: a row has several units of {factor}; use {factor} alone: (1 | {factor})"
                )
        if not any(f.columns == {key} for f in spec.factors):
            raise FormulaError(
                f"memberships are given for {factor!r}, which is no factor of the model; its factors are "
                f"{', '.join(names)}: add (1 | {factor}), or leave the memberships out"
            )
        for atom in spec.atoms:
            within = atom.kind == "group_mean" or atom.centering == "group"
            if within and (atom.group or (names[0] if len(names) == 1 else "")).strip() == factor:
                raise FormulaError(
                    f"{atom.name}: a row belongs to several units of {factor} at once, so that there is no one group "
                    "to take a mean of; use another factor, or membership_sum()"
                )


def with_sums(
    spec: ModelSpec, memberships: Mapping[str, Membership], unique: Callable[[Sequence[str]], Sequence[str]]
) -> tuple[ModelSpec, tuple[MembershipSum, ...]]:
    """The specification with each `membership_sum(x, factor)` replaced by a column, and what those columns hold.

    Names shown to the user stay.

    Parameters
    ----------
    spec : ModelSpec
    memberships : mapping of factor to Membership
    unique : callable
        Makes proposed column names distinct from each other and from the data's.

    Raises
    ------
    FormulaError
        When the call does not name a predictor and a factor with memberships, or a factor is used as a column.
    """
    found: dict[tuple[str, str], None] = {}
    for atom in _all_atoms(spec):
        for node in _calls(sqlglot.parse_one(atom.sql, dialect="duckdb")):
            found[_arguments(node, atom, memberships)] = None
    columns = unique([f"sum of {_plain(sql)} over {factor}" for sql, factor in found])
    sums = {
        (sql, factor): MembershipSum(factor, sql, column) for (sql, factor), column in zip(found, columns, strict=True)
    }

    def rewritten(atom: Atom) -> Atom:
        tree = sqlglot.parse_one(atom.sql, dialect="duckdb")
        for node in _calls(tree):
            made = exp.column(exp.to_identifier(sums[_arguments(node, atom, memberships)].column, quoted=True))
            if node is tree:
                tree = made
            else:
                node.replace(made)
        result = replace(atom, sql=tree.sql("duckdb")) if sums else atom
        for name in columns_read(result.sql):
            if name.lower() in {f.lower() for f in memberships}:
                raise FormulaError(
                    f"{atom.name} reads {name}, whose units come from a membership table: it has no value in a row; "
                    f"use predictors of the units, {SUM_CALL}(x, {name})"
                )
        return result

    def term(item: Term) -> Term:
        return Term(tuple(rewritten(a) for a in item.atoms))

    changed = replace(
        spec,
        outcome=rewritten(spec.outcome),
        fixed=tuple(term(t) for t in spec.fixed),
        random=tuple(replace(b, terms=tuple(term(t) for t in b.terms)) for b in spec.random),
        offset=tuple(rewritten(a) for a in spec.offset),
        weights=None if spec.weights is None else rewritten(spec.weights),
    )
    return changed, tuple(sums.values())


def _all_atoms(spec: ModelSpec) -> list[Atom]:
    weights = [] if spec.weights is None else [spec.weights]
    return [spec.outcome, *spec.atoms, *spec.offset, *weights]


def _calls(tree: exp.Expr) -> list[exp.Anonymous]:
    return [n for n in tree.find_all(exp.Anonymous) if str(n.this).lower() == SUM_CALL]


def _arguments(node: exp.Anonymous, atom: Atom, memberships: Mapping[str, Membership]) -> tuple[str, str]:
    """The call's predictor, as SQL, and its factor."""
    arguments = node.expressions
    factor = arguments[-1] if len(arguments) == 2 else None
    if not isinstance(factor, exp.Column) or len(factor.parts) != 1:
        raise FormulaError(
            f"{atom.name}: {SUM_CALL}() takes a predictor of the units and the factor: {SUM_CALL}(degree, teacher)"
        )
    if factor.name not in memberships:
        have = f"memberships are given for {', '.join(memberships)}" if memberships else "no memberships are given"
        raise FormulaError(
            f"{atom.name}: {factor.name} is no factor with a membership table ({have}); pass "
            f"memberships={{{factor.name!r}: mlsql.Membership(...)}}"
        )
    if _calls(arguments[0]):
        raise FormulaError(f"{atom.name}: a {SUM_CALL}() of a {SUM_CALL}() is not defined; sum once")
    return arguments[0].sql("duckdb"), factor.name


def _plain(sql: str) -> str:
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    return tree.name if isinstance(tree, exp.Column) else sql.replace('"', "")


def sum_table(
    item: MembershipSum, members: Mapping[str, str], units: Mapping[str, str] | None, unit: str
) -> Literal["memberships", "units"]:
    """Which of the two tables holds a predictor: the units table if it has all its columns.

    Raises
    ------
    DataError, DesignError
        When a column is in neither, or the expression mixes them.
    """
    used = [c for c in columns_read(item.sql) if c.lower() != unit.lower()]
    lower, upper = {c.lower() for c in members}, {c.lower() for c in units or {}}
    if used and all(c.lower() in upper for c in used):
        return "units"
    missing = next((c for c in used if c.lower() not in lower | upper), None)
    if missing is not None:
        raise DataError.unknown_column(missing, [*members, *(units or {})], f"{item.shown}, membership table")
    elsewhere = [c for c in used if c.lower() not in lower]
    if elsewhere:
        raise DesignError(
            f"{item.shown} mixes columns of the membership table and of the units "
            f"table ({', '.join(elsewhere)}); put them into one table"
        )
    return "memberships"


def check_key_types(factor: str, column: str, types: tuple[str, str], tables: tuple[str, str]) -> None:
    """Refuse a column whose types in two tables cannot be matched.

    Raises
    ------
    DataError
    """
    kinds = {t.split("(", maxsplit=1)[0].upper() for t in types}
    if not comparable(*types) or (kinds & set(_WIDE) and kinds & {"DOUBLE", "FLOAT", "DECIMAL"}):
        raise DataError(
            f"memberships of {factor}: column {column} is {types[0]} in the {tables[0]} and {types[1]} in the "
            f"{tables[1]}; convert one of them, so that rows can be matched"
        )


def check_time(factor: str, given: Membership, dtype: str) -> None:
    """Refuse times without an order, or, with decay, without a difference.

    Raises
    ------
    DataError
    """
    kind = dtype.split("(", maxsplit=1)[0].upper()
    if kind not in _TIMES and kind != "DATE" and not kind.startswith("TIMESTAMP"):
        raise DataError(
            f"memberships of {factor}: time {given.time} has type {dtype}; a time is a number or a date, so that "
            "earlier and later are known: convert it"
        )
    if given.decay is not None and kind.startswith("TIMESTAMP"):
        raise DataError(
            f"memberships of {factor}: decay needs a difference of times as a number, and time {given.time} has type "
            f"{dtype}; convert it to a number (years, say), or to a DATE, which decays by the day"
        )
