"""Frames that begin with the points at which something was computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlsql.results.points import Points

if TYPE_CHECKING:
    import polars as pl


def points_frame(points: Points, columns: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """A frame that begins with the points; a predictor called like a result is shown as `at_<name>`."""
    taken = {*(before or {}), *columns}
    shown = [f"at_{v.name}" if v.name in taken else v.name for v in points.variables]
    return plain_frame({**(before or {}), **dict(zip(shown, points.values, strict=True)), **columns})


def plain_frame(columns: Mapping[str, Any], types: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """A frame with null in place of nan."""
    import polars as pl

    return pl.DataFrame(columns, schema_overrides=types).with_columns(pl.selectors.float().fill_nan(None))
