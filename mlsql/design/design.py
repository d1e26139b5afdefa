"""`Design`: every column of the model, its expansion over the query's sums, and which sums the query must deliver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mlsql.design.basis import Monomial, Piece, expand, pivotable
from mlsql.design.columns import Column, Variable, VariableFacts, atom_variables, code_terms
from mlsql.design.schema import Input, Schema
from mlsql.design.survey import Survey
from mlsql.errors import DataError, DesignError
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import Atom

Layout = Literal["lean", "full"]

SMALL = 400_000
"""Up to this many rows one scan with all products is cheaper than two scans (docs/explanation/moments.md)."""


@dataclass(frozen=True, slots=True)
class Base:
    """A level-1 value that the query reads and pivots."""

    name: str
    sql: str
    dtype: str
    pivot: float


@dataclass(frozen=True, slots=True)
class Part:
    """The fixed effects or one random block.

    Attributes
    ----------
    columns : tuple of Column
    pieces : tuple of tuple of Piece
        The expansion of each column of the internal basis.
    pivoted : frozenset of Variable
        Variables that this part keeps pivoted.
    """

    columns: tuple[Column, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    pivoted: frozenset[Variable]


@dataclass(frozen=True, slots=True)
class Design:
    """Formula and data put together; exists only complete.

    Attributes
    ----------
    spec : ModelSpec
    schema : Schema
    survey : Survey or None
        None for a plan made without looking at the data.
    bases : tuple of Base
        Level-1 values; the outcome is the last.
    sources : tuple of Monomial
        Products of bases whose sums the query delivers: the constant first, the outcome last.
    per_group : tuple of int
        Positions in `sources` whose products with every source are kept by group, beside all plain sums: those the
        likelihood needs (lean), or all (full).
    layout : {"lean", "full"}
        Where the other products come from.  lean: a pooled query of their own.  full: the query by group, one scan.
    group_values : tuple of Variable
        Values that are one per group, read from the rows (checked) or from the level-2 table.
    means : tuple of str
        SQL of bases whose unweighted group mean is used.
    fixed : Part
    blocks : tuple of Part
    """

    spec: ModelSpec
    schema: Schema
    survey: Survey | None
    bases: tuple[Base, ...]
    sources: tuple[Monomial, ...]
    per_group: tuple[int, ...]
    layout: Layout
    group_values: tuple[Variable, ...]
    means: tuple[str, ...]
    fixed: Part
    blocks: tuple[Part, ...]

    @property
    def keys(self) -> tuple[Input, ...]:
        """Grouping columns."""
        return self.schema.of_role("key")

    @property
    def outcome(self) -> Base:
        """The outcome's base."""
        return self.bases[-1]

    @property
    def random(self) -> tuple[Column, ...]:
        """Columns of Z, block after block."""
        return tuple(c for b in self.blocks for c in b.columns)

    @property
    def has_intercept(self) -> bool:
        """True when the fixed part has an intercept, which absorbs the outcome's pivot."""
        return Column() in self.fixed.columns

    def completed(self) -> Design:
        """The same design with all products kept by group."""
        return replace(self, layout="full", per_group=tuple(range(1, len(self.sources))))

    @property
    def level2_names(self) -> frozenset[str]:
        """Names of predictors that have one value per group."""
        factors = {i.sql: i.name for i in self.schema.of_role("factor")}
        found = {v for c in (*self.fixed.columns, *self.random) for v in c.level2}
        return frozenset(factors.get(v.source, v.name) if v.origin != "group_mean" else v.name for v in found)


def build_design(
    spec: ModelSpec,
    schema: Schema,
    survey: Survey | None,
    *,
    varying: frozenset[str] = frozenset(),
    excluded: frozenset[str] = frozenset(),
) -> Design:
    """Make the design.

    Parameters
    ----------
    spec : ModelSpec
    schema : Schema
    survey : Survey or None
        Without one, pivots are 0 and every predictor of the rows counts as level 1.
    varying : frozenset of str
        SQL of inputs known to vary within groups beside those seen in the survey's preview.
    excluded : frozenset of str
        Names of fixed columns to leave out.

    Raises
    ------
    DataError
        A constant outcome or predictor, no complete rows.
    DesignError
        A factor with one level; levels not known because there is no survey.
    """
    if survey is not None:
        check_survey(schema, survey)
        if any(not t.atoms for t in spec.fixed):
            _refuse_constants(survey)
    facts = _facts(schema, survey, varying)
    variables = {atom: _of_factor(atom, spec, atom_variables(atom, schema, facts)) for atom in spec.atoms}
    fixed = tuple(c for c in code_terms(spec.fixed, variables) if c.name not in excluded)
    random = tuple(code_terms(b.terms, variables) for b in spec.random)
    fixed_part = _part(fixed, pivotable([fixed]))
    # a block can absorb a pivot only by itself, since its covariance matrix is its own
    blocks = tuple(_part(block, pivotable([block])) for block in random)
    return _with_sources(spec, schema, survey, facts, fixed_part, blocks)


def _of_factor(atom: Atom, spec: ModelSpec, variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
    """Variables that are means or deviations within groups say of which factor, where the model has several."""
    factor = None if atom.group is None or len(spec.factors) == 1 else spec.factor(atom.group)
    return variables if factor is None else tuple(replace(v, group=factor.name) for v in variables)


def _part(columns: tuple[Column, ...], pivoted: frozenset[Variable]) -> Part:
    return Part(columns, tuple(expand(c, pivoted) for c in columns), pivoted)


def _with_sources(
    spec: ModelSpec, schema: Schema, survey: Survey | None, facts: VariableFacts, fixed: Part, blocks: tuple[Part, ...]
) -> Design:
    parts = (fixed, *blocks)
    variables = list(dict.fromkeys(v for p in parts for c in p.columns for v in c.variables))
    used = [v for v in variables if v.level == 1 or v.origin == "group_mean"]
    outcome = Base(schema.outcome.name, schema.outcome.sql, schema.outcome.dtype, facts.pivot(schema.outcome.sql))
    bases = {v.sql: Base(_base_name(v, schema), v.sql, v.dtype, v.pivot) for v in used}
    needed = [p.monomial for part in parts for pieces in part.pieces for p in pieces]
    means = dict.fromkeys(v.sql for v in variables if v.origin == "group_mean" or v.centering != "none")
    plain: list[Monomial] = [(v.sql,) for v in used if v.origin == "group_mean" or v.centering != "none"]
    sources = list(dict.fromkeys([(), *needed, *plain]))
    per_group = {p.monomial for b in blocks for pieces in b.pieces for p in pieces}
    per_group |= {p.monomial for pieces in fixed.pieces for p in pieces if p.varies}
    layout: Layout = "lean"
    if survey is not None and (survey.preview.clustered or survey.rows <= SMALL):
        layout = "full"
    sources.append((outcome.sql,))
    kept = {s for s in sources if s} if layout == "full" else per_group - {()}
    return Design(
        spec=spec,
        schema=schema,
        survey=survey,
        bases=(*bases.values(), outcome),
        sources=tuple(sources),
        per_group=tuple(i for i, s in enumerate(sources) if s in kept),
        layout=layout,
        group_values=tuple(
            dict.fromkeys(group_value(v, schema) for v in variables if v.level == 2 and v.origin != "group_mean")
        ),
        means=tuple(sql for sql in means if sql in bases),
        fixed=fixed,
        blocks=blocks,
    )


def group_value(variable: Variable, schema: Schema) -> Variable:
    """The uncentred value behind a level-2 variable: read once, however many ways it is centred."""
    return replace(variable, centering="none", name=_base_name(variable, schema))


def _base_name(variable: Variable, schema: Schema) -> str:
    number = variable.sql == variable.source
    source = next(i for i in schema.inputs if i.sql == variable.source and (i.role != "factor") == number)
    if number:
        return source.name
    return source.name + variable.name[variable.name.rindex("[") :]


def _facts(schema: Schema, survey: Survey | None, varying: frozenset[str]) -> VariableFacts:
    everything = frozenset(i.sql for i in schema.of_role("numeric", "factor"))
    if survey is None:
        unknown = schema.of_role("factor")
        if unknown:
            raise DesignError(
                f"the levels of factor {unknown[0].name} are known only after the survey; plan with survey=True"
            )
        return VariableFacts({}, {}, everything)
    pivots: Mapping[str, float] = {c.input.sql: survey.pivot(c.input.sql) for c in survey.columns if c.input.numeric}
    return VariableFacts(survey.levels, pivots, survey.preview.varying | varying)


def _refuse_constants(survey: Survey) -> None:
    for column in survey.columns:
        if column.input.role == "numeric" and column.constant:
            raise DataError(
                f"predictor {column.input.name} is {column.minimum:g} in every row, like the intercept; leave it out"
            )


def check_survey(schema: Schema, survey: Survey) -> None:
    """Refuse data that no model can use.

    Raises
    ------
    DataError
        No rows, infinite values, a constant outcome, weights that are not positive.
    """
    if survey.rows == 0:
        raise DataError("the data have no rows")
    if survey.unmatched == survey.rows:
        raise DataError(f"none of the {survey.rows:,} rows belongs to a group of the level2 table; compare their keys")
    for column in survey.columns:
        name, total = column.input.name, column.rows
        if column.incomplete == total:
            raise DataError(f"column {name} has no value in any of {total:,} rows; leave it out or check the source")
        if column.infinite:
            advice = "replace them by NULL: I(CASE WHEN isfinite(x) THEN x END)"
            if column.input.role == "weight":
                advice = "precision weights are positive numbers"
            raise DataError(f"column {name} has {column.infinite:,} infinite values in {total:,} rows; {advice}")
        if column.input.role == "outcome" and column.constant:
            raise DataError(f"the outcome {name} is {column.minimum:g} in every row: its variance is zero")
        if column.input.role == "weight" and column.minimum <= 0:
            raise DataError(f"weights {name}: the smallest is {column.minimum:g}; precision weights must be positive")
        if column.input.role == "weight" and column.incomplete:
            raise DataError(
                f"weights {name}: {column.incomplete:,} of {total:,} are NULL or NaN; give every row a weight, "
                "or filter the rows in the data's query"
            )
