"""An mlsql fit in the package marginaleffects, against closed forms of the delta method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from scipy.special import ndtri, stdtr

import mlsql
from mlsql.pipeline import model_frame

pytest.importorskip("marginaleffects")

from marginaleffects import (
    avg_comparisons,
    avg_predictions,
    avg_slopes,
    comparisons,
    datagrid,
    hypotheses,
    plot_predictions,
    predictions,
    slopes,
)

# a derivative by a difference of 1e-4 between predictions of size 10 in double precision: 1e-11 absolute
SLOPE = 1e-8
# the package's own steps in the coefficients, 1e-8 of them, leave three digits of a slope's standard error; predictions
# are linear in the coefficients, so that a step of any size is as good
STEP = 1.0
# products of a handful of doubles
EXACT = 1e-10
# one-sided differences of hypotheses in the coefficients, as the package takes them
NUMERIC = 1e-6


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """hsb, its first eighty rows by number, and its schools as a table of their own."""
    with duckdb.connect() as con:
        con.execute(
            f"""
            CREATE TABLE hsb AS SELECT row_number() OVER () AS i, *, ['a', 'b', 'c'][i % 3 + 1] AS f, i % 4 AS k,
                i % 2 = 0 AS even, 1 + i % 5 / 2 AS w FROM '{mlsql.example_data("hsb")}';
            CREATE TABLE schools AS SELECT DISTINCT school, sector, meanses FROM hsb;
            CREATE TABLE pupils AS SELECT * EXCLUDE (sector, meanses) FROM hsb;
            """
        )
        yield con


@pytest.fixture(scope="module")
def fitted(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    return mlsql.fit("mathach ~ ses*sector + meanses + (ses | school)", "hsb", con=con)


@pytest.fixture(scope="module")
def centred(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    return mlsql.fit("mathach ~ group_center(ses)*sector + group_mean(ses) + (1 | school)", "hsb", con=con)


def gradient(fitted: mlsql.Fit, **weights: float) -> np.ndarray[Any, Any]:
    """Weights of the coefficients by the start of their terms' names; `x__z` stands for a product."""
    terms = fitted.fixed_effects["term"].to_list()
    named = {name.replace("__", ":"): value for name, value in weights.items()}
    return np.array([named.get(term, 0.0) for term in terms])


def check(row: dict[str, Any], fitted: mlsql.Fit, weights: np.ndarray[Any, Any], tolerance: float) -> None:
    beta = fitted.fixed_effects["estimate"].to_numpy()
    assert row["estimate"] == pytest.approx(weights @ beta, rel=tolerance)
    assert row["std_error"] == pytest.approx(np.sqrt(weights @ fitted.vcov @ weights), rel=tolerance)


def rows(result: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pl.DataFrame(result.data if hasattr(result, "data") else result).to_dicts()
    return found


def test_slopes_of_an_interaction(fitted: mlsql.Fit) -> None:
    model = fitted.as_marginaleffects()
    found = rows(slopes(model, variables="ses", newdata=datagrid(sector=[0, 1]), eps_vcov=STEP))
    for row in found:
        check(row, fitted, gradient(fitted, ses=1, ses__sector=row["sector"]), SLOPE)
    assert [row["sector"] for row in found] == [0, 1]


def test_average_slopes(con: duckdb.DuckDBPyConnection, fitted: mlsql.Fit) -> None:
    found = {row["term"]: row for row in rows(avg_slopes(fitted.as_marginaleffects(), eps_vcov=STEP))}
    ses, sector = con.sql("SELECT avg(ses), avg(sector) FROM hsb").fetchall()[0]
    check(found["ses"], fitted, gradient(fitted, ses=1, ses__sector=sector), SLOPE)
    check(found["meanses"], fitted, gradient(fitted, meanses=1), SLOPE)
    # 0 and 1 are the values of sector: a difference
    assert found["sector"]["contrast"] == "1 - 0"
    check(found["sector"], fitted, gradient(fitted, sector=1, ses__sector=ses), SLOPE)
    assert set(found) == {"ses", "sector", "meanses"}


def test_intervals_are_normal_or_of_given_degrees_of_freedom(fitted: mlsql.Fit) -> None:
    (row,) = rows(avg_slopes(fitted.as_marginaleffects(), variables="meanses", eps_vcov=STEP))
    assert row["conf_high"] == pytest.approx(row["estimate"] + ndtri(0.975) * row["std_error"], rel=EXACT)
    (row,) = rows(avg_slopes(fitted.as_marginaleffects(df=20), variables="meanses", eps_vcov=STEP))
    assert row["p_value"] == pytest.approx(2 * stdtr(20, -row["statistic"]), rel=1e-6)


def test_predictions_are_those_of_the_fit(con: duckdb.DuckDBPyConnection, fitted: mlsql.Fit) -> None:
    frame = con.sql("FROM hsb WHERE i % 50 = 0").pl()
    expected = fitted.predict(frame)
    assert expected is not None
    found = pl.DataFrame(rows(predictions(fitted.as_marginaleffects(), newdata=frame))).join(expected, on="i")
    assert found.height == frame.height
    assert found["estimate"].to_numpy() == pytest.approx(found["population"].to_numpy(), rel=EXACT)
    assert found["std_error"].to_numpy() == pytest.approx(found["population_std_error"].to_numpy(), rel=EXACT)


def test_averages_of_predictions(con: duckdb.DuckDBPyConnection, fitted: mlsql.Fit) -> None:
    model = fitted.as_marginaleffects()
    (row,) = rows(avg_predictions(model))
    predicted = fitted.predict()
    assert predicted is not None
    assert row["estimate"] == pytest.approx(predicted["population"].mean(), rel=EXACT)
    by = {row["sector"]: row["estimate"] for row in rows(avg_predictions(model, by="sector"))}
    assert by == pytest.approx(dict(predicted.group_by("sector").agg(pl.col("population").mean()).rows()), rel=EXACT)
    assert len(rows(avg_predictions(model, by="school"))) == 160


@pytest.mark.parametrize("grid", ["mean", "median", "balanced"])
def test_grids(fitted: mlsql.Fit, centred: mlsql.Fit, grid: str) -> None:
    for fit in (fitted, centred):
        found = rows(predictions(fit.as_marginaleffects(), newdata=grid))
        assert len(found) == (2 if grid == "balanced" else 1)
        assert all(0 < row["std_error"] < 1 for row in found)


def test_a_centred_predictor_moves_within_its_group(centred: mlsql.Fit) -> None:
    (row,) = rows(slopes(centred.as_marginaleffects(), variables="ses", newdata=datagrid(sector=1), eps_vcov=STEP))
    check(row, centred, gradient(centred, **{"group_center(ses)": 1, "group_center(ses)__sector": 1}), SLOPE)


def test_a_group_mean_is_a_column_of_its_own(centred: mlsql.Fit) -> None:
    """With a pupil's own ses held fixed, the contextual effect: between minus within."""
    model = centred.as_marginaleffects()
    (row,) = rows(slopes(model, variables="group_mean(ses)", newdata=datagrid(sector=0), eps_vcov=STEP))
    check(row, centred, gradient(centred, **{"group_mean(ses)": 1, "group_center(ses)": -1}), SLOPE)
    # it is moved when named, not with the raw predictors
    assert {row["term"] for row in rows(avg_slopes(model, eps_vcov=STEP))} == {"ses", "sector"}


def test_means_of_new_rows_are_those_of_their_groups(con: duckdb.DuckDBPyConnection, centred: mlsql.Fit) -> None:
    model = centred.as_marginaleffects()
    frame = con.sql("SELECT i, school, ses, sector FROM hsb WHERE i % 90 = 0").pl()
    expected = centred.predict(frame)
    assert expected is not None
    found = pl.DataFrame(rows(predictions(model, newdata=frame))).join(expected, on="i")
    assert found["estimate"].to_numpy() == pytest.approx(found["population"].to_numpy(), rel=EXACT)
    with pytest.raises(mlsql.DataError, match=r"add the grouping column school to the data, or a column 'group_mean"):
        predictions(model, newdata=frame.drop("school"))
    with pytest.raises(mlsql.DataError, match=r"has no value in 79 of 79 rows.*did not see the group"):
        predictions(model, newdata=frame.with_columns(school=pl.lit(1)))


def contrasts(fitted: mlsql.Fit, reference: str, terms: dict[str, str]) -> None:
    """Each level against the reference is the coefficient of its indicator."""
    found = {row["contrast"]: row for row in rows(avg_comparisons(fitted.as_marginaleffects()))}
    for level, term in terms.items():
        check(found[f"{level} - {reference}"], fitted, gradient(fitted, **{term: 1}), EXACT)
    assert len(found) == len(terms) + 1


def test_booleans_and_coded_numbers(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses + even + (1 | school)", "hsb", con=con)
    contrasts(fitted, "False", {"True": "even[true]"})
    fitted = mlsql.fit("mathach ~ ses + C(k) + (1 | school)", "hsb", con=con)
    contrasts(fitted, "0", {"1": "k[1]", "2": "k[2]", "3": "k[3]"})


@pytest.mark.skipif(
    int(pl.__version__.split(".")[0]) >= 2,
    reason="marginaleffects 0.6 contrasts text by Series.cat.get_categories, which Polars 2 no longer has",
)
@pytest.mark.filterwarnings("ignore:.*get_categories:DeprecationWarning")
def test_text(con: duckdb.DuckDBPyConnection) -> None:
    contrasts(mlsql.fit("mathach ~ ses + f + (1 | school)", "hsb", con=con), "a", {"b": "f[b]", "c": "f[c]"})
    fitted = mlsql.fit("mathach ~ ses + C(f, ref='b') + (1 | school)", "hsb", con=con)
    contrasts(fitted, "b", {"a": "f[a]", "c": "f[c]"})


def test_predictions_for_levels_of_text(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses + C(f, ref='b') + (1 | school)", "hsb", con=con)
    model = fitted.as_marginaleffects()
    # the reference stands first, as in the model
    assert model.get_modeldata()["f"].dtype == pl.Enum(["b", "a", "c"])
    found = rows(predictions(model, newdata=datagrid(f=["a", "b", "c"], ses=0)))
    for row in found:
        term = {"a": "f[a]", "c": "f[c]"}.get(row["f"], "none")
        check(row, fitted, gradient(fitted, **{"(Intercept)": 1, term: 1}), EXACT)


def test_expressions_are_followed(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses + I(ses * ses) + exp(meanses) + (1 | school)", "hsb", con=con)
    model = fitted.as_marginaleffects()
    (row,) = rows(slopes(model, variables="ses", newdata=datagrid(ses=0.7), eps_vcov=STEP))
    check(row, fitted, gradient(fitted, **{"ses": 1, "I(ses * ses)": 1.4}), SLOPE)
    (row,) = rows(slopes(model, variables="meanses", newdata=datagrid(meanses=0.3), eps_vcov=STEP))
    # a symmetric difference over 1e-4 of a curve: its third derivative enters at 1e-9
    check(row, fitted, gradient(fitted, **{"exp(meanses)": np.exp(0.3)}), 1e-7)


def test_with_a_level2_table(con: duckdb.DuckDBPyConnection, fitted: mlsql.Fit) -> None:
    apart = mlsql.fit("mathach ~ ses*sector + meanses + (ses | school)", "pupils", con=con, level2="schools")
    expected = {row["term"]: row for row in rows(avg_slopes(fitted.as_marginaleffects(), eps_vcov=STEP))}
    found = {row["term"]: row for row in rows(avg_slopes(apart.as_marginaleffects(), eps_vcov=STEP))}
    for term, row in expected.items():
        # the same model from sums in another order, at an optimum found to 1e-7 or better
        assert found[term]["estimate"] == pytest.approx(row["estimate"], rel=1e-6)
        assert found[term]["std_error"] == pytest.approx(row["std_error"], rel=1e-6)


def test_an_offset_is_part_of_a_prediction(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses + offset(w) + (1 | school)", "hsb", con=con)
    model = fitted.as_marginaleffects()
    predicted = fitted.predict()
    assert predicted is not None
    (row,) = rows(avg_predictions(model))
    assert row["estimate"] == pytest.approx(predicted["population"].mean(), rel=EXACT)
    by_hand = {row["term"]: row["estimate"] for row in rows(avg_slopes(model, eps_vcov=STEP))}
    assert by_hand == pytest.approx({"ses": fitted.fixed_effects["estimate"][1], "w": 1.0}, rel=SLOPE)


def test_weights_are_at_hand(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses*sector + (1 | school)", "hsb", con=con, weights="w")
    (row,) = rows(avg_slopes(fitted.as_marginaleffects(), variables="ses", wts="w", eps_vcov=STEP))
    (sector,) = con.sql("SELECT sum(w * sector) / sum(w) FROM hsb").fetchall()[0]
    check(row, fitted, gradient(fitted, ses=1, ses__sector=sector), SLOPE)


def test_hypotheses(fitted: mlsql.Fit) -> None:
    model = fitted.as_marginaleffects()
    table = fitted.fixed_effects
    found = rows(hypotheses(model))
    assert [row["term"] for row in found] == table["term"].to_list()
    assert [row["estimate"] for row in found] == table["estimate"].to_list()
    assert [row["std_error"] for row in found] == pytest.approx(table["std_error"].to_list(), rel=NUMERIC)
    (row,) = rows(hypotheses(model, hypothesis="sector = meanses"))
    check(row, fitted, gradient(fitted, sector=1, meanses=-1), NUMERIC)
    V = np.eye(5)
    assert [row["std_error"] for row in rows(hypotheses(model, vcov=V))] == pytest.approx([1.0] * 5, rel=NUMERIC)
    with pytest.raises(mlsql.FitError, match="vcov is 'HC3'; it is True, False, or a matrix"):
        hypotheses(model, vcov="HC3")
    assert "std_error" not in rows(avg_slopes(model, vcov=False))[0]


def test_joint_hypotheses(con: duckdb.DuckDBPyConnection, fitted: mlsql.Fit) -> None:
    plain = mlsql.fit("mathach ~ ses + meanses + (1 | school)", "hsb", con=con)
    (row,) = rows(hypotheses(plain.as_marginaleffects(), joint=["ses", "meanses"]))
    b, V = plain.fixed_effects["estimate"].to_numpy()[1:], plain.vcov[1:, 1:]
    assert row["statistic"] == pytest.approx(b @ np.linalg.solve(V, b) / 2, rel=EXACT)
    # the smallest of HLM's: 160 - 1 - 1 of the intercept's equation
    assert (row["df1"], row["df2"]) == (2, 158)
    # the package would label an interaction by the wrong predictor
    with pytest.raises(mlsql.FitError, match="the terms of this model are not plain predictors"):
        hypotheses(fitted.as_marginaleffects(), joint=[1, 2])


def test_rows_left_out_of_the_fit_stay_out(con: duckdb.DuckDBPyConnection) -> None:
    data = "SELECT * REPLACE (CASE WHEN i % 7 > 0 THEN mathach END AS mathach, CASE WHEN i % 9 > 0 THEN ses END AS ses)"
    fitted = mlsql.fit("mathach ~ ses + (1 | school)", f"{data} FROM hsb", con=con)
    assert fitted.as_marginaleffects().get_modeldata().height == fitted.n_rows < 7185


def test_too_many_rows(con: duckdb.DuckDBPyConnection, fitted: mlsql.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_frame, "LIMIT", 7184)
    with pytest.raises(mlsql.DataError, match=r"hsb has more than 7,184 complete rows.*pass a sample of them as data="):
        fitted.as_marginaleffects()
    model = fitted.as_marginaleffects("SELECT * EXCLUDE (mathach) FROM hsb WHERE i % 3 = 0")
    assert model.get_modeldata().height == 2395
    (row,) = rows(slopes(model, variables="ses", newdata=datagrid(sector=1), eps_vcov=STEP))
    check(row, fitted, gradient(fitted, ses=1, ses__sector=1), SLOPE)


def test_rows_of_unseen_groups(con: duckdb.DuckDBPyConnection, centred: mlsql.Fit) -> None:
    with pytest.raises(mlsql.DataError, match="7,185 rows belong to groups that the fit did not see"):
        centred.as_marginaleffects("SELECT * REPLACE (school + 1e6 AS school) FROM hsb")


def test_names_that_the_package_keeps_for_itself(con: duckdb.DuckDBPyConnection) -> None:
    data = 'SELECT mathach AS estimate, school AS "group", ses FROM hsb'
    fitted = mlsql.fit('estimate ~ ses + (1 | "group")', data, con=con)
    assert fitted.as_marginaleffects().get_modeldata().columns == ["ses"]
    (row,) = rows(avg_slopes(fitted.as_marginaleffects(), eps_vcov=STEP))
    check(row, fitted, gradient(fitted, ses=1), SLOPE)


def test_no_predictor(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ 1 + (1 | school)", "hsb", con=con)
    (row,) = rows(avg_predictions(fitted.as_marginaleffects()))
    check(row, fitted, np.ones(1), EXACT)


def test_a_relation_with_its_connection(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ group_center(ses) + (1 | school)", con.sql("FROM hsb"))
    with pytest.raises(mlsql.DataError, match="need con="):
        fitted.as_marginaleffects()
    (row,) = rows(avg_slopes(fitted.as_marginaleffects(con=con), eps_vcov=STEP))
    check(row, fitted, gradient(fitted, **{"group_center(ses)": 1}), SLOPE)


def test_custom_comparisons(fitted: mlsql.Fit) -> None:
    found = rows(comparisons(fitted.as_marginaleffects(), variables={"ses": [0, 2]}, newdata=datagrid(sector=1)))
    check(found[0], fitted, gradient(fitted, ses=2, ses__sector=2), EXACT)


def test_a_plot_is_drawn(centred: mlsql.Fit) -> None:
    drawn = plot_predictions(centred.as_marginaleffects(), condition=["ses", "sector"], draw=False)
    assert {"ses", "sector", "estimate", "conf_low", "conf_high"} <= set(drawn.columns)
