"""The report of a fit with several grouping factors: three and more levels, crossed factors, memberships."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.formula.describe_levels import many_level_equations
from mlsql.inference.reference import Reference, few_groups
from mlsql.report.coefficients import HEADER, coefficient_cells
from mlsql.report.layout import DF_RULES, correlation_text, fixed_point, grid, number, p_text, table
from mlsql.results.components import component_errors, homogeneity_tests
from mlsql.results.constancy import constant_predictors
from mlsql.results.estimates import Estimates
from mlsql.results.submodel import submodel_name
from mlsql.status import Status

LEVELS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


def level_sections(estimates: Estimates, source: str, reference: Reference, robust: Array | str) -> list[str]:
    """Heading, equations, variances, fixed effects and variance components."""
    return [
        _heading(estimates, source),
        level_equations_text(estimates),
        _variances(estimates),
        _fixed(estimates, reference, robust),
        _components(estimates),
    ]


def level_equations_text(estimates: Estimates) -> str:
    """The model level by level, or crossed, and in mixed form."""
    return many_level_equations(estimates.design.spec, constant_predictors(estimates), chain_names(estimates))


def chain_names(estimates: Estimates) -> tuple[str, ...]:
    """Names of the factors from the finest to the coarsest when each is nested in the next; else empty."""
    levels = estimates.levels
    assert levels is not None
    if levels.top is None:
        return ()
    return tuple(levels.incidences[t].name for t in levels.structure.chain)


def _heading(estimates: Estimates, source: str) -> str:
    levels, spec = estimates.levels, estimates.design.spec
    assert levels is not None
    method = "restricted maximum likelihood" if spec.method == "REML" else "full maximum likelihood"
    chain = chain_names(estimates)
    if chain:
        title = f"{LEVELS.get(len(chain) + 1, str(len(chain) + 1))}-level model"
    elif all(i.ordinary for i in levels.incidences):
        title = f"Cross-classified model of {len(levels.incidences)} factors"
    else:
        title = "Multiple-membership model"
    lines = [
        f"{title}: {submodel_name(estimates.design)}",
        f"Data       {source}",
        f"Outcome    {spec.outcome.name}",
        f"Level 1    {levels.n_rows:,} rows",
    ]
    order = levels.structure.chain if chain else range(len(levels.incidences))
    for position, t in enumerate(order, start=2):
        incidence = levels.incidences[t]
        n = incidence.rows(levels.n)
        label = f"Level {position}" if chain else "Factor" if incidence.ordinary else "Membership"
        each = f"{n.min():,} to {n.max():,} rows each, mean {n.mean():.4g}"
        each = f"{n[0]:,} rows each" if n.min() == n.max() else each
        lines.append(f"{label:<10} {incidence.n_groups:,} groups of {incidence.name}, {each}")
    if spec.weights is not None:
        lines.append(f"Weights    {spec.weights.name} (precision)")
    ending = f"{estimates.status.label} after {estimates.evaluations} evaluations"
    if estimates.status is Status.GIVEN:
        ending = "variance components given, not estimated"
    return "\n".join([*lines, f"Method     {method}; {ending}"])


def _variances(estimates: Estimates) -> str:
    levels, T = estimates.levels, estimates.T
    assert levels is not None
    errors, tests = component_errors(estimates), homogeneity_tests(estimates)
    lines = [f"Sigma squared = {number(estimates.sigma2)}   (std. error {number(errors.sigma2)})"]
    for incidence, places in zip(levels.incidences, levels.columns, strict=True):
        names = [estimates.random_names[c] for c in places]
        own = T[np.ix_(places, places)]
        lower = [[number(own[a, b]) if b <= a else "" for b in range(len(names))] for a in range(len(names))]
        lines += ["", f"Tau of {incidence.name}", *grid([[n, *row] for n, row in zip(names, lower, strict=True)])]
        if len(names) > 1:
            corr = [
                [correlation_text(own, a, b) if b <= a else "" for b in range(len(names))] for a in range(len(names))
            ]
            lines += ["", f"Tau of {incidence.name} as correlations"]
            lines += grid([[n, *row] for n, row in zip(names, corr, strict=True)])
        known = [(n, tests[c].reliability) for n, c in zip(names, places, strict=True) if tests[c].groups]
        if known:
            lines += ["", f"Reliability of the least-squares coefficients of {incidence.name}"]
            lines += grid([[name, fixed_point(value, 3)] for name, value in known])
    return "\n".join(lines)


def _fixed(estimates: Estimates, reference: Reference, robust_covariance: Array | str) -> str:
    cells = coefficient_cells(estimates, reference, robust_covariance)
    rows = [[name, *own] for name, own in zip(estimates.fixed_names, cells, strict=True)]
    errors = "" if reference.vcov == "model" else f"standard errors {reference.vcov}, "
    lines = ["Fixed effects", *table(HEADER, rows)]
    if isinstance(robust_covariance, str):
        return "\n".join([*lines, f"    {errors}d.f. {DF_RULES[reference.df_method]}.", f"    {robust_covariance}."])
    top = chain_names(estimates)[-1]
    rule = DF_RULES[reference.df_method]
    lines.append(f"    {errors}d.f. {rule}; robust standard errors are CR0 by {top}, Ratio is robust to model-based.")
    few = few_groups("CR0", estimates.statistics.n_groups)
    return "\n".join([*lines, *([f"    {few}."] if few is not None else [])])


def _components(estimates: Estimates) -> str:
    header = ["Random effect", "Std. dev.", "Variance", "Std. error", "d.f.", "Chi-square", "p value"]
    T, errors, tests = estimates.T, component_errors(estimates), homogeneity_tests(estimates)
    rows: list[list[str]] = []
    levels = estimates.levels
    assert levels is not None
    for incidence, places in zip(levels.incidences, levels.columns, strict=True):
        rows.append([incidence.name])
        for c in places:
            test = tests[c]
            rows.append(
                [
                    f"  {estimates.random_names[c]}",
                    number(float(np.sqrt(T[c, c]))),
                    number(T[c, c]),
                    number(errors.T[c, c]),
                    str(test.df) if np.isfinite(test.chi2) else "-",
                    fixed_point(test.chi2, 5),
                    p_text(test.p_value),
                ]
            )
    s2 = estimates.sigma2
    rows.append(["level 1", number(float(np.sqrt(s2))), number(s2), number(errors.sigma2), "", "", ""])
    lines = ["Variance components", *table(header, rows)]
    short = _determined(estimates)
    return "\n".join([*lines, *short])


def _determined(estimates: Estimates) -> list[str]:
    """How many groups the chi-square tests use, and which tests there are."""
    levels, tests, found = estimates.levels, homogeneity_tests(estimates), []
    assert levels is not None
    for incidence, places in zip(levels.incidences, levels.columns, strict=True):
        used = tests[int(places[0])].groups
        if 0 < used < incidence.n_groups:
            found.append(
                f"    Chi-square and reliability of {incidence.name} use the {used:,} of {incidence.n_groups:,} groups "
                "whose own data determine every random coefficient."
            )
    if levels.structure.rest:
        found.append(
            "    Chi-square tests are defined where factors are nested; where they are crossed, compare deviances."
        )
    else:
        found.append("    d.f. of a chi-square: groups, less the groups above where the coefficient varies there too,")
        found.append("    less the predictors of its equation.")
    return found
