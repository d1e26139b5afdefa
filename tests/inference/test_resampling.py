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
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.gaussian import Deviance
from mlsql.moments.reweighted import reweighted
from mlsql.optimise.search import optimise

Array = NDArray[np.float64]

HSB = mlsql.example_data("hsb")
BOOTMER = Path(__file__).parent.parent / "reference" / "expected" / "inference" / "inference_sleepstudy_reml.json"

ROUGH = 0.15
"""Of a standard deviation of 400 replicates, whose own relative error is 1 / sqrt(800) = 3.5 %, that of 1,000 2.2 %."""

REFIT = 1e-6
"""Of a parameter's standard error: two searches from different starts stop within 1e-5 of it, mostly nearer."""

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
    np.testing.assert_allclose(table["bias"], values.mean(axis=0) - table["estimate"].to_numpy(), rtol=1e-12)
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
    found = fit.resampling.bootstrap(200, seed=1)
    table = found.table()
    singular = int(found.found.singular.sum())
    # half of the estimates of a variance that is zero, more in small samples
    assert 90 < singular < 160
    note = table["note"][0]
    assert note == (
        f"the fit is on the boundary: intervals of its variances are rough; {singular} of 200 replicates are on the "
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


def test_reweighted_statistics_are_those_of_repeated_groups(answer: Callable[..., Any], case: Any) -> None:
    """The deviance at any T and sigma2, up to the constants of the weights; the fit's estimates and covariances."""
    if "group" in case.formula or case.name == "one group's dummy":
        # the fit's grand pivot of one group's dummy is kept, and group means belong to whole groups: both compared
        # below by their estimates
        pass
    found = answer(case)
    fit = found.fit
    stats = reweighted(fit.estimates.statistics, fit.products.by_group(), COUNTS)
    data, options = case.inputs(answer_rows(found))
    data = repeated(data, COUNTS)
    if "level2" in options:
        # every copy of a group needs its row of the second table
        own = answer_rows(found).select("g", "w", "s").unique(maintain_order=True)
        options["level2"] = repeated(own, COUNTS)
    direct = mlsql.fit(case.formula, data, **options)
    assert (stats.n_groups, stats.n_rows) == (direct.n_groups, direct.n_rows)
    L = Covariance(stats.blocks)
    best = optimise(Deviance(stats, "REML"))
    root = stats.u_transform @ L.factor(best.theta)
    error = np.sqrt(np.diag(direct.vcov))
    assert (np.abs(stats.user_beta(best.evaluation.beta) - direct.estimates.beta) < REFIT * error).all()
    np.testing.assert_allclose(
        best.evaluation.sigma2 * root @ root.T, direct.T, rtol=1e-5, atol=1e-5 * np.abs(direct.T).max()
    )
    assert best.evaluation.sigma2 == pytest.approx(direct.sigma2, rel=1e-6)
    deviance = best.evaluation.deviance - direct.estimates.statistics.log_weights
    assert deviance == pytest.approx(direct.deviance, abs=1e-7)


def answer_rows(found: Any) -> pl.DataFrame:
    raise NotImplementedError
