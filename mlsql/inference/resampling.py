"""Replicates of a fit: parametric bootstrap, cluster bootstrap, group jackknife.  No row is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from scipy.linalg import LinAlgError
from scipy.special import ndtri
from threadpoolctl import threadpool_limits

from mlsql._arrays import Array, BoolArray, IntArray
from mlsql._typing import Method
from mlsql.errors import FitError
from mlsql.inference.level_simulate import make_level_simulator
from mlsql.inference.simulate import make_simulator
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.reweighted import reweighted
from mlsql.moments.scales import Scales
from mlsql.moments.statistics import COLLINEAR, Statistics
from mlsql.optimise.search import Optimum, optimise
from mlsql.results.estimates import Estimates

MAX_EVALUATIONS = 100

THREADED = 20_000
"""From this many groups on, threads of the linear algebra pay: below, 2,000 replicates take 7 s with one thread and up
to 50 s with two on a busy machine."""


@dataclass(frozen=True, slots=True)
class Replicates:
    """Estimates from R replicates, in the user's columns.

    Attributes
    ----------
    beta : (R, p)
    T : (R, q, q)
    sigma2 : (R,)
    converged, singular : (R,) bool
    failed : int
        Replicates without estimates, because their fixed effects are not identified; not among the R.
    """

    beta: Array
    T: Array
    sigma2: Array
    converged: BoolArray
    singular: BoolArray
    failed: int


def parametric_bootstrap(estimates: Estimates, replicates: int, seed: int) -> Replicates:
    """Refit outcomes simulated from the fit.

    A fit on the boundary is simulated as it is: its zero variances stay zero in the data, not in the refits.
    """
    check_replicates(replicates)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    if estimates.levels is not None:
        whole = make_level_simulator(estimates)
        return _refitted(estimates, (whole.draw(rng) for _ in range(replicates)))
    simulator = make_simulator(estimates.grouped, estimates.L, estimates.evaluation.beta, estimates.sigma2)
    return _refitted(estimates, (simulator.draw(rng) for _ in range(replicates)))


def cluster_bootstrap(estimates: Estimates, products: Array, replicates: int, seed: int) -> Replicates:
    """Refit samples of groups, drawn with replacement.

    Pivots, scales and grand means stay those of the sample.
    """
    check_replicates(replicates)
    check_seed(seed)
    rng, J = np.random.default_rng(seed), estimates.grouped.n_groups

    def draws() -> Iterator[Statistics]:
        for _ in range(replicates):
            counts: IntArray = np.bincount(rng.integers(0, J, J), minlength=J).astype(np.int64)
            yield reweighted(estimates.grouped, products, counts)

    return _refitted(estimates, draws())


def jackknife(estimates: Estimates, products: Array, blocks: int, seed: int) -> Replicates:
    """Refit without one block of groups at a time; with as many blocks as groups, without one group at a time."""
    J = estimates.grouped.n_groups
    order = np.arange(J) if blocks == J else np.random.default_rng(seed).permutation(J)

    def draws() -> Iterator[Statistics]:
        for part in np.array_split(order, blocks):
            counts: IntArray = np.ones(J, dtype=np.int64)
            counts[part] = 0
            yield reweighted(estimates.grouped, products, counts)

    return _refitted(estimates, draws())


def _refitted(estimates: Estimates, samples: Iterator[Statistics] | Iterator[LevelStatistics]) -> Replicates:
    method = estimates.design.spec.method
    covariance = estimates.covariance
    start = None if estimates.singular else covariance.theta(estimates.L)
    U = estimates.statistics.u_transform
    found, failed = [], 0
    # with several factors the search itself sees to the threads
    with _one_thread(estimates.statistics.n_groups if estimates.levels is None else THREADED):
        for stats in samples:
            optimum = _optimum(stats, method, start)
            if optimum is None:
                failed += 1
            else:
                found.append((stats.user_beta(optimum.evaluation.beta), optimum))
    p, q = estimates.statistics.p, estimates.statistics.q
    roots = [U @ covariance.factor(o.theta) for _, o in found]
    sigma2 = np.array([o.evaluation.sigma2 for _, o in found])
    return Replicates(
        np.array([beta for beta, _ in found]).reshape(-1, p),
        np.array([s2 * root @ root.T for s2, root in zip(sigma2, roots, strict=True)]).reshape(-1, q, q),
        sigma2,
        np.array([o.converged for _, o in found], dtype=np.bool_),
        np.array([o.singular for _, o in found], dtype=np.bool_),
        failed,
    )


def _optimum(stats: Scales, method: Method, start: Array | None) -> Optimum | None:
    """The minimum, or None where the fixed effects are not identified."""
    G = stats.XytXy[: stats.p, : stats.p]
    scale = np.sqrt(np.maximum(np.diag(G), 0.0))
    if not np.all(scale > 0):
        return None
    if stats.p and np.linalg.eigvalsh(G / np.outer(scale, scale))[0] < COLLINEAR:
        return None
    try:
        return optimise(make_deviance(stats, method), max_evaluations=MAX_EVALUATIONS, start=start)
    except (LinAlgError, FitError):
        return None


@contextmanager
def _one_thread(n_groups: int) -> Iterator[None]:
    """Keep the linear algebra to one thread where matrices are small: threads then wait more than they work."""
    if n_groups >= THREADED:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


def percentile_interval(values: Array, level: float) -> tuple[Array, Array]:
    """Quantiles of (R, ...) replicates."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=0)
    return low, high


def basic_interval(estimate: Array, values: Array, level: float) -> tuple[Array, Array]:
    """2 estimate - quantiles: the percentile interval turned around."""
    low, high = percentile_interval(values, level)
    return 2.0 * estimate - high, 2.0 * estimate - low


def jackknife_error(values: Array) -> Array:
    """Standard errors from K leave-one-block-out estimates (K, ...): root of (K - 1) / K times their sum of squares."""
    K = len(values)
    return np.asarray(np.sqrt((K - 1.0) / K * np.sum((values - values.mean(axis=0)) ** 2, axis=0)))


def normal_quantile(level: float) -> float:
    """z of a two-sided interval."""
    return float(ndtri(0.5 + level / 2.0))


def check_replicates(replicates: object) -> None:
    """Refuse a number of replicates that is none.

    Raises
    ------
    FitError
    """
    if not (isinstance(replicates, Integral) and not isinstance(replicates, bool) and int(replicates) >= 1):
        raise FitError(f"replicates is {replicates!r}; it is a whole number, 1,000 or more for intervals")


def check_seed(seed: object) -> None:
    """Refuse a seed that is none.

    Raises
    ------
    FitError
    """
    if not (isinstance(seed, Integral) and not isinstance(seed, bool) and int(seed) >= 0):
        raise FitError(f"seed is {seed!r}; it is a whole number from 0")
