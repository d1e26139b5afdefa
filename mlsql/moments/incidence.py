"""`Incidence`: which groups of a factor each cell belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlsql._arrays import Array, IntArray

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Incidence:
    """One factor's groups, and the entries (cell, group, weight) of the matrix that carries them to the cells.

    An ordinary factor has one entry of weight 1 per cell, in order; a membership has any number.

    Attributes
    ----------
    name : str
    keys : pyarrow.Table
        Key columns, one row per group.
    cell : (m,) of int
    group : (m,) of int
    weight : (m,) or None
        None for an ordinary factor.
    """

    name: str
    keys: pa.Table
    cell: IntArray
    group: IntArray
    weight: Array | None = None

    @property
    def n_groups(self) -> int:
        """Groups."""
        return int(self.keys.num_rows)

    @property
    def weights(self) -> Array:
        """(m,) weights, those of an ordinary factor too."""
        return np.ones(len(self.cell)) if self.weight is None else self.weight

    @property
    def ordinary(self) -> bool:
        """One group per cell, with weight 1."""
        return self.weight is None

    @property
    def finest(self) -> bool:
        """The groups are the cells, in their order."""
        return self.ordinary and self.n_groups == len(self.cell) and bool(np.array_equal(self.group, self.cell))

    def rows(self, n: IntArray) -> IntArray:
        """(groups,) rows of each group, given those of the cells."""
        return np.rint(np.bincount(self.group, weights=n[self.cell], minlength=self.n_groups)).astype(np.int64)

    def total(self, values: Array) -> Array:
        """Sums of (..., cells) values by group: (..., groups)."""
        values = np.asarray(values, dtype=np.float64)
        if self.finest:
            return values
        flat = values.reshape(-1, values.shape[-1])
        result = np.empty((len(flat), self.n_groups))
        for row, out in zip(flat, result, strict=True):
            entries = row if self.weight is None else row[self.cell] * self.weight
            out[:] = np.bincount(self.group, weights=entries, minlength=self.n_groups)
        return result.reshape(*values.shape[:-1], self.n_groups)

    def constant(self, values: Array) -> Array | None:
        """(groups,) the value of each group of (cells,) values, or None when they vary within a group."""
        if not self.ordinary:
            return None
        once = np.empty(self.n_groups)
        once[self.group] = values
        return once if np.array_equal(once[self.group], values) else None

    def sorted_by(self, position: IntArray) -> Incidence:
        """The same groups in another order: `position[new]` is the old index."""
        inverse = np.empty(len(position), dtype=np.int64)
        inverse[position] = np.arange(len(position))
        return replace(self, keys=self.keys.take(position), group=inverse[self.group])

    def parent_in(self, other: Incidence) -> IntArray | None:
        """(groups,) the group of `other` that holds each group, or None where one is in several."""
        if not (self.ordinary and other.ordinary):
            return None
        parent = np.empty(self.n_groups, dtype=np.int64)
        parent[self.group] = other.group
        return parent if np.array_equal(parent[self.group], other.group) else None
