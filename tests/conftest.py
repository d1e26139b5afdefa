"""What several test modules share: data files, and mixed models by dense matrices to check against."""

from __future__ import annotations

import os

# before numpy loads: dense matrices of a hundred rows gain nothing from threads, and lose much on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

import mlsql

Array = NDArray[np.float64]
HERE = Path(__file__).parent

# the same examples in every run, none kept on disk; a fit takes a tenth of a second, more on a busy machine
settings.register_profile("mlsql", derandomize=True, database=None, deadline=None, max_examples=10)
settings.load_profile("mlsql")


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], str]:
    """Path of a data set by name: those of tests/data, and the package's own example."""

    def find(name: str) -> str:
        own = HERE / "data" / f"{name}.parquet"
        return str(own) if own.exists() else mlsql.example_data(name)

    return find


@pytest.fixture(scope="session")
def external_file() -> Callable[[str], str]:
    """Path of a data set that may not be copied into the project; the test is skipped where it is absent."""

    def find(name: str) -> str:
        default = HERE.parent.parent / "shared" / "reference" / "data-external"
        path = Path(os.environ.get("MLSQL_EXTERNAL_DATA", default)) / f"{name}.parquet"
        if not path.exists():
            pytest.skip(f"{name}.parquet is not part of the project; name its folder in MLSQL_EXTERNAL_DATA")
        return str(path)

    return find


@dataclass(frozen=True)
class Dense:
    """y = X beta + Z_j u_j + e,  u_j ~ N(0, T),  e_i ~ N(0, sigma2 / w_i), by N x N matrices: short, slow, separate.

    `groups` holds 0 ... J-1 for each row; random coefficients of all groups are stacked group after group.
    """

    X: Array
    Z: Array
    y: Array
    groups: NDArray[np.int64]
    T: Array
    sigma2: float
    w: Array

    @cached_property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1

    @cached_property
    def wide(self) -> Array:
        """Z as (N, J q): each group's columns in its own place."""
        N, q = self.Z.shape
        wide = np.zeros((N, self.n_groups, q))
        wide[np.arange(N), self.groups] = self.Z
        return wide.reshape(N, -1)

    @cached_property
    def G(self) -> Array:
        return np.kron(np.eye(self.n_groups), self.T)

    @cached_property
    def V(self) -> Array:
        return self.wide @ self.G @ self.wide.T + np.diag(self.sigma2 / self.w)

    @cached_property
    def vcov(self) -> Array:
        return np.linalg.inv(self.X.T @ np.linalg.solve(self.V, self.X))

    @cached_property
    def beta(self) -> Array:
        return self.vcov @ self.X.T @ np.linalg.solve(self.V, self.y)

    @cached_property
    def residual(self) -> Array:
        return self.y - self.X @ self.beta

    def deviance(self, method: str) -> float:
        """-2 log density of y (ML), or of N - p error contrasts in the usual normalisation (REML)."""
        N, p = self.X.shape
        quadratic = self.residual @ np.linalg.solve(self.V, self.residual)
        ml = N * np.log(2 * np.pi) + np.linalg.slogdet(self.V)[1] + quadratic
        if method == "ML":
            return float(ml)
        return float(ml - p * np.log(2 * np.pi) - np.linalg.slogdet(self.vcov)[1])

    @cached_property
    def u(self) -> Array:
        """(J, q) empirical-Bayes residuals."""
        return (self.G @ self.wide.T @ np.linalg.solve(self.V, self.residual)).reshape(self.n_groups, -1)

    @cached_property
    def joint(self) -> Array:
        """Covariance matrix of the errors of (beta, all u): the inverse of Henderson's equations, T nonsingular."""
        H = np.hstack([self.X, self.wide])
        C = (H.T * self.w) @ H
        p = self.X.shape[1]
        C[p:, p:] += self.sigma2 * np.linalg.inv(self.G)
        return self.sigma2 * np.linalg.inv(C)

    @cached_property
    def posterior(self) -> Array:
        """(J q, J q) covariance matrix of u* - u for any T, singular ones too: G - G Z' P Z G."""
        VX = np.linalg.solve(self.V, self.X)
        P = np.linalg.inv(self.V) - VX @ self.vcov @ VX.T
        return self.G - self.G @ self.wide.T @ P @ self.wide @ self.G

    @cached_property
    def conditional(self) -> Array:
        """(J q, J q) Var(u | y) with beta known."""
        return self.G - self.G @ self.wide.T @ np.linalg.solve(self.V, self.wide) @ self.G

    def group_columns(self, j: int) -> NDArray[np.int64]:
        """Positions of the random coefficients of group j among all."""
        q = self.Z.shape[1]
        return np.arange(j * q, (j + 1) * q)


@pytest.fixture(scope="session")
def dense() -> type[Dense]:
    return Dense
