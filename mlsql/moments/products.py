"""Products of the fixed columns and the outcome by group: what robust errors, influence and comparators need."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np

from mlsql._arrays import Array
from mlsql.design.design import Design
from mlsql.moments.cross import EMPTY, Cross, fixed_and_outcome
from mlsql.moments.moments import Moments
from mlsql.moments.scales import Scales
from mlsql.moments.shifts import Shifts


def group_products(design: Design, moments: Moments, statistics: Scales) -> Array:
    """[X y]'W[X y] of every group, in the internal columns of the statistics.

    Parameters
    ----------
    design, moments
        With all products by group.
    statistics : Statistics
        Of the same moments.

    Returns
    -------
    (p+1, p+1, J) array
        Sums over groups to `statistics.XytXy`.
    """
    cross = Cross(design, moments)
    columns = fixed_and_outcome(Shifts(design, moments), design)
    scale = np.append(statistics.x_scale, 1.0)
    result = np.empty((len(columns), len(columns), moments.n_groups))
    for f, g in combinations_with_replacement(range(len(columns)), 2):
        result[f, g] = result[g, f] = cross.by_group(columns[f], columns[g]) / (scale[f] * scale[g])
    for f, pieces in enumerate(columns[:-1]):
        empty = result[f, f] * scale[f] ** 2 <= EMPTY * cross.magnitude(pieces)
        result[f, :, empty] = 0.0
        result[:, f, empty] = 0.0
    return result
