"""Data that are none: missing files, files of another kind, objects of unknown type, names without a connection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

import mlsql

Refuse = Callable[..., str]
FORMULA = "y ~ x + (1 | g)"


@pytest.mark.parametrize("with_con", [True, False])
def test_files(refuse: Refuse, con: duckdb.DuckDBPyConnection, tmp_path: Path, with_con: bool) -> None:
    used = {} if with_con else {"con": None}
    missing, text = tmp_path / "nosuch.parquet", tmp_path / "notes.txt"
    text.write_text("hello")
    not_parquet, empty = tmp_path / "bad.parquet", tmp_path / "empty.parquet"
    not_parquet.write_text("this is no Parquet file, though it is long enough to look like one")
    empty.write_text("")
    for form in (str, Path):
        refuse(mlsql.DataError, [f"the file {missing} does not exist"], FORMULA, form(missing), **used)
        refuse(mlsql.DataError, [f"{text}: only Parquet and CSV files"], FORMULA, form(text), **used)
        refuse(mlsql.DataError, [f"data {not_parquet} cannot be read", "arquet"], FORMULA, form(not_parquet), **used)
        refuse(mlsql.DataError, [f"data {empty} cannot be read"], FORMULA, form(empty), **used)
    pattern = str(tmp_path / "nosuch*.parquet")
    refuse(mlsql.DataError, [pattern, "No files found"], FORMULA, pattern, **used)
    refuse(mlsql.DataError, [f"{tmp_path}: only Parquet and CSV files"], FORMULA, tmp_path, **used)


def test_files_whose_columns_differ(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    con.execute(f"COPY t TO '{tmp_path / 'a1.parquet'}' (FORMAT parquet)")
    con.execute(f"COPY (SELECT 1 AS q) TO '{tmp_path / 'a2.parquet'}' (FORMAT parquet)")
    with pytest.raises(mlsql.MlsqlError):
        mlsql.fit(FORMULA, str(tmp_path / "a*.parquet"))


def test_a_table_name_without_a_connection(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["'t'", "for a table of a database pass con="], FORMULA, "t", con=None)
    refuse(mlsql.DataError, ["for a table of a database pass con="], FORMULA, "main.t", con=None)


def test_a_table_that_does_not_exist(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["'nosuch' is not a table or view of the connection"], FORMULA, "nosuch")
    refuse(
        mlsql.DataError,
        ["SELECT * FROM nosuch cannot be read", "nosuch does not exist"],
        FORMULA,
        "SELECT * FROM nosuch",
    )


@pytest.mark.parametrize("data", ["", "   ", "\n"])
def test_empty_text(refuse: Refuse, data: str) -> None:
    refuse(mlsql.DataError, ["data is an empty text"], FORMULA, data)


@pytest.mark.parametrize("data", ["SELECT FROM WHERE", "SELECT * FROM t WHERE", "SELECT (", "FROM"])
def test_sql_that_cannot_be_read(con: duckdb.DuckDBPyConnection, data: str) -> None:
    with pytest.raises(mlsql.DataError, match="data"):
        mlsql.fit(FORMULA, data, con=con)


def test_sql_that_fails_while_it_runs(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(mlsql.QueryError, match="Could not convert string 'a'"):
        mlsql.fit(FORMULA, "SELECT * REPLACE (f::INT AS x) FROM t", con=con)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (None, "NoneType"),
        (3, "int"),
        (b"t", "bytes"),
        ([1, 2], "list"),
        ({"y": [1.0]}, "dict"),
        (np.zeros((3, 3)), "numpy.ndarray"),
        (pl.Series([1]), "Series"),
        (pd.Series([1]), "Series"),
        (object(), "object"),
    ],
)
def test_objects_of_another_kind(refuse: Refuse, data: object, kind: str) -> None:
    parts = ["data is a ", kind, "pass a path, a table name or SQL text", "Polars", "Arrow", "pandas"]
    refuse(mlsql.DataError, parts, FORMULA, data)


def test_a_connection_is_no_data(refuse: Refuse, con: duckdb.DuckDBPyConnection) -> None:
    refuse(mlsql.DataError, ["DuckDBPyConnection"], FORMULA, con)


@pytest.mark.parametrize("frame", [pl.DataFrame(), pl.LazyFrame(), pd.DataFrame(), pl.DataFrame().to_arrow()])
@pytest.mark.parametrize("with_con", [True, False])
def test_frames_without_columns(con: duckdb.DuckDBPyConnection, frame: object, with_con: bool) -> None:
    with pytest.raises(mlsql.DataError):
        mlsql.fit(FORMULA, frame, con=con if with_con else None)


def test_frames_without_rows(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(mlsql.DataError, match="the data have no rows"):
        mlsql.fit(FORMULA, con.sql("FROM t LIMIT 0").pl())


def test_a_lazy_frame_that_fails() -> None:
    lazy = pl.LazyFrame({"y": [1.0], "x": [2.0], "g": [1]}).with_columns(pl.col("nosuch") + 1)
    with pytest.raises((mlsql.DataError, pl.exceptions.ColumnNotFoundError)):
        mlsql.fit(FORMULA, lazy)


def test_examples() -> None:
    with pytest.raises(mlsql.DataError, match="there is no example called 'nosuch'; choose from hsb"):
        mlsql.example_data("nosuch")
