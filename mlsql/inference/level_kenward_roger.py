"""Kenward and Roger's P, Q and traces for several factors; see `curvature` for what they are.

With F = s2 V^-1 and R_t = Z_t'FX, the derivatives along an entry of T_t move the rows by C_i = sum over groups of
Z_t D_i R_t, and along sigma2 by C = FX = X - sum of Z_t Lambda_t R_t: all of them columns that the factors absorb like
any others, which gives Q_ij = C_i'FC_j.  The traces are over pairs of groups,

    tr(F G_i F G_j) = sum of tr(D_i H_gh D_j H_hg),   H = Z'FZ,   Z'F^2Z = H - H Lambda H,

so that H is needed between all groups that rows of one part of the data connect: a top group where factors are nested,
everything where they are crossed.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from mlsql._arrays import Array, IntArray
from mlsql.errors import FitError
from mlsql.inference.level_satterthwaite import whitened_scores
from mlsql.likelihood.absorb import Absorbed, absorb_columns
from mlsql.likelihood.average_information import working_columns
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.curvature import Curvature
from mlsql.likelihood.deviance import Evaluation
from mlsql.likelihood.threads import THREADED, suited
from mlsql.moments.levels import LevelStatistics

DENSE = 5_000
"""Random columns of one part of the data up to which H is formed: a copy then takes 0.2 GB, of which there are six at
once, and all products about 20 seconds on two cores; these grow with the square and the cube of the columns."""


def level_curvature(stats: LevelStatistics, L: Array, evaluation: Evaluation, covariance: Covariance) -> Curvature:
    """P, Q and the traces of a model with several grouping factors.

    Parameters
    ----------
    stats : LevelStatistics
    L : (q, q)
        Relative covariance factor of the evaluation.
    evaluation : Evaluation
    covariance : Covariance

    Raises
    ------
    FitError
        When a part of the data has more than `DENSE` random columns.
    """
    parts = _parts(stats)
    largest = max(sum(len(g) * len(c) for g, c in zip(part, stats.columns, strict=True)) for part in parts)
    if largest > DENSE:
        joined = " x ".join(f"{len(g):,}" for g in max(parts, key=lambda p: sum(map(len, p))))
        raise FitError(
            f"df='kenward_roger' needs all products between groups that the data connect: {largest:,} random columns "
            f"here (groups: {joined}), at most {DENSE:,} are formed; use df='satterthwaite'"
        )
    s2, directions = evaluation.sigma2, covariance.directions()
    whitener = evaluation.whitener
    R = tuple(np.empty((len(c), stats.p, i.n_groups)) for c, i in zip(stats.columns, stats.incidences, strict=True))
    for t, groups, values in whitened_scores(stats, evaluation, whitener):
        R[t][:, :, groups] = values
    C = _moved_rows(stats, L, evaluation, whitener, R, directions)
    k, p = len(directions), stats.p
    Q = C.reshape(k + 1, p, k + 1, p).transpose(0, 2, 1, 3)
    first = np.empty((k + 1, p, p))
    first[:k] = sum(
        np.einsum("iab,apj,brj->ipr", directions[:, c][:, :, c], own, own, optimize=True)
        for c, own in zip(stats.columns, R, strict=True)
    )
    # X'F^2X: minus the derivative along sigma2
    first[k] = np.eye(p) - sum(
        np.einsum("ab,apj,brj->pr", (L @ L.T)[np.ix_(c, c)], own, own, optimize=True)
        for c, own in zip(stats.columns, R, strict=True)
    )
    # threads pay for large matrices alone
    with suited(stats) if largest < THREADED else nullcontext():
        traces = _traces(stats, L, directions, parts)
    return Curvature(whitener, -first / s2**2, Q / s2**3, traces / s2**2)


def _moved_rows(
    stats: LevelStatistics,
    L: Array,
    evaluation: Evaluation,
    whitener: Array,
    R: tuple[Array, ...],
    directions: Array,
) -> Array:
    """(m p, m p) C'FC of the columns C_i, those of sigma2 last, in whitened columns of X."""
    absorbed, p, k = evaluation.state, stats.p, len(directions)
    assert isinstance(absorbed, Absorbed)
    Lambda = L @ L.T
    weights = []
    for c, own in zip(stats.columns, R, strict=True):
        moves = np.concatenate([directions[:, c][:, :, c], -Lambda[np.ix_(c, c)][None]])
        weights.append(np.einsum("iab,bpj->aipj", moves, own, optimize=True).reshape(len(c), (k + 1) * p, -1))
    ZtC, XytC, CtC = working_columns(stats, weights)
    # the columns of sigma2 have X itself beside what the random coefficients take of it
    last = slice(k * p, None)
    XtC = whitener @ XytC[:p]
    CtC[last] += XtC
    CtC[:, last] += XtC.T
    CtC[last, last] += whitener @ stats.XytXy[:p, :p] @ whitener.T
    for Z, B in zip(ZtC, stats.ZtXy, strict=True):
        Z[:, last] += np.matmul(whitener, B[:, :p])
    return absorb_columns(stats, absorbed, ZtC, CtC).S


def _parts(stats: LevelStatistics) -> list[list[IntArray]]:
    """Groups of each factor, in the model's order, in every part of the data that shares no group with another."""
    structure = stats.structure
    everything = [np.arange(i.n_groups) for i in stats.incidences]
    if structure.rest:
        return [everything]
    top = len(structure.chain) - 1
    whole = stats.incidences[structure.chain[top]].n_groups
    # siblings stand together, so that the groups within each of the top are a range
    ends: dict[int, IntArray] = {structure.chain[top]: np.arange(whole + 1)}
    for i in range(top):
        ends[structure.chain[i]] = np.append(structure.links[i, top].starts, len(structure.links[i, top].parent))
    return [[np.arange(ends[t][g], ends[t][g + 1]) for t in range(len(stats.columns))] for g in range(whole)]


def _traces(stats: LevelStatistics, L: Array, directions: Array, parts: list[list[IntArray]]) -> Array:
    """(m, m) tr(F G_i F G_j), sigma2 last.

    1. H and HL of each part.
    2. tr(D_i H D_j H) over pairs of groups, and Z'FZ and Z'F^2Z within groups.
    """
    q, k = stats.q, len(directions)
    pairs, once, twice = np.zeros((q, q, q, q)), np.zeros((q, q)), np.zeros((q, q))
    factors = [L[np.ix_(c, c)] for c in stats.columns]
    for part in parts:
        # 1
        A, places = _products(stats, part)
        AL = _times(A, places, factors)
        M = _times(AL.T, places, factors)
        M[np.diag_indices_from(M)] += 1.0
        half = solve_triangular(np.linalg.cholesky(M), AL.T, lower=True, check_finite=False)
        H = A - half.T @ half
        HL = _times(H, places, factors)
        # 2
        for own, left in zip(places, stats.columns, strict=True):
            for other, right in zip(places, stats.columns, strict=True):
                blocks = H[own, other].reshape(-1, len(left), H[:, other].shape[1] // len(right), len(right))
                flat = blocks.transpose(1, 3, 0, 2).reshape(len(left) * len(right), -1)
                squares = (flat @ flat.T).reshape(len(left), len(right), len(left), len(right))
                # D_i[a, b] H[b, c] D_j[c, d] H[a, d]
                pairs[np.ix_(left, left, right, right)] += squares.transpose(2, 0, 1, 3)
            within = np.einsum("gagb->ab", H[own, own].reshape(-1, len(left), len(H[own]) // len(left), len(left)))
            rows = HL[own].reshape(-1, len(left), HL.shape[1])
            once[np.ix_(left, left)] += within
            twice[np.ix_(left, left)] += within - np.einsum("gak,gbk->ab", rows, rows, optimize=True)
    traces = np.empty((k + 1, k + 1))
    traces[:k, :k] = np.einsum("iab,abcd,jcd->ij", directions, pairs, directions, optimize=True)
    traces[:k, k] = traces[k, :k] = np.einsum("iab,ab->i", directions, twice)
    # tr F = n - tr(Lambda H), tr F^2 = tr F - tr(Lambda Z'F^2Z)
    traces[k, k] = stats.n_rows - float(np.sum(L @ L.T * (once + twice)))
    return traces


def _times(B: Array, places: list[slice], factors: list[Array]) -> Array:
    """B (n, K) times L, group by group."""
    result = np.empty(B.shape)
    for own, L in zip(places, factors, strict=True):
        result[:, own] = (B[:, own].reshape(len(B), -1, len(L)) @ L).reshape(len(B), -1)
    return result


def _products(stats: LevelStatistics, part: list[IntArray]) -> tuple[Array, list[slice]]:
    """Z'Z (K, K) of a part, and where every factor's columns are in it, a group's together."""
    structure = stats.structure
    sizes = [len(g) * len(c) for g, c in zip(part, stats.columns, strict=True)]
    place = [np.arange(o, o + n) for o, n in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)]
    A = np.zeros((sum(sizes), sum(sizes)))
    for i, t in enumerate(structure.chain):
        at = place[t].reshape(len(part[t]), -1)
        _scatter(A, at, at, structure.own[i][:, :, part[t]])
        for j in range(i + 1, len(structure.chain)):
            s, link = structure.chain[j], structure.links[i, j]
            above = place[s].reshape(len(part[s]), -1)[link.parent[part[t]] - part[s][0]]
            _scatter(A, at, above, link.cross[:, :, part[t]])
    if structure.rest:
        where = np.concatenate([place[t] for t in structure.rest])
        matrix: Any = structure.matrix
        A[np.ix_(where, where)] = matrix.toarray() if structure.sparse else matrix
        for t, rows in zip(structure.chain, structure.rows(), strict=True):
            for a, values in enumerate(rows):
                own = place[t][a :: len(rows)]
                A[np.ix_(own, where)] = values.toarray()
                A[np.ix_(where, own)] = A[np.ix_(own, where)].T
    return A, [slice(o, o + n) for o, n in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)]


def _scatter(A: Array, rows: IntArray, columns: IntArray, blocks: Array) -> None:
    """Put (q, r, J) blocks at rows (J, q) and columns (J, r), and their transposes opposite."""
    values = np.moveaxis(blocks, 2, 0)
    A[rows[:, :, None], columns[:, None, :]] = values
    A[columns[:, :, None], rows[:, None, :]] = np.swapaxes(values, 1, 2)
