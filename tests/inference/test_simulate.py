"""Outcomes simulated in the space of moments: their joint distribution is that of simulated rows, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import mlsql
from mlsql.inference.simulate import Simulator, make_simulator
from mlsql.moments.statistics import Statistics

Array = NDArray[np.float64]

DRAWS = 3000
FAR = 5.0
"""Standard errors: of some 2,000 means and covariances the farthest is expected near 3.5."""

GIVEN = {"given": True}
"""Variance components of the case's own, neither small nor near singular."""


def simulator_of(fit: mlsql.Fit, L: Array | None = None) -> Simulator:
    e = fit.estimates
    return make_simulator(e.statistics, e.L if L is None else L, e.evaluation.beta, e.sigma2)


class Rows:
    """The rows in the internal columns, and the moments of what is simulated by n x n matrices."""

    def __init__(self, found: Any, L: Array | None = None) -> None:
        stats, model, self.fit = found.fit.estimates.statistics, found.model, found.fit
        L = found.fit.estimates.L if L is None else L
        self.X, self.w = model.X @ stats.beta_transform, model.w
        # the internal u is U^-1 times the user's
        own = type(model)(
            self.X, model.Z @ stats.u_transform, model.y, model.groups, model.sigma2 * L @ L.T, model.sigma2, self.w
        )
        self.wide, self.V = own.wide, own.V
        self.mean = self.X @ found.fit.estimates.evaluation.beta
        self.columns = np.hstack([self.wide, self.X])

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


def linear(stats: Statistics) -> Array:
    """(Z'Wy of all groups, X'Wy, y'Wy)."""
    p = stats.p
    return np.concatenate([stats.ZtXy[:, p].T.ravel(), stats.XytXy[:p, p], stats.XytXy[p:, p]])


def compare(rows: Rows, simulator: Simulator, seed: int) -> None:
    rng = np.random.default_rng(seed)
    draws = np.array([linear(simulator.draw(rng)) for _ in range(DRAWS)])
    mean, covariance = rows.expected
    sd = np.sqrt(np.diag(covariance))
    # a centred column of a group of one row is zero: its product is zero in every draw
    zero = sd == 0
    assert not draws[:, zero].any()
    draws, mean, sd, covariance = draws[:, ~zero], mean[~zero], sd[~zero], covariance[np.ix_(~zero, ~zero)]
    z = (draws.mean(axis=0) - mean) / (sd / np.sqrt(DRAWS))
    assert np.abs(z).max() < FAR
    # the variance of a product of two normal variables
    error = np.sqrt((np.outer(sd, sd) ** 2 + covariance**2) / DRAWS)
    z = (np.cov(draws.T) - covariance) / error
    assert np.abs(z).max() < FAR


def test_means_and_covariances(answer: Callable[..., Any], case: Any) -> None:
    """Linear in y: jointly normal, so that these are the distribution; y'Wy's own mean, variance and covariances."""
    found = answer(case, **GIVEN)
    compare(Rows(found), simulator_of(found.fit), 1)


def test_singular_covariances(answer: Callable[..., Any], case: Any) -> None:
    """u varies in the one direction that the fit says, and in no other."""
    found = answer(case, **GIVEN)
    L = np.zeros_like(found.fit.estimates.L)
    L[: case.blocks[0], 0] = 1.0
    compare(Rows(found, L), simulator_of(found.fit, L), 2)


def test_the_residual_sum_of_squares(answer: Callable[..., Any], case: Any) -> None:
    """y'W(I - H)y, H on all columns of Z and X: sigma2 times chi-square on N - rank df, independent of all else."""
    found = answer(case, **GIVEN)
    rows, simulator = Rows(found), simulator_of(found.fit)
    half = rows.columns * np.sqrt(rows.w)[:, None]
    rank = int(np.linalg.matrix_rank(half, tol=1e-8 * np.linalg.norm(half, 2)))
    df = len(half) - rank
    assert simulator.n_residual == df
    inverse = np.linalg.pinv(half.T @ half, rcond=1e-12, hermitian=True)
    rng = np.random.default_rng(3)
    draws = np.array([linear(simulator.draw(rng)) for _ in range(DRAWS)])
    k = len(inverse)
    ratio = (draws[:, k] - np.einsum("ri,ij,rj->r", draws[:, :k], inverse, draws[:, :k])) / found.fit.sigma2
    assert ratio.min() > 0
    assert abs(ratio.mean() - df) < FAR * np.sqrt(2 * df / DRAWS)
    # kurtosis of chi-square is 3 + 12 / df
    assert abs(ratio.var() / (2 * df) - 1) < FAR * np.sqrt((2 + 12 / df) / DRAWS)
    # the simulated sums of all columns, independent of it: no correlation beyond chance
    sums = draws[:, :k][:, draws[:, :k].std(axis=0) > 0]
    correlations = np.corrcoef(np.column_stack([sums, ratio]).T)[-1, :-1]
    assert np.abs(correlations).max() < FAR / np.sqrt(DRAWS)


def test_every_draw_could_be_the_moments_of_rows(answer: Callable[..., Any], case: Any) -> None:
    """Z'y lies in the span of Z'Z, the Gram matrix of all columns and y is positive semidefinite."""
    found = answer(case, **GIVEN)
    rows, simulator = Rows(found), simulator_of(found.fit)
    columns = rows.columns * np.sqrt(rows.w)[:, None]
    Q, k = columns.T @ columns, columns.shape[1]
    values, vectors = np.linalg.eigh(Q)
    null = vectors[:, values < 1e-10 * values[-1]]
    rng = np.random.default_rng(4)
    for _ in range(5):
        drawn = linear(simulator.draw(rng))
        gram = np.block([[Q, drawn[:k, None]], [drawn[None, :k], drawn[k:, None]]])
        # groups of deficient rank, and intercepts that Z and X share
        assert np.abs(null.T @ drawn[:k]).max(initial=0.0) < 1e-9 * np.linalg.norm(drawn[:k])
        assert np.linalg.eigvalsh(gram)[0] > -1e-10 * np.linalg.norm(gram)


def test_what_does_not_contain_the_outcome_stays(answer: Callable[..., Any], case: Any) -> None:
    found = answer(case, **GIVEN)
    stats = found.fit.estimates.statistics
    before = stats.ZtXy.copy(), stats.XytXy.copy()
    drawn = simulator_of(found.fit).draw(np.random.default_rng(5))
    p = stats.p
    np.testing.assert_array_equal(stats.ZtXy, before[0])
    np.testing.assert_array_equal(stats.XytXy, before[1])
    np.testing.assert_array_equal(drawn.ZtXy[:, :p], stats.ZtXy[:, :p])
    np.testing.assert_array_equal(drawn.XytXy[:p, :p], stats.XytXy[:p, :p])
    np.testing.assert_array_equal(drawn.XytXy, drawn.XytXy.T)
    assert replace(drawn, ZtXy=stats.ZtXy, XytXy=stats.XytXy) == stats
    assert not np.array_equal(drawn.ZtXy[:, p], stats.ZtXy[:, p])


def test_the_same_seed_gives_the_same_draws(answer: Callable[..., Any], case: Any) -> None:
    found = answer(case, **GIVEN)
    simulator = simulator_of(found.fit)
    first, second, other = (linear(simulator.draw(np.random.default_rng(seed))) for seed in (6, 6, 7))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_no_residual_degrees_of_freedom() -> None:
    """One pair of rows alone tells sigma2 from the groups, and the slope takes its one df: e'e has nothing beside."""
    rng = np.random.default_rng(0)
    g, x = np.append(np.arange(30), 0), rng.normal(size=31)
    y = 1 + x + rng.normal(size=30)[g] + rng.normal(size=31)
    fit = mlsql.fit("y ~ x + (1 | g)", pl.DataFrame({"g": g, "x": x, "y": y}))
    simulator = simulator_of(fit)
    assert simulator.n_residual == 0
    assert simulator.draw(rng).XytXy[2, 2] > 0
