"""Simple regressions of group effects on candidates: against least squares, with missing and constant values."""

from __future__ import annotations

import numpy as np
import pytest

from mlsql.diagnostics.enter import simple_regressions

RNG = np.random.default_rng(8)
Y = RNG.normal(size=(2, 60))
# far from zero: deviations keep their digits
X = np.array([RNG.normal(size=60), 1e6 + RNG.integers(0, 4, 60)])


def test_against_least_squares() -> None:
    found = simple_regressions(Y, X)
    for a in range(2):
        for b in range(2):
            design = np.column_stack([np.ones(60), X[b] - X[b].mean()])
            inverse = np.linalg.inv(design.T @ design)
            beta = inverse @ design.T @ Y[a]
            rest = Y[a] - design @ beta
            error = np.sqrt(rest @ rest / 58 * inverse[1, 1])
            assert found.coefficient[a, b] == pytest.approx(beta[1], rel=1e-9)
            assert found.std_error[a, b] == pytest.approx(error, rel=1e-9)
            assert found.t[a, b] == pytest.approx(beta[1] / error, rel=1e-9)
            assert found.correlation[a, b] == pytest.approx(np.corrcoef(Y[a], X[b])[0, 1], rel=1e-9)
    assert (found.groups == 60).all()


def test_missing_values_on_either_side() -> None:
    y, x = Y.copy(), X.copy()
    y[0, :10], x[0, 5:20] = np.nan, np.nan
    found, kept = simple_regressions(y, x), simple_regressions(Y[:1, 20:], X[:1, 20:])
    assert found.groups.tolist() == [[40, 50], [45, 60]]
    assert found.coefficient[0, 0] == pytest.approx(kept.coefficient[0, 0], rel=1e-12)
    assert found.std_error[0, 0] == pytest.approx(kept.std_error[0, 0], rel=1e-12)


def test_nothing_to_regress() -> None:
    constant = np.full((1, 60), 0.1)
    few = np.full((1, 60), np.nan)
    few[0, :2] = 1.0, 2.0
    for found in (
        simple_regressions(Y, constant),
        simple_regressions(constant, X),
        simple_regressions(np.zeros((1, 60)), X),
        simple_regressions(Y, few),
    ):
        assert np.isnan(found.coefficient).all()
        assert np.isnan(found.std_error).all()
        assert np.isnan(found.t).all()
        assert np.isnan(found.correlation).all()
