"""Functions of the variance components: sampling covariance, delta method, moved origins, points and their errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.errors import FitError
from mlsql.results import variance
from mlsql.results.points import make_points

EXPECTED = Path(__file__).parent.parent / "reference" / "expected" / "inference"
HSB = mlsql.example_data("hsb")
DataFile = Callable[[str], str]

INVERSE = 1e-8  # of an information printed to 12 digits, whose condition is up to 1e3 when scaled
SAME_MODEL = 1e-6  # two searches for one optimum agree in the components to about 1e-7, in a flat direction


def reference(name: str) -> Any:
    return json.loads((EXPECTED / f"inference_{name}.json").read_text())


def given(name: str, data: str, **options: Any) -> mlsql.Fit:
    """The model of a reference file at its own variance components."""
    found = reference(name)
    *entries, sigma2 = found["exact"]["theta"]
    q = int((np.sqrt(8 * len(entries) + 1) - 1) / 2)
    T = np.zeros((q, q))
    T.T[np.triu_indices(q)] = entries
    T = T + np.tril(T, -1).T
    return mlsql.evaluate(found["formula"], data, T=T, sigma2=sigma2, method=found["method"], **options)


def grown(seed: int = 3) -> pl.DataFrame:
    """40 groups of 25 rows with random slopes of two numbers, one far from zero, and a factor."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(40), 25)
    x, z = rng.normal(size=1000), 300 + 2 * rng.normal(size=1000)
    u = rng.normal(size=(40, 3))[g]
    y = 2 + x + u[:, 0] + 0.7 * u[:, 1] * x + 0.4 * (u[:, 2] + 0.5 * u[:, 1]) * (z - 300) + rng.normal(size=1000)
    return pl.DataFrame({"g": g, "x": x, "z": z, "f": np.resize(["a", "b", "c"], 1000), "y": y})


@pytest.fixture(scope="module")
def two_slopes() -> mlsql.Fit:
    return mlsql.fit("y ~ x + z + (x + z | g)", grown(), method="ML")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("exam_reml", "exam"),
        ("hsb_means_reml", "hsb"),
        ("hsb_full_reml", "hsb"),
        ("hsb_full_ml", "hsb"),
        ("sleepstudy_reml", "sleepstudy"),
    ],
)
def test_sampling_covariance_is_the_inverse_information(data_file: DataFile, name: str, data: str) -> None:
    fit = given(name, data_file(data))
    expected = np.linalg.inv(np.array(reference(name)["exact"]["information_observed"]))
    scale = np.sqrt(np.diag(expected))
    found = variance.component_covariance(fit.estimates)
    assert found.entries == (((0, 0),) if len(scale) == 2 else ((0, 0), (1, 0), (1, 1)))
    np.testing.assert_allclose(
        found.covariance / np.outer(scale, scale), expected / np.outer(scale, scale), atol=INVERSE
    )


def test_sampling_covariance_with_weights() -> None:
    data = pl.read_parquet(HSB).with_columns(w=1 + pl.col("minority") + 0.5 * pl.col("female"))
    fit = given("hsb_weighted_reml", data, weights="w")  # type: ignore[arg-type]
    expected = np.linalg.inv(np.array(reference("hsb_weighted_reml")["exact"]["information_observed"]))
    scale = np.sqrt(np.diag(expected))
    found = variance.component_covariance(fit.estimates).covariance
    np.testing.assert_allclose(found / np.outer(scale, scale), expected / np.outer(scale, scale), atol=INVERSE)


def test_standard_errors_are_those_of_the_components_table(two_slopes: mlsql.Fit) -> None:
    found = variance.component_covariance(two_slopes.estimates)
    table = two_slopes.variance_components
    order = [(0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)]
    at = [found.entries.index(e) for e in order] + [len(found.entries)]
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance))[at], table["std_error"], rtol=1e-12)


def test_a_block_on_the_boundary_has_no_errors_and_the_others_do(data_file: DataFile) -> None:
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff2"))
    found = variance.component_covariance(fit.estimates).covariance
    np.testing.assert_array_equal(np.isnan(found), [[True, True], [True, False]])
    flat = grown().with_columns(y=pl.col("x") + pl.Series(np.tile(np.resize([1.0, -1.0, 2.0, -2.0], 25), 40)))
    fit = mlsql.fit("y ~ x + (x || g)", flat.with_columns(y=pl.col("y") + pl.col("g") % 7))
    assert fit.T[1, 1] == 0.0
    sampling = variance.component_covariance(fit.estimates)
    assert np.isnan(np.diag(sampling.covariance)).tolist() == [False, True, False]
    # a function of the intercept's variance alone does not meet the block on the boundary
    at_zero, at_one = variance.variance_at(fit.estimates, np.array([[1.0, 0.0], [1.0, 1.0]])).between_error
    assert np.isfinite(at_zero)
    assert np.isnan(at_one)


def test_delta_method_against_differences() -> None:
    fit = mlsql.fit("y ~ x + z + (x + z | g)", grown().with_columns(z=pl.col("z") - 300), method="ML")
    estimates = fit.estimates
    sampling = variance.component_covariance(estimates)
    z, T, s2 = np.array([1.0, 0.4, -1.5]), estimates.T, estimates.sigma2

    def functions(components: Any) -> Any:
        M = np.zeros((3, 3))
        for value, (a, b) in zip(components[:-1], sampling.entries, strict=True):
            M[a, b] = M[b, a] = value
        v = z @ M @ z
        return np.array([v, v + components[-1], v / (v + components[-1])])

    start = np.array([*(T[e] for e in sampling.entries), s2])
    step = 1e-4  # of components near 1: central differences of smooth functions are good to its square
    gradient = np.array([functions(start + h) - functions(start - h) for h in step * np.eye(7)]).T / (2 * step)
    expected = np.sqrt(np.diag(gradient @ sampling.covariance @ gradient.T))
    found = variance.variance_at(estimates, z[None])
    got = [found.between_error[0], found.total_error[0], found.share_error[0]]
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_distance_from_the_origin_costs_no_digits(two_slopes: mlsql.Fit) -> None:
    # z is 300 +- 2: T of the user's columns is of the order 300^2, its sampling covariance of 300^4
    near = mlsql.fit("y ~ x + z + (x + z | g)", grown().with_columns(z=pl.col("z") - 300), method="ML")
    far_at = variance.variance_at(two_slopes.estimates, np.array([[1.0, 0.4, 298.5]]))
    near_at = variance.variance_at(near.estimates, np.array([[1.0, 0.4, -1.5]]))
    for name in ("between", "between_error", "total_error", "logit_error"):
        assert getattr(far_at, name) == pytest.approx(getattr(near_at, name), rel=SAME_MODEL), name


@pytest.mark.parametrize("c", [-1.5, 2.0])
def test_moved_origin_is_a_refit_with_the_predictor_shifted(c: float) -> None:
    data = grown()
    fit = mlsql.fit("y ~ x + (x | g)", data)
    again = mlsql.fit("y ~ x + (x | g)", data.with_columns(x=pl.col("x") - c))
    points = make_points(fit.estimates.design, fit.estimates.design.random, {"x": c}, role="predictors")
    A = variance.moved_origins(fit.estimates, points)
    np.testing.assert_allclose(A[0] @ fit.T @ A[0].T, again.T, rtol=SAME_MODEL)
    here = variance.random_pairs(fit.estimates, A)
    there = variance.random_pairs(again.estimates, np.eye(2)[None])
    for name in ("variance1", "variance2", "covariance", "correlation", "covariance_error", "correlation_error"):
        assert getattr(here, name)[0] == pytest.approx(getattr(there, name)[0], rel=10 * SAME_MODEL), name
    # G19
    t00, t01, t11 = fit.T[0, 0], fit.T[0, 1], fit.T[1, 1]
    assert here.variance1[0] == pytest.approx(t00 + 2 * c * t01 + c * c * t11, rel=1e-12)
    assert here.covariance[0] == pytest.approx(t01 + c * t11, rel=1e-12)


def test_moved_origins_of_products_and_factors_are_refits() -> None:
    data = grown()
    at = {"x": 0.5, "z": 299.0}
    fit = mlsql.fit("y ~ x*z + (x*z | g)", data, method="ML")
    moved = data.with_columns(x=pl.col("x") - 0.5, z=pl.col("z") - 299.0)
    estimates = fit.estimates
    A = variance.moved_origins(estimates, make_points(estimates.design, estimates.design.random, at, role="predictors"))
    # the same model in shifted columns has the same deviance at the moved T, and no other T does
    again = mlsql.evaluate("y ~ x*z + (x*z | g)", moved, T=A[0] @ fit.T @ A[0].T, sigma2=fit.sigma2, method="ML")
    assert again.deviance == pytest.approx(fit.deviance, abs=1e-6)
    fit = mlsql.fit("y ~ f + (f | g)", data, method="ML")
    estimates = fit.estimates
    A = variance.moved_origins(
        estimates, make_points(estimates.design, estimates.design.random, {"f": "b"}, role="predictors")
    )
    # the intercept at level b: what a full set of indicators calls f[b]
    full = mlsql.fit("y ~ 0 + f + (0 + f | g)", data, method="ML")
    assert (A[0] @ fit.T @ A[0].T)[0, 0] == pytest.approx(full.T[1, 1], abs=SAME_MODEL)


@pytest.mark.parametrize(
    ("formula", "at", "message"),
    [
        ("y ~ x + (0 + x | g)", {"x": 1}, r"the origin of x cannot be moved: .*coefficient x has no \(Intercept\)"),
        ("y ~ x + (x + I(x^2) | g)", {"x": 1}, r"origin of x cannot be moved: .* I\(x\^2\) is computed from it"),
        ("y ~ x + (x + I(x^2) | g)", {"x": 1, "I(x^2)": 1}, "cannot be moved: .* is computed from it"),
        ("y ~ x + (1 + x + x:z | g)", {"z": 1, "x": 2}, r"origin of x cannot be moved: .*x:z has no z beside it"),
    ],
)
def test_origins_that_cannot_be_moved(formula: str, at: dict[str, float], message: str) -> None:
    q = {"(0 + x": 1, "(x + I": 3, "(1 + x": 3}[formula.split("+ ", 1)[1][:6]]
    fit = mlsql.evaluate(formula, grown(), T=np.eye(q), sigma2=1.0)
    points = make_points(fit.estimates.design, fit.estimates.design.random, at, role="predictors", together=False)
    with pytest.raises(FitError, match=message):
        variance.moved_origins(fit.estimates, points)


def test_a_shift_that_the_products_own_parts_take_up_is_allowed() -> None:
    fit = mlsql.evaluate("y ~ x + (1 + x + x:z | g)", grown(), T=np.eye(3), sigma2=1.0)
    points = make_points(fit.estimates.design, fit.estimates.design.random, {"z": 300}, role="predictors")
    np.testing.assert_array_equal(variance.moved_origins(fit.estimates, points)[0], [[1, 0, 0], [0, 1, 300], [0, 0, 1]])


def test_minimum_of_the_variance_between_groups(two_slopes: mlsql.Fit) -> None:
    estimates = two_slopes.estimates
    points = make_points(estimates.design, estimates.design.random, None, role="predictors")
    lowest = variance.minimum_point(estimates, points)
    assert lowest is not None
    around = lowest + 0.01 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]])
    between = variance.variance_at(estimates, np.column_stack([np.ones(7), around])).between
    assert between.argmin() == 0


@pytest.mark.parametrize(
    "formula",
    ["y ~ x + (1 | g)", "y ~ x + (0 + x | g)", "y ~ f + (f | g)", "y ~ x + (x + I(x^2) | g)", "y ~ x*z + (x*z | g)"],
)
def test_no_minimum_where_it_is_not_that_of_a_quadratic(formula: str) -> None:
    q = {"1": 1, "0": 1, "f": 3, "x": 3, "x*z": 4}[formula.split("(", 1)[1].split(" ", maxsplit=1)[0]]
    fit = mlsql.evaluate(formula, grown(), T=np.eye(q), sigma2=1.0)
    points = make_points(fit.estimates.design, fit.estimates.design.random, None, role="predictors")
    assert variance.minimum_point(fit.estimates, points) is None


def test_points_are_columns_of_one_table() -> None:
    fit = mlsql.evaluate("y ~ x + (x + z + f | g)", grown(), T=np.eye(5), sigma2=1.0)
    design = fit.estimates.design
    at = {"z": 300, "x": np.array([1, 2]), "f": pl.Series(["c", "a"])}
    points = make_points(design, design.random, at, role="predictors")
    np.testing.assert_array_equal(points.rows(design.random), [[1, 1, 300, 0, 1], [1, 2, 300, 0, 0]])
    assert {v.name for v in points.given} == {"x", "z", "f[b]", "f[c]"}
    points = make_points(design, design.random, {"f[b]": 0.25, "x": (3,)}, role="predictors")
    np.testing.assert_array_equal(points.rows(design.random), [[1, 3, 0, 0.25, 0]])


BOOLEAN = grown().with_columns(f=pl.col("x") > 0)


def test_levels_of_a_boolean_factor() -> None:
    fit = mlsql.evaluate("y ~ x + (f | g)", BOOLEAN, T=np.eye(2), sigma2=1.0)
    points = make_points(fit.estimates.design, fit.estimates.design.random, {"f": [True, False]}, role="predictors")
    np.testing.assert_array_equal(points.values, [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"none": 1}, r"'none' is not among the predictors; there are f, x, z, f\[b\], f\[c\], I\(x\^2\)"),
        ({"X": 1}, "'X' is not among the predictors; did you mean x"),
        ({"f": "d"}, "f has no level 'd'; there are a, b, c"),
        ({"f": []}, "f has no level"),
        ({"f": "b", "f[b]": 1}, r"f\[b\] is given twice"),
        ({"x": [1, 2], "z": [1, 2, 3]}, "equally many, for every predictor; there are 2 of x, 3 of z"),
        ({"x": "1"}, "x is '1'; give a number or a sequence"),
        ({"x": None}, "x is None; give a number"),
        ({"x": ["a"]}, "give a number or a sequence"),
        ({"x": []}, "not empty"),
        ({"x": float("nan")}, "x is nan; give a finite number"),
        ({"x": [[1, 2]]}, "give a finite number or a sequence"),
        ({"I(x^2)": 4}, r"x is computed from the same column as I\(x\^2\)"),
        ({"x": 2}, r"I\(x\^2\) is computed from the same column as x; give its values too"),
        ("x", "at is 'x'; give a mapping"),
    ],
)
def test_points_that_do_not_fit(at: Any, message: str) -> None:
    fit = mlsql.evaluate("y ~ x + (x + z + f + I(x^2) | g)", grown(), T=np.eye(6), sigma2=1.0)
    with pytest.raises(FitError, match=message):
        make_points(fit.estimates.design, fit.estimates.design.random, at, role="predictors")


def test_a_factor_without_reference_needs_a_level() -> None:
    fit = mlsql.evaluate("y ~ x + (0 + f | g)", grown(), T=np.eye(3), sigma2=1.0)
    design = fit.estimates.design
    with pytest.raises(FitError, match="give a level of f: a, b, c"):
        make_points(design, design.random, None, role="predictors")
    np.testing.assert_array_equal(
        make_points(design, design.random, {"f": "b"}, role="predictors").rows(design.random), [[0, 1, 0]]
    )


def test_powers_given_with_their_base() -> None:
    fit = mlsql.evaluate("y ~ x + (x + I(x^2) | g)", grown(), T=np.eye(3), sigma2=1.0)
    design = fit.estimates.design
    points = make_points(design, design.random, {"x": [1, 2], "I(x^2)": [1, 4]}, role="predictors")
    np.testing.assert_array_equal(points.rows(design.random), [[1, 1, 1], [1, 2, 4]])
