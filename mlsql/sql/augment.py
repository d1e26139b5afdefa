"""The query behind `Fit.augment`: fitted values and residuals beside the data's own columns."""

from __future__ import annotations

from sqlglot import exp

from mlsql.sql.scoring import (
    ScoreQuery,
    added,
    analysed,
    is_known,
    only_when,
    outcome_value,
    population_part,
    random_part,
    with_rows,
)
from mlsql.sql.syntax import as_double, number, scalar

AUGMENT_COLUMNS = ("fitted", "fitted_population", "residual", "residual_population", "residual_standardized")


def augment_query(query: ScoreQuery) -> exp.Select:
    """The data's columns with fitted values (offsets included) and level-1 residuals."""
    model, known = query.model, is_known()
    offset = [scalar(o.sql) for o in model.design.spec.offset]
    outcome = outcome_value(model.design)
    fixed, random = population_part(model), random_part(model, "u")
    residual = exp.Sub(this=exp.Sub(this=outcome, expression=exp.paren(fixed)), expression=exp.paren(random))
    scaled: exp.Expr = exp.Div(this=exp.paren(residual), expression=number(model.sigma))
    weight = model.design.schema.weight
    if weight is not None:
        scaled = exp.Mul(this=scaled, expression=exp.Sqrt(this=as_double(weight.sql, weight.dtype)))
    items = {
        "fitted": only_when(known, added([fixed.copy(), *offset, random.copy()])),
        "fitted_population": added([fixed.copy(), *(o.copy() for o in offset)]),
        "residual": only_when(known, residual.copy()),
        "residual_population": exp.Sub(this=outcome.copy(), expression=exp.paren(fixed.copy())),
        "residual_standardized": only_when(known, scaled),
    }
    return with_rows(query, {k: only_when(analysed(model.design), v) for k, v in items.items()})
