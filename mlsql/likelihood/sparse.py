"""Large sparse positive definite matrices: log determinant, solutions, and the inverse where the factor is nonzero.

The matrix's pattern is studied once (`symbolic`); each set of values is then factorised by the multifrontal method,
M = P'LL'P, with one dense block of columns a supernode.  The *selected inverse* holds the entries of M^-1 on the
factor's pattern, which Takahashi's equations give from the last column to the first without any other entry: for a
block with diagonal L11 and rows L21 below it, Y = L21 L11^-1 and Z22 the inverse on those rows,

    Z21 = -Z22 Y,   Z11 = (L11 L11')^-1 - Y'Z21.

A block is kept transposed, [L11' L21'] with columns contiguous, so that every step works in place on one long array.

Takahashi, Fagan & Chin (1973), 8th PICA Conference, 63; Erisman & Tinney (1975), Comm. ACM 18, 177; Duff & Reid (1983),
ACM Trans. Math. Software 9, 302; Liu (1992), SIAM Review 34, 82.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dgemm, dsymm, dsyrk, dtrsm
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csc_array
from threadpoolctl import threadpool_limits

from mlsql._arrays import Array, IntArray
from mlsql.likelihood.supernodes import Supernodes, find_supernodes, multiplications, relabelled

SLAB = 256
"""Rows of an update matrix that are moved at a time: their indices and copies stay small beside it."""

THREADED = 1e11
"""Operations from which BLAS may use threads: most blocks are small, and threads that wait for each other on a busy
machine cost many times what they save."""


@dataclass(frozen=True, slots=True)
class Symbolic:
    """What a pattern alone decides: the order of elimination, the blocks of the factor, their cost.

    Attributes
    ----------
    pattern : csc_array (K, K)
        The pattern that was studied; its values mean nothing.
    supernodes : Supernodes
    offsets : (S + 1,)
        Where each block begins in the factor's storage.
    relative : S arrays
        Places of a block's rows among the columns and rows of its parent.
    children : S tuples
        The blocks whose update matrices each one receives.
    source, target : (E,)
        The pattern's entries that are read, and their places in the storage.
    inverse_pattern : csc_array (K, K) of int64
        Both triangles of the pattern; each value is the entry's place in the storage.
    entries : int
        Numbers that the factor stores (the zeros of merged blocks included).
    flops : float
        Floating point operations of a factorisation; a selected inverse takes about twice as many.
    workspace : int
        Numbers held beside the factor while it is made, or beside both while the inverse is.
    """

    pattern: csc_array
    supernodes: Supernodes
    offsets: IntArray
    relative: tuple[IntArray, ...]
    children: tuple[tuple[int, ...], ...]
    source: IntArray
    target: IntArray
    inverse_pattern: csc_array
    entries: int
    flops: float
    workspace: int

    def factorise(self, values: csc_array) -> Factor:
        """Cholesky factor of a matrix with this pattern.

        Parameters
        ----------
        values : csc_array (K, K)
            Symmetric, with exactly the pattern given to `symbolic`; of two triangles the lower one is read.

        Raises
        ------
        ValueError
            When the pattern is another one.
        numpy.linalg.LinAlgError
            When the matrix is not positive definite, or holds values that are not finite.
        """
        if not (
            values.shape == self.pattern.shape
            and np.array_equal(values.indptr, self.pattern.indptr)
            and np.array_equal(values.indices, self.pattern.indices)
        ):
            raise ValueError(
                f"a matrix of shape {values.shape} with {values.nnz} entries does not have the pattern that was "
                f"studied: {self.pattern.shape}, {self.pattern.nnz} entries; call symbolic() for the new pattern"
            )
        data = values.data[self.source]
        if not np.isfinite(data).all():
            raise np.linalg.LinAlgError(f"{np.count_nonzero(~np.isfinite(data))} values of the matrix are not finite")
        storage = np.zeros(self.entries)
        storage[self.target] = data
        with _threads(self.flops):
            self._eliminate(storage)
        return Factor(self, storage)

    def _eliminate(self, storage: Array) -> None:
        """Turn the matrix's blocks into the factor's, children before parents."""
        updates: dict[int, Array] = {}
        for s, block in enumerate(self.blocks(storage)):
            width, height = block.shape
            below = height - width
            update = np.zeros((below, below), order="F") if self.children[s] else None
            for child in self.children[s]:
                _add_update(block, update, updates.pop(child), self.relative[child])
            _, failed = dpotrf(block[:, :width], lower=0, overwrite_a=1)
            if failed:
                self._refuse(int(self.supernodes.starts[s]) + failed - 1)
            if below:
                edge = block[:, width:]
                dtrsm(1.0, block[:, :width], edge, trans_a=1, overwrite_b=1)
                if update is None:
                    updates[s] = dsyrk(-1.0, edge, trans=1)
                else:
                    updates[s] = dsyrk(-1.0, edge, beta=1.0, c=update, trans=1, overwrite_c=1)

    @property
    def memory(self) -> int:
        """Most bytes that a factorisation and the selected inverse after it hold at a time, arguments not counted."""
        return 8 * (2 * self.entries + self.workspace + self.inverse_pattern.nnz)

    def blocks(self, storage: Array) -> Iterator[Array]:
        """The transposed blocks of a storage, (width, height) each: views, columns contiguous."""
        widths = np.diff(self.supernodes.starts).tolist()
        offsets = self.offsets.tolist()
        for s, width in enumerate(widths):
            yield storage[offsets[s] : offsets[s + 1]].reshape((width, -1), order="F")

    def _refuse(self, pivot: int) -> None:
        raise np.linalg.LinAlgError(
            f"the matrix is not positive definite: the pivot of row {self.supernodes.order[pivot]} "
            f"(eliminated as number {pivot} of {len(self.supernodes.order)}) is not positive"
        )


@dataclass(frozen=True, slots=True)
class Factor:
    """M = P'LL'P.

    Attributes
    ----------
    symbolic : Symbolic
    storage : (entries,)
        The blocks of L, one after another.
    """

    symbolic: Symbolic
    storage: Array

    @property
    def log_det(self) -> float:
        """log|M|."""
        diagonals = [np.diagonal(block) for block in self.symbolic.blocks(self.storage)]
        return 2.0 * float(np.log(np.concatenate(diagonals)).sum())

    def solve(self, B: Array) -> Array:
        """M^-1 B for B (K, m) or a vector (K,)."""
        nodes = self.symbolic.supernodes
        if B.shape[0] != len(nodes.order):
            raise ValueError(f"the right-hand side has {B.shape[0]} rows, the matrix {len(nodes.order)}")
        X = np.ascontiguousarray(B.reshape(len(B), -1)[nodes.order], dtype=np.float64)
        with _threads(self.symbolic.flops):
            self._substitute(X)
        result = np.empty_like(X)
        result[nodes.order] = X
        return result.reshape(B.shape)

    def _substitute(self, X: Array) -> None:
        """Solve in place, rows in the order of elimination."""
        starts, rows = self.symbolic.supernodes.starts.tolist(), self.symbolic.supernodes.rows
        blocks = list(self.symbolic.blocks(self.storage))
        for s, block in enumerate(blocks):
            width = len(block)
            own = X[starts[s] : starts[s + 1]]
            dtrsm(1.0, block[:, :width], own.T, side=1, overwrite_b=1)
            X[rows[s]] -= block[:, width:].T @ own
        for s in range(len(blocks) - 1, -1, -1):
            block, width = blocks[s], len(blocks[s])
            own = X[starts[s] : starts[s + 1]]
            own -= block[:, width:] @ X[rows[s]]
            dtrsm(1.0, block[:, :width], own.T, side=1, trans_a=1, overwrite_b=1)

    def selected_inverse(self) -> csc_array:
        """The entries of M^-1 on the pattern of M + M', symmetric, in the matrix's own order.

        Where the pattern that was studied holds both triangles, the answer's entries are in the order of its own.
        Entries that are wanted beside the matrix's nonzeros can be put into the pattern as zeros.
        """
        storage = np.empty_like(self.storage)
        with _threads(self.symbolic.flops):
            self._invert(storage)
        places = self.symbolic.inverse_pattern
        return csc_array((storage[places.data], places.indices, places.indptr), shape=places.shape)

    def _invert(self, storage: Array) -> None:
        """Fill a storage with the inverse, parents before children.  Of symmetric blocks the upper triangle is right.

        Places among a parent's rows ascend, so that an upper triangle is all that the children need.
        """
        factors, inverses = list(self.symbolic.blocks(self.storage)), list(self.symbolic.blocks(storage))
        # the inverse on a child's rows, gathered from the parent while its front is at hand
        known: dict[int, Array] = {}
        for s in range(len(factors) - 1, -1, -1):
            factor, inverse = factors[s], inverses[s]
            width, height = factor.shape
            inverse[:, :width] = factor[:, :width]
            dpotri(inverse[:, :width], overwrite_c=1)
            if width < height:
                Z22 = known.pop(s)
                Y = dtrsm(1.0, factor[:, :width], factor[:, width:])
                edge = dsymm(-1.0, Z22, Y, side=1, c=inverse[:, width:], overwrite_c=1)
                dgemm(-1.0, edge, Y, beta=1.0, c=inverse[:, :width], trans_b=1, overwrite_c=1)
            if self.symbolic.children[s]:
                front = np.empty((height, height), order="F")
                front[:width] = inverse
                if width < height:
                    front[width:, width:] = Z22
                for child in self.symbolic.children[s]:
                    known[child] = _gathered(front, self.symbolic.relative[child])


@contextmanager
def _threads(flops: float) -> Iterator[None]:
    """Keep BLAS to one thread where there is little to do."""
    if flops >= THREADED:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


def symbolic(pattern: csc_array) -> Symbolic:
    """Study a pattern: what a factorisation will hold and cost, known before any is made.

    Parameters
    ----------
    pattern : csc_array (K, K)
        A symmetric pattern, or one triangle of it, with a whole diagonal, sorted rows and no entry twice; values are
        not read.  Of a symmetric matrix rows and columns are the same, so that `csc_array` may stand for `csr_array`.

    Raises
    ------
    ValueError
        When the pattern is not of that kind.
    """
    K = pattern.shape[0]
    rows, columns = _entries(pattern)
    source = np.arange(len(rows))
    if (rows < columns).any() and (rows > columns).any():
        # both triangles are there: one is enough
        source = np.flatnonzero(rows >= columns)
    i, j = rows[source], columns[source]
    off = i != j
    nodes = find_supernodes(K, i[off], j[off])
    widths = np.diff(nodes.starts)
    heights = widths + np.array([len(r) for r in nodes.rows])
    offsets = np.concatenate([[0], np.cumsum(widths * heights)])
    children = nodes.children()
    target = _places(nodes, offsets, i, j)
    sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
    return Symbolic(
        pattern=pattern,
        supernodes=nodes,
        offsets=offsets,
        relative=nodes.relative(),
        children=children,
        source=source,
        target=target,
        inverse_pattern=_inverse_pattern(K, i, j, target),
        entries=int(offsets[-1]),
        flops=2.0 * sum(multiplications(width, height) for width, height in sizes),
        # beside the stacks: indices, values and sums of one slab
        workspace=max(_stack_up(sizes, children), _stack_down(sizes, children)) + 4 * SLAB * int(heights.max()),
    )


def _entries(pattern: csc_array) -> tuple[IntArray, IntArray]:
    """Row and column of each entry of a pattern that can be that of a positive definite matrix."""
    K = pattern.shape[0]
    if K == 0 or pattern.shape[1] != K:
        raise ValueError(f"the pattern has shape {pattern.shape}; it must be square, with a row at least")
    rows = pattern.indices.astype(np.int64)
    columns = np.repeat(np.arange(K), np.diff(pattern.indptr))
    keys = columns * K + rows
    if not (keys[1:] > keys[:-1]).all():
        raise ValueError("the pattern's rows are not sorted, or an entry is there twice; call sum_duplicates() first")
    missing = np.setdiff1d(np.arange(K), rows[rows == columns])
    if len(missing):
        raise ValueError(
            f"{len(missing)} entries of the diagonal are not in the pattern, that of row {missing[0]} the first; a "
            "positive definite matrix has them all"
        )
    lower, upper = keys[rows > columns], (rows * K + columns)[rows < columns]
    if len(lower) and len(upper) and not np.array_equal(lower, np.sort(upper)):
        raise ValueError(
            f"the pattern has {len(lower)} entries below the diagonal and {len(upper)} above it, and they are not "
            "each other's mirror; give one triangle or a symmetric pattern"
        )
    return rows, columns


def _places(nodes: Supernodes, offsets: IntArray, i: IntArray, j: IntArray) -> IntArray:
    """Where the factor's storage holds the entries (i, j) of the matrix."""
    K, starts, widths = len(nodes.order), nodes.starts, np.diff(nodes.starts)
    pivots, rows = relabelled(nodes.order, i, j)
    owner = np.searchsorted(starts, pivots, side="right") - 1
    # the rows of all blocks as one sorted list of (block, row)
    lengths = np.array([len(r) for r in nodes.rows])
    keys = np.repeat(np.arange(len(widths)) * K, lengths) + np.concatenate(nodes.rows)
    below = np.searchsorted(keys, owner * K + rows) - (np.cumsum(lengths) - lengths)[owner]
    column = np.where(rows < starts[owner + 1], rows - starts[owner], widths[owner] + below)
    places: IntArray = offsets[owner] + column * widths[owner] + pivots - starts[owner]
    return places


def _inverse_pattern(K: int, i: IntArray, j: IntArray, target: IntArray) -> csc_array:
    off = i != j
    rows, columns = np.concatenate([i, j[off]]), np.concatenate([j, i[off]])
    in_order = np.argsort(columns * K + rows)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=K))]).astype(np.int32)
    places = np.concatenate([target, target[off]])[in_order]
    return csc_array((places, rows[in_order].astype(np.int32), indptr), shape=(K, K))


def _stack_up(sizes: list[tuple[int, int]], children: tuple[tuple[int, ...], ...]) -> int:
    """Most numbers held in update matrices during a factorisation."""
    held = most = 0
    for s, (width, height) in enumerate(sizes):
        held += (height - width) ** 2
        most = max(most, held)
        held -= sum((sizes[c][1] - sizes[c][0]) ** 2 for c in children[s])
    return most


def _stack_down(sizes: list[tuple[int, int]], children: tuple[tuple[int, ...], ...]) -> int:
    """Most numbers held in fronts and gathered inverses during a selected inverse."""
    held = most = 0
    for s in range(len(sizes) - 1, -1, -1):
        width, height = sizes[s]
        below = height - width
        front = height**2 if children[s] else 0
        handed = sum((sizes[c][1] - sizes[c][0]) ** 2 for c in children[s])
        most = max(most, held + width * below, held + front + handed)
        held += handed - below**2
    return most


def _add_update(block: Array, update: Array | None, incoming: Array, places: IntArray) -> None:
    """Add a child's update matrix to its parent's block and, below that, to the parent's own update matrix.

    Upper triangles with columns contiguous are lower triangles with rows contiguous: those are walked, in slabs.
    """
    width = len(block)
    split = int(places.searchsorted(width))
    values = incoming.T
    for begin in range(0, len(places), SLAB):
        end = min(begin + SLAB, len(places))
        own, first = min(split, end), max(split, begin)
        _add_at(block.T, places[begin:end], places[:own], values[begin:end, :own])
        if update is not None and first < end:
            _add_at(update.T, places[first:end] - width, places[split:end] - width, values[first:end, split:end])


def _add_at(target: Array, rows: IntArray, columns: IntArray, values: Array) -> None:
    # one flat index: measured twice as fast as a pair of them
    target.reshape(-1)[(rows[:, None] * target.shape[1] + columns).ravel()] += values.ravel()


def _gathered(front: Array, places: IntArray) -> Array:
    """front[places, places], of which the upper triangle alone is right."""
    result = np.empty((len(places), len(places)), order="F")
    for begin in range(0, len(places), SLAB):
        end = min(begin + SLAB, len(places))
        result.T[begin:end, :end] = front.T.take(places[begin:end], axis=0).take(places[:end], axis=1)
    return result
