"""What is defined for models with one grouping factor refuses the others by its own name."""

from __future__ import annotations

from mlsql.errors import FitError
from mlsql.results.estimates import Estimates


def require_one_factor(estimates: Estimates, what: str, instead: str | None = None) -> None:
    """Refuse a model with several grouping factors, or whose groups come from a membership table.

    Parameters
    ----------
    estimates : Estimates
    what : str
        The method that was called, with its verb.
    instead : str, optional
        What the user can do.

    Raises
    ------
    FitError
    """
    if estimates.levels is None:
        return
    factors = estimates.design.spec.factors
    if len(factors) > 1:
        found = f"one grouping factor; the model has {len(factors)}: {estimates.design.spec.group}"
    else:
        found = f"groups that each row has one of; {factors[0].name} is a membership, of which a row may have several"
    raise FitError(f"{what} for models with {found}" + (f"; {instead}" if instead else ""))
