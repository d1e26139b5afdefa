"""A small database whose content is exact arithmetic, so that every engine version gives the same SQL."""

from __future__ import annotations

import duckdb
import pytest


@pytest.fixture(scope="session")
def con() -> duckdb.DuckDBPyConnection:
    """pupils: 180 rows in 15 schools, complete but for `income`; schools: one row each; mixed: the rows shuffled."""
    con = duckdb.connect()
    con.execute(
        """
        CREATE TABLE pupils AS SELECT
            i // 12 AS school, i // 60 AS country, 2010 + i % 5 AS year,
            ((i * 37) % 101) / 8.0 AS ses, i % 2 AS female, ['b', 'a', 'c'][i % 3 + 1] AS track,
            CASE WHEN i % 9 > 0 THEN 1000.0 * ((i * 53) % 89) END AS income,
            1 + (i * 29) % 4 AS weight, (i // 12) % 2 AS sector,
            12 + ((i * 71) % 113) / 16.0 + ((i // 12) * 7 % 5) / 4.0 AS math
        FROM range(180) r(i);
        CREATE TABLE schools AS SELECT
            range AS school, 400 + range * 61 % 700 AS size, ['urban', 'rural'][range % 2 + 1] AS area
        FROM range(14);
        CREATE TABLE large AS SELECT p.* FROM pupils p, range(2300) ORDER BY (p.school * 7 + range) % 2300;
        """
    )
    return con
