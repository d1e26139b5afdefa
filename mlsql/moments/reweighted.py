"""Statistics with groups left out or repeated: cluster bootstrap and jackknife without data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.moments.statistics import Statistics


def reweighted(statistics: Statistics, products: Array, counts: IntArray) -> Statistics:
    """Statistics of the data in which group j occurs counts[j] times.

    Parameters
    ----------
    statistics : Statistics
    products : (p+1, p+1, J)
        [X y]'W[X y] by group; sums to `statistics.XytXy`.
    counts : (J,) of int

    Returns
    -------
    Statistics
        On the same internal columns, so that its transforms hold; `log_weights`, a constant of the deviance, is 0.
    """
    chosen = np.repeat(np.arange(statistics.n_groups), counts)
    return replace(
        statistics,
        n=statistics.n[chosen],
        ZtZ=np.ascontiguousarray(statistics.ZtZ[:, :, chosen]),
        ZtXy=np.ascontiguousarray(statistics.ZtXy[:, :, chosen]),
        XytXy=products @ counts.astype(np.float64),
        log_weights=0.0,
    )
