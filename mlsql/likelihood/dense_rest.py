"""The rest with a dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_array

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.likelihood.rest import SMALL_FACTOR, Rest
from mlsql.moments.structure import Structure

ROWS_BYTES = 64_000_000
"""Rows of the chain against the rest are multiplied out in blocks of this size."""


@dataclass(frozen=True)
class DenseRest(Rest):
    """The rest, factorised.

    Attributes
    ----------
    C : (K, K)
        Lower Cholesky factor of M; the other triangle is zero.
    """

    C: Array

    def inner(self, B: Array, D: Array) -> Array:
        """B'KD for (K, m) columns."""
        half = self._half(B)
        return np.asarray(half.T @ (half if D is B else self._half(D)))

    def solve(self, B: Array) -> Array:
        """K B for (K, m) columns."""
        inner = solve_triangular(self.C, self._half(B), lower=True, trans="T", check_finite=False)
        return self.right(np.asarray(inner))

    @cached_property
    def M_inverse(self) -> Array:
        """(K, K) M^-1."""
        inverse, info = dpotri(self.C, lower=1)
        assert info == 0
        full = inverse + inverse.T
        full[np.diag_indices_from(full)] *= 0.5
        return np.asarray(full)

    @cached_property
    def K(self) -> Array:
        """(K, K) L M^-1 L'."""
        return self.right(self.right(self.M_inverse).T)

    def trace_with(self, E: Any) -> float:
        """Sum of K times a symmetric (K, K) matrix, entry by entry."""
        return 0.0 if self.zero else float(np.vdot(self.K, E))

    def diagonal_blocks(self) -> list[Array]:
        """(q, q, J) Z'V^-1Z of each group of every factor: A - AKA."""
        if self.zero:
            return [_blocks(self.A[o : o + J * q, o : o + J * q], J, q) for o, J, q in self.places]
        found = []
        for (o, J, q), L in zip(self.places, self.factors, strict=True):
            own = slice(o, o + J * q)
            if np.min(np.abs(np.diag(L))) > SMALL_FACTOR:
                back = np.linalg.inv(L)
                inner = np.eye(q)[:, :, None] - _blocks(self.M_inverse[own, own], J, q)
                found.append(np.einsum("ca,cdj,db->abj", back, inner, back, optimize=True))
                continue
            half = self._half(self.A[:, own])
            found.append(_blocks(self.A[own, own], J, q) - _block_gram(half, J, q))
        return found

    def quadratic(self, rows: list[csr_array]) -> Array:
        """(q, q, J) H_a K H_b' of each group, in blocks of groups."""
        q, (J, width) = len(rows), rows[0].shape
        G = np.zeros((q, q, J))
        if self.zero:
            return G
        step = max(1, ROWS_BYTES // (8 * width))
        for start in range(0, J, step):
            part = slice(start, start + step)
            for a in range(q):
                half = np.asarray(rows[a][part] @ self.K)
                for b in range(a + 1):
                    G[a, b, part] = G[b, a, part] = np.asarray(rows[b][part].multiply(half).sum(axis=1)).ravel()
        return G

    def _half(self, B: Array) -> Array:
        """C^-1 L'B for (K, m) columns: its square is B'KB."""
        return np.asarray(solve_triangular(self.C, self.left(B), lower=True, check_finite=False))


def factorise_dense(structure: Structure, A: Array, factors: list[Array]) -> DenseRest:
    """Factorise the rest once the chain is absorbed."""
    partial = DenseRest(structure, A, factors, 0.0, A)
    if partial.zero:
        return DenseRest(structure, A, factors, 0.0, np.eye(len(A)))
    M = partial.left(partial.left(A).T)
    M[np.diag_indices_from(M)] += 1.0
    # M is symmetric: its transpose is what LAPACK wants, without a copy
    C, info = dpotrf(M.T, lower=1, clean=1, overwrite_a=1)
    if info:
        raise FitError(f"the joint matrix of the crossed factors lost its positive definiteness at column {info}")
    return DenseRest(structure, A, factors, 2.0 * float(np.log(np.diag(C)).sum()), C)


def _blocks(M: Array, J: int, q: int) -> Array:
    """(q, q, J) diagonal blocks of (J q, J q)."""
    index = np.arange(J)
    return np.ascontiguousarray(M.reshape(J, q, J, q)[index, :, index, :].transpose(1, 2, 0))


def _block_gram(half: Array, J: int, q: int) -> Array:
    """(q, q, J) diagonal blocks of half'half."""
    parts = half.reshape(len(half), J, q)
    return np.asarray(np.einsum("kja,kjb->abj", parts, parts, optimize=True))
