"""Degrees of freedom by counting: HLM's rule, between-within, residual, and none (normal)."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.errors import FitError
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates


def hlm_df(estimates: Estimates) -> Array:
    """(p,) degrees of freedom as HLM takes them.

    J - S_q - 1 for a coefficient of an equation with a random effect and S_q predictors (Raudenbush & Bryk, 3.83);
    N - p for a coefficient of an equation without one.  With several factors a coefficient can be in an equation of
    each, as an intercept is: the factor with the fewest groups counts, nested or crossed.
    """
    stats, levels = estimates.statistics, estimates.levels
    df = np.full(stats.p, float(stats.n_rows - stats.p))
    fewest: dict[int, tuple[int, int]] = {}
    for q, column in enumerate(estimates.design.random):
        members = estimates.equation_members(q)
        groups = stats.n_groups if levels is None else _groups_of(levels, q)
        # of two columns of one factor the one that leaves the smaller factor of the coefficient
        rank = (groups, -len(column.variables))
        for f in members:
            if f not in fewest or rank <= fewest[f]:
                fewest[f] = rank
                df[f] = max(groups - len(members), 1)
    return df


def _groups_of(levels: LevelStatistics, random: int) -> int:
    return next(i.n_groups for i, c in zip(levels.incidences, levels.columns, strict=True) if random in c)


def between_within_df(estimates: Estimates) -> Array:
    """(p,) degrees of freedom as SAS's DDFM=BETWITHIN divides the residual ones.

    J minus the columns that are constant within groups, for those columns; N - J minus the columns that vary within
    groups, for these.  With nested factors, as in an analysis of variance: a column belongs to the coarsest factor
    within which it is constant, and that factor has its groups less those of the next coarser one less its columns.

    Raises
    ------
    FitError
        When factors are crossed.
    """
    stats = estimates.statistics
    if estimates.levels is not None:
        return _between_levels(estimates, estimates.levels)
    within = np.array([bool(c.level1) for c in estimates.design.fixed.columns], dtype=np.bool_)
    between = max(stats.n_groups - int(np.sum(~within)), 1)
    inside = max(stats.n_rows - stats.n_groups - int(np.sum(within)), 1)
    return np.where(within, float(inside), float(between))


def _between_levels(estimates: Estimates, levels: LevelStatistics) -> Array:
    if levels.top is None:
        names = ", ".join(i.name for i in levels.incidences)
        raise FitError(
            f"df='between_within' is defined for factors that nest in each other, and not all of {names} do; "
            "use df='satterthwaite' or 'hlm'"
        )
    # the coarsest first, the rows last
    chain = [levels.incidences[t] for t in reversed(levels.structure.chain)]
    sizes = np.array([0, *(i.n_groups for i in chain), levels.n_rows])
    shifts = Shifts(estimates.design, estimates.moments)
    place: IntArray = np.full(levels.p, len(chain))
    for f, column in enumerate(estimates.design.fixed.columns):
        if not column.level1:
            values = shifts.level2_product(column)
            place[f] = next((k for k, i in enumerate(chain) if i.constant(values) is not None), len(chain))
    df = np.diff(sizes) - np.bincount(place, minlength=len(chain) + 1)
    return np.maximum(df, 1.0)[place]


def residual_df(estimates: Estimates) -> Array:
    """(p,) N - p throughout."""
    stats = estimates.statistics
    return np.full(stats.p, float(stats.n_rows - stats.p))


def normal_df(estimates: Estimates) -> Array:
    """(p,) infinite: z instead of t."""
    return np.full(estimates.statistics.p, np.inf)
