"""Rules for models with several factors: df by counting, nested comparisons, what is refused, the information."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.errors import FitError
from mlsql.inference import level_kenward_roger
from mlsql.inference.likelihood_ratio import likelihood_ratio, single_level_ratio
from mlsql.moments.constrained import constrained
from mlsql.results import information

Fitted = Callable[..., mlsql.Fit]

DIFFERENCES = 2e-8
"""Of second derivatives: the step's error of 3e-9 and the rounding of the gradient, in each entry."""


@pytest.fixture(scope="module")
def fitted(data_file: Callable[[str], str]) -> Fitted:
    frames = {
        "egsingle": pl.read_parquet(data_file("egsingle")).filter(pl.col("childid") % 7 == 0),
        "penicillin": pl.read_parquet(data_file("penicillin")),
        "pastes": pl.read_parquet(data_file("pastes")),
    }
    found: dict[tuple[str, str, str], mlsql.Fit] = {}

    def fit(formula: str, data: str = "egsingle", method: Any = "REML") -> mlsql.Fit:
        key = (formula, data, method)
        if key not in found:
            found[key] = mlsql.fit(formula, frames[data], method=method)
        return found[key]

    return fit


def df(fit: mlsql.Fit, method: Any) -> dict[str, float]:
    table = fit.inference(df=method)
    return dict(zip(table["term"], table["df"], strict=True))


# ---------------------------------------------------------------------------------------------- df by counting

N, CHILDREN, SCHOOLS = 1109, 261, 56


def test_between_within_is_an_analysis_of_variance(fitted: Fitted) -> None:
    """R's nlme gives these, but for the intercept, which it counts with the rows."""
    fit = fitted("math ~ year*lowinc + female + size + black + (1 | schoolid/childid)")
    schools, children = SCHOOLS - 3, CHILDREN - SCHOOLS - 2
    assert (schools, children, N - CHILDREN - 2) == (53, 203, 846)
    assert df(fit, "between_within") == {
        "(Intercept)": schools,
        "year": 846,
        "lowinc": schools,
        "female[Male]": children,
        "size": schools,
        "black": children,
        "year:lowinc": 846,
    }


def test_hlm_counts_the_equation_of_the_coarsest_factor(fitted: Fitted) -> None:
    fit = fitted("math ~ year*lowinc + female + (year | schoolid) + (1 | schoolid:childid)")
    # of the schools' intercept: 1, lowinc; of their slope: year, year:lowinc; of the children's: 1, lowinc, female
    assert df(fit, "hlm") == {
        "(Intercept)": SCHOOLS - 2,
        "year": SCHOOLS - 2,
        "lowinc": SCHOOLS - 2,
        "female[Male]": CHILDREN - 3,
        "year:lowinc": SCHOOLS - 2,
    }
    fit = fitted("math ~ year*lowinc + female + (1 | schoolid) + (1 | schoolid:childid)")
    found = df(fit, "hlm")
    assert (found["year"], found["year:lowinc"]) == (N - 5, N - 5)
    fit = fitted("math ~ year*lowinc + female + (1 | schoolid) + (year | schoolid:childid)")
    found = df(fit, "hlm")
    assert (found["year"], found["year:lowinc"]) == (CHILDREN - 2, CHILDREN - 2)


def test_hlm_of_crossed_factors(fitted: Fitted) -> None:
    fit = fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    assert df(fit, "hlm") == {"(Intercept)": 5.0}
    assert df(fit, "residual") == {"(Intercept)": 143.0}


# ---------------------------------------------------------------------------------------------- what is refused


def test_no_robust_errors_of_crossed_factors(fitted: Fitted) -> None:
    fit = fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    kinds: tuple[Any, ...] = ("CR0", "CR1", "CR2")
    for vcov in kinds:
        with pytest.raises(FitError, match=r"no grouping factor contains the others \(plate, sample\).*vcov='model'"):
            fit.inference(vcov=vcov)
    with pytest.raises(FitError, match="not all of plate, sample do"):
        fit.inference(df="between_within")


def test_crossed_within_a_factor(fitted: Fitted) -> None:
    frame = pl.DataFrame({"d": np.repeat(np.arange(4), 24), "i": np.tile(np.repeat(np.arange(6), 4), 4)})
    rng = np.random.default_rng(3)
    y = (
        rng.normal(size=4)[frame["d"].to_numpy()]
        + rng.normal(size=(4, 6))[frame["d"].to_numpy(), frame["i"].to_numpy()]
    )
    frame = frame.with_columns(k=pl.Series(np.tile(np.arange(4), 24)), y=pl.Series(y + rng.normal(size=96)))
    fit = mlsql.fit("y ~ 1 + (1 | d) + (1 | d:i) + (1 | d:k)", frame)
    with pytest.raises(FitError, match="some are crossed within d; use vcov='model'"):
        fit.inference(vcov="CR0")


def test_cr2_needs_more_clusters_than_effects(fitted: Fitted) -> None:
    frame = pl.DataFrame({"a": np.repeat(np.arange(3), 40), "b": np.repeat(np.arange(24), 5)})
    rng = np.random.default_rng(4)
    x, z = rng.normal(size=(2, 120))
    y = 2 * rng.normal(size=3)[frame["a"].to_numpy()] + rng.normal(size=24)[frame["b"].to_numpy()]
    fit = mlsql.fit("y ~ x + z + (1 | a/b)", frame.with_columns(x=x, z=z, y=y + rng.normal(size=120)))
    with pytest.raises(FitError, match="more groups of a than fixed effects, not 3 for 3"):
        fit.inference(vcov="CR2")


def test_kenward_roger_of_too_many_columns(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_kenward_roger, "DENSE", 25)
    fit = fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    with pytest.raises(FitError, match=r"30 random columns here \(groups: 24 x 6\), at most 25.*satterthwaite"):
        fit.inference(df="kenward_roger")
    # nested factors: no part of the data has more than a school's
    nested = fitted("strength ~ 1 + (1 | batch/cask)", "pastes")
    assert nested.inference(df="kenward_roger")["df"].to_list() == pytest.approx([9.0])


def test_kenward_roger_is_for_reml(fitted: Fitted) -> None:
    with pytest.raises(FitError, match="this fit is by ML"):
        fitted("strength ~ 1 + (1 | batch/cask)", "pastes", "ML").inference(df="kenward_roger")


# ---------------------------------------------------------------------------------------------- nested comparisons


def ratio(smaller: mlsql.Fit, larger: mlsql.Fit) -> Any:
    return likelihood_ratio(smaller.estimates, larger.estimates)


def test_a_factor_is_dropped(fitted: Fitted) -> None:
    both = fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    for alone in ("(1 | plate)", "(1 | sample)"):
        smaller = fitted(f"diameter ~ 1 + {alone}", "penicillin")
        found = ratio(smaller, both)
        assert (found.df, found.mixture) == (1, "0.5 chi2(0) + 0.5 chi2(1)")
        assert found.chi2 == pytest.approx(smaller.deviance - both.deviance, abs=1e-9)
        assert found.mixture_p_value == pytest.approx(found.p_value / 2)
    with pytest.raises(FitError, match="turn the two around"):
        ratio(both, fitted("diameter ~ 1 + (1 | plate)", "penicillin"))


def test_order_and_labels_of_factors(fitted: Fitted) -> None:
    one = fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    other = fitted("diameter ~ 1 + (1 | sample) + (1 | plate)", "penicillin")
    with pytest.raises(FitError, match="the same parameters"):
        ratio(one, other)
    with pytest.raises(FitError, match="random effects of plate, the other of sample"):
        ratio(fitted("diameter ~ 1 + (1 | plate)", "penicillin"), fitted("diameter ~ 1 + (1 | sample)", "penicillin"))


def test_a_slope_a_correlation_and_fixed_effects_are_dropped(fitted: Fitted) -> None:
    full = fitted("math ~ year + (year | schoolid/childid)")
    slope = fitted("math ~ year + (1 | schoolid) + (year | schoolid:childid)")
    found = ratio(slope, full)
    assert (found.df, found.mixture, found.note) == (2, "0.5 chi2(1) + 0.5 chi2(2)", None)
    diagonal = fitted("math ~ year + (year || schoolid) + (year | schoolid:childid)")
    found = ratio(diagonal, full)
    assert (found.df, found.mixture, found.note) == (1, None, None)
    school = fitted("math ~ year + (year | schoolid)")
    found = ratio(school, full)
    assert (found.df, found.mixture) == (3, None)
    assert "2 variances" in str(found.note)
    # the slope at the other level: each has a term that the other lacks
    other = fitted("math ~ year + (year | schoolid) + (1 | schoolid:childid)")
    with pytest.raises(FitError, match=r"random year of schoolid:childid.* against .*random year of schoolid"):
        ratio(slope, other)
    with pytest.raises(FitError, match="REML deviances of different fixed parts"):
        ratio(slope, fitted("math ~ year*lowinc + (year | schoolid/childid)"))
    formula = "math ~ year + {}(1 | schoolid/childid)"
    found = ratio(fitted(formula.format(""), method="ML"), fitted(formula.format("lowinc + female + "), method="ML"))
    assert (found.df, found.mixture) == (2, None)


def test_a_factor_whose_means_are_meant(fitted: Fitted) -> None:
    """Centred within schools in both models; the smaller does not name its only factor."""
    larger = fitted("math ~ group_center(year, schoolid) + (1 | schoolid/childid)")
    smaller = fitted("math ~ group_center(year) + (1 | schoolid)")
    assert ratio(smaller, larger).df == 1
    other = fitted("math ~ group_center(year, schoolid:childid) + (1 | schoolid/childid)")
    with pytest.raises(FitError, match="REML deviances of different fixed parts"):
        ratio(smaller, other)


def test_against_one_level(fitted: Fitted) -> None:
    fit = fitted("math ~ year + (1 | schoolid/childid)")
    found = single_level_ratio(fit.estimates)
    assert (found.df, found.mixture) == (2, None)
    assert "2 variances" in str(found.note)
    one = single_level_ratio(fitted("math ~ year + (1 | schoolid)").estimates)
    child = ratio(fitted("math ~ year + (1 | schoolid)"), fit)
    assert found.chi2 == pytest.approx(one.chi2 + child.chi2, abs=1e-7)


# ---------------------------------------------------------------------------------------------- pieces


def test_differences_of_the_gradient(data_file: Callable[[str], str]) -> None:
    """Against second derivatives that are exact: two levels, of full rank and on the boundary."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(15), rng.integers(3, 9, 15))
    x, u = rng.normal(size=len(g)) + 1, rng.normal(size=(15, 2))[:, 0]
    line = pl.DataFrame({"g": g, "x": x, "y": 1 + x + u[g] * (1 + 0.6 * x) + rng.normal(size=len(g))})
    sleep = data_file("sleepstudy")
    for formula, data, singular in (
        ("Reaction ~ Days + (Days | Subject)", sleep, False),
        ("Reaction ~ Days + (Days || Subject)", sleep, False),
        ("y ~ x + (x | g)", line, True),
    ):
        fit = mlsql.fit(formula, data)
        assert fit.estimates.singular == singular
        exact = information.observed_information(fit.estimates)
        assert exact is not None
        H = 2.0 * np.linalg.inv(exact.covariance)[:-1, :-1]
        size = np.sqrt(np.diag(H))
        found = information._differences(fit.estimates, information.STEP)
        np.testing.assert_allclose(found / np.outer(size, size), H / np.outer(size, size), atol=DIFFERENCES)


def test_the_step_of_the_differences(fitted: Fitted) -> None:
    """One step of Richardson extrapolation from far larger steps."""
    for fit in (
        fitted("math ~ year*lowinc + female + (year | schoolid/childid)"),
        fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin"),
    ):
        coarse, fine = (information._differences(fit.estimates, h) for h in (2e-3, 1e-3))
        H = (4.0 * fine - coarse) / 3.0
        size = np.sqrt(np.diag(H))
        found = information._differences(fit.estimates, information.STEP)
        np.testing.assert_allclose(found / np.outer(size, size), H / np.outer(size, size), atol=DIFFERENCES)


def test_constrained_statistics(fitted: Fitted) -> None:
    """Holding a combination at its estimate costs nothing; the outcome is shifted by what is held."""
    from mlsql.likelihood.objective import make_deviance

    fit = fitted("math ~ year*lowinc + female + (year | schoolid/childid)", method="ML")
    e, stats = fit.estimates, fit.estimates.statistics
    direction = np.array([0.3, -1.0, 0.5, 0.0, 2.0])
    held = constrained(stats, direction, float(direction @ e.evaluation.beta))
    assert held.p == stats.p - 1
    assert make_deviance(held, "ML").at(e.L).deviance == pytest.approx(e.deviance, abs=1e-8)
    away = constrained(stats, direction, float(direction @ e.evaluation.beta) + 1.0)
    rise = make_deviance(away, "ML").at(e.L, sigma2=e.sigma2).deviance - e.deviance
    assert rise == pytest.approx(1.0 / float(direction @ e.evaluation.beta_covariance @ direction), rel=1e-8)
