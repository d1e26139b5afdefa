"""Kenward and Roger's covariance matrix and degrees of freedom, from moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.inference.level_kenward_roger import level_curvature
from mlsql.likelihood.curvature import curvature
from mlsql.results.estimates import Estimates
from mlsql.results.information import UNIDENTIFIED


@dataclass(frozen=True, slots=True)
class KenwardRoger:
    """What the tests need.

    Attributes
    ----------
    covariance : (p, p)
        Of the user's columns, adjusted for the estimation of the variance components.
    back : (p, p)
        From whitened columns, whose covariance matrix is sigma2 I, to the user's.
    sigma2 : float
    P : (m, p, p)
        In whitened columns, which keep their digits wherever the origin is.
    components : (m, m)
        Asymptotic covariance of the components: inverse expected information.
    """

    covariance: Array
    back: Array
    sigma2: float
    P: Array
    components: Array

    def scale_and_df(self, contrasts: Array) -> tuple[float, float]:
        """Factor of the F statistic and denominator df for a hypothesis of (r, p) full-rank contrasts.

        Kenward & Roger (1997), section 2, in the order of Halekoh & Hojsgaard (2014), section 4.
        """
        r = len(contrasts)
        # 1. A1 and A2
        white = contrasts @ self.back
        basis = np.linalg.qr(white.T)[0]
        M = self.sigma2 * np.einsum("pr,mpf,fs->mrs", basis, self.P, basis, optimize=True)
        traces = np.einsum("mrr->m", M)
        A1 = float(traces @ self.components @ traces)
        A2 = float(np.einsum("mn,mrs,nsr->", self.components, M, M, optimize=True))
        if r == 1:
            # a squared t statistic: the formulas below reduce to this, dividing zero by zero where df is 4
            return 1.0, 2.0 / A2
        # 2. moments of the F statistic
        B = (A1 + 6.0 * A2) / (2.0 * r)
        g = ((r + 1) * A1 - (r + 4) * A2) / ((r + 2) * A2)
        below = 3 * r + 2 * (1 - g)
        c1, c2, c3 = g / below, (r - g) / below, (r + 2 - g) / below
        rest = 1.0 - A2 / r
        above, under = rest**2 * (1.0 + c1 * B), (1.0 - c2 * B) ** 2 * (1.0 - c3 * B)
        # 3. the F distribution with these: r rho = above / under
        df = 4.0 + (r + 2) * under / (above - under)
        if not (np.isfinite(df) and df > 0 and r > A2):
            raise FitError(
                f"Kenward-Roger degrees of freedom of this hypothesis of {r} rows do not exist: too few groups for the "
                "variance components; test fewer coefficients at once, or use df='satterthwaite' or 'hlm'"
            )
        return df * rest / (df - 2.0), df


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
    stats, levels = estimates.statistics, estimates.levels
    if levels is None:
        found = curvature(estimates.grouped, estimates.evaluation, estimates.covariance)
    else:
        found = level_curvature(levels, estimates.L, estimates.evaluation, estimates.covariance)
    s2, P, Q = estimates.sigma2, found.P, found.Q
    # in whitened columns the covariance matrix is s2 I
    information = found.traces - 2.0 * s2 * np.einsum("ijxx->ij", Q) + s2**2 * np.einsum("ixy,jyx->ij", P, P)
    scale = np.sqrt(np.abs(np.diag(information)))
    if not np.all(scale > 0) or np.linalg.eigvalsh(information / np.outer(scale, scale))[0] < UNIDENTIFIED:
        groups = f"{stats.n_groups:,} groups"
        if levels is not None:
            groups = ", ".join(f"{i.n_groups:,} groups of {i.name}" for i in levels.incidences)
        raise FitError(
            f"df='kenward_roger' needs {len(P)} variance components told apart, and {groups} with {stats.n_rows:,} "
            f"rows and {stats.p} fixed effects do not; use fewer random coefficients, or df='hlm'"
        )
    W = 2.0 * np.linalg.inv(information)
    bias = np.einsum("ij,ijxy->xy", W, Q) - s2 * np.einsum("ij,ixz,jzy->xy", W, P, P, optimize=True)
    back = stats.beta_transform @ found.whitener.T
    adjusted = s2 * np.eye(len(bias)) + 2.0 * s2**2 * bias
    return KenwardRoger(
        covariance=back @ adjusted @ back.T,
        back=back,
        sigma2=s2,
        P=P,
        components=W,
    )
