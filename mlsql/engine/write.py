"""Result tables: rows of one fit replaced in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
from sqlglot import exp

from mlsql.errors import StoreError
from mlsql.sql.syntax import column, name, render

if TYPE_CHECKING:
    import pyarrow as pa

INCOMING = "mlsql_incoming"


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of one fit for one table; the first column is `fit_id`."""

    table: str
    rows: pa.Table


def replace_rows(con: duckdb.DuckDBPyConnection, fit_id: str, tables: Sequence[TableRows]) -> None:
    """Make the tables where they are missing and replace the fit's rows in all of them, or in none.

    Joins a transaction that is already open on the connection; commits one of its own otherwise.

    Raises
    ------
    StoreError
        When the database cannot be written, or a table of that name has other columns; nothing is changed then.
    """
    labels = [f"{INCOMING}_{i}" for i in range(len(tables))]
    own = False
    try:
        for label, item in zip(labels, tables, strict=True):
            con.register(label, item.rows)
        own = _begin(con)
        for label, item in zip(labels, tables, strict=True):
            for statement in _statements(item.table, label, fit_id):
                con.execute(render(statement))
        if own:
            con.execute("COMMIT")
    except BaseException as error:
        if own:
            con.execute("ROLLBACK")
        if isinstance(error, duckdb.Error):
            lines = " ".join(line.strip() for line in str(error).splitlines()[:2])
            raise StoreError(f"the result tables cannot be written, nothing was changed: {lines}") from error
        raise
    finally:
        # an aborted transaction of the user's refuses even this; the views end with the connection then
        with suppress(duckdb.Error):
            for label in labels:
                con.unregister(label)


def _begin(con: duckdb.DuckDBPyConnection) -> bool:
    """Begin a transaction unless the user has one open; trying and failing would abort the user's.

    Without an open transaction every statement has one of its own, with its own number.
    """
    first, second = (con.execute("SELECT txid_current()").fetchone() for _ in range(2))
    if first == second:
        return False
    con.execute("BEGIN TRANSACTION")
    return True


def _statements(table: str, label: str, fit_id: str) -> list[exp.Expr]:
    target = exp.Table(this=name(table))
    incoming = exp.select("*").from_(name(label))
    return [
        exp.Create(this=target, kind="TABLE", exists=True, expression=incoming.copy().limit(0)),
        exp.delete(target.copy()).where(exp.EQ(this=column("fit_id"), expression=exp.Literal.string(fit_id))),
        exp.Insert(this=target.copy(), expression=incoming, by_name=True),
    ]
