"""Result tables: rows of one fit replaced in one transaction, or read."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

from mlsql.engine.duckdb import run_told
from mlsql.errors import StoreError
from mlsql.sql.syntax import column, name, render

if TYPE_CHECKING:
    import pyarrow as pa

INCOMING = "mlsql_incoming"
KEY = "fit_id"
TRANSACTION = "transaction"

COMMENT = "result tables of mlsql: one row per fit"
"""Written to the first table by every transaction.

Two transactions that write the same new fit would not conflict over rows that neither sees, and each would add its own;
over the comment they do.  One process has a lock besides, so that its own writers wait instead of failing."""

_writing = threading.Lock()


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of one fit for one table; the first column is `fit_id`.

    Attributes
    ----------
    table : str
    rows : pyarrow.Table
    history : str or None
        Table to which the rows that are replaced are moved; None to drop them.
    """

    table: str
    rows: pa.Table
    history: str | None = None


def replace_rows(con: duckdb.DuckDBPyConnection, fit_id: str, tables: Sequence[TableRows]) -> None:
    """Make the tables where they are missing and replace the fit's rows in all of them, or in none.

    Tables of an older version get the columns that they lack.  Joins a transaction that is already open on the
    connection; commits one of its own otherwise.

    Raises
    ------
    StoreError
        When the database cannot be written, another transaction is writing, or a table of that name holds something
        else; nothing is changed then.
    """
    labels = [f"{INCOMING}_{i}" for i in range(len(tables))]
    own = False
    try:
        for label, item in zip(labels, tables, strict=True):
            con.register(label, item.rows)
        _refuse_others(con, [item.table for item in tables])
        own = not _in_transaction(con)
        if own:
            with _writing:
                run_told(con, TRANSACTION, "BEGIN TRANSACTION")
                _write(con, fit_id, tables, labels)
                run_told(con, TRANSACTION, "COMMIT")
        else:
            _write(con, fit_id, tables, labels)
    except BaseException as error:
        if own:
            # a failed COMMIT has ended the transaction, and an invalidated database has none
            with suppress(duckdb.Error):
                run_told(con, TRANSACTION, "ROLLBACK")
        if isinstance(error, duckdb.Error):
            raise StoreError(_refusal(error, own)) from error
        raise
    finally:
        # an aborted transaction of the user's refuses even this; the views end with the connection then
        with suppress(duckdb.Error):
            for label in labels:
                con.unregister(label)


def read_rows(con: duckdb.DuckDBPyConnection, table: str, fit_id: str | None = None) -> list[dict[str, Any]] | None:
    """Rows of a result table, of one fit or of all, in the order written; None when there is no such table.

    Raises
    ------
    StoreError
        When the table cannot be read.
    """
    target = exp.Table(this=name(table))
    query = exp.select("*").from_(target)
    try:
        if not _existing(con, [table]):
            return None
        _refuse_others(con, [table])
        if fit_id is not None:
            query = query.where(_of_fit(fit_id))
        rows: list[dict[str, Any]] = _in_utc(con.sql(render(query)).to_arrow_table()).to_pylist()
        return rows
    except duckdb.Error as error:
        raise StoreError(f"the result table {table} cannot be read: {_lines(error)}") from error


def _existing(con: duckdb.DuckDBPyConnection, tables: Sequence[str]) -> list[str]:
    """Those of the tables that are there; an error would abort the user's transaction."""
    known = con.execute(
        "SELECT lower(table_name) FROM information_schema.tables "
        "WHERE table_catalog = current_database() AND table_schema = current_schema()"
    ).fetchall()
    return [t for t in tables if (t.lower(),) in known]


def _refuse_others(con: duckdb.DuckDBPyConnection, tables: Sequence[str]) -> None:
    """Refuse tables that hold something else, before any is written.

    Raises
    ------
    StoreError
    """
    for table in _existing(con, tables):
        if KEY not in {c.lower() for c in _columns(con, exp.Table(this=name(table)))}:
            raise StoreError(
                f"the table {table} has no column {KEY}: it holds something else, nothing was changed; choose another "
                "prefix"
            )


def _in_utc(rows: pa.Table) -> pa.Table:
    """Times in UTC, whatever the session's time zone: names of others may be unknown to Python."""
    import pyarrow as pa

    for i, item in enumerate(rows.schema):
        if pa.types.is_timestamp(item.type) and item.type.tz is not None:
            rows = rows.set_column(i, item.name, rows.column(i).cast(pa.timestamp(item.type.unit, "UTC")))
    return rows


def _in_transaction(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the user has a transaction open; beginning another would abort it.

    Without an open transaction every statement has one of its own, with its own number.
    """
    first, second = (con.execute("SELECT txid_current()").fetchone() for _ in range(2))
    return first == second


def _write(con: duckdb.DuckDBPyConnection, fit_id: str, tables: Sequence[TableRows], labels: Sequence[str]) -> None:
    for i, (label, item) in enumerate(zip(labels, tables, strict=True)):
        target, incoming = exp.Table(this=name(item.table)), exp.Table(this=name(label))
        _fit_for(con, target, exp.select("*").from_(incoming.copy()))
        if i == 0:
            text = exp.Literal.string(COMMENT)
            _run(con, item.table, exp.Comment(this=target.copy(), kind="TABLE", expression=text))
        if item.history is not None:
            _keep(con, target, exp.Table(this=name(item.history)), fit_id)
        _run(con, item.table, exp.delete(target.copy()).where(_of_fit(fit_id)))
        rows = exp.select("*").from_(incoming)
        _run(con, item.table, exp.Insert(this=target, expression=rows, by_name=True))


def _run(con: duckdb.DuckDBPyConnection, table: str, statement: exp.Expr) -> None:
    run_told(con, f"result table {table}", render(statement))


def _fit_for(con: duckdb.DuckDBPyConnection, target: exp.Table, rows: exp.Select) -> None:
    """Make the table, or add the columns that an older version did not write."""
    made = exp.Create(this=target.copy(), kind="TABLE", exists=True, expression=rows.copy().limit(0))
    _run(con, target.name, made)
    present = {c.lower() for c in _columns(con, target)}
    for label, dtype in _columns(con, rows.subquery()).items():
        if label.lower() not in present:
            added = exp.ColumnDef(this=name(label), kind=exp.DataType.build(dtype, dialect="duckdb"))
            _run(con, target.name, exp.Alter(this=target.copy(), kind="TABLE", actions=[added]))


def _keep(con: duckdb.DuckDBPyConnection, target: exp.Table, history: exp.Table, fit_id: str) -> None:
    """Copy the fit's rows to the history table, with the time of the replacement."""
    replaced = exp.alias_(exp.CurrentTimestamp(), name("replaced_at"))
    rows = exp.select("*", replaced).from_(target.copy())
    _fit_for(con, history, rows)
    _run(con, history.name, exp.Insert(this=history.copy(), expression=rows.where(_of_fit(fit_id)), by_name=True))


def _columns(con: duckdb.DuckDBPyConnection, relation: exp.Expr) -> dict[str, str]:
    answer = con.execute(render(exp.Describe(this=exp.select("*").from_(relation.copy())))).fetchall()
    return {str(r[0]): str(r[1]) for r in answer}


def _of_fit(fit_id: str) -> exp.Expr:
    return exp.EQ(this=column(KEY), expression=exp.Literal.string(fit_id))


def _refusal(error: BaseException, own: bool) -> str:
    text = _lines(error)
    start = "the result tables cannot be written, nothing was changed"
    if "conflict" in text.lower() or "another transaction" in text.lower():
        start = (
            "another transaction is writing the same result tables, nothing was changed: write again when it has ended"
        )
    return f"{start}: {text}" + ("" if own else " (your open transaction is aborted: ROLLBACK, then write again)")


def _lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
