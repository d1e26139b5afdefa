"""Information criteria, the intraclass correlation, correlations of random coefficients."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.results.estimates import Estimates


def aic(estimates: Estimates) -> float:
    """Deviance + 2 x parameters, fixed effects counted under REML too (as lme4 does)."""
    return estimates.deviance + 2.0 * estimates.n_parameters


def bic(estimates: Estimates) -> float:
    """Deviance + log(rows) x parameters."""
    return estimates.deviance + float(np.log(estimates.statistics.n_rows)) * estimates.n_parameters


def icc(estimates: Estimates) -> float | None:
    """Share of the (residual) variance between groups, tau / (tau + sigma2).

    None unless the intercept is the only random coefficient: with random slopes the share depends on the predictor.
    None with several grouping factors, which have a share each, and for memberships, whose share depends on the
    weights: `fit.levels.variance_partition()`.
    """
    if estimates.levels is not None or len(estimates.design.random) != 1 or estimates.design.random[0].variables:
        return None
    tau = float(estimates.T[0, 0])
    return tau / (tau + estimates.sigma2)


def correlation(T: Array, a: int, b: int) -> float:
    """Correlation of two random coefficients, nan when one does not vary."""
    scale = float(np.sqrt(T[a, a] * T[b, b]))
    return float(np.clip(T[a, b] / scale, -1.0, 1.0)) if scale > 0 else float("nan")
