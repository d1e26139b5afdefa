"""Tests and intervals of the fixed effects."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from scipy.special import stdtr, stdtrit

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.results.estimates import Estimates


@dataclass(frozen=True, slots=True)
class FixedEffects:
    """Arrays of length p, in the order of the fixed columns; standard errors from the model's covariance matrix."""

    estimate: Array
    std_error: Array
    df: Array
    statistic: Array
    p_value: Array
    conf_low: Array
    conf_high: Array


def fixed_effects(estimates: Estimates, level: float = 0.95) -> FixedEffects:
    """t tests and Wald intervals with HLM's degrees of freedom.

    Parameters
    ----------
    estimates : Estimates
    level : float
        Confidence level.
    """
    check_level(level)
    beta, error = estimates.beta, np.sqrt(np.diag(estimates.vcov))
    df = hlm_df(estimates)
    t = beta / error
    half = stdtrit(df, 0.5 + level / 2.0) * error
    return FixedEffects(beta, error, df, t, 2.0 * stdtr(df, -np.abs(t)), beta - half, beta + half)


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


def check_level(level: float) -> None:
    """Refuse a confidence level that is none.

    Raises
    ------
    FitError
    """
    if not (isinstance(level, Real) and 0.0 < level < 1.0):
        raise FitError(f"level is {level}; a confidence level lies between 0 and 1, for instance 0.95")
