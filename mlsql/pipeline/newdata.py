"""Checks of data to be scored: the fit's columns, with types that fit, and a level-2 table with one row per group."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlglot import exp

from mlsql.design.design import Design
from mlsql.design.schema import Candidate, Input, classify, comparable, require_columns
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.survey import check_level2_keys
from mlsql.sql.survey import types_step

_RESERVED = re.compile(r"mlsql (x|z|u|ols|c|k|mean|key|level2)\b", re.IGNORECASE)


def check_new_data(
    design: Design, inputs: Inputs, engine: DuckDBEngine, columns: dict[str, str], added: Sequence[str]
) -> None:
    """Refuse data that the fit cannot score.

    1. Names: the data have what the model reads, and none of the columns to be added.
    2. Types: numbers where the fit had numbers, keys that can be compared with the fit's.
    3. The level-2 table: each group once.

    Raises
    ------
    DataError
    """
    # 1
    have = {c.lower() for c in columns}
    twice = [a for a in added if a in have]
    if twice:
        raise DataError(f"the data have a column called {twice[0]!r} already; select other columns or rename it")
    reserved = next((c for c in columns if _RESERVED.match(c)), None)
    if reserved is not None:
        raise DataError(f"the data have a column called {reserved!r}, a name that the scoring query uses; rename it")
    # a model made from another's moments shares its schema and may use less of it
    used = {v.source for c in (*design.fixed.columns, *design.random) for v in c.variables}
    read = [i for i in design.schema.inputs if i.role == "key" or (i.role in ("numeric", "factor") and i.sql in used)]
    rows = [i for i in read if i.table == "rows"]
    _check(rows, columns, inputs.tables.rows, engine)
    # 2, 3
    if inputs.level2 is not None:
        upper = [i for i in read if i.table == "level2" or i.role == "key"]
        _check(upper, engine.columns(inputs.level2, "level2"), inputs.level2.relation, engine)
        check_level2_keys(engine, inputs.tables, design.schema)


def _check(items: Sequence[Input], columns: dict[str, str], relation: exp.Expr, engine: DuckDBEngine) -> None:
    if not items:
        return
    for item in items:
        require_columns(f"to predict, {item.name} is needed", item.sql, columns)
    candidates = [Candidate(i.name, i.sql, i.role, i.table, i.role == "factor") for i in items]
    types = engine.query(types_step(relation, candidates)).column("column_type").to_pylist()
    for item, candidate, dtype in zip(items, candidates, types, strict=True):
        found = classify(candidate, str(dtype))
        if item.role == "numeric" and found.role != "numeric":
            raise DataError(f"{item.name} is {dtype} in the data; the fit had a number ({item.dtype})")
        if item.role == "key" and not comparable(item.dtype, str(dtype)):
            raise DataError(
                f"the grouping column {item.name} is {dtype} in the data; the fit had {item.dtype}: "
                "convert it, so that groups can be told"
            )
