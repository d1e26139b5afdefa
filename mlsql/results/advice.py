"""Warnings about a fit, as values that go into the result."""

from __future__ import annotations

import numpy as np

from mlsql.results.components import homogeneity_tests
from mlsql.results.estimates import Estimates
from mlsql.results.measures import correlation
from mlsql.status import Status

LOW_RELIABILITY, HIGH_CORRELATION = 0.05, 0.9
"""Raudenbush & Bryk (2002), chapters 5 and 9: where to constrain a random coefficient."""


def advice(estimates: Estimates) -> tuple[str, ...]:
    """What a user should know before reading the numbers.

    1. The status, when it is not plain convergence.
    2. Which variances are zero and which correlations +-1.
    3. Reliabilities near zero and correlations near +-1, which ask for a simpler random part.
    4. Groups without a least-squares estimate, when they are not few.
    5. Predictors that are never 0, where the intercept and its variance describe no observed group.
    """
    found: list[str] = []
    # 1
    if estimates.status not in (Status.CONVERGED, Status.GIVEN):
        found.append(f"{estimates.status.label}: {estimates.status.value}")
    # 2
    T, names, tests = estimates.T, random_labels(estimates), homogeneity_tests(estimates)
    for a, name in enumerate(names):
        if T[a, a] == 0.0:
            found.append(f"the variance of {name} is zero")
        for b in range(a):
            if abs(correlation(T, a, b)) > 1.0 - 1e-7:
                found.append(f"the correlation of {names[b]} and {name} is {np.sign(T[a, b]):+.0f}")
    # 3
    for name, test in zip(names, tests, strict=True):
        if test.reliability < LOW_RELIABILITY and T[names.index(name), names.index(name)] > 0:
            found.append(
                f"the reliability of {name} is {test.reliability:.3f}: its variance is hardly told from zero; consider "
                "a coefficient that is fixed or varies nonrandomly"
            )
    for a, name in enumerate(names):
        for b in range(a):
            size = abs(correlation(T, a, b))
            if HIGH_CORRELATION < size <= 1.0 - 1e-7:
                found.append(
                    f"the correlation of {names[b]} and {name} is {correlation(T, a, b):+.3f}: the two are hardly told "
                    "apart; consider fixing one, or centring a predictor that is far from 0"
                )
    # 4
    used, groups = tests[0].groups, estimates.statistics.n_groups
    if estimates.levels is None and used < 0.9 * groups:
        found.append(
            f"only {used:,} of {groups:,} groups determine every random coefficient by their own data; "
            "chi-square tests and reliabilities speak for those"
        )
    # 5
    never = _never_zero(estimates)
    if never and "(Intercept)" in (*estimates.fixed_names, *estimates.random_names):
        found.append(
            f"0 lies outside the range of {', '.join(never)}: the intercept and its variance describe a value that no "
            "row has; centre the predictor to place them"
        )
    return tuple(found)


def random_labels(estimates: Estimates) -> tuple[str, ...]:
    """Names of the random coefficients, with their factor where there are several."""
    if estimates.levels is None:
        return estimates.random_names
    return tuple(f"{name} ({estimates.factor_of(q)})" for q, name in enumerate(estimates.random_names))


def _never_zero(estimates: Estimates) -> list[str]:
    """Uncentred numeric predictors whose range excludes 0."""
    survey = estimates.design.survey
    if survey is None:
        return []
    columns = (*estimates.design.fixed.columns, *estimates.design.random)
    natural = {v.sql for c in columns for v in c.variables if v.centering == "none" and v.origin != "group_mean"}
    inside = [c for c in survey.columns if c.input.role == "numeric" and c.input.sql in natural]
    return [c.input.name for c in inside if c.minimum > 0 or c.maximum < 0]
