"""What each group does to the estimates: deletion by subtracting its moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood import batched
from mlsql.results.estimates import Estimates
from mlsql.results.information import observed_information

ALONE = 1e-10
"""Share of a fixed effect's information that must be left without a group, for estimates without it to exist."""

CHUNK = 8192
"""Groups taken at once: bounds the memory of the small matrices."""


@dataclass(frozen=True, slots=True)
class Influence:
    """Estimates with all groups minus those without group j; user columns.

    Attributes
    ----------
    beta : (p, J)
    dfbetas : (p, J)
        In standard errors of the estimates without the group; nan, as all of a group's figures, where the group alone
        determines an effect.
    cooks_distance : (J,)
        beta' Var(beta)^-1 beta / p.
    covariance_ratio : (J,)
        Determinant of the covariance matrix without the group over that with all.
    T : (q, q, J)
        One-step changes; nan for blocks on the boundary.
    sigma2 : (J,)
    cooks_distance_components : (J,)
        The same distance for the variance components, in their sampling covariance; nan where that is unknown.
    """

    beta: Array
    dfbetas: Array
    cooks_distance: Array
    covariance_ratio: Array
    T: Array
    sigma2: Array
    cooks_distance_components: Array


def one_step_influence(estimates: Estimates, products: Array) -> Influence:
    """Deletion of every group by one step from the estimates.

    1. S without the group is S minus its own [X y]'V^-1[X y]: the fixed effects at unchanged variance components are
       then exact.
    2. The gradient of the deviance in (Lambda, sigma2) without the group, at those fixed effects, is exact too; one
       Newton step, with (J - 1) / J times the Hessian of all groups, gives the change of the variance components
       (Christensen, Pearson & Johnson 1992).

    Parameters
    ----------
    estimates : Estimates
    products : (p+1, p+1, J)
        [X y]'W[X y] by group, internal columns.
    """
    stats, p, q, J = estimates.grouped, estimates.grouped.p, estimates.grouped.q, estimates.grouped.n_groups
    found = _Pieces(estimates)
    beta, errors, ratio = np.empty((p, J)), np.empty((p, J)), np.empty(J)
    gradient, sigma2_slope = np.empty((q, q, J)), np.empty(J)
    for part in (slice(start, start + CHUNK) for start in range(0, J, CHUNK)):
        # 1
        R, S = found.group(products, part)
        own = _last_first(S)
        rest = found.whole - own
        inverse = _inverse(rest[:, :p, :p])
        without = np.einsum("jxy,jy->jx", inverse, rest[:, :p, p])
        beta[:, part] = without.T
        errors[:, part] = np.sqrt(np.einsum("fx,jxy,fy->fj", found.back, inverse, found.back, optimize=True))
        ratio[part] = -_log_determinant(inverse)
        # 2
        contrast = np.column_stack([-without, np.ones(len(without))])
        r2 = np.einsum("jx,jxy,jy->j", contrast, rest, contrast, optimize=True)
        degrees = found.degrees - stats.n[part]
        sigma2_slope[part] = degrees / found.s2 - r2 / found.s2**2
        gradient[:, :, part] = found.lambda_slopes(R, inverse, contrast, part)
    change = found.beta[:, None] - beta
    user = found.back @ change
    cooks = np.einsum("xj,xj->j", change, change) / (p * found.s2)
    T, sigma2, distance = _component_changes(estimates, gradient, sigma2_slope)
    return Influence(user, user / (np.sqrt(found.s2) * errors), cooks, np.exp(-ratio), T, sigma2, distance)


class _Pieces:
    """Sums over all groups, in whitened columns where S_XX is the identity."""

    def __init__(self, estimates: Estimates) -> None:
        self.stats, self.evaluation = estimates.grouped, estimates.evaluation
        self.s2, self.reml = estimates.sigma2, estimates.design.spec.method == "REML"
        p = self.stats.p
        W = np.zeros((p + 1, p + 1))
        W[:p, :p] = self.evaluation.whitener
        W[p, p] = 1.0
        self.whitener = W
        self.back = self.stats.beta_transform @ W[:p, :p].T
        self.beta = np.linalg.solve(W[:p, :p].T, self.evaluation.beta)
        self.degrees = self.stats.n_rows - (p if self.reml else 0)
        self.G = self._G(slice(None))
        R = self._R(slice(None))
        self.pairs = np.einsum("axj,byj->abxy", R, R, optimize=True)
        self.sum_G = self.G.sum(axis=2)
        B, KB = self._B(slice(None)), self._KB(slice(None))
        self.whole = W @ self.stats.XytXy @ W.T - np.einsum("axj,ayj->xy", B, KB, optimize=True)

    def _B(self, part: slice) -> Array:
        return np.asarray(np.matmul(self.whitener, self.stats.ZtXy[:, :, part]))

    def _KB(self, part: slice) -> Array:
        return batched.product(self.evaluation.K[:, :, part], self._B(part))

    def _P(self, part: slice) -> Array:
        return batched.left_over(self.stats.ZtZ[:, :, part], self.evaluation.K[:, :, part])

    def _G(self, part: slice) -> Array:
        return batched.product(self._P(part), self.stats.ZtZ[:, :, part])

    def _R(self, part: slice) -> Array:
        return batched.product(self._P(part), self._B(part))

    def group(self, products: Array, part: slice) -> tuple[Array, Array]:
        """R (q, p+1, J) and S (p+1, p+1, J) of some groups."""
        W = self.whitener
        S = np.einsum("xf,fgj,yg->xyj", W, products[:, :, part], W, optimize=True)
        B, KB = self._B(part), self._KB(part)
        for a in range(self.stats.q):
            S = S - B[a][:, None] * KB[a]
        return self._R(part), np.asarray(S)

    def lambda_slopes(self, R: Array, inverse: Array, contrast: Array, part: slice) -> Array:
        """(q, q, J) gradient of the deviance in Lambda without each group, at its fixed effects."""
        p, q = self.stats.p, self.stats.q
        slopes = self.sum_G[:, :, None] - self.G[:, :, part]
        r = np.einsum("axj,jx->aj", R, contrast, optimize=True)
        for a in range(q):
            for b in range(a + 1):
                squares = np.einsum("jx,xy,jy->j", contrast, self.pairs[a, b], contrast, optimize=True) - r[a] * r[b]
                value = slopes[a, b] - squares / self.s2
                if self.reml:
                    value -= np.einsum("jxy,xy->j", inverse, self.pairs[a, b, :p, :p], optimize=True)
                    value += np.einsum("xj,jxy,yj->j", R[a, :p], inverse, R[b, :p], optimize=True)
                slopes[a, b] = slopes[b, a] = value
        return np.asarray(slopes)


def _component_changes(estimates: Estimates, gradient: Array, sigma2_slope: Array) -> tuple[Array, Array, Array]:
    """Changes of T and sigma2 (with all groups minus without), user columns, and their distance."""
    q, J, s2 = len(gradient), gradient.shape[2], estimates.sigma2
    T: Array = np.full((q, q, J), np.nan)
    nothing: Array = np.full(J, np.nan)
    information = observed_information(estimates)
    if information is None:
        return T, nothing, nothing
    D, V = information.directions, information.covariance
    slope = np.vstack([np.einsum("iab,abj->ij", D, gradient, optimize=True), sigma2_slope])
    # the inverse Hessian of the deviance is V / 2, without one of J groups J / (J - 1) times that
    change = 0.5 * (J / (J - 1.0)) * V @ slope
    distance = 0.5 * np.einsum("ij,ij->j", slope, change) * (J / (J - 1.0)) / len(change)
    U, Lambda = estimates.grouped.u_transform, estimates.L @ estimates.L.T
    moved = s2 * np.einsum("ij,iab->abj", change[:-1], D, optimize=True) + Lambda[:, :, None] * change[-1]
    moved = np.einsum("ab,bcj,dc->adj", U, moved, U, optimize=True)
    for s in information.blocks:
        T[s, s] = moved[s, s]
    return T, change[-1], distance


def _last_first(M: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(M, 2, 0))


def _inverse(M: Array) -> Array:
    """Inverses; nan where a group alone determines an effect, so that nothing is left without it."""
    alone = np.linalg.eigvalsh(M)[:, 0] < ALONE
    inverse = np.linalg.inv(np.where(alone[:, None, None], np.eye(M.shape[1]), M))
    inverse[alone] = np.nan
    return np.asarray(inverse)


def _log_determinant(M: Array) -> Array:
    known = np.isfinite(M[:, 0, 0])
    found = np.full(len(M), np.nan)
    found[known] = np.linalg.slogdet(M[known])[1]
    return found
