"""The rest with a sparse matrix: a factorisation and the inverse on its pattern, nothing of size K x K.

The pattern is that of Z'Z of the rest together with the fill that absorbing the chain makes: every two columns that
meet in a group of the chain.  All quadratic forms of a group's row lie on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array

from mlsql._arrays import Array, IntArray
from mlsql.errors import FitError
from mlsql.likelihood.rest import SMALL_FACTOR, Rest
from mlsql.likelihood.sparse import Factor, Symbolic, symbolic
from mlsql.moments.structure import Structure

PAIRS = 20_000_000
"""Pairs of entries of groups' rows that are looked up at a time."""


@dataclass(frozen=True)
class SparsePattern:
    """The pattern of M, studied once for all evaluations.

    Attributes
    ----------
    symbolic : Symbolic
    codes : (nnz,) of int
        column * K + row of each entry, sorted.
    """

    symbolic: Symbolic
    codes: IntArray

    def onto(self, matrix: csc_array) -> Array:
        """The values of a matrix at the entries of the pattern."""
        ordered = csc_array(matrix)
        ordered.sum_duplicates()
        values = np.zeros(len(self.codes))
        values[self.places(_codes(ordered))] = ordered.data
        return values

    def places(self, codes: IntArray) -> IntArray:
        """Positions of entries in the pattern."""
        return np.searchsorted(self.codes, codes)

    def matrix(self, values: Array) -> csc_array:
        """Values at the entries of the pattern as a matrix."""
        known = self.symbolic.pattern
        return csc_array((values, known.indices, known.indptr), shape=known.shape)


def study(structure: Structure) -> SparsePattern:
    """The pattern of a structure's rest and its symbolic factorisation."""
    assert isinstance(structure.matrix, csc_array)
    whole = csc_array(structure.matrix)
    whole.data = np.ones(len(whole.data))
    for pattern in structure.patterns:
        rows = pattern.rows(np.ones(len(pattern.indices)))
        whole = csc_array(whole + rows.T @ rows)
    whole = csc_array(whole + csc_array((np.ones(structure.width), (np.arange(structure.width),) * 2)))
    whole.sum_duplicates()
    return SparsePattern(symbolic(whole), _codes(whole))


@dataclass(frozen=True)
class SparseRest(Rest):
    """The rest, factorised.

    Attributes
    ----------
    pattern : SparsePattern
    factor : Factor
        Of M.
    """

    pattern: SparsePattern
    factor: Factor

    def inner(self, B: Array, D: Array) -> Array:
        """B'KD for (K, m) columns."""
        return np.asarray(self.left(B).T @ self.factor.solve(self.left(D)))

    def solve(self, B: Array) -> Array:
        """K B for (K, m) columns."""
        return self.right(self.factor.solve(self.left(B)))

    @cached_property
    def M_inverse(self) -> Array:
        """M^-1 at the entries of the pattern."""
        return self.pattern.onto(self.factor.selected_inverse())

    @cached_property
    def K(self) -> Array:
        """K at the entries of the pattern."""
        return _congruent(self, self.M_inverse, [L.T for L in self.factors])

    def trace_with(self, E: Any) -> float:
        """Sum of K times a symmetric sparse (K, K) matrix, entry by entry."""
        return 0.0 if self.zero else float(self.K @ self.pattern.onto(E))

    def diagonal_blocks(self) -> list[Array]:
        """(q, q, J) Z'V^-1Z of each group of every factor.

        It is recovered from M^-1; where a coefficient does not vary, from that of one that hardly does.
        """
        if any(np.min(np.abs(np.diag(L))) <= SMALL_FACTOR for L in self.factors):
            raised = [
                L + np.diag(np.where(np.abs(np.diag(L)) <= SMALL_FACTOR, 2 * SMALL_FACTOR, 0.0)) for L in self.factors
            ]
            return factorise_sparse(self.structure, self.pattern, self.A, raised).diagonal_blocks()
        found = []
        for (o, J, q), L in zip(self.places, self.factors, strict=True):
            back, index = np.linalg.inv(L), o + np.arange(J) * q
            inner = np.empty((q, q, J))
            for a in range(q):
                for b in range(q):
                    codes = (index + b) * self.structure.width + index + a
                    inner[a, b] = (a == b) - self.M_inverse[self.pattern.places(codes)]
            found.append(np.einsum("ca,cdj,db->abj", back, inner, back, optimize=True))
        return found

    def quadratic(self, rows: list[csr_array]) -> Array:
        """(q, q, J) H_a K H_b' of each group: every pair of a row's entries is on the pattern."""
        q, (J, width) = len(rows), rows[0].shape
        G = np.zeros((q, q, J))
        if self.zero:
            return G
        for a in range(q):
            for b in range(a + 1):
                G[a, b] = G[b, a] = self._pairs(rows[a], rows[b], J, width)
        return G

    def _pairs(self, left: csr_array, right: csr_array, J: int, width: int) -> Array:
        counts = np.diff(left.indptr) * np.diff(right.indptr)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        total, start = np.zeros(J), 0
        while start < J:
            stop = max(start + 1, int(np.searchsorted(bounds, bounds[start] + PAIRS, side="right")) - 1)
            one, other = left[start:stop], right[start:stop]
            row = np.repeat(np.arange(stop - start), np.diff(one.indptr))
            each = np.diff(other.indptr)[row]
            at = np.repeat(np.arange(len(row)), each)
            within = np.arange(len(at)) - np.repeat(np.cumsum(each) - each, each)
            match = other.indptr[row][at] + within
            codes = other.indices[match].astype(np.int64) * width + one.indices[at]
            values = one.data[at] * other.data[match] * self.K[self.pattern.places(codes)]
            total[start:stop] = np.bincount(row[at], weights=values, minlength=stop - start)
            start = stop
        return total


def factorise_sparse(structure: Structure, pattern: SparsePattern, A: csc_array, factors: list[Array]) -> SparseRest:
    """Factorise the rest once the chain is absorbed."""
    known = pattern.symbolic.pattern
    identity = csc_array((np.ones(structure.width), (np.arange(structure.width),) * 2))
    partial = SparseRest(structure, A, factors, 0.0, pattern, None)  # type: ignore[arg-type]
    M = pattern.matrix(_congruent(partial, pattern.onto(A), factors) + pattern.onto(identity))
    assert known.nnz == M.nnz
    try:
        factor = pattern.symbolic.factorise(M)
    except np.linalg.LinAlgError as error:
        raise FitError(f"the joint matrix of the crossed factors is not positive definite: {error}") from error
    return replace(partial, log_det=factor.log_det, factor=factor)


def _congruent(rest: SparseRest, values: Array, factors: list[Array]) -> Array:
    """Values of F'XF at the pattern, F block diagonal of each group's (q, q) factor."""
    blocks, sizes = [], rest.structure.sizes
    if all(q == 1 for _, q in sizes):
        scale = np.repeat([float(F[0, 0]) for F in factors], [J for J, _ in sizes])
        known = rest.pattern.symbolic.pattern
        columns = np.repeat(np.arange(rest.structure.width), np.diff(known.indptr))
        return np.asarray(values * scale[known.indices] * scale[columns])
    for (o, J, q), F in zip(rest.places, factors, strict=True):
        index = o + np.arange(J) * q
        for a in range(q):
            for b in range(q):
                if a == b or F[a, b]:
                    blocks.append((index + a, index + b, np.full(J, F[a, b])))
    row, column, data = (np.concatenate(part) for part in zip(*blocks, strict=True))
    whole = csc_array((data, (row, column)), shape=rest.pattern.symbolic.pattern.shape)
    return rest.pattern.onto(csc_array(whole.T @ rest.pattern.matrix(values) @ whole))


def _codes(matrix: csc_array) -> IntArray:
    columns = np.repeat(np.arange(matrix.shape[1], dtype=np.int64), np.diff(matrix.indptr))
    return np.asarray(columns * matrix.shape[0] + matrix.indices)
