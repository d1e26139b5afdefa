"""Newton's method with a trust region, for a handful of parameters and exact derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array

Objective = Callable[[Array], tuple[float, Array, Array]]
"""theta to (value, gradient (k,), hessian (k, k))."""

DECREASE = 1e-10
"""Converged when the decrease that a further step promises is below this: in units of -2 log likelihood, so that
estimates are within 1e-5 of a standard error of the optimum."""

ROUNDING = 1e-14
"""Relative rounding error of the objective: smaller changes cannot be judged."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """One evaluation: the value, the decrease promised by the next step, and whether the point was accepted."""

    value: float
    promised: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where the search ended.

    Attributes
    ----------
    theta : (k,)
    value : float
    promised : float
        Decrease that a further Newton step promises: a gradient scaled by the curvature.
    converged : bool
    trace : tuple of Iteration
    """

    theta: Array
    value: float
    promised: float
    converged: bool
    trace: tuple[Iteration, ...]


def minimise(objective: Objective, start: Array, *, max_evaluations: int) -> Minimum:
    """Minimise a smooth function.

    1. Evaluate value, gradient and Hessian.
    2. Solve the trust-region problem exactly by eigenvalues (More & Sorensen 1983).
    3. Stop when the promised decrease vanishes and the Hessian has no negative curvature.
    4. Try the step; accept it when it lowers the value; widen or narrow the region by how well the promise was kept.

    Parameters
    ----------
    objective : callable
    start : (k,)
    max_evaluations : int

    Examples
    --------
    >>> import numpy as np
    >>> bowl = lambda t: (float(t @ t), 2 * t, 2 * np.eye(2))
    >>> minimise(bowl, np.array([3.0, 4.0]), max_evaluations=20).converged
    True
    """
    theta = np.asarray(start, dtype=np.float64)
    # 1
    value, gradient, hessian = objective(theta)
    radius = max(1.0, float(np.linalg.norm(theta)))
    trace = [Iteration(value, np.inf, True)]
    while True:
        # 2
        step, promised = trust_region_step(gradient, hessian, radius)
        trace[-1] = Iteration(trace[-1].value, promised, trace[-1].accepted)
        # 3
        noise = ROUNDING * abs(value)
        if promised <= max(DECREASE, noise):
            return Minimum(theta, value, promised, True, tuple(trace))
        if len(trace) >= max_evaluations:
            return Minimum(theta, value, promised, False, tuple(trace))
        # 4
        trial = theta + step
        trial_value, trial_gradient, trial_hessian = objective(trial)
        kept = (value - trial_value + noise) / promised
        accepted = kept > 1e-4
        trace.append(Iteration(trial_value, promised, accepted))
        length = float(np.linalg.norm(step))
        if kept < 0.25:
            radius = 0.25 * length
        elif kept > 0.75:
            radius = max(radius, 2.5 * length)
        if accepted:
            theta, value, gradient, hessian = trial, trial_value, trial_gradient, trial_hessian


def trust_region_step(gradient: Array, hessian: Array, radius: float) -> tuple[Array, float]:
    """The minimiser of the quadratic model within a ball, and the decrease that it promises."""
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient
    floor = 1e-12 * max(1.0, float(np.abs(values).max()))
    if values[0] > floor:
        step = -g / values
        if np.linalg.norm(step) <= radius:
            return vectors @ step, _promise(g, values, step)
    shift = _shift(g, values, radius, floor)
    step = -g / (values + shift)
    missing = radius**2 - float(step @ step)
    if values[0] < -floor and missing > 1e-8 * radius**2:
        # the gradient has nothing along the direction of negative curvature: follow it to the edge
        step[0] += np.copysign(np.sqrt(missing), -g[0] if g[0] != 0 else 1.0)
    return vectors @ step, _promise(g, values, step)


def _shift(g: Array, values: Array, radius: float, floor: float) -> float:
    """The multiplier that puts the step on the ball's surface, by bisection on its logarithm."""
    low = max(0.0, -float(values[0])) + floor
    if np.linalg.norm(g / (values + low)) <= radius:
        return low
    high = low + float(np.linalg.norm(g)) / radius + float(np.abs(values).max())
    for _ in range(100):
        middle = np.sqrt(low * high)
        if np.linalg.norm(g / (values + middle)) > radius:
            low = middle
        else:
            high = middle
    return float(high)


def _promise(g: Array, values: Array, step: Array) -> float:
    return -float(g @ step + 0.5 * (values * step) @ step)
