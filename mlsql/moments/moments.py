"""`Moments`: everything the model needs from the rows, group by group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.design.design import Design
from mlsql.design.layout import moment_columns
from mlsql.errors import DataError
from mlsql.moments.incidence import Incidence

if TYPE_CHECKING:
    import pyarrow as pa


SAME = 1e-9
"""Relative difference of two sums of the same products that rounding explains."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Group-wise and pooled sums of pivoted columns.

    S sources (products of level-1 values: the constant first, the outcome last), J groups.  Weighted sums when the
    model has weights w, else w = 1.

    Attributes
    ----------
    keys : pyarrow.Table
        Key columns, J rows, in key order.
    n : (J,) rows of each group
    log_weights : float
        Sum of log w over all rows.
    sums : (S, J)  sum of w e_s; row 0 is the sum of w
    products : (D, S, J)
        Sum of w e_d e_s for the design's `per_group` sources d.
    pooled : (S, S)
        Sum of w e_s e_t over all rows.
    means : (M, J)
        Unweighted group means of the design's `means`, pivoted.
    values : (G, J)
        The design's group values, pivoted.
    incidences : tuple of Incidence
        In a model with several grouping factors the groups above are *cells*, combinations of all keys; these are the
        groups of each factor.  Empty in a two-level model.
    """

    keys: pa.Table
    n: IntArray
    log_weights: float
    sums: Array
    products: Array
    pooled: Array
    means: Array
    values: Array
    incidences: tuple[Incidence, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows in the analysis."""
        return int(self.n.sum())

    @property
    def n_groups(self) -> int:
        """Groups in the analysis; cells where there are several grouping factors."""
        return len(self.n)

    def incidence(self, factor: str) -> Incidence:
        """The groups of a factor, by its name."""
        return next(i for i in self.incidences if i.name == factor)


def pack(design: Design, by_group: pa.Table, pooled: pa.Table | None) -> tuple[Moments, frozenset[str]]:
    """Unpack the engine's answer.

    Parameters
    ----------
    design : Design
    by_group, pooled : pyarrow.Table
        Answers of the moments queries, columns in the order of `moment_columns(design)`.

    Returns
    -------
    moments : Moments
    varying : frozenset of str
        SQL of inputs that were taken to be constant within groups and are not: when not empty, the design must be
        built again and the moments with it.
    """
    layout = moment_columns(design)
    S, J = len(design.sources), by_group.num_rows
    columns = iter(by_group.columns[layout.n_keys :])
    n = _integers(next(columns))
    sums = np.empty((S, J))
    sums[0], log_weights = n, 0.0
    if layout.weighted:
        sums[0] = _floats(next(columns))
        log_weights = float(_floats(next(columns)).sum())
    for s in layout.sums:
        sums[s] = _floats(next(columns))
    products, totals = np.empty((len(design.per_group), S, J)), np.zeros((S, S))
    position = {s: d for d, s in enumerate(design.per_group)}
    for d, s in enumerate(design.per_group):
        products[d, 0] = sums[s]
    for a, b in layout.products:
        values = _floats(next(columns))
        totals[a, b] = totals[b, a] = values.sum()
        if a in position:
            products[position[a], b] = values
        if b in position:
            products[position[b], a] = values
    means = _means(design, sums, n, [_floats(next(columns)) for _ in layout.means])
    groups: list[Array] = []
    varying: set[str] = set()
    for variable in layout.checked:
        low, high = _floats(next(columns)), _floats(next(columns))
        groups.append(low)
        if np.any(low != high):
            varying.add(variable.source)
    groups += [_floats(next(columns)) for _ in layout.joined]
    order = {v: i for i, v in enumerate((*layout.checked, *layout.joined))}
    values = np.array([groups[order[v]] for v in design.group_values]).reshape(len(groups), J)
    totals[0] = totals[:, 0] = sums.sum(axis=1)
    if pooled is not None:
        for (a, b), column in zip(layout.pooled, pooled.columns, strict=True):
            totals[a, b] = totals[b, a] = _floats(column)[0]
    keys = by_group.select(list(range(layout.n_keys)))
    return Moments(keys, n, log_weights, sums, products, totals, means, values), frozenset(varying)


def complete(design: Design, moments: Moments, answer: pa.Table) -> tuple[Design, Moments]:
    """Add the products by group that the lean layout left out.

    Parameters
    ----------
    design : Design
        In the lean layout.
    moments : Moments
    answer : pyarrow.Table
        Of the completion query: keys, count, products in the order of `moment_columns(design).pooled`.

    Returns
    -------
    design : Design
        In the full layout.
    moments : Moments

    Raises
    ------
    DataError
        When the groups or their sizes are no longer those of the moments.
    """
    layout = moment_columns(design)
    keys = answer.select(list(range(layout.n_keys)))
    if not (keys.equals(moments.keys) and np.array_equal(_integers(answer.column(layout.n_keys)), moments.n)):
        raise DataError(
            f"the data have changed since the fit: it saw {moments.n_rows:,} rows in {moments.n_groups:,} groups, now "
            f"there are {int(_integers(answer.column(layout.n_keys)).sum()):,} in {answer.num_rows:,}; fit again"
        )
    full = design.completed()
    S, J = len(design.sources), moments.n_groups
    products = np.empty((S - 1, S, J))
    products[:, 0] = moments.sums[1:]
    for d, s in enumerate(design.per_group):
        products[s - 1] = moments.products[d]
        products[:, s] = moments.products[d, 1:]
    for (a, b), column in zip(layout.pooled, answer.columns[layout.n_keys + 1 :], strict=True):
        products[a - 1, b] = products[b - 1, a] = _floats(column)
    for a, b in layout.pooled:
        size = np.sqrt(moments.pooled[a, a] * moments.pooled[b, b])
        if not abs(float(products[a - 1, b].sum()) - moments.pooled[a, b]) <= SAME * size:
            raise DataError(
                f"the data have changed since the fit: the groups are the same {moments.n_groups:,}, but values of "
                f"{' * '.join((*design.sources[a], *design.sources[b]))} are not; fit again"
            )
    return full, replace(moments, products=products)


def _means(design: Design, sums: Array, n: IntArray, unweighted: list[Array]) -> Array:
    index = {s: i for i, s in enumerate(design.sources)}
    if not unweighted:
        unweighted = [sums[index[(sql,)]] for sql in design.means]
    return np.array([total / n for total in unweighted]).reshape(len(design.means), len(n))


def _floats(column: pa.ChunkedArray) -> Array:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _integers(column: pa.ChunkedArray) -> IntArray:
    return cast("IntArray", np.asarray(column.to_numpy(), dtype=np.int64))
