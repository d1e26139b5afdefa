"""`Relation`: how two grouping factors lie to each other, nested, crossed or partially crossed, seen in the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from mlsql._arrays import IntArray
from mlsql.moments.incidence import Incidence
from mlsql.moments.moments import Moments

Kind = Literal["nested", "crossed", "partially crossed", "same groups", "multiple membership"]

PARALLEL = 1e-12
"""1 - cosine of two columns of weights below which they are one column, rounding apart."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, mean and largest of some counts."""

    minimum: int
    mean: float
    maximum: int

    @classmethod
    def of(cls, counts: NDArray[np.int_]) -> Spread:
        """Of an array that is not empty."""
        return cls(int(counts.min()), float(counts.mean()), int(counts.max()))


@dataclass(frozen=True, slots=True)
class Relation:
    """Two factors.  A *pair* is a group of each with rows in common.

    Attributes
    ----------
    first, second : str
        Names of the factors, in the model's order.
    kind : str
        "nested": each group of one lies in one group of the other.  "crossed": every pair is occupied.  "partially
        crossed": neither.  "same groups": each nested in the other.  "multiple membership": a row may have several
        groups of one, so that it counts in several pairs.
    inner : str or None
        The factor that is nested in the other.
    occupied, possible : int
        Pairs with rows, and pairs there could be.
    single : int
        Pairs with one row.
    first_degrees, second_degrees : Spread
        Groups of the other factor that a group meets.
    rows : Spread
        Rows of an occupied pair.
    """

    first: str
    second: str
    kind: Kind
    inner: str | None
    occupied: int
    possible: int
    single: int
    first_degrees: Spread
    second_degrees: Spread
    rows: Spread

    @property
    def outer(self) -> str | None:
        """The factor that the other is nested in."""
        if self.inner is None:
            return None
        return self.first if self.inner == self.second else self.second

    @property
    def implied(self) -> tuple[tuple[str, str], ...]:
        """(a, b) for rows with one group of a that therefore have one group of b."""
        if self.inner is not None and self.outer is not None:
            return ((self.inner, self.outer),)
        both = ((self.first, self.second), (self.second, self.first))
        return both if self.kind == "same groups" else ()

    @property
    def text(self) -> str:
        """`school:child nested in school`, `plate crossed with sample`."""
        if self.inner is not None:
            return f"{self.inner} nested in {self.outer}"
        if self.kind in ("crossed", "partially crossed"):
            return f"{self.first} {self.kind} with {self.second}"
        return f"{self.first} and {self.second}: {self.kind}"


def relations(moments: Moments) -> tuple[Relation, ...]:
    """Every pair of factors, in the model's order; none in a two-level model."""
    return tuple(relation(a, b, moments.n) for a, b in combinations(moments.incidences, 2))


def relation(first: Incidence, second: Incidence, n: IntArray) -> Relation:
    """How two factors lie to each other.

    Parameters
    ----------
    first, second : Incidence
    n : (cells,) of int
        Rows of each cell.
    """
    pairs = occupancy(first, second, n)
    left = np.diff(pairs.indptr)
    right = np.bincount(pairs.indices, minlength=second.n_groups)
    kind, inner = _kind(first, second, pairs, left, right)
    return Relation(
        first.name,
        second.name,
        kind,
        inner,
        int(pairs.nnz),
        first.n_groups * second.n_groups,
        int(np.count_nonzero(pairs.data == 1)),
        Spread.of(left),
        Spread.of(right),
        Spread.of(pairs.data),
    )


def occupancy(first: Incidence, second: Incidence, n: IntArray) -> csr_array:
    """Rows that each pair of groups has in common: (groups of first, groups of second), no zeros stored.

    A row counts once in each of its pairs, whatever the weights of a membership.
    """
    shape = (first.n_groups, second.n_groups)
    if first.ordinary and second.ordinary:
        return csr_array(coo_array((n, (first.group, second.group)), shape=shape))
    left, right = (_entries(i, np.ones(len(i.cell), dtype=np.int64), len(n)) for i in (first, second))
    return csr_array(left.T @ right.multiply(n[:, None]).tocsr())


def combination_of(moments: Moments, found: Sequence[Relation]) -> dict[str, tuple[str, str]]:
    """Factors whose groups are the occupied pairs of two others: random cells, by name, with those two."""
    inside = {(r.inner, r.outer) for r in found if r.kind == "nested"}
    result: dict[str, tuple[str, str]] = {}
    for incidence in moments.incidences:
        for r in found:
            both = (incidence.name, r.first) in inside and (incidence.name, r.second) in inside
            if both and r.kind in ("crossed", "partially crossed") and r.occupied == incidence.n_groups:
                result.setdefault(incidence.name, (r.first, r.second))
    return result


def _kind(
    first: Incidence, second: Incidence, pairs: csr_array, left: NDArray[np.int_], right: NDArray[np.int_]
) -> tuple[Kind, str | None]:
    if not (first.ordinary and second.ordinary):
        return ("same groups" if _parallel(first, second) else "multiple membership"), None
    within_second, within_first = bool(np.all(left == 1)), bool(np.all(right == 1))
    if within_first and within_second:
        return "same groups", None
    if within_first or within_second:
        return "nested", first.name if within_second else second.name
    return ("crossed" if pairs.nnz == first.n_groups * second.n_groups else "partially crossed"), None


def _parallel(first: Incidence, second: Incidence) -> bool:
    """True when each group's column of weights is a multiple of one of the other factor's."""
    if first.n_groups != second.n_groups or len(first.cell) != len(second.cell):
        return False
    cells = int(max(first.cell.max(), second.cell.max())) + 1
    left, right = _entries(first, first.weights, cells), _entries(second, second.weights, cells)
    products = coo_array(left.T @ right)
    sizes = [np.sqrt(np.asarray(m.multiply(m).sum(axis=0)).ravel()) for m in (left, right)]
    cosine = products.data / (sizes[0][products.row] * sizes[1][products.col])
    return int(np.count_nonzero(cosine > 1.0 - PARALLEL)) == first.n_groups


def _entries(incidence: Incidence, values: NDArray[np.generic], cells: int) -> csr_array:
    """(cells, groups)."""
    return csr_array((values, (incidence.cell, incidence.group)), shape=(cells, incidence.n_groups))
