"""A small database, and a fit of it with a random slope, a factor and a centred predictor."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

import mlsql


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """t: 120 rows of 12 groups; upper: one row for each group."""
    with duckdb.connect() as con:
        con.execute(
            """
            CREATE TABLE t AS SELECT i, i // 10 AS g, ((i * 7919) % 1009) / 1009.0 AS x,
                40 + ((i * 104729) % 997) / 99.7 AS z, ['a', 'b', 'c'][i % 3 + 1] AS f,
                2 + ((i * 7919) % 1009) / 1009.0 * (1 + (i // 10) % 5 / 4) + ((i // 10) * 31 % 17) / 10.0
                  + ((i * 15485863) % 1013) / 1013.0 AS y
            FROM range(120) r(i);
            CREATE TABLE upper AS SELECT range AS g, 1 + range * 3 % 7 / 2 AS w, ['p', 'q'][range % 2 + 1] AS k
            FROM range(12);
            """
        )
        yield con


@pytest.fixture
def fitted(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    return mlsql.fit("y ~ x + f + group_center(z) + (x | g)", "t", con=con)
