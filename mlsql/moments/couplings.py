"""How the groups of two factors meet: sums of Z_t'Z_s over the cells that they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.moments.incidence import Incidence


@dataclass(frozen=True, slots=True)
class Coupling:
    """Occupied pairs of groups of two factors.

    Attributes
    ----------
    left, right : (m,) of int
        The pairs, in order of left, then right.
    cross : (q_left, q_right, m)
        Z_left'Z_right of each pair.
    """

    left: IntArray
    right: IntArray
    cross: Array

    def squares(self) -> Array:
        """(q_left, q_left, q_right, q_right) sum over pairs of cross[a, c] cross[b, d]."""
        q, r, m = self.cross.shape
        flat = self.cross.reshape(q * r, m)
        return (flat @ flat.T).reshape(q, r, q, r).transpose(0, 2, 1, 3)


def coupling(left: Incidence, right: Incidence, cross: Array) -> Coupling:
    """Sum the cells' products over pairs of groups.

    Parameters
    ----------
    left, right : Incidence
    cross : (q_left, q_right, cells)
        Z_left'Z_right by cell, as if every cell had weight 1 in both.
    """
    if left.ordinary and right.ordinary:
        g, h, cells, weight = left.group, right.group, None, None
    else:
        g, h, cells, weight = _entries(left, right)
    code = g * right.n_groups + h
    if len(code) and np.all(code[1:] > code[:-1]):
        pairs, at = code, None
    else:
        pairs, at = np.unique(code, return_inverse=True)
    sums = np.empty((*cross.shape[:2], len(pairs)))
    for a in range(cross.shape[0]):
        for b in range(cross.shape[1]):
            values = cross[a, b] if cells is None else cross[a, b, cells]
            values = values if weight is None else values * weight
            sums[a, b] = values if at is None else np.bincount(at, weights=values, minlength=len(pairs))
    return Coupling(pairs // right.n_groups, pairs % right.n_groups, sums)


def _entries(left: Incidence, right: Incidence) -> tuple[IntArray, IntArray, IntArray, Array]:
    """Pairs of groups within each cell: every group of one with every group of the other, weights multiplied."""
    order = np.argsort(right.cell, kind="stable")
    cells = right.cell[order]
    first = np.searchsorted(cells, left.cell, side="left")
    count = np.searchsorted(cells, left.cell, side="right") - first
    at = np.repeat(np.arange(len(left.cell)), count)
    within = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
    other = order[np.repeat(first, count) + within]
    weight = left.weights[at] * right.weights[other]
    return left.group[at], right.group[other], left.cell[at], weight
