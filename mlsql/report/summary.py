"""The fit as text, in the layout that users of HLM know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlsql._arrays import Array
from mlsql.formula.describe import level_equations
from mlsql.formula.terms import INTERCEPT
from mlsql.inference.likelihood_ratio import single_level_ratio
from mlsql.inference.reference import Reference, few_groups
from mlsql.report.coefficients import HEADER, coefficient_cells
from mlsql.report.layout import DF_RULES, correlation_text, fixed_point, grid, number, p_text, table
from mlsql.report.level_summary import level_equations_text, level_sections
from mlsql.results.components import component_errors, homogeneity_tests
from mlsql.results.estimates import Estimates
from mlsql.results.homogeneity import Homogeneity
from mlsql.results.measures import icc
from mlsql.results.submodel import submodel_name
from mlsql.status import Status


def summary(
    estimates: Estimates,
    source: str,
    warnings: Sequence[str],
    dropped: Sequence[str],
    reference: Reference,
    robust_covariance: Array | str,
) -> str:
    """The whole report.

    Parameters
    ----------
    estimates : Estimates
    source : str
        What the data were.
    warnings, dropped : sequence of str
        Warnings of the fit; how many rows each column's missing values cost.
    reference : Reference
        Behind the tests of the fixed effects.
    robust_covariance : (p, p), or text
        CR0, for the robust standard errors beside the model's; or why there is none.
    """
    if estimates.levels is None:
        heading, *body = _two_level_sections(estimates, source, reference, robust_covariance)
    else:
        heading, *body = level_sections(estimates, source, reference, robust_covariance)
    sections = [
        heading,
        *(["\n".join(["Rows left out", *(f"    {d}" for d in dropped)])] if dropped else []),
        *body,
        _statistics(estimates),
        *(["\n".join(["Notes", *(f"    {w}" for w in warnings)])] if warnings else []),
    ]
    return "\n\n".join(sections)


def equations_text(estimates: Estimates) -> str:
    """The model level by level and in mixed form."""
    if estimates.levels is not None:
        return level_equations_text(estimates)
    return level_equations(estimates.design.spec, estimates.design.level2_names)


def _two_level_sections(estimates: Estimates, source: str, reference: Reference, robust: Array | str) -> list[str]:
    tests = homogeneity_tests(estimates)
    return [
        _heading(estimates, source),
        equations_text(estimates),
        _variances(estimates, tests),
        _fixed(estimates, reference, robust),
        _components(estimates, tests),
    ]


def _heading(estimates: Estimates, source: str) -> str:
    stats, spec = estimates.grouped, estimates.design.spec
    n = stats.n
    method = "restricted maximum likelihood" if spec.method == "REML" else "full maximum likelihood"
    weights = [] if spec.weights is None else [f"Weights    {spec.weights.name} (precision)"]
    return "\n".join(
        [
            f"Two-level model: {submodel_name(estimates.design)}",
            f"Data       {source}",
            f"Outcome    {spec.outcome.name}",
            f"Level 1    {stats.n_rows:,} rows",
            f"Level 2    {stats.n_groups:,} groups of {spec.group}, "
            f"{n.min():,} to {n.max():,} rows each, mean {n.mean():.4g}",
            *weights,
            f"Method     {method}; {_ending(estimates)}",
        ]
    )


def _ending(estimates: Estimates) -> str:
    if estimates.status is Status.GIVEN:
        return "variance components given, not estimated"
    return f"{estimates.status.label} after {estimates.evaluations} evaluations"


def _variances(estimates: Estimates, tests: Sequence[Homogeneity]) -> str:
    T, names = estimates.T, list(estimates.random_names)
    errors = component_errors(estimates)
    q = len(names)
    lower = [[number(T[a, b]) if b <= a else "" for b in range(q)] for a in range(q)]
    lines = [f"Sigma squared = {number(estimates.sigma2)}   (std. error {number(errors.sigma2)})", "", "Tau"]
    lines += grid([[name, *row] for name, row in zip(names, lower, strict=True)])
    if q > 1:
        corr = [[f"{correlation_text(T, a, b)}" if b <= a else "" for b in range(q)] for a in range(q)]
        lines += ["", "Tau as correlations", *grid([[n, *row] for n, row in zip(names, corr, strict=True)])]
    lines += ["", "Reliability of the least-squares coefficients"]
    lines += grid([[name, fixed_point(test.reliability, 3)] for name, test in zip(names, tests, strict=True)])
    share = icc(estimates)
    if share is not None:
        conditional = len(estimates.design.fixed.columns) > 1
        lines += [
            "",
            f"Intraclass correlation = {share:.5f}" + (" (conditional on the predictors)" if conditional else ""),
        ]
    return "\n".join(lines)


def _fixed(estimates: Estimates, reference: Reference, robust_covariance: Array | str) -> str:
    cells = coefficient_cells(estimates, reference, robust_covariance)
    rows: list[list[str]] = []
    equations: dict[frozenset[object], list[int]] = {}
    for f in range(estimates.statistics.p):
        equations.setdefault(frozenset(estimates.equation_of(f)), []).append(f)
    for position, members in enumerate(sorted(equations.values(), key=lambda m: len(_own(estimates, m[0]).split(":")))):
        own = _own(estimates, members[0])
        rows.append([f"For {own or 'the intercept'}{' slope' if own else ''}, b{position}"])
        counter = 1
        for f in members:
            upper = ":".join(v.name for v in estimates.design.fixed.columns[f].level2)
            index = 0 if not upper else counter
            counter += bool(upper)
            label = upper or INTERCEPT.name.strip("()")
            rows.append([f"  {label}, g{position}{index}", *cells[f]])
    lines = ["Fixed effects", *table(HEADER, rows)]
    errors = "" if reference.vcov == "model" else f"standard errors {reference.vcov}, "
    rule = DF_RULES[reference.df_method]
    lines.append(f"    {errors}d.f. {rule}; robust standard errors are CR0, Ratio is robust to model-based.")
    if isinstance(robust_covariance, str):
        lines.append(f"    {robust_covariance}")
    elif (few := few_groups("CR0", estimates.statistics.n_groups)) is not None:
        lines.append(f"    {few}.")
    return "\n".join(lines)


def _own(estimates: Estimates, f: int) -> str:
    return ":".join(v.name for v in estimates.design.fixed.columns[f].level1)


def _components(estimates: Estimates, tests: Sequence[Homogeneity]) -> str:
    header = ["Random effect", "Std. dev.", "Variance", "Std. error", "d.f.", "Chi-square", "p value"]
    T, errors = estimates.T, component_errors(estimates)
    rows = []
    for q, (name, test) in enumerate(zip(estimates.random_names, tests, strict=True)):
        rows.append(
            [
                f"{name}, u{q}",
                number(math.sqrt(T[q, q])),
                number(T[q, q]),
                number(errors.T[q, q]),
                str(test.df) if np.isfinite(test.chi2) else "-",
                fixed_point(test.chi2, 5),
                p_text(test.p_value),
            ]
        )
    s2 = estimates.sigma2
    rows.append(["level 1, r", number(math.sqrt(s2)), number(s2), number(errors.sigma2), "", "", ""])
    lines = ["Variance components", *table(header, rows)]
    used, groups = tests[0].groups, estimates.statistics.n_groups
    if used < groups:
        lines.append(
            f"    Chi-square and reliability use the {used:,} of {groups:,} groups whose own data determine every "
            "random coefficient; all groups are in the likelihood."
        )
    return "\n".join(lines)


def _statistics(estimates: Estimates) -> str:
    reml = estimates.design.spec.method == "REML"
    counted = estimates.n_covariance_parameters if reml else estimates.n_parameters
    kind = "restricted likelihood" if reml else "likelihood"
    which = "variances and covariances only, as REML compares them" if reml else "fixed effects, variances, covariances"
    lines = [
        "Statistics of the model",
        f"    Deviance = {estimates.deviance:.6f}   (-2 log {kind}, all constants)",
        f"    Number of estimated parameters = {counted}   ({which})",
    ]
    if estimates.status is not Status.GIVEN:
        found = single_level_ratio(estimates)
        law = f"chi-square({found.df}), conservative" if found.mixture is None else found.mixture
        p = found.p_value if found.mixture is None else found.mixture_p_value
        lines.append(f"    Likelihood ratio against one level = {found.chi2:.3f}, {law}: p value {p_text(p)}")
    return "\n".join(lines)
