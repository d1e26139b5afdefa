"""The deviance as a function: derivatives by differences, its ends (no variance, endless variance), its curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.likelihood.covariance import Covariance, lambda_derivatives, theta_derivatives
from mlsql.likelihood.gaussian import GroupDeviance

Array = NDArray[np.float64]
Rows = Callable[..., pl.DataFrame]

MODELS = {  # formula, random coefficients
    "q=1": ("y ~ w + x + (1 | g)", 1),
    "q=2": ("y ~ x + z + (x | g)", 2),
    "q=3": ("y ~ x + z + (x + z | g)", 3),
    "1+1": ("y ~ x + (x || g)", 2),
    "2+1": ("y ~ x + z + (x | g) + (0 + z | g)", 3),
    "no fixed slope": ("y ~ 1 + (x | g)", 2),
}


def deviance_of(model: str, method: str, data: pl.DataFrame, **options: Any) -> tuple[GroupDeviance, Covariance]:
    formula, q = MODELS[model]
    fit = mlsql.evaluate(formula, data, T=np.eye(q), sigma2=1.0, method=method, **options)  # type: ignore[arg-type]
    statistics = fit.estimates.statistics
    return GroupDeviance(statistics, method), Covariance(statistics.blocks)  # type: ignore[arg-type]


def slopes(deviance: GroupDeviance, covariance: Covariance, theta: Array) -> tuple[Array, Array]:
    L = covariance.factor(theta)
    return theta_derivatives(covariance, L, *lambda_derivatives(deviance, deviance.at(L)))


@pytest.mark.parametrize("weights", [None, "weight"], ids=["plain", "weighted"])
@pytest.mark.parametrize("method", ["ML", "REML"])
@pytest.mark.parametrize("model", MODELS)
def test_derivatives_are_central_differences(rows: Rows, model: str, method: str, weights: str | None) -> None:
    deviance, covariance = deviance_of(model, method, rows(), weights=weights)
    rng = np.random.default_rng(4)
    k = covariance.n_parameters
    for theta in (rng.normal(size=k), 0.1 * rng.normal(size=k), 3.0 + rng.normal(size=k)):

        def value(point: Array) -> float:
            return deviance.at(covariance.factor(point), slopes=False).deviance

        gradient, hessian = slopes(deviance, covariance, theta)
        h = 1e-5
        steps = h * np.eye(k)
        by_value = np.array([(value(theta + s) - value(theta - s)) / (2 * h) for s in steps])
        by_gradient = np.array(
            [
                (slopes(deviance, covariance, theta + s)[0] - slopes(deviance, covariance, theta - s)[0]) / (2 * h)
                for s in steps
            ]
        )
        # differences of values near 300 with 16 digits, over 1e-5: 1e-8; the truncation is h squared
        scale = 1 + np.abs(gradient).max()
        np.testing.assert_allclose(gradient, by_value, atol=3e-7 * scale)
        np.testing.assert_allclose(hessian, by_gradient, atol=3e-7 * (1 + np.abs(hessian).max()))


@pytest.mark.parametrize("method", ["ML", "REML"])
def test_derivatives_at_zero_and_on_the_boundary(rows: Rows, method: str) -> None:
    # along Lambda the deviance is smooth to the boundary and beyond theta's stationary point there
    deviance, covariance = deviance_of("q=2", method, rows())
    for Lambda in (np.zeros((2, 2)), np.array([[0.5, 0.2], [0.2, 0.08]])):
        gradient, hessian = lambda_derivatives(deviance, deviance.at(covariance.factor(covariance.theta_of(Lambda))))

        def value(step: Array, Lambda: Array = Lambda) -> float:
            return deviance.at(covariance.factor(covariance.theta_of(Lambda + step)), slopes=False).deviance

        # inwards only: second-order one-sided differences
        V, h = np.array([[1.0, 0.3], [0.3, 0.5]]), 1e-4
        f0, f1, f2 = value(0 * V), value(h * V), value(2 * h * V)
        assert (4 * f1 - f2 - 3 * f0) / (2 * h) == pytest.approx(float(np.sum(gradient * V)), rel=1e-4)
        curvature = float(np.einsum("ab,abcd,cd->", V, hessian, V))
        assert (f2 - 2 * f1 + f0) / h**2 == pytest.approx(curvature, rel=2e-2)


def test_without_variance_the_fit_is_ordinary_least_squares(rows: Rows, case: Any, dense: Any) -> None:
    data, options = case.inputs(rows())
    q = len(case.Z)
    fit = mlsql.evaluate(case.formula, data, T=np.zeros((q, q)), sigma2=2.0, **options)
    model = case.dense(dense, rows(), 2.0, np.zeros((q, q)))
    root = np.sqrt(model.w)
    beta, *_ = np.linalg.lstsq(model.X * root[:, None], model.y * root)
    np.testing.assert_allclose(fit.fixed_effects["estimate"], beta, rtol=1e-8, atol=1e-9)
    expected = 2.0 * np.linalg.inv((model.X.T * model.w) @ model.X)
    np.testing.assert_allclose(fit.vcov, expected, rtol=1e-8, atol=1e-9)
    assert fit.deviance == pytest.approx(model.deviance("REML"), rel=1e-10)
    assert fit.singular
    effects = fit.group_effects()
    assert (effects["estimate"] == 0).all()
    assert (effects["std_error"] == 0).all()
    # reliability of a coefficient that does not vary
    assert set(effects["reliability"].drop_nulls()) == {0.0}


def test_with_endless_variance_groups_stand_alone(rows: Rows, case: Any) -> None:
    data, options = case.inputs(rows())
    fit = mlsql.evaluate(case.formula, data, T=1e9 * case.T, sigma2=1.0, **options)
    keys = [key.name for key in fit.spec.keys]
    own = fit.group_effects().drop_nulls("ols_estimate")
    own = own.with_columns(pl.col("ols_std_error").max().over(keys))
    # what is left of shrinkage is at most sigma2 (Z'Z)^-1 T^-1 times the effects: T's smallest eigenvalue is near 0.6e9
    left = own["ols_std_error"] ** 2 * 4e-9 * own["ols_estimate"].abs().max()
    assert ((own["estimate"] - own["ols_estimate"]).abs() <= left + 1e-7).all()
    assert (own["reliability"] >= 1 - own["ols_std_error"] ** 2 * 2e-9).all()


@pytest.mark.parametrize(
    "T",
    [
        np.array([[1.0, 0.8], [0.8, 0.64]]),
        np.array([[1.0, 0.0], [0.0, 0.0]]),
        np.array([[0.0, 0.0], [0.0, 0.7]]),
    ],
    ids=["correlation 1", "fixed slope", "fixed intercept"],
)
def test_singular_covariance_matrices(rows: Rows, cases: dict[str, Any], dense: Any, T: Array) -> None:
    case = cases["cross-level"]
    fit = mlsql.evaluate(case.formula, rows(), T=T, sigma2=1.3)
    model = case.dense(dense, rows(), 1.3, T)
    assert fit.deviance == pytest.approx(model.deviance("REML"), rel=1e-10)
    np.testing.assert_allclose(fit.T, T, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(fit.fixed_effects["estimate"], model.beta, rtol=1e-8, atol=1e-9)
    effects = fit.group_effects()
    np.testing.assert_allclose(effects["estimate"], model.u.ravel(), rtol=1e-7, atol=1e-8)
    # variances of zero come out of differences near 1e-16
    np.testing.assert_allclose(effects["std_error"] ** 2, np.diag(model.posterior), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(effects["conditional_sd"] ** 2, np.diag(model.conditional), rtol=1e-7, atol=1e-12)
    assert fit.singular


@pytest.mark.parametrize("method", ["ML", "REML"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["random intercept", "random slope", "cross-level", "blocks", "weights"])
def test_errors_of_variances_are_the_curvature_of_the_dense_log_likelihood(
    cases: dict[str, Any], dense: Any, name: str, seed: int, method: str
) -> None:
    case, data = cases[name], larger(seed)
    given, options = case.inputs(data)
    fit = mlsql.fit(case.formula, given, method=method, **options)  # type: ignore[arg-type]
    assert not fit.singular
    q = len(case.Z)
    entries = [(a, b) for b in range(q) for a in range(b, q) if case.T[a, b] != 0]
    model = case.dense(dense, data, 1.0)

    def value(parameters: Array) -> float:
        T = np.zeros((q, q))
        for entry, (a, b) in zip(parameters[:-1], entries, strict=True):
            T[a, b] = T[b, a] = entry
        return float(replace(model, T=T, sigma2=parameters[-1]).deviance(method))

    at = np.array([*[fit.T[a, b] for a, b in entries], fit.sigma2])
    errors = np.sqrt(2 * np.diag(np.linalg.inv(second_differences(value, at))))
    table = fit.variance_components
    found = {(row["term1"], row["term2"]): row["std_error"] for row in table.iter_rows(named=True)}
    names = fit.estimates.random_names
    ours = [found[names[b], None if a == b else names[a]] for a, b in entries] + [found[None, None]]
    # differences of fourth order with steps of a hundredth are good to 1e-6
    np.testing.assert_allclose(ours, errors, rtol=1e-5)


def larger(seed: int) -> pl.DataFrame:
    """Twenty groups of four rows whose variances are far from the boundary."""
    rng = np.random.default_rng(seed)
    J, N = 20, 80
    g = np.repeat(np.arange(J), 4)
    x, z, w, v = rng.normal(size=N), rng.normal(size=N), rng.normal(size=J)[g], rng.normal(size=J)[g]
    u = rng.normal(size=(J, 3)) * [1.5, 1.5, 1.5]
    y = 2 + x + w + u[g, 0] + u[g, 1] * x + u[g, 2] * z + rng.normal(size=N)
    weight = rng.integers(1, 4, N) / 2
    return pl.DataFrame({"row": np.arange(N), "g": g, "x": x, "z": z, "w": w, "v": v, "weight": weight, "y": y})


def second_differences(value: Callable[[Array], float], at: Array) -> Array:
    """Hessian by differences of fourth order, steps a hundredth of each parameter."""
    k = len(at)
    steps = np.diag(0.01 * np.maximum(np.abs(at), 0.1))
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    H = np.empty((k, k))
    for i in range(k):
        for j in range(i + 1):
            total = sum(
                a * b * value(at + m * steps[i] + n * steps[j]) for m, a in weights.items() for n, b in weights.items()
            )
            H[i, j] = H[j, i] = total / (steps[i, i] * steps[j, j])
    return H
