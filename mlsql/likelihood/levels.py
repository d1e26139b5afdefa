"""The Gaussian deviance of models with several grouping factors: nested, crossed, multiple membership.

The same quantities as in `gaussian`, with V = I + sum_t Z_t Lambda_t Z_t'.  The gradient is exact.  The Hessian is the
average information's,

    AI(t, s) = f_t'P f_s / s2,   f_t = Z_t dLambda_t Z_t'P y,

which needs no products between groups: each f is one more column to carry through the factors (Gilmour, Thompson &
Cullis 1995, Biometrics 51, 1440).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood.absorb import Absorbed, absorb
from mlsql.likelihood.average_information import average_information
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.descend import descend, rest_traces
from mlsql.likelihood.deviance import Deviance, Evaluation, Slopes
from mlsql.likelihood.sparse_rest import SparsePattern
from mlsql.likelihood.threads import suited
from mlsql.moments.levels import LevelStatistics


@dataclass(frozen=True, slots=True)
class LevelDeviance(Deviance):
    """The deviance of a model with several grouping factors.

    Attributes
    ----------
    statistics : LevelStatistics
    method : {"REML", "ML"}
    pattern : SparsePattern or None
        Of a rest that is sparse.
    """

    statistics: LevelStatistics
    pattern: SparsePattern | None = None

    def at(self, L: Array, *, sigma2: float | None = None, slopes: bool = True) -> Evaluation:
        """As for every deviance; the linear algebra on as many threads as suit its size."""
        with suited(self.statistics):
            return Deviance.at(self, L, sigma2=sigma2, slopes=slopes)

    def accumulate(self, L: Array) -> tuple[float, Absorbed, Array]:
        """Every factor absorbed in turn."""
        found = absorb(self.statistics, [L[np.ix_(c, c)] for c in self.statistics.columns], self.pattern)
        return found.log_det, found, found.columns.S

    def overlaps(self) -> tuple[Array, Array]:
        """Sums over pairs of groups of products of Z_t'Z_s, and sums of Z_t'Z_t."""
        stats = self.statistics
        sums = np.zeros((stats.q, stats.q))
        for t, A in zip(stats.structure.chain, stats.structure.own, strict=True):
            sums[np.ix_(stats.columns[t], stats.columns[t])] = A.sum(axis=2)
        diagonal = stats.structure.rest_diagonal()
        for t, A in zip(stats.structure.rest, diagonal, strict=True):
            sums[np.ix_(stats.columns[t], stats.columns[t])] = A.sum(axis=2)
        return stats.structure.overlaps, sums

    def slopes(self, L: Array, state: Any, beta: Array, whitener: Array) -> Slopes:
        """Gradient and average information.

        1. Down again: sums over groups of Z_t'V^-1Z_t and of products of Z_t'V^-1[X y].
        2. Gradients of the logarithms and of the residual sum of squares.
        3. Working columns f, one per free entry of Lambda, carried up; what X explains of them taken out.
        """
        stats, p, q = self.statistics, self.statistics.p, self.statistics.q
        absorbed: Absorbed = state
        # 1
        contrast = np.append(-beta, 1.0)
        scores = [np.empty((len(c), i.n_groups)) for c, i in zip(stats.columns, stats.incidences, strict=True)]
        logs, residual = np.zeros((q, q)), np.zeros((q, q))
        for piece in descend(stats, absorbed, absorbed.columns):
            own = np.ix_(stats.columns[piece.factor], stats.columns[piece.factor])
            r = np.tensordot(contrast, piece.D, axes=(0, 1))
            scores[piece.factor][:, piece.part] = r
            residual[own] += r @ r.T
            logs[own] += piece.G.sum(axis=2)
            if self.method == "REML":
                R = np.matmul(whitener, piece.D[:, :p]).reshape(len(r), -1)
                logs[own] -= R @ R.T
        if absorbed.rest is not None:
            for t, taken in zip(stats.structure.chain, rest_traces(stats, absorbed), strict=True):
                logs[np.ix_(stats.columns[t], stats.columns[t])] -= taken
        # 3
        entries = Covariance(stats.blocks).entries
        Q = average_information(stats, absorbed, scores, whitener, entries)
        residual2 = np.zeros((q, q, q, q))
        for i, (a, b) in enumerate(entries):
            for j, (c, d) in enumerate(entries):
                value = Q[i, j] / ((1 + (a != b)) * (1 + (c != d)))
                residual2[a, b, c, d] = residual2[b, a, c, d] = residual2[a, b, d, c] = residual2[b, a, d, c] = value
        # 2
        mask = Covariance(stats.blocks).mask
        return Slopes(logs * mask, residual * mask, np.zeros((q, q, q, q)), residual2, exact=False)
