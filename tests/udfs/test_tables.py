"""Functions of a table: analysis of variance, slopes and group regressions, against NumPy, the textbook and the fit."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from scipy import stats

import mlsql

# sums over 7185 rows in another order
SUMS = 1e-10


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    answer = con.execute(query)
    names = [d[0] for d in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


# Raudenbush & Bryk (2002), Table 5.10, and recomputed: estimator | slope, standard error
SLOPES = {
    "total": (3.18387, 0.09712),
    "between": (5.90930, 0.37143),
    "between_weighted": (5.71688, None),
    "within": (2.19117, 0.10865),
}


@pytest.mark.parametrize("estimator", SLOPES)
def test_slopes_as_printed(con: duckdb.DuckDBPyConnection, estimator: str) -> None:
    (found,) = rows(con, f"FROM ml_slopes('hsb', mathach, ses, school) WHERE estimator = '{estimator}'")
    estimate, std_error = SLOPES[estimator]
    assert round(found["estimate"], 5) == estimate
    assert std_error is None or round(found["std_error"], 5) == std_error


def test_slopes_are_those_of_the_comparators(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
    expected = {row["estimator"]: row for row in fit.comparators.slopes("ses").iter_rows(named=True)}
    found = rows(con, "FROM ml_slopes('hsb', mathach, ses, school)")
    assert [r["estimator"] for r in found] == list(SLOPES)
    for row in found:
        theirs = expected[row["estimator"]]
        for column in ("estimate", "std_error", "df", "statistic", "weight_in_total"):
            expects = theirs[column]
            assert row[column] == (None if expects is None else pytest.approx(expects, rel=SUMS)), column
        # t beyond 30: an error of the statistic counts t squared times in the p value
        assert row["p_value"] == pytest.approx(theirs["p_value"], rel=1e-6)


def test_total_is_the_weighted_sum_of_between_and_within(con: duckdb.DuckDBPyConnection) -> None:
    total, parts, weights = con.execute(
        "SELECT max(estimate) FILTER (estimator = 'total'), sum(estimate * weight_in_total), sum(weight_in_total) "
        "FROM ml_slopes('hsb', mathach, ses, school)"
    ).fetchall()[0]
    assert (parts, weights) == pytest.approx((total, 1.0), rel=SUMS)


def test_slopes_far_from_zero(con: duckdb.DuckDBPyConnection) -> None:
    near = rows(con, "FROM ml_slopes('hsb', mathach, ses, school)")
    far = rows(con, "FROM ml_slopes('hsb', mathach + 1e7, ses + 1e7, school)")
    for a, b in zip(near, far, strict=True):
        # ses itself, in steps of 0.001, loses seven of its digits at 1e7
        assert (b["estimate"], b["std_error"]) == pytest.approx((a["estimate"], a["std_error"]), rel=1e-7)


def test_analysis_of_variance(con: duckdb.DuckDBPyConnection) -> None:
    (found,) = rows(con, "FROM ml_anova('hsb', mathach, school)")
    frame = pl.read_parquet(mlsql.example_data("hsb"))
    groups = [g["mathach"].to_numpy() for g in frame.partition_by("school")]
    n = np.array([len(g) for g in groups])
    means, N, J = np.array([g.mean() for g in groups]), n.sum(), len(groups)
    mean = frame["mathach"].mean()
    between = np.sum(n * (means - mean) ** 2) / (J - 1)
    within = sum(np.sum((g - g.mean()) ** 2) for g in groups) / (N - J)
    n0 = (N - np.sum(n**2) / N) / (J - 1)
    tau = (between - within) / n0
    expected = {
        "n_rows": N, "n_groups": J, "n0": n0, "mean": mean, "ms_between": between, "df_between": J - 1,
        "df_within": N - J, "tau00": tau, "sigma2": within, "icc": tau / (tau + within),
        "statistic": stats.f_oneway(*groups).statistic, "p_value": stats.f_oneway(*groups).pvalue,
    }  # fmt: skip
    assert set(found) == set(expected)
    for name, value in expected.items():
        # the p value of F = 10 on 159 df feels its error a thousandfold
        assert found[name] == pytest.approx(value, rel=1e-8 if name == "p_value" else SUMS), name


def test_balanced_components_are_those_of_reml(con: duckdb.DuckDBPyConnection) -> None:
    random = np.random.default_rng(2)
    group = np.repeat(np.arange(40), 6)
    data = pl.DataFrame({"g": group, "y": random.standard_normal(40)[group] + random.standard_normal(240)})
    con.register("balanced", data)
    (found,) = rows(con, "FROM ml_anova('balanced', y, g)")
    con.unregister("balanced")
    fit = mlsql.fit("y ~ 1 + (1 | g)", data)
    assert (found["tau00"], found["sigma2"]) == pytest.approx((fit.T[0, 0], fit.sigma2), rel=1e-6)


def test_groups_that_differ_less_than_noise(con: duckdb.DuckDBPyConnection) -> None:
    same = "WITH same AS (FROM (VALUES (1, 1.0), (1, 3.0), (2, 1.1), (2, 2.9)) t(g, y))"
    (found,) = rows(con, f"{same} FROM ml_anova('same', y, g)")
    assert (found["tau00"], found["icc"]) == (0.0, 0.0)
    assert found["ms_between"] < found["sigma2"]


def test_regressions_of_each_group(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    con.register("expected", fit.comparators.per_group())
    worst = con.execute(
        "SELECT count(*), max(abs(a.intercept - i.estimate)), max(abs(a.slope - s.estimate)), "
        "max(abs(a.slope_std_error - s.std_error)), max(abs(a.residual_sd - s.residual_sd)), max(abs(a.df - s.df)) "
        "FROM ml_group_regressions('hsb', mathach, ses, school) AS a "
        "JOIN expected AS s ON s.school = a.key AND s.term = 'ses' "
        "JOIN expected AS i ON i.school = a.key AND i.term = '(Intercept)'"
    ).fetchall()[0]
    con.unregister("expected")
    assert worst[0] == 160
    assert max(worst[1:]) < 1e-9


@pytest.fixture
def odd(con: duckdb.DuckDBPyConnection) -> str:
    """A table whose columns have the names that the functions use themselves."""
    con.execute(
        "CREATE OR REPLACE TEMP TABLE odd AS "
        "SELECT mathach AS g, ses AS y, school AS x, mathach AS n, ses AS mean, school AS outcome, sector AS grp, "
        "mathach AS \"two words\", school AS predictor, minority AS tbl FROM hsb"
    )  # fmt: skip
    return "odd"


@pytest.mark.parametrize("columns", ["g, y, x", "n, mean, outcome", '"two words", mean, predictor'])
def test_columns_of_any_name(con: duckdb.DuckDBPyConnection, odd: str, columns: str) -> None:
    found = con.execute(f"SELECT estimate FROM ml_slopes('{odd}', {columns})").fetchall()
    plain = con.execute("SELECT estimate FROM ml_slopes('hsb', mathach, ses, school)").fetchall()
    # threads add the rows up in an order of their own
    assert [row[0] for row in found] == pytest.approx([row[0] for row in plain], rel=SUMS)
    per_group = con.execute(f"SELECT sum(slope), count(*) FROM ml_group_regressions('{odd}', {columns})").fetchall()
    expected = con.execute(
        "SELECT sum(slope), count(*) FROM ml_group_regressions('hsb', mathach, ses, school)"
    ).fetchall()
    assert per_group[0] == pytest.approx(expected[0], rel=SUMS)


def test_expressions_and_named_arguments(con: duckdb.DuckDBPyConnection) -> None:
    call = "FROM ml_anova(tbl := 'hsb', y := ln(mathach + 10), g := sector * 2 + minority)"
    con.execute(
        "CREATE OR REPLACE TEMP TABLE made AS SELECT ln(mathach + 10) AS v, sector * 2 + minority AS c FROM hsb"
    )
    (one,), (other,) = rows(con, call), rows(con, "FROM ml_anova('made', v, c)")
    assert one == pytest.approx(other, rel=SUMS)


def test_missing_values_are_left_out(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(
        "CREATE OR REPLACE TEMP TABLE holes AS SELECT mathach, ses, school FROM hsb UNION ALL "
        "FROM (VALUES (NULL, 1e0, 1224), ('nan'::DOUBLE, 1, 1224), (1e9, NULL, 1224), (1e9, 'nan'::DOUBLE, 1224), "
        "(1e9, 9, NULL))"
    )
    found, expected = (
        con.execute(f"SELECT estimate, df FROM ml_slopes('{t}', mathach, ses, school)").fetchall()
        for t in ("holes", "hsb")
    )
    assert [tuple(r) for r in found] == [pytest.approx(tuple(r), rel=SUMS) for r in expected]
    n = con.execute("SELECT n FROM ml_group_regressions('holes', mathach, ses, school) WHERE key = 1224").fetchall()
    assert n == [(47,)]


SMALL = {
    "no rows": "SELECT 1.0 AS y, 2.0 AS x, 1 AS g WHERE false",
    "one row": "SELECT 1.0 AS y, 2.0 AS x, 1 AS g",
    "one group": "SELECT i * i AS y, i AS x, 1 AS g FROM range(4) AS t(i)",
    "one row each": "SELECT i * i AS y, i AS x, i AS g FROM range(4) AS t(i)",
    "constant predictor": "SELECT i * i AS y, 0.1 AS x, i % 2 AS g FROM range(6) AS t(i)",
    "constant outcome": "SELECT 0.1 AS y, i AS x, i % 2 AS g FROM range(6) AS t(i)",
}


@pytest.mark.parametrize("case", SMALL)
def test_too_little_data_give_null_not_nonsense(con: duckdb.DuckDBPyConnection, case: str) -> None:
    con.execute(f"CREATE OR REPLACE TEMP TABLE small AS {SMALL[case]}")
    anova = rows(con, "FROM ml_anova('small', y, g)")
    slopes = {r["estimator"]: r for r in rows(con, "FROM ml_slopes('small', y, x, g)")}
    groups = rows(con, "FROM ml_group_regressions('small', y, x, g)")
    numbers = [v for r in (*anova, *slopes.values(), *groups) for v in r.values() if isinstance(v, float)]
    # constants leave 0 / 0 only in the F of no spread at all
    assert not any(np.isinf(numbers))
    if case == "no rows":
        assert (anova, groups) == ([], [])
    if case in ("no rows", "one row", "one group"):
        assert slopes["between"]["estimate"] is None
        assert slopes["between"]["df"] == 0
        assert all(r["tau00"] is None for r in anova)
    if case in ("no rows", "one row", "one row each", "constant predictor"):
        assert slopes["within"]["estimate"] is None
        assert slopes["within"]["p_value"] is None
    if case in ("one row", "one row each", "constant predictor"):
        assert all(r["slope"] is None and r["slope_std_error"] is None and r["residual_sd"] is None for r in groups)
    if case == "one row each":
        assert slopes["total"]["estimate"] == pytest.approx(3.0)
        assert anova[0]["sigma2"] is None
