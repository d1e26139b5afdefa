"""SQL table functions give the numbers of `mlsql.fit`, whatever the model and the types of its columns."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.surfaces.sql_functions import connect

# the same rows, pivots and optimiser; coefficients near zero are judged on the scale of their standard errors
SAME = 1e-9


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    con = connect(threads=1)
    con.execute(
        """CREATE TABLE pupils AS SELECT *,
            CASE WHEN female = 1 THEN 'f' ELSE 'm' END AS sex,
            CASE WHEN minority = 1 THEN 'yes' ELSE 'no' END::ENUM('yes', 'no', 'unknown') AS origin,
            sector = 1 AS catholic, 1 + ses * ses AS w, (ses * 100)::DECIMAL(9, 2) AS tenths, 1e6 + ses AS far,
            CASE WHEN size > 1200 THEN 'large' WHEN size > 700 THEN 'middle' ELSE 'small' END AS kind,
            CASE WHEN id % 19 = 0 THEN NULL WHEN id % 23 = 0 THEN 'nan'::DOUBLE ELSE ses END AS gappy,
            CASE WHEN id % 29 = 0 THEN NULL ELSE sex END AS gappy_sex, school % 7 AS part, school / 7 AS rest
        FROM (SELECT *, row_number() OVER () AS id, CASE WHEN female = 1 THEN 'f' ELSE 'm' END AS sex
              FROM read_parquet(?))""",
        [mlsql.example_data("hsb")],
    )
    con.execute(
        """CREATE TABLE schools AS
        SELECT school, any_value(sector) AS upper_sector, any_value(meanses) AS upper_ses, any_value(kind) AS upper_kind
        FROM pupils GROUP BY school"""
    )
    con.execute(
        """CREATE TABLE some_schools AS SELECT * REPLACE (CASE WHEN school % 10 = 0 THEN NULL ELSE upper_ses END
        AS upper_ses) FROM schools WHERE school % 9 <> 0"""
    )
    yield con
    con.close()


MODELS = [
    "mathach ~ 1 + (1 | school)",
    "mathach ~ ses + (ses | school)",
    "mathach ~ ses*sector + meanses + (ses | school)",
    "mathach ~ group_center(ses)*sector + group_center(ses)*meanses + (group_center(ses) | school)",
    "mathach ~ group_center(ses) + group_mean(ses) + (ses || school)",
    "mathach ~ grand_center(ses)*grand_center(meanses) + (1 | school)",
    "mathach ~ ses*sex + (sex | school)",
    "mathach ~ group_center(sex) + group_mean(sex) + (1 | school)",
    "mathach ~ origin*catholic + C(size > 1000) + (1 | school)",
    "mathach ~ origin + kind + (origin || school)",
    "mathach ~ C(minority, ref='1')*grand_center(ses) + (1 | school)",
    "mathach ~ C(pracad > 0.5)*kind*ses + (1 | school)",
    "mathach ~ ses + offset(meanses) + I(ses * ses) + ln(w) + (1 | school)",
    "mathach ~ 0 + sex + ses:sex + (0 + sex | school)",
    "mathach ~ gappy + gappy_sex + (1 | school)",
    "mathach ~ gappy*kind + (1 | part:rest)",
    "mathach ~ far + tenths:sector + (1 | school)",
    "mathach ~ ses*female*minority + (1 | sex:kind:school)",
    "mathach ~ I(CASE WHEN ses > 0 THEN 'high' ELSE 'low' END) + (1 | school)",
]


def rows(con: duckdb.DuckDBPyConnection, sql: str, *values: str) -> pl.DataFrame:
    """All rows, so that the connection is free again."""
    found = con.execute(sql, values).fetchall()
    assert con.description is not None
    return pl.DataFrame(found, schema=[d[0] for d in con.description], orient="row", infer_schema_length=None)


def agree(con: duckdb.DuckDBPyConnection, fit: mlsql.Fit, formula: str, table: str, settings: str = "") -> None:
    found = rows(con, f"FROM ml_fit($1, $2, vcov := 'CR0'{settings})", formula, table)
    fixed, components = (found.filter(pl.col("effect") == effect) for effect in ("fixed", "variance"))
    expected = fit.inference("hlm", "CR0")
    assert fixed["term"].to_list() == expected["term"].to_list()
    assert fixed["df"].to_list() == expected["df"].to_list()
    errors = expected["std_error"].to_numpy()
    np.testing.assert_array_less(np.abs(fixed["estimate"] - expected["estimate"]) / errors, SAME)
    np.testing.assert_allclose(fixed["std_error"], errors, rtol=SAME)
    np.testing.assert_allclose(components["estimate"], fit.variance_components["estimate"], rtol=SAME, atol=SAME)
    statistics = rows(con, f"FROM ml_fit_statistics($1, $2{settings})", formula, table).row(0, named=True)
    assert statistics["deviance"] == pytest.approx(fit.deviance, rel=SAME)
    assert (statistics["n_rows"], statistics["n_groups"]) == (fit.n_rows, fit.n_groups)
    assert (statistics["dropped"] or "") == "; ".join(fit.dropped)
    assert (statistics["warnings"] or "") == "; ".join(fit.warnings)


@pytest.mark.parametrize("formula", MODELS)
def test_a_model(con: duckdb.DuckDBPyConnection, formula: str) -> None:
    agree(con, mlsql.fit(formula, "pupils", con=con), formula, "pupils")


@pytest.mark.parametrize("formula", [MODELS[3], MODELS[5], MODELS[7], MODELS[14]])
def test_a_weighted_model(con: duckdb.DuckDBPyConnection, formula: str) -> None:
    fit = mlsql.fit(formula, "pupils", con=con, weights="w")
    agree(con, fit, formula, "pupils", ", weights := 'w'")


@pytest.mark.parametrize(
    ("formula", "upper"),
    [
        ("mathach ~ ses*upper_sector + upper_kind + (ses | school)", "schools"),
        ("mathach ~ group_center(ses)*upper_kind + C(upper_sector) + (1 | school)", "schools"),
        ("mathach ~ gappy*upper_ses + upper_kind + (ses | school)", "some_schools"),
        ("mathach ~ ses + (1 | school)", "some_schools"),
        ("mathach ~ ses + I(upper_sector * upper_ses) + (1 | school)", "(SELECT * FROM schools)"),
    ],
)
def test_a_level2_table(con: duckdb.DuckDBPyConnection, formula: str, upper: str) -> None:
    fit = mlsql.fit(formula, "pupils", con=con, level2=upper)
    agree(con, fit, formula, "pupils", f", level2 := '{upper}'")


def test_a_column_of_both_tables_is_the_level2_tables(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE OR REPLACE TEMP TABLE twice AS SELECT school, upper_ses AS ses FROM schools")
    fit = mlsql.fit("mathach ~ ses + (1 | school)", "pupils", con=con, level2="twice")
    agree(con, fit, "mathach ~ ses + (1 | school)", "pupils", ", level2 := 'twice'")
    assert any("the level2 table's value is used" in w for w in fit.warnings)


def test_level_equations(con: duckdb.DuckDBPyConnection) -> None:
    model = "mathach = b0 + b1*group_center(ses) + r\nb0 = g00 + g01*sector + u0\nb1 = g10 + u1"
    agree(con, mlsql.fit(model, "pupils", con=con, groups="school"), model, "pupils", ", groups := 'school'")


def test_methods(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit(MODELS[2], "pupils", con=con, method="ML")
    agree(con, fit, MODELS[2], "pupils", ", method := 'ML'")


@pytest.mark.parametrize("dtype", ["UTINYINT", "HUGEINT", "FLOAT", "DECIMAL(4, 1)"])
def test_types_of_numbers(con: duckdb.DuckDBPyConnection, dtype: str) -> None:
    table = f"SELECT * REPLACE (female::{dtype} AS female) FROM pupils"
    agree(con, mlsql.fit("mathach ~ female + (1 | school)", table, con=con), "mathach ~ female + (1 | school)", table)


@pytest.mark.parametrize("key", ["school::VARCHAR", "school::DOUBLE / 7", "DATE '2000-01-01' + school::INTEGER", "sex"])
def test_types_of_keys_and_their_order(con: duckdb.DuckDBPyConnection, key: str) -> None:
    table = f"SELECT mathach, ses, {key} AS place FROM pupils"
    formula = "mathach ~ ses + (1 | place)"
    fit = mlsql.fit(formula, table, con=con)
    agree(con, fit, formula, table)
    found = rows(con, "SELECT n, estimate FROM ml_group_effects($1, $2)", formula, table)
    assert found["n"].to_list() == fit.group_effects()["n"].to_list()
    np.testing.assert_allclose(found["estimate"], fit.group_effects()["estimate"], rtol=1e-7, atol=1e-9)


def test_levels_of_categories_are_in_the_order_of_their_values(con: duckdb.DuckDBPyConnection) -> None:
    table = "SELECT *, (school % 3) * 5 + 5 AS grade FROM pupils"
    formula = "mathach ~ C(grade) + (1 | school)"
    terms = rows(con, "SELECT term FROM ml_fixed_effects($1, $2)", formula, table)["term"].to_list()
    assert terms == ["(Intercept)", "grade[10]", "grade[15]"]


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_rows_sorted_by_a_predictor_keep_their_digits(con: duckdb.DuckDBPyConnection, shift: float) -> None:
    """The pivot is taken from the first rows, which lie at one end."""
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE sorted AS
        SELECT {shift} + i / 1000.0 AS x, i % 50 AS g, sin(i) + i / 50000.0 + (i % 50) / 10.0 AS y
        FROM range(60000) t(i) ORDER BY i"""
    )
    formula = "y ~ x + (1 | g)"
    fit = mlsql.fit(formula, "sorted", con=con)
    found = rows(con, "SELECT estimate, std_error FROM ml_fixed_effects($1, 'sorted')", formula)
    # the slope to nine digits; the intercept at x = 0 is an extrapolation by a million at the larger shift
    assert found["estimate"][1] == pytest.approx(fit.fixed_effects["estimate"][1], rel=1e-9)
    np.testing.assert_allclose(found["std_error"], fit.fixed_effects["std_error"], rtol=1e-9)
