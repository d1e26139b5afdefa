"""Satterthwaite's degrees of freedom for the model-based covariance matrix, from group moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.inference.level_satterthwaite import level_first_order
from mlsql.likelihood.curvature import first_order
from mlsql.results.estimates import Estimates
from mlsql.results.information import observed_information


@dataclass(frozen=True, slots=True)
class Satterthwaite:
    """Variance of the variance of fixed effects.

    Attributes
    ----------
    covariance : (p, p)
        Of the fixed effects, user columns.
    slopes : (m, p, p)
        Its derivatives along the variance components inside the parameter space, sigma2 last.
    components : (m, m)
        Sampling covariance of those components.
    """

    covariance: Array
    slopes: Array
    components: Array

    def df(self, contrasts: Array) -> Array:
        """2 (l'Cl)^2 / Var(l'Cl) for each row l of (r, p) contrasts; Giesbrecht & Burns (1985)."""
        variance = np.einsum("rp,pf,rf->r", contrasts, self.covariance, contrasts)
        g = np.einsum("rp,mpf,rf->rm", contrasts, self.slopes, contrasts, optimize=True)
        return np.asarray(2.0 * variance**2 / np.einsum("rm,mn,rn->r", g, self.components, g))


def satterthwaite(estimates: Estimates) -> Satterthwaite | None:
    """Derivatives of the fixed effects' covariance matrix and the observed information of the components.

    None where the information is singular: the components are not told apart, and degrees of freedom are undefined.
    A block of T on the boundary is held there, as are its degrees of freedom's contributions.
    """
    information = observed_information(estimates)
    if information is None:
        return None
    levels = estimates.levels
    if levels is None:
        whitener, E = first_order(estimates.grouped, estimates.evaluation, estimates.covariance)
    else:
        whitener, E = level_first_order(levels, estimates.evaluation, estimates.covariance)
    # C = s2 W'W with W the whitener; d C / d Lambda_i = s2 W' E_i W, d C / d s2 = C / s2
    back = estimates.statistics.beta_transform @ whitener.T
    covariance = estimates.covariance
    # coordinates of the directions in the free entries of Lambda
    at = tuple(np.array(covariance.entries).T)
    E = np.einsum("im,mxy->ixy", information.directions[:, at[0], at[1]], E)
    slopes = np.einsum("px,ixy,fy->ipf", back, E, back, optimize=True)
    C = estimates.vcov
    return Satterthwaite(
        C, np.concatenate([estimates.sigma2 * slopes, (C / estimates.sigma2)[None]]), information.covariance
    )


def joint_df(single: Array) -> float:
    """Denominator df of an F test from those of its orthogonal t tests (Fai & Cornelius 1996).

    With E = sum of df / (df - 2) over the r tests: 2 E / (E - r), the F distribution whose mean is that of the
    average of the squared t's.  2 when a t test has 2 or fewer.
    """
    if len(single) == 1 or np.ptp(single) < 1e-8:
        return float(single.mean())
    if np.any(single <= 2.0):
        return 2.0
    total = float(np.sum(single / (single - 2.0)))
    return 2.0 * total / (total - len(single))
