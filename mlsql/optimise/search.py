"""From a deviance to its minimum over covariance matrices, the boundary included.

The minimum over positive semidefinite Lambda is where the gradient matrix Gamma satisfies Gamma Lambda = 0 and is
itself positive semidefinite on the null space of Lambda.  In theta (Lambda = L L') every Lambda with a zero variance
is a stationary point, so a vanishing gradient proves nothing there; Gamma does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import block_diag

from mlsql._arrays import Array
from mlsql.likelihood.covariance import Covariance, lambda_derivatives, theta_derivatives
from mlsql.likelihood.deviance import Deviance, Evaluation
from mlsql.optimise.newton import Iteration, Minimum, minimise
from mlsql.status import Status

NEGLIGIBLE = 1e-7
"""A change of the deviance that no reader would see: what going to the exact boundary may cost."""

ROUNDED = 1e-12
"""Eigenvalues of a covariance block below this share of its largest are zeros that were multiplied out."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """The minimum of the deviance.

    Attributes
    ----------
    theta : (k,)
        Entries of the relative covariance factor in the internal basis.
    evaluation : Evaluation
        Everything at theta, derivatives included.
    converged : bool
    singular : bool
        Lambda has exact zeros: a variance of zero or a correlation of +-1.
    status : Status
    promised : float
        Decrease that a further Newton step promises.
    trace : tuple of Iteration
        Every evaluation, all starts.
    """

    theta: Array
    evaluation: Evaluation
    converged: bool
    singular: bool
    status: Status
    promised: float
    trace: tuple[Iteration, ...]

    @property
    def evaluations(self) -> int:
        """How often the objective was evaluated."""
        return len(self.trace)


@dataclass(slots=True)
class _Search:
    deviance: Deviance
    covariance: Covariance
    max_evaluations: int
    trace: list[Iteration] = field(default_factory=list)
    last: tuple[Array, Evaluation] | None = None

    def objective(self, theta: Array) -> tuple[float, Array, Array]:
        L = self.covariance.factor(theta)
        evaluation = self.deviance.at(L)
        self.last = (theta, evaluation)
        gradient, hessian = theta_derivatives(self.covariance, L, *lambda_derivatives(self.deviance, evaluation))
        return evaluation.deviance, gradient, hessian

    def at(self, theta: Array) -> Evaluation:
        """The evaluation at a point, again only if it was not the last."""
        if self.last is not None and np.array_equal(self.last[0], theta):
            return self.last[1]
        self.objective(theta)
        assert self.last is not None
        self.trace.append(Iteration(self.last[1].deviance, 0.0, True))
        return self.last[1]

    def minimise(self, start: Array) -> Minimum:
        left = max(2, self.max_evaluations - len(self.trace))
        found = minimise(self.objective, start, max_evaluations=left)
        self.trace.extend(found.trace)
        return found


def optimise(deviance: Deviance, *, max_evaluations: int = 200, start: Array | None = None) -> Optimum:
    """Find the minimum of the deviance.

    1. Start from one scoring step away from Lambda = 0, or from a start that is given.
    2. Newton steps in theta.
    3. Move directions whose variance is zero to rounding to exactly zero.
    4. On the boundary, test Gamma on the null space; leave along a direction of descent if there is one (a false
       zero), else minimise once more from a start well inside and keep the better of the two.

    Parameters
    ----------
    deviance : Deviance
    max_evaluations : int
        Over all starts.
    start : (k,), optional
        Entries of the relative covariance factor near the minimum, not on the boundary.
    """
    covariance = Covariance(deviance.statistics.blocks)
    search = _Search(deviance, covariance, max_evaluations)
    # 1
    best = _descend(search, covariance.theta_of(_scoring_start(search)) if start is None else start)
    # 4
    if _null_rank(covariance, best.theta):
        other = _descend(search, covariance.theta_of(np.eye(covariance.q)))
        if other.value < best.value - NEGLIGIBLE:
            best = other
    singular = _null_rank(covariance, best.theta) > 0
    evaluation = search.at(best.theta)
    status = Status.MAX_EVALUATIONS if not best.converged else Status.SINGULAR if singular else Status.CONVERGED
    trace = tuple(search.trace)
    return Optimum(best.theta, evaluation, best.converged, singular, status, best.promised, trace)


def _descend(search: _Search, start: Array) -> Minimum:
    # 2
    found = search.minimise(start)
    while found.converged and len(search.trace) < search.max_evaluations:
        # 3
        snapped = _snapped(search, found)
        if snapped is not None:
            found = snapped
        # 4
        escape = _escape(search, found.theta)
        if escape is None:
            return found
        better = search.minimise(escape)
        if not better.value < found.value - NEGLIGIBLE:
            return found
        found = better
    return found


def _scoring_start(search: _Search) -> Array:
    """Lambda one Fisher-scoring step from zero, kept positive definite: close to ANOVA estimates."""
    covariance, deviance = search.covariance, search.deviance
    gradient, _ = lambda_derivatives(deviance, search.at(np.zeros(covariance.n_parameters)))
    D = covariance.directions()
    AA, A = deviance.overlaps()
    information = np.einsum("iab,bcda,jcd->ij", D, AA, D, optimize=True)
    traces = np.einsum("iab,ab->i", D, A)
    information -= np.outer(traces, traces) / deviance.statistics.n_rows
    slope = np.einsum("iab,ab->i", D, gradient)
    step = -np.linalg.lstsq(information, slope, rcond=1e-10)[0]
    Lambda = np.einsum("i,iab->ab", step, D)
    blocks = []
    for s, groups in zip(covariance.slices, deviance.statistics.block_groups, strict=True):
        floor = 0.3 * groups / deviance.statistics.n_rows
        values, vectors = np.linalg.eigh(Lambda[s, s])
        blocks.append((vectors * np.clip(values, floor, 1e4)) @ vectors.T)
    return np.asarray(block_diag(*blocks))


def _snapped(search: _Search, found: Minimum) -> Minimum | None:
    """Set variances that are zero to rounding to exactly zero, if the deviance does not mind."""
    covariance = search.covariance
    L = covariance.factor(found.theta)
    Lambda = L @ L.T
    gradient, hessian = lambda_derivatives(search.deviance, search.at(found.theta))
    zeros = 0
    for s in covariance.slices:
        values, vectors = np.linalg.eigh(Lambda[s, s])
        for i, value in enumerate(values):
            V = np.outer(vectors[:, i], vectors[:, i])
            slope = float(np.sum(gradient[s, s] * V))
            curvature = float(np.einsum("ab,abcd,cd->", V, hessian[s, s, s, s], V))
            cost = -slope * value + 0.5 * curvature * value * value
            if value < 1e-2 and cost < NEGLIGIBLE and value * value * abs(curvature) < 1e-3:
                values[i] = 0.0
                zeros += 1
        Lambda[s, s] = (vectors * values) @ vectors.T
    if zeros <= _null_rank(covariance, found.theta):
        return None
    theta = covariance.theta_of(Lambda, negligible=ROUNDED)
    evaluation = search.at(theta)
    if evaluation.deviance > found.value + NEGLIGIBLE:
        return None
    return Minimum(theta, evaluation.deviance, found.promised, True, found.trace)


def _null_rank(covariance: Covariance, theta: Array) -> int:
    """Number of directions in which Lambda is exactly zero."""
    L = covariance.factor(theta)
    return int(np.sum(np.diag(L) == 0.0))


def _escape(search: _Search, theta: Array) -> Array | None:
    """A start along a direction of descent that leaves the boundary, or None where there is none."""
    covariance = search.covariance
    if not _null_rank(covariance, theta):
        return None
    L = covariance.factor(theta)
    Lambda = L @ L.T
    gradient, hessian = lambda_derivatives(search.deviance, search.at(theta))
    moved = False
    for s in covariance.slices:
        values, vectors = np.linalg.eigh(Lambda[s, s])
        null = vectors[:, values <= ROUNDED * max(float(values[-1]), 1e-6)]
        if not null.shape[1]:
            continue
        slopes, directions = np.linalg.eigh(null.T @ gradient[s, s] @ null)
        v = null @ directions[:, 0]
        V = np.outer(v, v)
        curvature = max(float(np.einsum("ab,abcd,cd->", V, hessian[s, s, s, s], V)), 1e-12)
        if slopes[0] < 0 and slopes[0] ** 2 / (2.0 * curvature) > NEGLIGIBLE:
            Lambda[s, s] += min(-slopes[0] / curvature, 1.0) * V
            moved = True
    return covariance.theta_of(Lambda) if moved else None
