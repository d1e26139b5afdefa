"""Cells: what one query must deliver when nothing is known of the data before it runs.

A *cell* is a group crossed with the levels of all categorical predictors.  Types, factor levels, pivots and what varies
within groups come with the same answer, so the query sums the products of every predictor's number and groups by every
predictor's label; a column that turns out to be numeric has no label, and one that turns out to be text no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import sqlglot
from sqlglot import exp

from mlsql.design.basis import Monomial
from mlsql.design.columns import indicator_sql
from mlsql.design.design import Design
from mlsql.design.schema import Candidate, Input, Schema, classify, columns_read, comparable, locate, outcome_sql
from mlsql.design.survey import Survey
from mlsql.errors import DataError
from mlsql.formula.spec import ModelSpec

CALL, FAILED = "call", "error"
CELL, COLUMNS, TYPES, PIVOTS, RANGES = "cell", "columns", "types", "pivots", "ranges"
SIZE, SURVEY = "size", "survey"
UPPER_COLUMNS, UPPER_TYPES, UPPER_SURVEY = "level2 columns", "level2 types", "level2 survey"
UNMATCHED = "unmatched"
"""What a row of the answer tells."""

MAX_SUMS = 250_000_000
"""More numbers than this in all cells (2 GB) are refused: a factor of too many levels, or too many groups."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A predictor whose type the query finds out.

    Attributes
    ----------
    sql : str
        The uncentred scalar expression.
    number : bool
        Its number is wanted, should it have one: some term uses it other than as `C(x)`.
    category : bool
        It is a factor whatever its type: `C(x)`.
    natural : bool
        Some term has it uncentred, so that it matters whether 0 is within its range.
    """

    sql: str
    number: bool
    category: bool
    natural: bool


@dataclass(frozen=True, slots=True)
class CellLayout:
    """The order of everything in the answer, from the formula alone.

    The numbers of a cell are: rows; with weights the sum of weights, of their logarithms, and the smallest; `products`;
    `unweighted` sums; rank of the labels of categories; then, with a
    level-2 table, 1 where it has the group, each predictor's number there, and rank of the labels there.

    Attributes
    ----------
    spec : ModelSpec
    level2 : bool
        A level-2 table is joined.
    outcome : str
        SQL, offsets subtracted.
    predictors : tuple of Predictor
    products : tuple of Monomial
        Products of pivoted numbers that are summed, each with factors sorted.
    """

    spec: ModelSpec
    level2: bool
    outcome: str
    predictors: tuple[Predictor, ...]
    products: tuple[Monomial, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """SQL of the grouping columns."""
        return tuple(k.sql for k in self.spec.keys)

    @property
    def weight(self) -> str | None:
        """SQL of the weights."""
        return None if self.spec.weights is None else self.spec.weights.sql

    @property
    def numbers(self) -> tuple[str, ...]:
        """SQL of the pivoted numbers: the outcome, then predictors."""
        return (self.outcome, *(p.sql for p in self.predictors if p.number))

    @property
    def unweighted(self) -> tuple[str, ...]:
        """SQL of the numbers whose unweighted sums are wanted beside weighted ones: those that are averaged."""
        averaged = {a.sql for a in self.spec.atoms if a.kind == "group_mean" or a.centering != "none"}
        return tuple(p.sql for p in self.predictors if p.number and p.sql in averaged) if self.weight else ()

    @property
    def natural(self) -> tuple[str, ...]:
        """SQL of the numbers whose range is wanted."""
        return tuple(p.sql for p in self.predictors if p.number and p.natural)

    @property
    def categories(self) -> tuple[str, ...]:
        """SQL of the predictors marked as factors."""
        return tuple(p.sql for p in self.predictors if p.category)

    @property
    def typed(self) -> tuple[str, ...]:
        """SQL of everything whose type is wanted from the rows, in order."""
        offsets = [o.sql for o in self.spec.offset]
        return (self.outcome, *self.keys, *_one(self.weight), *offsets, *(p.sql for p in self.predictors))

    @property
    def surveyed(self) -> tuple[str, ...]:
        """SQL of everything whose values are counted when some are missing."""
        return (self.outcome, *self.keys, *_one(self.weight), *(p.sql for p in self.predictors))

    @property
    def upper(self) -> tuple[str, ...]:
        """SQL of everything that may stand in the level-2 table."""
        return (*self.keys, *(p.sql for p in self.predictors))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that may be missing without the query failing, so that the answer can tell what the data have.

        Functions of time have no meaning without a type, and would be refused before the answer: an expression's
        columns are left to the engine's own message, unless the level-2 table may have them.
        """
        found = dict.fromkeys(
            column
            for sql in dict.fromkeys((*self.typed, self.spec.outcome.sql))
            if self.level2 or isinstance(sqlglot.parse_one(sql, dialect="duckdb"), exp.Column)
            for column in columns_read(sql)
        )
        folded = {name.lower(): name for name in reversed(list(found))}
        return tuple(reversed(folded.values()))

    @property
    def width(self) -> int:
        """Numbers of a cell that come from the rows."""
        own = 1 + 3 * (self.weight is not None) + len(self.products) + len(self.unweighted)
        return own + len(self.categories)

    @property
    def max_cells(self) -> int:
        """The largest answer that is packed."""
        return MAX_SUMS // self.width


def cell_layout(spec: ModelSpec, *, level2: bool) -> CellLayout:
    """Lay out the answer for a model.

    Every product of two columns of any part of the model is a product of numbers on the cells that have the right
    labels; which of an interaction's factors are numbers is not known, so all sub-products are summed.
    """
    atoms: dict[str, list[bool]] = {}
    for atom in spec.atoms:
        atoms.setdefault(atom.sql, []).append(atom.categorical)
    natural = {a.sql for a in spec.atoms if a.kind == "value" and a.centering == "none"}
    predictors = tuple(Predictor(sql, not all(c), any(c), sql in natural) for sql, c in atoms.items())
    outcome = outcome_sql(spec)
    numbers = {p.sql for p in predictors if p.number}
    sources: dict[Monomial, None] = {(): None}
    for sql in sorted(numbers):
        sources[sql,] = None
    for term in (*spec.fixed, *(t for b in spec.random for t in b.terms)):
        factors = sorted(a.sql for a in term.atoms if a.kind == "value" and a.sql in numbers and not a.categorical)
        for size in range(1, len(factors) + 1):
            sources |= dict.fromkeys(combinations(factors, size))
    sources[outcome,] = None
    pairs = combinations_with_replacement(sources, 2)
    products = dict.fromkeys(product_of(s, t) for s, t in pairs)
    return CellLayout(spec, level2, outcome, predictors, tuple(p for p in products if p))


def product_of(s: Monomial, t: Monomial) -> Monomial:
    """The product of two products."""
    return tuple(sorted((*s, *t)))


def _one(sql: str | None) -> tuple[str, ...]:
    return () if sql is None else (sql,)


@dataclass(frozen=True, slots=True)
class Header:
    """What the answer says of the tables.

    Attributes
    ----------
    columns, upper_columns : mapping of name to type
        Of the rows and of the level-2 table.
    types, upper_types : tuple of str
        In the order of `CellLayout.typed` and `CellLayout.upper`.
    pivots : tuple of float
        In the order of `CellLayout.numbers`.
    ranges : tuple of float or None
        Minimum and maximum of `CellLayout.natural`; None when the first rows of each have 0 within theirs.
    rows : int
    survey : tuple of float or None
        For each of `CellLayout.surveyed`: values, NaN, infinities, mean, minimum, maximum; None when every row is
        complete and finite.
    upper_survey : tuple of float or None
        Rows of the level-2 table, those with keys, and distinct keys; then six numbers for each of `CellLayout.upper`.
    unmatched : int
        Rows without a group in the level-2 table, counted when `survey` is there.
    """

    columns: Mapping[str, str]
    upper_columns: Mapping[str, str] | None
    types: tuple[str, ...]
    upper_types: tuple[str, ...]
    pivots: tuple[float, ...]
    ranges: tuple[float, ...] | None
    rows: int
    survey: tuple[float, ...] | None
    upper_survey: tuple[float, ...] | None
    unmatched: int


def schema_of(layout: CellLayout, header: Header) -> Schema:
    """Find every part of the model in the tables, as their columns and types turned out.

    Raises
    ------
    DataError, DesignError
    """
    spec = layout.spec
    candidates, warnings = locate(spec, header.columns, header.upper_columns)
    types = dict(zip(layout.typed, header.types, strict=True))
    upper = dict(zip(layout.upper, header.upper_types, strict=True)) if layout.level2 else {}
    for offset in spec.offset:
        classify(Candidate(f"offset({offset.name})", offset.sql, "offset", "rows"), types[offset.sql])
    found = [classify(c, (types if c.table == "rows" else upper)[c.sql]) for c in candidates]
    for key in found if layout.level2 else ():
        if key.role == "key" and not comparable(key.dtype, upper[key.sql]):
            raise DataError(
                f"the grouping column {key.name} is {key.dtype} in the data and {upper[key.sql]} in the level2 table; "
                "convert one of them, so that groups can be matched"
            )
    return Schema(tuple(dict.fromkeys(found)), layout.level2, warnings)


@dataclass(frozen=True, slots=True)
class CellSurvey(Survey):
    """A survey whose pivots are those that the query subtracted."""

    pivots: Mapping[str, float] | None = None

    def pivot(self, sql: str) -> float:
        """The number subtracted from an input."""
        return (self.pivots or {}).get(sql, 0.0)


def level_order(factor: Input, ranks: Mapping[str, float]) -> tuple[str, ...]:
    """Levels in the column's own order: as declared for an ENUM, by the rank of values for `C(x)`, else sorted."""
    place = {level: i for i, level in enumerate(declared_levels(factor.dtype))}
    return tuple(sorted(ranks, key=lambda level: (place.get(level, 0), ranks[level], level)))


def declared_levels(dtype: str) -> list[str]:
    """The levels of an ENUM type; none for another."""
    if not dtype.upper().startswith("ENUM"):
        return []
    return [e.name for e in sqlglot.parse_one(f"x::{dtype}", dialect="duckdb").find_all(exp.Literal)]


def indicators(design: Design) -> dict[str, tuple[str, str]]:
    """Factor and level behind the SQL of every indicator."""
    survey = design.survey
    assert survey is not None
    return {
        indicator_sql(factor, level): (factor.sql, level)
        for factor in design.schema.of_role("factor")
        for level in survey.levels[factor.sql]
    }


def split(source: Monomial, known: Mapping[str, tuple[str, str]]) -> tuple[Monomial, list[tuple[str, str]]]:
    """The numbers of a product, and the levels at which its indicators are 1."""
    return tuple(sql for sql in source if sql not in known), [known[sql] for sql in source if sql in known]
