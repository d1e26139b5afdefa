"""`Fit.confint`: three methods, one table; arguments reach the method that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import stdtrit

import mlsql

SLOPES = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def sleep(data_file: Callable[[str], str]) -> mlsql.Fit:
    return mlsql.fit(SLOPES, data_file("sleepstudy"))


def test_wald_is_the_default(sleep: mlsql.Fit) -> None:
    table = sleep.confint()
    assert table.equals(sleep.confint(0.95, "wald"))
    assert table.equals(sleep.confint(method="wald", df="hlm", vcov="model"))
    fixed = table.filter(pl.col("effect") == "fixed")
    own = sleep.fixed_effects
    for name in ("term", "estimate", "conf_low", "conf_high"):
        assert fixed[name].to_list() == own[name].to_list()


def test_wald_intervals_by_hand(sleep: mlsql.Fit) -> None:
    """t for fixed effects; variances on the log scale, with their delta-method error."""
    table = sleep.confint(0.9, df="satterthwaite", vcov="CR2")
    reference = sleep.reference("satterthwaite", "CR2")
    error = np.sqrt(np.diag(reference.covariance))
    half = stdtrit(reference.df(np.eye(2)), 0.95) * error
    np.testing.assert_allclose(table["conf_low"][:2], sleep.estimates.beta - half, rtol=1e-9)
    np.testing.assert_allclose(table["conf_high"][:2], sleep.estimates.beta + half, rtol=1e-9)
    z = 1.6448536269514722
    components = sleep.variance_components
    for row in components.filter(pl.col("term2").is_null()).iter_rows(named=True):
        own = table.filter((pl.col("effect") == "variance") & (pl.col("estimate") == row["estimate"]))
        ratio = np.exp(z * row["std_error"] / row["estimate"])
        assert own["conf_low"].item() == pytest.approx(row["estimate"] / ratio, rel=1e-9)
        assert own["conf_high"].item() == pytest.approx(row["estimate"] * ratio, rel=1e-9)


def test_bootstrap_is_the_percentile_interval_of_the_facet(sleep: mlsql.Fit) -> None:
    table = sleep.confint(0.8, "bootstrap", replicates=30, seed=4)
    own = sleep.resampling.bootstrap(30, seed=4).table(0.8)
    assert table.columns == ["effect", "term", "estimate", "conf_low", "conf_high"]
    assert table.equals(own.select(table.columns))
    assert not table.equals(sleep.confint(0.8, "bootstrap", replicates=30, seed=5))


def test_bootstrap_defaults(sleep: mlsql.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 replicates of seed 1; 0 is a seed like any other."""
    seen: list[tuple[int, int]] = []
    whole = mlsql.pipeline.resampling.parametric_bootstrap

    def spy(estimates: Any, replicates: int, seed: int) -> Any:
        seen.append((replicates, seed))
        return whole(estimates, 3, seed)

    monkeypatch.setattr("mlsql.pipeline.resampling.parametric_bootstrap", spy)
    sleep.confint(method="bootstrap")
    sleep.confint(method="bootstrap", replicates=50, seed=0)
    assert seen == [(1000, 1), (50, 0)]


def test_the_methods_agree_roughly(sleep: mlsql.Fit) -> None:
    """18 subjects: ends of the fixed effects' intervals within a third of a half width of each other."""
    tables = [sleep.confint(method=m) for m in ("wald", "profile")]
    tables.append(sleep.confint(method="bootstrap", replicates=100))
    low = np.array([t.filter(pl.col("effect") == "fixed")["conf_low"].to_list() for t in tables])
    high = np.array([t.filter(pl.col("effect") == "fixed")["conf_high"].to_list() for t in tables])
    half = (high[0] - low[0]) / 2
    assert (np.ptp(low, axis=0) < half / 3).all()
    assert (np.ptp(high, axis=0) < half / 3).all()
    terms = [t.filter(pl.col("effect") == "variance")["term"].to_list() for t in tables[1:]]
    assert terms[0] == terms[1] == ["Subject: (Intercept)", "Subject: Days", "Residual"]


def test_names_of_centred_terms_and_of_several_keys() -> None:
    rng = np.random.default_rng(1)
    a, b = np.repeat(np.arange(12) // 3, 6), np.repeat(np.arange(12) % 3, 6)
    x = rng.normal(size=72)
    y = x + rng.normal(size=12)[np.repeat(np.arange(12), 6)] + rng.normal(size=72)
    fit = mlsql.fit("y ~ group_center(x) + (group_center(x) | a:b)", pl.DataFrame({"a": a, "b": b, "x": x, "y": y}))
    terms = fit.confint(method="bootstrap", replicates=2)["term"].to_list()
    assert terms == [
        "(Intercept)",
        "group_center(x)",
        "a:b: (Intercept)",
        "a:b: group_center(x)",
        "a:b: (Intercept): group_center(x)",
        "Residual",
    ]
