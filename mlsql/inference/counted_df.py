"""Degrees of freedom by counting: HLM's rule, between-within, residual, and none (normal)."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.results.estimates import Estimates


def hlm_df(estimates: Estimates) -> Array:
    """(p,) degrees of freedom as HLM takes them.

    J - S_q - 1 for a coefficient of an equation with a random effect and S_q predictors (Raudenbush & Bryk, 3.83);
    N - p for a coefficient of an equation without one.
    """
    stats = estimates.statistics
    df = np.full(stats.p, float(stats.n_rows - stats.p))
    for q in range(stats.q):
        members = estimates.equation_members(q)
        df[members] = max(stats.n_groups - len(members), 1)
    return df


def between_within_df(estimates: Estimates) -> Array:
    """(p,) degrees of freedom as SAS's DDFM=BETWITHIN divides the residual ones.

    J minus the columns that are constant within groups, for those columns; N - J minus the columns that vary within
    groups, for these.
    """
    stats = estimates.statistics
    within = np.array([bool(c.level1) for c in estimates.design.fixed.columns], dtype=np.bool_)
    between = max(stats.n_groups - int(np.sum(~within)), 1)
    inside = max(stats.n_rows - stats.n_groups - int(np.sum(within)), 1)
    return np.where(within, float(inside), float(between))


def residual_df(estimates: Estimates) -> Array:
    """(p,) N - p throughout."""
    stats = estimates.statistics
    return np.full(stats.p, float(stats.n_rows - stats.p))


def normal_df(estimates: Estimates) -> Array:
    """(p,) infinite: z instead of t."""
    return np.full(estimates.statistics.p, np.inf)
