"""Statistics of the model in which one linear combination of the fixed effects has a given value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlsql._arrays import Array
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.scales import Scales
from mlsql.moments.statistics import Statistics


def constrained(statistics: Scales, direction: Array, value: float) -> Scales:
    """Hold direction'beta = value (internal columns): one column fewer, and the outcome less what is held.

    Only likelihoods are to be read from the result, differences of ML deviances among them: its transforms to user
    columns are those of the whole model.
    """
    p = statistics.p
    whole, _ = np.linalg.qr(np.column_stack([direction, np.eye(p)]))
    free = whole[:, 1:p]
    held = direction * (value / float(direction @ direction))
    M = np.zeros((p + 1, p))
    M[:p, : p - 1] = free
    M[:p, p - 1] = -held
    M[p, p - 1] = 1.0
    XytXy = M.T @ statistics.XytXy @ M
    if isinstance(statistics, LevelStatistics):
        sums = tuple(_moved(B, M) for B in statistics.ZtXy)
        return replace(statistics, ZtXy=sums, XytXy=XytXy, intercept=None)
    assert isinstance(statistics, Statistics)
    return replace(statistics, ZtXy=_moved(statistics.ZtXy, M), XytXy=XytXy, intercept=None)


def _moved(ZtXy: Array, M: Array) -> Array:
    return np.ascontiguousarray(np.einsum("qpj,pf->qfj", ZtXy, M, optimize=True))
