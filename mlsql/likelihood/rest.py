"""The rest: factors that are crossed with those absorbed before, solved jointly by one symmetric matrix.

With A = Z'V^-1Z of the rest, M = L'AL + I and K = L M^-1 L'.  Dense up to `moments.structure.DENSE` columns; sparse
beyond.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array

from mlsql._arrays import Array
from mlsql.moments.structure import Structure

DENSE_WORK, ENTRY_WORK = 200, 10
"""Multiply-adds that a dense product does while a sparse one does one, and how many of these an entry of a sparse
result costs: measured at 6,000 x 3,700 with 3e5 and 1e6 entries on one core, 180 million a second against 4e10."""

SMALL_FACTOR = 1e-4
"""Diagonal entries of L below which Z'V^-1Z is not recovered from M^-1, whose digits it would lose."""


@dataclass(frozen=True)
class Rest:
    """The rest, factorised.

    Attributes
    ----------
    structure : Structure
    A : (K, K)
        Dense or sparse.
    factors : list of (q, q)
        L of each factor of the rest.
    log_det : float
        log|M|.
    """

    structure: Structure
    A: Any
    factors: list[Array]
    log_det: float

    @property
    def zero(self) -> bool:
        """True when no factor of the rest varies: K = 0."""
        return not any(L.any() for L in self.factors)

    @property
    @abstractmethod
    def K(self) -> Any:
        """L M^-1 L': all of it (K, K) when dense, its values at the pattern when sparse."""

    @abstractmethod
    def inner(self, B: Array, D: Array) -> Array:
        """B'KD for (K, m) columns."""

    @abstractmethod
    def solve(self, B: Array) -> Array:
        """K B for (K, m) columns."""

    @abstractmethod
    def trace_with(self, E: Any) -> float:
        """Sum of K times a symmetric (K, K) matrix, entry by entry."""

    @abstractmethod
    def diagonal_blocks(self) -> list[Array]:
        """(q, q, J) Z'V^-1Z of each group of every factor: A - AKA."""

    @abstractmethod
    def quadratic(self, rows: list[csr_array]) -> Array:
        """(q, q, J) H_a K H_b' of each group, for q sparse (J, K) matrices H."""

    def left(self, B: Array) -> Array:
        """L'B for (K, m)."""
        return self._apply(B, [L.T for L in self.factors])

    def right(self, B: Array) -> Array:
        """L B for (K, m)."""
        return self._apply(B, self.factors)

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """First column, groups and columns of each factor."""
        return [(o, J, q) for o, (J, q) in zip(self.structure.offsets, self.structure.sizes, strict=True)]

    def _apply(self, B: Array, factors: list[Array]) -> Array:
        if all(q == 1 for _, q in self.structure.sizes):
            sizes = [J for J, _ in self.structure.sizes]
            return np.asarray(B * np.repeat([float(F[0, 0]) for F in factors], sizes)[:, None])
        result = np.empty_like(B)
        for (o, J, q), F in zip(self.places, factors, strict=True):
            own = slice(o, o + J * q)
            result[own] = np.einsum("ab,jbm->jam", F, B[own].reshape(J, q, -1)).reshape(J * q, -1)
        return result


def pattern_gram(left: csr_array, right: csr_array | None = None, *, sparse: bool) -> Any:
    """(K, K) left'right for sparse (J, K) rows, right being left itself by default: by whichever product is cheaper."""
    (J, width), other = left.shape, left if right is None else right
    if sparse:
        return csc_array(left.T @ other)
    work = float(np.diff(left.indptr) @ np.diff(other.indptr).astype(np.float64))
    if DENSE_WORK * (work + ENTRY_WORK * min(work, float(width) ** 2)) < float(J) * width**2:
        return np.asarray((left.T @ other).toarray())
    return _dense_gram(left, other)


def _dense_gram(left: csr_array, right: csr_array) -> Array:
    """left'right by dense products of blocks of rows."""
    J, width = left.shape
    step = max(1, 64_000_000 // (8 * width))
    total = np.zeros((width, width))
    for start in range(0, J, step):
        rows = left[start : start + step].toarray()
        total += rows.T @ (rows if right is left else right[start : start + step].toarray())
    return total
