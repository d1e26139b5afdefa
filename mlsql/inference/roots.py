"""Ends of profile intervals: where the deviance has risen by a given amount."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

PRECISION = 1e-6
"""Of the root of the rise, relative to the quantile: the ends are then good to about as many digits."""


def upper_end(rise: Callable[[float], float], estimate: float, step: float, limit: float, target: float) -> float:
    """The value on one side of the estimate at which the root of the deviance's rise is `target`.

    Parameters
    ----------
    rise : callable
        Value to the deviance there minus the minimum.
    estimate : float
    step : float
        A first guess of the distance, with its sign: negative for the lower end.
    limit : float
        End of the parameter's range, which is returned when the rise is too small even there; may be infinite.
    target : float
        Normal quantile, positive.
    """
    sign = np.sign(step)

    def excess(value: float) -> float:
        return float(np.sqrt(max(rise(value), 0.0))) - target

    if np.isfinite(limit) and excess(limit) <= 0:
        return limit
    # 1. widen until the target is passed; the root of the rise is close to linear, which says how far to go
    inner, outer = estimate, estimate
    for _ in range(60):
        outer = inner + sign * abs(step)
        if np.isfinite(limit) and sign * (limit - outer) <= 0:
            outer = limit
        found = excess(outer)
        if found > 0:
            break
        reached = found + target
        inner = outer
        step = abs(outer - estimate) * float(np.clip(1.1 * target / max(reached, 1e-3) - 1.0, 0.1, 2.0))
    else:
        return float("nan")
    # 2. close in
    if abs(found) < PRECISION * target:
        return outer
    return float(brentq(excess, inner, outer, xtol=1e-12 * max(abs(outer), 1e-300), rtol=1e-8))
