"""Databases with the SQL functions: an empty one, and one with a stored fit and rows to score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl
import pytest

import mlsql
from mlsql.surfaces.macros import install_macros

SES = "group_center(ses)"


@pytest.fixture(scope="package")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database with the functions; High School & Beyond is there as hsb."""
    with duckdb.connect() as connection:
        install_macros(connection)
        connection.from_parquet(mlsql.example_data("hsb")).create_view("hsb")
        yield connection


@dataclass(frozen=True)
class Stored:
    """A database file that holds a fit, the functions, and the fit's rows as `lines`, the form that ml_score reads.

    `predicted` has the rows with what `Fit.predict` says of them.
    """

    path: Path
    fit: mlsql.Fit
    fit_id: str
    predicted: pl.DataFrame


@pytest.fixture(scope="package")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    fit = mlsql.fit(f"mathach ~ sector + meanses + {SES} + ({SES} | school)", mlsql.example_data("hsb"))
    scored = fit.predict()
    assert scored is not None
    predicted = scored.with_row_index("row_id")
    centred = pl.col("ses") - pl.col("ses").mean().over("school")
    values = [pl.col("sector").cast(pl.Float64), pl.col("meanses"), centred.alias(SES)]
    wide = predicted.select("row_id", pl.col("school").cast(pl.String).alias("key"), *values)
    lines = wide.unpivot(["sector", "meanses", SES], index=["row_id", "key"], variable_name="term")
    path = tmp_path_factory.mktemp("stored") / "results.duckdb"
    with duckdb.connect(str(path)) as connection:
        fit_id = fit.to_tables(connection)
        install_macros(connection)
        for name, frame in {"lines": lines, "predicted": predicted}.items():
            connection.register("given", frame)
            connection.execute(f"CREATE TABLE {name} AS FROM given")
            connection.unregister("given")
    return Stored(path, fit, fit_id, predicted)
