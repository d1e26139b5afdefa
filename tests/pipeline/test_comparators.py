"""`fit.comparators`: the printed tables of Raudenbush & Bryk (2002) recomputed on High School & Beyond; its frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.errors import FitError
from mlsql.pipeline.comparators import Comparators

HSB = mlsql.example_data("hsb")
DIGITS = 5e-6
"""The recomputed tables are given to five or six decimals."""

R_RESULTS = Path(__file__).parent.parent / "reference" / "expected" / "inference" / "inference_hsb_ols.json"
AS_IN_R = 1e-9
"""R's results are stored to twelve digits; both sides solve well-conditioned equations."""


def comparators(formula: str, data: object = HSB, **settings: object) -> Comparators:
    return Comparators(mlsql.fit(formula, data, **settings).products)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slopes_as_outcomes() -> Comparators:
    return comparators("mathach ~ meanses*group_center(ses) + sector*group_center(ses) + (group_center(ses) | school)")


@pytest.fixture(scope="module")
def simple() -> Comparators:
    return comparators("mathach ~ ses + (1 | school)")


@pytest.fixture
def rows() -> Iterator[duckdb.DuckDBPyConnection]:
    """t: uneven groups, weights, a factor of two levels and one of three, an occasion that is the same in each."""
    with duckdb.connect() as con:
        con.execute(
            """
            CREATE TABLE t AS SELECT g, i % 5 AS time, ((i * 7919) % 1009) / 1009.0 + g % 3 AS x,
                ['f', 'm'][(i * 31) % 7 % 2 + 1] AS sex, ['a', 'b', 'c'][i % 3 + 1] AS f, 1 + i % 4 AS wt, g % 4 AS w,
                ((i * 7919) % 1009) / 1009.0 + (g * 31 % 17) / 10.0 + ((i * 15485863) % 1013) / 1013.0 AS y
            FROM (SELECT i, i // 5 % 24 AS g FROM range(240) r(i));
            """
        )
        yield con


def column(frame: pl.DataFrame, name: str) -> list[float]:
    return [v for v in frame[name].to_list() if v is not None]


def test_table_9_5_least_squares_on_rows(slopes_as_outcomes: Comparators) -> None:
    order = ["(Intercept)", "meanses", "sector", "group_center(ses)", "meanses:group_center(ses)"]
    order += ["group_center(ses):sector"]
    found = pl.DataFrame({"term": order}).join(slopes_as_outcomes.ols(), on="term", maintain_order="left")
    estimate = [12.084805, 5.163791, 1.280341, 2.935860, 1.044120, -1.642102]
    error = [0.106898, 0.190834, 0.157845, 0.155284, 0.299885, 0.240178]
    robust = [0.169517, 0.334078, 0.299077, 0.147580, 0.332897, 0.237223]
    for name, printed in (("estimate", estimate), ("std_error", error), ("robust_std_error", robust)):
        np.testing.assert_allclose(found[name], printed, rtol=0, atol=DIGITS)
    np.testing.assert_allclose(found["ratio"], found["robust_std_error"] / found["std_error"])
    assert found["df"].to_list() == [7179.0] * 6
    np.testing.assert_allclose(found["statistic"], found["estimate"] / found["std_error"])


def test_r_gives_the_same_regressions(slopes_as_outcomes: Comparators, simple: Comparators) -> None:
    r = json.loads(R_RESULTS.read_text(encoding="utf-8"))
    rename = [t.replace("cses", "group_center(ses)") for t in r["pooled"]["term"]]
    found = pl.DataFrame({"term": rename}).join(slopes_as_outcomes.ols(), on="term", maintain_order="left")
    inflated = pl.DataFrame({"term": rename}).join(slopes_as_outcomes.ols("CR1"), on="term", maintain_order="left")
    robust = r["pooled"]["clubsandwich_by_school"]
    for one, other in (
        (found["estimate"], r["pooled"]["estimate"]),
        (found["std_error"], r["pooled"]["se"]),
        (found["robust_std_error"], np.sqrt(np.diag(robust["vcov_CR0"]))),
        (inflated["robust_std_error"], np.sqrt(np.diag(robust["vcov_CR1"]))),
    ):
        np.testing.assert_allclose(one, other, rtol=AS_IN_R)
    for one, label in ((simple.between(), "between"), (simple.between(True), "between_by_size")):
        np.testing.assert_allclose(one["estimate"], r[label]["estimate"], rtol=AS_IN_R)
        np.testing.assert_allclose(one["std_error"], r[label]["se"], rtol=AS_IN_R)
    within = simple.within().row(1, named=True)
    assert within["estimate"] == pytest.approx(r["within"]["estimate"], rel=AS_IN_R)
    assert within["std_error"] == pytest.approx(r["within"]["se"], rel=AS_IN_R)
    assert within["df"] == r["within"]["df_residual"]
    own = slopes_as_outcomes.per_group().filter(pl.col("term") == "(Intercept)")
    assert own["school"].cast(pl.String).to_list() == r["by_school"]["level"]
    assert own["df"].to_list() == r["by_school"]["residual_df"]
    np.testing.assert_allclose(own["residual_sd"].to_numpy() ** 2, r["by_school"]["sigma2"], rtol=AS_IN_R)


def test_tests_by_robust_errors(slopes_as_outcomes: Comparators) -> None:
    model, found, inflated = (slopes_as_outcomes.ols(v) for v in ("model", "CR0", "CR1"))  # type: ignore[arg-type]
    assert found["vcov"].to_list() == ["CR0"] * 6
    assert found["df"].to_list() == [159.0] * 6
    np.testing.assert_allclose(found["statistic"], found["estimate"] / found["robust_std_error"])
    np.testing.assert_allclose(found["std_error"], model["std_error"], rtol=1e-12)
    # with J / (J - 1) the printed .334 and .299 would be .3351 and .3000
    np.testing.assert_allclose(inflated["robust_std_error"], found["robust_std_error"] * np.sqrt(160 / 159), rtol=1e-12)
    p_value = model.filter(pl.col("term") == "meanses:group_center(ses)")["p_value"].item()
    assert p_value == pytest.approx(0.000501, abs=1e-6)


def test_centred_columns_are_named_between_and_level2_columns_within(slopes_as_outcomes: Comparators) -> None:
    between, within = slopes_as_outcomes.between(), slopes_as_outcomes.within()
    centred = pl.col("term").str.contains("group_center")
    assert between.filter(centred)["note"].unique().to_list() == ["left out: its group means do not vary"]
    assert between.filter(centred)["estimate"].null_count() == 3
    assert between.filter(~centred)["df"].to_list() == [157.0] * 3
    assert between.columns == ["term", "estimate", "std_error", "df", "statistic", "p_value", "note"]
    notes = within.filter(~centred)["note"].unique().to_list()
    assert notes == ["left out: one value per group, which the groups' intercepts absorb"]
    assert within.filter(centred)["df"].to_list() == [7022.0] * 3
    # centred columns are orthogonal to what groups have in common: the slopes of OLS, with less noise
    ols = slopes_as_outcomes.ols().filter(centred)
    np.testing.assert_allclose(within.filter(centred)["estimate"], ols["estimate"], rtol=1e-10)
    np.testing.assert_allclose(within.filter(centred)["robust_std_error"], ols["robust_std_error"], rtol=1e-10)


def test_table_5_10_four_estimators_of_a_slope(simple: Comparators) -> None:
    found = simple.slopes("ses")
    labels = ["total", "between", "between_weighted", "within", "multilevel", "multilevel_random_slope"]
    assert found["estimator"].to_list() == labels
    estimate = [3.18387, 5.90930, 5.71688, 2.19117, 2.39020, 2.19320]
    np.testing.assert_allclose(found["estimate"], estimate, rtol=0, atol=DIGITS)
    error = [0.09712, 0.37143, 0.10865, 0.10572, 0.12826]
    np.testing.assert_allclose(found.filter(pl.col("estimator") != "between_weighted")["std_error"], error, atol=DIGITS)
    assert found["df"].to_list() == [7183.0, 158.0, 158.0, 7024.0, 7183.0, 159.0]
    weight = found["weight_in_total"].to_list()
    assert weight[2] == pytest.approx(0.28156, abs=DIGITS)
    # 5.38 holds with the slope between groups weighted by their rows
    mixture = sum(w * b for w, b in zip(weight, found["estimate"], strict=True) if w is not None)
    assert mixture == pytest.approx(found["estimate"][0], rel=1e-12)
    assert found["note"][0] == "= 0.28156 x 5.71688 + 0.71844 x 2.19117"
    assert found["note"][4] == "mathach ~ 1 + ses + (1 | school), REML"


def test_slopes_are_those_of_the_predictor_alone_however_the_fit_has_it(
    simple: Comparators, slopes_as_outcomes: Comparators
) -> None:
    direct = simple.slopes("ses")
    for term in ("ses", "group_center(ses)"):
        found = slopes_as_outcomes.slopes(term)
        np.testing.assert_allclose(found["estimate"], direct["estimate"], rtol=1e-9)
    ml = Comparators(mlsql.fit("mathach ~ ses + (1 | school)", HSB, method="ML").products).slopes("ses")
    assert ml["estimate"][4] == pytest.approx(2.39150, abs=DIGITS)
    assert ml["std_error"][4] == pytest.approx(0.10569, abs=DIGITS)


def test_table_5_11_contextual_effect(simple: Comparators) -> None:
    found = simple.hausman()
    assert found["term"].to_list() == ["ses", "(joint)"]
    row = found.row(0, named=True)
    assert row["within"] == pytest.approx(2.19117, abs=DIGITS)
    # the book's meanses is rounded; with the sample's own means the slopes are the same to five digits
    assert row["between"] == pytest.approx(5.86618, abs=1e-4)
    assert row["contextual"] == pytest.approx(3.67504, abs=1e-4)
    assert row["std_error"] == pytest.approx(0.37766, abs=1e-4)
    assert row["chi2"] == pytest.approx((row["contextual"] / row["std_error"]) ** 2)
    assert found["chi2"][1] == pytest.approx(found["chi2"][0])


def test_the_same_contextual_effect_from_either_centring() -> None:
    centred = comparators("mathach ~ group_center(ses) + group_mean(ses) + female + (1 | school)").hausman()
    raw = comparators("mathach ~ ses + female + (1 | school)").hausman()
    grand = comparators("mathach ~ grand_center(ses) + female + group_mean(ses) + (1 | school)").hausman()
    assert centred["term"].to_list() == ["group_center(ses)", "female", "(joint)"]
    assert raw["df"].to_list() == [1, 1, 2]
    for other in (raw, grand):
        for name in ("contextual", "std_error", "chi2", "between", "within"):
            np.testing.assert_allclose(column(other, name), column(centred, name), rtol=1e-6)
    spec = "mathach ~ ses + female + group_mean(ses) + group_mean(female) + (1 | school)"
    joint = mlsql.fit(spec, HSB).test(["group_mean(ses)", "group_mean(female)"])
    assert raw["chi2"][2] == pytest.approx(joint["chi2"].item(), rel=1e-8)
    assert raw["p_value"][2] == pytest.approx(joint["chi2_p_value"].item(), rel=1e-6)


def test_predictors_that_assume_nothing_or_leave_no_choice(rows: duckdb.DuckDBPyConnection) -> None:
    found = comparators("y ~ group_center(x) + sex + (1 | g)", "t", con=rows).hausman()
    assert found["term"].to_list() == ["sex[m]", "group_center(x)", "(joint)"]
    assert found["note"][1] == "centred within groups and its mean is not in the model: not tested"
    with pytest.raises(FitError, match=r"nothing to test.*group_center\(ses\): centred within groups"):
        comparators("mathach ~ group_center(ses) + sector + (1 | school)").hausman()
    with pytest.raises(FitError, match="nothing to test"):
        comparators("mathach ~ sector + (1 | school)").hausman()
    balanced = comparators("y ~ time + x + (1 | g)", "t", con=rows).hausman()
    assert balanced.filter(pl.col("term").str.contains("time"))["note"].item() == (
        "the same in every group: not tested"
    )
    assert balanced["df"].to_list() == [1, None, 1]


def test_a_factor_has_a_contextual_effect_for_each_level(rows: duckdb.DuckDBPyConnection) -> None:
    rows.execute("CREATE TABLE u AS SELECT * REPLACE (CASE WHEN g % 3 = 0 AND f = 'c' THEN 'b' ELSE f END AS f) FROM t")
    found = comparators("y ~ f + x + (1 | g)", "u", con=rows).hausman()
    assert found["term"].to_list() == ["f[b]", "f[c]", "x", "(joint)"]
    assert found["df"].to_list() == [1, 1, 1, 3]


def test_hausman_keeps_what_the_fit_left_out() -> None:
    settings = {"drop_collinear": True}
    found = comparators("mathach ~ ses + I(2 * ses) + female + (1 | school)", **settings).hausman()
    direct = comparators("mathach ~ ses + female + (1 | school)").hausman()
    tested = found.filter(pl.col("chi2").is_not_null())
    np.testing.assert_allclose(tested["chi2"], direct["chi2"], rtol=1e-8)
    assert tested["term"].to_list() == direct["term"].to_list()


def test_per_group_rows_and_keys(simple: Comparators, rows: duckdb.DuckDBPyConnection) -> None:
    found = simple.per_group()
    assert found.columns == ["school", "term", "estimate", "std_error", "n", "df", "residual_sd", "full_rank"]
    assert found.height == 320
    assert found["term"].head(2).to_list() == ["(Intercept)", "ses"]
    data = pl.read_parquet(HSB).filter(pl.col("school") == 1224)
    slope, intercept = np.polyfit(data["ses"].to_numpy(), data["mathach"].to_numpy(), 1)
    np.testing.assert_allclose(found["estimate"].head(2), [intercept, slope], rtol=1e-10)
    rows.execute("CREATE TABLE u AS SELECT *, CASE WHEN g = 3 THEN 1 ELSE x END AS z, g AS n FROM t")
    deficient = comparators("y ~ z + (1 | n)", "u", con=rows).per_group()
    assert deficient.columns[0] == "group_n"
    flat = deficient.filter(~pl.col("full_rank"))
    assert flat["group_n"].to_list() == [3, 3]
    assert (flat["estimate"].null_count(), flat["std_error"].null_count(), flat["residual_sd"].null_count()) == (
        2,
        2,
        0,
    )


def test_how_much_too_small_errors_are_without_groups(slopes_as_outcomes: Comparators) -> None:
    found = slopes_as_outcomes.design_effects()
    # printed by HLM: .198733 and .369157 beside OLS's .106898 and .190834
    np.testing.assert_allclose(found["ratio"].head(2), [0.106898 / 0.198733, 0.190834 / 0.369157], atol=1e-5)
    tau, sigma2, size = 2.3795, 36.7212, 7185 / 160
    reliability = tau / (tau + sigma2 / size)
    row = found.row(1, named=True)
    assert row["reliability"] == pytest.approx(reliability, abs=1e-4)
    assert row["expected_ratio"] == pytest.approx(np.sqrt(1 - reliability), abs=1e-4)
    assert row["design_effect"] == pytest.approx(1 + (size - 1) * tau / (tau + sigma2), abs=1e-3)
    level1 = found.filter(pl.col("term").str.contains("group_center"))
    assert level1["expected_ratio"].null_count() == 3
    none = comparators("mathach ~ 0 + ses + (0 + ses | school)").design_effects()
    assert none["design_effect"].to_list() == [None]
    assert none["ratio"].null_count() == 0


def test_weights_everywhere(rows: duckdb.DuckDBPyConnection) -> None:
    weighted = comparators("y ~ x + w + (1 | g)", "t", con=rows, weights="wt")
    repeated = rows.sql("SELECT t.* FROM t, range(4) r(k) WHERE k < wt")
    plain = comparators("y ~ x + w + (1 | g)", repeated)
    # integer weights give the estimates of repeated rows
    for one, other in (
        (weighted.ols(), plain.ols()),
        (weighted.between(True), plain.between(True)),
        (weighted.between(), plain.between()),
        (weighted.within(), plain.within()),
    ):
        np.testing.assert_allclose(column(one, "estimate"), column(other, "estimate"), rtol=1e-9)
    np.testing.assert_allclose(weighted.ols()["robust_std_error"], plain.ols()["robust_std_error"], rtol=1e-9)
    slopes = weighted.slopes("x")
    np.testing.assert_allclose(slopes["estimate"].head(4), plain.slopes("x")["estimate"].head(4), rtol=1e-9)
    weight = slopes["weight_in_total"].to_list()
    mixture = weight[2] * slopes["estimate"][2] + weight[3] * slopes["estimate"][3]
    assert mixture == pytest.approx(slopes["estimate"][0], rel=1e-10)
    # centring is by unweighted means, which this fit has not read
    assert slopes["estimate"][5] is None
    assert "do not have the mean of x by group" in slopes["note"][5]
    with pytest.raises(FitError, match="do not have the mean of x by group"):
        weighted.hausman()
    read = comparators("y ~ x + group_mean(x) + (1 | g)", "t", con=rows, weights="wt")
    assert read.slopes("x")["estimate"].null_count() == 0
    assert read.hausman()["df"].to_list() == [1, 1]


def test_a_factor_of_two_levels_has_slopes(rows: duckdb.DuckDBPyConnection) -> None:
    found = comparators("y ~ sex*x + (1 | g)", "t", con=rows)
    rows.execute("CREATE TABLE u AS SELECT *, CAST(sex = 'm' AS INTEGER) AS male FROM t")
    direct = comparators("y ~ male + (1 | g)", "u", con=rows).slopes("male")
    for term in ("sex", "sex[m]"):
        np.testing.assert_allclose(found.slopes(term)["estimate"], direct["estimate"], rtol=1e-8)


def test_a_predictor_whose_means_do_not_vary(rows: duckdb.DuckDBPyConnection) -> None:
    found = comparators("y ~ time + (1 | g)", "t", con=rows)
    slopes = found.slopes("time")
    assert slopes["estimate"].is_null().to_list() == [False, True, True, False, False, False]
    assert slopes["note"][1] == "the group means do not vary"
    assert slopes["estimate"][0] == pytest.approx(slopes["estimate"][3], rel=1e-10)
    assert slopes["weight_in_total"][3] == pytest.approx(1.0)
    assert found.between()["note"].to_list() == [None, "left out: its group means do not vary"]


def test_what_is_left_out_because_of_other_columns(rows: duckdb.DuckDBPyConnection) -> None:
    found = comparators("y ~ x + group_center(x) + (1 | g)", "t", con=rows)
    assert found.within()["note"][2] == "left out: within groups a combination of x"
    twice = comparators("y ~ x + group_mean(x) + (1 | g)", "t", con=rows)
    assert twice.between()["note"][2] == "left out: its group means are a combination of those of x"


def test_unknown_names(simple: Comparators, rows: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(FitError, match="vcov is 'CR2'; this regression has model, CR0, CR1"):
        simple.ols("CR2")  # type: ignore[arg-type]
    with pytest.raises(FitError, match="'sess' is not a level-1 predictor of this fit; its level-1 predictors: ses"):
        simple.slopes("sess")
    with pytest.raises(FitError, match="its level-1 predictors: none"):
        comparators("mathach ~ sector + (1 | school)").slopes("sector")
    with pytest.raises(FitError, match="f: the factor f has 3 levels"):
        comparators("y ~ f + (1 | g)", "t", con=rows).slopes("f")


def test_comparators_of_group_means_need_no_further_scan(
    rows: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    rows.execute("CREATE TABLE mixed AS FROM t ORDER BY (g * 7919 + time * 31) % 1009, x")
    fit = mlsql.fit("y ~ x*w + (1 | g)", "mixed", con=rows)
    assert fit.estimates.design.layout == "lean"
    full = comparators("y ~ x*w + (1 | g)", "t", con=rows)
    robust = Comparators(fit.products).ols()
    lean = mlsql.fit("y ~ x*w + (1 | g)", "mixed", con=rows)
    rows.execute("DROP TABLE mixed")
    found = Comparators(lean.products)
    np.testing.assert_allclose(found.between()["estimate"], full.between()["estimate"], rtol=1e-9)
    assert found.design_effects()["ratio"].null_count() == 0
    np.testing.assert_allclose(robust["robust_std_error"], full.ols()["robust_std_error"], rtol=1e-9)
