"""Conditional slopes of a predictor that interacts with others, and where they differ from zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from mlsql._arrays import Array
from mlsql.design.columns import Column, Variable
from mlsql.inference.reference import Reference
from mlsql.results.points import Points


def slope_contrasts(columns: tuple[Column, ...], predictor: Variable, moderators: Points) -> Array:
    """(m, p) contrasts: the derivative of x'beta in the predictor, the other variables at the points."""
    L = np.zeros((moderators.values.shape[1], len(columns)))
    for f, column in enumerate(columns):
        if predictor in column.variables:
            rest = list(column.variables)
            rest.remove(predictor)
            times = column.variables.count(predictor)
            L[:, f] = moderators.product(rest) * times
    return L


@dataclass(frozen=True, slots=True)
class Region:
    """Where a slope that is linear in a moderator differs from zero (Johnson & Neyman 1936; Bauer & Curran 2005).

    Attributes
    ----------
    significant : str
        "outside" or "between" low and high, "everywhere", "nowhere".
    low, high : float
        nan for the last two.
    crossover : float
        Where the slope itself is zero; nan when it does not change.
    """

    significant: str
    low: float
    high: float
    crossover: float


def johnson_neyman(beta: Array, reference: Reference, contrasts: Callable[[float], Array], level: float) -> Region:
    """Solve (l0 + w l1)'beta = +-t se, a quadratic in w.

    Parameters
    ----------
    beta : (p,)
    reference : Reference
    contrasts : callable
        Moderator to the (p,) contrast of the slope: linear.
    level : float
        One minus the level of the test.
    """
    l0 = contrasts(0.0)
    l1 = contrasts(1.0) - l0
    V = reference.covariance
    e0, e1 = float(l0 @ beta), float(l1 @ beta)
    v00, v01, v11 = float(l0 @ V @ l0), float(l0 @ V @ l1), float(l1 @ V @ l1)
    crossover = -e0 / e1 if e1 else float("nan")

    def t(w: float) -> float:
        return float(stdtrit(reference.df((l0 + w * l1)[None])[0], 0.5 + level / 2.0))

    def roots(quantile: float) -> tuple[float, float] | None:
        a, b, c = e1**2 - quantile**2 * v11, 2.0 * (e0 * e1 - quantile**2 * v01), e0**2 - quantile**2 * v00
        below = b * b - 4.0 * a * c
        if below < 0.0 or a == 0.0:
            return None
        half = -0.5 * (b + np.copysign(np.sqrt(below), b))
        first, second = half / a, (c / half if half else 0.0)
        return min(first, second), max(first, second)

    start = roots(t(crossover if np.isfinite(crossover) else 0.0))
    if start is None:
        inside = e0**2 > t(0.0) ** 2 * v00
        return Region("everywhere" if inside else "nowhere", float("nan"), float("nan"), crossover)
    # degrees of freedom may move with w: a few rounds settle the quantile at each root
    ends = list(start)
    for side in (0, 1):
        for _ in range(20):
            again = roots(t(ends[side]))
            if again is None or abs(again[side] - ends[side]) <= 1e-12 * max(abs(ends[side]), 1.0):
                break
            ends[side] = again[side]
    low, high = ends
    middle = 0.5 * (low + high)
    contrast = l0 + middle * l1
    within = (contrast @ beta) ** 2 > t(middle) ** 2 * float(contrast @ V @ contrast)
    return Region("between" if within else "outside", low, high, crossover)
