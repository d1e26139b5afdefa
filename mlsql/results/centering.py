"""How each predictor was centred, in words printed beside its estimate, and the means behind it."""

from __future__ import annotations

from mlsql._arrays import Array
from mlsql.design.columns import Column, Variable
from mlsql.moments.incidence import Incidence
from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates


def centering_notes(estimates: Estimates) -> list[str]:
    """One note per fixed effect; empty for an intercept and for indicators left as they are."""
    shifts = Shifts(estimates.design, estimates.moments)
    return [_note(column, shifts) for column in estimates.design.fixed.columns]


def factor_means(estimates: Estimates, variable: Variable, of: Incidence | None) -> Array:
    """(J,) unweighted means behind a mean or a deviation within groups, on the user's scale.

    Parameters
    ----------
    estimates : Estimates
    variable : Variable
    of : Incidence or None
        The groups of the variable's factor, in the order that is wanted; None for a two-level model.
    """
    means = Shifts(estimates.design, estimates.moments).group_mean(variable) + variable.pivot
    once = means if of is None else of.constant(means)
    assert once is not None
    return once


def _note(column: Column, shifts: Shifts) -> str:
    return "; ".join(_variable_note(v, shifts, len(column.variables) > 1) for v in column.variables)


def _variable_note(variable: Variable, shifts: Shifts, named: bool) -> str:
    if variable.centering == "group":
        note = "group mean" if variable.group is None else f"mean of {variable.group}"
    elif variable.centering == "grand":
        note = f"grand mean {shifts.grand_mean(variable):.6g}"
    else:
        note = "none"
    return f"{variable.name}: {note}" if named else note
