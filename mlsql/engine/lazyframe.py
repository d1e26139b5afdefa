"""Polars frames for DuckDB: a DataFrame as a table, a LazyFrame as a dataset that streams the columns asked for.

DuckDB asks a dataset for a scanner with the columns and conditions of a statement, each time that it scans.  Every
scan is a fresh query of the LazyFrame, and nothing is collected whole (but by Polars before 1.37, whose batches end
early when a query fails: there the columns asked for are collected).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from mlsql.errors import DataError

if TYPE_CHECKING:
    import polars as pl

BATCHES_SINCE = (1, 37)
SLICE_ROWS = 100_000
"""Rows of a batch when Polars does not choose them."""

MAX_ORDERED = 500
"""An Enum with more categories is no factor of a model, so that their order does not matter."""


def arrow_table(frame: pl.DataFrame) -> pa.Table:
    """A DataFrame's columns, without copying numbers.

    Raises
    ------
    DataError
        Naming the first column whose type Arrow lacks.
    """
    import polars as pl

    try:
        # a dictionary without values ends the process in DuckDB 1.4
        empty = [s.name for s in frame if isinstance(s.dtype, pl.Categorical) and s.null_count() == len(s)]
        return frame.with_columns(pl.col(empty).cast(pl.String)).to_arrow()
    except pa.ArrowException:
        arrow_schema(frame.schema, "DataFrame")
        raise


def arrow_schema(types: Mapping[str, pl.DataType], label: str) -> pa.Schema:
    """Arrow's types of Polars's.

    Raises
    ------
    DataError
        Naming the first column whose type Arrow lacks.
    """
    import polars as pl

    fields = []
    for name, dtype in types.items():
        try:
            fields.append(pl.DataFrame(schema={name: dtype}).to_arrow().schema.field(0))
        except (pa.ArrowException, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"column {name!r} of the {label} is {dtype}, which Arrow does not have; cast it, or leave it out"
            ) from error
    return pa.schema(fields)


def ordered_categories(types: Mapping[str, pl.DataType]) -> dict[str, tuple[str, ...]]:
    """The declared order of every Enum that may be a factor: Arrow carries the values, DuckDB needs the order told."""
    import polars as pl

    return {
        name: tuple(dtype.categories)
        for name, dtype in types.items()
        if isinstance(dtype, pl.Enum) and 0 < len(dtype.categories) <= MAX_ORDERED
    }


def message(error: BaseException) -> str:
    """Another library's words: the first line, with the next when that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


class LazyDataset(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """The part of PyArrow's dataset protocol that projects and filters, over a LazyFrame.

    Categories are text.

    Attributes
    ----------
    types : mapping of str to Polars type
    failure : BaseException or None
        What stopped the last scan: the engine keeps no more of it than a line of text.

    Raises
    ------
    DataError
        When the LazyFrame's own plan is wrong, or a column has a type that Arrow lacks.
    """

    def __init__(self, frame: pl.LazyFrame) -> None:
        # without super(): that is for datasets of Arrow's own
        import polars as pl

        try:
            self.types: Mapping[str, pl.DataType] = frame.collect_schema()
        except Exception as error:
            # a plan holds files and functions of the user, which raise whatever they like
            raise DataError(f"the LazyFrame cannot be read: {message(error)}") from error
        as_text = [name for name, dtype in self.types.items() if isinstance(dtype, pl.Categorical | pl.Enum)]
        self._frame = frame.with_columns(pl.col(as_text).cast(pl.String)) if as_text else frame
        self._schema = arrow_schema({**self.types, **dict.fromkeys(as_text, pl.String())}, "LazyFrame")
        self.failure: BaseException | None = None

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns."""
        return self._schema

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: object) -> Scan:
        """One pass over some columns of the rows that meet a condition."""
        self.failure = None
        return Scan(self, tuple(self._schema.names if columns is None else columns), filter)

    def projected(self, columns: Sequence[str]) -> pa.Schema:
        """Names and types of some columns."""
        return pa.schema([self._schema.field(c) for c in columns])

    def batches(self, columns: Sequence[str], condition: Any) -> Iterator[pa.RecordBatch]:
        """Run the query once; rows keep their order."""
        read = [*columns, *(c for c in _named_in(condition, self._schema, columns) if c not in columns)]
        promised = self.projected(read)
        try:
            for frame in _frames(self._frame.select(read)):
                table = frame.to_arrow()
                _check_delivered(table.schema, promised)
                if condition is not None:
                    table = table.filter(condition)
                yield from table.select(columns).to_batches()
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # a panic within Polars is no Exception
            self.failure = error
            raise


class Scan:
    """What DuckDB asks of a scanner: a reader."""

    def __init__(self, dataset: LazyDataset, columns: Sequence[str], condition: Any) -> None:
        self._dataset, self._columns, self._condition = dataset, columns, condition

    @property
    def projected_schema(self) -> pa.Schema:
        """Names and types of what the reader gives."""
        return self._dataset.projected(self._columns)

    def to_reader(self) -> pa.RecordBatchReader:
        """The batches; the query starts with the first."""
        batches = self._dataset.batches(self._columns, self._condition)
        return pa.RecordBatchReader.from_batches(self.projected_schema, batches)


def _frames(query: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    import polars as pl

    found = re.match(r"(\d+)\.(\d+)", pl.__version__)
    if found is not None and (int(found[1]), int(found[2])) >= BATCHES_SINCE:
        # its frames, not the Arrow stream that it also offers: through that, errors lose their type
        yield from query.collect_batches(engine="streaming")
    else:
        yield from query.collect(engine="streaming").iter_slices(SLICE_ROWS)


def _named_in(condition: Any, schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Columns without which a condition cannot be evaluated.

    An Arrow expression does not tell, and DuckDB 2 leaves columns that only the condition reads out of those it asks
    for.
    """
    if condition is None or _evaluates(condition, schema, columns):
        return []
    names = schema.names
    return [name for name in names if not _evaluates(condition, schema, [c for c in names if c != name])]


def _evaluates(condition: Any, schema: pa.Schema, columns: Sequence[str]) -> bool:
    try:
        pa.schema([schema.field(c) for c in columns]).empty_table().filter(condition)
    except pa.ArrowInvalid:
        return False
    return True


def _check_delivered(delivered: pa.Schema, promised: pa.Schema) -> None:
    """The engine reads memory by the promised types: other values would be taken for numbers that they are not."""
    for ours, theirs in zip(promised, delivered, strict=True):
        if ours.type != theirs.type:
            raise DataError(
                f"column {ours.name!r} is {ours.type} by the schema, but the query gives {theirs.type}; "
                "name the type where the column is made: return_dtype= or schema="
            )
