"""Data to moments: the steps that every verb shares."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlsql.design.design import Design, build_design
from mlsql.design.membership import MembershipTable
from mlsql.design.schema import Schema
from mlsql.design.survey import Survey
from mlsql.engine.duckdb import DuckDBEngine, Progress
from mlsql.errors import DataError, DesignError
from mlsql.formula.spec import ModelSpec
from mlsql.moments.moments import Moments, pack
from mlsql.moments.statistics import Collinear, collinear_columns
from mlsql.pipeline.incidences import find_incidences
from mlsql.pipeline.membership import membership_incidences
from mlsql.pipeline.prepare import Inputs, make_schema
from mlsql.pipeline.survey import run_survey
from mlsql.results.factor_checks import check_factors
from mlsql.sql.moments import moments_steps
from mlsql.sql.plan import Plan


@dataclass(frozen=True, slots=True)
class Analysis:
    """A design with its moments.

    Attributes
    ----------
    design : Design
    moments : Moments
    plan : Plan
        The moments statements that ran.
    dropped : tuple of str
        What missing values cost, column by column.
    warnings : tuple of str
    seconds : mapping of str to float
        Time of each stage: survey, scan, pack.
    """

    design: Design
    moments: Moments
    plan: Plan
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]


def analyse(
    spec: ModelSpec,
    inputs: Inputs,
    *,
    memberships: Mapping[str, MembershipTable] | None = None,
    drop_collinear: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """Survey the data, build the design, compute the moments.

    1. Schema and survey.
    2. Moments for the design; again if a predictor taken to be constant within groups is not.
    3. Checks that need the moments: groups, how factors meet, collinear predictors.

    Raises
    ------
    MlsqlError
    """
    started = time.perf_counter()
    with inputs.engine(progress) as engine:
        # 1
        schema = make_schema(spec, inputs, engine)
        survey = run_survey(schema, inputs, engine)
        surveyed = time.perf_counter()
        # 2
        design, moments, plan, packing = _moments(spec, schema, survey, inputs, engine)
        # 3
        moments, noted = with_factors(design, moments, memberships or {})
        collinear = collinear_columns(design, moments)
        if collinear and not drop_collinear:
            raise DesignError(collinear_message(collinear[0]) + "; leave it out, or pass drop_collinear=True")
        if collinear:
            excluded = frozenset(c.name for c in collinear)
            incidences = moments.incidences
            design, moments, plan, packing = _moments(spec, schema, survey, inputs, engine, excluded)
            moments = replace(moments, incidences=incidences)
    lost = survey.rows - moments.n_rows
    if lost < 0 or (lost and not _missing(survey)):
        raise DataError(
            f"the survey saw {survey.rows:,} rows and the moments {moments.n_rows:,}, though none lacks a value: the "
            "data change from scan to scan; store them in a table first"
        )
    seconds = {"survey": surveyed - started, "scan": time.perf_counter() - surveyed - packing, "pack": packing}
    warnings = [*schema.warnings, *survey_warnings(survey), *noted]
    warnings += [collinear_message(c) + "; it was left out, as asked" for c in collinear]
    return Analysis(design, moments, plan, dropped_rows(survey, moments), tuple(warnings), seconds)


def _moments(
    spec: ModelSpec,
    schema: Schema,
    survey: Survey,
    inputs: Inputs,
    engine: DuckDBEngine,
    excluded: frozenset[str] = frozenset(),
) -> tuple[Design, Moments, Plan, float]:
    varying: frozenset[str] = frozenset()
    while True:
        design = build_design(spec, schema, survey, varying=varying, excluded=excluded)
        steps = moments_steps(design, inputs.tables)
        answers = [engine.query(step) for step in steps]
        if not answers[0].num_rows:
            raise DataError("no complete rows are left; missing values are " + ", ".join(_missing(survey)))
        started = time.perf_counter()
        moments, found = pack(design, answers[0], answers[1] if len(answers) > 1 else None)
        if not found:
            return design, moments, Plan(steps), time.perf_counter() - started
        varying |= found


def with_factors(
    design: Design, moments: Moments, memberships: Mapping[str, MembershipTable]
) -> tuple[Moments, tuple[str, ...]]:
    """The groups of every factor where there are several, and what is to be said of them."""
    given, warnings = membership_incidences(memberships, moments.keys)
    incidences = find_incidences(design, moments, given)
    if not incidences:
        check_groups(design, moments)
        return moments, warnings
    found = replace(moments, incidences=incidences)
    return found, (*warnings, *check_factors(design, found))


def check_groups(design: Design, moments: Moments) -> None:
    """Refuse groupings that identify no variance.

    Raises
    ------
    DesignError
    """
    spec, q = design.spec, len(design.random)
    J, N, largest = moments.n_groups, moments.n_rows, int(moments.n.max())
    if len(design.fixed.columns) >= N:
        raise DesignError(f"{len(design.fixed.columns)} fixed effects but {N:,} complete rows; use fewer predictors")
    if J < 2:
        raise DesignError(
            f"random term (1 | {spec.group}): {spec.group} has {J} level in {N:,} rows, at least 2 are needed; "
            "check the filter or drop the term"
        )
    if largest == 1:
        raise DesignError(
            f"the group {spec.group} has as many values as rows ({N:,}): every group has one row, so group effects "
            "cannot be told from level-1 errors; choose a column that repeats"
        )
    if q >= largest:
        raise DesignError(
            f"{q} random coefficients of {spec.group}, but no group has more than {largest} rows: their covariance "
            "cannot be told from level-1 errors; use fewer random coefficients"
        )


def collinear_message(found: Collinear) -> str:
    """What is wrong with a collinear predictor."""
    if not found.explained_by:
        return f"predictor {found.name} is zero in every row"
    return f"predictor {found.name} is a linear combination of {', '.join(found.explained_by)}"


def survey_warnings(survey: Survey) -> list[str]:
    """Empty factor levels and rows without a group in the level-2 table."""
    found = []
    for column in survey.columns:
        empty = survey.empty_levels.get(column.input.sql)
        if empty:
            found.append(f"factor {column.input.name}: level {', '.join(empty)} has no complete row and was left out")
    if survey.unmatched:
        found.append(
            f"{survey.unmatched:,} rows belong to groups that the level2 table does not have; they were left out"
        )
    return found


def dropped_rows(survey: Survey, moments: Moments) -> tuple[str, ...]:
    """What missing values cost, column by column."""
    lost = survey.rows - moments.n_rows
    if not lost:
        return ()
    return (f"{lost:,} of {survey.rows:,} rows are incomplete in the model's columns", *_missing(survey))


def _missing(survey: Survey) -> list[str]:
    """Missing values, column by column."""
    counts = [
        f"{c.input.name}: {c.nulls:,} NULL"
        + (f", {c.nans:,} NaN" if c.nans else "")
        + (" (level2 table)" if c.input.table == "level2" else "")
        for c in survey.columns
        if c.incomplete
    ]
    if survey.unmatched:
        counts.append(f"group not in the level2 table: {survey.unmatched:,} rows")
    return counts
