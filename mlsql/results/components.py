"""Variance components: standard errors from the information, tests, reliabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from mlsql._arrays import Array
from mlsql.results.effects import least_squares
from mlsql.results.estimates import Estimates
from mlsql.results.homogeneity import Homogeneity
from mlsql.results.information import observed_information
from mlsql.results.level_effects import level_tests


def homogeneity_tests(estimates: Estimates) -> tuple[Homogeneity, ...]:
    """One test per random coefficient, in order."""
    if estimates.levels is not None:
        return level_tests(estimates)
    ols = least_squares(estimates)
    used = ols.full_rank
    groups = int(used.sum())
    found = []
    for q in range(estimates.statistics.q):
        df = groups - len(estimates.equation_members(q))
        if df < 1:
            found.append(Homogeneity(np.nan, df, np.nan, groups, np.nan))
            continue
        chi2 = float(np.sum(ols.u[q, used] ** 2 / ols.variance[q, used]))
        tau = estimates.T[q, q]
        reliability = float(np.mean(tau / (tau + ols.variance[q, used])))
        found.append(Homogeneity(chi2, df, float(chdtrc(df, chi2)), groups, reliability))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class ComponentErrors:
    """Standard errors of T and sigma2 on the variance scale; nan where the information gives none.

    Attributes
    ----------
    T : (q, q)
    sigma2 : float
    """

    T: Array
    sigma2: float


def component_errors(estimates: Estimates) -> ComponentErrors:
    """Standard errors from the observed information of (T, sigma2), the fixed effects profiled out.

    The information of (Lambda, sigma2) is carried to T = sigma2 Lambda and to the user's columns.  A block on the
    boundary has no standard errors: the likelihood has a slope there, not a curvature; the other components' errors
    are then given that block.
    """
    q, s2 = estimates.statistics.q, estimates.sigma2
    errors = np.full((q, q), np.nan)
    found = observed_information(estimates)
    if found is None:
        return ComponentErrors(errors, np.nan)
    U, Lambda = estimates.statistics.u_transform, estimates.L @ estimates.L.T
    for s in found.blocks:
        for a in range(s.start, s.stop):
            for b in range(s.start, a + 1):
                # d T_ab along each Lambda entry, and along sigma2
                step = np.append(s2 * np.einsum("c,icd,d->i", U[a], found.directions, U[b]), U[a] @ Lambda @ U[b])
                errors[a, b] = errors[b, a] = np.sqrt(step @ found.covariance @ step)
    return ComponentErrors(errors, float(np.sqrt(found.covariance[-1, -1])))
