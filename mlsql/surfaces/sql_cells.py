"""The answer of the cells query, an Arrow list of rows, as a header and cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlsql.design import cells as kinds
from mlsql.design.cells import CellLayout, Header
from mlsql.errors import DesignError, MlsqlError
from mlsql.moments.cells import Cells, Labels
from mlsql.surfaces.sql_lean import WHOLE_CELL, Known, lean_layout

Rows = Mapping[str, dict[str, Any]]


def call_of(answer: pa.StructArray) -> list[Any]:
    """The arguments that the answer repeats.

    Raises
    ------
    MlsqlError
        When the first function refused them.
    """
    for row in answer.filter(pc.is_in(answer.field("kind"), pa.array([kinds.CALL, kinds.FAILED]))).to_pylist():
        if row["kind"] == kinds.FAILED:
            raise MlsqlError(row["labels"][0])
        return list(row["labels"])
    raise MlsqlError("the query's answer is incomplete")


def unpack_cells(layout: CellLayout, answer: pa.StructArray, known: Known | None) -> tuple[Header, Cells]:
    """Take the answer apart.

    Parameters
    ----------
    layout : CellLayout
        With all products.
    answer : pyarrow.StructArray
        All rows of the query: kind, position, keys, labels, sums.
    known : Known or None
        For which the query was written.

    Raises
    ------
    DesignError
        When there are more cells than are packed.
    """
    kind = answer.field("kind")
    is_lean, is_whole = pc.equal(kind, kinds.CELL), pc.equal(kind, WHOLE_CELL)
    header = {row["kind"]: row for row in answer.filter(pc.invert(pc.or_(is_lean, is_whole))).to_pylist()}
    cells = _chosen(answer, is_whole)
    if not len(cells):
        cells = _chosen(answer, is_lean)
        layout = layout if known is None else lean_layout(layout, known)
    if len(cells) > layout.max_cells:
        raise DesignError(
            f"there are more than {layout.max_cells:,} combinations of {layout.spec.group} and the levels of factors; "
            "a predictor is a text of many values (CAST it to a number, or leave it out), or use mlsql.fit from Python"
        )
    return _header(layout, header), _cells(layout, cells)


def _chosen(answer: pa.StructArray, wanted: pa.BooleanArray) -> pa.StructArray:
    """Some of the rows, without a copy when they lie together."""
    positions = np.flatnonzero(wanted.to_numpy(zero_copy_only=False))
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        return answer.slice(positions[0], len(positions))
    return answer.take(pa.array(positions))


def _header(layout: CellLayout, rows: Rows) -> Header:
    def columns(kind: str) -> dict[str, str]:
        return dict(zip(rows[kind]["keys"], rows[kind]["labels"], strict=True))

    def numbers(kind: str) -> tuple[float, ...] | None:
        found = rows.get(kind)
        return None if found is None else tuple(float("nan") if x is None else x for x in found["sums"])

    pivots, size = numbers(kinds.PIVOTS), numbers(kinds.SIZE)
    assert pivots is not None
    assert size is not None
    return Header(
        columns=columns(kinds.COLUMNS),
        upper_columns=columns(kinds.UPPER_COLUMNS) if layout.level2 else None,
        types=tuple(rows[kinds.TYPES]["labels"]),
        upper_types=tuple(rows[kinds.UPPER_TYPES]["labels"]) if layout.level2 else (),
        pivots=pivots,
        ranges=numbers(kinds.RANGES),
        rows=int(size[0]),
        survey=numbers(kinds.SURVEY),
        upper_survey=numbers(kinds.UPPER_SURVEY),
        unmatched=int((numbers(kinds.UNMATCHED) or (0.0,))[0]),
    )


def _cells(layout: CellLayout, rows: pa.StructArray) -> Cells:
    C, P, K = len(rows), len(layout.predictors), len(layout.keys)
    position = rows.field("position").to_numpy(zero_copy_only=False)
    order = np.argsort(position, kind="stable")
    group = position[order].astype(np.int64) - 1
    first = pa.array(order[np.flatnonzero(np.diff(group, prepend=-1))])
    width = layout.width + (1 + P + len(layout.categories) if layout.level2 else 0)
    keys = [column.take(first) for column in _columns(rows.field("keys"), C, K)]
    labels = [_labels(column, order) for column in _columns(rows.field("labels"), C, 2 * P if layout.level2 else P)]
    predictors = [p.sql for p in layout.predictors]
    numbers = pc.list_flatten(rows.field("sums")).to_numpy(zero_copy_only=False).reshape(C, width)
    if np.any(np.diff(order) != 1):
        numbers = numbers[order]
    return Cells(
        layout=layout,
        keys=pa.table(keys, names=[k.name for k in layout.spec.keys]),
        group=group,
        labels=dict(zip(predictors, labels[:P], strict=True)),
        upper_labels=dict(zip(predictors, labels[P:], strict=True)) if layout.level2 else {},
        numbers=np.ascontiguousarray(numbers.T),
    )


def _columns(lists: pa.ListArray, rows: int, width: int) -> list[pa.Array]:
    """Lists of one length as columns."""
    flat = pc.list_flatten(lists)
    return [flat.take(pa.array(np.arange(rows) * width + i)) for i in range(width)]


def _labels(column: pa.Array, order: np.ndarray[Any, Any]) -> Labels:
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Labels(codes[order], encoded.dictionary.to_pylist())
