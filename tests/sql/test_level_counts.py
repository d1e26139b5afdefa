"""The query that counts groups, cells and pairs: against the same counts by Polars, and without touching the data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import duckdb
import polars as pl
import pytest
import sqlglot

from mlsql.pipeline.analysis import analyse
from mlsql.pipeline.prepare import make_inputs, make_spec
from mlsql.sql.level_counts import counts_step
from mlsql.sql.plan import Step

DataFile = Callable[[str], str]


def counts(formula: str, data: object, con: Any = None) -> tuple[Step, dict[str, int]]:
    inputs = make_inputs(data, None, con)
    analysis = analyse(make_spec(formula, "REML", None, None), inputs)
    step = counts_step(analysis.design, inputs.tables)
    with inputs.engine() as engine:
        answer = engine.query(step)
    assert answer.num_rows == 1
    return step, {name: column[0].as_py() for name, column in zip(answer.column_names, answer.columns, strict=True)}


def expected(frame: pl.DataFrame, factors: list[list[str]]) -> list[int]:
    keys = list(dict.fromkeys(k for f in factors for k in f))
    found = [len(frame), frame.select(keys).n_unique(), *[frame.select(f).n_unique() for f in factors]]
    for a, b in combinations(factors, 2):
        pairs = frame.select(list(dict.fromkeys([*a, *b]))).unique()
        found.append(len(pairs))
        found += [int((pairs.group_by(f).len()["len"].cast(pl.Int64) ** 2).sum()) for f in (a, b)]
    return found


@pytest.mark.parametrize(
    ("formula", "data", "factors"),
    [
        ("y ~ 1 + (1 | s) + (1 | d) + (1 | dept:service)", "insteval", [["s"], ["d"], ["dept", "service"]]),
        ("math ~ year + (year | schoolid/childid)", "egsingle", [["schoolid"], ["schoolid", "childid"]]),
        ("Yield ~ 1 + (1 | Batch)", "dyestuff", [["Batch"]]),
    ],
)
def test_counts(data_file: DataFile, formula: str, data: str, factors: list[list[str]]) -> None:
    _, found = counts(formula, data_file(data))
    assert list(found.values()) == expected(pl.read_parquet(data_file(data)), factors)
    assert all(isinstance(value, int) for value in found.values())


def test_columns_are_named_by_what_they_count(data_file: DataFile) -> None:
    _, found = counts("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    assert found == {
        "rows": 144,
        "cells": 144,
        "groups of plate": 24,
        "groups of sample": 6,
        "pairs of plate and sample": 144,
        "met by plate, squared: plate and sample": 864,
        "met by sample, squared: plate and sample": 3456,
    }


def test_only_complete_rows_count_and_names_do_not_clash() -> None:
    con = duckdb.connect()
    con.execute(
        """
        CREATE TABLE t AS SELECT CASE WHEN i % 5 > 0 THEN (i * 7919) % 1009 / 1009.0 END AS y,
            i % 7 AS n, (i // 7) % 6 AS "met", CASE WHEN i >= 20 THEN i % 3 END AS "ROWS"
        FROM range(300) r(i)
        """
    )
    _, found = counts("y ~ 1 + (1 | n) + (1 | `met`) + (1 | `ROWS`)", "t", con)
    kept = con.sql('FROM t WHERE y IS NOT NULL AND "ROWS" IS NOT NULL').pl()
    assert list(found.values()) == expected(kept, [["n"], ["met"], ["ROWS"]])


def test_the_statement_is_plain_sql_of_one_scan(data_file: DataFile) -> None:
    step, _ = counts("y ~ 1 + (1 | s) + (1 | d) + (1 | dept:service)", data_file("insteval"))
    assert step.name == "counts"
    assert step.sql.count("READ_PARQUET") == 1
    assert sqlglot.parse_one(step.sql, dialect="duckdb") is not None
