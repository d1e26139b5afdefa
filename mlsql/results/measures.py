"""Information criteria and the intraclass correlation."""

from __future__ import annotations

import numpy as np

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
    """
    if len(estimates.design.random) != 1 or estimates.design.random[0].variables:
        return None
    tau = float(estimates.T[0, 0])
    return tau / (tau + estimates.sigma2)
