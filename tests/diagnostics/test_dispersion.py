"""Homogeneity of level-1 variance and the shape of residuals: against direct computations and known numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.diagnostics.dispersion import Dispersion, dispersion, shape
from mlsql.diagnostics.group_ols import group_least_squares
from mlsql.diagnostics.level2 import outcome_spread

Array = NDArray[np.float64]

CENTRED = "mathach ~ group_center(ses) + (1 | school)"


def compared(fit: mlsql.Fit, min_n: int = 10) -> Dispersion:
    design, moments = fit.products.complete()
    return dispersion(group_least_squares(design, moments), outcome_spread(design, moments).squares, min_n)


# of the standard High School & Beyond file, recomputed independently of this program; three decimals given
@pytest.mark.parametrize(("formula", "H"), [(CENTRED, 246.117), ("mathach ~ 1 + (1 | school)", 298.339)])
def test_high_school_and_beyond(formula: str, H: float) -> None:
    found = compared(mlsql.fit(formula, mlsql.example_data("hsb")))
    assert found.chi2 == pytest.approx(H, abs=5e-4)
    assert (found.groups, found.small, found.deficient, found.exact) == (160, 0, 0, 0)
    assert found.p_value < 0.001


def test_the_most_extreme_schools() -> None:
    """Corrected indices, as listed for the same file."""
    found = compared(mlsql.fit(CENTRED, mlsql.example_data("hsb")))
    order = np.sort(found.corrected)
    assert order[:4] == pytest.approx([-4.995, -3.688, -3.239, -3.144], abs=5e-4)
    assert order[-1] == pytest.approx(2.234, abs=5e-4)


@pytest.mark.parametrize("slope", ["ses", "group_center(ses)"])
def test_against_one_regression_per_school(slope: str) -> None:
    """The slope's centring does not change a school's own residuals."""
    frame = pl.read_parquet(mlsql.example_data("hsb")).sort("school")
    f, S2 = [], []
    for _, school in frame.group_by("school", maintain_order=True):
        X = np.column_stack([np.ones(school.height), school["ses"], school["female"]])
        y = school["mathach"].to_numpy()
        rss = float(np.sum((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2))
        rank = np.linalg.matrix_rank(X)
        f.append(school.height - rank if rank == 3 else 0)
        S2.append(rss / (school.height - rank))
    df, log, full = np.array(f), np.log(S2), np.array(f) > 0
    index = np.sqrt(df[full] / 2) * (log[full] - df[full] @ log[full] / df[full].sum())
    found = compared(mlsql.fit(f"mathach ~ {slope} + female + (1 | school)", mlsql.example_data("hsb")))
    assert found.deficient == int((~full).sum()) > 0
    # sums of squares of forty rows, by cancellation
    assert found.index[full] == pytest.approx(index, abs=1e-9)
    assert found.chi2 == pytest.approx(float(index @ index), rel=1e-9)
    assert np.isnan(found.index[~full]).all()


def small_groups() -> pl.DataFrame:
    """Groups a: 12 rows; b: 3; c: 12 with one x; d: 12 on a line; e, f: 15 and 18."""
    rng = np.random.default_rng(5)
    parts = []
    for g, n in {"a": 12, "b": 3, "c": 12, "d": 12, "e": 15, "f": 18}.items():
        x = np.full(n, 2.0) if g == "c" else rng.normal(size=n)
        y = 1e3 + 2 * x + (0.0 if g == "d" else rng.normal(size=n))
        parts.append(pl.DataFrame({"g": g, "x": x, "y": y, "w": rng.uniform(0.5, 2, n)}))
    return pl.concat(parts)


def test_groups_left_out_are_counted() -> None:
    found = compared(mlsql.fit("y ~ x + (1 | g)", small_groups()))
    assert found.used.tolist() == [True, False, False, False, True, True]
    assert (found.small, found.deficient, found.exact) == (1, 1, 1)
    assert np.isnan(found.sd[2])
    assert found.sd[3] == 0.0
    assert compared(mlsql.fit("y ~ x + (1 | g)", small_groups()), 1).small == 0


def test_weights() -> None:
    frame = small_groups()
    found = compared(mlsql.fit("y ~ x + (1 | g)", frame, weights="w"))
    group = frame.filter(g="e")
    root = np.sqrt(group["w"].to_numpy())
    X = np.column_stack([root, root * group["x"].to_numpy()])
    y = root * group["y"].to_numpy()
    rss = float(np.sum((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2))
    assert found.sd[4] == pytest.approx(np.sqrt(rss / 13), rel=1e-8)


def powers(values: Array) -> Array:
    return np.array([[np.sum(values**k)] for k in range(1, 5)])


@pytest.mark.parametrize("n", [4, 5, 30, 1000])
def test_shape_is_that_of_pandas(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n) - 1
    found, series = shape(np.array([float(n)]), powers(values)), pd.Series(values)
    # fourth moments by cancellation
    assert found.mean[0] == pytest.approx(series.mean(), abs=1e-12)
    assert found.sd[0] == pytest.approx(series.std(), rel=1e-12)
    assert found.skewness[0] == pytest.approx(series.skew(), rel=1e-9)
    assert found.kurtosis[0] == pytest.approx(series.kurt(), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "there"),
    [([], ""), ([1.5], "m"), ([1.0, 2.0], "ms"), ([1.0, 2.0, 4.0], "msk"), ([0.1] * 9, "m0"), ([0.0] * 9, "m0")],
)
def test_shape_of_few_or_equal_values(values: list[float], there: str) -> None:
    found = shape(np.array([float(len(values))]), powers(np.array(values)))
    assert np.isfinite(found.mean[0]) == ("m" in there)
    assert np.isfinite(found.sd[0]) == ("s" in there or "0" in there)
    assert "0" not in there or found.sd[0] == 0.0
    assert np.isfinite(found.skewness[0]) == ("k" in there)
    assert np.isnan(found.kurtosis[0])
