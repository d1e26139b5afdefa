"""The observed information of the variance components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood.gaussian import Deviance, Evaluation
from mlsql.results.estimates import Estimates

UNIDENTIFIED = 1e-9
"""Smallest eigenvalue of the information, scaled to a unit diagonal, below which the components are not told apart."""


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
    """Invert the Hessian of the deviance in (Lambda, sigma2), where it is exact; None where it is singular."""
    covariance, s2 = estimates.covariance, estimates.sigma2
    slopes = with_slopes(estimates).slopes
    assert slopes is not None
    blocks = tuple(s for s in covariance.slices if np.all(np.diag(estimates.L)[s] != 0.0))
    D, second = _directions(estimates)
    degrees = Deviance(estimates.statistics, estimates.design.spec.method).degrees
    k = len(D)
    H = np.empty((k + 1, k + 1))
    H[:k, :k] = np.einsum("iab,abcd,jcd->ij", D, slopes.logs2 + slopes.residual2 / s2, D, optimize=True)
    H[:k, :k] += np.einsum("ijab,ab->ij", second, slopes.logs - slopes.residual / s2)
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
    deviance = Deviance(estimates.statistics, estimates.design.spec.method)
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
