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
    """Sampling covariance of the variance components that lie inside the parameter space.

    Attributes
    ----------
    blocks : tuple of slice
        The covariance blocks of full rank; the others are held where they are.
    directions : (k, q, q)
        The symmetric matrix by which each free entry of Lambda (internal columns) moves it.
    covariance : (k + 1, k + 1)
        Of those entries and, last, sigma2.
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
    inside = [any(s.start <= a < s.stop for s in blocks) for a, _ in covariance.entries]
    D = covariance.directions()[np.array(inside, dtype=np.bool_)]
    degrees = Deviance(estimates.statistics, estimates.design.spec.method).degrees
    k = len(D)
    H = np.empty((k + 1, k + 1))
    H[:k, :k] = np.einsum("iab,abcd,jcd->ij", D, slopes.logs2 + slopes.residual2 / s2, D, optimize=True)
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
