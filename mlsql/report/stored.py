"""A stored fit as text, from the rows of its result tables: no data, no moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def listed(fits: Sequence[Row]) -> str:
    """One line per fit, the latest first.

    Parameters
    ----------
    fits : sequence of mapping
        Rows of the table of fits.
    """
    if not fits:
        return "No fits are stored."
    header = ["fit_id", "rows", "groups", "deviance", "status", "written at", "source", "formula"]
    ordered = sorted(fits, key=lambda f: (str(f.get("written_at") or ""), str(f["fit_id"])), reverse=True)
    rows = [
        [
            str(f["fit_id"]),
            _count(f.get("n_rows")),
            _count(f.get("n_groups")),
            _number(f.get("deviance"), 3),
            _text(f.get("status")),
            _when(f),
            _text(f.get("source")),
            _text(f.get("formula")),
        ]
        for f in ordered
    ]
    return "\n".join(_aligned([header, *rows], right={1, 2, 3}))


def shown(fit: Row, fixed: Sequence[Row], components: Sequence[Row]) -> str:
    """Heading, fixed effects, variance components, statistics and warnings of one fit.

    Parameters
    ----------
    fit : mapping
        Its row of the table of fits.
    fixed, components : sequence of mapping
        Its rows of the tables of fixed effects and variance components.
    """
    sections = [_heading(fit, components), _fixed(fixed), _components(components), _statistics(fit)]
    warnings = _text(fit.get("warnings"))
    if warnings not in ("", "-"):
        sections.append("\n".join(["Notes", *(f"    {w}" for w in warnings.splitlines())]))
    return "\n\n".join(sections)


def _heading(fit: Row, components: Sequence[Row]) -> str:
    factors = dict.fromkeys(str(row.get("group")) for row in components if row.get("term1") is not None)
    groups = f"Level 2    {_count(fit.get('n_groups'))} groups of {_text(fit.get('group'))}"
    if len(factors) > 1 or fit.get("n_groups") is None:
        # one number cannot say how many groups there are
        groups = f"Factors    {', '.join(factors) or _text(fit.get('group'))}"
    return "\n".join(
        [
            f"Stored fit {fit['fit_id']}",
            f"Model      {_text(fit.get('formula'))}",
            f"Data       {_text(fit.get('source'))}",
            f"Level 1    {_count(fit.get('n_rows'))} rows",
            groups,
            f"Method     {_text(fit.get('method'))}; {_ending(fit)}",
            f"Written    {_when(fit)} by mlsql {_text(fit.get('mlsql_version'))}",
        ]
    )


def _ending(fit: Row) -> str:
    if fit.get("status") == "given":
        return "variance components given, not estimated"
    return f"{_text(fit.get('status'))} after {_count(fit.get('evaluations'))} evaluations"


def _fixed(rows: Sequence[Row]) -> str:
    header = ["Fixed effect", "Coefficient", "Std. error", "t ratio", "d.f.", "p value", "Robust s.e.", "Centring"]
    cells = [
        [
            _text(row.get("term")),
            _number(row.get("estimate")),
            _number(row.get("std_error")),
            _number(row.get("statistic"), 3),
            _degrees(row.get("df")),
            _p(row.get("p_value")),
            _number(row.get("robust_std_error")),
            _text(row.get("centering")),
        ]
        for row in rows
    ]
    lines = ["Fixed effects", *(f"    {line}" for line in _aligned([header, *cells], right=set(range(1, 7))))]
    notes = dict.fromkeys(str(row["note"]) for row in rows if row.get("note"))
    return "\n".join([*lines, *(f"    {n}" for n in notes)])


def _components(rows: Sequence[Row]) -> str:
    header = ["Variance component", "Estimate", "Sd or corr.", "Std. error", "d.f.", "Chi-square", "p value"]
    cells = [
        [
            _component(row),
            _number(row.get("estimate")),
            _number(row.get("sd_or_corr")),
            _number(row.get("std_error")),
            _count(row.get("df")),
            _number(row.get("chi2")),
            _p(row.get("p_value")),
        ]
        for row in rows
    ]
    lines = _aligned([header, *cells], right=set(range(1, 7)))
    return "\n".join(["Variance components", *(f"    {line}" for line in lines)])


def _component(row: Row) -> str:
    terms = [str(row[t]) for t in ("term1", "term2") if row.get(t) is not None]
    return "level 1" if not terms else f"{_text(row.get('group'))}: {', '.join(terms)}"


def _statistics(fit: Row) -> str:
    return "\n".join(
        [
            "Statistics of the model",
            f"    Deviance = {_number(fit.get('deviance'), 6)}",
            f"    AIC = {_number(fit.get('aic'), 3)}, BIC = {_number(fit.get('bic'), 3)}, "
            f"{_count(fit.get('n_parameters'))} parameters",
            f"    Sigma squared = {_number(fit.get('sigma2'))}",
            *([f"    Intraclass correlation = {_number(fit['icc'])}"] if fit.get("icc") is not None else []),
        ]
    )


def _degrees(value: Any) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if math.isinf(value) or float(value).is_integer() else f"{value:.1f}"


def _number(value: Any, digits: int = 5) -> str:
    """So many decimals, or six digits for values that five decimals would show as zeros or as a long string."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" if value == 0 or 1e-3 <= abs(value) < 1e7 else f"{value:.5e}"


def _p(value: Any) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def _count(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _when(fit: Row) -> str:
    """The time of writing, which comes in UTC, to the second."""
    written = fit.get("written_at")
    return "-" if written is None else f"{written:%Y-%m-%d %H:%M:%S} UTC"


def _aligned(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
