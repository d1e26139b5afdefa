"""Result tables in a database, keyed by fit, written in one transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import duckdb

from mlsql.engine.write import TableRows, replace_rows
from mlsql.errors import StoreError
from mlsql.report import tables
from mlsql.results.estimates import Estimates
from mlsql.version import package_version

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


def fit_identifier(estimates: Estimates, source: str) -> str:
    """Sixteen hexadecimal digits of the model, the data's name and its size."""
    spec, stats = estimates.design.spec, estimates.statistics
    weights = None if spec.weights is None else spec.weights.sql
    numbers = [estimates.deviance, *estimates.moments.pooled.diagonal()]
    parts = [spec.formula, spec.method, weights, source, stats.n_rows, stats.n_groups, [f"{x:.7e}" for x in numbers]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def write_tables(
    estimates: Estimates,
    source: str,
    warnings: Sequence[str],
    con: duckdb.DuckDBPyConnection,
    prefix: str,
    fixed_effects: pl.DataFrame,
) -> str:
    """See `Fit.to_tables`."""
    if not isinstance(con, duckdb.DuckDBPyConnection):
        raise StoreError(
            f"con is a {type(con).__name__}; pass an open DuckDB connection: duckdb.connect('results.duckdb')"
        )
    fit_id = fit_identifier(estimates, source)
    frames = {
        "fits": _fits(estimates, source, warnings),
        "fixed_effects": fixed_effects,
        "variance_components": tables.variance_components_table(estimates),
        "group_effects": _keyed(estimates, tables.group_effects_table(estimates)),
    }
    replace_rows(con, fit_id, [TableRows(prefix + label, _rows(fit_id, frame)) for label, frame in frames.items()])
    return fit_id


def _rows(fit_id: str, frame: pl.DataFrame) -> pa.Table:
    import polars as pl

    return frame.select(pl.lit(fit_id).alias("fit_id"), pl.all()).to_arrow()


def _fits(estimates: Estimates, source: str, warnings: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    return tables.fit_statistics_table(estimates).with_columns(
        pl.lit(source).alias("source"),
        pl.lit(estimates.design.spec.group).alias("group"),
        pl.lit("\n".join(warnings)).alias("warnings"),
        pl.lit(package_version()).alias("mlsql_version"),
        pl.lit(datetime.now(tz=UTC)).alias("written_at"),
    )


def _keyed(estimates: Estimates, frame: pl.DataFrame) -> pl.DataFrame:
    """One text column `key` in place of the typed key columns, so that all fits share a table.

    A composite key is a JSON list of its parts: `["DE", "17"]`.
    """
    import polars as pl

    names = [c for c in frame.columns if c not in tables.EFFECT_COLUMNS]
    parts = frame.select([pl.col(n).cast(pl.String) for n in names])
    if len(names) == 1:
        key = parts.to_series()
    else:
        key = pl.Series([json.dumps(list(row), ensure_ascii=False) for row in parts.iter_rows()], dtype=pl.String)
    group = pl.lit(estimates.design.spec.group).alias("group")
    return frame.select(group, key.alias("key"), pl.exclude(names))
