"""The deviance of several grouping factors: its gradient against differences, in every structure; sparse as dense."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mlsql.likelihood.covariance import Covariance, lambda_derivatives, theta_derivatives
from mlsql.likelihood.levels import LevelDeviance
from mlsql.likelihood.objective import make_deviance
from mlsql.moments import structure
from mlsql.moments.assembly import model_statistics
from mlsql.moments.levels import LevelStatistics
from mlsql.pipeline.analysis import analyse
from mlsql.pipeline.prepare import make_inputs, make_spec

FORMULAS = {
    "two nested": "y ~ x + (x | a/b)",
    "three nested, slopes apart": "y ~ x + z + (x | a/b/c) + (0 + z | a)",
    "crossed": "y ~ x + (x | a) + (z | r)",
    "crossed over nested": "y ~ x + (1 | a/b) + (x | r)",
    "two crossed over nested": "y ~ x + (x | a/b) + (z | r) + (1 | c)",
    "with cells": "y ~ x + (x | a/b/c) + (z | r) + (1 | a:r)",
}

GRADIENT = 2e-6
"""Central differences with steps of 1e-5 of a deviance near 1,000 keep this much; gradients are of size 10 to 200."""


def frame() -> pl.DataFrame:
    rng = np.random.default_rng(3)
    n = 400
    codes = {"a": rng.integers(0, 6, n), "b": rng.integers(0, 15, n), "c": rng.integers(0, 5, n)}
    made = pl.DataFrame({**codes, "r": rng.integers(0, 9, n), "x": rng.normal(size=n), "z": rng.normal(size=n)})
    noise = pl.Series(rng.normal(size=n))
    return made.with_columns(
        (0.5 * pl.col("x") + 0.3 * pl.col("a") + 0.2 * pl.col("r") * pl.col("z") + noise).alias("y")
    )


def statistics(formula: str) -> LevelStatistics:
    spec = make_spec(formula, "REML", None, None)
    analysis = analyse(spec, make_inputs(frame(), None, None))
    found = model_statistics(analysis.design, analysis.moments)
    assert isinstance(found, LevelStatistics)
    return found


def a_point(covariance: Covariance) -> np.ndarray:
    rng = np.random.default_rng(5)
    return covariance.theta(np.eye(covariance.q)) + 0.5 * rng.normal(size=covariance.n_parameters)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
def test_gradient(formula: str, dense: bool, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "DENSE", 6_000 if dense else 2)
    stats = statistics(formula)
    deviance = make_deviance(stats, method)  # type: ignore[arg-type]
    covariance = Covariance(stats.blocks)
    theta = a_point(covariance)
    L = covariance.factor(theta)
    gradient, _ = theta_derivatives(covariance, L, *lambda_derivatives(deviance, deviance.at(L)))

    def value(point: np.ndarray) -> float:
        return deviance.at(covariance.factor(point), slopes=False).deviance

    steps = 1e-5 * np.eye(len(theta))
    differences = np.array([(value(theta + s) - value(theta - s)) / 2e-5 for s in steps])
    np.testing.assert_allclose(gradient, differences, rtol=0, atol=GRADIENT)


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
def test_average_information_is_half_the_second_derivative_of_the_residual_sum(formula: str) -> None:
    stats = statistics(formula)
    deviance = make_deviance(stats, "ML")
    assert isinstance(deviance, LevelDeviance)
    covariance = Covariance(stats.blocks)
    L = covariance.factor(a_point(covariance))
    Lambda, slopes = L @ L.T, deviance.at(L).slopes
    assert slopes is not None
    assert not slopes.exact
    D = covariance.directions()
    h = 1e-3

    def r2(change: np.ndarray) -> float:
        return deviance.at(covariance.factor(covariance.theta_of(Lambda + change)), slopes=False).r2

    for i in range(len(D)):
        second = (r2(h * D[i]) - 2.0 * r2(np.zeros_like(Lambda)) + r2(-h * D[i])) / h**2
        half = float(np.einsum("ab,abcd,cd->", D[i], slopes.residual2, D[i]))
        # second differences with steps of 1e-3: fourth derivatives and rounding leave four digits
        assert half == pytest.approx(second / 2.0, rel=2e-3, abs=1e-4 * abs(slopes.residual).max())


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize("formula", ["y ~ x + (x | a/b)", "y ~ x + (1 | a) + (z | r)"])
def test_singular_factors(formula: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "DENSE", 6_000 if dense else 2)
    stats = statistics(formula)
    deviance = make_deviance(stats, "REML")
    zero = np.zeros((stats.q, stats.q))
    at_zero, near = deviance.at(zero), deviance.at(1e-5 * np.eye(stats.q))
    assert at_zero.deviance == pytest.approx(near.deviance, rel=1e-8)
    assert at_zero.slopes is not None
    assert near.slopes is not None
    # the gradient is continuous: Lambda of 1e-10 moves it by about 1e-8 of itself
    np.testing.assert_allclose(at_zero.slopes.logs, near.slopes.logs, rtol=1e-5, atol=1e-5)


def test_order_of_terms_changes_nothing() -> None:
    one, other = statistics("y ~ x + (x | a/b) + (z | r)"), statistics("y ~ x + (z | r) + (x | a:b) + (x | a)")
    first = make_deviance(one, "REML").at(0.5 * np.eye(one.q)).deviance
    assert make_deviance(other, "REML").at(0.5 * np.eye(one.q)).deviance == pytest.approx(first, rel=1e-12)
