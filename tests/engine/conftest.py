"""One small data set in every shape that the package reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

ROWS = """
    SELECT i, i // 10 AS g, ((i * 7919) % 1009) / 1009.0 AS x, ['a', 'b', 'c'][i % 3 + 1] AS f,
        2 + ((i * 7919) % 1009) / 1009.0 + ((i // 10) * 31 % 17) / 10.0 + ((i * 15485863) % 1013) / 1013.0 AS y
    FROM range(120) r(i)
"""
UPPER = "SELECT range AS g, range * 3 % 7 / 2 AS w, ['p', 'q'][range % 2 + 1] AS k FROM range(12)"


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """t: 120 rows of 12 groups; upper: one row for each group."""
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE t AS {ROWS}")
        con.execute(f"CREATE TABLE upper AS {UPPER}")
        yield con


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as files."""
    folder = tmp_path_factory.mktemp("files")
    with duckdb.connect() as con:
        for name in ("t.parquet", "t.csv", "t.csv.gz"):
            con.execute(f"COPY ({ROWS}) TO '{folder / name}'")
        con.execute(f"COPY ({ROWS}) TO '{folder / 't.tsv'}' (DELIMITER '\t')")
        con.execute(f"COPY (SELECT * FROM ({ROWS}) WHERE g < 5) TO '{folder / 'part1.parquet'}'")
        con.execute(f"COPY (SELECT * FROM ({ROWS}) WHERE g >= 5) TO '{folder / 'part2.parquet'}'")
        con.execute(f"COPY ({UPPER}) TO '{folder / 'upper.parquet'}'")
        con.execute(f"COPY ({UPPER}) TO '{folder / 'upper.csv'}'")
    return folder
