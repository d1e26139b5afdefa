"""The shape of a sparse Cholesky factor, found before any number is seen: order, elimination tree, supernodes.

The order is multiple minimum degree (Liu 1985), as SuperLU computes it.  The elimination tree comes from a minimum
spanning tree: with the later vertex of an edge as its weight, Kruskal's algorithm joins components in just the order in
which elimination does.  Column counts are those of Gilbert, Ng & Peyton (1994), all rows at once: in a postordered tree
the lowest common ancestor of u < v is the largest parent among u, ..., v - 1, so that counts are range maxima and sums.

A *supernode* is a run of columns with one row structure, kept as a dense block.  Blocks are merged along the tree as
long as a model of the time says so (Ashcraft & Grimes 1989): a few zeros cost less than another turn of the loop.

Liu (1985), ACM Trans. Math. Software 11, 141; Ashcraft & Grimes (1989), same journal 15, 291; Liu (1990), SIAM J.
Matrix Anal. Appl. 11, 134; Gilbert, Ng & Peyton (1994), same journal 15, 1075.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.sparse.linalg import spilu

from mlsql._arrays import IntArray

TURN = 2.5e-5
"""Seconds a supernode costs beside its arithmetic, in a factorisation and a selected inverse together."""

MULTIPLY = 1e-9
"""Seconds of one multiplication of the factorisation, with those of the selected inverse that follow from it."""

STORE = 1e-7
"""Seconds of one number of the factor: to clear and to copy, and as the price of memory."""

ADD = 1e-8
"""Seconds of one number of the update matrix: to add into the parent, to gather from it."""


@dataclass(frozen=True, slots=True)
class Supernodes:
    """Blocks of columns of the factor, children before parents.

    Attributes
    ----------
    order : (K,)
        order[i] is the matrix's row that is eliminated as number i.
    starts : (S + 1,)
        First column of each supernode, and K.
    parents : (S,)
        The supernode that receives the update of this one; -1 at a root.
    rows : S arrays
        Sorted rows below the diagonal block, in the order of elimination.
    """

    order: IntArray
    starts: IntArray
    parents: IntArray
    rows: tuple[IntArray, ...]

    def children(self) -> tuple[tuple[int, ...], ...]:
        """The supernodes whose updates each one receives."""
        found: list[list[int]] = [[] for _ in self.rows]
        for s, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                found[parent].append(s)
        return tuple(tuple(c) for c in found)

    def relative(self) -> tuple[IntArray, ...]:
        """Places of each supernode's rows among the columns and rows of its parent."""
        starts = self.starts.tolist()
        fronts = [np.concatenate([np.arange(starts[s], starts[s + 1]), r]) for s, r in enumerate(self.rows)]
        return tuple(
            fronts[p].searchsorted(r) if p >= 0 else r for p, r in zip(self.parents.tolist(), self.rows, strict=True)
        )


def find_supernodes(K: int, i: IntArray, j: IntArray) -> Supernodes:
    """Order the matrix and find the blocks of its factor.

    Parameters
    ----------
    K : int
    i, j : (E,)
        The edges of the matrix's graph: positions of its nonzero entries off the diagonal, each pair once.
    """
    order = _minimum_degree(K, i, j)
    low, high = relabelled(order, i, j)
    parents = _elimination_tree(K, low, high)
    position = _postorder(parents)
    order, parents = _moved(order, parents, position)
    low, high = relabelled(order, i, j)
    owner, block_parents, widths, heights = _fundamental(parents, _column_counts(parents, low, high))
    kept, compact = np.unique(_amalgamated(block_parents, widths, heights), return_inverse=True)
    owner = compact[owner]
    block_parents = np.where(block_parents[kept] >= 0, compact[block_parents[kept]], -1)
    # children before parents again, now block by block; columns of a block keep their order
    position = _postorder(block_parents)
    blocks, block_parents = _moved(np.arange(len(position)), block_parents, position)
    owner = position[owner]
    order = order[np.argsort(owner, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(blocks)))])
    low, high = relabelled(order, i, j)
    return Supernodes(order, starts, block_parents, _rows(starts, block_parents, low, high))


def _minimum_degree(K: int, i: IntArray, j: IntArray) -> IntArray:
    """Fill-reducing order, with the rows that many others meet last.

    Minimum degree takes quadratic time over such hubs; the bound on a row's degree is that of Amestoy, Davis & Duff
    (2004), ACM Trans. Math. Software 30, 381.
    """
    degrees = np.bincount(i, minlength=K) + np.bincount(j, minlength=K)
    hub = degrees > max(16.0, 10.0 * np.sqrt(K))
    rest = np.flatnonzero(~hub)
    if len(rest) == 0:
        return np.arange(K)
    place = np.cumsum(~hub) - 1
    inner = ~(hub[i] | hub[j])
    order = _superlu_order(len(rest), place[i[inner]], place[j[inner]])
    return np.concatenate([rest[order], np.flatnonzero(hub)])


def _superlu_order(K: int, i: IntArray, j: IntArray) -> IntArray:
    """The order that SuperLU makes for an incomplete factor which keeps nothing beside its diagonal."""
    rows, columns = np.concatenate([i, j, np.arange(K)]), np.concatenate([j, i, np.arange(K)])
    values = np.full(len(rows), -1.0)
    values[2 * len(i) :] = np.bincount(rows, minlength=K) + 1.0
    incomplete = spilu(
        coo_array((values, (rows, columns)), shape=(K, K)).tocsc(),
        drop_tol=1e3,
        fill_factor=1.0,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    order: IntArray = np.argsort(incomplete.perm_c)
    return order


def relabelled(order: IntArray, i: IntArray, j: IntArray) -> tuple[IntArray, IntArray]:
    """Edges as (earlier, later) in the order of elimination."""
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    a, b = position[i], position[j]
    return np.minimum(a, b), np.maximum(a, b)


def _elimination_tree(K: int, low: IntArray, high: IntArray) -> IntArray:
    """Parent of each column, -1 at a root."""
    # K - 1 edges decide the tree, so that the loop below is one over columns, not over entries
    forest = minimum_spanning_tree(coo_array((high + 1.0, (low, high)), shape=(K, K)).tocsr()).tocoo()
    by_later = np.argsort(forest.col, kind="stable")
    parents, ancestors = [-1] * K, [-1] * K
    for node, later in zip(forest.row[by_later].tolist(), forest.col[by_later].tolist(), strict=True):
        while ancestors[node] not in {-1, later}:
            # path compression
            ancestors[node], node = later, ancestors[node]  # noqa: PLW2901
        if ancestors[node] == -1:
            ancestors[node] = parents[node] = later
    return np.array(parents, dtype=np.int64)


def _postorder(parents: IntArray) -> IntArray:
    """New position of each node, such that every subtree is one run that ends with its root."""
    K, up = len(parents), parents.tolist()
    sizes = [1] * (K + 1)
    for node in range(K):
        if up[node] >= 0:
            sizes[up[node]] += sizes[node]
    # free[node] is the last free place in the node's subtree; the last entry (-1) stands for the roots' common parent
    free, position = [0] * K + [K - 1], [0] * K
    for node in range(K - 1, -1, -1):
        position[node] = free[up[node]]
        free[node] = position[node] - 1
        free[up[node]] -= sizes[node]
    return np.array(position, dtype=np.int64)


def _moved(values: IntArray, parents: IntArray, position: IntArray) -> tuple[IntArray, IntArray]:
    """Values of the nodes and their parents after a postordering."""
    moved, up = np.empty_like(values), np.empty_like(parents)
    moved[position] = values
    up[position] = np.where(parents >= 0, position[parents], -1)
    return moved, up


def _column_counts(parents: IntArray, low: IntArray, high: IntArray) -> IntArray:
    """Entries of each column of the factor, the diagonal included, for a postordered tree."""
    K = len(parents)
    up = np.where(parents >= 0, parents, K)
    # row i of the factor is the union of the paths from its entries up to i: add one where a path begins, take one
    # away where two meet and above i; sums over subtrees then count the rows that pass each column
    rows, columns = np.concatenate([high, np.arange(K)]), np.concatenate([low, np.arange(K)])
    in_order = np.argsort(rows * K + columns)
    rows, columns = rows[in_order], columns[in_order]
    together = np.flatnonzero(rows[:-1] == rows[1:])
    meet = _range_maxima(up, columns[together], columns[together + 1])
    change = np.bincount(columns, minlength=K + 1)
    change -= np.bincount(meet, minlength=K + 1) + np.bincount(up, minlength=K + 1)
    totals = np.concatenate([[0], np.cumsum(change[:K])])
    counts: IntArray = totals[1:] - totals[_first_descendants(up)]
    return counts


def _range_maxima(values: IntArray, begin: IntArray, end: IntArray) -> IntArray:
    """max(values[begin:end]) of many nonempty ranges."""
    result = np.empty_like(begin)
    level = np.frexp((end - begin).astype(np.float64))[1] - 1
    table = values
    for power in range(int(level.max(initial=-1)) + 1):
        if power > 0:
            half = 1 << (power - 1)
            table = np.maximum(table[:-half], table[half:])
        now = np.flatnonzero(level == power)
        result[now] = np.maximum(table[begin[now]], table[end[now] - (1 << power)])
    return result


def _first_descendants(up: IntArray) -> IntArray:
    first = list(range(len(up) + 1))
    for node, parent in enumerate(up.tolist()):
        first[parent] = min(first[parent], first[node])
    return np.array(first[:-1], dtype=np.int64)


def _fundamental(parents: IntArray, counts: IntArray) -> tuple[IntArray, IntArray, list[int], list[int]]:
    """Columns with one structure: owner of each column; parent, width and height of each block."""
    K = len(parents)
    same = (parents[:-1] == np.arange(1, K)) & (counts[:-1] == counts[1:] + 1)
    first = np.concatenate([[True], ~same])
    owner = np.cumsum(first) - 1
    last = np.append(np.flatnonzero(first)[1:] - 1, K - 1)
    block_parents = np.where(parents[last] >= 0, owner[parents[last]], -1)
    return owner, block_parents, np.bincount(owner).tolist(), counts[first].tolist()


def _seconds(width: int, height: int) -> float:
    """Time that a block of `width` columns and `height` rows takes."""
    below = height - width
    return TURN + MULTIPLY * multiplications(width, height) + STORE * width * height + ADD * below * below


def multiplications(width: int, height: int) -> float:
    """Multiplications that eliminating a block's columns takes."""
    below = height - width
    return width * (width * width / 6.0 + width * below / 2.0 + below * below / 2.0)


def _amalgamated(parents: IntArray, widths: list[int], heights: list[int]) -> IntArray:
    """Merge blocks into their parents and siblings while that saves time: the block that each one becomes part of.

    Widths and heights are updated on the way.
    """
    S, up = len(parents), parents.tolist()
    into = list(range(S))
    children: list[list[int]] = [[] for _ in range(S + 1)]
    for block in range(S):
        kept = []
        # the child that leaves the fewest zeros first
        for child in sorted(children[block], key=lambda c: widths[c] - heights[c]):
            width, height = widths[block] + widths[child], heights[block] + widths[child]
            apart = _seconds(widths[block], heights[block]) + _seconds(widths[child], heights[child])
            if _seconds(width, height) < apart:
                widths[block], heights[block], into[child] = width, height, block
                kept += children[child]
            else:
                kept.append(child)
        children[block] = kept
        children[up[block]].append(block)
    for parent in range(S + 1):
        if parent == S or into[parent] == parent:
            limit = 0 if parent == S else heights[parent]
            for group in _joined(children[parent], widths, heights, limit):
                for child in group:
                    into[child] = max(group)
    target = np.array(into)
    while not np.array_equal(target, target[target]):
        target = target[target]
    return target


def _joined(siblings: list[int], widths: list[int], heights: list[int], limit: int) -> list[list[int]]:
    """Children of one block, or all roots, in groups that are quicker as one block each.

    Rows below a child are among the `limit` rows of its parent; those of two children are at most the sum of both.
    """
    groups: list[list[int]] = []
    width = below = 0
    for child in sorted(siblings, key=lambda c: heights[c]):
        own = heights[child] - widths[child]
        both, rows = width + widths[child], min(below + own, limit)
        apart = _seconds(width, width + below) + _seconds(widths[child], heights[child])
        if groups and _seconds(both, both + rows) < apart:
            groups[-1].append(child)
            width, below = both, rows
        else:
            groups.append([child])
            width, below = widths[child], own
    return groups


def _rows(starts: IntArray, parents: IntArray, low: IntArray, high: IntArray) -> tuple[IntArray, ...]:
    """Rows below each block: those of its own entries and those that its children hand up."""
    S = len(parents)
    by_column = np.argsort(low, kind="stable")
    below = high[by_column]
    bounds = np.searchsorted(low[by_column], starts).tolist()
    ends, up = starts[1:].tolist(), parents.tolist()
    handed: list[list[IntArray]] = [[] for _ in range(S + 1)]
    rows = []
    for block in range(S):
        found = np.unique(np.concatenate([below[bounds[block] : bounds[block + 1]], *handed[block]]))
        found = found[np.searchsorted(found, ends[block]) :]
        handed[block] = []
        handed[up[block]].append(found)
        rows.append(found)
    return tuple(rows)
