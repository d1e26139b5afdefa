"""theta, the free entries of the relative covariance factor L, and derivatives with respect to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.likelihood.deviance import Deviance, Evaluation


@dataclass(frozen=True, slots=True)
class Covariance:
    """Block-diagonal L: each block a full lower triangle.

    Attributes
    ----------
    blocks : tuple of int
        Sizes of the blocks.
    """

    blocks: tuple[int, ...]

    @property
    def q(self) -> int:
        """Random coefficients."""
        return sum(self.blocks)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Positions of each block."""
        stops = np.cumsum(self.blocks)
        return tuple(slice(int(e - b), int(e)) for b, e in zip(self.blocks, stops, strict=True))

    @property
    def entries(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of each free entry, row >= column, block after block."""
        return tuple((a, b) for s in self.slices for a in range(s.start, s.stop) for b in range(s.start, a + 1))

    @property
    def mask(self) -> Array:
        """(q, q) 1 within blocks, 0 between them."""
        mask = np.zeros((self.q, self.q))
        for s in self.slices:
            mask[s, s] = 1.0
        return mask

    @property
    def n_parameters(self) -> int:
        """Free entries."""
        return len(self.entries)

    def factor(self, theta: Array) -> Array:
        """theta to L (q, q)."""
        L = np.zeros((self.q, self.q))
        for value, (a, b) in zip(theta, self.entries, strict=True):
            L[a, b] = value
        return L

    def theta(self, L: Array) -> Array:
        """L to theta."""
        return np.array([L[a, b] for a, b in self.entries])

    def theta_of(self, Lambda: Array, *, negligible: float = 0.0) -> Array:
        """theta of a positive semidefinite Lambda.

        Eigenvalues of a block up to `negligible` times its largest are taken for zero.  The factor of a block of rank
        r then has r columns and exact zeros in the others, so that its diagonal shows the deficiency.
        """
        L = np.zeros_like(Lambda)
        for s in self.slices:
            values, vectors = np.linalg.eigh(Lambda[s, s])
            kept = values > negligible * max(float(values[-1]), 0.0)
            _, R = np.linalg.qr((vectors[:, kept] * np.sqrt(values[kept])).T)
            signs = np.where(np.diag(R) < 0, -1.0, 1.0)
            L[s, s.start : s.start + len(signs)] = (R * signs[:, None]).T
        return self.theta(L)

    def directions(self) -> Array:
        """(k, q, q) the symmetric matrix d Lambda for a unit of each distinct entry of Lambda."""
        D = np.zeros((self.n_parameters, self.q, self.q))
        for i, (a, b) in enumerate(self.entries):
            D[i, a, b] = D[i, b, a] = 1.0
        return D


def lambda_derivatives(deviance: Deviance, evaluation: Evaluation) -> tuple[Array, Array]:
    """Gradient (q, q) and Hessian (q, q, q, q) of the profiled deviance in the entries of Lambda."""
    slopes = evaluation.slopes
    if slopes is None:
        raise ValueError("evaluate with slopes=True")
    s2 = evaluation.r2 / deviance.degrees
    gradient = slopes.logs - slopes.residual / s2
    outer = np.multiply.outer(slopes.residual, slopes.residual)
    hessian = slopes.logs2 + slopes.residual2 / s2 - outer / (deviance.degrees * s2 * s2)
    return gradient, hessian


def theta_derivatives(covariance: Covariance, L: Array, gradient: Array, hessian: Array) -> tuple[Array, Array]:
    """Chain rule from Lambda = L L' to theta.

    Returns
    -------
    gradient : (k,)
    hessian : (k, k)
    """
    k = covariance.n_parameters
    J = np.zeros((k, len(L), len(L)))
    for i, (a, b) in enumerate(covariance.entries):
        J[i, a, :] += L[:, b]
        J[i, :, a] += L[:, b]
    g = np.einsum("iab,ab->i", J, gradient)
    H = np.einsum("iab,abcd,jcd->ij", J, hessian, J, optimize=True)
    for i, (a, b) in enumerate(covariance.entries):
        for j, (c, d) in enumerate(covariance.entries):
            if b == d:
                H[i, j] += 2.0 * gradient[a, c]
    return g, H
