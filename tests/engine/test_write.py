"""Result tables written by several at once, or where something else stands: refused as a whole, with the reason."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import duckdb
import pytest

import mlsql
from mlsql.engine.duckdb import Executed, traced
from mlsql.pipeline.store import write_tables
from mlsql.surfaces.database import opened

Con = duckdb.DuckDBPyConnection


@pytest.fixture
def fitted(con: Con) -> mlsql.Fit:
    return mlsql.fit("y ~ x + f + group_mean(x) + (x | g)", "t", con=con)


def write(fit: mlsql.Fit, con: Con, **named: Any) -> str:
    return write_tables(fit.estimates, fit.inputs.rows.label, fit.warnings, con, "ml_", fit.fixed_effects, **named)


HOLD = """
    import sys, duckdb
    con = duckdb.connect(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_database_that_another_process_has_open(tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    program = [sys.executable, "-c", textwrap.dedent(HOLD), str(path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(mlsql.StoreError) as caught, opened(path):
            pass
        other.communicate("")
    message = str(caught.value)
    assert str(path) in message
    assert re.search(rf"PID {other.pid}\b", message), message


def test_two_transactions_that_write_the_same_new_fit(fitted: mlsql.Fit, tmp_path: Path) -> None:
    """Neither sees the other's rows, so that nothing but the lock keeps them from being there twice."""
    with duckdb.connect(str(tmp_path / "results.duckdb")) as one, one.cursor() as other:
        write(fitted, one)
        one.execute("DELETE FROM ml_fits")
        one.execute("BEGIN")
        write(fitted, one)
        with pytest.raises(mlsql.StoreError, match=r"another transaction is writing.*nothing was changed: write again"):
            write(fitted, other)
        one.execute("COMMIT")
        assert one.sql("SELECT count(*) FROM ml_fits").fetchall() == [(1,)]
        write(fitted, other)
        assert one.sql("SELECT count(*) FROM ml_fits").fetchall() == [(1,)]


def test_a_transaction_that_deletes_the_rows_at_the_same_time(fitted: mlsql.Fit, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "results.duckdb")) as one, one.cursor() as other:
        write(fitted, one)
        other.execute("BEGIN; DELETE FROM ml_variance_components")
        with pytest.raises(mlsql.StoreError, match=r"another transaction is writing.*nothing was changed"):
            write(fitted, one, history=True)
        other.execute("COMMIT")
        rows = {t: one.sql(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in ("ml_fits", "ml_fixed_effects")}
        assert rows == {"ml_fits": 1, "ml_fixed_effects": 5}
        assert one.sql("SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE '%history%'").fetchall() == [(0,)]
        # the connection is free again
        write(fitted, one)
        assert one.sql("SELECT count(*) FROM ml_variance_components").fetchall() == [(4,)]


def test_a_refusal_within_the_users_transaction(fitted: mlsql.Fit, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "results.duckdb")) as one, one.cursor() as other:
        write(fitted, one)
        other.execute("BEGIN")
        write(fitted, other)
        one.execute("BEGIN; CREATE TABLE mine AS SELECT 1 AS a")
        with pytest.raises(mlsql.StoreError, match="your open transaction is aborted: ROLLBACK"):
            write(fitted, one)
        one.execute("ROLLBACK")
        other.execute("ROLLBACK")
        assert one.sql("SELECT count(*) FROM ml_fits").fetchall() == [(1,)]


def test_a_table_of_something_else_leaves_the_users_transaction_usable(fitted: mlsql.Fit) -> None:
    with duckdb.connect() as con:
        con.execute("BEGIN; CREATE TABLE ml_terms AS SELECT 42 AS mine")
        with pytest.raises(mlsql.StoreError, match=r"ml_terms has no column fit_id.*nothing was changed"):
            write(fitted, con)
        con.execute("COMMIT")
        assert con.sql("SELECT table_name FROM duckdb_tables()").fetchall() == [("ml_terms",)]


def test_a_view_in_the_place_of_a_table(fitted: mlsql.Fit) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE VIEW ml_terms AS SELECT 'a' AS fit_id")
        with pytest.raises(mlsql.StoreError, match="nothing was changed"):
            write(fitted, con)
        assert con.sql("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]


def test_a_column_of_another_type(fitted: mlsql.Fit) -> None:
    with duckdb.connect() as con:
        write(fitted, con)
        con.execute("ALTER TABLE ml_terms ALTER term TYPE INTEGER USING 1")
        with pytest.raises(mlsql.StoreError, match="nothing was changed"):
            write(fitted, con, history=True)
        assert con.sql("SELECT DISTINCT term FROM ml_terms").fetchall() == [(1,)]
        assert con.sql("SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE '%history%'").fetchall() == [(0,)]


def test_statements_that_write_are_told_with_time_and_rows(fitted: mlsql.Fit) -> None:
    told: list[Executed] = []
    with duckdb.connect() as con, traced(told.append):
        write(fitted, con)
        write(fitted, con, history=True)
        con.execute("BEGIN")
        write(fitted, con)
        con.execute("ROLLBACK")
    assert all(done.seconds >= 0 for done in told)
    transactions = [done.sql for done in told if done.step == "transaction"]
    # a transaction that the user opened is the user's
    assert transactions == ["BEGIN TRANSACTION", "COMMIT"] * 2
    effects = [(done.sql.split()[0], done.rows) for done in told if done.step == "result table ml_fixed_effects"]
    first, later = [("CREATE", 0), ("DELETE", 0), ("INSERT", 5)], [("CREATE", 0), ("DELETE", 5), ("INSERT", 5)]
    assert effects == [*first, *later, *later]
    history = [(done.sql.split()[0], done.rows) for done in told if done.step == "result table ml_history_fits"]
    assert history == [("CREATE", 0), ("INSERT", 1)]


def test_a_transaction_that_is_rolled_back_is_told(fitted: mlsql.Fit) -> None:
    told: list[Executed] = []
    with duckdb.connect() as con:
        con.execute("CREATE VIEW ml_terms AS SELECT 'a' AS fit_id")
        with pytest.raises(mlsql.StoreError), traced(told.append):
            write(fitted, con)
    assert (told[0].sql, told[-1].sql) == ("BEGIN TRANSACTION", "ROLLBACK")
