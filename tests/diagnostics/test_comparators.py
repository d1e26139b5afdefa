"""Regressions on rows, on group means and within groups from moments, against numpy's least squares on the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.diagnostics.comparators import (
    Regression,
    between_regression,
    between_share,
    contextual_pairs,
    design_effect,
    group_sums,
    total_regression,
    within_regression,
)
from mlsql.errors import FitError

Array = NDArray[np.float64]
Columns = Callable[[Mapping[str, Array]], list[Array]]

CLOSE = 1e-8
"""Relative.  Cross-products of pivoted columns leave 1e-12 of a coefficient; numpy on the raw columns near 2000 loses
the rest."""

SIZES = [9, 12, 7, 15, 6, 11, 5, 1, 3, 8, 20, 4]
J = len(SIZES)


def make_rows() -> pl.DataFrame:
    rng = np.random.default_rng(7)
    g = np.repeat(np.arange(J), SIZES)
    n = len(g)
    x = 2000.0 + rng.normal(size=n) + rng.normal(size=J)[g]
    z, w = rng.normal(size=n) + rng.normal(size=J)[g], rng.normal(size=J)[g]
    f = np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    y = 500.0 + 2.0 * (x - 2000) + z + w + rng.normal(size=J)[g] + rng.normal(size=n)
    # the same in every group: the mean of its rows does not vary, though it does within
    even = np.concatenate([np.arange(m) - (m - 1) / 2 for m in SIZES])
    return pl.DataFrame({"g": g, "x": x, "z": z, "w": w, "f": f, "even": even, "wt": rng.uniform(0.5, 2.0, n), "y": y})


ROWS = make_rows()
G = ROWS["g"].to_numpy()
D: dict[str, Array] = {c: ROWS[c].to_numpy() for c in ("x", "z", "w", "even", "wt", "y")}
D |= {"f" + v: (ROWS["f"] == v).to_numpy().astype(float) for v in "bc"} | {"1": np.ones(len(G))}


def means(v: Array, w: Array | None = None) -> Array:
    w = np.ones(len(G)) if w is None else w
    return np.asarray(np.bincount(G, w * v) / np.bincount(G, w))


def inside(v: Array) -> Array:
    return v - means(v)[G]


CASES: dict[str, list[Array]] = {
    "y ~ x + (1 | g)": [D["1"], D["x"]],
    "y ~ x*w + z + (z | g)": [D["1"], D["x"], D["w"], D["z"], D["x"] * D["w"]],
    "y ~ f + x:z + x + z + (1 | g)": [D["1"], D["fb"], D["fc"], D["x"], D["z"], D["x"] * D["z"]],
    "y ~ group_center(x)*w + group_mean(z) + (1 | g)": [
        D["1"], inside(D["x"]), D["w"], means(D["z"])[G], inside(D["x"]) * D["w"],
    ],
    "y ~ grand_center(z) + w + (1 | g)": [D["1"], D["z"] - D["z"].mean(), D["w"]],
    "y ~ even*z + (1 | g)": [D["1"], D["even"], D["z"], D["even"] * D["z"]],
    "y ~ 0 + x + z + (1 | g)": [D["x"], D["z"]],
}  # fmt: skip


@dataclass
class Expected:
    beta: Array
    covariance: Array
    robust: Array
    df: int


def least_squares(columns: list[Array], y: Array, w: Array, groups: Array | None, points: int) -> Expected:
    """Weighted least squares on data centred where an intercept allows it: for numpy's sake."""
    X = np.column_stack(columns)
    has_one = bool(np.all(X[:, 0] == 1.0))
    shift = np.append(0.0, np.average(X[:, 1:], axis=0, weights=w)) if has_one else np.zeros(X.shape[1])
    C, root = X - shift, np.sqrt(w)[:, None]
    # by QR: cross-products of x:z and z with x near 2000 would leave numpy six digits
    Q, R = np.linalg.qr(C * root)
    beta = np.linalg.solve(R, Q.T @ (y * root[:, 0]))
    residual = y - C @ beta
    inverse = np.linalg.inv(R) @ np.linalg.inv(R).T
    df = points - X.shape[1]
    back = np.eye(X.shape[1])
    back[0, 1:] -= shift[1:]
    robust = np.zeros_like(inverse)
    for g in [] if groups is None else np.unique(groups):
        score = C[groups == g].T @ (w * residual)[groups == g]
        robust += np.outer(score, score)
    covariance = back @ inverse @ back.T * float(w @ residual**2) / df
    return Expected(back @ beta, covariance, back @ inverse @ robust @ inverse @ back.T, df)


def assert_same(found: Regression, expected: Expected, robust: bool = True) -> None:
    assert found.df == expected.df
    for one, other in ((found.beta, expected.beta), (found.covariance, expected.covariance)):
        np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE * np.abs(other).max() * 1e-3)
    if robust:
        np.testing.assert_allclose(
            found.robust, expected.robust, rtol=CLOSE, atol=1e-11 * np.abs(expected.robust).max()
        )


def fitted(formula: str, weights: str | None = None) -> mlsql.Fit:
    return mlsql.fit(formula, ROWS, weights=weights)


def weight(weights: str | None) -> Array:
    return D["wt"] if weights else D["1"]


@pytest.mark.parametrize("weights", [None, "wt"])
@pytest.mark.parametrize("formula", CASES)
def test_regression_on_rows(formula: str, weights: str | None) -> None:
    fit = fitted(formula, weights)
    found = total_regression(fit.estimates, fit.products.by_group())
    assert found.left_out == ()
    assert_same(found, least_squares(CASES[formula], D["y"], weight(weights), G, len(G)))


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("weights", [None, "wt"])
@pytest.mark.parametrize("formula", CASES)
def test_regression_on_group_means(formula: str, weights: str | None, by_rows: bool) -> None:
    fit, w = fitted(formula, weights), weight(weights)
    found = between_regression(fit.estimates, by_rows)
    columns = [means(c, w) for c in CASES[formula]]
    # a column centred within groups by unweighted means has weighted means that are not zero
    flat = [i for i, c in enumerate(columns) if np.ptp(c) < 1e-10 and not np.all(c == 1.0)]
    kept = [i for i in range(len(columns)) if i not in flat]
    assert [d.column for d in found.left_out] == flat
    assert list(found.columns) == kept
    points = np.bincount(G, w) if by_rows else np.ones(J)
    expected = least_squares([columns[i] for i in kept], means(D["y"], w), points, None, J)
    assert_same(found, expected, robust=False)


@pytest.mark.parametrize("weights", [None, "wt"])
@pytest.mark.parametrize("formula", CASES)
def test_regression_within_groups(formula: str, weights: str | None) -> None:
    fit, w = fitted(formula, weights), weight(weights)
    found = within_regression(fit.estimates, fit.products.by_group())
    columns = [c - means(c, w)[G] for c in CASES[formula]]
    absorbed = [i for i, c in enumerate(columns) if np.abs(c).max() < 1e-9]
    assert [d.column for d in found.left_out] == absorbed
    kept = [c for i, c in enumerate(columns) if i not in absorbed]
    assert_same(found, least_squares(kept, D["y"] - means(D["y"], w)[G], w, G, len(G) - J))


def test_within_is_the_regression_with_a_dummy_for_each_group() -> None:
    fit = fitted("y ~ x*w + z + (1 | g)")
    found = within_regression(fit.estimates, fit.products.by_group())
    dummies = [(g == G).astype(float) for g in range(J)]
    X = np.column_stack([D["x"] - 2000, D["z"], (D["x"] - 2000) * D["w"], *dummies])
    beta = np.linalg.lstsq(X, D["y"], rcond=None)[0]
    # x with its product counted from 2000 has the same slopes: w alone is absorbed
    np.testing.assert_allclose(found.beta, beta[:3], rtol=CLOSE)
    assert found.df == len(G) - J - 3


def test_columns_that_only_groups_tell_apart_are_named() -> None:
    fit = fitted("y ~ x + group_center(x) + (1 | g)")
    within = within_regression(fit.estimates, fit.products.by_group())
    assert [(d.column, d.explained_by) for d in within.left_out] == [(0, ()), (2, (1,))]
    between = between_regression(fit.estimates, weighted=False)
    assert [(d.column, d.explained_by) for d in between.left_out] == [(2, ())]


def test_robust_errors_of_the_fixed_effects_are_those_of_an_evaluation_without_variance() -> None:
    formula = "y ~ x*w + z + (1 | g)"
    fit = fitted(formula)
    found = total_regression(fit.estimates, fit.products.by_group())
    flat = mlsql.evaluate(formula, ROWS, T=0.0, sigma2=found.sigma2)
    np.testing.assert_allclose(found.beta, flat.estimates.beta, rtol=CLOSE)
    np.testing.assert_allclose(found.covariance, flat.vcov, rtol=CLOSE)
    np.testing.assert_allclose(found.robust, flat.reference(vcov="CR0").covariance, rtol=CLOSE)


def test_group_sums_and_the_share_between_groups() -> None:
    fit = fitted("y ~ x + (1 | g)", "wt")
    sums = group_sums(fit.estimates) * np.append(fit.estimates.statistics.x_scale, 1.0)[:, None]
    pivot = fit.estimates.design.fixed.columns[1].variables[0].pivot
    np.testing.assert_allclose(sums[0], np.bincount(G, D["wt"]), rtol=1e-13)
    np.testing.assert_allclose(sums[1], np.bincount(G, D["wt"] * (D["x"] - pivot)), atol=1e-11)
    m = means(D["x"], D["wt"])[G]
    centre = np.average(D["x"], weights=D["wt"])
    share = np.sum(D["wt"] * (m - centre) ** 2) / np.sum(D["wt"] * (D["x"] - centre) ** 2)
    assert between_share(fit.estimates, fit.products.by_group(), 1) == pytest.approx(share, rel=1e-10)


def test_the_design_effect_does_not_depend_on_the_unit_of_weights() -> None:
    plain = design_effect(fitted("y ~ w + (1 | g)").estimates)
    tenfold = design_effect(mlsql.fit("y ~ w + (1 | g)", ROWS, weights="10 + 0*wt").estimates)
    assert plain is not None
    assert tenfold is not None
    assert tenfold.effect == pytest.approx(plain.effect, rel=1e-8)
    assert plain.size == pytest.approx(len(G) / J)
    assert plain.effect == pytest.approx(1 + (plain.size - 1) * plain.icc)
    assert plain.factor == pytest.approx(np.sqrt(1 - plain.reliability))
    assert design_effect(fitted("y ~ 0 + z + (0 + z | g)").estimates) is None


def test_pairs_of_a_predictor_and_its_group_mean() -> None:
    fit = fitted("y ~ grand_center(x) + group_mean(x) + group_center(z) + group_mean(z) + even + w + (1 | g)")
    assert contextual_pairs(fit.estimates.design) == [(1, 2, False), (3, 4, True)]


def test_more_coefficients_than_groups() -> None:
    rows = ROWS.filter(pl.col("g") < 3)
    fit = mlsql.fit("y ~ x + z + (1 | g)", rows)
    with pytest.raises(FitError, match="the regression on group means has 3 coefficients for 3 points"):
        between_regression(fit.estimates, weighted=True)
    upper = mlsql.fit("y ~ w + (1 | g)", ROWS)
    with pytest.raises(FitError, match="the regression within groups has no column"):
        within_regression(upper.estimates, upper.products.by_group())
