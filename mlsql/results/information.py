"""The observed information of the variance components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from mlsql._arrays import Array
from mlsql.likelihood.deviance import Evaluation
from mlsql.likelihood.objective import make_deviance
from mlsql.results.estimates import Estimates

UNIDENTIFIED = 1e-9
"""Smallest eigenvalue of the information, scaled to a unit diagonal, below which the components are not told apart."""

STEP = 3e-5
"""Of differences of the gradient, as a share of the variance that is moved.  The gradient bends on that scale or a
larger one, so that central differences err by a few times the step's square, 3e-9; rounding of the gradient, 1e-14 of
its parts, comes to 1e-9 of its slope, and to 1e-6 where a variance makes one part in a thousand of its groups'."""


@dataclass(frozen=True, slots=True)
class Information:
    """Sampling covariance of the variance components within the parameter space or the face of it that L lies on.

    Attributes
    ----------
    blocks : tuple of slice
        The covariance blocks of full rank; the others stay on the boundary.
    directions : (k, q, q)
        How Lambda (internal columns) moves with each free parameter: an entry of Lambda in a block of full rank, an
        entry of the factor's columns that are not zero in a block on the boundary.
    covariance : (k + 1, k + 1)
        Of those parameters and, last, sigma2.
    """

    blocks: tuple[slice, ...]
    directions: Array
    covariance: Array


def observed_information(estimates: Estimates) -> Information | None:
    """Invert the Hessian of the deviance in (Lambda, sigma2); None where it is singular.

    Its second derivatives along Lambda are exact where the model has them; with several grouping factors, whose Newton
    steps use the average information, they are central differences of the exact gradient.
    """
    covariance, s2 = estimates.covariance, estimates.sigma2
    slopes = with_slopes(estimates).slopes
    assert slopes is not None
    blocks = tuple(s for s in covariance.slices if np.all(np.diag(estimates.L)[s] != 0.0))
    D, second = _directions(estimates)
    degrees = make_deviance(estimates.statistics, estimates.design.spec.method).degrees
    k = len(D)
    H = np.empty((k + 1, k + 1))
    if slopes.exact:
        H[:k, :k] = np.einsum("iab,abcd,jcd->ij", D, slopes.logs2 + slopes.residual2 / s2, D, optimize=True)
        H[:k, :k] += np.einsum("ijab,ab->ij", second, slopes.logs - slopes.residual / s2)
    else:
        H[:k, :k] = _differences(estimates, STEP)
    H[:k, k] = H[k, :k] = np.einsum("iab,ab->i", D, slopes.residual) / s2**2
    H[k, k] = -degrees / s2**2 + 2.0 * estimates.evaluation.r2 / s2**3
    scale = np.sqrt(np.abs(np.diag(H)))
    if not np.all(scale > 0) or np.linalg.eigvalsh(H / np.outer(scale, scale))[0] < UNIDENTIFIED:
        return None
    return Information(blocks, D, np.asarray(2.0 * np.linalg.inv(H), dtype=np.float64))


def with_slopes(estimates: Estimates) -> Evaluation:
    """The evaluation with its derivatives, made again where they were left out."""
    if estimates.evaluation.slopes is not None:
        return estimates.evaluation
    deviance = make_deviance(estimates.statistics, estimates.design.spec.method)
    return deviance.at(estimates.L, sigma2=estimates.sigma2)


def _directions(estimates: Estimates) -> tuple[Array, Array]:
    """First (k, q, q) and second (k, k, q, q) derivatives of Lambda along the parameters that are free at L.

    In a block of full rank the entries of Lambda themselves.  In one on the boundary the entries of the columns of its
    factor that are not zero: Lambda = L L' stays on the boundary.
    """
    covariance, L = estimates.covariance, estimates.L
    q = len(L)
    first: list[Array] = []
    moves: list[Array | None] = []
    for (a, b), D in zip(covariance.entries, covariance.directions(), strict=True):
        block = next(s for s in covariance.slices if s.start <= a < s.stop)
        if np.all(np.diag(L)[block] != 0.0):
            first.append(D)
            moves.append(None)
        elif L[b, b] != 0.0:
            E = np.zeros((q, q))
            E[a, b] = 1.0
            first.append(E @ L.T + L @ E.T)
            moves.append(E)
    second = np.zeros((len(first), len(first), q, q))
    for i, one in enumerate(moves):
        for j, other in enumerate(moves):
            if one is not None and other is not None:
                second[i, j] = one @ other.T + other @ one.T
    return np.array(first).reshape(-1, q, q), second


@dataclass(frozen=True, slots=True)
class _Path:
    """A straight line in the parameters along which the gradient is differenced, within the parameter space.

    In a block of full rank Lambda + h L S L', S symmetric with entries 0 and 1; in one on the boundary L + h E.
    """

    S: Array | None
    E: Array | None

    def at(self, L: Array, h: float) -> Array:
        """The factor after a step h."""
        if self.S is not None:
            return np.asarray(L @ np.linalg.cholesky(np.eye(len(L)) + h * self.S))
        assert self.E is not None
        return L + h * self.E

    def tangent(self, start: Array, L: Array) -> Array:
        """How Lambda moves along this line where the factor is L, having been `start`."""
        if self.S is not None:
            return np.asarray(start @ self.S @ start.T)
        assert self.E is not None
        return self.E @ L.T + L @ self.E.T


def _differences(estimates: Estimates, step: float) -> Array:
    """(k, k) second derivatives of the deviance at fixed sigma2 along the parameters of `_directions`.

    1. Gradients at both ends of a short line for each parameter.
    2. Their differences, along lines of like curvature.
    3. Back to the parameters: entries of Lambda are combinations of the lines of their block.
    """
    L, s2 = estimates.L, estimates.sigma2
    deviance = make_deviance(estimates.statistics, estimates.design.spec.method)
    paths, back = _paths(estimates)
    # 1
    ends = np.empty((2, len(paths), len(paths)))
    for side, h in enumerate((-step, step)):
        for i, path in enumerate(paths):
            moved = path.at(L, h)
            slopes = deviance.at(moved, sigma2=s2).slopes
            assert slopes is not None
            gradient = slopes.logs - slopes.residual / s2
            ends[side, i] = [float(np.sum(gradient * other.tangent(L, moved))) for other in paths]
    # 2
    H = (ends[1] - ends[0]) / (2.0 * step)
    # 3
    return np.asarray(back @ ((H + H.T) / 2.0) @ back.T)


def _paths(estimates: Estimates) -> tuple[list[_Path], Array]:
    """The lines (m), in the order of `_directions`, and the (k, m) parameters as combinations of them."""
    covariance, L = estimates.covariance, estimates.L
    q, paths = len(L), list[_Path]()
    parts: list[Array] = []
    for s in covariance.slices:
        entries = [(a, b) for a in range(s.start, s.stop) for b in range(s.start, a + 1)]
        if np.all(np.diag(L)[s] != 0.0):
            inverse = np.linalg.inv(L[s, s])
            rows, columns = np.array(entries).T
            combination = np.empty((len(entries), len(entries)))
            for i, (a, b) in enumerate(entries):
                S = np.zeros((q, q))
                S[a, b] = S[b, a] = 1.0
                paths.append(_Path(S, None))
                combination[i] = (inverse @ S[s, s] @ inverse.T)[rows - s.start, columns - s.start]
            parts.append(combination)
            continue
        for a, b in entries:
            if L[b, b] != 0.0:
                length = float(np.linalg.norm(L[:, b]))
                E = np.zeros((q, q))
                E[a, b] = length
                paths.append(_Path(None, E))
                parts.append(np.array([[1.0 / length]]))
    return paths, block_diag(*parts) if parts else np.zeros((0, 0))
