"""Warnings about a fit, as values that go into the result."""

from __future__ import annotations

import numpy as np

from mlsql.results.components import homogeneity_tests
from mlsql.results.estimates import Estimates
from mlsql.results.tables import correlation
from mlsql.status import Status


def advice(estimates: Estimates) -> tuple[str, ...]:
    """What a user should know before reading the numbers.

    1. The status, when it is not plain convergence.
    2. Which variances are zero and which correlations +-1.
    3. Groups without a least-squares estimate, when they are not few.
    """
    found: list[str] = []
    # 1
    if estimates.status not in (Status.CONVERGED, Status.GIVEN):
        found.append(f"{estimates.status.label}: {estimates.status.value}")
    # 2
    T, names = estimates.T, estimates.random_names
    for a, name in enumerate(names):
        if T[a, a] == 0.0:
            found.append(f"the variance of {name} is zero")
        for b in range(a):
            if abs(correlation(T, a, b)) > 1.0 - 1e-7:
                found.append(f"the correlation of {names[b]} and {name} is {np.sign(T[a, b]):+.0f}")
    # 3
    used, groups = homogeneity_tests(estimates)[0].groups, estimates.statistics.n_groups
    if used < 0.9 * groups:
        found.append(
            f"only {used:,} of {groups:,} groups determine every random coefficient by their own data; "
            "chi-square tests and reliabilities speak for those"
        )
    return tuple(found)
