"""Newton's method with a trust region: known minima, saddles, limits, the step itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mlsql.optimise.newton import DECREASE, minimise, trust_region_step

Array = NDArray[np.float64]
Value = tuple[float, Array, Array]


def bowl(t: Array) -> Value:
    """Minimum 3 at (1, -2)."""
    H = np.array([[2.0, 0.5], [0.5, 4.0]])
    d = t - np.array([1.0, -2.0])
    return 3.0 + float(d @ H @ d) / 2, H @ d, H


def rosenbrock(t: Array) -> Value:
    """Minimum 0 at (1, 1), at the end of a bent valley."""
    x, y = t
    value = (1 - x) ** 2 + 100 * (y - x * x) ** 2
    gradient = np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
    hessian = np.array([[2 - 400 * (y - 3 * x * x), -400 * x], [-400 * x, 200.0]])
    return float(value), gradient, hessian


def double_well(t: Array) -> Value:
    """Minima -1 at (+-1, 0), a saddle at the origin."""
    x, y = t
    return float(x**4 - 2 * x * x + y * y), np.array([4 * x**3 - 4 * x, 2 * y]), np.diag([12 * x * x - 4, 2.0])


def log_variance(t: Array) -> Value:
    """n log v + s / v with v = t^2: the shape of a deviance; minimum at v = s / n = 4."""
    n, s = 10.0, 40.0
    v = float(t[0] ** 2)
    slope, curvature = n / v - s / v**2, -n / v**2 + 2 * s / v**3
    return n * np.log(v) + s / v, np.array([2 * t[0] * slope]), np.array([[2 * slope + 4 * v * curvature]])


CASES = [
    (bowl, [0.0, 0.0], [1.0, -2.0], 3.0),
    (bowl, [1e4, -1e4], [1.0, -2.0], 3.0),
    (rosenbrock, [-1.2, 1.0], [1.0, 1.0], 0.0),
    (rosenbrock, [3.0, -3.0], [1.0, 1.0], 0.0),
    (double_well, [0.3, 2.0], [1.0, 0.0], -1.0),
    (double_well, [-2.0, 0.1], [-1.0, 0.0], -1.0),
    (log_variance, [0.1], [2.0], 10 * np.log(4.0) + 10),
    (log_variance, [2.5], [2.0], 10 * np.log(4.0) + 10),
]


@pytest.mark.parametrize(("objective", "start", "where", "value"), CASES)
def test_known_minima(objective, start: list[float], where: list[float], value: float) -> None:  # type: ignore[no-untyped-def]
    found = minimise(objective, np.array(start), max_evaluations=100)
    assert found.converged
    assert found.value == pytest.approx(value, abs=DECREASE)
    # the value is good to 1e-10, the place to its root times a factor for the valley's flatness
    assert found.theta == pytest.approx(np.array(where), abs=1e-4)
    assert 0 <= found.promised <= max(DECREASE, 1e-13 * abs(value))


def test_a_quadratic_takes_one_step() -> None:
    found = minimise(bowl, np.array([0.5, -1.5]), max_evaluations=100)
    assert len(found.trace) == 2


def test_a_saddle_is_no_minimum() -> None:
    found = minimise(double_well, np.array([0.0, 0.0]), max_evaluations=100)
    assert found.converged
    assert abs(found.theta[0]) == pytest.approx(1.0, abs=1e-4)


def test_the_value_never_rises() -> None:
    found = minimise(rosenbrock, np.array([-1.2, 1.0]), max_evaluations=100)
    accepted = [i.value for i in found.trace if i.accepted]
    assert accepted == sorted(accepted, reverse=True)
    assert not all(i.accepted for i in found.trace)


@pytest.mark.parametrize("limit", [2, 5])
def test_the_limit_is_kept_and_told(limit: int) -> None:
    found = minimise(rosenbrock, np.array([-1.2, 1.0]), max_evaluations=limit)
    assert not found.converged
    assert len(found.trace) == limit
    assert found.promised > DECREASE


def test_the_start_is_not_changed() -> None:
    start = np.array([-1.2, 1.0])
    minimise(rosenbrock, start, max_evaluations=100)
    assert start.tolist() == [-1.2, 1.0]


@pytest.mark.parametrize("radius", [1e-3, 0.5, 10.0])
@pytest.mark.parametrize(
    "hessian",
    [np.diag([1.0, 3.0]), np.diag([-1.0, 3.0]), np.diag([-2.0, -1.0]), np.array([[1.0, 2.0], [2.0, 1.0]])],
)
@pytest.mark.parametrize("gradient", [[1.0, -2.0], [0.0, 1.0], [0.0, 0.0]])
def test_the_step_is_the_best_within_the_ball(gradient: list[float], hessian: Array, radius: float) -> None:
    g = np.array(gradient)
    step, promised = trust_region_step(g, hessian, radius)

    def model(s: Array) -> float:
        return float(g @ s + s @ hessian @ s / 2)

    assert np.linalg.norm(step) <= radius * (1 + 1e-6)
    assert promised == pytest.approx(-model(step), abs=1e-12)
    angles = np.linspace(0, 2 * np.pi, 721)
    ball = [r * np.array([np.cos(a), np.sin(a)]) for r in (radius, radius / 2) for a in angles]
    # no point on a fine grid does better
    assert model(step) <= min(map(model, ball)) + 1e-6 * radius
