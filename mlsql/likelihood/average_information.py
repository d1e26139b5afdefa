"""Average information: working columns f = Z_t dLambda Z_t'P y carried through the factors in one pass.

f'Pf needs Z'F of every factor, which is Z'Z times the weights, and its absorption; both are done piece by piece on the
way up, so that nothing of the size of the finest factor times all columns is held.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood import batched
from mlsql.likelihood.absorb import (
    Absorbed,
    pieces,
    spread,
    stacked,
    take_by_parent,
    unstacked,
)
from mlsql.moments.levels import LevelStatistics

Entries = Sequence[tuple[int, int]]


def average_information(
    stats: LevelStatistics, absorbed: Absorbed, scores: list[Array], whitener: Array, entries: Entries
) -> Array:
    """s2 f'Pf (k, k) of the working columns of k entries of Lambda.

    Parameters
    ----------
    stats : LevelStatistics
    absorbed : Absorbed
    scores : list of (q, J)
        Z_t'V^-1(y - X beta) of each factor, in the model's order.
    whitener : (p, p)
        whitener' whitener = (s2 X'V^-1X)^-1.
    entries : sequence of (int, int)
        Row and column of each entry.
    """
    structure, p, k = stats.structure, stats.p, len(entries)
    rest_weights = stacked(structure, [_weights(stats, t, scores[t], entries) for t in structure.rest], k)
    rest_raw = np.asarray(structure.matrix @ rest_weights) if structure.rest else rest_weights.copy()
    rest_taken = np.zeros_like(rest_raw)
    raw = [np.zeros((len(A), k, A.shape[2])) if i else None for i, A in enumerate(structure.own)]
    taken = [None if r is None else np.zeros_like(r) for r in raw]
    FtF, XtF, lost, mixed = np.zeros((k, k)), np.zeros((p, k)), np.zeros((k, k)), np.zeros((p, k))
    rows = structure.rows()
    for i, t in enumerate(structure.chain):
        level, above = absorbed.levels[i], range(i + 1, len(structure.chain))
        for part in pieces(structure, i, k + p):
            score = scores[t][:, part]
            w = _weights(stats, t, score, entries)
            F = batched.product(structure.own[i][:, :, part], w)
            for j in above:
                link = structure.links[i, j]
                parent, C = link.parent[part], link.cross[:, :, part]
                there = _weights(stats, structure.chain[j], scores[structure.chain[j]][:, parent], entries)
                F += batched.product(C, there)
                pending = raw[j]
                assert pending is not None
                take_by_parent(pending, -batched.inner(C, w), parent)
            if structure.rest:
                for a, matrix in enumerate(rows[i]):
                    F[a] += (matrix @ rest_weights).T
                    rest_raw += matrix.T @ w[a].T
            below, absorbed_below = raw[i], taken[i]
            if below is not None and absorbed_below is not None:
                F += below[:, :, part]
            X = stats.ZtXy[t][:, :p, part]
            for a in range(len(w)):
                FtF += w[a] @ F[a].T
                XtF += X[a] @ w[a].T
            if absorbed_below is not None:
                F += absorbed_below[:, :, part]
            N = level.N[:, :, part]
            W, V = batched.product(N, F), batched.product(N, absorbed.columns.chain[i][:, :p, part])
            for one, other in zip(W, V, strict=True):
                lost += one @ one.T
                mixed += other @ one.T
            for j in above:
                U = batched.product(N, level.cross[j - i - 1][:, :, part])
                pending = taken[j]
                assert pending is not None
                take_by_parent(pending, batched.inner(U, W), structure.links[i, j].parent[part])
            if structure.rest:
                pattern = structure.patterns[i]
                for v, one in zip(spread(level.N, level.rest, pattern), W, strict=True):
                    rest_taken += pattern.rows(v).T @ one.T
    if absorbed.rest is not None:
        FtF += rest_weights.T @ rest_raw
        X = stacked(structure, [stats.ZtXy[t][:, :p] for t in structure.rest], p)
        XtF += X.T @ rest_weights
        left = rest_raw - rest_taken
        both = absorbed.rest.inner(np.concatenate([absorbed.columns.rest[:, :p], left], axis=1), left)
        mixed += both[:p]
        lost += both[p:]
    explained = whitener @ (XtF - mixed)
    # F'w is a sum over ordered pairs of factors, symmetric up to rounding
    return (FtF + FtF.T) / 2.0 - lost - explained.T @ explained


def _weights(stats: LevelStatistics, t: int, score: Array, entries: Entries) -> Array:
    """(q, k, n) dLambda_i times the scores of a factor's groups; zero for entries of other factors."""
    local = {int(c): a for a, c in enumerate(stats.columns[t])}
    w = np.zeros((len(local), len(entries), score.shape[1]))
    for i, (a, b) in enumerate(entries):
        if a in local:
            w[local[a], i] = score[local[b]]
            w[local[b], i] = score[local[a]]
    return w


def working_columns(stats: LevelStatistics, weights: list[Array]) -> tuple[tuple[Array, ...], Array, Array]:
    """Z'F of every factor, [X y]'F and F'F for columns F = sum_t Z_t w_t.

    Parameters
    ----------
    stats : LevelStatistics
    weights : list of (q, m, J)
        w of each factor, in the model's order.
    """
    structure, m = stats.structure, weights[0].shape[1]
    ZtF: dict[int, Array] = {}
    chain = structure.chain
    rest = stacked(structure, [weights[t] for t in structure.rest], m)
    onto = structure.matrix @ rest if structure.rest else rest
    for i, t in enumerate(chain):
        ZtF[t] = np.einsum("abj,bmj->amj", structure.own[i], weights[t], optimize=True)
    for (i, j), link in structure.links.items():
        low, high = chain[i], chain[j]
        ZtF[low] += np.einsum("abj,bmj->amj", link.cross, weights[high][:, :, link.parent], optimize=True)
        sums = np.einsum("abj,amj->bmj", link.cross, weights[low], optimize=True)
        ZtF[high] += np.add.reduceat(sums, link.starts, axis=-1)
    for i, rows in enumerate(structure.rows()):
        for a, matrix in enumerate(rows):
            ZtF[chain[i]][a] += (matrix @ rest).T
            onto = onto + matrix.T @ weights[chain[i]][a].T
    ZtF |= dict(zip(structure.rest, unstacked(structure, np.asarray(onto)), strict=True))
    FtF, XytF = np.zeros((m, m)), np.zeros((stats.p + 1, m))
    for t, w in enumerate(weights):
        flat = w.transpose(1, 0, 2).reshape(m, -1)
        FtF += flat @ ZtF[t].transpose(1, 0, 2).reshape(m, -1).T
        XytF += stats.ZtXy[t].transpose(1, 0, 2).reshape(stats.p + 1, -1) @ flat.T
    return tuple(ZtF[t] for t in range(len(weights))), XytF, FtF
