"""The n x n matrices that the engine is checked with agree with each other and with differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUMERICAL = 1e-6
"""Differences of the deviance of fourth order, steps of 1e-3."""

CURVATURE = 1e-4
"""Differences of the score of second order, steps of 1e-3."""


def test_the_variances_are_those_of_henderson_s_equations(case: Any) -> None:
    model = case.oracle.at(case.T, 1.3)
    C, start = np.diag(model.joint()), model.X.shape[1]
    for part in model.parts:
        stop = start + part.wide.shape[1]
        np.testing.assert_allclose(model.posterior(part.name).ravel(), C[start:stop], rtol=1e-9)
        assert np.all(model.conditional(part.name) <= model.posterior(part.name) * (1 + 1e-12))
        start = stop


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_derivatives_are_those_of_differences(case: Any, method: str) -> None:
    model = case.oracle.at(case.T, 1.3)
    at = model.parameters()

    def deviance(change: Array) -> float:
        return float(model.moved(at + change).deviance(method))

    steps = 1e-3 * np.eye(len(at))
    score = [-(8 * (deviance(s) - deviance(-s)) - deviance(2 * s) + deviance(-2 * s)) / 12e-3 / 2 for s in steps]
    np.testing.assert_allclose(model.score(method), score, rtol=NUMERICAL, atol=NUMERICAL)
    slopes = [(model.moved(at + s).score(method) - model.moved(at - s).score(method)) / 2e-3 for s in steps]
    own = model.observed(method)
    np.testing.assert_allclose(own, -np.array(slopes), rtol=CURVATURE, atol=CURVATURE * np.abs(own).max())


def test_membership_of_one_group_is_a_code(case: Any, part: Any) -> None:
    """Weights of zero and one are an ordinary factor."""
    for own in case.oracle.parts:
        assert np.array_equal(own.M.sum(axis=1), np.ones(len(own.M)))
        assert np.array_equal(np.eye(own.n_groups)[own.coded()], own.M)
