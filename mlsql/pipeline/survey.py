"""Run the survey's statements and collect their answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlglot import exp

from mlsql.design.design import check_survey
from mlsql.design.schema import Input, Schema
from mlsql.design.survey import ColumnSurvey, Preview, Survey
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError, DesignError
from mlsql.pipeline.prepare import Inputs
from mlsql.sql.survey import (
    Tables,
    irregular_step,
    level2_step,
    levels_step,
    may_be_irregular,
    preview_step,
    survey_step,
)

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LEVELS = 500


def run_survey(schema: Schema, inputs: Inputs, engine: DuckDBEngine) -> Survey:
    """Look at the data before the fit.

    1. One scan: rows, missing values, means, ranges (again for columns with NaN or infinities, to count them).
    2. With a level-2 table: is each group in it, once?
    3. Levels of factors, if there are any.
    4. The first rows: what varies within groups, do groups lie together?

    Raises
    ------
    DataError
        When the data cannot carry a model at all.
    """
    tables = inputs.tables
    # 1
    rows, columns = _table_survey(engine, tables.rows, schema.of_table("rows"), "data")
    survey = Survey(rows, columns)
    # 2
    if tables.level2 is not None:
        upper_rows, upper = _table_survey(engine, tables.level2, schema.of_table("level2"), "level2")
        if not upper_rows:
            raise DataError("the level2 table has no rows")
        unmatched = check_level2_keys(engine, tables, schema)
        survey = replace(survey, columns=(*columns, *upper), unmatched=unmatched)
    check_survey(schema, survey)
    incomplete = [*survey.incomplete_inputs("rows"), *survey.incomplete_inputs("level2")]
    # 3
    factors = schema.of_role("factor")
    if factors:
        levels = _levels(engine, tables, schema, incomplete)
        survey = replace(survey, levels=levels, empty_levels=_empty_levels(factors, levels))
    # 4
    lower = [i for i in incomplete if i.table == "rows"]
    return replace(survey, preview=_preview(engine, tables, schema, lower))


def _table_survey(
    engine: DuckDBEngine, relation: exp.Expr, inputs: Sequence[Input], table: str
) -> tuple[int, tuple[ColumnSurvey, ...]]:
    answer = iter(_row(engine.query(survey_step(relation, inputs, table))))
    rows = int(next(answer))
    found = []
    for item in inputs:
        nulls = rows - int(next(answer))
        if item.numeric:
            mean, low, high = (_number(next(answer)) for _ in range(3))
            found.append(ColumnSurvey(item, rows, nulls, mean=mean, minimum=low, maximum=high))
        else:
            found.append(ColumnSurvey(item, rows, nulls))
    odd = [c for c in found if c.input in may_be_irregular(inputs) and not math.isfinite(c.minimum + c.maximum)]
    odd = [c for c in odd if c.nulls < rows]
    if odd:
        counted = iter(_row(engine.query(irregular_step(relation, [c.input for c in odd]))))
        for column in odd:
            nans, infinite = int(next(counted)), int(next(counted))
            mean, low, high = (_number(next(counted)) for _ in range(3))
            found[found.index(column)] = replace(
                column, nans=nans, infinite=infinite, mean=mean, minimum=low, maximum=high
            )
    return rows, tuple(found)


def check_level2_keys(engine: DuckDBEngine, tables: Tables, schema: Schema) -> int:
    """Refuse a level-2 table with a group twice; return how many rows of the data have no group in it.

    Raises
    ------
    DataError
    """
    rows, keys, unmatched = _row(engine.query(level2_step(tables, schema)))
    if int(keys) < int(rows):
        names = ", ".join(k.name for k in schema.of_role("key"))
        raise DataError(
            f"the level2 table has {int(rows):,} rows but {int(keys):,} distinct values of {names}; "
            "it needs one row per group: aggregate it first"
        )
    return int(unmatched)


def _levels(
    engine: DuckDBEngine, tables: Tables, schema: Schema, incomplete: Sequence[Input]
) -> dict[str, tuple[str, ...]]:
    factors = schema.of_role("factor")
    answer = engine.query(levels_step(tables, schema, incomplete)).to_pydict()
    found: dict[str, list[str]] = {f.sql: [] for f in factors}
    for index, level in zip(answer["factor"], answer["level"], strict=True):
        found[factors[index].sql].append(level)
    for factor in factors:
        count = len(found[factor.sql])
        if count > MAX_LEVELS:
            raise DesignError(
                f"factor {factor.name} has {count:,} levels, more than {MAX_LEVELS}; "
                "is it a grouping column, or a number stored as text (then CAST it)?"
            )
    return {sql: tuple(levels) for sql, levels in found.items()}


def _empty_levels(factors: Sequence[Input], levels: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    empty = {}
    for factor in factors:
        if factor.dtype.upper().startswith("ENUM"):
            declared = [e.name for e in sqlglot.parse_one(f"x::{factor.dtype}", dialect="duckdb").find_all(exp.Literal)]
            unused = tuple(level for level in declared if level not in levels[factor.sql])
            if unused:
                empty[factor.sql] = unused
    return empty


def _preview(engine: DuckDBEngine, tables: Tables, schema: Schema, incomplete: Sequence[Input]) -> Preview:
    answer = iter(_row(engine.query(preview_step(tables.rows, schema, incomplete))))
    rows, groups, runs = (int(next(answer)) for _ in range(3))
    candidates = [i for i in schema.of_role("numeric", "factor") if i.table == "rows"]
    varying = frozenset(c.sql for c in candidates if next(answer))
    numbers = [i for i in schema.of_table("rows") if i.numeric]
    spread = {i.sql: _number(next(answer)) for i in numbers}
    return Preview(rows, groups, runs, varying, {k: v for k, v in spread.items() if math.isfinite(v)})


def _row(table: pa.Table) -> list[Any]:
    return [column[0].as_py() for column in table.columns]


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]
