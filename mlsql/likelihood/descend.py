"""On the way down: Z_t'V^-1 D and Z_t'V^-1 Z_t of every factor, V the whole covariance matrix.

With u_s(D) = Lambda_s Z_s'V^-1 D, the effects that columns D would have, and Phi their joint covariance for all groups
above a group (both in units of sigma2),

    Z_t'V^-1 D = P_t (Z_t'V_{t-1}^-1 D - sum_{s above t} Z_t'V_{t-1}^-1 Z_s u_s(D)),   P_t = I - A_t K_t,
    Z_t'V^-1 Z_t = P_t A_t - (P_t C_t) Phi (P_t C_t)',   C_t = Z_t'V_{t-1}^-1 [Z_s],

so that each factor needs only what its parents know: a smoother that runs from the top down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from mlsql._arrays import Array, IntArray
from mlsql.likelihood import batched
from mlsql.likelihood.absorb import Absorbed, Columns, pieces, unstacked
from mlsql.likelihood.rest import pattern_gram
from mlsql.moments.levels import LevelStatistics


@dataclass(frozen=True, slots=True)
class Piece:
    """Some groups of one factor on the way down.

    Attributes
    ----------
    factor : int
        Position in the model's order.
    part : slice
    D : (q, m, n)
        Z_t'V^-1 D.
    G : (q, q, n)
        Z_t'V^-1 Z_t; of a chain with a rest, what it would be if the rest were fixed.
    """

    factor: int
    part: slice
    D: Array
    G: Array


def descend(statistics: LevelStatistics, absorbed: Absorbed, columns: Columns) -> Iterator[Piece]:
    """Go down from the rest and the top of the chain to the finest factor, piece by piece.

    1. The rest.
    2. Each factor of the chain: take out what the effects above explain; hand its own effects and their covariance
       with those above to the factor below.
    """
    structure, count = statistics.structure, len(absorbed.levels)
    # 1
    solved = None
    if absorbed.rest is not None:
        solved = absorbed.rest.solve(columns.rest)
        parts = unstacked(structure, np.asarray(columns.rest - absorbed.rest.A @ solved))
        for t, D, G in zip(structure.rest, parts, absorbed.rest.diagonal_blocks(), strict=True):
            yield Piece(t, slice(0, D.shape[2]), D, G)
    # 2
    effects: dict[int, Array] = {}
    Phi = np.zeros((0, 0, 1))
    for i in range(count - 1, -1, -1):
        level, t, above = absorbed.levels[i], structure.chain[i], range(i + 1, count)
        q, _, J = level.A.shape
        m, lowest = columns.chain[i].shape[1], i == 0
        up = None if i == count - 1 else structure.links[i, i + 1].parent
        own = np.empty((q, m, J)) if not lowest else None
        wider = np.empty((q + len(Phi), q + len(Phi), J)) if not lowest else None
        for part in pieces(structure, i, m):
            K, A = level.K[:, :, part], level.A[:, :, part]
            P = batched.left_over(A, K)
            left = columns.chain[i][:, :, part]
            for j in above:
                parents = structure.links[i, j].parent[part]
                left = left - batched.product(level.cross[j - i - 1][:, :, part], effects[j][:, :, parents])
            if solved is not None:
                pattern = structure.patterns[i]
                rows = [pattern.rows(v)[part] for v in level.rest]
                left = left - np.array([(r @ solved).T for r in rows])
            D = batched.product(P, left)
            G = batched.product(P, A)
            own_phi = K
            if up is not None:
                C = np.concatenate([level.cross[j - i - 1][:, :, part] for j in above], axis=1)
                known = np.ascontiguousarray(Phi[:, :, up[part]])
                PC = batched.product(P, C)
                G = G - batched.product(batched.product(PC, known), PC.transpose(1, 0, 2))
                if wider is not None:
                    KC = batched.product(K, C)
                    joint = -batched.product(KC, known)
                    own_phi = K - batched.product(joint, KC.transpose(1, 0, 2))
                    wider[:q, q:, part], wider[q:, :q, part] = joint, joint.transpose(1, 0, 2)
                    wider[q:, q:, part] = known
            if own is not None and wider is not None:
                wider[:q, :q, part] = own_phi
                # u = Lambda Z'V^-1 D; K (D - C u) is the same without Lambda
                own[:, :, part] = batched.product(K, left)
            yield Piece(t, part, D, G)
        if own is not None and wider is not None:
            effects[i], Phi = own, wider


def descend_columns(statistics: LevelStatistics, absorbed: Absorbed, columns: Columns) -> tuple[Array, ...]:
    """Z_t'V^-1 D (q, m, J) of every factor, in the model's order."""
    m = columns.S.shape[0]
    found = [np.empty((len(c), m, i.n_groups)) for c, i in zip(statistics.columns, statistics.incidences, strict=True)]
    for piece in descend(statistics, absorbed, columns):
        found[piece.factor][:, :, piece.part] = piece.D
    return tuple(found)


def information_blocks(statistics: LevelStatistics, absorbed: Absorbed) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Z_t'V^-1[X y] (q, p + 1, J) and Z_t'V^-1 Z_t (q, q, J) by group of every factor, in the model's order."""
    sizes = [(len(c), i.n_groups) for c, i in zip(statistics.columns, statistics.incidences, strict=True)]
    D, G = [np.empty((q, statistics.p + 1, J)) for q, J in sizes], [np.empty((q, q, J)) for q, J in sizes]
    for piece in descend(statistics, absorbed, absorbed.columns):
        D[piece.factor][:, :, piece.part], G[piece.factor][:, :, piece.part] = piece.D, piece.G
    if absorbed.rest is not None:
        for t, rows in zip(statistics.structure.chain, rest_rows(statistics, absorbed), strict=True):
            G[t] -= absorbed.rest.quadratic(rows)
    return tuple(D), tuple(G)


def rest_traces(statistics: LevelStatistics, absorbed: Absorbed) -> list[Array]:
    """What the rest takes from the sums of Z_t'V^-1 Z_t over groups, for each factor of the chain (q, q): traces."""
    rest, found = absorbed.rest, []
    assert rest is not None
    for rows in rest_rows(statistics, absorbed):
        taken = np.zeros((len(rows), len(rows)))
        for a, left in enumerate(rows):
            for b in range(a + 1):
                if not rest.zero:
                    gram = pattern_gram(left, rows[b] if b < a else None, sparse=statistics.structure.sparse)
                    taken[a, b] = taken[b, a] = rest.trace_with(gram)
        found.append(taken)
    return found


def rest_rows(statistics: LevelStatistics, absorbed: Absorbed) -> list[list[csr_array]]:
    """Z_t'V^-1 Z_rest of each factor of the chain, the rest not yet absorbed: a sparse (J, K) matrix per column."""
    structure, count = statistics.structure, len(absorbed.levels)
    found: list[list[csr_array]] = [[] for _ in range(count)]
    effects: dict[int, list[csr_array]] = {}
    for i in range(count - 1, -1, -1):
        level, pattern = absorbed.levels[i], structure.patterns[i]
        left = [pattern.rows(v) for v in level.rest]
        for j in range(i + 1, count):
            parent = structure.links[i, j].parent
            for b, effect in enumerate(effects[j]):
                at = effect[parent]
                for a, values in enumerate(level.cross[j - i - 1][:, b]):
                    left[a] = left[a] - _scaled(at, values)
        found[i] = _combined(batched.left_over(level.A, level.K), left)
        if i:
            effects[i] = _combined(level.K, left)
    return found


def _combined(M: Array, rows: list[csr_array]) -> list[csr_array]:
    """The product of M_j (q, q, J) with the rows of each group."""
    found = []
    for own in M:
        total = _scaled(rows[0], own[0])
        for b in range(1, len(rows)):
            total = total + _scaled(rows[b], own[b])
        found.append(csr_array(total))
    return found


def _scaled(rows: csr_array, values: Array) -> csr_array:
    count: IntArray = np.diff(rows.indptr)
    return csr_array((rows.data * np.repeat(values, count), rows.indices, rows.indptr), shape=rows.shape)
