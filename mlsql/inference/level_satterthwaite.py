"""How the fixed effects' covariance matrix moves with the variance components of several factors, to first order.

With R_t = Z_t'V^-1 X of a factor, in units of sigma2 and in whitened columns, a change D of Lambda_t moves X'V^-1 X by
minus the sum over the factor's groups of R'DR: no products between groups, crossed or not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood.absorb import Absorbed
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.descend import descend
from mlsql.likelihood.deviance import Evaluation
from mlsql.moments.levels import LevelStatistics


def level_first_order(stats: LevelStatistics, evaluation: Evaluation, covariance: Covariance) -> tuple[Array, Array]:
    """Whitener (p, p) and, for each free entry of T, s2^2 X'V^-1 G_i V^-1 X in whitened columns: (k, p, p)."""
    whitener = evaluation.whitener
    E = np.zeros((stats.q, stats.q, stats.p, stats.p))
    for t, _, R in whitened_scores(stats, evaluation, whitener):
        for a, left in zip(stats.columns[t], R, strict=True):
            for b, right in zip(stats.columns[t], R, strict=True):
                E[a, b] += left @ right.T
    return whitener, np.einsum("iab,abxy->ixy", covariance.directions(), E, optimize=True)


def whitened_scores(
    stats: LevelStatistics, evaluation: Evaluation, whitener: Array
) -> Iterator[tuple[int, slice, Array]]:
    """Factor, groups and their R = s2 Z_t'V^-1 X in whitened columns (q, p, n), piece by piece."""
    absorbed = evaluation.state
    assert isinstance(absorbed, Absorbed)
    for piece in descend(stats, absorbed, absorbed.columns):
        yield piece.factor, piece.part, np.matmul(whitener, piece.D[:, : stats.p])
