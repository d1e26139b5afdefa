"""Cells to a survey and to moments: indicators select cells, and their products with numbers are sums already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlsql._arrays import Array, IntArray
from mlsql.design.basis import Monomial
from mlsql.design.cells import (
    CellLayout,
    CellSurvey,
    Header,
    declared_levels,
    indicators,
    level_order,
    product_of,
    split,
)
from mlsql.design.columns import Variable
from mlsql.design.design import Design
from mlsql.design.schema import Input, Schema
from mlsql.design.survey import ColumnSurvey, Preview
from mlsql.moments.moments import Moments
from mlsql.moments.select import CONSTANT

if TYPE_CHECKING:
    import pyarrow as pa

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one predictor: (C,) positions in `levels`, -1 where there is none."""

    codes: IntArray
    levels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of an answer, sorted by group.

    Attributes
    ----------
    layout : CellLayout
    keys : pyarrow.Table
        (J) keys of the groups, as text.
    group : (C,) of int
        Position of each cell's group.
    labels, upper_labels : mapping of SQL to Labels
        From the rows and from the level-2 table.
    numbers : (A, C)
        In the order of the layout.
    """

    layout: CellLayout
    keys: pa.Table
    group: IntArray
    labels: Mapping[str, Labels]
    upper_labels: Mapping[str, Labels]
    numbers: Array

    @property
    def n(self) -> Array:
        """(C,) rows."""
        return np.asarray(self.numbers[0])

    def weights(self) -> tuple[Array, Array, Array] | None:
        """(C,) sums of weights, sums of their logarithms, and the smallest."""
        if self.layout.weight is None:
            return None
        return np.asarray(self.numbers[1]), np.asarray(self.numbers[2]), np.asarray(self.numbers[3])

    def product(self, factors: Monomial) -> Array:
        """(C,) weighted sum of a product of pivoted numbers; of nothing: the sum of weights."""
        if not factors:
            return np.asarray(self.numbers[0 if self.layout.weight is None else 1])
        return np.asarray(self.numbers[self._products + self.layout.products.index(factors)])

    def unweighted(self, sql: str) -> Array:
        """(C,) unweighted sum of a pivoted number."""
        if self.layout.weight is None:
            return self.product((sql,))
        start = self._products + len(self.layout.products)
        return np.asarray(self.numbers[start + self.layout.unweighted.index(sql)])

    def ranks(self, sql: str, *, upper: bool) -> Array:
        """(C,) place of the label of a category in the order of its values."""
        start = self.layout.width - len(self.layout.categories)
        if upper:
            start = self.layout.width + 1 + len(self.layout.predictors)
        return np.asarray(self.numbers[start + self.layout.categories.index(sql)])

    def upper_number(self, sql: str) -> Array:
        """(C,) a predictor's number in the level-2 table."""
        place = [p.sql for p in self.layout.predictors].index(sql)
        return np.asarray(self.numbers[self.layout.width + 1 + place])

    @property
    def _products(self) -> int:
        return 1 if self.layout.weight is None else 4

    def kept(self, wanted: Mask) -> Cells:
        """Some of the cells; groups that lose all of theirs are gone."""
        groups, position = np.unique(self.group[wanted], return_inverse=True)

        def chosen(labels: Mapping[str, Labels]) -> dict[str, Labels]:
            return {sql: Labels(found.codes[wanted], found.levels) for sql, found in labels.items()}

        return replace(
            self,
            keys=self.keys.take(groups),
            group=position.astype(np.int64),
            labels=chosen(self.labels),
            upper_labels=chosen(self.upper_labels),
            numbers=self.numbers[:, wanted],
        )

    @property
    def starts(self) -> IntArray:
        """(J,) position of the first cell of each group."""
        return np.flatnonzero(np.diff(self.group, prepend=-1)).astype(np.int64)

    def by_group(self, values: Array, wanted: Mask | None = None) -> Array:
        """(J,) sums over cells, over some of them if given."""
        if wanted is None and len(self.group) == self.keys.num_rows:
            return values
        chosen = slice(None) if wanted is None else wanted
        sums = np.bincount(self.group[chosen], weights=values[chosen], minlength=self.keys.num_rows)
        return np.asarray(sums, dtype=np.float64)


def survey_cells(header: Header, schema: Schema, cells: Cells) -> tuple[CellSurvey, Cells]:
    """What a survey would have answered, and the cells that remain for the model.

    1. Cells whose group is in the level-2 table, complete there.
    2. Missing values and ranges of columns; levels of factors; what varies within groups.
    """
    # 1
    unmatched = 0
    if schema.has_level2:
        there = cells.numbers[cells.layout.width] == 1.0
        unmatched = header.unmatched if header.survey is not None else int(cells.n[~there].sum())
        cells = cells.kept(_complete_above(schema, cells) & there)
    # 2
    columns = tuple(_column(item, header, cells) for item in schema.inputs)
    pivots = dict(zip(cells.layout.numbers, header.pivots, strict=True))
    pivots |= {c.input.sql: c.mean for c in columns if c.input.table == "level2" and math.isfinite(c.mean)}
    factors = schema.of_role("factor")
    levels = {f.sql: _levels(f, cells) for f in factors}
    empty = {f.sql: tuple(x for x in declared_levels(f.dtype) if x not in levels[f.sql]) for f in factors}
    survey = CellSurvey(
        rows=header.rows,
        columns=columns,
        levels=levels,
        empty_levels={sql: unused for sql, unused in empty.items() if unused},
        preview=Preview(0, 0, 0, varying=_varying(schema, cells)),
        unmatched=unmatched,
        pivots=pivots,
    )
    return survey, cells


def moments_from_cells(design: Design, cells: Cells) -> Moments:
    """The moments that the query by group would give, with all products.

    Parameters
    ----------
    design : Design
        In the full layout; its survey is that of the cells.
    cells : Cells
    """
    known = indicators(design)
    parts = [split(source, known) for source in design.sources]
    S, J = len(parts), cells.keys.num_rows
    sums, products = np.empty((S, J)), np.empty((S - 1, S, J))
    for s in range(S):
        for t in range(s, S):
            levels = [*parts[s][1], *parts[t][1]]
            values = cells.by_group(cells.product(product_of(parts[s][0], parts[t][0])), _at(levels, cells))
            if s == 0:
                sums[t] = values
            else:
                products[s - 1, t] = products[t - 1, s] = values
    products[:, 0] = sums[1:]
    pooled = np.empty((S, S))
    pooled[0] = sums.sum(axis=1)
    pooled[1:] = products.sum(axis=2)
    counts = cells.by_group(cells.n)
    means = [_mean(sql, known, cells) / counts for sql in design.means]
    values_ = [_group_value(v, known, cells) for v in design.group_values]
    weights = cells.weights()
    return Moments(
        keys=cells.keys,
        n=np.rint(counts).astype(np.int64),
        log_weights=0.0 if weights is None else float(weights[1].sum()),
        sums=sums,
        products=products,
        pooled=pooled,
        means=np.array(means).reshape(len(means), J),
        values=np.array(values_).reshape(len(values_), J),
    )


def _complete_above(schema: Schema, cells: Cells) -> Mask:
    complete = np.ones(len(cells.group), dtype=np.bool_)
    for item in schema.of_table("level2"):
        if item.role == "factor":
            complete &= cells.upper_labels[item.sql].codes >= 0
        else:
            complete &= ~np.isnan(cells.upper_number(item.sql))
    return complete


def _column(item: Input, header: Header, cells: Cells) -> ColumnSurvey:
    """Facts on one input: counted where something is missing, else read off the sums."""
    layout, rows = cells.layout, header.rows
    counted, order, start = header.survey, layout.surveyed, 0
    if item.table == "level2":
        assert header.upper_survey is not None
        counted, order, start, rows = header.upper_survey, layout.upper, 3, int(header.upper_survey[0])
    if counted is not None:
        start += 6 * order.index(item.sql)
        # the engine counts nothing where there is nothing
        present, nans, infinite = (0 if math.isnan(x) else int(x) for x in counted[start : start + 3])
        if not item.numeric:
            return ColumnSurvey(item, rows, rows - present)
        return ColumnSurvey(item, rows, rows - present, nans, infinite, *counted[start + 3 : start + 6])
    if not item.numeric:
        return ColumnSurvey(item, rows)
    if item.role == "weight":
        weights = cells.weights()
        assert weights is not None
        return ColumnSurvey(item, rows, minimum=float(weights[2].min(initial=math.inf)))
    pivot = header.pivots[layout.numbers.index(item.sql)]
    # the pivot of a column of one value is that value, and nothing is left of it
    if not np.any(cells.product((item.sql, item.sql))):
        return ColumnSurvey(item, rows, mean=pivot, minimum=pivot, maximum=pivot)
    mean = pivot + float(cells.product((item.sql,)).sum() / cells.product(()).sum())
    if header.ranges is None or item.sql not in layout.natural:
        return ColumnSurvey(item, rows, mean=mean)
    low, high = header.ranges[2 * layout.natural.index(item.sql) :][:2]
    return ColumnSurvey(item, rows, mean=mean, minimum=low, maximum=high)


def _levels(factor: Input, cells: Cells) -> tuple[str, ...]:
    upper = factor.table == "level2"
    labels = (cells.upper_labels if upper else cells.labels)[factor.sql]
    found, first = np.unique(labels.codes, return_index=True)
    ranks = np.zeros(len(labels.codes))
    if factor.sql in cells.layout.categories:
        ranks = cells.ranks(factor.sql, upper=upper)
    return level_order(factor, {labels.levels[c]: float(ranks[i]) for c, i in zip(found, first, strict=True) if c >= 0})


def _varying(schema: Schema, cells: Cells) -> frozenset[str]:
    """SQL of the predictors of the rows that have two values in some group."""
    found: set[str] = set()
    starts = cells.starts
    if not len(starts):
        return frozenset()
    for item in schema.of_role("numeric", "factor"):
        if item.table == "rows" and item.role == "factor":
            codes = cells.labels[item.sql].codes
            differs = np.minimum.reduceat(codes, starts) < np.maximum.reduceat(codes, starts)
        elif item.table == "rows":
            size, total, squares = (cells.by_group(cells.product((item.sql,) * power)) for power in range(3))
            # infinite values are refused later
            with np.errstate(invalid="ignore", over="ignore"):
                differs = squares - total**2 / size > CONSTANT * squares
        else:
            continue
        if np.any(differs):
            found.add(item.sql)
    return frozenset(found)


def _at(levels: Sequence[tuple[str, str]], cells: Cells) -> Mask | None:
    """The cells at which all these factors have these levels; None for all cells."""
    if not levels:
        return None
    chosen = np.ones(len(cells.group), dtype=np.bool_)
    for sql, level in set(levels):
        chosen &= _has(cells.labels[sql], level)
    return chosen


def _has(labels: Labels, level: str) -> Mask:
    return np.asarray(labels.codes == list(labels.levels).index(level))


def _mean(sql: str, known: Mapping[str, tuple[str, str]], cells: Cells) -> Array:
    """(J,) unweighted sum of a pivoted number, or rows at a level."""
    if sql in known:
        return cells.by_group(cells.n, _at([known[sql]], cells))
    return cells.by_group(cells.unweighted(sql))


def _group_value(variable: Variable, known: Mapping[str, tuple[str, str]], cells: Cells) -> Array:
    """(J,) a pivoted value that is the same in all cells of a group."""
    first, upper = cells.starts, variable.origin == "level2"
    if variable.sql in known:
        factor, level = known[variable.sql]
        labels = (cells.upper_labels if upper else cells.labels)[factor]
        return _has(labels, level)[first].astype(np.float64)
    if upper:
        return np.asarray(cells.upper_number(variable.sql)[first] - variable.pivot)
    return cells.by_group(cells.product((variable.sql,))) / cells.by_group(cells.product(()))
