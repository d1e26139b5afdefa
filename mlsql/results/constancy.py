"""Which predictors have one value per group of each factor."""

from __future__ import annotations

from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates


def constant_predictors(estimates: Estimates) -> dict[str, frozenset[str]]:
    """Names of the predictors that do not vary within groups, by factor name."""
    design, moments = estimates.design, estimates.moments
    if not moments.incidences:
        return {design.spec.group: design.level2_names}
    shifts = Shifts(design, moments)
    factors = {i.sql: i.name for i in design.schema.of_role("factor")}
    variables = {v for c in (*design.fixed.columns, *design.random) for v in c.variables}
    named: dict[str, list[bool]] = {}
    found = {}
    for incidence in moments.incidences:
        named = {}
        for v in variables:
            name = factors.get(v.source, v.name) if v.origin != "group_mean" else v.name
            constant = v.level == 2 and incidence.constant(shifts.pivoted_values(v)) is not None
            named.setdefault(name, []).append(constant)
        found[incidence.name] = frozenset(name for name, each in named.items() if all(each))
    return found


def predictor_levels(estimates: Estimates) -> dict[str, int]:
    """Levels of the predictors above level 1, by their SQL.

    Two levels: 2.  Nested factors: the level of the coarsest within whose groups the predictor does not vary.
    Otherwise 2 for what has one value per group of some factor.
    """
    design, moments, levels = estimates.design, estimates.moments, estimates.levels
    variables = [v for c in (*design.fixed.columns, *design.random) for v in c.level2 if v.origin != "group_mean"]
    if levels is None:
        return {v.source: 2 for v in variables}
    shifts, nested = Shifts(design, moments), levels.top is not None
    order = levels.structure.chain if nested else range(len(moments.incidences))
    found: dict[str, int] = {}
    for v in dict.fromkeys(variables):
        values = shifts.pivoted_values(v)
        constant = [i for i, t in enumerate(order) if moments.incidences[t].constant(values) is not None]
        level = 1 if not constant else constant[-1] + 2 if nested else 2
        # of a factor's indicators the one that varies most counts
        found[v.source] = min(level, found.get(v.source, level))
    return found
