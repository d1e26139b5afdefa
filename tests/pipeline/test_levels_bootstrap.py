"""Outcomes of several factors simulated in the space of moments: their distribution is that of simulated rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.inference.level_simulate import make_level_simulator
from mlsql.moments.levels import LevelStatistics

Array = NDArray[np.float64]

DRAWS = 3000
FAR = 5.0
"""Standard errors: of some 2,000 means and covariances the farthest is expected near 3.5."""


def rows(seed: int) -> pl.DataFrame:
    """Sixty rows, three schools of children, raters across."""
    rng = np.random.default_rng(seed)
    school, child, rater = rng.integers(0, 3, 60), rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    return pl.DataFrame(
        {
            "school": school,
            "child": child,
            "rater": rater,
            "x": rng.normal(5, 1, 60),
            "c": (school * 4 + child) * 5 % 7 - 3.0,
            "w": rng.uniform(0.5, 2, 60),
            "y": rng.normal(10, 2, 60),
        }
    )


HISTORY = pl.DataFrame(
    {"child": [0, 0, 1, 1, 2, 3], "teacher": ["a", "b", "b", "c", "c", "a"], "share": [0.7, 0.3, 0.4, 1.1, 1.0, 0.5]}
)

T2 = np.array([[0.8, 0.2], [0.2, 0.5]])
ONE = np.array([[1.2]])

CASES: dict[str, tuple[str, Mapping[str, Array], Mapping[str, Any]]] = {
    "nested": ("y ~ x + c + (x | school/child)", {"school": T2, "school:child": 0.5 * T2}, {}),
    "crossed, weights": ("y ~ x + (x | rater) + (1 | school)", {"rater": T2, "school": ONE}, {"weights": "w"}),
    "cells": (
        "y ~ c + (1 | school) + (1 | rater) + (1 | school:rater)",
        {"school": ONE, "rater": ONE, "school:rater": ONE},
        {},
    ),
    "singular": ("y ~ x + (x | school/child)", {"school": np.ones((2, 2)), "school:child": 0.0 * T2}, {}),
    "membership": (
        "y ~ x + (x | teacher) + (1 | school)",
        {"teacher": T2, "school": ONE},
        {"memberships": {"teacher": mlsql.Membership(HISTORY, on="child", weight="share")}},
    ),
    "offset": ("y ~ 0 + x + offset(c) + (1 | school) + (0 + x | rater)", {"school": ONE, "rater": ONE}, {}),
}


class Dense:
    """The rows in the internal columns, and the moments of what is simulated by n x n matrices."""

    def __init__(self, fit: mlsql.Fit, frame: pl.DataFrame, T: Mapping[str, Array]) -> None:
        estimates, design = fit.estimates, fit.estimates.design
        stats = estimates.levels
        assert stats is not None
        self.w = frame["w"].to_numpy() if design.spec.weights is not None else np.ones(frame.height)
        V = np.diag(fit.sigma2 / self.w)
        wide = []
        for incidence, places in zip(stats.incidences, stats.columns, strict=True):
            names = [design.random[c].name for c in places]
            Z = np.column_stack([np.ones(frame.height) if n == "(Intercept)" else frame[n].to_numpy() for n in names])
            M = shares(incidence.keys.to_pylist(), frame)
            user = (M[:, :, None] * Z[:, None, :]).reshape(frame.height, -1)
            V += user @ np.kron(np.eye(M.shape[1]), T[incidence.name]) @ user.T
            wide.append(user @ np.kron(np.eye(M.shape[1]), stats.u_transform[np.ix_(places, places)]))
        fixed = [np.ones(frame.height) if n == "(Intercept)" else frame[n].to_numpy() for n in estimates.fixed_names]
        X = np.column_stack(fixed) @ stats.beta_transform
        self.V, self.mean, self.columns = V, X @ estimates.evaluation.beta, np.hstack([*wide, X])

    @property
    def expected(self) -> tuple[Array, Array]:
        """Mean and covariance matrix of (Z'Wy of all groups, X'Wy, y'Wy)."""
        A, W, V, mu = self.columns, np.diag(self.w), self.V, self.mean
        WVW, WV = W @ V @ W, W @ V
        k = A.shape[1]
        mean = np.append(A.T @ W @ mu, np.trace(WV) + mu @ W @ mu)
        covariance = np.empty((k + 1, k + 1))
        covariance[:k, :k] = A.T @ WVW @ A
        covariance[:k, k] = covariance[k, :k] = 2.0 * A.T @ WVW @ mu
        covariance[k, k] = 2.0 * np.trace(WV @ WV) + 4.0 * mu @ WVW @ mu
        return mean, covariance

    @property
    def excess(self) -> Array:
        """Fourth cumulants that the normal law lacks, (i, i, j, j): of y'Wy, and of it with the linear ones."""
        A, W, WV, mu = self.columns, np.diag(self.w), np.diag(self.w) @ self.V, self.mean
        k = A.shape[1]
        found = np.zeros((k + 1, k + 1))
        found[:k, k] = found[k, :k] = 8.0 * np.einsum("na,nm,ma->a", A, WV @ WV @ WV @ W, A)
        found[k, k] = 48.0 * np.trace(WV @ WV @ WV @ WV) + 192.0 * mu @ WV @ WV @ WV @ W @ mu
        return found


def shares(keys: list[dict[str, Any]], frame: pl.DataFrame) -> Array:
    """(rows, groups) weights of memberships, or indicators."""
    if list(keys[0]) == ["teacher"]:
        found = {(c, t): s for c, t, s in HISTORY.iter_rows()}
        return np.array([[found.get((c, k["teacher"]), 0.0) for k in keys] for c in frame["child"]])
    own = frame.select(list(keys[0])).to_dicts()
    return np.array([[float(row == key) for key in keys] for row in own])


def linear(stats: LevelStatistics) -> Array:
    """(Z'Wy of all groups, X'Wy, y'Wy)."""
    p = stats.p
    return np.concatenate([*[B[:, p].T.ravel() for B in stats.ZtXy], stats.XytXy[:p, p], stats.XytXy[p:, p]])


def given(case: str) -> tuple[mlsql.Fit, Dense]:
    formula, T, named = CASES[case]
    frame = rows(len(case))
    fit = mlsql.evaluate(formula, frame, T=T, sigma2=1.7, **named)
    return fit, Dense(fit, frame, T)


@pytest.mark.parametrize("case", CASES)
def test_means_and_covariances(case: str) -> None:
    """Linear in y: jointly normal, so that these are the distribution; y'Wy's own mean, variance and covariances."""
    fit, dense = given(case)
    simulator, rng = make_level_simulator(fit.estimates), np.random.default_rng(1)
    draws = np.array([linear(simulator.draw(rng)) for _ in range(DRAWS)])
    mean, covariance = dense.expected
    sd = np.sqrt(np.diag(covariance))
    z = (draws.mean(axis=0) - mean) / (sd / np.sqrt(DRAWS))
    assert np.abs(z).max() < FAR
    # the variance of a product of two variables, which y'Wy makes wider than that of normal ones
    error = np.sqrt((np.outer(sd, sd) ** 2 + covariance**2 + dense.excess) / DRAWS)
    z = (np.cov(draws.T) - covariance) / error
    assert np.abs(z).max() < FAR


@pytest.mark.parametrize("case", CASES)
def test_every_draw_could_be_the_moments_of_rows(case: str) -> None:
    """Z'y lies in the span of the columns' Gram matrix, and with y it stays positive semidefinite."""
    fit, dense = given(case)
    columns = dense.columns * np.sqrt(dense.w)[:, None]
    Q, k = columns.T @ columns, columns.shape[1]
    values, vectors = np.linalg.eigh(Q)
    null = vectors[:, values < 1e-10 * values[-1]]
    simulator, rng = make_level_simulator(fit.estimates), np.random.default_rng(4)
    for _ in range(5):
        drawn = linear(simulator.draw(rng))
        gram = np.block([[Q, drawn[:k, None]], [drawn[None, :k], drawn[k:, None]]])
        assert np.abs(null.T @ drawn[:k]).max(initial=0.0) < 1e-9 * np.linalg.norm(drawn[:k])
        assert np.linalg.eigvalsh(gram)[0] > -1e-10 * np.linalg.norm(gram)


def test_replicates_are_labelled_by_factor(data_file: Callable[[str], str]) -> None:
    fit = mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    found = fit.resampling.bootstrap(200, seed=3).table()
    terms = ["(Intercept)", "plate: (Intercept)", "sample: (Intercept)", "Residual"]
    assert found["term"].to_list() == terms
    assert found["replicates"].to_list() == [200] * 4
    # the spread of replicates is that of the estimates: beside the model's error to a tenth, five errors of 200 draws
    error = fit.fixed_effects["std_error"].item()
    assert found["std_error"][0] == pytest.approx(error, rel=5 / np.sqrt(400))
    again = fit.confint(method="bootstrap", replicates=200, seed=3)
    assert again["conf_low"].to_list() == found["conf_low"].to_list()
