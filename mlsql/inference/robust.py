"""Cluster-robust covariance matrices of the fixed effects (CR0, CR1, CR2) and their degrees of freedom.

With M = (X'V^-1X)^-1, r_j = y_j - X_j beta and adjustment matrices A_j,

    V^R = M [ sum_j X_j'V_j^-1 A_j r_j r_j' A_j' V_j^-1 X_j ] M

CR0 takes A_j = I (what HLM prints; Raudenbush & Bryk 9.24), CR1 A_j = sqrt(J / (J - 1)) I, and CR2 makes the matrix
exactly unbiased when V is right (Bell & McCaffrey 2002; Pustejovsky & Tipton 2018, J. Bus. Econ. Stat. 36, 672):
A_j = D'(D (V_j - X_j M X_j') D')^-1/2 D with D'D = V_j.  A_j is the same for every such root D and the identity outside
the span of [Z_j X_j], so the group's Gram matrix suffices.

With precision weights w the rows are those times sqrt(w), whose errors are alike: CR2 is unbiased in them, and equals
that of other software on such rows.  Its A_j depends on this choice in the fourth digit; CR0 and CR1 do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from mlsql._arrays import Array
from mlsql._typing import Vcov
from mlsql.likelihood import batched
from mlsql.likelihood.deviance import Evaluation
from mlsql.moments.statistics import Statistics

DEPENDENT = 1e-10
"""A column adds no dimension to its group when it keeps less than this share of its sum of squares."""

EMPTY = 1e-10
"""Eigenvalues of I - V^-1/2 XMX'V^-1/2 of a group, which lie in [0, 1], below this are zeros: the group determines a
fixed effect alone, and its residual there is zero."""


MODERATE, LOW_LEVERAGE = 1e3, 0.5
"""Up to a variance of this many sigma2 within a group, and this much leverage, ten digits of a root are left."""

CHUNK = 8192
"""Groups taken at once: bounds the memory of the small matrices."""


@dataclass(frozen=True, slots=True)
class Robust:
    """A robust covariance matrix, and what its degrees of freedom need; internal columns, V in units of sigma2.

    Attributes
    ----------
    scores : (p, J)
        Whitened, adjusted scores: the covariance matrix is the sum of their outer products.
    whitener : (p, p)
        whitener' whitener = M.
    own, pulled : (p, p, J)
        u'Vu and u'X for u_j = A_j'V_j^-1 X_j; empty when no df were asked for.
    """

    scores: Array
    whitener: Array
    own: Array
    pulled: Array

    def covariance(self, back: Array) -> Array:
        """(p, p) in columns that `back` leads to from the internal ones."""
        whole = back @ self.whitener.T
        moved = whole @ self.scores
        return np.asarray(moved @ moved.T)

    def df(self, contrasts: Array) -> Array:
        """Satterthwaite df of each row of (r, p) contrasts of the internal columns, the working model taken as true.

        With p_i the vector of residual weights of group i, df = (tr P)^2 / tr P^2 for P_ij = p_i'V p_j, which is
        diag(d) - v'v: no matrix over pairs of groups is formed.
        """
        found = []
        for c in contrasts @ self.whitener.T @ self.whitener:
            d, v = self._own(c, c), self._pull(c)
            outer = v @ v.T
            trace = d.sum() - np.trace(outer)
            square = d @ d - 2.0 * d @ np.einsum("pj,pj->j", v, v) + np.sum(outer**2)
            found.append(trace**2 / square)
        return np.array(found)

    def joint_df(self, contrasts: Array) -> float:
        """df eta of the approximate Hotelling test (HTZ; Pustejovsky & Tipton 2018) of r contrasts.

        The contrasts are standardised by the mean of their robust covariance matrix under the working model.
        """
        r = len(contrasts)
        rows: Array = contrasts @ self.whitener.T @ self.whitener
        pulled = [self._pull(c) for c in rows]
        mean = np.array(
            [[self._own(rows[s], rows[t]).sum() - np.sum(pulled[s] * pulled[t]) for t in range(r)] for s in range(r)]
        )
        rows = np.asarray(solve_triangular(np.linalg.cholesky(mean), rows, lower=True), dtype=np.float64)
        pulls = [self._pull(row) for row in rows]
        total = 0.0
        for s in range(r):
            for t in range(r):
                d_ss, d_tt, d_st = (self._own(rows[a], rows[b]) for a, b in ((s, s), (t, t), (s, t)))
                vs, vt = pulls[s], pulls[t]
                ss, tt, st = (np.einsum("pj,pj->j", a, b) for a, b in ((vs, vs), (vt, vt), (vs, vt)))
                cross = vs @ vt.T
                total += float(d_ss @ d_tt - d_ss @ tt - d_tt @ ss + np.sum(cross**2))
                total += float(d_st @ d_st - 2.0 * d_st @ st + np.sum(cross * cross.T))
        return r * (r + 1) / total

    def _own(self, a: Array, b: Array) -> Array:
        return np.asarray(b @ np.tensordot(a, self.own, axes=(0, 0)))

    def _pull(self, c: Array) -> Array:
        return np.asarray(self.whitener @ np.tensordot(c, self.pulled, axes=(0, 0)))


def group_scores(stats: Statistics, evaluation: Evaluation, products: Array) -> Array:
    """(p, J) X_j'V_j^-1 r_j in units of 1 / sigma2, internal columns; they sum to zero."""
    contrast = np.append(-evaluation.beta, 1.0)
    e = np.tensordot(contrast, stats.ZtXy, axes=(0, 1))
    Ke = batched.product(evaluation.K, e)
    scores = np.tensordot(contrast, products[: stats.p], axes=(0, 1))
    for a in range(stats.q):
        scores -= stats.ZtXy[a, : stats.p] * Ke[a]
    return np.asarray(scores)


def robust(
    stats: Statistics, L: Array, evaluation: Evaluation, products: Array, kind: Vcov, *, with_df: bool = True
) -> Robust:
    """Scores and what degrees of freedom need.

    Parameters
    ----------
    stats : Statistics
    L : (q, q)
        Relative covariance factor of the evaluation.
    evaluation : Evaluation
    products : (p+1, p+1, J)
        [X y]'W[X y] by group, internal columns.
    kind : {"CR0", "CR1", "CR2"}
    with_df : bool
        Prepare degrees of freedom too.
    """
    p, J = stats.p, stats.n_groups
    whitener = evaluation.whitener
    if kind == "CR2":
        return _cr2(stats, L, evaluation.beta, products, whitener)
    inflation = J / (J - 1.0) if kind == "CR1" else 1.0
    scores = whitener @ group_scores(stats, evaluation, products)
    if not with_df:
        nothing = np.empty((p, p, 0))
        return Robust(np.sqrt(inflation) * scores, whitener, nothing, nothing)
    S = products[:p, :p].copy()
    KB = batched.product(evaluation.K, stats.ZtXy[:, :p])
    for a in range(stats.q):
        S -= KB[a][:, None] * stats.ZtXy[a, :p]
    return Robust(np.sqrt(inflation) * scores, whitener, S, S)


def _cr2(stats: Statistics, L: Array, beta: Array, products: Array, whitener: Array) -> Robust:
    """CR2 in an orthonormal basis of each group's columns.

    1. Coordinates of Z, X and y in the basis.
    2. V and a root of it, V - XMX', and A by one symmetric eigendecomposition a group.
    3. Scores, u'Vu and u'X.
    """
    p, q, J = stats.p, stats.q, stats.n_groups
    own, pulled, scores = np.empty((p, p, J)), np.empty((p, p, J)), np.empty((p, J))
    for part in (slice(start, start + CHUNK) for start in range(0, J, CHUNK)):
        # 1
        F = _coordinates(stats.ZtZ[:, :, part], stats.ZtXy[:, :, part], products[:, :, part])
        Z = F[:, :, :q] @ L
        X = F[:, :, q : q + p]
        r = F[:, :, q + p] - X @ beta
        # 2
        V = np.eye(F.shape[1]) + Z @ _transposed(Z)
        D = _transposed(np.asarray(np.linalg.cholesky(V), dtype=np.float64))
        DX = np.asarray(np.linalg.solve(_transposed(D), X), dtype=np.float64)
        left, size = _root_spectrum(V, D, DX @ whitener.T)
        powers = np.where(size > 0.0, 1.0 / np.where(size > 0.0, size, 1.0), 0.0)
        # 3. A is symmetric, so u = A V^-1 X = D' (FF')^-1/2 D'^-1 X
        U = _transposed(D) @ (left @ (powers[:, :, None] * (_transposed(left) @ DX)))
        scores[:, part] = whitener @ (r[:, None] @ U)[:, 0].T
        own[:, :, part] = np.moveaxis(_transposed(U) @ V @ U, 0, 2)
        pulled[:, :, part] = np.moveaxis(_transposed(U) @ X, 0, 2)
    return Robust(scores, whitener, own, pulled)


def _root_spectrum(V: Array, D: Array, Y: Array) -> tuple[Array, Array]:
    """Eigenvectors (J, k, k) of D(V - XMX')D' and the roots of its eigenvalues (J, k); zeros where it has none.

    With D'D = V and Y = D'^-1 X M^1/2 it is D(V - D'YY'D)D'.  Its eigenvalues are those of the matrix itself where they
    keep their digits.  Else they are the singular values of F = DD'C, CC' = I - YY', which lose half as many.
    """
    plain = (V.max(axis=(1, 2)) < MODERATE) & (np.einsum("jkx,jkx->j", Y, Y) < LOW_LEVERAGE)
    vectors, size = np.empty_like(V), np.empty(V.shape[:2])
    if plain.any():
        E, moved = D[plain] @ _transposed(D[plain]), Y[plain]
        DDY = E @ moved
        values, vectors[plain] = np.linalg.eigh(E @ E - DDY @ _transposed(DDY))
        size[plain] = np.sqrt(values)
    if not plain.all():
        rest = ~plain
        C = _residual_root(Y[rest])
        vectors[rest], found, _ = np.linalg.svd(D[rest] @ _transposed(D[rest]) @ C)
        rank = np.any(C != 0.0, axis=1).sum(axis=1)
        size[rest] = np.where(np.arange(found.shape[1]) < rank[:, None], found, 0.0)
    return vectors, size


def _residual_root(Y: Array) -> Array:
    """(J, k, k) factor of I - Y_j Y_j', with a zero column for each effect that the group determines alone.

    The eigenvalues lie in [0, 1]: zeros are judged here, where the size of T has no say.
    """
    values, vectors = np.linalg.eigh(np.eye(Y.shape[1]) - Y @ _transposed(Y))
    return np.asarray(vectors * np.sqrt(np.where(values > EMPTY, values, 0.0))[:, None, :])


def _coordinates(ZtZ: Array, ZtXy: Array, products: Array) -> Array:
    """(J, k, q+p+1) coordinates of [Z X y] in an orthonormal basis of each group's [Z X].

    By Cholesky of the Gram matrix; a column that adds no dimension in any group has no coordinate of its own.
    """
    q, m = len(ZtZ), len(ZtZ) + len(products)
    G = np.empty((m, m, ZtZ.shape[2]))
    G[:q, :q], G[:q, q:], G[q:, q:] = ZtZ, ZtXy, products
    G[q:, :q] = np.swapaxes(ZtXy, 0, 1)
    rows: list[Array] = []
    for c in range(m - 1):
        rest = G[c].copy()
        for row in rows:
            rest -= row[c] * row
        adds = (rest[c] > DEPENDENT * G[c, c]) & (G[c, c] > 0)
        if adds.any():
            rows.append(np.where(adds, rest / np.sqrt(np.where(adds, rest[c], 1.0)), 0.0))
    return np.ascontiguousarray(np.moveaxis(np.array(rows), 2, 0))


def _transposed(M: Array) -> Array:
    return np.swapaxes(M, 1, 2)
