"""The fit as text, in the layout that users of HLM know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlsql._arrays import Array
from mlsql.formula.describe import level_equations
from mlsql.formula.terms import INTERCEPT
from mlsql.inference.fixed_effects import fixed_effects
from mlsql.inference.likelihood_ratio import single_level_ratio
from mlsql.inference.reference import Reference, few_groups
from mlsql.results.centering import centering_notes
from mlsql.results.components import Homogeneity, component_errors, homogeneity_tests
from mlsql.results.estimates import Estimates
from mlsql.results.measures import correlation, icc
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
    tests = homogeneity_tests(estimates)
    sections = [
        _heading(estimates, source),
        *(["\n".join(["Rows left out", *(f"    {d}" for d in dropped)])] if dropped else []),
        level_equations(estimates.design.spec, estimates.design.level2_names),
        _variances(estimates, tests),
        _fixed(estimates, reference, robust_covariance),
        _components(estimates, tests),
        _statistics(estimates),
        *(["\n".join(["Notes", *(f"    {w}" for w in warnings)])] if warnings else []),
    ]
    return "\n\n".join(sections)


def _heading(estimates: Estimates, source: str) -> str:
    stats, spec = estimates.statistics, estimates.design.spec
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
    lower = [[_number(T[a, b]) if b <= a else "" for b in range(q)] for a in range(q)]
    lines = [f"Sigma squared = {_number(estimates.sigma2)}   (std. error {_number(errors.sigma2)})", "", "Tau"]
    lines += _grid([[name, *row] for name, row in zip(names, lower, strict=True)])
    if q > 1:
        corr = [[f"{_corr(T, a, b)}" if b <= a else "" for b in range(q)] for a in range(q)]
        lines += ["", "Tau as correlations", *_grid([[n, *row] for n, row in zip(names, corr, strict=True)])]
    lines += ["", "Reliability of the least-squares coefficients"]
    lines += _grid([[name, _fixed_point(test.reliability, 3)] for name, test in zip(names, tests, strict=True)])
    share = icc(estimates)
    if share is not None:
        conditional = len(estimates.design.fixed.columns) > 1
        lines += [
            "",
            f"Intraclass correlation = {share:.5f}" + (" (conditional on the predictors)" if conditional else ""),
        ]
    return "\n".join(lines)


def _fixed(estimates: Estimates, reference: Reference, robust_covariance: Array | str) -> str:
    found, notes = fixed_effects(estimates, reference=reference), centering_notes(estimates)
    known, model = not isinstance(robust_covariance, str), np.sqrt(np.diag(estimates.vcov))
    robust = np.sqrt(np.maximum(np.diag(robust_covariance), 0.0)) if known else np.full(len(notes), np.nan)
    header = ["Fixed effect", "Coefficient", "Std. error", "t ratio", "d.f.", "p value", "Robust s.e.", "Ratio"]
    header.append("Centring")
    rows: list[list[str]] = []
    equations: dict[frozenset[object], list[int]] = {}
    for f in range(estimates.statistics.p):
        equations.setdefault(frozenset(estimates.equation_of(f)), []).append(f)
    for number, members in enumerate(sorted(equations.values(), key=lambda m: len(_own(estimates, m[0]).split(":")))):
        own = _own(estimates, members[0])
        rows.append([f"For {own or 'the intercept'}{' slope' if own else ''}, b{number}"])
        counter = 1
        for f in members:
            upper = ":".join(v.name for v in estimates.design.fixed.columns[f].level2)
            index = 0 if not upper else counter
            counter += bool(upper)
            label = upper or INTERCEPT.name.strip("()")
            rows.append(
                [
                    f"  {label}, g{number}{index}",
                    _number(found.estimate[f]),
                    _number(found.std_error[f]),
                    f"{found.statistic[f]:.3f}",
                    _df(found.df[f]),
                    _p(found.p_value[f]),
                    _number(robust[f]),
                    _fixed_point(robust[f] / model[f], 2),
                    notes[f],
                ]
            )
    lines = ["Fixed effects", *_table(header, rows)]
    errors = "" if reference.vcov == "model" else f"standard errors {reference.vcov}, "
    rule = DF_RULES[reference.df_method]
    lines.append(f"    {errors}d.f. {rule}; robust standard errors are CR0, Ratio is robust to model-based.")
    if isinstance(robust_covariance, str):
        lines.append(f"    {robust_covariance}")
    elif (few := few_groups("CR0", estimates.statistics.n_groups)) is not None:
        lines.append(f"    {few}.")
    return "\n".join(lines)


DF_RULES = {
    "hlm": "by HLM's rule",
    "between_within": "between and within groups",
    "residual": "residual",
    "satterthwaite": "by Satterthwaite",
    "kenward_roger": "by Kenward and Roger, with their standard errors",
    "normal": "infinite (normal)",
}


def _df(value: float) -> str:
    """Whole numbers as such, others to a tenth."""
    if not np.isfinite(value):
        return "inf"
    return f"{value:.0f}" if abs(value - round(value)) < 1e-6 else f"{value:.1f}"


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
                _number(math.sqrt(T[q, q])),
                _number(T[q, q]),
                _number(errors.T[q, q]),
                str(test.df) if np.isfinite(test.chi2) else "-",
                _fixed_point(test.chi2, 5),
                _p(test.p_value),
            ]
        )
    s2 = estimates.sigma2
    rows.append(["level 1, r", _number(math.sqrt(s2)), _number(s2), _number(errors.sigma2), "", "", ""])
    lines = ["Variance components", *_table(header, rows)]
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
        lines.append(f"    Likelihood ratio against one level = {found.chi2:.3f}, {law}: p value {_p(p)}")
    return "\n".join(lines)


def _corr(T: np.ndarray, a: int, b: int) -> str:
    value = 1.0 if a == b and T[a, a] > 0 else correlation(T, a, b)
    return _fixed_point(value, 3)


def _number(value: float) -> str:
    """Five decimals, or six digits for values that five decimals would show as zeros or as a long string."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.5f}" if value == 0 or 1e-3 <= abs(value) < 1e7 else f"{value:.5e}"


def _fixed_point(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _p(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("    " + "  ".join(cells).rstrip())
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned right but for the first and a last one of words; rows of one cell are headings."""
    full = [header, *(r for r in rows if len(r) > 1)]
    widths = [max(len(r[i]) for r in full) for i in range(len(header))]
    words = header[-1] == "Centring"
    lines = []
    for row in [header, *rows]:
        if len(row) == 1:
            lines.append("    " + row[0])
            continue
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        if words:
            cells[-1] = row[-1]
        lines.append("    " + "  ".join(cells).rstrip())
    rule = "    " + "-" * (max(len(line) for line in lines) - 4)
    return [rule, lines[0], rule, *lines[1:], rule]
