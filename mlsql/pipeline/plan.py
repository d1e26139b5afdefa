"""`plan`: the SQL of a fit, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlsql._typing import Method
from mlsql.design.design import Design, build_design
from mlsql.design.membership import Membership, MembershipTable
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.formula.spec import ModelSpec
from mlsql.pipeline.factor_tables import check_factor_tables, level2_tables, locate_factor_tables
from mlsql.pipeline.membership import prepare_memberships
from mlsql.pipeline.prepare import Inputs, make_inputs, make_schema, make_spec
from mlsql.pipeline.survey import run_survey
from mlsql.sql.level_counts import counts_step
from mlsql.sql.moments import moments_steps
from mlsql.sql.plan import Plan, Step
from mlsql.sql.survey import level2_step, levels_step, preview_step, survey_step

if TYPE_CHECKING:
    import duckdb


def plan(
    formula: str | ModelSpec,
    data: object,
    *,
    method: Method = "REML",
    con: duckdb.DuckDBPyConnection | None = None,
    level2: object = None,
    weights: str | None = None,
    groups: str | None = None,
    memberships: Mapping[str, Membership] | None = None,
    survey: bool = False,
) -> Plan:
    """The statements that `fit` would run, as a script.

    Parameters
    ----------
    formula, data, method, con, level2, weights, groups, memberships
        As for `fit`.
    survey : bool
        False reads column names and types only: pivots are shown as 0 and every predictor of the rows as level 1.
        True runs the survey (not the moments) and shows the moments statements exactly as `fit` runs them; of several
        grouping factors it also counts groups and cells, and predicts memory and time.

    Returns
    -------
    Plan
        `print(plan)`; `plan.steps` holds each statement.

    Examples
    --------
    >>> import mlsql
    >>> script = mlsql.plan("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
    >>> [step.name for step in script.steps]
    ['survey of data', 'preview', 'moments by group', 'pooled moments']
    """
    spec = make_spec(formula, method, weights, groups)
    table, joined = level2_tables(spec, level2, memberships or {})
    inputs = make_inputs(data, table, con)
    units: Mapping[str, MembershipTable] = {}
    if memberships:
        with inputs.engine() as engine:
            spec, inputs, units, _ = prepare_memberships(spec, inputs, memberships, engine)
    above = locate_factor_tables(spec, inputs, joined)
    if survey:
        check_factor_tables(above)
    inputs = above.inputs
    tables = inputs.tables
    counted: tuple[str, ...] = ()
    with inputs.engine() as engine:
        schema = make_schema(spec, inputs, engine)
        answers = run_survey(schema, inputs, engine) if survey else None
        if answers is not None and (units or len(spec.factors) > 1):
            counted = _counted(build_design(spec, schema, answers), inputs, engine, units)
    steps = [*above.steps, survey_step(tables.rows, schema.of_table("rows"), "data")]
    if tables.level2 is not None:
        steps += [survey_step(tables.level2, schema.of_table("level2"), "level2"), level2_step(tables, schema)]
    factors = schema.of_role("factor")
    if factors:
        steps.append(levels_step(tables, schema, () if answers is None else answers.incomplete_inputs("rows")))
    steps.append(preview_step(tables.rows, schema, () if answers is None else answers.incomplete_inputs("rows")))
    if answers is None and factors:
        note = (
            f"the moments statements depend on the levels of {', '.join(f.name for f in factors)}: "
            "survey=True runs the survey and shows them"
        )
        return Plan(tuple(steps), (note,))
    moments: tuple[Step, ...] = moments_steps(build_design(spec, schema, answers), tables)
    notes = (
        counted
        if answers is not None
        else (
            "made without looking at the data: the survey replaces the pivots 0 by round means, drops the "
            "conditions on complete columns, and sums predictors that are constant within groups only once per group",
        )
    )
    return Plan((*steps, *moments), notes)


def _counted(
    design: Design, inputs: Inputs, engine: DuckDBEngine, units: Mapping[str, MembershipTable]
) -> tuple[str, ...]:
    """How the factors meet and what the fit will take, from one query of counts."""
    # scipy comes with it, which other plans start without
    from mlsql.results.cost import cost_notes, predict_cost, read_counts

    answer = engine.query(counts_step(design, inputs.tables))
    counts = read_counts(design, [column[0].as_py() for column in answer.columns], units)
    return cost_notes(counts, predict_cost(counts))
