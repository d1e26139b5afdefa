"""Variance components that are none, given to `evaluate`."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pytest

import mlsql

SLOPES = "y ~ x + (x | g)"


def evaluate(con: duckdb.DuckDBPyConnection, T: Any, sigma2: Any = 0.1, formula: str = SLOPES) -> mlsql.Fit:
    return mlsql.evaluate(formula, "t", con=con, T=T, sigma2=sigma2)


@pytest.mark.parametrize(
    ("T", "shape"),
    [
        (1.0, "(1, 1)"),
        ([1.0, 1.0], "(1, 2)"),
        (np.eye(3), "(3, 3)"),
        (np.ones((2, 3)), "(2, 3)"),
        (np.ones((1, 2, 2)), "(1, 2, 2)"),
        ([[]], "(1, 0)"),
    ],
)
def test_wrong_shapes(con: duckdb.DuckDBPyConnection, T: Any, shape: str) -> None:
    with pytest.raises(mlsql.FitError) as caught:
        evaluate(con, T)
    assert f"T has shape {shape}, but the model has 2 random coefficients: it must be (2, 2)" in str(caught.value)


@pytest.mark.parametrize("T", [[[1.0, 2.0], [3.0]], "abc", [["a", 0], [0, 1]], None, {}])
def test_what_is_no_matrix(con: duckdb.DuckDBPyConnection, T: Any) -> None:
    with pytest.raises(mlsql.FitError, match="T"):
        evaluate(con, T)


@pytest.mark.parametrize(
    ("T", "problem"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "negative eigenvalue; a correlation is beyond"),
        ([[-1.0, 0.0], [0.0, 1.0]], "negative eigenvalue"),
        ([[1.0, 0.0], [0.0, -1e-3]], "negative eigenvalue"),
        ([[1.0, 0.5], [0.4, 1.0]], "T must be symmetric and finite"),
        ([[float("nan"), 0.0], [0.0, 1.0]], "T must be symmetric and finite"),
        ([[float("inf"), 0.0], [0.0, 1.0]], "T must be symmetric and finite"),
    ],
)
def test_what_is_no_covariance_matrix(con: duckdb.DuckDBPyConnection, T: Any, problem: str) -> None:
    with pytest.raises(mlsql.FitError, match=problem):
        evaluate(con, T)


@pytest.mark.parametrize("T", [-1.0, [[-1.0]]])
def test_a_negative_variance(con: duckdb.DuckDBPyConnection, T: Any) -> None:
    with pytest.raises(mlsql.FitError, match="negative"):
        evaluate(con, T, formula="y ~ x + (1 | g)")


@pytest.mark.parametrize("sigma2", [0.0, -1.0, float("nan"), float("inf"), None, "a"])
def test_sigma2(con: duckdb.DuckDBPyConnection, sigma2: Any) -> None:
    with pytest.raises(mlsql.FitError, match=f"sigma2 is {sigma2}"):
        evaluate(con, np.eye(2), sigma2)


def test_covariances_between_blocks(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(
        mlsql.FitError, match=r"covariances between coefficients that the formula keeps apart with \|\|"
    ):
        evaluate(con, [[1.0, 0.5], [0.5, 1.0]], formula="y ~ x + (x || g)")
    apart = evaluate(con, [[1.0, 0.0], [0.0, 1.0]], formula="y ~ x + (x || g)")
    together = evaluate(con, [[1.0, 0.0], [0.0, 1.0]])
    assert apart.deviance == pytest.approx(together.deviance, rel=1e-10)


@pytest.mark.parametrize("T", [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
def test_singular_matrices_are_fine(con: duckdb.DuckDBPyConnection, T: Any) -> None:
    given = evaluate(con, T)
    assert np.isfinite(given.deviance)
    assert given.T.tolist() == [pytest.approx(row, abs=1e-9) for row in T]
    assert not given.converged
    assert given.singular
