"""Kenward and Roger's covariance matrix and degrees of freedom, from group moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.likelihood.curvature import curvature
from mlsql.results.estimates import Estimates
from mlsql.results.information import UNIDENTIFIED


@dataclass(frozen=True, slots=True)
class KenwardRoger:
    """What the tests need, user columns.

    Attributes
    ----------
    covariance : (p, p)
        Adjusted for the estimation of the variance components.
    unadjusted : (p, p)
    P : (m, p, p)
    components : (m, m)
        Asymptotic covariance of the components: inverse expected information.
    """

    covariance: Array
    unadjusted: Array
    P: Array
    components: Array

    def scale_and_df(self, contrasts: Array) -> tuple[float, float]:
        """Factor of the F statistic and denominator df for a hypothesis of (r, p) full-rank contrasts.

        Kenward & Roger (1997), section 2, in the order of Halekoh & Hojsgaard (2014), section 4.
        """
        r = len(contrasts)
        # 1. A1 and A2
        spread = contrasts @ self.unadjusted
        theta = contrasts.T @ solve(contrasts @ spread.T, contrasts, assume_a="pos")
        M = np.einsum("pf,fg,mgh,hk->mpk", theta, self.unadjusted, self.P, self.unadjusted, optimize=True)
        traces = np.einsum("mpp->m", M)
        A1 = float(traces @ self.components @ traces)
        A2 = float(np.einsum("mn,mpf,nfp->", self.components, M, M, optimize=True))
        # 2. moments of the F statistic
        B = (A1 + 6.0 * A2) / (2.0 * r)
        g = ((r + 1) * A1 - (r + 4) * A2) / ((r + 2) * A2)
        below = 3 * r + 2 * (1 - g)
        c1, c2, c3 = g / below, (r - g) / below, (r + 2 - g) / below
        mean = 1.0 / (1.0 - A2 / r)
        variance = (2.0 / r) * (1.0 + c1 * B) / ((1.0 - c2 * B) ** 2 * (1.0 - c3 * B))
        # 3. the F distribution with these
        rho = variance / (2.0 * mean**2)
        df = 4.0 + (r + 2) / (r * rho - 1.0)
        if not (np.isfinite(df) and df > 0 and r > A2):
            raise FitError(
                f"Kenward-Roger degrees of freedom of this hypothesis of {r} rows do not exist: too few groups for the "
                "variance components; test fewer coefficients at once, or use df='satterthwaite' or 'hlm'"
            )
        return (1.0 if r == 1 else df / (mean * (df - 2.0))), df


def kenward_roger(estimates: Estimates) -> KenwardRoger:
    """The adjusted covariance matrix and what its tests need.

    Raises
    ------
    FitError
        For a fit by ML, or when the expected information of the components is singular.
    """
    if estimates.design.spec.method != "REML":
        raise FitError(
            "df='kenward_roger' is defined for REML estimates and this fit is by ML; fit with method='REML', "
            "or use df='satterthwaite'"
        )
    found = curvature(estimates.statistics, estimates.evaluation, estimates.covariance)
    s2, P, Q = estimates.sigma2, found.P, found.Q
    # in whitened columns the covariance matrix is s2 I
    information = found.traces - 2.0 * s2 * np.einsum("ijxx->ij", Q) + s2**2 * np.einsum("ixy,jyx->ij", P, P)
    scale = np.sqrt(np.abs(np.diag(information)))
    if not np.all(scale > 0) or np.linalg.eigvalsh(information / np.outer(scale, scale))[0] < UNIDENTIFIED:
        stats = estimates.statistics
        raise FitError(
            f"df='kenward_roger' needs {len(P)} variance components told apart, and {stats.n_groups:,} groups with "
            f"{stats.n_rows:,} rows and {stats.p} fixed effects do not; use fewer random coefficients, or df='hlm'"
        )
    W = 2.0 * np.linalg.inv(information)
    bias = np.einsum("ij,ijxy->xy", W, Q) - s2 * np.einsum("ij,ixz,jzy->xy", W, P, P, optimize=True)
    back = estimates.statistics.beta_transform @ found.whitener.T
    adjusted = s2 * np.eye(len(bias)) + 2.0 * s2**2 * bias
    forward = np.linalg.inv(back)
    return KenwardRoger(
        covariance=back @ adjusted @ back.T,
        unadjusted=s2 * back @ back.T,
        P=np.einsum("xp,ixy,yf->ipf", forward, P, forward, optimize=True),
        components=W,
    )
