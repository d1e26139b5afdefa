"""How the fixed effects' covariance matrix moves with the variance components: Kenward and Roger's P and Q.

With V = sum_i t_i G_i, where t holds the distinct entries of T and, last, sigma2 (G = Z E Z' and the identity):

    P_i = -X'V^-1 G_i V^-1 X,   Q_ij = X'V^-1 G_i V^-1 G_j V^-1 X,   t_ij = tr(V^-1 G_i V^-1 G_j)

In the notation of `gaussian`: s2 Z'V^-1 Z = G = PA, s2 Z'V^-1 X = R = PB, and with F = I - ZKZ' = s2 V^-1

    FZ = ZP',   X'F^2X = S - B'KPB,   X'F^3X = X'F^2X - B'KP^2B,   Z'F^2X = PR,   Z'F^2Z = PG.

Kenward & Roger (1997), Biometrics 53, 983; the form of Halekoh & Hojsgaard (2014), J. Stat. Software 59(9), from
group moments alone: nothing of size n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood import batched
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.deviance import Evaluation
from mlsql.likelihood.gaussian import chunks
from mlsql.moments.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Curvature:
    """Derivatives for m parameters: the free entries of T (internal columns), then sigma2.

    The fixed effects are whitened by `whitener`, so that their covariance matrix is sigma2 I.

    Attributes
    ----------
    whitener : (p, p)
        whitener' whitener = (s2 X'V^-1 X)^-1.
    P : (m, p, p)
    Q : (m, m, p, p)
    traces : (m, m)
    """

    whitener: Array
    P: Array
    Q: Array
    traces: Array


def first_order(stats: Statistics, evaluation: Evaluation, covariance: Covariance) -> tuple[Array, Array]:
    """Whitener (p, p) and, for each free entry of T, s2^2 X'V^-1 G_i V^-1 X in whitened columns: (k, p, p)."""
    whitener = evaluation.whitener
    E = np.zeros((stats.q, stats.q, stats.p, stats.p))
    for part in chunks(stats):
        R = _whitened(stats, evaluation, whitener, part)[1]
        for a in range(stats.q):
            for b in range(a + 1):
                E[a, b] += R[a] @ R[b].T
    for a in range(stats.q):
        for b in range(a):
            E[b, a] = E[a, b].T
    return whitener, np.einsum("iab,abxy->ixy", covariance.directions(), E, optimize=True)


def curvature(stats: Statistics, evaluation: Evaluation, covariance: Covariance) -> Curvature:
    """P, Q and the traces, in one pass over the groups."""
    q, p, s2 = stats.q, stats.p, evaluation.sigma2
    whitener = evaluation.whitener
    D = covariance.directions()
    k = len(D)
    RR, RPR = np.zeros((q, q, p, p)), np.zeros((q, q, p, p))
    RGR = np.zeros((q, q, q, q, p, p))
    GG, PG = np.zeros((q, q, q, q)), np.zeros((q, q))
    lost2, lost3 = np.zeros((p, p)), np.zeros((p, p))
    trace = float(stats.n_rows)
    for part in chunks(stats):
        P, R = _whitened(stats, evaluation, whitener, part)
        K = evaluation.K[:, :, part]
        G = batched.product(P, stats.ZtZ[:, :, part])
        PR = batched.product(P, R)
        KB = batched.product(K, np.matmul(whitener, stats.ZtXy[:, :p, part]))
        KA = batched.product(K, stats.ZtZ[:, :, part])
        trace -= 2.0 * float(np.einsum("aaj->", KA)) - float(np.einsum("abj,baj->", KA, KA))
        PG += batched.product(P, G).sum(axis=2)
        flat = G.reshape(q * q, -1)
        GG += (flat @ flat.T).reshape(q, q, q, q)
        for a in range(q):
            # K P B = K R and K P^2 B = K P R, both congruent to their transposes
            lost2 += KB[a] @ R[a].T
            lost3 += KB[a] @ PR[a].T
            for d in range(q):
                RR[a, d] += R[a] @ R[d].T
                RPR[a, d] += R[a] @ PR[d].T
                for b in range(q):
                    for c in range(b + 1):
                        RGR[a, b, c, d] += (R[a] * G[b, c]) @ R[d].T
    for b in range(q):
        for c in range(b):
            RGR[:, c, b] = RGR[:, b, c]
    X2 = np.eye(p) - lost2
    X3 = X2 - lost3
    first, mixed = np.empty((k + 1, p, p)), np.einsum("iab,abxy->ixy", D, RPR, optimize=True)
    first[:k] = np.einsum("iab,abxy->ixy", D, RR, optimize=True)
    first[k] = X2
    Q = np.empty((k + 1, k + 1, p, p))
    Q[:k, :k] = np.einsum("iab,abcdxy,jcd->ijxy", D, RGR, D, optimize=True)
    Q[:k, k] = mixed
    Q[k, :k] = np.swapaxes(mixed, 1, 2)
    Q[k, k] = X3
    traces = np.empty((k + 1, k + 1))
    traces[:k, :k] = np.einsum("iab,bcda,jcd->ij", D, GG, D, optimize=True)
    traces[:k, k] = traces[k, :k] = np.einsum("iab,ab->i", D, PG)
    traces[k, k] = trace
    return Curvature(whitener, -first / s2**2, Q / s2**3, traces / s2**2)


def _whitened(stats: Statistics, evaluation: Evaluation, whitener: Array, part: slice) -> tuple[Array, Array]:
    """P = I - AK and R = PB whitened, of a chunk of groups."""
    P = batched.left_over(stats.ZtZ[:, :, part], evaluation.K[:, :, part])
    return P, batched.product(P, np.matmul(whitener, stats.ZtXy[:, : stats.p, part]))
