"""Kenward and Roger's covariance matrix and df equal those from explicit V and its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.inference.kenward_roger import kenward_roger

LAYOUTS = ("full", "lean")

RTOL = 1e-7
"""Both sides invert an information matrix of 2 to 5 components, condition below 1e3; agreement is 1e-10 and better."""

DF_RTOL = 1e-6
"""The df divide by the difference of two moments of F: a further digit is lost."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [True, False], ids=["given T", "optimum"])
def test_adjusted_covariance(answer: Callable[..., Any], case: Any, layout: str, given: bool) -> None:
    found = answer(case, layout, given=given)
    theirs = found.dense.kenward_roger
    ours = found.fit.reference("kenward_roger").covariance
    np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=RTOL * np.abs(theirs).max())
    np.testing.assert_allclose(found.fit.inference("kenward_roger")["std_error"], np.sqrt(np.diag(theirs)), rtol=RTOL)


def test_expected_information(answer: Callable[..., Any], case: Any) -> None:
    """sigma2 does not depend on the columns of Z, so its variance is the same in internal ones."""
    found = answer(case, given=True)
    components = kenward_roger(found.fit.estimates).components
    assert components[-1, -1] == pytest.approx(found.dense.expected[-1, -1], rel=RTOL)


@pytest.mark.parametrize("given", [True, False], ids=["given T", "optimum"])
def test_df_and_scale(answer: Callable[..., Any], case: Any, given: bool) -> None:
    found = answer(case, given=given)
    ours = found.fit.inference("kenward_roger")["df"]
    single = [found.dense.kenward_roger_test(row[None]) for row in np.eye(found.p)]
    np.testing.assert_allclose(ours, [df for _, df in single], rtol=DF_RTOL)
    # one contrast needs no factor
    np.testing.assert_allclose([scale for scale, _ in single], 1.0, rtol=DF_RTOL)
    L = found.contrasts
    scale, df = found.dense.kenward_roger_test(L)
    test = found.fit.test(L, df="kenward_roger")
    b, V = L @ found.model.beta, L @ found.dense.kenward_roger @ L.T
    assert test["df2"].item() == pytest.approx(df, rel=DF_RTOL)
    assert test["statistic"].item() == pytest.approx(scale * float(b @ np.linalg.solve(V, b)) / 2, rel=DF_RTOL)


def one_way(J: int, n: int = 6, seed: int = 1) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(J), n)
    return pl.DataFrame({"g": g, "y": 3 + 2 * rng.normal(size=J)[g] + rng.normal(size=J * n)})


@pytest.mark.parametrize("n", [5, 6, 8])
@pytest.mark.parametrize("J", [2, 3, 4, 5, 6, 7, 12])
def test_balanced_one_way_anova_has_the_exact_test(J: int, n: int) -> None:
    """The t test of the mean of J group means: J - 1 df and no adjustment, down to two groups."""
    data = one_way(J, n)
    fit = mlsql.fit("y ~ 1 + (1 | g)", data)
    assert not fit.singular
    means = data.group_by("g").agg(pl.col("y").mean())["y"].to_numpy()
    row = fit.inference("kenward_roger").row(0, named=True)
    assert row["df"] == pytest.approx(J - 1, rel=DF_RTOL)
    # the optimum is found to 1e-6 of the variances
    assert row["std_error"] == pytest.approx(means.std(ddof=1) / np.sqrt(J), rel=1e-5)
    assert row["std_error"] == pytest.approx(np.sqrt(fit.vcov.item()), rel=1e-7)


def test_balanced_split_plot_has_exact_tests() -> None:
    """Treatment between J groups, time within: F tests of the analysis of variance with J - 2 and J - 2 df."""
    rng = np.random.default_rng(8)
    J, n = 10, 4
    g = np.repeat(np.arange(J), n)
    t = np.tile(np.arange(n) - 1.5, J)
    a = (g % 2) * 1.0
    u = rng.normal(size=(J, 2)) * [2.0, 1.5]
    y = a + 0.5 * t + u[g, 0] + u[g, 1] * t + rng.normal(size=J * n)
    fit = mlsql.fit("y ~ a*t + (t || g)", pl.DataFrame({"g": g, "a": a, "t": t, "y": y}))
    assert not fit.singular
    np.testing.assert_allclose(fit.inference("kenward_roger")["df"], J - 2, rtol=1e-5)
    # balanced: nothing to adjust
    np.testing.assert_allclose(fit.reference("kenward_roger").covariance, fit.vcov, rtol=1e-6, atol=1e-8)


def test_the_adjustment_never_shrinks_a_standard_error(answer: Callable[..., Any], case: Any) -> None:
    """`||` and all: the bias of the estimated covariance matrix is downward for every contrast (Kackar & Harville)."""
    found = answer(case)
    difference = found.fit.reference("kenward_roger").covariance - found.fit.vcov
    assert np.linalg.eigvalsh(difference)[0] > -1e-9 * np.abs(found.fit.vcov).max()


@pytest.mark.parametrize("J", [6, 7, 8, 13])
def test_balanced_comparison_of_three_treatments_has_the_exact_f_test(J: int) -> None:
    """Groups of one size: F of a regression of the group means, 2 and J - 3 df (4 df: an F without a variance)."""
    rng = np.random.default_rng(3)
    n = 4
    g = np.repeat(np.arange(J), n)
    t = np.array(["a", "b", "c"])[np.arange(J) % 3]
    data = pl.DataFrame({"g": g, "t": t[g], "y": 2 * rng.normal(size=J)[g] + rng.normal(size=J * n)})
    fit = mlsql.fit("y ~ t + (1 | g)", data)
    assert not fit.singular
    y = data.group_by("g", maintain_order=True).agg(pl.col("y").mean())["y"].to_numpy()
    means = np.array([y[t == k].mean() for k in "abc"])
    within = sum(np.sum((y[t == k] - m) ** 2) for k, m in zip("abc", means, strict=True))
    between = sum(np.sum(t == k) * (m - y.mean()) ** 2 for k, m in zip("abc", means, strict=True))
    test = fit.test(["t[b]", "t[c]"], df="kenward_roger")
    assert test["df2"].item() == pytest.approx(J - 3, rel=DF_RTOL)
    # the optimum is found to 1e-6 of the variances
    assert test["statistic"].item() == pytest.approx((between / 2) / (within / (J - 3)), rel=1e-5)
