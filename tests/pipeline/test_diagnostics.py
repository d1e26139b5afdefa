"""`Diagnostics`: frames held against the rows' own residuals; weights, level-2 tables, missing values."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.testing import assert_frame_equal
from scipy.special import ndtri

import mlsql
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.pipeline import residual_diagnostics
from mlsql.pipeline.diagnostics import Diagnostics

Array = NDArray[np.float64]
Con = duckdb.DuckDBPyConnection
KINDS = ("residual", "residual_population", "residual_ols", "residual_standardized")

# sums in the database against sums here; powers of deviations by cancellation
TOLERANCE = 1e-9


def of(fit: mlsql.Fit) -> Diagnostics:
    return Diagnostics(fit.products)


@pytest.fixture(scope="module")
def hsb() -> mlsql.Fit:
    return mlsql.fit("mathach ~ sector*ses + (ses | school)", mlsql.example_data("hsb"))


@pytest.fixture(scope="module")
def rows(hsb: mlsql.Fit) -> pl.DataFrame:
    """The rows with their residuals, brought here."""
    frame = hsb.residuals()
    assert frame is not None
    return frame


@pytest.fixture
def hard(con: Con) -> mlsql.Fit:
    """Weights, a level-2 table without one of the groups, missing values on every side, a group mean, an offset."""
    con.execute(
        """
        CREATE TABLE hard AS SELECT * REPLACE (CASE WHEN i % 17 > 0 THEN y END AS y,
            CASE WHEN i % 13 = 0 THEN 'NaN' ELSE x END AS x, CASE WHEN i % 11 > 0 THEN z END AS z),
            1 + i % 3 AS weight, i % 7 AS o FROM t;
        CREATE TABLE partial AS SELECT g, CASE WHEN g <> 3 THEN w END AS w, k, g * g % 5 AS v, 'u' || g AS name
        FROM upper WHERE g <> 5;
        """
    )
    formula = "y ~ x*w + group_mean(z) + offset(o / 10) + (x | g)"
    return mlsql.fit(formula, "hard", con=con, level2="partial", weights="weight / 2")


def analysed(fit: mlsql.Fit) -> pl.DataFrame:
    """The rows of the analysis with their residuals."""
    frame = fit.residuals()
    assert frame is not None
    complete = frame.filter(pl.col("z").is_not_null() & pl.col("residual").is_finite() & ~pl.col("g").is_in([3, 5]))
    assert complete.height == fit.n_rows
    return complete


def summary(values: pl.Series) -> dict[str, Any]:
    there = values.drop_nulls()
    quantiles = {k: there.quantile(p, "linear") for k, p in residual_diagnostics.PROBABILITIES.items()}
    series = there.to_pandas()
    return {
        "n": len(there),
        "mean": there.mean(),
        "sd": there.std(),
        "skewness": series.skew(),
        "kurtosis": series.kurt(),
        "min": there.min(),
        "max": there.max(),
    } | quantiles


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_in_one_row(hsb: mlsql.Fit, rows: pl.DataFrame, kind: Any) -> None:
    same(of(hsb).residuals(kind=kind).row(0, named=True), summary(rows[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_of_a_hard_model(hard: mlsql.Fit, kind: Any) -> None:
    same(of(hard).residuals(kind=kind).row(0, named=True), summary(analysed(hard)[kind]))


def test_residuals_by_a_column(hsb: mlsql.Fit, rows: pl.DataFrame) -> None:
    found = of(hsb).residuals(by="sector")
    assert found["value"].to_list() == [0, 1]
    for row in found.iter_rows(named=True):
        same({k: v for k, v in row.items() if k != "value"}, summary(rows.filter(sector=row["value"])["residual"]))


def test_residuals_by_expressions_and_the_level2_table(hard: mlsql.Fit) -> None:
    frame = analysed(hard)
    found = of(hard).residuals(by="CASE WHEN f <> 'c' THEN upper(f) END", kind="residual_standardized")
    assert found["value"].to_list() == ["A", "B", None]
    sizes = [frame.filter(pl.col("f") == level).height for level in "abc"]
    assert found["n"].to_list() == sizes
    upper = of(hard).residuals(by="k")
    assert upper["value"].to_list() == ["p", "q"]
    means = frame.group_by(pl.col("g") % 2).agg(pl.col("residual").mean()).sort("g")["residual"]
    assert upper["mean"].to_list() == pytest.approx(means.to_list(), rel=TOLERANCE, abs=TOLERANCE)
    # the level-2 table's column and the data's own, side by side in the data under odd names
    assert of(hard).residuals(by="g = 4")["n"].to_list() == [hard.n_rows - 9, 9]


def test_columns_called_like_ours(con: Con) -> None:
    con.execute(
        'CREATE TABLE odd AS SELECT g AS n, x AS mean, y AS residual, i % 2 AS "mlsql by 0", i % 3 AS scored FROM t'
    )
    fit = mlsql.fit("residual ~ mean + (1 | n)", "odd", con=con)
    assert of(fit).residuals(by="scored")["n"].to_list() == [40, 40, 40]
    assert of(fit).residuals(by='"mlsql by 0"')["n"].to_list() == [60, 60]
    assert of(fit).by_group().columns == ["group_n", "n", "mean", "sd", "skewness", "min", "max"]
    assert of(fit).level2().columns[:2] == ["group_n", "n"]
    assert of(fit).extreme_groups(1).columns[:2] == ["group_n", "n"]
    assert of(fit).against("residual", 4)["n"].sum() == 120
    assert of(fit).to_enter(["n"]).height == 1


def test_frames_and_relations(con: Con) -> None:
    frame = con.sql("FROM t").pl()
    own = of(mlsql.fit("y ~ x + (1 | g)", frame))
    named = of(mlsql.fit("y ~ x + (1 | g)", "t", con=con))
    related = of(mlsql.fit("y ~ x + (1 | g)", con.sql("FROM t"), con=con))
    for other in (named, related):
        assert_frame_equal(own.residuals(by="f"), other.residuals(by="f"), rel_tol=1e-6)
        assert_frame_equal(own.to_enter(["g"]), other.to_enter(["g"]), rel_tol=1e-6)
    with pytest.raises(mlsql.DataError, match="need con="):
        of(mlsql.fit("y ~ x + (1 | g)", con.sql("FROM t"))).residuals()


def test_qq(hsb: mlsql.Fit, rows: pl.DataFrame) -> None:
    found = of(hsb).qq()
    assert found.columns == ["probability", "quantile", "normal_quantile"]
    assert found["probability"].to_numpy() == pytest.approx(np.arange(1, 100) / 100)
    expected = np.quantile(rows["residual_standardized"].to_numpy(), np.arange(1, 100) / 100)
    assert found["quantile"].to_numpy() == pytest.approx(expected, abs=TOLERANCE)
    assert found["normal_quantile"].to_numpy() == pytest.approx(ndtri(np.arange(1, 100) / 100))
    assert of(hsb).qq(1)["probability"].to_list() == [0.5]


def test_a_digest_serves_large_data(hsb: mlsql.Fit, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = of(hsb).qq(19)["quantile"].to_numpy()
    monkeypatch.setattr(residual_diagnostics, "EXACT_ROWS", 100)
    digest = of(hsb).qq(19)["quantile"].to_numpy()
    # a probability off by less than 0.005 in data of this size
    assert digest == pytest.approx(exact, abs=0.03)
    bins = of(hsb).against("ses", 4)
    assert bins["n"].sum() == 7185
    assert bins["n"].to_numpy() == pytest.approx(np.full(4, 7185 / 4), rel=0.05)
    assert of(hsb).residuals()["mean"].item() == pytest.approx(rows["residual"].mean(), abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_by_group(hsb: mlsql.Fit, rows: pl.DataFrame, kind: Any) -> None:
    found = of(hsb).by_group(kind)
    expected = (
        rows.group_by("school")
        .agg(
            pl.len().cast(pl.Int64).alias("n"),
            pl.col(kind).mean().alias("mean"),
            pl.col(kind).std().alias("sd"),
            pl.col(kind).skew(bias=False).alias("skewness"),
            pl.col(kind).min().alias("min"),
            pl.col(kind).max().alias("max"),
        )
        .sort("school")
    )
    assert_frame_equal(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def test_by_group_of_a_hard_model(hard: mlsql.Fit) -> None:
    found = of(hard).by_group()
    assert found["g"].to_list() == [g for g in range(12) if g not in (3, 5)]
    expected = analysed(hard).group_by("g").agg(pl.col("residual").sum() / pl.len()).sort("g")["residual"]
    assert found["mean"].to_numpy() == pytest.approx(expected.to_numpy(), rel=TOLERANCE, abs=TOLERANCE)
    assert found["n"].sum() == hard.n_rows


def test_by_group_with_two_keys_and_small_groups(con: Con) -> None:
    data = "SELECT *, g % 2 AS a, g // 2 AS b FROM t WHERE i % 10 < 1 + g"
    fit = mlsql.fit("y ~ x + (1 | a:b)", data, con=con)
    found = of(fit).by_group()
    assert found.columns[:2] == ["a", "b"]
    assert found.filter(pl.col("n") == 1)["sd"].to_list() == [None]
    assert found.filter(pl.col("n") < 3)["skewness"].to_list() == [None, None]


def test_against_a_predictor(hsb: mlsql.Fit, rows: pl.DataFrame) -> None:
    found = of(hsb).against("ses", 8)
    cuts = np.array([np.quantile(rows["ses"], k / 8, method="inverted_cdf") for k in range(1, 8)])
    place = np.sum(rows["ses"].to_numpy()[:, None] > cuts, axis=1)
    assert found["bin"].to_list() == list(range(1, 9))
    for b, row in enumerate(found.iter_rows(named=True)):
        ses, r = rows["ses"].filter(place == b), rows["residual"].filter(place == b)
        spread = r.std()
        assert isinstance(spread, float)
        expected = [ses.min(), ses.max(), ses.mean(), len(r), r.mean(), spread, spread / np.sqrt(len(r))]
        assert list(row.values())[1:] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    # equal counts but for equal values
    assert found["n"].to_numpy() == pytest.approx(np.full(8, 7185 / 8), rel=0.05)


def test_against_few_values_and_missing_ones(hsb: mlsql.Fit) -> None:
    assert of(hsb).against("minority")["predictor_mean"].to_list() == [0.0, 1.0]
    assert of(hsb).against("ses > 0")["predictor_max"].to_list() == [0.0, 1.0]
    found = of(hsb).against("CASE WHEN ses > 0 THEN 1 / (size - 100) END", 3)
    assert found["bin"].to_list() == [1, 2, 3, None]
    assert found["n"].sum() == 7185
    assert found["predictor_min"].to_list()[3] is None


def test_missing_values_come_last_whatever_the_connection_prefers(con: Con) -> None:
    con.execute("SET default_null_order = 'nulls_first'")
    fit = mlsql.fit("y ~ x + (1 | g)", "t", con=con)
    found = of(fit).against("CASE WHEN i > 5 THEN z END", 3)
    assert found["bin"].to_list() == [1, 2, 3, None]
    assert found["n"].to_list()[3] == 6
    assert of(fit).residuals(by="nullif(f, 'b')")["value"].to_list() == ["a", "c", None]


def test_against_the_level2_table(hard: mlsql.Fit) -> None:
    found = of(hard).against("v + g", 3, "residual_ols")
    assert found["n"].sum() == hard.n_rows
    assert found["predictor_min"].is_sorted()


def test_level2(hsb: mlsql.Fit) -> None:
    found = of(hsb).level2()
    assert found["school"].to_list() == hsb.group_effects()["school"].unique(maintain_order=True).to_list()
    assert found["n"].sum() == 7185
    school = pl.read_parquet(mlsql.example_data("hsb")).filter(pl.col("school") == found["school"][0])
    X = np.column_stack([np.ones(school.height), school["ses"]])
    y = school["mathach"].to_numpy()
    rest = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    sd = np.sqrt(rest @ rest / (school.height - 2))
    row = found.row(0, named=True)
    assert row["ols_residual_sd"] == pytest.approx(sd, rel=1e-9)
    assert row["ln_residual_sd"] == pytest.approx(np.log(sd), rel=1e-9)
    assert row["ln_total_sd"] == pytest.approx(np.log(y.std(ddof=1)), rel=1e-9)
    assert found.null_count().sum_horizontal().item() == 0


def test_level2_of_small_groups(con: Con) -> None:
    fit = mlsql.fit("y ~ x + (x | g)", "SELECT * FROM t WHERE i % 10 < 1 + g", con=con)
    found = of(fit).level2()
    assert found["ols_residual_sd"].is_null().to_list() == [True, True] + [False] * 10
    assert found["ln_total_sd"].is_null().to_list() == [True] + [False] * 11
    assert found["mahalanobis"].null_count() == 0


def test_homogeneity_and_extreme_groups() -> None:
    fit = mlsql.fit("mathach ~ group_center(ses) + (1 | school)", mlsql.example_data("hsb"))
    (row,) = of(fit).homogeneity().iter_rows(named=True)
    assert row["chi2"] == pytest.approx(246.117, abs=5e-4)
    assert (row["df"], row["groups_used"], row["min_n"]) == (159, 160, 10)
    every = of(fit).extreme_groups(None)
    assert every.height == 160
    assert every["dispersion"].pow(2).sum() == pytest.approx(row["chi2"])
    assert every["dispersion"].abs().is_sorted(descending=True)
    assert every["dispersion_corrected"].head(4).to_list() == pytest.approx([-4.995, -3.688, -3.239, -3.144], abs=5e-4)
    assert_frame_equal(of(fit).extreme_groups(3), every.head(3))
    fewer = of(fit).homogeneity(50).row(0, named=True)
    assert fewer["groups_used"] + fewer["groups_small"] == 160
    assert fewer["groups_small"] > 0


def test_the_lean_layout_fetches_what_is_missing(hsb: mlsql.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    data = f"SELECT * FROM '{mlsql.example_data('hsb')}' ORDER BY hash(ses, mathach)"
    lean = mlsql.fit("mathach ~ sector*ses + (ses | school)", data)
    assert lean.estimates.design.layout == "lean"
    # estimates are found to about 1e-6
    assert_frame_equal(of(lean).homogeneity(), of(hsb).homogeneity(), rel_tol=1e-8)
    assert_frame_equal(of(lean).level2(), of(hsb).level2(), rel_tol=1e-4)
    assert_frame_equal(of(lean).residuals(by="sector"), of(hsb).residuals(by="sector"), rel_tol=1e-4, abs_tol=1e-5)
    assert_frame_equal(of(lean).to_enter(["size"]), of(hsb).to_enter(["size"]), rel_tol=1e-4)


CANDIDATES = ["size", "ln(size)", "group_mean(ses)", "pracad * 100", "himinty = 1", "sector", "meanses"]


def test_to_enter(hsb: mlsql.Fit) -> None:
    found = of(hsb).to_enter(CANDIDATES)
    assert found["term"].to_list() == ["(Intercept)"] * 7 + ["ses"] * 7
    effects = hsb.group_effects()
    schools = (
        pl.read_parquet(mlsql.example_data("hsb"))
        .group_by("school")
        .agg(pl.col("size", "pracad", "himinty", "sector", "meanses").first(), pl.col("ses").mean())
        .sort("school")
    )
    size = schools["size"].to_numpy().astype(float)
    values = dict(
        zip(
            CANDIDATES,
            [size, np.log(size), schools["ses"], schools["pracad"] * 100, schools["himinty"], schools["sector"],
             schools["meanses"]],
            strict=True,
        )
    )  # fmt: skip
    for row in found.iter_rows(named=True):
        own = effects.filter(term=row["term"])
        w, u = np.asarray(values[row["candidate"]], dtype=float), own["estimate"].to_numpy()
        X = np.column_stack([np.ones(160), w - w.mean()])
        b = np.linalg.lstsq(X, u, rcond=None)[0]
        error = np.sqrt(np.sum((u - X @ b) ** 2) / 158 / np.sum(X[:, 1] ** 2))
        assert row["coefficient"] == pytest.approx(b[1], rel=1e-8, abs=1e-12)
        assert row["std_error"] == pytest.approx(error, rel=1e-8)
        assert row["t"] == pytest.approx(b[1] / error, rel=1e-8, abs=1e-9)
        assert row["correlation_eb"] == pytest.approx(np.corrcoef(w, u)[0, 1], rel=1e-8, abs=1e-9)
        ols = own["ols_estimate"].to_numpy()
        assert row["correlation_ols"] == pytest.approx(np.corrcoef(w, ols)[0, 1], rel=1e-8, abs=1e-9)
        assert row["in_equation"] == (row["candidate"] == "sector")
        assert (row["groups"], row["missing"]) == (160, 0)
    for term in ("(Intercept)", "ses"):
        assert found.filter(term=term)["t"].abs().is_sorted(descending=True)


def test_to_enter_of_a_hard_model(con: Con, hard: mlsql.Fit) -> None:
    """Candidates of both tables, a mean over the rows of the analysis, a missing value."""
    own = "CASE WHEN g <> 7 THEN g % 4 END"
    found = of(hard).to_enter(["v", "k = 'p'", "group_mean(i)", own, "w", "group_mean(z)"])
    frame = analysed(hard)
    groups = frame.group_by("g").agg(pl.col("i").mean()).sort("g")
    upper = con.sql("SELECT v FROM partial WHERE g NOT IN (3, 5) ORDER BY g").pl()["v"].to_numpy()
    effects = hard.group_effects().filter(term="x")["estimate"].to_numpy()
    slopes = {r["candidate"]: r for r in found.filter(term="x").iter_rows(named=True)}
    assert slopes["v"]["correlation_eb"] == pytest.approx(np.corrcoef(upper, effects)[0, 1], rel=1e-8)
    assert slopes["group_mean(i)"]["correlation_eb"] == pytest.approx(
        np.corrcoef(groups["i"].to_numpy(), effects)[0, 1], rel=1e-8
    )
    assert (slopes[own]["missing"], slopes[own]["groups"]) == (1, 9)
    flags = {(r["term"], r["candidate"]): r["in_equation"] for r in found.iter_rows(named=True)}
    assert [k for k, there in flags.items() if there] == [
        k for k in flags if k[1] == "w" or k == ("(Intercept)", "group_mean(z)")
    ]


def test_all_candidates_take_one_scan(hsb: mlsql.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    query = DuckDBEngine.query

    def spy(engine: Any, step: Any) -> Any:
        seen.append(step.name)
        return query(engine, step)

    monkeypatch.setattr(DuckDBEngine, "query", spy)
    of(hsb).to_enter(CANDIDATES)
    assert [s for s in seen if s != "types"] == ["candidates"]
    seen.clear()
    of(hsb).residuals(by="sector")
    assert [s for s in seen if s != "types"] == ["residual summary"]


def test_a_coefficient_without_variance_has_no_t() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"g": np.repeat(np.arange(8), 5), "y": rng.normal(size=40)})
    fit = mlsql.fit("y ~ 1 + (1 | g)", frame.with_columns(y=pl.col("y") - pl.col("y").mean().over("g")))
    found = of(fit).to_enter(["g"])
    assert found["t"].to_list() == [None]
    assert found["correlation_eb"].to_list() == [None]


def test_advice_is_a_frame(hsb: mlsql.Fit) -> None:
    found = of(hsb).advice()
    assert found.columns == ["topic", "term", "value", "rule", "advice"]
    assert "reliability" in found["topic"].to_list()
    plain = "mathach ~ meanses*group_center(ses) + (group_center(ses) | school)"
    nothing = of(mlsql.fit(plain, mlsql.example_data("hsb"))).advice()
    assert nothing.height == 0
    assert nothing.schema == found.schema
