"""SQL table functions: what they read, what they return, how they are registered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.errors import StoreError
from mlsql.surfaces.sql_functions import connect, register
from mlsql.surfaces.sql_tables import FUNCTIONS

MODEL = "mathach ~ ses + (ses | school)"
# the same rows, pivots and optimiser: what differs is the order of additions
SAME = 1e-9


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    con = connect(threads=1)
    con.execute("CREATE TABLE hsb AS FROM read_parquet(?)", [mlsql.example_data("hsb")])
    yield con
    con.close()


def rows(con: duckdb.DuckDBPyConnection, sql: str, values: Any = None) -> pl.DataFrame:
    """All rows, so that the connection is free again."""
    found = con.execute(sql, values).fetchall()
    assert con.description is not None
    return pl.DataFrame(found, schema=[d[0] for d in con.description], orient="row", infer_schema_length=None)


def deviance(con: duckdb.DuckDBPyConnection, table: str, model: str = MODEL) -> float:
    return float(con.execute("SELECT deviance FROM ml_fit_statistics(?, ?)", [model, table]).fetchall()[0][0])


def test_every_function_has_the_columns_it_declares(con: duckdb.DuckDBPyConnection) -> None:
    for name, function in FUNCTIONS.items():
        formulas = ", ".join(f"'{MODEL}'" for _ in range(function.models))
        found = con.execute(f"DESCRIBE FROM {name}({formulas}, 'hsb')").fetchall()
        assert {row[0]: row[1] for row in found} == dict(function.columns)


def test_fixed_effects_are_those_of_python(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit(MODEL, "hsb", con=con)
    found = rows(con, f"FROM ml_fixed_effects('{MODEL}', 'hsb', df := 'satterthwaite', vcov := 'CR2')")
    expected = fit.inference("satterthwaite", "CR2")
    assert found.columns == fit.fixed_effects.columns
    np.testing.assert_allclose(found["robust_std_error"], fit.fixed_effects["robust_std_error"], rtol=1e-7)
    np.testing.assert_allclose(found["robust_ratio"], fit.fixed_effects["robust_ratio"], rtol=1e-7)
    for column in ("estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-7)


def test_variance_components_are_those_of_python(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, f"FROM ml_variance_components('{MODEL}', 'hsb')")
    expected = mlsql.fit(MODEL, "hsb", con=con).variance_components
    assert found.columns == expected.columns
    np.testing.assert_allclose(found["estimate"], expected["estimate"], rtol=SAME)


def test_group_effects_are_those_of_python_in_key_order(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, f"FROM ml_group_effects('{MODEL}', 'hsb')")
    expected = mlsql.fit(MODEL, "hsb", con=con).group_effects()
    assert found["key"].to_list() == expected["school"].cast(pl.String).to_list()
    # near zero an effect is a difference of larger numbers
    np.testing.assert_allclose(found["estimate"], expected["estimate"], rtol=1e-7, atol=1e-9)


def test_a_composite_key_is_a_json_list(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, "FROM ml_group_effects('mathach ~ ses + (1 | sector:school)', 'hsb') LIMIT 1")
    assert json.loads(found["key"][0]) == ["0", "1224"]


def test_fit_tells_its_parameters_apart(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, f"FROM ml_fit('{MODEL}', 'hsb')")
    fit = mlsql.fit(MODEL, "hsb", con=con)
    assert found["effect"].unique(maintain_order=True).to_list() == ["fixed", "variance", "statistic"]
    variance = found.filter(pl.col("effect") == "variance")
    np.testing.assert_allclose(variance["estimate"], fit.variance_components["estimate"], rtol=SAME)
    statistic = dict(found.filter(pl.col("effect") == "statistic").select("term", "estimate").iter_rows())
    assert statistic["deviance"] == pytest.approx(fit.deviance, rel=SAME)
    assert (statistic["n_rows"], statistic["converged"]) == (7185, 1)


def test_statistics_tell_what_was_lost_and_what_to_know(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(
        """CREATE TABLE gaps AS
        SELECT * REPLACE (CASE WHEN minority = 1 AND ses < -1 THEN NULL ELSE ses END AS ses) FROM hsb"""
    )
    found = rows(con, "FROM ml_fit_statistics('mathach ~ ses + size + (1 | school)', 'gaps')").row(0, named=True)
    fit = mlsql.fit("mathach ~ ses + size + (1 | school)", "gaps", con=con)
    assert found["dropped"] == "; ".join(fit.dropped)
    assert found["warnings"] == "; ".join(fit.warnings)
    assert "0 lies outside the range of size" in found["warnings"]
    assert found["source"] == "gaps"


def test_compare_has_the_columns_of_python_and_fits_by_ml(con: duckdb.DuckDBPyConnection) -> None:
    first, second = "mathach ~ 1 + (1 | school)", "mathach ~ meanses + (1 | school)"
    found = rows(con, f"FROM ml_compare('{first}', '{second}', 'hsb')")
    fits = [mlsql.fit(formula, "hsb", con=con, method="ML") for formula in (first, second)]
    expected = mlsql.compare(*fits)
    assert found.columns == expected.columns
    assert found["method"].unique().to_list() == ["ML"]
    np.testing.assert_allclose(found["deviance"], expected["deviance"], rtol=SAME)
    assert found["chi2"][1] == pytest.approx(expected["chi2"][1], rel=1e-6)


def test_moments_add_up_to_those_of_the_rows(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, f"FROM ml_moments('{MODEL}', 'hsb') WHERE kind = 'sum' AND term1 = 'ses' AND term2 = 'ses'")
    expected = con.execute("SELECT sum(ses * ses) FROM hsb").fetchall()[0]
    assert found.height == 160
    assert found["value"].sum() == pytest.approx(expected[0], rel=1e-12)


def test_moments_name_the_pivot_that_was_subtracted(con: duckdb.DuckDBPyConnection) -> None:
    terms = rows(con, f"SELECT DISTINCT term2 FROM ml_moments('{MODEL}', 'hsb') WHERE term1 = '1' ORDER BY ALL")
    assert terms["term2"].to_list() == ["(mathach - 13.0)", "1", "ses"]


# what a statement sees


def test_a_temporary_table(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE TEMP TABLE pupils AS FROM hsb WHERE sector = 1")
    assert deviance(con, "pupils") == pytest.approx(deviance(con, "SELECT * FROM hsb WHERE sector = 1"), rel=SAME)


def test_rows_that_are_not_committed(con: duckdb.DuckDBPyConnection) -> None:
    before = deviance(con, "hsb")
    con.execute("BEGIN")
    con.execute("DELETE FROM hsb WHERE sector = 1")
    inside = deviance(con, "hsb")
    con.execute("ROLLBACK")
    assert inside < before - 10_000
    assert deviance(con, "hsb") == before


def test_a_view_over_a_view(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE VIEW one AS FROM hsb WHERE sector = 1")
    con.execute("CREATE TEMP VIEW two AS FROM one WHERE female = 1")
    assert deviance(con, "two") == pytest.approx(deviance(con, "FROM hsb WHERE sector = 1 AND female = 1"), rel=SAME)


def test_a_registered_frame(con: duckdb.DuckDBPyConnection) -> None:
    con.register("frame", pl.read_parquet(mlsql.example_data("hsb")).to_arrow())
    assert deviance(con, "frame") == pytest.approx(deviance(con, "hsb"), rel=SAME)


@pytest.mark.parametrize(
    "table",
    [
        "(SELECT * FROM hsb)",
        "WITH a AS (FROM hsb) FROM a",
        "-- all\nSELECT * FROM hsb",
        "main.hsb",
        '"hsb"',
        "memory.main.hsb",
        mlsql.example_data("hsb"),
    ],
)
def test_every_way_to_name_the_data(con: duckdb.DuckDBPyConnection, table: str) -> None:
    assert deviance(con, table) == pytest.approx(46640.40, abs=0.005)


@pytest.mark.parametrize("name", ["my table", "a.b", "x'; DROP TABLE hsb; --", "Größe", "data"])
def test_a_table_with_an_odd_name(con: duckdb.DuckDBPyConnection, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    con.execute(f"CREATE TABLE {quoted} AS FROM hsb")
    text = name if name.replace(" ", "").isalnum() else quoted
    assert deviance(con, text) == pytest.approx(46640.40, abs=0.005)


def test_a_csv_file(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    con.execute(f"COPY hsb TO '{tmp_path / 'hsb.csv'}'")
    assert deviance(con, str(tmp_path / "*.csv")) == pytest.approx(46640.40, abs=0.005)


def test_a_table_by_its_bare_name(con: duckdb.DuckDBPyConnection) -> None:
    assert con.execute(f"SELECT count(*) FROM ml_fixed_effects('{MODEL}', hsb)").fetchall() == [(2,)]


def test_arguments_as_parameters_and_variables(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(f"SET VARIABLE model = '{MODEL}'")
    found = con.execute("SELECT count(*) FROM ml_fixed_effects(getvariable('model'), ?)", ["hsb"]).fetchall()
    assert found == [(2,)]


def test_a_result_is_stored_joined_and_nested(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(f"CREATE TABLE effects AS FROM ml_group_effects('{MODEL}', 'hsb')")
    found = con.execute(
        f"""WITH fixed AS (SELECT term, estimate FROM ml_fixed_effects('{MODEL}', 'hsb'))
        SELECT max(abs(fixed.estimate + effects.estimate - coefficient)) FROM effects JOIN fixed USING (term)"""
    ).fetchall()[0]
    assert found[0] < 1e-12


def test_two_fits_in_one_statement(con: duckdb.DuckDBPyConnection) -> None:
    found = con.execute(
        f"""SELECT a.deviance - b.deviance FROM ml_fit_statistics('{MODEL}', 'hsb') a,
        ml_fit_statistics('{MODEL}', 'hsb', method := 'ML') b"""
    ).fetchall()[0]
    assert found[0] == pytest.approx(
        mlsql.fit(MODEL, "hsb", con=con).deviance - mlsql.fit(MODEL, "hsb", con=con, method="ML").deviance, rel=1e-6
    )


# registration


def test_registering_twice_changes_nothing(con: duckdb.DuckDBPyConnection) -> None:
    assert register(register(con)) is con
    assert deviance(con, "hsb") == pytest.approx(46640.40, abs=0.005)


def test_a_cursor_registers_for_itself(con: duckdb.DuckDBPyConnection) -> None:
    cursor = con.cursor()
    with pytest.raises(duckdb.CatalogException):
        deviance(cursor, "hsb")
    assert deviance(register(cursor), "hsb") == pytest.approx(46640.40, abs=0.005)


def test_functions_outlive_the_cursor_that_made_them() -> None:
    with duckdb.connect() as con:
        register(con.cursor()).close()
        assert deviance(register(con), mlsql.example_data("hsb")) == pytest.approx(46640.40, abs=0.005)


def test_an_open_transaction_is_refused_unless_all_is_there() -> None:
    with duckdb.connect() as con:
        con.execute("BEGIN")
        with pytest.raises(StoreError, match="has an open transaction; commit it or roll it back, then register"):
            register(con)
        con.execute("ROLLBACK")
        register(con)
        con.execute("BEGIN")
        assert deviance(register(con), mlsql.example_data("hsb")) == pytest.approx(46640.40, abs=0.005)


def test_a_macro_of_the_same_name_is_not_replaced_unasked() -> None:
    with duckdb.connect() as con:
        con.execute("CREATE MACRO ml_fit(a, b) AS TABLE SELECT a + b AS total")
        with pytest.raises(StoreError, match="has a macro ml_fit that is not mlsql's; drop or rename it"):
            register(con)
        register(con, replace=True)
        assert deviance(con, mlsql.example_data("hsb")) == pytest.approx(46640.40, abs=0.005)
        assert con.execute("FROM memory.main.ml_fit(1, 2)").fetchall() == [(3,)]


def test_nothing_is_written_to_the_database(tmp_path: Path) -> None:
    path = tmp_path / "data.duckdb"
    with connect(path) as con:
        con.execute("CREATE TABLE hsb AS FROM read_parquet(?)", [mlsql.example_data("hsb")])
    with duckdb.connect(str(path), read_only=True) as con:
        found = con.execute("SELECT count(*) FROM duckdb_functions() WHERE function_name IN ('ml_fit', 'ml_moments')")
        assert found.fetchall() == [(0,)]
    with connect(path, read_only=True) as con:
        assert deviance(con, "hsb") == pytest.approx(46640.40, abs=0.005)


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but more than a header's length of text" * 100)
    with pytest.raises(StoreError, match=r"the database .*notes.txt cannot be opened"):
        connect(tmp_path / "notes.txt")
    with pytest.raises(StoreError, match="cannot be opened"):
        connect(no_such_setting=1)


@pytest.mark.parametrize("call", [register, lambda con: register(con, replace=True)])
def test_what_is_no_connection_is_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(StoreError, match="con is a str; pass an open DuckDB connection"):
        call("data.duckdb")
    closed = duckdb.connect()
    closed.close()
    with pytest.raises(StoreError, match="cannot be registered"):
        call(closed)


def test_a_process_ends_quietly() -> None:
    program = (
        "import mlsql\nfrom mlsql.surfaces.sql_functions import connect\ncon = connect()\n"
        f"con.execute(\"FROM ml_fit('{MODEL}', '{mlsql.example_data('hsb')}')\").fetchall()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
