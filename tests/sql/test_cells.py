"""The cells query: which sums it has, and that it scans the rows no more often than it must."""

from __future__ import annotations

import duckdb
import pytest
from sqlglot import exp

import mlsql
from mlsql.design.cells import cell_layout
from mlsql.sql.cell_rows import failure_query
from mlsql.sql.cells import cells_step


def answer(
    con: duckdb.DuckDBPyConnection, formula: str, weights: str | None = None
) -> dict[str, list[tuple[object, ...]]]:
    layout = cell_layout(mlsql.parse_model(formula, weights=weights), level2=False)
    step = cells_step(layout, exp.Table(this=exp.to_identifier("t", quoted=True)), None, ("call", None))
    found: dict[str, list[tuple[object, ...]]] = {}
    for row in con.execute(step.sql).fetchall():
        found.setdefault(row[0], []).append(row)
    return found


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute(
        """CREATE TABLE t AS
        SELECT i % 3 AS g, i * 1.0::DOUBLE AS x, chr((97 + i % 2)::INTEGER) AS s, -i AS y FROM range(12) r(i)"""
    )
    return con


def test_products_are_summed_once(con: duckdb.DuckDBPyConnection) -> None:
    layout = cell_layout(mlsql.parse_model("y ~ a*b + (1 | g)"), level2=False)
    assert len(layout.products) == len(set(layout.products))
    assert ('"a"', '"b"') in layout.products
    assert ('"a"', '"a"', '"b"', '"b"') in layout.products


def test_a_group_mean_adds_no_product_of_its_own() -> None:
    plain = cell_layout(mlsql.parse_model("y ~ x + (1 | g)"), level2=False)
    with_mean = cell_layout(mlsql.parse_model("y ~ x + group_mean(x) + (1 | g)"), level2=False)
    assert with_mean.products == plain.products


def test_text_makes_cells_and_numbers_do_not(con: duckdb.DuckDBPyConnection) -> None:
    assert len(answer(con, "y ~ x + (1 | g)")["cell"]) == 3
    assert len(answer(con, "y ~ s + (1 | g)")["cell"]) == 6
    assert len(answer(con, "y ~ C(x) + (1 | g)")["cell"]) == 12


def test_complete_rows_are_not_surveyed(con: duckdb.DuckDBPyConnection) -> None:
    assert "survey" not in answer(con, "y ~ x + (1 | g)")
    con.execute("UPDATE t SET x = NULL WHERE x = 3")
    found = answer(con, "y ~ x + (1 | g)")["survey"][0][4]
    assert isinstance(found, list)
    # outcome, key, predictor; six facts each
    assert [found[0], found[6], found[12]] == [12, 12, 11]


@pytest.mark.parametrize(("shift", "scanned"), [(0.0, False), (5.0, True)])
def test_ranges_are_read_only_when_the_first_rows_are_away_from_zero(
    con: duckdb.DuckDBPyConnection, shift: float, scanned: bool
) -> None:
    con.execute(f"UPDATE t SET x = x + {shift}")
    assert ("ranges" in answer(con, "y ~ x + (1 | g)")) == scanned


def test_a_missing_column_is_told_by_its_type(con: duckdb.DuckDBPyConnection) -> None:
    types = answer(con, "y ~ nosuch + (1 | g)")["types"][0][3]
    assert types == ["BIGINT", "BIGINT", '"NULL"']


def test_pivots_are_round_and_those_of_constants_exact(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("ALTER TABLE t ADD COLUMN c DOUBLE DEFAULT 0.1")
    pivots = answer(con, "y ~ x + c + (1 | g)")["pivots"][0][4]
    # mean -5.5 and 5.5, spread 11 / 4; rounded to whole numbers, halves away from zero
    assert pivots == [-6.0, 6.0, 0.1]


def test_weights_add_their_sums(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("ALTER TABLE t ADD COLUMN w DOUBLE DEFAULT 2")
    sums = answer(con, "y ~ x + (1 | g)", "w")["cell"][0][4]
    assert isinstance(sums, list)
    assert sums[:2] == [4.0, 8.0]
    assert sums[3] == 2.0


def test_the_call_is_repeated_and_a_failure_is_a_row_of_the_same_type(con: duckdb.DuckDBPyConnection) -> None:
    assert answer(con, "y ~ x + (1 | g)")["call"][0][3] == ["call", None]
    failed = con.execute(failure_query("it's wrong")).fetchall()
    assert failed == [("error", 0, None, ["it's wrong"], None)]


def test_the_level2_table_is_joined_by_hashing(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE TABLE u AS SELECT i::INTEGER AS g, i AS z FROM range(3) r(i)")
    layout = cell_layout(mlsql.parse_model("y ~ x + z + (1 | g)"), level2=True)
    tables = [exp.Table(this=exp.to_identifier(label, quoted=True)) for label in "tu"]
    plan = con.execute("EXPLAIN (FORMAT json) " + cells_step(layout, tables[0], tables[1]).sql).fetchall()[0][1]
    assert "HASH_JOIN" in plan
