"""Fits of the example data that several modules look at."""

from __future__ import annotations

import duckdb
import pytest

import mlsql

FULL = "mathach ~ sector*group_center(ses) + meanses*group_center(ses) + (group_center(ses) | school)"


@pytest.fixture(scope="session")
def con() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute(f"CREATE TABLE hsb AS FROM '{mlsql.example_data('hsb')}'")
    return con


@pytest.fixture(scope="session")
def full(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    """Intercepts and slopes as outcomes, REML."""
    return mlsql.fit(FULL, "hsb", con=con)


@pytest.fixture(scope="session")
def anova(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    """No predictor."""
    return mlsql.fit("mathach ~ 1 + (1 | school)", "hsb", con=con)
