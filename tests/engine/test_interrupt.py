"""A running query can be stopped: QueryInterrupted, and nothing was written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

import mlsql

ROWS = "SELECT i, i // 1000 AS g, (i * 7919) % 1009 AS x, (i * 31) % 17 + (i // 1000) % 7 AS y FROM range({}) r(i)"
HUGE = ROWS.format(10**12)


def interrupted(con: duckdb.DuckDBPyConnection, work: Callable[[], object]) -> BaseException | None:
    """Run in a thread, interrupt again and again until it ends, return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 30.0
    # once may be too early, before the query has begun
    time.sleep(0.2)
    while thread.is_alive() and time.monotonic() < deadline:
        con.interrupt()
        thread.join(0.1)
    assert not thread.is_alive()
    return raised[0] if raised else None


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


@pytest.fixture
def small(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    return mlsql.fit("y ~ x + (1 | g)", ROWS.format(30000), con=con)


def tables(con: duckdb.DuckDBPyConnection) -> list[tuple[str, ...]]:
    return con.sql("SHOW TABLES").fetchall()


def test_a_fit(con: duckdb.DuckDBPyConnection) -> None:
    error = interrupted(con, lambda: mlsql.fit("y ~ x + (1 | g)", HUGE, con=con))
    assert isinstance(error, mlsql.QueryInterrupted)
    assert "was interrupted; nothing was written" in str(error)
    assert tables(con) == []
    # the connection goes on working
    assert mlsql.fit("y ~ x + (1 | g)", ROWS.format(3000), con=con).n_rows == 3000


def test_a_fit_that_shows_its_progress(con: duckdb.DuckDBPyConnection) -> None:
    def work() -> mlsql.Fit:
        return mlsql.fit("y ~ x + (1 | g)", HUGE, con=con, progress=lambda step, share: None)

    assert isinstance(interrupted(con, work), mlsql.QueryInterrupted)


def test_predictions_into_a_table(con: duckdb.DuckDBPyConnection, small: mlsql.Fit) -> None:
    error = interrupted(con, lambda: small.predict(HUGE, into="predicted", unseen="missing"))
    assert isinstance(error, mlsql.QueryInterrupted)
    assert tables(con) == []


def test_predictions_that_would_replace_a_table(con: duckdb.DuckDBPyConnection, small: mlsql.Fit) -> None:
    con.execute("CREATE TABLE predicted AS SELECT 42 AS kept")
    error = interrupted(con, lambda: small.predict(HUGE, into="predicted", unseen="missing", replace=True))
    assert isinstance(error, mlsql.QueryInterrupted)
    assert con.sql("FROM predicted").fetchall() == [(42,)]


def test_predictions_into_a_file(con: duckdb.DuckDBPyConnection, small: mlsql.Fit, tmp_path: Path) -> None:
    target = tmp_path / "predicted.parquet"
    error = interrupted(con, lambda: small.predict(HUGE, into=str(target), unseen="missing"))
    assert isinstance(error, mlsql.QueryInterrupted)
    assert list(tmp_path.iterdir()) == []


def test_the_check_for_unseen_groups(con: duckdb.DuckDBPyConnection, small: mlsql.Fit) -> None:
    error = interrupted(con, lambda: small.predict(HUGE, into="predicted"))
    assert isinstance(error, mlsql.QueryInterrupted)
    assert tables(con) == []
