"""Variance components: standard errors from the information, tests, reliabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from mlsql._arrays import Array
from mlsql.likelihood.gaussian import Deviance, Evaluation
from mlsql.results.effects import least_squares
from mlsql.results.estimates import Estimates

UNIDENTIFIED = 1e-9
"""Smallest eigenvalue of the information, scaled to a unit diagonal, below which the components are not told apart."""


@dataclass(frozen=True, slots=True)
class Homogeneity:
    """Chi-square test that a random coefficient does not vary (Raudenbush & Bryk, 3.103).

    Attributes
    ----------
    chi2, df, p_value : float
        nan when no group has a least-squares estimate.
    groups : int
        Groups whose own data determine all random coefficients: only they enter.
    reliability : float
        Mean reliability of those groups' least-squares coefficients (3.59).
    """

    chi2: float
    df: int
    p_value: float
    groups: int
    reliability: float


def homogeneity_tests(estimates: Estimates) -> tuple[Homogeneity, ...]:
    """One test per random coefficient, in order."""
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

    The deviance is taken as a function of Lambda and sigma2, where its second derivatives are exact, and the inverse
    is carried to T = sigma2 Lambda and to the user's columns.  A block on the boundary has no standard errors: the
    likelihood has a slope there, not a curvature; the other components' errors are then given that block.
    """
    q, covariance, s2 = estimates.statistics.q, estimates.covariance, estimates.sigma2
    none = np.full((q, q), np.nan)
    evaluation = _with_slopes(estimates)
    slopes = evaluation.slopes
    assert slopes is not None
    free = _interior(estimates)
    entries = [e for e in covariance.entries if e in free]
    directions = dict(zip(covariance.entries, covariance.directions(), strict=True))
    D = np.array([directions[e] for e in entries]).reshape(len(entries), q, q)
    degrees = Deviance(estimates.statistics, estimates.design.spec.method).degrees
    k = len(entries)
    H = np.empty((k + 1, k + 1))
    H[:k, :k] = np.einsum("iab,abcd,jcd->ij", D, slopes.logs2 + slopes.residual2 / s2, D, optimize=True)
    H[:k, k] = H[k, :k] = np.einsum("iab,ab->i", D, slopes.residual) / s2**2
    H[k, k] = -degrees / s2**2 + 2.0 * evaluation.r2 / s2**3
    scale = np.sqrt(np.abs(np.diag(H)))
    if not np.all(scale > 0) or np.linalg.eigvalsh(H / np.outer(scale, scale))[0] < UNIDENTIFIED:
        return ComponentErrors(none, np.nan)
    V = 2.0 * np.linalg.inv(H)
    U, Lambda = estimates.statistics.u_transform, estimates.L @ estimates.L.T
    errors = none.copy()
    for s in covariance.slices:
        for a in range(s.start, s.stop):
            for b in range(s.start, a + 1):
                if (s.start, s.start) not in free:
                    continue
                # d T_ab along each Lambda entry, and along sigma2
                step = np.append(s2 * np.einsum("c,icd,d->i", U[a], D, U[b]), U[a] @ Lambda @ U[b])
                errors[a, b] = errors[b, a] = np.sqrt(step @ V @ step)
    return ComponentErrors(errors, float(np.sqrt(V[k, k])))


def _interior(estimates: Estimates) -> set[tuple[int, int]]:
    """Entries of blocks whose Lambda is of full rank."""
    free: set[tuple[int, int]] = set()
    for s in estimates.covariance.slices:
        if np.all(np.diag(estimates.L)[s] != 0.0):
            free |= {(a, b) for a in range(s.start, s.stop) for b in range(s.start, a + 1)}
    return free


def _with_slopes(estimates: Estimates) -> Evaluation:
    if estimates.evaluation.slopes is not None:
        return estimates.evaluation
    deviance = Deviance(estimates.statistics, estimates.design.spec.method)
    return deviance.at(estimates.L, sigma2=estimates.sigma2)
