"""Every kind of data gives the same deviance, with and without a connection, as rows and as level-2 table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

import mlsql

FORMULA = "y ~ x + f + (1 | g)"
Con = duckdb.DuckDBPyConnection

FILES: dict[str, Callable[[Path], Any]] = {
    "parquet path": lambda d: str(d / "t.parquet"),
    "pathlib": lambda d: d / "t.parquet",
    "glob": lambda d: str(d / "part*.parquet"),
    "glob with classes": lambda d: str(d / "part[12].parquet"),
    "csv": lambda d: str(d / "t.csv"),
    "csv.gz": lambda d: d / "t.csv.gz",
    "tsv": lambda d: d / "t.tsv",
    "sql of a file": lambda d: f"SELECT * FROM '{d / 't.parquet'}'",
    "sql of a reader": lambda d: f"FROM read_csv('{d / 't.csv'}')",
}
FRAMES: dict[str, Callable[[Con], Any]] = {
    "polars": lambda con: con.sql("FROM t").pl(),
    "lazy polars": lambda con: con.sql("FROM t").pl().lazy(),
    "lazy polars query": lambda con: (
        con.sql("SELECT * EXCLUDE (y), y - 1 AS y0 FROM t").pl().lazy().with_columns(y=pl.col("y0") + 1)
    ),
    "polars categorical": lambda con: con.sql("FROM t").pl().with_columns(pl.col("f").cast(pl.Categorical)),
    "arrow": lambda con: con.sql("FROM t").to_arrow_table(),
    "pandas": lambda con: con.sql("FROM t").df(),
    "pandas category": lambda con: con.sql("FROM t").df().astype({"f": "category"}),
}
RELATIONS: dict[str, Callable[[Con], Any]] = {
    "relation": lambda con: con.sql("FROM t"),
    "table relation": lambda con: con.table("t"),
    "filtered relation": lambda con: con.table("t").filter("x >= 0").project("*"),
}
TABLES = {
    "table": "t",
    "schema-qualified": "s.t",
    "database-qualified": "memory.s.t",
    "quoted schema": '"my s"."my.t"',
    "view": "v",
    "temporary table": "tt",
    "registered frame": "registered",
    "sql": "SELECT * FROM t",
    "sql from first": "FROM t",
    "sql in parentheses": "(SELECT * FROM t)",
    "sql with": "WITH a AS (SELECT * FROM t) SELECT * FROM a",
    "sql with a semicolon": "SELECT * FROM t;",
    "sql with comments": "SELECT * -- all\nFROM t /* of it */ -- end",
    "sql after a comment": "-- the rows\nSELECT * FROM t",
    "sql union": "SELECT * FROM t WHERE g < 3 UNION ALL SELECT * FROM t WHERE g >= 3",
    "sql ordered": "SELECT * FROM t ORDER BY x DESC",
    "sql with a window": "SELECT * FROM t QUALIFY row_number() OVER (PARTITION BY i) = 1",
    "sql join": "SELECT a.* FROM t a JOIN t b USING (i)",
    "table macro": "FROM all_rows()",
}


@pytest.fixture(scope="module")
def expected() -> float:
    from_arrays = duckdb.sql(
        "SELECT i, i // 10 AS g, ((i * 7919) % 1009) / 1009.0 AS x, ['a', 'b', 'c'][i % 3 + 1] AS f, 2 + "
        "((i * 7919) % 1009) / 1009.0 + ((i // 10) * 31 % 17) / 10.0 + ((i * 15485863) % 1013) / 1013.0 AS y "
        "FROM range(120) r(i)"
    ).to_arrow_table()
    return mlsql.fit(FORMULA, from_arrays).deviance


def same(deviance: float, expected: float) -> None:
    # the same rows; only the order of summation may differ
    assert deviance == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("with_con", [True, False])
@pytest.mark.parametrize("kind", FILES)
def test_files(con: Con, folder: Path, expected: float, kind: str, with_con: bool) -> None:
    same(mlsql.fit(FORMULA, FILES[kind](folder), con=con if with_con else None).deviance, expected)


@pytest.mark.parametrize("with_con", [True, False])
@pytest.mark.parametrize("kind", FRAMES)
def test_frames(con: Con, expected: float, kind: str, with_con: bool) -> None:
    fitted = mlsql.fit(FORMULA, FRAMES[kind](con), con=con if with_con else None)
    same(fitted.deviance, expected)
    assert fitted.predict().height == 120  # type: ignore[union-attr]


@pytest.mark.parametrize("with_con", [True, False])
@pytest.mark.parametrize("kind", RELATIONS)
def test_relations(con: Con, expected: float, kind: str, with_con: bool) -> None:
    same(mlsql.fit(FORMULA, RELATIONS[kind](con), con=con if with_con else None).deviance, expected)


@pytest.mark.parametrize("kind", TABLES)
def test_tables_and_sql(con: Con, expected: float, kind: str) -> None:
    con.execute(
        'CREATE SCHEMA s; CREATE TABLE s.t AS FROM t; CREATE SCHEMA "my s"; CREATE TABLE "my s"."my.t" AS FROM t'
    )
    con.execute("CREATE VIEW v AS FROM t; CREATE TEMP TABLE tt AS FROM t; CREATE MACRO all_rows() AS TABLE FROM t")
    con.register("registered", con.sql("FROM t").to_arrow_table())
    same(mlsql.fit(FORMULA, TABLES[kind], con=con).deviance, expected)


def test_a_table_name_is_looked_up_before_files_and_sql(con: Con, expected: float) -> None:
    for name in ("select", "t.csv", "from t", "*.parquet"):
        con.execute(f'CREATE TABLE "{name}" AS FROM t')
        same(mlsql.fit(FORMULA, name, con=con).deviance, expected)


def test_a_relation_runs_where_it_lives(con: Con, expected: float) -> None:
    other = duckdb.connect()
    same(mlsql.fit(FORMULA, con.sql("FROM t"), con=other).deviance, expected)


def test_uncommitted_rows_are_read(con: Con, expected: float) -> None:
    con.execute("BEGIN; CREATE TABLE fresh AS FROM t")
    same(mlsql.fit(FORMULA, "fresh", con=con).deviance, expected)
    con.execute("ROLLBACK")


def test_an_attached_database_is_read(con: Con, tmp_path: Path, expected: float) -> None:
    con.execute(f"ATTACH '{tmp_path / 'other.duckdb'}' AS other; CREATE TABLE other.t2 AS FROM t")
    same(mlsql.fit(FORMULA, "other.t2", con=con).deviance, expected)
    same(mlsql.fit(FORMULA, "other.main.t2", con=con).deviance, expected)


def test_home_is_expanded(con: Con, folder: Path, monkeypatch: pytest.MonkeyPatch, expected: float) -> None:
    monkeypatch.setenv("HOME", str(folder))
    same(mlsql.fit(FORMULA, "~/t.parquet").deviance, expected)


LEVEL2: dict[str, Callable[[Con, Path], Any]] = {
    "table": lambda con, d: "upper",
    "sql": lambda con, d: "SELECT * FROM upper ORDER BY w",
    "parquet": lambda con, d: str(d / "upper.parquet"),
    "csv path": lambda con, d: d / "upper.csv",
    "polars": lambda con, d: con.sql("FROM upper").pl(),
    "lazy polars": lambda con, d: con.sql("FROM upper").pl().lazy(),
    "arrow": lambda con, d: con.sql("FROM upper").to_arrow_table(),
    "pandas": lambda con, d: con.sql("FROM upper").df(),
    "relation": lambda con, d: con.sql("FROM upper"),
}
WITH_LEVEL2 = "y ~ x*w + k + (1 | g)"


@pytest.fixture(scope="module")
def joined(folder: Path) -> mlsql.Fit:
    files = f"SELECT * FROM '{folder / 't.parquet'}' JOIN '{folder / 'upper.parquet'}' USING (g)"
    return mlsql.fit(WITH_LEVEL2, files)


@pytest.mark.parametrize("kind", LEVEL2)
@pytest.mark.parametrize("rows", ["table", "path", "polars", "relation"])
def test_level2_tables(con: Con, folder: Path, joined: mlsql.Fit, rows: str, kind: str) -> None:
    data = {"table": "t", "path": folder / "t.parquet", "polars": con.sql("FROM t").pl(), "relation": con.sql("FROM t")}
    if rows == kind == "relation":
        with pytest.raises(mlsql.DataError, match="both DuckDB relations; pass one of them as a table name"):
            mlsql.fit(WITH_LEVEL2, data[rows], level2=LEVEL2[kind](con, folder), con=con)
        return
    fitted = mlsql.fit(WITH_LEVEL2, data[rows], level2=LEVEL2[kind](con, folder), con=con)
    same(fitted.deviance, joined.deviance)
    assert fitted.fixed_effects["term"].sort().to_list() == joined.fixed_effects["term"].sort().to_list()


@pytest.mark.parametrize("kind", ["parquet", "csv path", "polars", "lazy polars", "arrow", "pandas"])
def test_level2_without_a_connection(con: Con, folder: Path, joined: mlsql.Fit, kind: str) -> None:
    for data in (folder / "t.parquet", con.sql("FROM t").pl()):
        same(mlsql.fit(WITH_LEVEL2, data, level2=LEVEL2[kind](con, folder)).deviance, joined.deviance)


def test_a_relation_and_a_frame_need_the_connection(con: Con) -> None:
    frame = con.sql("FROM upper").pl()
    with pytest.raises(mlsql.DataError, match="needs con="):
        mlsql.fit(WITH_LEVEL2, con.sql("FROM t"), level2=frame)


def test_what_the_data_were_is_remembered(con: Con, folder: Path) -> None:
    assert f"Data       {folder / 't.parquet'}" in mlsql.fit(FORMULA, folder / "t.parquet").summary()
    assert "Data       SELECT * FROM t" in mlsql.fit(FORMULA, "SELECT *\n  FROM t", con=con).summary()
    assert "Data       DataFrame" in mlsql.fit(FORMULA, con.sql("FROM t").pl()).summary()
