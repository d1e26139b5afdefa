"""Cluster-robust covariance matrices and their df equal those of n x n matrices, and their textbook properties hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql

KINDS = ("CR0", "CR1", "CR2")
LAYOUTS = ("full", "lean")

RTOL = 1e-8
"""Both sides solve well-conditioned systems of size 100 in double precision; agreement is 1e-11 and better."""

NOT_EXACT = "one group's dummy"
"""Its effect is determined by one group alone, whose residuals hold no information on it: no CR2 is unbiased there."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_covariance(answer: Callable[..., Any], case: Any, kind: str, layout: str) -> None:
    found = answer(case, layout)
    ours, theirs = found.fit.reference(vcov=kind).covariance, found.dense.robust(kind)
    np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=RTOL * np.abs(theirs).max())
    np.testing.assert_allclose(found.fit.inference(vcov=kind)["std_error"], np.sqrt(np.diag(theirs)), rtol=RTOL)


def test_cr2_does_not_depend_on_the_root(answer: Callable[..., Any], case: Any) -> None:
    dense = answer(case).dense
    symmetric, triangular = dense.robust("CR2"), dense.robust("CR2", "triangular")
    np.testing.assert_allclose(symmetric, triangular, rtol=RTOL, atol=RTOL * np.abs(symmetric).max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_satterthwaite_df(answer: Callable[..., Any], case: Any, kind: str, layout: str) -> None:
    found = answer(case, layout)
    reference = found.fit.reference("satterthwaite", kind)
    rows = np.vstack([np.eye(found.p), found.contrasts])
    expected = [found.dense.robust_df(kind, row) for row in rows]
    np.testing.assert_allclose(reference.df(rows), expected, rtol=RTOL)


@pytest.mark.parametrize("kind", KINDS)
def test_hotelling_df_and_statistic(answer: Callable[..., Any], case: Any, kind: str) -> None:
    found = answer(case)
    L = found.contrasts
    eta = found.dense.hotelling_df(kind, L)
    test = found.fit.test(L, df="satterthwaite", vcov=kind)
    b, V = L @ found.model.beta, L @ found.dense.robust(kind) @ L.T
    wald = float(b @ np.linalg.solve(V, b))
    # the variance of what is left of one group's own effect is a small difference of squares 5e4 times as large
    rtol = 1e-6 if case.name == NOT_EXACT else RTOL
    assert test["df1"].item() == 2
    assert test["df2"].item() == pytest.approx(eta - 1, rel=rtol)
    assert test["chi2"].item() == pytest.approx(wald, rel=rtol)
    assert test["statistic"].item() == pytest.approx((eta - 1) / (eta * 2) * wald, rel=rtol)


def test_the_mean_of_cr2_under_the_model_is_the_models_covariance(answer: Callable[..., Any], case: Any) -> None:
    """E(V^R) = sum over groups of Var(part of the estimate): exact where the model holds."""
    found = answer(case)
    mean = np.einsum("stii->st", found.dense.P("CR2", np.eye(found.p)))
    if case.name == NOT_EXACT:
        assert mean[2, 2] < 0.9 * found.fit.vcov[2, 2]
    else:
        np.testing.assert_allclose(mean, found.fit.vcov, rtol=1e-6, atol=1e-6 * found.fit.vcov.max())


# ---------------------------------------------------------------------------------------------- textbook cases


def balanced(J: int = 7, n: int = 5, seed: int = 3) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(J), n)
    return pl.DataFrame({"g": g, "y": 3 + 2 * rng.normal(size=J)[g] + rng.normal(size=J * n)})


def test_balanced_one_way_anova() -> None:
    """CR2 is the model's covariance (s_means^2 / J, both), with J - 1 df; CR1 is the same, CR0 (J - 1) / J of it."""
    fit = mlsql.fit("y ~ 1 + (1 | g)", balanced())
    assert not fit.singular
    J, model = fit.n_groups, fit.vcov.item()
    for kind, factor in (("CR2", 1.0), ("CR1", 1.0), ("CR0", (J - 1) / J)):
        row = fit.inference("satterthwaite", kind).row(0, named=True)
        # the optimum is found to 1e-6 of the variances
        assert row["std_error"] ** 2 == pytest.approx(factor * model, rel=1e-5)
        assert row["df"] == pytest.approx(J - 1, rel=1e-5)


def within_spread(J: int, n: int, T: float) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(J), n)
    x = rng.normal(size=J * n)
    y = x + np.sqrt(T) * rng.normal(size=J)[g] + rng.normal(size=J * n)
    return pl.DataFrame({"g": g, "x": x, "y": y})


@pytest.mark.parametrize("T", [1.0, 1e2, 1e3, 1e5, 1e8])
def test_groups_far_apart(T: float) -> None:
    """As T grows, V's largest eigenvalue does too (n T / sigma2); the slope's errors tend to a limit, not to zero."""
    fit = mlsql.evaluate("y ~ x + (1 | g)", within_spread(12, 200, T), T=T, sigma2=1.0)
    data = within_spread(12, 200, T).with_columns(
        pl.col("x") - pl.col("x").mean().over("g"), pl.col("y") - pl.col("y").mean().over("g")
    )
    x, y, g = (data[c].to_numpy() for c in ("x", "y", "g"))
    # T -> infinity is the regression within groups: A_j = (I - x_j x_j' / x'x)^-1/2 = 1 / sqrt(1 - h_j) along x_j
    slope = float(x @ y / (x @ x))
    h = np.bincount(g, x * x) / (x @ x)
    scores = np.bincount(g, x * (y - slope * x)) / (x @ x)
    ours = fit.inference(vcov="CR2").row(1, named=True)
    expected = np.sqrt(np.sum(scores**2 / (1 - h)))
    # group effects of size sqrt(T) get the weight 1 / (n T)
    close = 1 / (200 * np.sqrt(T))
    assert ours["std_error"] == pytest.approx(expected, rel=close)
    assert fit.inference(vcov="CR0")["std_error"][1] == pytest.approx(np.sqrt(np.sum(scores**2)), rel=close)
    assert 10.0 < ours["df"] < 11.0


def test_the_default_table_has_cr0_and_its_ratio(answer: Callable[..., Any], case: Any) -> None:
    found = answer(case)
    table = found.fit.fixed_effects
    error = np.sqrt(np.diag(found.dense.robust("CR0")))
    np.testing.assert_allclose(table["robust_std_error"], error, rtol=RTOL)
    np.testing.assert_allclose(table["robust_ratio"], error / np.sqrt(np.diag(found.model.vcov)), rtol=1e-7)


@pytest.mark.parametrize(("kind", "advised"), [("CR0", True), ("CR1", True), ("CR2", False), ("model", False)])
def test_few_groups_are_told(kind: Any, advised: bool) -> None:
    notes = mlsql.fit("y ~ 1 + (1 | g)", balanced()).inference(vcov=kind)["note"]
    assert (notes.null_count() == 0) == advised
    if advised:
        assert f"{kind} with 7 groups is too small on average; use vcov='CR2'" in notes[0]


def test_cr2_of_an_effect_that_one_group_determines(rows: Callable[..., pl.DataFrame]) -> None:
    """Few df, and the note says so."""
    row = mlsql.fit("y ~ x + k + (1 | g)", rows()).inference(vcov="CR2").row(2, named=True)
    assert np.isfinite(row["std_error"])
    assert row["df"] < 4
    assert "p values with fewer than 4 df are not reliable" in row["note"]
