"""`fit.derived`: printed values of derived quantities, the frames' columns, and messages about what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.errors import FitError
from mlsql.pipeline.derived import Derived

HSB = mlsql.example_data("hsb")
SES = "group_center(ses)"
NULL = "mathach ~ 1 + (1 | school)"
MEANS = "mathach ~ meanses + (1 | school)"
SLOPES = f"mathach ~ {SES} + ({SES} | school)"
FULL = f"mathach ~ meanses*{SES} + sector*{SES} + ({SES} | school)"
DataFile = Callable[[str], str]
Fitted = Callable[[str], mlsql.Fit]

PRINTED = 5e-7  # six decimals


def derived(fit: mlsql.Fit) -> Derived:
    return Derived(fit.products)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    found: dict[str, mlsql.Fit] = {}

    def fit(formula: str) -> mlsql.Fit:
        if formula not in found:
            found[formula] = mlsql.fit(formula, HSB)
        return found[formula]

    return fit


def row(frame: pl.DataFrame, i: int = 0) -> dict[str, Any]:
    return frame.row(i, named=True)


# 17 countries, ISSP 1995: sizes and means as printed in lecture notes with Stata's results (full maximum likelihood);
# rows at equal distances from their country's mean give the printed variance within countries
SIZES = [1829, 1027, 1007, 992, 1091, 992, 2058, 1487, 1274, 1106, 1035, 1568, 1099, 1585, 1221, 1031, 1388]
COUNTRY_MEANS = [
    -0.091, -0.005, -0.128, 0.765, 0.286, -0.803, -0.189, 0.028, -0.177, 0.466, 0.367, 0.014, 0.448, 0.131, -0.354,
    0.456, 0.491,
]  # fmt: skip
SIGMA2, ICC = 0.8132404, 0.1460046


@pytest.fixture(scope="module")
def countries() -> mlsql.Fit:
    frames = []
    for j, (n, mean) in enumerate(zip(SIZES, COUNTRY_MEANS, strict=True)):
        sign = np.resize([1.0, -1.0], n)
        sign[-1] *= 1 - n % 2
        distance = np.sqrt((n - 1) * SIGMA2 / (n - n % 2))
        frames.append(pl.DataFrame({"country": j, "attitude": mean + distance * sign}))
    return mlsql.fit("attitude ~ 1 + (1 | country)", pl.concat(frames), method="ML")


def test_icc_of_seventeen_countries(countries: mlsql.Fit) -> None:
    found = row(derived(countries).icc())
    # the printed means are rounded, which moves tau00 in the third digit ...
    assert found["estimate"] == pytest.approx(ICC, abs=1.5e-4)
    # ... but on the logit scale, the standard error and so the interval's width hardly depend on tau00
    scale = found["estimate"] * (1 - found["estimate"]) / (ICC * (1 - ICC))
    assert found["std_error"] / scale == pytest.approx(0.0430148, rel=1e-5)
    shift = np.log(found["estimate"] / (1 - found["estimate"])) - np.log(ICC / (1 - ICC))
    for name, printed in (("conf_low", 0.0799933), ("conf_high", 0.2515926)):
        logit = np.log(found[name] / (1 - found[name])) - shift
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(printed, rel=1e-5), name
    assert found["kind"] == "unconditional"


def test_variances_of_seventeen_countries_on_the_log_scale(countries: mlsql.Fit) -> None:
    found = row(derived(countries).variance_function())
    scale = found["between"] / 0.1390369
    for name, printed in (("std_error", 0.0479464), ("conf_low", 0.0707288), ("conf_high", 0.2733153)):
        assert found[f"between_{name}"] / scale == pytest.approx(printed, rel=1e-5), name
    assert found["within"] == pytest.approx(SIGMA2, rel=1e-6)
    assert found["point"] == "origin"
    assert found["icc"] == row(derived(countries).icc())["estimate"]


def test_icc_of_hsb(fitted: Fitted) -> None:
    found = derived(fitted(NULL)).icc()
    assert found.columns == ["estimate", "std_error", "conf_low", "conf_high", "kind"]
    assert found["estimate"][0] == pytest.approx(0.180352, abs=PRINTED)
    assert found["estimate"][0] == fitted(NULL).icc
    conditional = row(derived(fitted(MEANS)).icc())
    assert conditional["estimate"] == pytest.approx(0.063133, abs=PRINTED)
    assert conditional["kind"] == "conditional"
    narrow = row(derived(fitted(NULL)).icc(level=0.5))
    assert found["conf_low"][0] < narrow["conf_low"] < narrow["estimate"] < narrow["conf_high"] < found["conf_high"][0]


def test_icc_as_a_function_of_the_predictor(fitted: Fitted) -> None:
    fit = fitted(SLOPES)
    found = derived(fit).icc(at={SES: [-1, 0, 1]})
    assert found.columns == [SES, "estimate", "std_error", "conf_low", "conf_high", "kind"]
    x = np.array([-1.0, 0.0, 1.0])
    between = fit.T[0, 0] + 2 * x * fit.T[0, 1] + x * x * fit.T[1, 1]
    np.testing.assert_allclose(found["estimate"], between / (between + fit.sigma2), rtol=1e-12)
    assert found[SES].to_list() == x.tolist()
    assert (found["conf_low"] < found["estimate"]).all()
    assert (found["estimate"] < found["conf_high"]).all()
    table = derived(fit).variance_function(at={SES: [-1, 0, 1]})
    np.testing.assert_allclose(table["between"][:3], between, rtol=1e-12)
    np.testing.assert_allclose(table["total"][:3], between + fit.sigma2, rtol=1e-12)
    assert table["point"].to_list() == ["given"] * 3 + ["minimum"]
    assert table[SES][3] == pytest.approx(-fit.T[0, 1] / fit.T[1, 1], rel=1e-12)
    assert table["between"][3] < table["between"][:3].min()


def test_on_the_boundary_there_are_no_errors(data_file: DataFile) -> None:
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff2"))
    found = row(derived(fit).icc())
    assert found == {"estimate": 0.0, "std_error": None, "conf_low": None, "conf_high": None, "kind": "unconditional"}
    table = row(derived(fit).variance_function())
    assert table["between_std_error"] is None
    assert table["total"] == fit.sigma2
    assert row(derived(fit).optimal_n(1, 1))["n"] == np.inf
    assert "groups do not differ" in row(derived(fit).optimal_n(1, 1))["note"]
    assert row(derived(fit).design_effect())["design_effect"] == 1.0
    assert row(derived(fit).reliability())["reliability"] == 0.0


def test_plausible_values_of_hsb(fitted: Fitted) -> None:
    level = math.erf(1.96 / math.sqrt(2))  # printed ranges are +- 1.96
    means = row(derived(fitted(NULL)).plausible_values(level))
    assert (means["lower"], means["upper"]) == pytest.approx((6.8844, 18.3895), abs=5.1e-5)
    assert not means["conditional"]
    residual = row(derived(fitted(MEANS)).plausible_values(level))
    assert (residual["lower"], residual["upper"]) == pytest.approx((9.4656, 15.8333), abs=5.1e-5)
    assert residual["conditional"]
    assert residual["meanses"] == 0.0
    means, slopes = derived(fitted(SLOPES)).plausible_values(level).iter_rows(named=True)
    assert (means["lower"], means["upper"]) == pytest.approx((6.8614, 18.4110), abs=5.1e-5)
    assert (slopes["lower"], slopes["upper"]) == pytest.approx((0.5604, 3.8260), abs=5.1e-5)
    assert slopes["ratio"] == pytest.approx(3.8260 / 0.5604, rel=1e-4)


def test_plausible_values_at_level_2_predictors(fitted: Fitted) -> None:
    fit = fitted(FULL)
    found = derived(fit).plausible_values(at_w={"meanses": [0, 0.4], "sector": 1})
    assert found.select("meanses", "sector", "term").rows() == [
        (0.0, 1.0, "(Intercept)"),
        (0.0, 1.0, SES),
        (0.4, 1.0, "(Intercept)"),
        (0.4, 1.0, SES),
    ]
    b = dict(zip(fit.fixed_effects["term"], fit.fixed_effects["estimate"], strict=True))
    assert found["estimate"][2] == pytest.approx(b["(Intercept)"] + 0.4 * b["meanses"] + b["sector"], rel=1e-12)
    slope = b[SES] + 0.4 * b[f"meanses:{SES}"] + b[f"{SES}:sector" if f"{SES}:sector" in b else f"sector:{SES}"]
    assert found["estimate"][3] == pytest.approx(slope, rel=1e-12)
    half = 1.959963985 * np.sqrt(fit.T[1, 1])
    assert found["upper"][3] - found["estimate"][3] == pytest.approx(half, rel=1e-9)


def test_a_range_around_zero_has_no_ratio_and_a_negative_one_has(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.evaluate(
        "y ~ x + (x | g)", "SELECT g, x, 20 - y AS y FROM t", T=np.diag([100.0, 0.01]), sigma2=1, con=con
    )
    around, below = derived(fit).plausible_values().iter_rows(named=True)
    assert around["lower"] < 0 < around["upper"]
    assert around["ratio"] is None
    assert below["upper"] < 0
    assert below["ratio"] == pytest.approx(below["lower"] / below["upper"])


def test_plausible_values_without_a_fixed_part_and_with_factors(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.evaluate("y ~ 1 + (x | g)", "t", T=np.eye(2), sigma2=1, con=con)
    assert row(derived(fit).plausible_values(), 1)["estimate"] == 0.0
    fit = mlsql.evaluate("y ~ 0 + k + (1 | g)", "t", level2="upper", T=1.0, sigma2=1, con=con)
    with pytest.raises(FitError, match="give a level of k: p, q"):
        derived(fit).plausible_values()
    found = derived(fit).plausible_values(at_w={"k": ["p", "q"]})
    np.testing.assert_allclose(found["estimate"], fit.fixed_effects["estimate"], rtol=1e-12)
    assert found["k[q]"].to_list() == [0.0, 1.0]


def test_reliability_of_hsb(fitted: Fitted) -> None:
    found = row(derived(fitted(NULL)).reliability())
    assert found == {
        "term": "(Intercept)",
        "reliability": pytest.approx(0.901377, abs=PRINTED),
        "groups_used": 160,
        "groups": 160,
    }
    assert row(derived(fitted(MEANS)).reliability())["reliability"] == pytest.approx(0.740075, abs=PRINTED)
    both = derived(fitted(SLOPES)).reliability()["reliability"]
    assert both.to_list() == pytest.approx([0.90756, 0.26367], abs=2e-5)
    by_group = derived(fitted(SLOPES)).reliability(by_group=True)
    assert by_group.columns == ["school", "term", "reliability", "n"]
    expected = fitted(SLOPES).group_effects().select("school", "term", "reliability", "n")
    assert by_group.select("school", "term", "n").equals(expected.select("school", "term", "n"))
    np.testing.assert_allclose(by_group["reliability"], expected["reliability"], rtol=1e-12)
    means = by_group.group_by("term", maintain_order=True).agg(pl.col("reliability").mean())["reliability"]
    assert means.to_list() == pytest.approx(both.to_list(), rel=1e-12)


def test_reliability_counts_the_groups_that_enter(con: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT * REPLACE (CASE WHEN g < 3 THEN 0.5 ELSE x END AS x) FROM t"
    fit = mlsql.evaluate("y ~ x + (x | g)", sql, T=np.eye(2), sigma2=1, con=con)
    found = derived(fit).reliability()
    assert found["groups_used"].to_list() == [9, 9]
    assert found["groups"].to_list() == [12, 12]
    assert derived(fit).reliability(by_group=True)["reliability"].null_count() == 6
    # no group has a slope of its own
    fit = mlsql.evaluate("y ~ 1 + (w | g)", "t", level2="upper", T=np.eye(2), sigma2=1, con=con)
    assert derived(fit).reliability().select("reliability", "groups_used").rows() == [(None, 0), (None, 0)]


def test_correlations(fitted: Fitted) -> None:
    fit = fitted(SLOPES)
    found = derived(fit).correlations()
    assert found["correlation"][0] == pytest.approx(0.0191, abs=5e-5)
    assert found["covariance"][0] == pytest.approx(fit.T[0, 1], rel=1e-10)
    assert found["covariance_std_error"][0] == pytest.approx(fit.variance_components["std_error"][2], rel=1e-8)
    assert found.columns[:2] == ["term1", "term2"]
    moved = derived(fit).correlations(at={SES: [0, -1]})
    assert moved[SES].to_list() == [0.0, -1.0]
    assert moved["correlation"][0] == pytest.approx(found["correlation"][0], rel=1e-10)
    assert moved["covariance"][1] == pytest.approx(fit.T[0, 1] - fit.T[1, 1], rel=1e-10)
    assert (moved["conf_low"] < moved["correlation"]).all()
    assert (moved["correlation"] < moved["conf_high"]).all()


def test_correlations_between_blocks_are_zero_until_the_origin_moves() -> None:
    fit = mlsql.fit(f"mathach ~ {SES} + ({SES} || school)", HSB)
    here = row(derived(fit).correlations())
    assert (here["covariance"], here["covariance_std_error"], here["conf_low"]) == (0.0, None, None)
    there = row(derived(fit).correlations(at={SES: 2}))
    assert there["covariance"] == pytest.approx(2 * fit.T[1, 1], rel=1e-12)
    assert there["covariance_std_error"] == pytest.approx(2 * fit.variance_components["std_error"][1], rel=1e-10)


def test_design_effect_is_the_ratio_of_the_variances_of_a_mean(fitted: Fitted) -> None:
    fit = fitted(NULL)
    found = derived(fit).design_effect()
    n = fit.estimates.moments.n
    assert found["group_size"].to_list() == pytest.approx([44.90625, (n**2).sum() / 7185], rel=1e-12)
    assert found["design_effect"][0] == pytest.approx(1 + 43.90625 * 0.180352, rel=1e-5)
    # Var(mean) = sum_j (n_j^2 tau + n_j sigma2) / N^2, against (tau + sigma2) / N
    tau, s2 = fit.T[0, 0], fit.sigma2
    exact = (n**2 * tau + n * s2).sum() / 7185 / (tau + s2)
    assert found["design_effect"][1] == pytest.approx(exact, rel=1e-12)
    assert found["effective_rows"][1] == pytest.approx(7185 / exact, rel=1e-12)
    assert found["kind"].to_list() == ["unconditional"] * 2


def test_explained_variance_names_its_baseline(fitted: Fitted) -> None:
    found = derived(fitted(FULL)).explained_variance(fitted(SLOPES))
    assert found.columns == [
        "measure", "level", "term", "baseline_value", "model_value", "proportion", "baseline", "note",
    ]  # fmt: skip
    assert found["baseline"].to_list() == [fitted(SLOPES).spec.formula] * 5 + [None] * 2
    assert found["proportion"][1:3].to_list() == pytest.approx([0.7259, 0.854], abs=5e-4)
    whole = found.filter(pl.col("proportion").is_not_null())
    difference = whole["baseline_value"] - whole["model_value"]
    np.testing.assert_allclose(whole["proportion"], difference / whole["baseline_value"], rtol=1e-12)
    alone = derived(fitted(FULL)).explained_variance()
    assert alone["measure"].to_list() == ["nakagawa_marginal", "nakagawa_conditional"]
    assert alone.schema == found.schema


def test_optimal_sizes(fitted: Fitted) -> None:
    found = row(derived(fitted(NULL)).optimal_n(cost_group=300, cost_row=10))
    rho = 0.1803516
    assert found["n"] == pytest.approx(np.sqrt(30 * (1 - rho) / rho), rel=1e-5)
    assert (found["effect"], found["term"], found["note"]) == ("level-2 predictor", "(Intercept)", None)
    level2, level1 = derived(fitted(SLOPES)).optimal_n(300, 10).iter_rows(named=True)
    assert level2["n"] is None
    assert "no single intraclass correlation" in level2["note"]
    assert (level1["effect"], level1["term"]) == ("level-1 treatment", SES)
    assert level1["n"] == pytest.approx(np.sqrt(30 * 4 * 36.70020 / 0.69399), rel=1e-5)


def test_predictors_called_like_a_result_are_shown_with_a_prefix(con: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT g, x AS estimate, z AS point, y FROM t"
    fit = mlsql.evaluate("y ~ 1 + (estimate + point | g)", sql, T=np.eye(3), sigma2=1, con=con)
    found = derived(fit).icc(at={"estimate": 2})
    assert found.columns[:3] == ["at_estimate", "point", "estimate"]
    assert row(found)["estimate"] == pytest.approx(5 / 6)
    assert derived(fit).variance_function().columns[:3] == ["point", "estimate", "at_point"]
    keys = mlsql.evaluate("y ~ 1 + (1 | term)", "SELECT g AS term, y FROM t", T=1.0, sigma2=1, con=con)
    assert derived(keys).reliability(by_group=True).columns == ["group_term", "term", "reliability", "n"]


def test_factors_are_given_by_level(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.evaluate("y ~ f + (f | g)", "t", T=np.diag([1.0, 2.0, 3.0]), sigma2=1, con=con)
    found = derived(fit).icc(at={"f": ["a", "b", "c"]})
    assert found["estimate"].to_list() == pytest.approx([1 / 2, 3 / 4, 4 / 5])
    assert found.columns[:2] == ["f[b]", "f[c]"]
    assert derived(fit).variance_function()["point"].to_list() == ["origin"]


def bad_calls() -> list[Any]:
    cases: list[tuple[str, str, Callable[[Derived], object], str]] = [
        ("icc without a point", SLOPES, lambda d: d.icc(), rf"no single .* on {SES}; say where: icc\(at={{'{SES}'"),
        ("icc at no slope", NULL, lambda d: d.icc(at={"ses": 1}), "'ses' cannot be given: the model has no random"),
        ("icc at a wrong name", SLOPES, lambda d: d.icc(at={"ses": 1}), rf"'ses' is not among .* did you mean {SES}"),
        ("icc at text", SLOPES, lambda d: d.icc(at={SES: "1"}), "give a number or a sequence"),
        ("a level of 95", NULL, lambda d: d.icc(level=95), "level is 95"),
        ("a level of 1", NULL, lambda d: d.plausible_values(level=1), "level is 1"),
        ("variance at a fixed name", FULL, lambda d: d.variance_function(at={"sector": 1}), "'sector' is not among"),
        ("range at a level-1 name", FULL, lambda d: d.plausible_values(at_w={SES: 1}), "there are meanses, sector"),
        ("range at a near name", FULL, lambda d: d.plausible_values(at_w={"secter": 1}), "did you mean sector"),
        ("range of nothing", NULL, lambda d: d.plausible_values(at_w={"w": 1}), "no level-2 predictors of random"),
        ("one coefficient", NULL, lambda d: d.correlations(), r"\(Intercept\) is the only random coefficient"),
        ("a design effect", SLOPES, lambda d: d.design_effect(), "this fit has random slopes; take it from a fit"),
        ("a baseline of text", NULL, lambda d: d.explained_variance(NULL), "the baseline is a str"),  # type: ignore[arg-type]
        ("no cost", NULL, lambda d: d.optimal_n(0, 1), "cost_group is 0; a cost is a positive number"),
        ("a cost of text", NULL, lambda d: d.optimal_n(1, "2"), "cost_row is '2'"),  # type: ignore[arg-type]
    ]  # fmt: skip
    return [pytest.param(f, call, m.replace("(ses)", r"\(ses\)"), id=title) for title, f, call, m in cases]


@pytest.mark.parametrize(("formula", "call", "message"), bad_calls())
def test_what_does_not_fit(fitted: Fitted, formula: str, call: Callable[[Derived], object], message: str) -> None:
    with pytest.raises(FitError, match=message):
        call(derived(fitted(formula)))


def test_a_design_effect_with_weights() -> None:
    fit = mlsql.fit(NULL, HSB, weights="1 + minority")
    with pytest.raises(FitError, match="this fit has precision weights"):
        derived(fit).design_effect()
