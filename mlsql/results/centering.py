"""How each predictor was centred, in words printed beside its estimate."""

from __future__ import annotations

from mlsql.design.columns import Column, Variable
from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates


def centering_notes(estimates: Estimates) -> list[str]:
    """One note per fixed effect; empty for an intercept and for indicators left as they are."""
    shifts = Shifts(estimates.design, estimates.moments)
    return [_note(column, shifts) for column in estimates.design.fixed.columns]


def _note(column: Column, shifts: Shifts) -> str:
    return "; ".join(_variable_note(v, shifts, len(column.variables) > 1) for v in column.variables)


def _variable_note(variable: Variable, shifts: Shifts, named: bool) -> str:
    if variable.centering == "group":
        note = "group mean"
    elif variable.centering == "grand":
        note = f"grand mean {shifts.grand_mean(variable):.6g}"
    else:
        note = "none"
    return f"{variable.name}: {note}" if named else note
