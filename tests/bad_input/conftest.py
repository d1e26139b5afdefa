"""A small table that fits well, to be spoilt by each test, and a check of errors' content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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
                ((i * 104729) % 997) / 997.0 AS z, ['a', 'b', 'c'][i % 3 + 1] AS f, i % 2 = 0 AS flag,
                2 + ((i * 7919) % 1009) / 1009.0 + ((i // 10) * 31 % 17) / 10.0 + ((i * 15485863) % 1013) / 1013.0 AS y
            FROM range(120) r(i);
            CREATE TABLE upper AS
            SELECT range AS g, range * 3 % 7 / 2 AS w, ['p', 'q'][range % 2 + 1] AS k FROM range(12);
            """
        )
        yield con


Refuse = Callable[..., str]


@pytest.fixture
def refuse(con: duckdb.DuckDBPyConnection) -> Refuse:
    """Fit, expect this error with all these parts in its message, return the message."""

    def check(error: type[mlsql.MlsqlError], parts: list[str], formula: str, data: Any = "t", **named: Any) -> str:
        with pytest.raises(error) as caught:
            mlsql.fit(formula, data, **({"con": con} | named))
        # the error itself, not a relative
        assert caught.type is error
        message = str(caught.value)
        assert [p for p in parts if p not in message] == [], message
        return message

    return check
