"""Bootstrap and jackknife from moments: against model and robust standard errors, lme4, and refits of reduced data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.inference.resampling import jackknife
from mlsql.likelihood.gaussian import GroupDeviance
from mlsql.moments.reweighted import reweighted

Array = NDArray[np.float64]

HSB = mlsql.example_data("hsb")
BOOTMER = Path(__file__).parent.parent / "reference" / "expected" / "inference" / "inference_sleepstudy_reml.json"

ROUGH = 0.15
"""Of a standard deviation of 400 replicates, whose own relative error is 1 / sqrt(800) = 3.5 %, that of 1,000 2.2 %."""

REFIT = 1e-6
"""Of a standard error: searches from different starts stop within 1e-5 of the variance components' errors, which fixed
effects hardly feel."""

SAME = 1e-10
"""Relative: sums of the same products in another order."""


@pytest.fixture(scope="module")
def ancova() -> mlsql.Fit:
    return mlsql.fit("mathach ~ sector + ses + (1 | school)", HSB)


@pytest.fixture(scope="module")
def bootstrap(ancova: mlsql.Fit) -> Any:
    return ancova.resampling.bootstrap(400, seed=1)


# ---------------------------------------------------------------------------------------------- parametric


def test_standard_errors_are_the_models(ancova: mlsql.Fit, bootstrap: Any) -> None:
    table = bootstrap.table()
    model = [*ancova.fixed_effects["std_error"], *ancova.variance_components["std_error"]]
    np.testing.assert_allclose(table["std_error"], model, rtol=ROUGH)
    # unbiased, within the error of a mean of 400
    assert (table["bias"].abs() < 4 * table["std_error"] / 20).all()


def test_distribution_of_boot_mer(data_file: Callable[[str], str]) -> None:
    expected = json.loads(BOOTMER.read_text())["parametric_bootstrap"]
    fit = mlsql.fit("Reaction ~ Days + (Days | Subject)", data_file("sleepstudy"))
    found = fit.resampling.bootstrap(400, seed=1).found
    T = found.T
    sd = np.sqrt(np.einsum("raa->ra", T))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = T[:, 0, 1] / (sd[:, 0] * sd[:, 1])
    ours = np.column_stack([found.beta, sd, correlation, np.sqrt(found.sigma2)])
    assert np.isfinite(ours).all()
    names = ["(Intercept)", "Days", "sd_intercept", "sd_days", "correlation", "sigma"]
    assert expected["parm"] == names
    np.testing.assert_allclose(ours.std(axis=0, ddof=1), expected["sd"], rtol=ROUGH)
    # means of 400 and of 1,000 replicates
    error = np.array(expected["sd"]) * np.sqrt(1 / 400 + 1 / 1000)
    assert (np.abs(ours.mean(axis=0) - expected["mean"]) < 4 * error).all()


def test_the_table(bootstrap: Any, ancova: mlsql.Fit) -> None:
    table = bootstrap.table()
    assert table.columns == [
        "effect",
        "term",
        "estimate",
        "bias",
        "std_error",
        "conf_low",
        "conf_high",
        "replicates",
        "note",
    ]
    assert table["effect"].to_list() == ["fixed"] * 3 + ["variance"] * 2
    assert table["term"].to_list() == ["(Intercept)", "sector", "ses", "school: (Intercept)", "Residual"]
    assert table["estimate"].to_list() == [*ancova.estimates.beta, ancova.T[0, 0], ancova.sigma2]
    assert table["replicates"].to_list() == [400] * 5
    assert table["note"].to_list() == [None] * 5
    values = np.column_stack([bootstrap.found.beta, bootstrap.found.T[:, 0, 0], bootstrap.found.sigma2])
    np.testing.assert_allclose(table["bias"], values.mean(axis=0) - table["estimate"].to_numpy(), atol=1e-12)
    np.testing.assert_allclose(table["std_error"], values.std(axis=0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_intervals(bootstrap: Any, level: float) -> None:
    """Percentiles, and those turned around the estimate."""
    values = np.column_stack([bootstrap.found.beta, bootstrap.found.T[:, 0, 0], bootstrap.found.sigma2])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    percentile, basic = bootstrap.table(level), bootstrap.table(level, "basic")
    np.testing.assert_allclose(percentile["conf_low"], low, rtol=1e-12)
    np.testing.assert_allclose(percentile["conf_high"], high, rtol=1e-12)
    estimate = percentile["estimate"].to_numpy()
    np.testing.assert_allclose(basic["conf_low"], 2 * estimate - high, rtol=1e-12)
    np.testing.assert_allclose(basic["conf_high"], 2 * estimate - low, rtol=1e-12)


def test_replicates_one_by_one(bootstrap: Any) -> None:
    frame = bootstrap.replicates
    assert frame.columns == ["replicate", "effect", "term", "estimate"]
    assert frame.height == 400 * 5
    assert frame["replicate"].unique().sort().to_list() == list(range(1, 401))
    last = frame.filter(pl.col("replicate") == 400)
    assert last["term"].to_list() == ["(Intercept)", "sector", "ses", "school: (Intercept)", "Residual"]
    found = bootstrap.found
    assert last["estimate"].to_list() == [*found.beta[399], found.T[399, 0, 0], found.sigma2[399]]


def test_the_same_seed_gives_the_same_replicates(ancova: mlsql.Fit) -> None:
    for kind in ("bootstrap", "cluster_bootstrap"):
        draw = getattr(ancova.resampling, kind)
        first, second, other = (draw(3, seed=seed).replicates for seed in (5, 5, 6))
        assert first.equals(second)
        assert not first.equals(other)
        # a longer run begins with the shorter one
        longer = draw(4, seed=5).replicates
        assert longer.filter(pl.col("replicate") <= 3).equals(first)


# ---------------------------------------------------------------------------------------------- boundary


def test_a_fit_on_the_boundary_is_simulated_and_says_so(data_file: Callable[[str], str]) -> None:
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff2"))
    assert fit.singular
    found = fit.resampling.bootstrap(100, seed=1)
    table = found.table()
    singular = int(found.found.singular.sum())
    # half of the estimates of a variance that is zero, more in small samples
    assert 45 < singular < 80
    note = table["note"][0]
    assert note == (
        f"the fit is on the boundary: intervals of its variances are rough; {singular} of 100 replicates are on the "
        "boundary"
    )
    assert table["note"].n_unique() == 1
    batch = table.row(1, named=True)
    assert batch["estimate"] == 0.0
    assert batch["conf_low"] == 0.0
    assert batch["conf_high"] > 0.0
    zero = found.found.T[:, 0, 0] == 0.0
    assert int(zero.sum()) == singular


def test_correlations_of_replicates_without_variance_are_left_out() -> None:
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(15), rng.integers(3, 9, 15))
    x = rng.normal(size=len(g)) + 1
    fit = mlsql.fit("y ~ x + (x | g)", pl.DataFrame({"g": g, "x": x, "y": 1 + x + rng.normal(size=len(g))}))
    assert not fit.T.any()
    found = fit.resampling.bootstrap(40, seed=1)
    row = found.table().filter(pl.col("effect") == "correlation").row(0, named=True)
    T = found.found.T
    assert row["replicates"] == int(np.sum((T[:, 0, 0] > 0) & (T[:, 1, 1] > 0))) < 40
    # the estimate's own correlation is not defined, so that there is nothing to compare replicates with
    assert [row[c] for c in ("estimate", "bias", "std_error", "conf_low", "conf_high")] == [None] * 5
    frame = found.replicates.filter(pl.col("effect") == "correlation")
    assert frame["estimate"].null_count() == 40 - row["replicates"]


def test_one_replicate_has_no_spread(ancova: mlsql.Fit) -> None:
    table = ancova.resampling.bootstrap(1).table()
    assert table.select("bias", "std_error", "conf_low", "conf_high").null_count().row(0) == (5, 5, 5, 5)


# ---------------------------------------------------------------------------------------------- groups repeated


def repeated(data: pl.DataFrame, counts: NDArray[np.int64]) -> pl.DataFrame:
    """The rows of group j of the sorted groups counts[j] times, every copy a group of its own."""
    keys = data["g"].unique().sort()
    chosen = np.repeat(np.arange(len(keys)), counts)
    frames = [data.filter(pl.col("g") == keys[int(j)]).with_columns(pl.lit(c).alias("g")) for c, j in enumerate(chosen)]
    return pl.concat(frames)


COUNTS = np.array([0, 1, 2, 1, 0, 3, 1, 1, 2, 0, 1, 1, 1, 2, 1, 0, 1, 1])


def test_reweighted_statistics_are_those_of_repeated_groups(
    answer: Callable[..., Any], rows: Callable[..., pl.DataFrame], case: Any
) -> None:
    """Deviance, fixed effects and their covariance matrix at the fit's T and sigma2."""
    fit = answer(case).fit
    stats = reweighted(fit.estimates.statistics, fit.products.by_group(), COUNTS)
    data, options = case.inputs(repeated(rows(), COUNTS))
    direct = mlsql.evaluate(case.formula, data, T=fit.T, sigma2=fit.sigma2, **options)
    assert (stats.n_groups, stats.n_rows) == (direct.n_groups, direct.n_rows)
    there = GroupDeviance(stats, "REML").at(fit.estimates.L, sigma2=fit.sigma2)
    np.testing.assert_allclose(stats.user_beta(there.beta), direct.estimates.beta, rtol=SAME)
    back = stats.beta_transform
    np.testing.assert_allclose(
        back @ there.beta_covariance @ back.T, direct.vcov, rtol=SAME, atol=SAME * np.abs(direct.vcov).max()
    )
    # the weights' own constant is left out
    constant = direct.estimates.statistics.log_weights
    assert there.deviance - constant == pytest.approx(direct.deviance, rel=SAME)


def test_a_cluster_bootstrap_draws_as_many_groups(ancova: mlsql.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(statistics: Any, products: Array, counts: NDArray[np.int64]) -> Any:
        seen.append(counts)
        return reweighted(statistics, products, counts)

    monkeypatch.setattr("mlsql.inference.resampling.reweighted", spy)
    ancova.resampling.cluster_bootstrap(50, seed=3)
    counts = np.array(seen)
    assert counts.shape == (50, 160)
    assert (counts.sum(axis=1) == 160).all()
    # each count is binomial with mean 1 and variance 159 / 160: 8,000 of them, dependent within a draw only
    assert abs(counts.var() - 159 / 160) < 5 * np.sqrt(2 / 8000)
    assert (counts == 0).mean() == pytest.approx((159 / 160) ** 160, abs=5 * np.sqrt(0.25 / 8000))


def test_cluster_bootstrap_errors_are_robust_errors(ancova: mlsql.Fit) -> None:
    """CR0 holds the variance components where they are; with 160 groups that hardly matters."""
    found = ancova.resampling.cluster_bootstrap(400, seed=1)
    table = found.table()
    np.testing.assert_allclose(table["std_error"][:3], ancova.fixed_effects["robust_std_error"], rtol=ROUGH)
    assert found.found.converged.all()
    assert found.found.failed == 0


# ---------------------------------------------------------------------------------------------- jackknife


@pytest.mark.parametrize("formula", ["y ~ w*x + (x | g)", "y ~ x + z + (x + z || g)", "weights"])
def test_jackknife_replicates_are_refits_without_a_group(rows: Callable[..., pl.DataFrame], formula: str) -> None:
    data, options = rows().filter(pl.col("g") > 10 + 3 * 5), {}
    if formula == "weights":
        formula, options = "y ~ w + x + (1 | g)", {"weights": "weight"}
    fit = mlsql.fit(formula, data, **options)
    J = fit.n_groups
    assert J == 12
    found = jackknife(fit.estimates, fit.products.by_group(), J, 1)
    assert (len(found.beta), found.failed) == (J, 0)
    error = np.sqrt(np.diag(fit.vcov))
    betas, variances = [], []
    for j, key in enumerate(data["g"].unique().sort()):
        direct = mlsql.fit(formula, data.filter(pl.col("g") != key), **options)
        assert (np.abs(found.beta[j] - direct.estimates.beta) < REFIT * error).all(), key
        scale = np.abs(direct.T).max() + direct.sigma2
        assert np.abs(found.T[j] - direct.T).max() < 1e-5 * scale, key
        assert found.sigma2[j] == pytest.approx(direct.sigma2, rel=1e-5)
        assert found.singular[j] == direct.singular
        betas.append(direct.estimates.beta)
        variances.append(np.append(np.diag(direct.T), direct.sigma2))
    table = fit.resampling.jackknife()
    assert table["replicates"].unique().to_list() == [J]
    own = table.filter(pl.col("effect") != "correlation")
    values = np.hstack([betas, variances])
    estimate = np.concatenate([fit.estimates.beta, np.diag(fit.T), [fit.sigma2]])
    expected = np.sqrt((J - 1) / J * np.sum((values - values.mean(axis=0)) ** 2, axis=0))
    np.testing.assert_allclose(own["std_error"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        own["bias"], (J - 1) * (values.mean(axis=0) - estimate), atol=1e-4 * float(expected.max())
    )
    half = 1.959963984540054 * own["std_error"].to_numpy()
    np.testing.assert_allclose(own["conf_low"], own["estimate"].to_numpy() - half, rtol=1e-9)
    np.testing.assert_allclose(own["conf_high"], own["estimate"].to_numpy() + half, rtol=1e-9)


def test_jackknife_of_blocks_of_groups(ancova: mlsql.Fit) -> None:
    table = ancova.resampling.jackknife(blocks=40, seed=1)
    assert table["replicates"].to_list() == [40] * 5
    # leaving out four groups at a time estimates the same errors, less precisely: 40 squares
    np.testing.assert_allclose(table["std_error"][:3], ancova.fixed_effects["robust_std_error"], rtol=0.4)
    # another deal, another answer; the same deal, the same
    assert table.equals(ancova.resampling.jackknife(blocks=40, seed=1))
    assert not table.equals(ancova.resampling.jackknife(blocks=40, seed=2))
    # one group a block needs no deal
    assert ancova.resampling.jackknife(seed=1).equals(ancova.resampling.jackknife(seed=2))


# ---------------------------------------------------------------------------------------------- failures


def test_replicates_that_do_not_identify_an_effect_are_counted(rows: Callable[..., pl.DataFrame]) -> None:
    """k differs from 0 in group 12 alone."""
    fit = mlsql.fit("y ~ x + k + (1 | g)", rows())
    table = fit.resampling.jackknife()
    assert table["replicates"].unique().to_list() == [17]
    assert "do not identify the fixed effects: 1" in table["note"][0]
    assert "do not identify the fixed effects" in table["note"][0]
    found = fit.resampling.cluster_bootstrap(60, seed=1)
    rng = np.random.default_rng(1)
    lost = sum(12 not in rng.integers(0, 18, 18) for _ in range(60))
    assert 0 < lost < 60
    assert (found.found.failed, len(found.found.beta)) == (lost, 60 - lost)
    assert f"do not identify the fixed effects: {lost}" in found.table()["note"][0]


def test_replicates_are_counted_whatever_the_rounding() -> None:
    """As above, where what is left of k's column is not exactly zero: in some draws it passes for information."""
    rng = np.random.default_rng(5)
    n = rng.integers(3, 9, 12)
    g = np.repeat(np.arange(12), n)
    N = len(g)
    x = rng.normal(size=N) * 3.3 + 100
    k = np.where(g == 4, 0.1 + 0.3 * (np.arange(N) % 3), 0.1)
    y = 1 + x + rng.normal(size=12)[g] + rng.normal(size=N)
    fit = mlsql.fit("y ~ x + k + (k | g)", pl.DataFrame({"g": g, "x": x, "k": k, "y": y}))
    found = fit.resampling.cluster_bootstrap(100, seed=5).found
    draws = np.random.default_rng(5)
    lost = sum(4 not in draws.integers(0, 12, 12) for _ in range(100))
    assert found.failed == lost
    error = np.sqrt(fit.vcov[2, 2])
    assert np.abs(found.beta[:, 2] - fit.estimates.beta[2]).max() < 20 * error
