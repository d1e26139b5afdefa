"""Tests and intervals of the fixed effects."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from scipy.special import stdtr, stdtrit

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.inference.reference import Reference
from mlsql.results.estimates import Estimates


@dataclass(frozen=True, slots=True)
class LinearEstimates:
    """Estimates of r linear combinations of the fixed effects; arrays of length r."""

    estimate: Array
    std_error: Array
    df: Array
    statistic: Array
    p_value: Array
    conf_low: Array
    conf_high: Array


def linear_estimates(
    beta: Array, reference: Reference, contrasts: Array, level: float = 0.95, null: Array | float = 0.0
) -> LinearEstimates:
    """t tests and Wald intervals of (r, p) contrasts of the user's columns.

    Parameters
    ----------
    beta : (p,)
    reference : Reference
    contrasts : (r, p)
    level : float
        Confidence level.
    null : (r,) or float
        Values under the null hypothesis.
    """
    check_level(level)
    estimate = contrasts @ beta
    variance = np.einsum("rp,pf,rf->r", contrasts, reference.covariance, contrasts)
    error, df = np.sqrt(np.maximum(variance, 0.0)), reference.df(contrasts)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (estimate - null) / error
    half = stdtrit(df, 0.5 + level / 2.0) * error
    return LinearEstimates(estimate, error, df, t, 2.0 * stdtr(df, -np.abs(t)), estimate - half, estimate + half)


def fixed_effects(estimates: Estimates, level: float = 0.95, reference: Reference | None = None) -> LinearEstimates:
    """`linear_estimates` of each fixed effect by itself; by default from the model's covariance with HLM's df."""
    chosen = Reference.counted(estimates) if reference is None else reference
    return linear_estimates(estimates.beta, chosen, np.eye(estimates.statistics.p), level)


def check_level(level: float) -> None:
    """Refuse a confidence level that is none.

    Raises
    ------
    FitError
    """
    if not (isinstance(level, Real) and 0.0 < level < 1.0):
        raise FitError(f"level is {level}; a confidence level lies between 0 and 1, for instance 0.95")
