"""`plan`: the SQL of a fit, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlsql._typing import Method
from mlsql.design.design import build_design
from mlsql.formula.spec import ModelSpec
from mlsql.pipeline.prepare import make_inputs, make_schema, make_spec
from mlsql.pipeline.survey import run_survey
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
    survey: bool = False,
) -> Plan:
    """The statements that `fit` would run, as a script.

    Parameters
    ----------
    formula, data, method, con, level2, weights, groups
        As for `fit`.
    survey : bool
        False reads column names and types only: pivots are shown as 0 and every predictor of the rows as level 1.
        True runs the survey (not the moments) and shows the moments statements exactly as `fit` runs them.

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
    inputs = make_inputs(data, level2, con)
    tables = inputs.tables
    with inputs.engine() as engine:
        schema = make_schema(spec, inputs, engine)
        answers = run_survey(schema, inputs, engine) if survey else None
    steps = [survey_step(tables.rows, schema.of_table("rows"), "data")]
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
        ()
        if answers is not None
        else (
            "made without looking at the data: the survey replaces the pivots 0 by round means, drops the "
            "conditions on complete columns, and sums predictors that are constant within groups only once per group",
        )
    )
    return Plan((*steps, *moments), notes)
