"""Numbers and columns of the text reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlsql.results.measures import correlation

DF_RULES = {
    "hlm": "by HLM's rule",
    "between_within": "between and within groups",
    "residual": "residual",
    "satterthwaite": "by Satterthwaite",
    "kenward_roger": "by Kenward and Roger, with their standard errors",
    "normal": "infinite (normal)",
}
"""How degrees of freedom were found, by method."""


def df_text(value: float) -> str:
    """Whole numbers as such, others to a tenth."""
    if not np.isfinite(value):
        return "inf"
    return f"{value:.0f}" if abs(value - round(value)) < 1e-6 else f"{value:.1f}"


def correlation_text(T: np.ndarray, a: int, b: int) -> str:
    """Correlation of two coefficients; that of one with itself is 1 where it varies."""
    value = 1.0 if a == b and T[a, a] > 0 else correlation(T, a, b)
    return fixed_point(value, 3)


def number(value: float) -> str:
    """Five decimals, or six digits for values that five decimals would show as zeros or as a long string."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.5f}" if value == 0 or 1e-3 <= abs(value) < 1e7 else f"{value:.5e}"


def fixed_point(value: float, digits: int) -> str:
    """Some decimals; a dash for nan."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def p_text(value: float) -> str:
    """Three decimals, or <0.001."""
    if not np.isfinite(value):
        return "-"
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Indented rows: the first column aligned left, the others right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("    " + "  ".join(cells).rstrip())
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned right but for the first and a last one of words; rows of one cell are headings."""
    full = [header, *(r for r in rows if len(r) > 1)]
    widths = [max(len(r[i]) for r in full) for i in range(len(header))]
    words = header[-1] == "Centring"
    lines = []
    for row in [header, *rows]:
        if len(row) == 1:
            lines.append("    " + row[0])
            continue
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        if words:
            cells[-1] = row[-1]
        lines.append("    " + "  ".join(cells).rstrip())
    rule = "    " + "-" * (max(len(line) for line in lines) - 4)
    return [rule, lines[0], rule, *lines[1:], rule]
