"""Random terms absorbed one factor after another: sums of the next level and of the rest, and back down again.

With V_0 = I and V_t = V_{t-1} + Z_t Lambda_t Z_t' (in units of sigma2), a factor whose groups do not meet is
absorbed by

    D'V_t^-1 D = D'V_{t-1}^-1 D - (Z_t'V_{t-1}^-1 D)' K_t (Z_t'V_{t-1}^-1 D)
    K_t = (Lambda_t^-1 + Z_t'V_{t-1}^-1 Z_t)^-1

for any columns D: the two-level formula over and over, with what the levels below have left in place of Z'Z.  The rest
is absorbed at once by one symmetric matrix.  On the way down the same identity turns Z_t'V_t^-1 D into Z_t'V^-1 D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.likelihood import batched
from mlsql.likelihood.dense_rest import factorise_dense
from mlsql.likelihood.rest import Rest, pattern_gram
from mlsql.likelihood.sparse_rest import SparsePattern, factorise_sparse
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.structure import Pattern, Structure

CHUNK_BYTES = 500_000
"""Groups of a chain are taken in pieces that fit a core's cache."""


@dataclass(frozen=True, slots=True)
class Level:
    """A factor of the chain when the factors below it are absorbed, and how it was absorbed itself.

    Attributes
    ----------
    A : (q, q, J)  Z'V^-1Z of the levels below
    N : (q, q, J)  N'N = K
    K : (q, q, J)
    cross : tuple of (q, q_above, J)
        Z'V^-1Z_above for each factor above.
    rest : (q, nnz)
        Against the columns of the rest; (q, 0) without one.
    """

    A: Array
    N: Array
    K: Array
    cross: tuple[Array, ...]
    rest: Array


@dataclass(frozen=True, slots=True)
class Absorbed:
    """All factors absorbed.

    Attributes
    ----------
    log_det : float
    levels : tuple of Level
        The chain, the finest first.
    rest : Rest or None
    columns : Columns
        [X y] on the way up.
    """

    log_det: float
    levels: tuple[Level, ...]
    rest: Rest | None
    columns: Columns


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns D when the factors have been absorbed in turn.

    Attributes
    ----------
    chain : tuple of (q, m, J)
        Z_t'V_{t-1}^-1 D.
    rest : (K, m)
        The same of the rest, when the chain is absorbed.
    S : (m, m)
        D'V^-1 D.
    """

    chain: tuple[Array, ...]
    rest: Array
    S: Array


def absorb(statistics: LevelStatistics, factors: list[Array], pattern: SparsePattern | None = None) -> Absorbed:
    """Absorb every factor.

    1. Each factor of the chain, from the finest up, in pieces that fit the cache: D = [Z_above, X y] whitened by N is
       squared and taken from the sums of the groups above.
    2. The rest by one factorisation.

    Parameters
    ----------
    statistics : LevelStatistics
    factors : list of (q, q)
        Relative covariance factor of each factor, in the model's order.
    pattern : SparsePattern, optional
        Of a rest that is sparse.
    """
    structure, S = statistics.structure, statistics.XytXy.copy()
    own = [A.copy() if i else A for i, A in enumerate(structure.own)]
    cross = {pair: link.cross.copy() if pair[0] else link.cross for pair, link in structure.links.items()}
    against = [p.data.copy() if i else p.data for i, p in enumerate(structure.patterns)]
    chain = [statistics.ZtXy[t].copy() if i else statistics.ZtXy[t] for i, t in enumerate(structure.chain)]
    rest = stacked(structure, [statistics.ZtXy[t] for t in structure.rest], len(S))
    matrix: Any = structure.matrix
    levels, log_det, count = [], 0.0, len(structure.chain)
    # 1
    for i, t in enumerate(structure.chain):
        L, A, above = factors[t], own[i], range(i + 1, count)
        N, K, identity = np.empty_like(A), np.empty_like(A), np.eye(len(L))[:, :, None]
        for part in pieces(structure, i, len(S)):
            C = batched.cholesky(batched.congruence(L, A[:, :, part]) + identity)
            for a in range(len(L)):
                log_det += 2.0 * float(np.log(C[a, a]).sum())
            N[:, :, part] = batched.solve_lower(C, L.T)
            K[:, :, part] = batched.gram(N[:, :, part])
            W = batched.product(N[:, :, part], chain[i][:, :, part])
            for w in W:
                S -= w @ w.T
            U = {j: batched.product(N[:, :, part], cross[i, j][:, :, part]) for j in above}
            for j in above:
                parent = structure.links[i, j].parent[part]
                take_by_parent(own[j], batched.inner(U[j], U[j]), parent)
                take_by_parent(chain[j], batched.inner(U[j], W), parent)
                for k in range(j + 1, count):
                    take_by_parent(cross[j, k], batched.inner(U[j], U[k]), parent)
            if structure.rest and L.any():
                V = spread(N, against[i], structure.patterns[i])
                matrix = _take_from_rest(structure, i, V, W, U, against, rest, matrix)
        data = against[i] if structure.rest else np.zeros((len(L), 0))
        levels.append(Level(A, N, K, tuple(cross[i, j] for j in above), data))
    # 2
    solved: Rest | None = None
    if structure.rest:
        own_factors = [factors[t] for t in structure.rest]
        if pattern is None:
            solved = factorise_dense(structure, matrix, own_factors)
        else:
            solved = factorise_sparse(structure, pattern, matrix, own_factors)
        log_det += solved.log_det
        S -= solved.inner(rest, rest)
    return Absorbed(log_det, tuple(levels), solved, Columns(tuple(chain), rest, S))


def _take_from_rest(
    structure: Structure,
    i: int,
    V: Array,
    W: Array,
    U: dict[int, Array],
    against: list[Array],
    rest: Array,
    matrix: Any,
) -> Any:
    """Take what a factor of the chain absorbs from the rest's sums; the rest's new matrix."""
    pattern = structure.patterns[i]
    for j, u in U.items():
        for b in range(u.shape[1]):
            values = np.einsum("ie,ie->e", u[:, b, pattern.row], V)
            against[j][b] -= np.bincount(pattern.up[j - i - 1], weights=values, minlength=against[j].shape[1])
    for v, w in zip(V, W, strict=True):
        rows = pattern.rows(v)
        rest -= rows.T @ w.T
        matrix = matrix - pattern_gram(rows, sparse=structure.sparse)
    return matrix


def absorb_columns(statistics: LevelStatistics, absorbed: Absorbed, ZtD: tuple[Array, ...], DtD: Array) -> Columns:
    """Carry further columns through factors that are absorbed already.

    Parameters
    ----------
    statistics : LevelStatistics
    absorbed : Absorbed
    ZtD : tuple of (q, m, J)
        Z'D of every factor, in the model's order.
    DtD : (m, m)
    """
    structure, S = statistics.structure, DtD.copy()
    chain = [ZtD[t].copy() if i else ZtD[t] for i, t in enumerate(structure.chain)]
    rest = stacked(structure, [ZtD[t] for t in structure.rest], DtD.shape[0])
    for i, level in enumerate(absorbed.levels):
        for part in pieces(structure, i, len(S)):
            W = batched.product(level.N[:, :, part], chain[i][:, :, part])
            for w in W:
                S -= w @ w.T
            for j, c in enumerate(level.cross, start=i + 1):
                taken = batched.inner(batched.product(level.N[:, :, part], c[:, :, part]), W)
                take_by_parent(chain[j], taken, structure.links[i, j].parent[part])
            if structure.rest:
                pattern = structure.patterns[i]
                for v, w in zip(spread(level.N, level.rest, pattern), W, strict=True):
                    rest -= pattern.rows(v).T @ w.T
    if absorbed.rest is not None:
        S -= absorbed.rest.inner(rest, rest)
    return Columns(tuple(chain), rest, S)


def pieces(structure: Structure, i: int, m: int) -> list[slice]:
    """Slices of a factor's groups that fit the cache with m columns; all at once where there is a rest to be met."""
    q, _, J = structure.own[i].shape
    width = J if structure.rest else max(256, CHUNK_BYTES // (8 * q * (m + q)))
    return [slice(start, min(start + width, J)) for start in range(0, J, width)]


def take_by_parent(total: Array, values: Array, parent: IntArray) -> None:
    """Take sums over children of (..., n) values from (..., J_parent); siblings stand together."""
    first = np.flatnonzero(np.diff(parent, prepend=-1))
    total[..., parent[first]] -= np.add.reduceat(values, first, axis=-1)


def stacked(structure: Structure, parts: list[Array], m: int) -> Array:
    """(q, m, J) of each factor of the rest as (K, m), in the rest's order of columns."""
    flat = [B.transpose(2, 0, 1).reshape(B.shape[0] * B.shape[2], m) for B in parts]
    return np.concatenate([np.zeros((0, m)), *flat])


def unstacked(structure: Structure, whole: Array) -> list[Array]:
    """(K, m) of the rest as (q, m, J) of each factor."""
    m = whole.shape[1]
    return [
        np.ascontiguousarray(whole[o : o + J * q].reshape(J, q, m).transpose(1, 2, 0))
        for o, (J, q) in zip(structure.offsets, structure.sizes, strict=True)
    ]


def spread(left: Array, data: Array, pattern: Pattern) -> Array:
    """(r, nnz) the product of left_j (r, q, J) with the rows (q, nnz) of a pattern."""
    result = left[:, 0, pattern.row] * data[0]
    for k in range(1, len(data)):
        result += left[:, k, pattern.row] * data[k]
    return np.asarray(result)
