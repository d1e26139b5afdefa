"""Errors of SQL table functions: one readable line each, from mlsql or from DuckDB, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

import mlsql
from mlsql.surfaces.sql_functions import connect

SIMPLE = "mathach ~ ses + (1 | school)"


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    con = connect(threads=1)
    con.execute(
        "CREATE TABLE hsb AS SELECT *, row_number() OVER () AS pupil FROM read_parquet(?)", [mlsql.example_data("hsb")]
    )
    con.execute("CREATE TABLE schools AS SELECT school, any_value(size) AS places FROM hsb GROUP BY school")
    yield con
    con.close()


def message(con: duckdb.DuckDBPyConnection, formula: str, table: str = "hsb", settings: str = "") -> str:
    """What the user sees; the first line where the engine adds the statement."""
    with pytest.raises(duckdb.Error) as caught:
        con.execute(f"FROM ml_fit($1, $2{settings})", [formula, table]).fetchall()
    text = str(caught.value)
    assert "Traceback" not in text
    assert ".py" not in text
    return text


def one_line(text: str) -> str:
    assert text.startswith("Invalid Input Error: ")
    assert "\n" not in text
    return text.removeprefix("Invalid Input Error: ")


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("mathach ~ sess + (1 | school)", "sess: column 'sess' is not in the data; did you mean 'ses' or 'cses'?"),
        ("math ~ ses + (1 | school)", "math: column 'math' is not in the data; did you mean 'mathach'?"),
        ("mathach ~ ses + (1 | shool)", "shool: column 'shool' is not in the data; did you mean 'school'?"),
        (
            "mathach ~ ses + (1 school)",
            "expected ')' to close the parenthesis, found 'school' (position 20): mathach ~ ses + (1 school)",
        ),
        ("mathach ~ ses", "the model has no random term; add the groups as (1 | group), or use a regression program"),
        (
            "mathach ~ ses + I(2 * ses) + (1 | school)",
            "predictor I(2 * ses) is a linear combination of ses; leave it out",
        ),
        (
            "mathach ~ I(0 * ses + 3) + (1 | school)",
            "predictor I(0 * ses + 3) is 3 in every row, like the intercept; leave it out",
        ),
        ("I(0 * ses) ~ ses + (1 | school)", "the outcome I(0 * ses) is 0 in every row: its variance is zero"),
        ("mathach ~ I(NULLIF(sector, sector)) + (1 | school)", "has no value in any of 7,185 rows"),
        ("mathach ~ I(CAST('inf' AS DOUBLE) * ses) + (1 | school)", "has 7,185 infinite values in 7,185 rows"),
        ("mathach ~ C(mathach) + (1 | school)", "the outcome mathach is also a predictor"),
        ("mathach ~ C(pupil) + (1 | school)", "factor pupil has 7,185 levels, more than 500"),
        ("mathach ~ I(DATE '2020-01-01' + size::INT) + (1 | school)", "has type DATE, which is neither a number"),
        ("mathach ~ C(sector, ref='2') + (1 | school)", "reference level '2' is not among 0, 1"),
        ("mathach ~ ses + (1 | pupil)", "every group has one row"),
    ],
)
def test_errors_of_the_model_and_the_data(con: duckdb.DuckDBPyConnection, formula: str, expected: str) -> None:
    assert expected in one_line(message(con, formula))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (", method := 'MLE'", "method is 'MLE'; it is 'REML' or 'ML'"),
        (", vcov := 'HC1'", "vcov is 'HC1'; it is one of model, CR0, CR1, CR2"),
        (", df := 'z'", "df is 'z'; it is one of hlm"),
        (", weights := 'ses'", "weights ses: the smallest is -3.758; precision weights must be positive"),
        (", weights := 'NULLIF(size, 100)'", "weights NULLIF(size, 100): 101 of 7,185 are NULL or NaN"),
        (", groups := 'school'", "groups='school' belongs to level equations"),
        (", level2 := 'hsb'", "the level2 table has 7,185 rows but 160 distinct values of school"),
        (", level2 := 'SELECT places FROM schools'", "level2 table, group school: column 'school' is not in the data"),
        (", level2 := 'SELECT school FROM schools WHERE school < 0'", "the level2 table has no rows"),
        (", level2 := 'SELECT -school AS school FROM schools'", "none of the 7,185 rows belongs to a group of the"),
        (", level2 := 'SELECT ''s'' || school AS school FROM schools'", "is BIGINT in the data and VARCHAR in the"),
    ],
)
def test_errors_of_settings(con: duckdb.DuckDBPyConnection, settings: str, expected: str) -> None:
    assert expected in one_line(message(con, SIMPLE, settings=settings))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("pupils.parquet", "the file pupils.parquet does not exist"),
        ("", "tbl is an empty text"),
        ("SELECT FROM WHERE", "tbl is not SQL that can be read"),
        ("SELECT * FROM hsb WHERE school < 0", "the data have no rows"),
        ("SELECT * FROM hsb WHERE school = 1224", "random term (1 | school): school has 1 level in 47 rows"),
        ("SELECT * REPLACE (NULL::DOUBLE AS ses) FROM hsb", "column ses has no value in any of 7,185 rows"),
        ("SELECT * REPLACE (mathach::VARCHAR AS mathach) FROM hsb", "the outcome mathach has type VARCHAR"),
        ("SELECT * REPLACE ([school] AS school) FROM hsb", "the grouping column school has type BIGINT[]"),
        (
            "SELECT * REPLACE (ses + NULLIF(female, 0) AS ses, mathach + NULLIF(female, 1) AS mathach) FROM hsb",
            "no complete rows are left; missing values are mathach: ",
        ),
    ],
)
def test_errors_of_the_table(con: duckdb.DuckDBPyConnection, table: str, expected: str) -> None:
    assert expected in one_line(message(con, SIMPLE, table))


def test_infinite_values_are_counted(con: duckdb.DuckDBPyConnection) -> None:
    table = "SELECT * REPLACE (CASE WHEN school = 1224 THEN 'infinity'::DOUBLE ELSE ses END AS ses) FROM hsb"
    assert one_line(message(con, SIMPLE, table)).startswith("column ses has 47 infinite values in 7,185 rows")


def test_null_arguments(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error, match="the model is a NoneType; write it as text"):
        con.execute("FROM ml_fit(NULL, 'hsb')").fetchall()
    with pytest.raises(duckdb.Error, match="tbl is NULL; give the name of a table"):
        con.execute(f"FROM ml_fit('{SIMPLE}', NULL)").fetchall()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("FROM ml_fit('{}', 'pupils')", "Table with name pupils does not exist"),
        ("FROM ml_fit('mathach ~ nosuch(ses) + (1 | school)', 'hsb')", "Function with name nosuch does not exist"),
        ("FROM ml_fit('mathach ~ ln(sess) + (1 | school)', 'hsb')", 'Referenced column "sess" not found'),
        ("FROM ml_fit('{}', (SELECT 'hsb'))", "Table function cannot contain subqueries"),
        ("FROM schools, ml_fit('{}', schools.places)", "only supports literals as parameters"),
        ("FROM ml_fit('{}')", r"ml_fit\(formula, tbl, method := 'REML', df := 'hlm', vcov := 'model'"),
        ("SELECT ml_fit('{}', 'hsb')", "has to be called in a FROM clause"),
    ],
)
def test_errors_of_the_engine_name_the_thing(con: duckdb.DuckDBPyConnection, statement: str, expected: str) -> None:
    with pytest.raises(duckdb.Error, match=expected):
        con.execute(statement.format(SIMPLE)).fetchall()


def test_an_error_of_the_second_model_of_a_comparison(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error, match="column 'sess' is not in the data"):
        con.execute(f"FROM ml_compare('{SIMPLE}', 'mathach ~ sess + (1 | school)', 'hsb')").fetchall()


@pytest.mark.parametrize("text", ["hsb; DROP TABLE schools", "SELECT * FROM hsb; DROP TABLE schools", "hsb\" -- '"])
def test_a_table_text_is_never_run_as_it_stands(con: duckdb.DuckDBPyConnection, text: str) -> None:
    message(con, SIMPLE, text)
    assert con.execute("SELECT count(*) FROM schools").fetchall() == [(160,)]


def test_quotes_in_a_name_stay_text(con: duckdb.DuckDBPyConnection) -> None:
    name = '"a\'b""c"'
    con.execute(f"CREATE OR REPLACE TEMP TABLE odd AS SELECT *, ses AS {name} FROM hsb")
    found = con.execute("SELECT count(*) FROM ml_fixed_effects($1, 'odd')", [f"mathach ~ {name} + (1 | school)"])
    assert found.fetchall() == [(2,)]


def test_too_many_cells_are_refused(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlsql.design.cells.MAX_SUMS", 1000)
    text = one_line(message(con, "mathach ~ C(size) + ses + (1 | school)"))
    assert text.startswith("there are more than 142 combinations of school and the levels of factors")
