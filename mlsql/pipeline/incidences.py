"""The groups of every factor, from the keys of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlsql._arrays import IntArray
from mlsql.design.design import Design
from mlsql.moments.incidence import Incidence
from mlsql.moments.moments import Moments

if TYPE_CHECKING:
    import pyarrow as pa


def find_incidences(
    design: Design, moments: Moments, memberships: Mapping[str, Incidence] | None = None
) -> tuple[Incidence, ...]:
    """The groups of every factor, from the keys of the cells; none for a two-level model.

    Parameters
    ----------
    design : Design
    moments : Moments
    memberships : mapping of str to Incidence, optional
        Factors whose groups come from a membership table.
    """
    factors, given = design.spec.factors, memberships or {}
    if len(factors) == 1 and factors[0].name not in given:
        return ()
    name = {key.sql: key.name for key in design.keys}
    return tuple(
        given[f.name] if f.name in given else incidence(f.name, moments.keys, [name[k.sql] for k in f.keys])
        for f in factors
    )


def incidence(name: str, cells: pa.Table, columns: Sequence[str]) -> Incidence:
    """The groups of an ordinary factor: distinct values of some key columns of the cells, in key order.

    Parameters
    ----------
    name : str
    cells : pyarrow.Table
        Key columns of the cells, one row per cell, in key order.
    columns : sequence of str
        Those of the factor.
    """
    everything = np.arange(cells.num_rows, dtype=np.int64)
    if len(columns) == cells.num_columns:
        return Incidence(name, cells.select(list(columns)), everything, everything)
    code = np.zeros(cells.num_rows, dtype=np.int64)
    for column in columns:
        values, ranks = _ranks(cells.column(column))
        code = code * len(values) + ranks
        # codes stay dense, so that products of their ranges cannot overflow
        _, code = np.unique(code, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    return Incidence(name, cells.select(list(columns)).take(first), everything, code.astype(np.int64))


def _ranks(column: pa.ChunkedArray) -> tuple[pa.Array, IntArray]:
    """Distinct values of a column and the rank of each row's value among them, ordered as the engine orders keys."""
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = encoded.dictionary
    order = pc.sort_indices(values).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return values, rank[encoded.indices.to_numpy(zero_copy_only=False)]
