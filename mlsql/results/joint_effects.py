"""Effects of several factors together: how those of any two groups vary around their estimates.

Given the data and the fixed effects, the effects of all factors have covariance matrix s2 (Lambda^-1 + Z'Z)^-1.  It is
never formed.  With the factors absorbed one after another (`likelihood.absorb`), the effect of a group of the chain is

    u_t = K_t (Z_t'V_{t-1}^-1 (y - X beta) - sum over the groups above and the rest of coupling x effect) + error,

an error of variance s2 K_t that is independent of them: estimates, and covariances of any two groups, follow from those
of the groups above and in the end from the matrix K of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from mlsql._arrays import Array, IntArray
from mlsql.likelihood import batched
from mlsql.likelihood.absorb import Absorbed
from mlsql.likelihood.dense_rest import ROWS_BYTES
from mlsql.likelihood.descend import descend_columns, information_blocks, rest_rows
from mlsql.moments.levels import LevelStatistics
from mlsql.results.estimates import Estimates

Rows = tuple[csr_array, ...]


@dataclass(frozen=True, slots=True)
class JointEffects:
    """Effects of all factors, in the user's columns or those of given transforms.

    Where the factor is a membership, a *group* is here one of the sets of units that rows have, and its effect their
    weighted sum.

    Attributes
    ----------
    estimates : Estimates
    statistics : LevelStatistics
    absorbed : Absorbed
    beta_transform, u_transform : (p, p), (q, q)
        From the internal columns.
    sets : mapping of int to csr_array
        (sets, units) weights of the factors that are memberships.
    solved : tuple of (q, p + 1, J)
        (Lambda^-1 + Z'Z)^-1 Z'[X y] of each factor, by group or unit, in the internal columns.
    rest_rows : tuple of Rows
        How the effects of each factor's groups move with those of the rest, times -1, the chain's own errors aside: one
        (groups, K) matrix per column.  Empty unless `complete` and there is a rest.
    """

    estimates: Estimates
    statistics: LevelStatistics
    absorbed: Absorbed
    beta_transform: Array
    u_transform: Array
    sets: Mapping[int, csr_array]
    solved: tuple[Array, ...]
    rest_rows: tuple[Rows, ...]

    @property
    def complete(self) -> bool:
        """Covariances of any two groups can be had: False when the rest is so large that K is not formed."""
        return not self.statistics.structure.sparse

    def n_groups(self, t: int) -> int:
        """Groups of a factor, sets of units of a membership."""
        return int(self.sets[t].shape[0]) if t in self.sets else self.statistics.incidences[t].n_groups

    def effects(self, t: int) -> Array:
        """(q, groups) empirical-Bayes residuals."""
        contrast = np.append(-self.estimates.evaluation.beta, 1.0)
        return self._by_group(t, self._back(t) @ np.tensordot(contrast, self.solved[t], axes=(0, 1)))

    def shrunken(self, t: int) -> Array:
        """(q, p, groups) how the effects move with the fixed effects: u = u0 - shrunken @ beta."""
        back = np.linalg.inv(self.beta_transform)
        moved = np.einsum("ab,bpj,pf->afj", self._back(t), self.solved[t][:, :-1], back, optimize=True)
        return self._by_group(t, moved)

    def conditional(self, t: int) -> Array:
        """(q, q, groups) Var(u | y), the fixed effects known.  Nan for memberships unless `complete`."""
        if self.complete:
            groups = np.arange(self.n_groups(t))
            return self.covariance(t, groups, t, groups)
        places = self.statistics.columns[t]
        if t in self.sets:
            return np.full((len(places), len(places), self.n_groups(t)), np.nan)
        Lambda = self.estimates.Lambda[np.ix_(places, places)]
        _, G = information_blocks(self.statistics, self.absorbed)
        left = np.einsum("ab,bcj,cd->adj", Lambda, G[t], Lambda, optimize=True)
        return self._scaled(t, t, Lambda[:, :, None] - left)

    def covariance(self, t: int, j: IntArray, s: int, k: IntArray) -> Array:
        """(q_t, q_s, m) Cov(u_t, u_s | y) of groups j of factor t and groups k of factor s, the fixed effects known.

        Only when `complete`.
        """
        chain, rest = self.statistics.structure.chain, self.absorbed.rest
        found = np.zeros((len(self.statistics.columns[t]), len(self.statistics.columns[s]), len(j)))
        if t in chain and s in chain:
            found = self._in_chain(chain.index(t), j, chain.index(s), k)
        if rest is not None and not rest.zero:
            found = found + self._through_rest(t, j, s, k)
        return self._scaled(t, s, found)

    def _by_group(self, t: int, values: Array) -> Array:
        """Values (..., units) of a membership as weighted sums over each set."""
        if t not in self.sets:
            return values
        flat = values.reshape(-1, values.shape[-1])
        return np.asarray(self.sets[t] @ flat.T).T.reshape(*values.shape[:-1], -1)

    def _back(self, t: int) -> Array:
        places = self.statistics.columns[t]
        return np.asarray(self.u_transform[np.ix_(places, places)])

    def _scaled(self, t: int, s: int, S: Array) -> Array:
        turned = np.einsum("ab,bcj,dc->adj", self._back(t), S, self._back(s), optimize=True)
        return np.asarray(self.estimates.sigma2 * turned)

    def _in_chain(self, i: int, j: IntArray, h: int, k: IntArray) -> Array:
        """Covariances with the rest's effects known; i and h are positions in the chain.

        Zero for groups that no group above holds both of.
        """
        if i > h:
            return self._in_chain(h, k, i, j).transpose(1, 0, 2)
        level, links = self.absorbed.levels[i], self.statistics.structure.links
        K = level.K[:, :, j]
        found = K * (j == k) if i == h else np.zeros((len(K), len(self.absorbed.levels[h].K), len(j)))
        for r, cross in enumerate(level.cross, start=i + 1):
            above = self._in_chain(r, links[i, r].parent[j], h, k)
            found = found - batched.product(K, batched.product(cross[:, :, j], above))
        return found

    def _through_rest(self, t: int, j: IntArray, s: int, k: IntArray) -> Array:
        """What the uncertainty of the rest's effects adds: rows of t times K times rows of s, in blocks of j."""
        structure, rest = self.statistics.structure, self.absorbed.rest
        assert rest is not None
        if s in structure.chain and t not in structure.chain:
            return self._through_rest(s, k, t, j).transpose(1, 0, 2)
        left, right = self.rest_rows[t], self.rest_rows[s]
        found = np.empty((len(left), len(right), len(j)))
        groups, at = np.unique(j, return_inverse=True)
        order = np.argsort(at, kind="stable")
        bounds = np.searchsorted(at[order], np.arange(len(groups) + 1))
        step = max(1, ROWS_BYTES // (8 * structure.width))
        for start in range(0, len(groups), step):
            stop = min(start + step, len(groups))
            pairs = order[bounds[start] : bounds[stop]]
            for a, E in enumerate(left):
                half = np.asarray(E[groups[start:stop]] @ rest.K)
                for b, F in enumerate(right):
                    found[a, b, pairs] = self._against(s, b, F, half, at[pairs] - start, k[pairs])
        return found

    def _against(self, s: int, b: int, F: csr_array, half: Array, row: IntArray, k: IntArray) -> Array:
        """(m,) products of rows of `half` with rows k of F, which has column b of factor s."""
        structure = self.statistics.structure
        if s in structure.rest and s not in self.sets:
            place = structure.rest.index(s)
            return np.asarray(-half[row, structure.offsets[place] + k * structure.sizes[place][1] + b])
        found = np.empty(len(k))
        # a group may meet many: its row is copied for each, in blocks
        step = max(1, ROWS_BYTES // (8 * structure.width))
        for first in range(0, len(k), step):
            own = slice(first, first + step)
            found[own] = np.asarray(F[k[own]].multiply(half[row[own]]).sum(axis=1)).ravel()
        return found


def joint_effects(
    estimates: Estimates,
    sets: Mapping[int, csr_array] | None = None,
    beta_transform: Array | None = None,
    u_transform: Array | None = None,
) -> JointEffects:
    """The effects of all factors of a model with several.

    Parameters
    ----------
    estimates : Estimates
    sets : mapping of int to csr_array, optional
        For each factor that is a membership, by position, the weights (sets, units) of the sets of units of interest.
    beta_transform, u_transform : (p, p), (q, q), optional
        From the internal columns of the fixed and random part to others; to the user's when not given.
    """
    stats, absorbed = estimates.levels, estimates.evaluation.state
    assert stats is not None
    assert isinstance(absorbed, Absorbed)
    known = sets or {}
    Lambda = [estimates.Lambda[np.ix_(places, places)] for places in stats.columns]
    # (Lambda^-1 + Z'Z)^-1 Z' = Lambda Z'V^-1, for singular Lambda too
    scores = descend_columns(stats, absorbed, absorbed.columns)
    rows: tuple[Rows, ...] = ()
    if absorbed.rest is not None and not stats.structure.sparse:
        rows = _rest_rows(stats, absorbed, known, Lambda)
    return JointEffects(
        estimates=estimates,
        statistics=stats,
        absorbed=absorbed,
        beta_transform=stats.beta_transform if beta_transform is None else beta_transform,
        u_transform=stats.u_transform if u_transform is None else u_transform,
        sets=known,
        solved=tuple(np.tensordot(own, D, axes=1) for own, D in zip(Lambda, scores, strict=True)),
        rest_rows=rows,
    )


def _rest_rows(
    stats: LevelStatistics, absorbed: Absorbed, sets: Mapping[int, csr_array], Lambda: Sequence[Array]
) -> tuple[Rows, ...]:
    structure, found = stats.structure, {}
    for t, offset, (J, q) in zip(structure.rest, structure.offsets, structure.sizes, strict=True):
        weights = sets.get(t)
        own = csr_array((np.ones(J), (np.arange(J), np.arange(J)))) if weights is None else weights
        entries = own.tocoo()
        places = [(entries.row, offset + entries.col.astype(np.int64) * q + a) for a in range(q)]
        shape = (own.shape[0], structure.width)
        found[t] = tuple(csr_array((-entries.data, place), shape=shape) for place in places)
    for t, below in zip(structure.chain, rest_rows(stats, absorbed), strict=True):
        found[t] = tuple(csr_array(sum(x * row for x, row in zip(own, below, strict=True))) for own in Lambda[t])
    return tuple(found[t] for t in range(len(stats.columns)))
