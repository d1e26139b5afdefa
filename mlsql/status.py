"""How a fit ended: words that a scheduler can store, each with its advice."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """Outcome of the optimisation; the value is the advice shown to the user.

    `converged` and `singular` are two facts: a singular fit is a proper optimum on the boundary of the
    parameter space, a fit that stopped early is not an optimum.
    """

    CONVERGED = "converged: the scaled gradient and the predicted decrease of the deviance are zero to rounding"
    SINGULAR = (
        "converged on the boundary: a variance is zero or a correlation is +-1, so the groups differ no more in "
        "that direction than noise explains; the fit is usable, a simpler random part describes it as well"
    )
    MAX_EVALUATIONS = (
        "stopped at the limit of evaluations before the gradient vanished: estimates are not final; rescale the "
        "predictors, simplify the random part or raise max_evaluations"
    )
    GIVEN = "evaluated at variance components given by the user; nothing was optimised"

    @property
    def label(self) -> str:
        """The word stored in result tables: `converged`, `singular`, `max_evaluations` or `given`."""
        return self.name.lower()
