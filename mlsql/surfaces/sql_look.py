"""A look at the first rows before a statement is read, on a cursor of its connection.

The function that writes a statement's query runs while the engine reads the statement, which cannot be asked then.  A
cursor can: it sees what is committed.  Whatever it sees is a hint and no more, for the statement may mean another table
of that name.
"""

from __future__ import annotations

import itertools
import json
import threading
from functools import lru_cache
from weakref import WeakValueDictionary

import duckdb
from sqlglot import exp

from mlsql.design.cells import CellLayout
from mlsql.sql.cell_rows import LOCATED, TYPED
from mlsql.sql.cell_types import named, type_of
from mlsql.sql.cells import cells_step
from mlsql.sql.survey import PREVIEW_ROWS, Tables
from mlsql.sql.syntax import column, name, scalar
from mlsql.surfaces.sql_lean import Look, common_table, look_of, no_rows

Expr = exp.Expr

LARGE = 200_000
"""Fewer rows are summed before a look at them would have paid."""

PATIENCE = 1.0
"""Seconds.  A cursor may have to wait for what the statement's own transaction holds up: that must not last."""

SCANS = ("SEQ_SCAN", "READ_PARQUET", "PARQUET_SCAN")
"""How the plan of a table or a Parquet file begins, and ends; a query or another file might be long to look at."""

FIRST, GROUPS = "mlsql_first_rows", "mlsql_first_groups"
"""Common tables of the query."""

EVIDENCE = 100
"""So many of the first rows have another of their group before them, or what does not vary among them says nothing."""

KEPT = 64

_seen: dict[tuple[str | None, CellLayout, Expr, Expr | None, str], Look] = {}
_misled: set[tuple[CellLayout, Expr, Expr | None]] = set()
_connections: WeakValueDictionary[str, duckdb.DuckDBPyConnection] = WeakValueDictionary()
_numbers = itertools.count(1)


def remember(con: duckdb.DuckDBPyConnection) -> str:
    """Name a connection, so that a function which the engine calls finds it as long as its user keeps it."""
    label = str(next(_numbers))
    _connections[label] = con
    return label


def look(layout: CellLayout, tables: Tables, home: str | None) -> Look | None:
    """Look at the first rows, unless they were seen and nothing points to a change; None where it would not pay.

    Parameters
    ----------
    layout : CellLayout
    tables : Tables
    home : str or None
        The name of the connection.
    """
    con = None if home is None else _connections.get(home)
    if con is None or (layout, tables.rows, tables.level2) in _misled:
        return None
    found: list[Look | None] = []
    worker = threading.Thread(target=lambda: found.append(_look(con, home, layout, tables)), daemon=True)
    worker.start()
    worker.join(PATIENCE)
    return found[0] if found else None


def distrust(layout: CellLayout, tables: Tables) -> None:
    """Look no more for this model of these tables: the first rows misled."""
    if len(_misled) >= KEPT:
        _misled.clear()
    _misled.add((layout, tables.rows, tables.level2))


def forget() -> None:
    """Look at everything again."""
    _seen.clear()
    _misled.clear()


def _look(con: duckdb.DuckDBPyConnection, home: str | None, layout: CellLayout, tables: Tables) -> Look | None:
    try:
        with con.cursor() as cursor:
            plan = _plan(cursor, tables.rows)
            if not is_large_scan(plan):
                return None
            key = (home, layout, tables.rows, tables.level2, plan)
            seen = _seen.get(key)
            if seen is None:
                row = cursor.execute(_statement(layout, tables.rows, tables.level2)).fetchone()
                if row is None or row[0] < PREVIEW_ROWS:
                    return None
                if len(_seen) >= KEPT:
                    _seen.clear()
                rows, groups, *facts = row
                # among rows of different groups nothing is seen to vary
                _seen[key] = seen = look_of(layout, *facts, told=rows - groups >= EVIDENCE)
            return seen
    except duckdb.Error:
        # the statement itself will say what is wrong, if it does not mean another table
        return None


def _plan(cursor: duckdb.DuckDBPyConnection, rows: Expr) -> str:
    """How the engine would read all rows, as JSON."""
    reading = exp.select("*").from_(rows.copy(), copy=False).sql(dialect="duckdb")
    explained = exp.Command(this="EXPLAIN (FORMAT JSON)", expression=reading)
    answer = cursor.execute(explained.sql(dialect="duckdb")).fetchall()
    return str(answer[0][1])


def is_large_scan(plan: str) -> bool:
    """Whether a plan is nothing but the scan of a large table or of Parquet files."""
    try:
        (scan,) = json.loads(plan)
        if scan["children"] or scan["name"].strip() not in SCANS:
            return False
        return int(scan["extra_info"]["Estimated Cardinality"]) >= LARGE
    except (KeyError, TypeError, ValueError):
        # another version may write it otherwise
        return False


@lru_cache(maxsize=64)
def _statement(layout: CellLayout, rows: Expr, level2: Expr | None) -> str:
    """Rows, groups; of each predictor its type, whether the level-2 table has it, whether it varies within a group."""
    whole = cells_step(layout, rows, level2).tree
    keys, numbers = [f"k{i}" for i in range(len(layout.keys))], [f"x{i}" for i in range(len(layout.numbers))]
    first = exp.select(*map(column, [*keys, *numbers])).from_(name(TYPED), copy=False).limit(PREVIEW_ROWS)
    differs = [exp.LT(this=exp.Min(this=column(x)), expression=exp.Max(this=column(x))) for x in numbers]
    varies = [named(test, x) for test, x in zip(differs, numbers, strict=True)]
    groups = exp.select(*varies).from_(name(FIRST), copy=False).group_by(*map(column, keys), copy=False)
    place = dict(zip(layout.numbers, numbers, strict=True))
    types = [type_of(exp.AnyValue(this=scalar(p.sql))) for p in layout.predictors]
    upper: list[Expr] = [column(f"u{i}") if layout.level2 else exp.false() for i in range(len(layout.predictors))]
    varying = [exp.LogicalOr(this=column(place[p.sql])) if p.number else exp.false() for p in layout.predictors]
    above = exp.select(exp.Array(expressions=upper))
    parts = [
        *[exp.select(exp.Count(this=exp.Star())).from_(name(label), copy=False) for label in (FIRST, GROUPS)],
        exp.select(exp.Array(expressions=types)).from_(no_rows(whole), copy=False),
        above.from_(name(LOCATED), copy=False) if layout.level2 else above,
        exp.select(exp.Array(expressions=varying)).from_(name(GROUPS), copy=False),
    ]
    tree = exp.select(*[named(part.subquery(), f"c{i}") for i, part in enumerate(parts)])
    for label in (LOCATED, TYPED) if layout.level2 else (TYPED,):
        tree = tree.with_(name(label), as_=common_table(whole, label), copy=False)
    tree = tree.with_(name(FIRST), as_=first, materialized=True, copy=False)
    return tree.with_(name(GROUPS), as_=groups, copy=False).sql(dialect="duckdb")
