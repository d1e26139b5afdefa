"""Degrees of freedom, robust errors and profiles of R's packages for nested and crossed models."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.inference.kenward_roger import kenward_roger
from mlsql.inference.reference import make_reference

Array = NDArray[np.float64]
Fitted = Callable[[str], mlsql.Fit]

EXPECTED = Path(__file__).parent.parent / "reference" / "expected" / "levels"

OPTIMUM = 1e-5
"""R's "exact" values are at a score of zero to rounding; the search here ends within 1e-5 of a standard error of it."""

PACKAGES = 2e-4
"""lme4 stops within about 1e-6 of the optimum's deviance, hence 1e-4 of the parameters' standard errors or more."""

PROFILE = 1e-6
"""Of an interval's width: ends are where the root of the rise is within 1e-6 of its quantile."""

NESTED = [
    "pastes_nested_reml",
    "pastes_nested_ml",
    "pastes_unique_labels_reml",
    "egsingle_seventh_reml",
    "egsingle_seventh_intercepts_reml",
    "egsingle_slope_at_school_reml",
    "egsingle_slope_at_child_reml",
    "egsingle_diagonal_at_school_ml",
    "egsingle_child_predictor_at_school_ml",
    "egsingle_growth_reml",
]
CROSSED = ["penicillin_crossed_reml", "penicillin_crossed_ml"]


@cache
def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text())
    return found


def numbers(value: Any) -> Array:
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


@pytest.fixture(scope="module")
def fitted(data_file: Callable[[str], str]) -> Fitted:
    found: dict[str, mlsql.Fit] = {}

    def fit(name: str) -> mlsql.Fit:
        if name not in found:
            expected = read(name)
            frame = pl.read_parquet(data_file(expected["data"]))
            if "rows" in expected:
                frame = frame.filter(pl.sql_expr(expected["rows"]))
            weights = expected.get("weights")
            found[name] = mlsql.fit(expected["formula"], frame, method=expected["method"], weights=weights)
        return found[name]

    return fit


def close(ours: Array, theirs: Array, share: float) -> bool:
    """Whether two covariance matrices agree to a share of the standard errors."""
    size = np.sqrt(np.diag(theirs))
    return bool(np.all(np.abs(ours - theirs) <= share * np.outer(size, size)))


def single(fit: mlsql.Fit, df: Any, vcov: Any = "model") -> tuple[Array, Array]:
    """The covariance matrix, and the df of every coefficient."""
    found = fit.reference(df, vcov)
    return found.covariance, found.df(np.eye(len(found.covariance)))


@pytest.mark.parametrize("name", [*NESTED, *CROSSED, "egsingle_seventh_weighted_reml"])
def test_satterthwaite(fitted: Fitted, name: str) -> None:
    covariance, df = single(fitted(name), "satterthwaite")
    exact = read(name)["exact"]
    assert close(covariance, np.atleast_2d(exact["vcov"]), OPTIMUM)
    np.testing.assert_allclose(df, numbers(exact["satterthwaite_df"]), rtol=OPTIMUM)


@pytest.mark.parametrize(
    "name", [n for n in [*NESTED, *CROSSED, "egsingle_seventh_weighted_reml"] if n.endswith("reml")]
)
def test_kenward_roger(fitted: Fitted, name: str) -> None:
    covariance, df = single(fitted(name), "kenward_roger")
    expected = read(name)
    assert close(covariance, np.atleast_2d(expected["exact"]["kenward_roger_vcov"]), OPTIMUM)
    np.testing.assert_allclose(df, numbers(expected["exact"]["kenward_roger_df"]), rtol=OPTIMUM)
    if "kenward_roger_df" in expected:
        np.testing.assert_allclose(df, numbers(expected["kenward_roger_df"]), rtol=PACKAGES)
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), numbers(expected["kenward_roger_se"]), rtol=PACKAGES)


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR2"])
@pytest.mark.parametrize("name", NESTED)
def test_robust(fitted: Fitted, name: str, kind: Any) -> None:
    """Clusters are the groups of the highest level, as clubSandwich takes them."""
    covariance, df = single(fitted(name), "satterthwaite", kind)
    expected = read(name)
    assert close(covariance, np.atleast_2d(expected["exact"][kind]), OPTIMUM)
    np.testing.assert_allclose(df, numbers(expected["exact"][f"{kind}_df"]), rtol=OPTIMUM)
    package = expected["clubsandwich"]
    assert close(covariance, np.atleast_2d(package[f"vcov_{kind}"]), PACKAGES)
    if kind == "CR2":
        np.testing.assert_allclose(df, numbers(package["coef_test_CR2"]["df"]), rtol=PACKAGES)


@pytest.mark.parametrize(
    "name", ["profile_pastes_reml", "profile_pastes_ml", "profile_penicillin_reml", "profile_penicillin_ml"]
)
def test_profile(fitted: Fitted, name: str) -> None:
    """Against the same definition, found by general-purpose optimisers and dense matrices."""
    expected = read(name)["exact_profile"]
    table = fitted(name).confint(method="profile")
    limits = table.select("conf_low", "conf_high").to_numpy()
    fixed, (first, second), residual = limits[0], np.sqrt(limits[1:3]), np.sqrt(limits[3])
    # R puts the finer factor first
    ours = [second, first, residual, fixed] if "pastes" in name else [first, second, residual, fixed]
    for (low, high), below, above in zip(ours, expected["lower"], expected["upper"], strict=True):
        width = above - below
        assert low == pytest.approx(below, abs=PROFILE * width)
        assert high == pytest.approx(above, abs=PROFILE * width)


def test_a_joint_hypothesis(fitted: Fitted) -> None:
    """Of one row it is the t test; of two its df lie near those of the rows."""
    fit = fitted("egsingle_seventh_reml")
    for df, vcov in (("satterthwaite", "model"), ("kenward_roger", "model"), ("satterthwaite", "CR2")):
        found = make_reference(fit.estimates, fit.products.by_group, df, vcov)  # type: ignore[arg-type]
        L = np.eye(len(fit.estimates.beta))[[1, 2]]
        one = found.joint(L[:1], (L @ fit.estimates.beta)[:1])
        assert one.df1 == 1
        assert one.df2 == pytest.approx(float(found.df(L[:1])[0]), rel=1e-10)
        both = found.joint(L, L @ fit.estimates.beta)
        assert both.df1 == 2
        assert 0.8 * found.df(L).min() < both.df2 < 1.2 * found.df(L).max()


def test_kenward_roger_of_a_part_is_that_of_the_whole(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products between groups of one top group, and between all groups."""
    from mlsql.inference import level_kenward_roger

    estimates = fitted("egsingle_seventh_reml").estimates
    parts = kenward_roger(estimates)
    whole = [np.arange(i.n_groups) for i in estimates.levels.incidences]  # type: ignore[union-attr]
    monkeypatch.setattr(level_kenward_roger, "_parts", lambda stats: [whole])
    np.testing.assert_allclose(kenward_roger(estimates).components, parts.components, rtol=1e-9)
