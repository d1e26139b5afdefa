"""Frames as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


def frame_text(frame: pl.DataFrame) -> str:
    """Columns aligned, numbers in six digits, nulls left empty."""
    cells = [frame.columns, *([_cell(v) for v in row] for row in frame.iter_rows())]
    widths = [max(len(row[i]) for row in cells) for i in range(frame.width)]
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    lines = []
    for row in cells:
        aligned = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
