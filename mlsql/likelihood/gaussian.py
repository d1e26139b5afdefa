"""The Gaussian deviance, ML and REML, with exact first and second derivatives.

Notation.  T = s2 Lambda, Lambda = L L'.  Per group A = Z'WZ, B = Z'W[X y]; pooled C = [X y]'W[X y].

    M = L'AL + I,   K = L M^-1 L' = (Lambda^-1 + A)^-1,   S = C - sum_j B'KB = [X y]'V^-1[X y] s2
    log|V| = n log s2 + log|M| - sum log w

holds for singular Lambda as well (Smith 1973; Bates & DebRoy 2004).  With P = I - AK, G = PA = Z'V^-1Z s2,
R = PB = Z'V^-1[X y] s2, and r = R[-beta; 1] the derivatives along dLambda are

    d log|V| = tr(G dLambda),  dS = -R'dLambda R,  d r2 = -r'dLambda r,  dG = -G dLambda G,  dR = -G dLambda R.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from mlsql._arrays import Array
from mlsql._typing import Method
from mlsql.errors import FitError
from mlsql.likelihood import batched
from mlsql.moments.statistics import Statistics

CHUNK_BYTES = 500_000
"""Groups are taken in chunks whose Z'[X y] fits a core's cache: measured 2x over whole arrays at 100,000 groups."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The likelihood at one Lambda.

    Attributes
    ----------
    deviance : float
        -2 log (restricted) likelihood of the user's columns, all constants included.
    sigma2 : float
        Level-1 variance: profiled, or as given.
    beta : (p,)  internal coefficients
    root : (p, p)
        Lower Cholesky factor of S_XX; Var(beta) = sigma2 (root root')^-1.
    r2 : float
        Generalised residual sum of squares.
    K : (q, q, J)
    slopes : Slopes or None
        First and second derivatives, when asked for.
    """

    deviance: float
    sigma2: float
    beta: Array
    root: Array
    r2: float
    K: Array
    slopes: Slopes | None

    @property
    def beta_covariance(self) -> Array:
        """(p, p) covariance matrix of the internal coefficients."""
        inverse = solve_triangular(self.root, np.eye(len(self.beta)), lower=True)
        return self.sigma2 * inverse.T @ inverse


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives with respect to the entries of Lambda, as if all q x q entries were free.

    Attributes
    ----------
    logs : (q, q)        gradient of log|V| + [REML] log|S_XX|
    residual : (q, q)    minus the gradient of r2: sum r r'
    logs2 : (q, q, q, q)      second derivatives of the logarithms
    residual2 : (q, q, q, q)  second derivatives of r2
    """

    logs: Array
    residual: Array
    logs2: Array
    residual2: Array


@dataclass(frozen=True, slots=True)
class Deviance:
    """The deviance as a function of the relative covariance factor L.

    Attributes
    ----------
    statistics : Statistics
    method : {"REML", "ML"}
    """

    statistics: Statistics
    method: Method

    @property
    def degrees(self) -> int:
        """Divisor of sigma2: N for ML, N - p for REML."""
        return self.statistics.n_rows - (self.statistics.p if self.method == "REML" else 0)

    def at(self, L: Array, *, sigma2: float | None = None, slopes: bool = True) -> Evaluation:
        """Evaluate at a relative covariance factor.

        Parameters
        ----------
        L : (q, q)
            Lower triangular, Lambda = L L', may be singular.
        sigma2 : float, optional
            Level-1 variance; profiled out when not given.
        slopes : bool
            Compute derivatives too.

        Raises
        ------
        FitError
            When no residual variation is left.
        """
        stats = self.statistics
        # 1. one pass over the groups: log|M|, K and S
        log_det, K, S = _accumulate(stats, L)
        # 2. generalised least squares from S
        p = stats.p
        root = np.zeros((0, 0)) if p == 0 else cholesky(S[:p, :p], lower=True)
        w = solve_triangular(root, S[:p, p], lower=True)
        beta = solve_triangular(root, w, lower=True, trans="T")
        r2 = float(S[p, p] - w @ w)
        if not r2 > 1e-14 * float(stats.XytXy[p, p]):
            raise FitError(
                "the model reproduces the outcome exactly: no level-1 variation is left, so sigma2 and all tests are "
                "undefined; is the outcome also among the predictors?"
            )
        # 3. deviance
        log_xx = 2.0 * float(np.log(np.diag(root)).sum())
        used = r2 / self.degrees if sigma2 is None else sigma2
        deviance = self.degrees * np.log(2.0 * np.pi * used) + r2 / used + log_det - stats.log_weights
        if self.method == "REML":
            deviance += log_xx + stats.log_det_x
        derivatives = self._slopes(K, beta, root) if slopes else None
        return Evaluation(float(deviance), used, beta, root, r2, K, derivatives)

    def _slopes(self, K: Array, beta: Array, root: Array) -> Slopes:
        """A second pass, now that beta is known: sums over groups of products of G, r and the whitened R."""
        stats, p, q = self.statistics, self.statistics.p, self.statistics.q
        lower = [(a, b) for a in range(q) for b in range(a + 1)]
        k = len(lower)
        contrast = np.append(-beta, 1.0)
        whitener = solve_triangular(root, np.eye(p), lower=True)
        sum_G, sum_H, sum_r = np.zeros((q, q)), np.zeros((q, q)), np.zeros((q, q))
        GG, Gr, GH = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k))
        E, v = np.zeros((q, q, p, p)), np.zeros((q, q, p))
        for part in chunks(stats):
            A, B, Kj = stats.ZtZ[:, :, part], stats.ZtXy[:, :, part], K[:, :, part]
            P = -batched.product(A, Kj)
            for a in range(q):
                P[a, a] += 1.0
            G = batched.packed(batched.product(P, A))
            r = batched.product(P, np.tensordot(contrast, B, axes=(0, 1)))
            R = batched.product(P, np.matmul(whitener, B[:, :p]))
            H = np.empty_like(G)
            rr = np.empty_like(G)
            for i, (a, b) in enumerate(lower):
                H[i] = np.einsum("pj,pj->j", R[a], R[b])
                rr[i] = r[a] * r[b]
                E[a, b] += R[a] @ R[b].T
            v += np.einsum("aj,bpj->abp", r, R, optimize=True)
            GG += G @ G.T
            Gr += G @ rr.T
            GH += G @ H.T
            _add_symmetric(sum_G, G)
            _add_symmetric(sum_H, H)
            _add_symmetric(sum_r, rr)
        for a, b in lower:
            E[b, a] = E[a, b].T
        # d2 log|V| along (ab), (cd): -tr(G E_ab G E_cd) = -G_da G_bc
        logs2 = -np.einsum("dabc->abcd", batched.unpacked_pairs(GG, q))
        residual2 = 2.0 * np.einsum("bcda->abcd", batched.unpacked_pairs(Gr, q))
        residual2 -= 2.0 * np.einsum("abp,dcp->abcd", v, v)
        logs = sum_G
        if self.method == "REML":
            logs = sum_G - sum_H
            logs2 = logs2 + 2.0 * np.einsum("bcda->abcd", batched.unpacked_pairs(GH, q))
            logs2 -= np.einsum("abxy,dcxy->abcd", E, E)
        return Slopes(logs, sum_r, _symmetrised(logs2), _symmetrised(residual2))


def _accumulate(stats: Statistics, L: Array) -> tuple[float, Array, Array]:
    q = stats.q
    K, S, log_det = np.empty_like(stats.ZtZ), stats.XytXy.copy(), 0.0
    identity = np.eye(q)[:, :, None]
    for part in chunks(stats):
        B = stats.ZtXy[:, :, part]
        C = batched.cholesky(batched.congruence(L, stats.ZtZ[:, :, part]) + identity)
        for a in range(q):
            log_det += 2.0 * float(np.log(C[a, a]).sum())
        N = batched.solve_lower(C, L.T)
        K[:, :, part] = batched.gram(N)
        U = batched.product(N, B)
        for a in range(q):
            S -= U[a] @ U[a].T
    return log_det, K, S


def chunks(stats: Statistics) -> list[slice]:
    """Slices of the groups that fit the cache."""
    width = max(256, CHUNK_BYTES // (8 * stats.q * (stats.p + 1)))
    return [slice(start, start + width) for start in range(0, stats.n_groups, width)]


def _add_symmetric(total: Array, lower: Array) -> None:
    sums = lower.sum(axis=1)
    for i, (a, b) in enumerate(zip(*np.tril_indices(len(total)), strict=True)):
        total[a, b] += sums[i]
        if a != b:
            total[b, a] += sums[i]


def _symmetrised(H: Array) -> Array:
    """Average over the orders (ab)(cd), (ba)(cd), ...: derivatives along symmetric directions."""
    H = (H + H.transpose(1, 0, 2, 3)) / 2.0
    return (H + H.transpose(0, 1, 3, 2)) / 2.0
