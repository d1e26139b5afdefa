"""Optima on and near the boundary: small data whose variances are zero, equal or perfectly correlated."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.likelihood.covariance import Covariance, lambda_derivatives, theta_derivatives
from mlsql.likelihood.gaussian import GroupDeviance
from mlsql.optimise.newton import minimise

Array = NDArray[np.float64]

MODELS = {
    "intercept": "y ~ x + z + (1 | g)",
    "slope": "y ~ x + z + (x | g)",
    "two slopes": "y ~ x + z + (x + z | g)",
    "blocks": "y ~ x + z + (x + z || g)",
}

FACTORS = {
    "nothing": np.zeros((3, 3)),
    "rank 1": np.array([[1.0, 0, 0], [0.5, 0, 0], [-0.7, 0, 0]]),
    "no intercept": np.diag([0.0, 0.6, 0.6]),
    "strong": 4.0 * np.array([[1.0, 0, 0], [0.3, 1.0, 0], [0.2, -0.4, 0.8]]),
}

SLACK = 1e-6
"""What no reader would see of a deviance; moving to the exact boundary may cost 1e-7."""


def sparse_rows(factor: Array, seed: int) -> pl.DataFrame:
    """Fourteen groups of 1 to 6 rows: so few that half of all optima lie on the boundary."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(14), rng.integers(1, 7, 14))
    Z = np.column_stack([np.ones(len(g)), rng.normal(size=(len(g), 2))])
    u = rng.normal(size=(14, 3)) @ factor.T
    y = Z.sum(axis=1) + (Z * u[g]).sum(axis=1) + rng.normal(size=len(g))
    return pl.DataFrame({"g": g, "x": Z[:, 1], "z": Z[:, 2], "y": y})


CASES = [
    pytest.param(MODELS[model], FACTORS[factor], seed, method, id=f"{model}-{factor}-{seed}-{method}")
    for model in MODELS
    for factor in FACTORS
    for seed in range(3)
    for method in ("ML", "REML")
]


@pytest.mark.parametrize(("formula", "factor", "seed", "method"), CASES)
def test_the_optimum_is_global_and_singular_means_exactly_singular(
    formula: str, factor: Array, seed: int, method: str
) -> None:
    fit = mlsql.fit(formula, sparse_rows(factor, seed), method=method)  # type: ignore[arg-type]
    assert fit.converged
    # two facts that must not be confused by rounding: an eigenvalue of zero, and one that is small
    covariance, L = fit.estimates.covariance, fit.estimates.L
    smallest = min(
        np.linalg.eigvalsh((L @ L.T)[s, s])[0] / max(np.trace((L @ L.T)[s, s]), 1e-300) for s in covariance.slices
    )
    if fit.singular:
        assert fit.status is mlsql.Status.SINGULAR
        assert np.any(np.diag(L) == 0.0)
        assert smallest < 1e-12
    else:
        assert fit.status is mlsql.Status.CONVERGED
        assert smallest > 1e-10
    # a block on the boundary has no standard errors, an inner one has
    errors = fit.variance_components.filter(pl.col("group") == "g")["std_error"].is_null()
    assert errors.any() == fit.singular
    assert fit.deviance <= best_of_many_starts(fit, method) + SLACK


def best_of_many_starts(fit: mlsql.Fit, method: str) -> float:
    statistics = fit.estimates.statistics
    deviance, covariance = GroupDeviance(statistics, method), Covariance(statistics.blocks)  # type: ignore[arg-type]

    def objective(theta: Array) -> tuple[float, Array, Array]:
        L = covariance.factor(theta)
        evaluation = deviance.at(L)
        return evaluation.deviance, *theta_derivatives(covariance, L, *lambda_derivatives(deviance, evaluation))

    rng = np.random.default_rng(0)
    starts = [scale * rng.normal(size=covariance.n_parameters) for scale in (0.1, 0.5, 1.0, 3.0)]
    return min(minimise(objective, start, max_evaluations=100).value for start in starts)
