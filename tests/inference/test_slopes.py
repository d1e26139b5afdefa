"""`fit.contrasts`: simple slopes, Johnson-Neyman regions and contextual effects by hand from the covariance matrix."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import stdtrit

import mlsql
from mlsql.inference.slopes import johnson_neyman

Array = NDArray[np.float64]

HSB = mlsql.example_data("hsb")
SES = "group_center(ses)"
FULL = f"mathach ~ sector*{SES} + meanses*{SES} + ({SES} | school)"
SCHOOL_MEANS = 4e-5
"""The published school means are rounded, so that the parametrisations of Table 5.11, whose recomputed values have five
decimals, differ in the fifth."""

SAME = 1e-10
"""Relative: products of the same vectors and matrices."""

Fitted = Callable[..., mlsql.Fit]


@pytest.fixture(scope="module")
def fitted(data_file: Callable[[str], str]) -> Fitted:
    found: dict[tuple[str, str], mlsql.Fit] = {}

    def fit(formula: str, data: str = "hsb") -> mlsql.Fit:
        if (formula, data) not in found:
            found[formula, data] = mlsql.fit(formula, data_file(data))
        return found[formula, data]

    return fit


def by_hand(fit: mlsql.Fit, weights: dict[str, float], V: Array | None = None) -> tuple[float, float]:
    """A linear combination of the fixed effects and its standard error."""
    names = list(fit.estimates.fixed_names)
    c = np.zeros(len(names))
    for name, weight in weights.items():
        c[names.index(name)] += weight
    return float(c @ fit.estimates.beta), float(np.sqrt(c @ (fit.vcov if V is None else V) @ c))


# ---------------------------------------------------------------------------------------------- simple slopes


def test_slopes_in_two_sectors(fitted: Fitted) -> None:
    fit = fitted(FULL)
    table = fit.contrasts.simple_slopes(SES, at={"sector": [0, 1], "meanses": [-0.5, 0.5]})
    assert table.columns == [
        "predictor",
        "sector",
        "meanses",
        "estimate",
        "std_error",
        "df",
        "statistic",
        "p_value",
        "conf_low",
        "conf_high",
        "df_method",
        "vcov",
    ]
    assert table["predictor"].to_list() == [SES] * 2
    for row, sector, means in zip(table.iter_rows(named=True), (0, 1), (-0.5, 0.5), strict=True):
        estimate, error = by_hand(fit, {SES: 1, f"sector:{SES}": sector, f"{SES}:meanses": means})
        assert row["estimate"] == pytest.approx(estimate, rel=SAME)
        assert row["std_error"] == pytest.approx(error, rel=SAME)
        assert row["statistic"] == pytest.approx(estimate / error, rel=SAME)
        half = stdtrit(row["df"], 0.975) * error
        assert (row["conf_low"], row["conf_high"]) == pytest.approx((estimate - half, estimate + half), rel=1e-9)
        assert (row["sector"], row["meanses"]) == (sector, means)


@pytest.mark.parametrize(("df", "vcov"), [("satterthwaite", "model"), ("normal", "CR0"), (None, "CR2")])
def test_other_df_and_covariances(fitted: Fitted, df: Any, vcov: Any) -> None:
    fit = fitted(FULL)
    reference = fit.reference(df, vcov)
    row = fit.contrasts.simple_slopes("sector", at={SES: 2}, df=df, vcov=vcov, level=0.9).row(0, named=True)
    estimate, error = by_hand(fit, {"sector": 1, f"sector:{SES}": 2}, reference.covariance)
    assert (row["estimate"], row["std_error"]) == pytest.approx((estimate, error), rel=SAME)
    c = np.zeros((1, 6))
    c[0, list(fit.estimates.fixed_names).index("sector")] = 1
    c[0, list(fit.estimates.fixed_names).index(f"sector:{SES}")] = 2
    assert row["df"] == reference.df(c)[0]
    assert (row["df_method"], row["vcov"]) == (reference.df_method, vcov)
    half = 1.6448536269514722 if df == "normal" else stdtrit(row["df"], 0.95)
    assert row["conf_high"] - row["estimate"] == pytest.approx(half * error, rel=1e-9)


def test_moderators_not_named_are_zero(fitted: Fitted) -> None:
    fit = fitted(FULL)
    row = fit.contrasts.simple_slopes(SES).row(0, named=True)
    assert (row["sector"], row["meanses"]) == (0.0, 0.0)
    assert (row["estimate"], row["std_error"]) == pytest.approx(by_hand(fit, {SES: 1}), rel=SAME)
    # sector does not interact with meanses: nothing to give
    assert "meanses" not in fit.contrasts.simple_slopes("sector").columns


def test_products_of_three(fitted: Fitted) -> None:
    fit = fitted("mathach ~ sector*meanses*ses + (1 | school)")
    row = fit.contrasts.simple_slopes("ses", at={"sector": 1, "meanses": -2}).row(0, named=True)
    weights = {"ses": 1.0, "sector:ses": 1.0, "meanses:ses": -2.0, "sector:meanses:ses": -2.0}
    assert (row["estimate"], row["std_error"]) == pytest.approx(by_hand(fit, weights), rel=SAME)


def test_factors_as_moderators(fitted: Fitted) -> None:
    """By level, the reference too; an indicator by number; an indicator as the predictor."""
    fit = fitted("normexam ~ standLRT*schgend + sex + (1 | school)", "exam")
    levels = ["mixed", "girls", "boys"]
    table = fit.contrasts.simple_slopes("standLRT", at={"schgend": levels})
    for row, level in zip(table.iter_rows(named=True), levels, strict=True):
        weights = {"standLRT": 1.0} | ({f"standLRT:schgend[{level}]": 1.0} if level != "boys" else {})
        assert (row["estimate"], row["std_error"]) == pytest.approx(by_hand(fit, weights), rel=SAME)
        assert row["schgend[girls]"] == float(level == "girls")
    half = fit.contrasts.simple_slopes("standLRT", at={"schgend[girls]": 0.5}).row(0, named=True)
    assert half["estimate"] == pytest.approx(by_hand(fit, {"standLRT": 1, "standLRT:schgend[girls]": 0.5})[0], rel=SAME)
    girls = fit.contrasts.simple_slopes("schgend[girls]", at={"standLRT": [0, 2]})
    for row, x in zip(girls.iter_rows(named=True), (0, 2), strict=True):
        weights = {"schgend[girls]": 1, "standLRT:schgend[girls]": x}
        assert (row["estimate"], row["std_error"]) == pytest.approx(by_hand(fit, weights), rel=SAME)


def test_a_moderator_called_like_a_column_of_the_table() -> None:
    rng = np.random.default_rng(1)
    data = pl.DataFrame({"g": np.repeat(np.arange(12), 6), "x": rng.normal(size=72), "estimate": rng.normal(size=72)})
    data = data.with_columns((pl.col("x") * pl.col("estimate") + pl.Series(rng.normal(size=72))).alias("y"))
    table = mlsql.fit("y ~ x*estimate + (1 | g)", data).contrasts.simple_slopes("x", at={"estimate": [0, 1]})
    assert table["at_estimate"].to_list() == [0.0, 1.0]
    assert table["estimate"].to_list() != [0.0, 1.0]


def test_contrasts_by_formula_and_by_matrix(fitted: Fitted) -> None:
    fit = fitted(FULL)
    text = f"{SES} + sector:{SES} = 1"
    row = fit.contrasts.estimate([text, "meanses"]).row(0, named=True)
    estimate, error = by_hand(fit, {SES: 1, f"sector:{SES}": 1})
    assert (row["estimate"], row["std_error"]) == pytest.approx((estimate, error), rel=SAME)
    assert row["null"] == 1.0
    # tested against its value
    assert row["statistic"] == pytest.approx((estimate - 1) / error, rel=SAME)
    # the same as the Wald test of one row
    test = fit.test(text).row(0, named=True)
    assert (row["statistic"] ** 2, row["p_value"]) == pytest.approx((test["statistic"], test["p_value"]), rel=1e-9)
    matrix = np.zeros((1, 6))
    matrix[0, [2, 4]] = 1
    found = fit.contrasts.estimate(matrix).row(0, named=True)
    c = matrix[0]
    assert found["estimate"] == pytest.approx(float(c @ fit.estimates.beta), rel=SAME)
    assert found["std_error"] == pytest.approx(float(np.sqrt(c @ fit.vcov @ c)), rel=SAME)


# ---------------------------------------------------------------------------------------------- Johnson-Neyman


@pytest.mark.parametrize(
    ("df", "vcov"), [(None, "model"), ("satterthwaite", "model"), ("normal", "CR0"), (None, "CR2")]
)
@pytest.mark.parametrize(("predictor", "moderator"), [(SES, "meanses"), ("meanses", SES), ("sector", SES)])
def test_at_the_bounds_t_is_critical(fitted: Fitted, predictor: str, moderator: str, df: Any, vcov: Any) -> None:
    """The degrees of freedom may differ from one bound to the other."""
    contrasts = fitted(FULL).contrasts
    found = contrasts.johnson_neyman(predictor, moderator, df=df, vcov=vcov, level=0.9).row(0, named=True)
    ends = [found["low"], found["high"]]
    at = contrasts.simple_slopes(predictor, at={moderator: ends}, df=df, vcov=vcov)
    for row in at.iter_rows(named=True):
        critical = 1.6448536269514722 if df == "normal" else stdtrit(row["df"], 0.95)
        # the bounds are settled to 1e-12 of their size, amplified where the slope's t changes fast
        assert abs(row["statistic"]) == pytest.approx(critical, rel=1e-9)
    assert found["significant"] == "outside"
    middle, beyond = sum(ends) / 2, [ends[0] - 1, ends[1] + 1]
    p = contrasts.simple_slopes(predictor, at={moderator: [middle, *beyond]}, df=df, vcov=vcov)["p_value"].to_list()
    assert p[0] > 0.1
    assert max(p[1:]) < 0.1
    zero = contrasts.simple_slopes(predictor, at={moderator: found["crossover"]})["estimate"].item()
    assert zero == pytest.approx(0.0, abs=1e-12)


def test_significant_between(fitted: Fitted) -> None:
    """An interaction that does not differ from zero: far out, no slope does."""
    contrasts = fitted("mathach ~ meanses*ses + (1 | school)").contrasts
    found = contrasts.johnson_neyman("ses", "meanses").row(0, named=True)
    assert found["significant"] == "between"
    assert found["low"] < 0 < found["high"]
    at = contrasts.simple_slopes("ses", at={"meanses": [found["low"], 0, found["high"], 50]})
    t = at["statistic"].abs().to_list()
    critical = stdtrit(at["df"].to_numpy(), 0.975)
    assert t[0] == pytest.approx(critical[0], rel=1e-9)
    assert t[2] == pytest.approx(critical[2], rel=1e-9)
    assert t[1] > critical[1]
    assert t[3] < critical[3]


def test_significant_nowhere(fitted: Fitted) -> None:
    contrasts = fitted("normexam ~ standLRT*schgend + sex + (1 | school)", "exam").contrasts
    found = contrasts.johnson_neyman("schgend[girls]", "standLRT").row(0, named=True)
    assert found["significant"] == "nowhere"
    assert (found["low"], found["high"]) == (None, None)
    at = contrasts.simple_slopes("schgend[girls]", at={"standLRT": np.linspace(-100, 100, 401)})
    assert at["p_value"].min() > 0.05  # type: ignore[operator]


def region(e0: float, e1: float, V: list[list[float]]) -> Any:
    """A slope e0 + e1 w with this covariance matrix of (e0, e1), and 100 df."""
    reference = SimpleNamespace(covariance=np.array(V), df=lambda L: np.full(len(L), 100.0))
    return johnson_neyman(np.array([e0, e1]), reference, lambda w: np.array([1.0, w]), 0.95)  # type: ignore[arg-type]


def test_a_slope_that_is_the_same_everywhere() -> None:
    """No interaction at all, known without error."""
    assert region(3.0, 0.0, [[1.0, 0.0], [0.0, 0.0]]).significant == "everywhere"
    assert region(1.0, 0.0, [[1.0, 0.0], [0.0, 0.0]]).significant == "nowhere"
    assert np.isnan(region(3.0, 0.0, [[1.0, 0.0], [0.0, 0.0]]).crossover)


@pytest.mark.parametrize(("e0", "e1"), [(0.0, 5.0), (1.0, 5.0), (4.0, 1.0), (0.5, 0.1), (-3.0, -8.0), (0.0, 1.0)])
def test_regions_of_made_up_slopes(e0: float, e1: float) -> None:
    """Compared with the test at 4,001 values."""
    V = [[1.0, 0.3], [0.3, 0.5]]
    found = region(e0, e1, V)
    w = np.linspace(-40, 40, 4001)
    t = np.abs(e0 + e1 * w) / np.sqrt(V[0][0] + 2 * w * V[0][1] + w * w * V[1][1])
    significant = t > stdtrit(100.0, 0.975)
    inside = (w > found.low) & (w < found.high)
    expected = {"nowhere": np.zeros(len(w), bool), "outside": ~inside, "between": inside}[found.significant]
    np.testing.assert_array_equal(significant, expected)


def test_other_moderators_are_held(fitted: Fitted) -> None:
    contrasts = fitted(FULL).contrasts
    found = contrasts.johnson_neyman(SES, "meanses", at={"sector": 1}).row(0, named=True)
    at = contrasts.simple_slopes(SES, at={"sector": 1, "meanses": [found["low"], found["high"]]})
    np.testing.assert_allclose(at["statistic"].abs(), stdtrit(at["df"].to_numpy(), 0.975), rtol=1e-9)
    plain = contrasts.johnson_neyman(SES, "meanses").row(0, named=True)
    assert found["crossover"] > plain["crossover"]


def test_the_moderators_range_in_the_data(fitted: Fitted) -> None:
    """Known from the survey for a column as it is, not for a centred one."""
    contrasts = fitted(FULL).contrasts
    row = contrasts.johnson_neyman(SES, "meanses").row(0, named=True)
    means = pl.read_parquet(HSB)["meanses"]
    assert (row["moderator_minimum"], row["moderator_maximum"]) == (means.min(), means.max())
    row = contrasts.johnson_neyman("meanses", SES).row(0, named=True)
    assert (row["moderator_minimum"], row["moderator_maximum"]) == (None, None)
    assert list(row) == [
        "predictor",
        "moderator",
        "significant",
        "low",
        "high",
        "crossover",
        "moderator_minimum",
        "moderator_maximum",
        "df_method",
        "vcov",
    ]


# ---------------------------------------------------------------------------------------------- contextual effect


@pytest.mark.parametrize("within", [SES, "ses", "grand_center(ses)"])
def test_table_5_11(fitted: Fitted, within: str) -> None:
    """One model in three parametrisations."""
    table = fitted(f"mathach ~ meanses + {within} + (1 | school)").contrasts.contextual_effect(within, "meanses")
    assert table["effect"].to_list() == ["within", "between", "contextual"]
    assert table["estimate"].to_list() == pytest.approx([2.19117, 5.86618, 3.67504], abs=SCHOOL_MEANS)
    assert table["std_error"].to_list() == pytest.approx([0.10867, 0.36169, 0.37766], abs=SCHOOL_MEANS)


@pytest.mark.parametrize("within", [SES, "ses", "grand_center(ses)"])
def test_means_of_the_rows_are_found_by_themselves(fitted: Fitted, within: str) -> None:
    fit = fitted(f"mathach ~ group_mean(ses) + {within} + (1 | school)")
    table = fit.contrasts.contextual_effect(within)
    names = ("within", "between", "contextual")
    if within == SES:
        weights = [{within: 1}, {"group_mean(ses)": 1}, {"group_mean(ses)": 1, within: -1}]
    else:
        weights = [{within: 1}, {"group_mean(ses)": 1, within: 1}, {"group_mean(ses)": 1}]
    for row, name, combination in zip(table.iter_rows(named=True), names, weights, strict=True):
        assert row["effect"] == name
        assert (row["estimate"], row["std_error"]) == pytest.approx(by_hand(fit, combination), rel=SAME)
    assert table["estimate"].to_list() == pytest.approx([2.19117, 5.866, 3.675], abs=5e-4)
    assert table.equals(fit.contrasts.contextual_effect(within, "group_mean(ses)"))


def test_parametrisations_agree(fitted: Fitted) -> None:
    """With the means of the rows the three are the same model exactly, whatever the df and covariance matrix."""
    tables = [
        fitted(f"mathach ~ group_mean(ses) + {within} + (1 | school)").contrasts.contextual_effect(
            within, df="satterthwaite", vcov="CR2"
        )
        for within in (SES, "ses", "grand_center(ses)")
    ]
    for table in tables[1:]:
        for name in ("estimate", "std_error", "df"):
            # separate searches for the variance components
            np.testing.assert_allclose(table[name], tables[0][name], rtol=1e-5)
