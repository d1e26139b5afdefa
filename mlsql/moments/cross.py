"""Cross-products of model columns from the query's sums."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.design.design import Design, Part
from mlsql.moments.moments import Moments
from mlsql.moments.shifts import Shifts

EMPTY = 1e-12
"""A centred sum of squares below this share of the uncentred one is rounding: the group has no variation."""

Pieces = list[tuple[int, Array | float]]
"""A column: positions of sources with their group-level factors."""


class Cross:
    """Cross-products of columns given as pieces."""

    def __init__(self, design: Design, moments: Moments) -> None:
        self.moments = moments
        self.position = {s: d for d, s in enumerate(design.per_group)}

    def group(self, s: int, t: int) -> Array:
        """(J,) sum of w e_s e_t in each group."""
        if s == 0 or t == 0:
            return np.asarray(self.moments.sums[s or t])
        if s in self.position:
            return np.asarray(self.moments.products[self.position[s], t])
        return np.asarray(self.moments.products[self.position[t], s])

    def by_group(self, left: Pieces, right: Pieces) -> Array:
        """(J,) sum of w left right in each group."""
        total: Array | None = None
        for s, a in left:
            for t, b in right:
                term = np.multiply(a, b) * self.group(s, t)
                total = term if total is None else total + term
        return np.zeros(self.moments.n_groups) if total is None else total

    def pooled(self, left: Pieces, right: Pieces) -> float:
        """Sum of w left right over all rows."""
        total = 0.0
        for s, a in left:
            for t, b in right:
                factor = np.multiply(a, b)
                total += float(factor * self.moments.pooled[s, t] if factor.ndim == 0 else factor @ self.group(s, t))
        return total

    def magnitude(self, pieces: Pieces) -> Array:
        """(J,) sum of squares of the pieces one by one: the scale against which cancellation is judged."""
        total: Array = np.zeros(self.moments.n_groups)
        for s, a in pieces:
            if s in self.position or s == 0:
                total = total + np.multiply(a, a) * self.group(s, s)
            else:
                share = self.moments.pooled[s, s] / self.moments.n_rows
                total = total + np.multiply(a, a) * share * self.moments.n
        return total


def fixed_and_outcome(shifts: Shifts, design: Design) -> list[Pieces]:
    """The fixed columns and the outcome as pieces; the intercept absorbs the outcome's pivot."""
    outcome: Pieces = [(len(design.sources) - 1, 1.0)]
    if not design.has_intercept and design.outcome.pivot:
        outcome.append((0, design.outcome.pivot))
    return [*part_pieces(shifts, design, design.fixed), outcome]


def part_pieces(shifts: Shifts, design: Design, part: Part) -> list[Pieces]:
    """The columns of a part's basis as pieces."""
    index = {s: i for i, s in enumerate(design.sources)}
    return [
        [(index[piece.monomial], shifts.multiplier(piece, part.pivoted)) for piece in pieces] for pieces in part.pieces
    ]
