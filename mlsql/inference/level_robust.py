"""Cluster-robust covariance matrices of models with several factors: clusters are the groups in which all others nest.

CR0 and CR1 need [X y]'V^-1[X y] of each cluster, which the factors of the chain leave of [X y]'[X y] one after another.

CR2's matrix A of a cluster (see `robust`) acts on all its rows, of which a cluster of nested groups has no small basis.
Yet A = D'(D (V - XMX') D')^-1/2 D is an integral of resolvents: with X~ = XM^1/2 and (V + it)^-1 = F - itH,

    B^-1/2 = 2/pi integral of (B + t^2)^-1 dt,   (D')(D (V - XMX') D' + t^2)^-1 D = F + FX~ (I - X~'FX~)^-1 X~'F,

so that the score X~'V^-1 A r and the product X~'V^-1 A X~ are sums over a few t of p x p matrices,

    2/pi integral of  X~'Hr + X~'HX~ (I - X~'FX~)^-1 X~'Fr  and of  X~'HX~ (I - X~'FX~)^-1,

each of the cost of one evaluation of the likelihood in complex numbers.  The nodes are those of Hale, Higham &
Trefethen (2008), SIAM J. Numer. Anal. 46, 2505 (method 3): the error falls like exp(-2 pi^2 n / (log(high / low) + 3)),
whatever the matrix with eigenvalues between low and high.  Here low is 1 less the largest share of a fixed effect that
one cluster determines, and high the square of the largest eigenvalue of V: 20 to 40 nodes.  Finally
A (V - XMX') A = V gives A V A = V + A XMX' A.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ellipj, ellipkm1

from mlsql._arrays import Array, BoolArray
from mlsql._typing import Vcov
from mlsql.errors import FitError
from mlsql.inference.level_satterthwaite import whitened_scores
from mlsql.inference.robust import EMPTY, Robust
from mlsql.likelihood import batched
from mlsql.likelihood.absorb import Absorbed, absorb_columns, take_by_parent
from mlsql.likelihood.average_information import working_columns
from mlsql.likelihood.deviance import Evaluation
from mlsql.moments.levels import LevelStatistics

DIGITS = 14.0
"""Of the integral, relative to A: rounding is not far below."""

CHUNK_BYTES = 4_000_000
"""Groups are taken in pieces whose products of [X y] fit a core's cache."""


def clusters_of(stats: LevelStatistics) -> int:
    """The factor whose groups are independent of each other.

    Raises
    ------
    FitError
        When factors are crossed.
    """
    top = stats.top
    if top is not None:
        return top
    names = ", ".join(i.name for i in stats.incidences)
    widest = next(
        (
            one
            for one in stats.incidences
            if all(other is one or other.parent_in(one) is not None for other in stats.incidences)
        ),
        None,
    )
    if widest is not None:
        raise FitError(
            f"robust errors are computed for factors that nest in each other; of {names} some are crossed within "
            f"{widest.name}; use vcov='model'"
        )
    raise FitError(
        f"robust errors by cluster are not defined here: no grouping factor contains the others ({names}), so no rows "
        "are independent of the rest; use vcov='model'"
    )


def level_robust(
    stats: LevelStatistics, L: Array, evaluation: Evaluation, products: Array, kind: Vcov, *, with_df: bool = True
) -> Robust:
    """Scores by cluster and what degrees of freedom need.

    Parameters
    ----------
    stats : LevelStatistics
    L : (q, q)
        Relative covariance factor of the evaluation.
    evaluation : Evaluation
    products : (p+1, p+1, cells)
        [X y]'W[X y] by cell, internal columns.
    kind : {"CR0", "CR1", "CR2"}
    with_df : bool
        Prepare degrees of freedom too.

    Raises
    ------
    FitError
        When factors are crossed.
    """
    top = clusters_of(stats)
    J, p, whitener = stats.incidences[top].n_groups, stats.p, evaluation.whitener
    by_cluster = stats.incidences[top].total(products)
    S = np.asarray(_absorbed(stats, L, by_cluster, 0.0), dtype=np.float64)
    if kind == "CR2":
        return _cr2(stats, L, evaluation, by_cluster, S)
    inflation = J / (J - 1.0) if kind == "CR1" else 1.0
    scores = np.tensordot(np.append(-evaluation.beta, 1.0), S[:p], axes=(0, 1))
    own = S[:p, :p] if with_df else np.empty((p, p, 0))
    return Robust(np.sqrt(inflation) * (whitener @ scores), whitener, own, own)


def _absorbed(stats: LevelStatistics, L: Array, by_cluster: Array, t: float) -> Any:
    """(p+1, p+1, J) [X y]'(V + it)^-1[X y] of each cluster, complex unless t is zero.

    V + it = z (I + Z (Lambda / z) Z') with z = 1 + it: absorbed as V is, one factor of the chain after another.
    """
    structure, m = stats.structure, len(by_cluster)
    # real or complex: Any, since the arrays of the package are real
    kind, z = (np.complex128, 1.0 + 1j * t) if t else (np.float64, 1.0)
    count = len(structure.chain)
    own: list[Any] = [A.astype(kind) for A in structure.own]
    cross: dict[tuple[int, int], Any] = {pair: link.cross.astype(kind) for pair, link in structure.links.items()}
    sums: list[Any] = [stats.ZtXy[f].astype(kind) for f in structure.chain]
    S: Any = by_cluster.astype(kind)
    for i, f in enumerate(structure.chain):
        own_L = L[np.ix_(stats.columns[f], stats.columns[f])]
        J, identity, above = own[i].shape[2], np.eye(len(own_L))[:, :, None], range(i + 1, count)
        cluster = structure.links[i, count - 1].parent if i < count - 1 else np.arange(J)
        width = max(256, CHUNK_BYTES // (16 * m * m))
        for part in (slice(start, start + width) for start in range(0, J, width)):
            M: Any = batched.congruence(own_L, own[i][:, :, part]) + z * identity
            C = batched.cholesky(M)
            W = _halved(C, own_L, sums[i][:, :, part])
            take_by_parent(S, batched.inner(W, W), cluster[part])
            U = {j: _halved(C, own_L, cross[i, j][:, :, part]) for j in above}
            for j in above:
                parent = structure.links[i, j].parent[part]
                take_by_parent(own[j], batched.inner(U[j], U[j]), parent)
                take_by_parent(sums[j], batched.inner(U[j], W), parent)
                for k in range(j + 1, count):
                    take_by_parent(cross[j, k], batched.inner(U[j], U[k]), parent)
    return S / z


def _halved(C: Any, L: Array, B: Any) -> Any:
    """C_j^-1 L'B_j for lower triangular C (q, q, J) and B (q, m, J)."""
    X = np.tensordot(L.T, B, axes=1)
    for k in range(len(X)):
        for i in range(k):
            X[k] -= C[k, i] * X[i]
        X[k] /= C[k, k]
    return X


def _cr2(stats: LevelStatistics, L: Array, evaluation: Evaluation, by_cluster: Array, S: Array) -> Robust:
    """CR2 by the integral.

    1. X~ and r in place of X and y; what each cluster determines of the fixed effects, and which it determines alone.
    2. The sums over the nodes.
    3. What belongs to effects that one cluster determines alone is taken out, as the generalised inverse does.
    4. u'Vu and u'X for u = A V^-1 X, in the columns of X.
    """
    p, whitener, root = stats.p, evaluation.whitener, evaluation.root
    # 1
    turn = np.zeros((p + 1, p + 1))
    turn[:p, :p], turn[:p, p], turn[p, p] = whitener.T, -evaluation.beta, 1.0
    share = _turned(turn, S)[:, :p, :p]
    values, vectors = np.linalg.eigh(share)
    alone: BoolArray = 1.0 - values < EMPTY
    left = np.where(alone, 0.0, 1.0 - values)
    low = float(np.min(left, where=~alone, initial=1.0))
    rest = (vectors * left[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    # 2
    pulled, scores = np.zeros_like(share), np.zeros((len(share), p))
    nodes, weights = _nodes(low, _largest(stats, L) ** 2)
    for t, weight in zip(nodes, weights, strict=True):
        R = _turned(turn, _absorbed(stats, L, by_cluster, float(t)))
        F, H = R.real, -R.imag / t
        # I - X~'FX~, exact where I - X~'V^-1X~ is zero
        middle = rest + (share - F[:, :p, :p])
        left_side = np.swapaxes(np.linalg.solve(middle, np.swapaxes(H[:, :p, :p], 1, 2)), 1, 2)
        pulled += weight * left_side
        scores += weight * (H[:, :p, p] + (left_side @ F[:, :p, p:])[:, :, 0])
    # 3
    own = share + pulled @ np.swapaxes(pulled, 1, 2)
    if alone.any():
        squared, cubed = _powers(stats, L, evaluation)
        for k in np.flatnonzero(alone.any(axis=1)):
            c = vectors[k][:, alone[k]]
            n = squared @ c
            taken = np.linalg.solve(c.T @ cubed @ c, n.T)
            pulled[k] -= float(np.sum(weights / nodes**2)) * (c @ taken).T
            own[k] = share[k] - n @ taken + pulled[k] @ pulled[k].T
    # 4
    return Robust(scores.T, whitener, _in_columns(root, own), _in_columns(root, pulled))


def _turned(turn: Array, S: Any) -> Any:
    """(J, p+1, p+1) turn'S_j turn."""
    return turn.T @ np.moveaxis(S, 2, 0) @ turn


def _in_columns(root: Array, M: Array) -> Array:
    """(p, p, J) products of columns of X from those of whitened ones."""
    return np.ascontiguousarray(np.moveaxis(root @ M @ root.T, 0, 2))


def _nodes(low: float, high: float) -> tuple[Array, Array]:
    """t and weights so that B^-1/2 is the sum of weight (B + t^2)^-1 for eigenvalues of B between low and high."""
    ratio = low / high
    n = int(np.ceil((DIGITS * np.log(10.0)) * (3.0 - np.log(ratio)) / (2.0 * np.pi**2)))
    n += n % 2
    K = float(ellipkm1(ratio))
    sn, cn, dn, _ = ellipj((np.arange(n // 2) + 0.5) / n * K, 1.0 - ratio)
    t, slope = np.sqrt(low) * sn / cn, np.sqrt(low) * dn / cn**2
    # the upper half mirrors the lower: u to K - u takes t to sqrt(low high) / t
    mirror = np.sqrt(low) * np.sqrt(high) / t
    t, slope = np.append(t, mirror), np.append(slope, mirror / t * slope)
    return t, slope * (2.0 * K / (np.pi * n))


def _largest(stats: LevelStatistics, L: Array) -> float:
    """An upper bound of the eigenvalues of V: 1 and, for every factor, the largest trace of L'Z'ZL of a group."""
    total = 1.0
    for f, A in zip(stats.structure.chain, stats.structure.own, strict=True):
        own = L[np.ix_(stats.columns[f], stats.columns[f])]
        total += float(np.einsum("ab,abj->j", own @ own.T, A).max())
    return total


def _powers(stats: LevelStatistics, L: Array, evaluation: Evaluation) -> tuple[Array, Array]:
    """X~'V^-2 X~ and X~'V^-3 X~ over all rows; V^-1 X~ is X~ - sum of Z_t Lambda_t Z_t'V^-1 X~."""
    absorbed, p, whitener, Lambda = evaluation.state, stats.p, evaluation.whitener, L @ L.T
    assert isinstance(absorbed, Absorbed)
    squared = np.eye(p)
    weights = [np.empty((len(c), p, i.n_groups)) for c, i in zip(stats.columns, stats.incidences, strict=True)]
    for f, groups, R in whitened_scores(stats, evaluation, whitener):
        own = Lambda[np.ix_(stats.columns[f], stats.columns[f])]
        taken = np.tensordot(own, R, axes=1)
        weights[f][:, :, groups] = -taken
        squared -= np.einsum("apj,arj->pr", taken, R, optimize=True)
    ZtD, XytD, DtD = working_columns(stats, weights)
    mixed = whitener @ XytD[:p]
    DtD = DtD + mixed + mixed.T + whitener @ stats.XytXy[:p, :p] @ whitener.T
    whole = tuple(Z + np.matmul(whitener, B[:, :p]) for Z, B in zip(ZtD, stats.ZtXy, strict=True))
    return squared, absorb_columns(stats, absorbed, whole, DtD).S
