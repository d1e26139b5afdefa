"""New outcomes from a fitted model, simulated in the space of its moments: no row is made.

The moments that contain the outcome are Z'y by group, X'y and y'y.  With y = X beta + Z u + e they need, beside u, only
Z'e by group, X'e and e'e, whose joint distribution is known: with A = Z'Z = CC' of a group, H = C^-1 Z'X and
Q = X'X - sum H'H,

    Z'e = s C a,    X'e = s (sum H'a + Q^1/2 b),    e'e = s^2 (sum a'a + b'b + chi2 on N - sum rank A - rank Q df)

for standard normal a (one q vector a group) and b (p).  A replicate costs O(J), whatever the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood import batched
from mlsql.moments.statistics import Statistics

DEFICIENT = 1e-10
"""Share of a column's sum of squares, given those before it, below which it adds no rank."""


@dataclass(frozen=True, slots=True)
class Simulator:
    """What does not change from replicate to replicate; made by `make_simulator`.

    Attributes
    ----------
    statistics : Statistics
    root : (q, q)      L with T = s^2 LL'
    beta : (p,)   sigma : float
    C : (q, q, J)      roots of Z'Z, zero columns where the group is of deficient rank
    H : (q, p, J)
    Q_root : (p, p)
    n_residual : int   df of the chi-square
    """

    statistics: Statistics
    root: Array
    beta: Array
    sigma: float
    C: Array
    H: Array
    Q_root: Array
    n_residual: int

    def draw(self, rng: np.random.Generator) -> Statistics:
        """The statistics of one simulated data set."""
        stats, p, s = self.statistics, self.statistics.p, self.sigma
        q, J = stats.q, stats.n_groups
        a = rng.standard_normal((q, J)) * (self.C[np.arange(q), np.arange(q)] > 0)
        b = rng.standard_normal(p) * (np.diag(self.Q_root) != 0)
        u = s * self.root @ rng.standard_normal((q, J))
        # 1. errors
        Ze = s * batched.product(self.C, a)
        Xe = s * (np.einsum("apj,aj->p", self.H, a) + self.Q_root @ b)
        ee = s * s * (float(np.sum(a * a)) + float(b @ b) + self._chi_square(rng))
        # 2. moments with the outcome
        Au = batched.product(stats.ZtZ, u)
        Bu = np.einsum("apj,aj->p", stats.ZtXy[:, :p], u)
        Xb = stats.XytXy[:p, :p] @ self.beta
        ZtXy = stats.ZtXy.copy()
        ZtXy[:, p] = np.einsum("apj,p->aj", stats.ZtXy[:, :p], self.beta) + Au + Ze
        XytXy = stats.XytXy.copy()
        XytXy[:p, p] = XytXy[p, :p] = Xb + Bu + Xe
        cross = float(np.sum(u * Au)) + 2.0 * float(np.sum(u * Ze)) + 2.0 * float(self.beta @ (Bu + Xe))
        XytXy[p, p] = float(self.beta @ Xb) + ee + cross
        return replace(stats, ZtXy=ZtXy, XytXy=XytXy)

    def _chi_square(self, rng: np.random.Generator) -> float:
        return float(rng.chisquare(self.n_residual)) if self.n_residual else 0.0


def make_simulator(stats: Statistics, L: Array, beta: Array, sigma2: float) -> Simulator:
    """Prepare simulations of a model.

    Parameters
    ----------
    stats : Statistics
    L : (q, q)
        Relative covariance factor, internal columns; may be singular.
    beta : (p,)
        Internal columns.
    sigma2 : float
    """
    q, p = stats.q, stats.p
    # roots of Z'Z and H, deficient directions left at zero
    C, H = np.zeros_like(stats.ZtZ), np.zeros((q, p, stats.n_groups))
    for k in range(q):
        rest = stats.ZtZ[k, k] - np.einsum("ij,ij->j", C[k, :k], C[k, :k])
        keeps = rest > DEFICIENT * np.maximum(stats.ZtZ[k, k], 0.0)
        C[k, k] = np.sqrt(np.where(keeps, rest, 0.0))
        safe = np.where(keeps, C[k, k], 1.0)
        for r in range(k + 1, q):
            left = stats.ZtZ[r, k] - np.einsum("ij,ij->j", C[r, :k], C[k, :k])
            C[r, k] = np.where(keeps, left / safe, 0.0)
        explained = np.einsum("ij,ipj->pj", C[k, :k], H[:k])
        H[k] = np.where(keeps, (stats.ZtXy[k, :p] - explained) / safe, 0.0)
    ranks = int(np.sum(C[np.arange(q), np.arange(q)] > 0))
    Q = stats.XytXy[:p, :p] - np.einsum("apj,afj->pf", H, H, optimize=True)
    Q_root, rank = _semidefinite_root(Q, np.diag(stats.XytXy)[:p])
    return Simulator(stats, L, beta, float(np.sqrt(sigma2)), C, H, Q_root, stats.n_rows - ranks - rank)


def _semidefinite_root(Q: Array, scale: Array) -> tuple[Array, int]:
    """Lower root with zero columns where Q is deficient beside `scale`, and the rank."""
    p = len(Q)
    root = np.zeros((p, p))
    rank = 0
    for k in range(p):
        rest = Q[k, k] - root[k, :k] @ root[k, :k]
        if rest > DEFICIENT * scale[k]:
            root[k, k] = np.sqrt(rest)
            root[k + 1 :, k] = (Q[k + 1 :, k] - root[k + 1 :, :k] @ root[k, :k]) / root[k, k]
            rank += 1
    return root, rank
