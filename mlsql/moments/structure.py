"""`Structure`: which factors nest in which, and Z'Z laid out for absorbing nested factors and solving the rest.

A *chain* of factors, each nested in the next, is absorbed from the finest up: no matrix larger than a group's appears.
What is not in the chain is the *rest*: its columns meet in one symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array, csc_array, csr_array

from mlsql._arrays import Array, IntArray
from mlsql.moments.couplings import Coupling
from mlsql.moments.incidence import Incidence

DENSE = 6_000
"""Columns of the rest up to which its matrix is dense.  A dense factorisation of 6,000 columns takes about 3 s and
0.3 GB a copy; beyond, a sparse one is tried, whose cost depends on how the factors meet."""


@dataclass(frozen=True, slots=True)
class Link:
    """A factor of the chain and one above it: each group has one parent, and siblings stand together.

    Attributes
    ----------
    parent : (J,) of int, nondecreasing
    starts : (J_parent,) of int
        First child of each parent.
    cross : (q, q_parent, J)
    """

    parent: IntArray
    starts: IntArray
    cross: Array


@dataclass(frozen=True, slots=True)
class Pattern:
    """A factor of the chain against the columns of the rest: the sparse rows of its groups.

    Attributes
    ----------
    indptr : (J + 1,) of int
    indices : (nnz,) of int
        Columns of the rest.
    row : (nnz,) of int
    data : (q, nnz)
    up : tuple of (nnz,) of int
        Position of each entry's column in the rows of the parents, for each factor above in the chain.
    width : int
        Columns of the rest, K.
    """

    indptr: IntArray
    indices: IntArray
    row: IntArray
    data: Array
    up: tuple[IntArray, ...]
    width: int

    def rows(self, values: Array) -> csr_array:
        """(J, K) rows with these (nnz,) values."""
        return csr_array((values, self.indices, self.indptr), shape=(len(self.indptr) - 1, self.width))


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Structure:
    """Z'Z of all factors.

    Attributes
    ----------
    chain, rest : tuple of int
        Positions of factors, the finest first.
    own : tuple of (q, q, J)
        Z'Z by group of each factor of the chain.
    links : mapping of (int, int) to Link
        By positions within the chain.
    patterns : tuple of Pattern
        One per factor of the chain; none when there is no rest.
    offsets : tuple of int
        First column of each factor of the rest; groups in order, a group's columns together.
    sizes : tuple of (int, int)
        Groups and columns of each factor of the rest.
    matrix : (K, K)
        Z'Z of the rest: dense, or sparse when it has more than DENSE columns.
    overlaps : (q, q, q, q)
        [b, c, d, a]: sum over pairs of groups of cross[b, c] cross[a, d].
    """

    chain: tuple[int, ...]
    rest: tuple[int, ...]
    own: tuple[Array, ...]
    links: Mapping[tuple[int, int], Link]
    patterns: tuple[Pattern, ...]
    offsets: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    matrix: Array | csc_array
    overlaps: Array

    @property
    def width(self) -> int:
        """Columns of the rest, K."""
        return sum(J * q for J, q in self.sizes)

    @property
    def sparse(self) -> bool:
        """Whether the rest is held sparse."""
        return not isinstance(self.matrix, np.ndarray)

    def rows(self) -> list[list[csr_array]]:
        """Z'Z of each factor of the chain against the rest: one (J, K) matrix per column."""
        return [[pattern.rows(values) for values in pattern.data] for pattern in self.patterns]

    def rest_diagonal(self) -> list[Array]:
        """(q, q, J) Z'Z by group of each factor of the rest."""
        found = []
        for o, (J, q) in zip(self.offsets, self.sizes, strict=True):
            blocks = np.empty((q, q, J))
            index = o + np.arange(J) * q
            for a in range(q):
                for b in range(q):
                    blocks[a, b] = np.asarray(self.matrix[index + a, index + b]).ravel()
            found.append(blocks)
        return found


def nested_pairs(incidences: Sequence[Incidence]) -> set[tuple[int, int]]:
    """(t, s) for each factor t whose every group is within one of factor s."""
    return {
        (t, s)
        for t, one in enumerate(incidences)
        for s, other in enumerate(incidences)
        if t != s and one.n_groups >= other.n_groups and one.parent_in(other) is not None
    }


def choose_chain(
    groups: Sequence[int], widths: Sequence[int], nested: Set[tuple[int, int]], memberships: Set[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The chain of nested factors that leaves the fewest columns to the rest; and the rest, largest first.

    Parameters
    ----------
    groups, widths : sequence of int
        Groups of each factor, and its random coefficients.
    nested : set of (int, int)
        As `nested_pairs` tells.
    memberships : set of int
        Factors that cannot be in a chain.
    """
    count = [J * q for J, q in zip(groups, widths, strict=True)]
    largest = sorted(range(len(count)), key=lambda t: -groups[t])
    best: list[int] = []
    for start in largest:
        if start in memberships:
            continue
        chain = [start]
        for s in largest:
            if s not in chain and all((t, s) in nested for t in chain):
                chain.append(s)
        if sum(count[t] for t in chain) > sum(count[t] for t in best):
            best = chain
    rest = sorted((t for t in range(len(count)) if t not in best), key=lambda t: -count[t])
    return tuple(best), tuple(rest)


def build_structure(
    chain: tuple[int, ...],
    rest: tuple[int, ...],
    own: Mapping[int, Array],
    couplings: Mapping[tuple[int, int], Coupling],
    columns: Sequence[IntArray],
    groups: Sequence[int],
) -> Structure:
    """Lay out the couplings.

    Parameters
    ----------
    chain, rest : tuple of int
    own : mapping of int to (q, q, J)
        Z'Z by group of the chain's factors.
    couplings : mapping of (int, int) to Coupling
        Of factors in the order chain, rest; of the rest's factors also with themselves.
    columns : sequence of (q,) of int
        Positions of each factor's coefficients among all.
    groups : sequence of int
    """
    links = {}
    for i, t in enumerate(chain):
        for j in range(i + 1, len(chain)):
            found = couplings[t, chain[j]]
            starts = np.flatnonzero(np.diff(found.right, prepend=-1)).astype(np.int64)
            links[i, j] = Link(found.right, starts, found.cross)
    sizes = tuple((groups[s], len(columns[s])) for s in rest)
    offsets = tuple(int(o) for o in np.cumsum([0, *[J * q for J, q in sizes]])[:-1])
    K = sum(J * q for J, q in sizes)
    patterns = _patterns(chain, rest, couplings, offsets, groups, links, K) if rest else ()
    return Structure(
        chain=chain,
        rest=rest,
        own=tuple(own[t] for t in chain),
        links=links,
        patterns=patterns,
        offsets=offsets,
        sizes=sizes,
        matrix=_rest_matrix(rest, couplings, offsets, K),
        overlaps=_overlaps(chain, own, couplings, columns),
    )


def _patterns(
    chain: tuple[int, ...],
    rest: tuple[int, ...],
    couplings: Mapping[tuple[int, int], Coupling],
    offsets: tuple[int, ...],
    groups: Sequence[int],
    links: Mapping[tuple[int, int], Link],
    K: int,
) -> tuple[Pattern, ...]:
    found: list[Pattern] = []
    codes: list[IntArray] = []
    for t in chain:
        rows, columns, data = [], [], []
        for s, offset in zip(rest, offsets, strict=True):
            pair = couplings[t, s]
            for b in range(pair.cross.shape[1]):
                rows.append(pair.left)
                columns.append(offset + pair.right * pair.cross.shape[1] + b)
                data.append(pair.cross[:, b])
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.lexsort((column, row))
        row, column = row[order], column[order]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=groups[t]))]).astype(np.int64)
        values = np.ascontiguousarray(np.concatenate(data, axis=1)[:, order])
        found.append(Pattern(indptr, column, row, values, (), K))
        codes.append(row * K + column)
    for i, pattern in enumerate(found):
        up = [np.searchsorted(codes[j], links[i, j].parent[pattern.row] * K + pattern.indices)
              for j in range(i + 1, len(chain))]  # fmt: skip
        found[i] = replace(pattern, up=tuple(up))
    return tuple(found)


def _rest_matrix(
    rest: tuple[int, ...], couplings: Mapping[tuple[int, int], Coupling], offsets: tuple[int, ...], K: int
) -> Array | csc_array:
    rows, columns, data = [], [], []
    for i, t in enumerate(rest):
        for j in range(i, len(rest)):
            pair = couplings[t, rest[j]]
            q, r, _ = pair.cross.shape
            for a in range(q):
                for b in range(r):
                    row, column = offsets[i] + pair.left * q + a, offsets[j] + pair.right * r + b
                    rows += [row] if i == j else [row, column]
                    columns += [column] if i == j else [column, row]
                    data += [pair.cross[a, b]] if i == j else [pair.cross[a, b]] * 2
    if not rest:
        return np.zeros((0, 0))
    whole = coo_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=(K, K))
    return np.asarray(whole.toarray()) if K <= DENSE else csc_array(whole)


def _overlaps(
    chain: tuple[int, ...],
    own: Mapping[int, Array],
    couplings: Mapping[tuple[int, int], Coupling],
    columns: Sequence[IntArray],
) -> Array:
    q = sum(len(c) for c in columns)
    found = np.zeros((q, q, q, q))
    pairs = {**couplings, **{(t, t): Coupling(*(np.arange(own[t].shape[2]),) * 2, own[t]) for t in chain}}
    for (t, s), pair in pairs.items():
        squares = pair.squares()
        left, right = columns[t], columns[s]
        found[np.ix_(left, right, right, left)] = squares.transpose(0, 2, 3, 1)
        found[np.ix_(right, left, left, right)] = squares.transpose(2, 0, 1, 3)
    return found
