"""The user's connection stays as it was: tables, views, transaction, settings, pending results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import mlsql

Con = duckdb.DuckDBPyConnection
FORMULA = "y ~ x + f + (1 | g)"


def things(con: Con) -> list[tuple[str, ...]]:
    """All tables and views, temporary and registered ones included."""
    query = (
        "SELECT database_name, schema_name, table_name FROM duckdb_tables() UNION ALL "
        "SELECT database_name, schema_name, view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
    )
    return con.sql(query).fetchall()


def fit_frame(con: Con) -> None:
    mlsql.fit(FORMULA, con.sql("FROM t").pl(), con=con, level2=con.sql("FROM upper").to_arrow_table())


def fit_predict(con: Con) -> None:
    fitted = mlsql.fit(FORMULA, "t", con=con)
    fitted.predict()
    fitted.residuals()
    fitted.predict(con.sql("FROM t").pl(), unseen="population")


def wrong_column(con: Con) -> None:
    with pytest.raises(mlsql.DataError):
        mlsql.fit("y ~ nosuch + (1 | g)", con.sql("FROM t").pl(), con=con)


def wrong_cast(con: Con) -> None:
    with pytest.raises(mlsql.QueryError):
        mlsql.fit("y ~ I(CAST(f AS INT)) + (1 | g)", con.sql("FROM t").pl(), con=con)


def unseen_groups(con: Con) -> None:
    with pytest.raises(mlsql.DataError):
        mlsql.fit(FORMULA, "t", con=con).predict("SELECT * REPLACE (g + 6 AS g) FROM t")


ACTIONS: dict[str, Callable[[Con], object]] = {
    "fit a table": lambda con: mlsql.fit(FORMULA, "t", con=con),
    "fit SQL": lambda con: mlsql.fit(FORMULA, "SELECT * FROM t", con=con),
    "fit frames": fit_frame,
    "fit and predict": fit_predict,
    "plan": lambda con: mlsql.plan(FORMULA, "t", con=con, survey=True),
    "evaluate": lambda con: mlsql.evaluate("y ~ x + (1 | g)", "t", con=con, T=1.0, sigma2=1.0),
    "a wrong column": wrong_column,
    "a failing query": wrong_cast,
    "unseen groups": unseen_groups,
}


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_left_behind(con: Con, action: str) -> None:
    before = things(con), con.sql("SELECT name, value FROM duckdb_settings() ORDER BY name").fetchall()
    ACTIONS[action](con)
    after = things(con), con.sql("SELECT name, value FROM duckdb_settings() ORDER BY name").fetchall()
    assert after == before


SUCCEED = [
    "fit a table",
    "fit SQL",
    "fit frames",
    "fit and predict",
    "plan",
    "evaluate",
    "a wrong column",
    "unseen groups",
]


@pytest.mark.parametrize("action", SUCCEED)
def test_an_open_transaction_stays_open(con: Con, action: str) -> None:
    con.execute("BEGIN; INSERT INTO t SELECT * REPLACE (i + 1000 AS i) FROM t WHERE g = 3")
    ACTIONS[action](con)
    assert con.sql("SELECT count(*) FROM t").fetchall() == [(130,)]
    con.execute("ROLLBACK")
    assert con.sql("SELECT count(*) FROM t").fetchall() == [(120,)]


@pytest.mark.parametrize("action", ACTIONS)
def test_no_transaction_is_left_open(con: Con, action: str) -> None:
    ACTIONS[action](con)
    con.execute("BEGIN")
    con.execute("ROLLBACK")


def test_an_unfinished_result_is_named_as_the_cause(con: Con) -> None:
    """Some versions of DuckDB refuse other work on a connection with one; the table is not missing then."""
    con.execute("FROM range(5000)").fetchone()
    message = ""
    try:
        mlsql.fit("y ~ x + (1 | g)", "t", con=con)
    except mlsql.MlsqlError as error:
        message = str(error)
    assert "not a table" not in message
    assert message == "" or "unfinished result" in message


def test_a_closed_connection_is_named_as_the_cause(con: Con) -> None:
    con.close()
    with pytest.raises(mlsql.MlsqlError, match=r"(?i)closed"):
        mlsql.fit("y ~ x + (1 | g)", "t", con=con)


def test_a_connection_is_a_connection() -> None:
    with pytest.raises(mlsql.MlsqlError, match="con"):
        mlsql.fit("y ~ x + (1 | g)", "t", con="results.duckdb")  # type: ignore[arg-type]


def test_a_read_only_database_is_enough(tmp_path: Path) -> None:
    path = str(tmp_path / "data.duckdb")
    with duckdb.connect(path) as con:
        con.execute(
            "CREATE TABLE t AS SELECT i // 10 AS g, i * 37 % 101 AS x, i * 53 % 89 + i // 10 AS y FROM range(90) r(i)"
        )
    with duckdb.connect(path, read_only=True) as con:
        fitted = mlsql.fit("y ~ x + (1 | g)", "t", con=con)
        predicted = fitted.predict()
        assert predicted is not None
        assert predicted.height == 90
        assert mlsql.fit("y ~ x + (1 | g)", con.sql("FROM t").pl(), con=con).deviance == pytest.approx(
            fitted.deviance, rel=1e-11
        )


def test_cursors_and_several_connections(con: Con) -> None:
    first = mlsql.fit(FORMULA, "t", con=con.cursor())
    second = mlsql.fit(FORMULA, "t", con=con)
    assert first.deviance == pytest.approx(second.deviance, rel=1e-11)
    assert_frame_equal(first.predict(), second.predict())  # type: ignore[arg-type]


def test_local_variables_are_not_tables(con: Con) -> None:
    """A frame called `data` in some module must never be taken for the table that the user named."""
    for name in ("data", "rows", "table", "step", "source", "frame"):
        with pytest.raises(mlsql.DataError, match="is not a table or view"):
            mlsql.fit("y ~ x + (1 | g)", name, con=con)


def test_progress_is_reported(con: Con) -> None:
    seen: list[tuple[str, float]] = []
    mlsql.fit(FORMULA, "t", con=con, progress=lambda step, share: seen.append((step, share)))
    assert {s for s, _ in seen} >= {"survey of data", "preview", "moments by group"}
    assert all(0.0 <= share <= 1.0 for _, share in seen)
    assert [share for step, share in seen if step == "moments by group"][-1] == 1.0


def test_frames_are_not_changed(con: Con) -> None:
    frame = con.sql("FROM t").pl()
    copy = frame.clone()
    mlsql.fit(FORMULA, frame).predict()
    assert frame.equals(copy)
    lazy = pl.LazyFrame(frame)
    mlsql.fit(FORMULA, lazy)
    assert lazy.collect().equals(copy)
