"""What a user may pass as data, and how it becomes a relation that a statement can read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError

from mlsql.errors import DataError, QueryError

if TYPE_CHECKING:
    import duckdb

_READERS = {
    ".parquet": "read_parquet",
    ".pq": "read_parquet",
    ".csv": "read_csv",
    ".tsv": "read_csv",
    ".csv.gz": "read_csv",
    ".tsv.gz": "read_csv",
    ".csv.zst": "read_csv",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Data that statements can read.

    Attributes
    ----------
    label : str
        What the user passed, for messages and result tables.
    relation : sqlglot expression
        For FROM.
    frame : object or None
        A frame to be registered under `frame_name` while statements run; its attribute `failure`, if it has one, tells
        what stopped it.
    frame_name : str
    duckdb_relation : DuckDB relation or None
        A relation, on whose own connection statements must run; `frame_name` stands for it in them.
    """

    label: str
    relation: exp.Expr
    frame: Any = None
    frame_name: str = ""
    duckdb_relation: Any = None

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Make the frame visible to a connection while statements run."""
        if self.frame is None:
            yield
            return
        try:
            con.register(self.frame_name, self.frame)
        except Exception as error:
            raise DataError(
                f"{self.label} cannot be brought to the connection: {str(error).splitlines()[0]}"
            ) from error
        try:
            yield
        except QueryError:
            failure = getattr(self.frame, "failure", None)
            if failure is None:
                raise
            from mlsql.engine.lazyframe import message

            raise DataError(f"the query of the {self.label} failed: {message(failure)}") from failure
        finally:
            con.unregister(self.frame_name)


_BEFORE_SQL = re.compile(r"\A(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*", re.DOTALL)
"""White space, parentheses and comments that may stand before a query's first word."""

Exists = Callable[[exp.Expr], bool]


def make_source(data: object, *, role: str, exists: Exists | None) -> Source:
    """Turn what the user passed into a source.

    Parameters
    ----------
    data : object
        Path or glob of Parquet or CSV, table name, SQL text, or a frame (Polars, Arrow, pandas).
    role : {"data", "level2"}
    exists : callable or None
        Tells whether a table expression exists on the user's connection; None without a connection.

    Raises
    ------
    DataError
        When the data are of no known kind, or the file or table does not exist.
    """
    if isinstance(data, os.PathLike):
        return _file(os.fspath(data))
    if isinstance(data, str):
        return _text(data, role, exists)
    module = type(data).__module__.split(".")[0]
    kind = type(data).__name__
    name = f"mlsql_{role}_{id(data):x}"
    table = exp.Table(this=exp.to_identifier(name, quoted=True))
    if kind == "DuckDBPyRelation":
        alias = data.alias  # type: ignore[attr-defined]
        # the engine invents a new name for a relation that has none
        label = "DuckDB relation" if alias.startswith("unnamed_relation") else alias
        return Source(label, table, None, name, data)
    if module == "polars" and kind in ("DataFrame", "LazyFrame"):
        return _polars(data, kind, table, name)
    if module in ("pandas", "pyarrow") and kind in ("DataFrame", "Table"):
        return Source(kind, table, data, name)
    raise DataError(
        f"{role} is a {type(data).__module__}.{kind}; pass a path, a table name or SQL text, a DuckDB relation, "
        "a Polars DataFrame or LazyFrame, an Arrow table or a pandas frame"
    )


def _polars(data: Any, kind: str, table: exp.Table, name: str) -> Source:
    from mlsql.engine.lazyframe import LazyDataset, arrow_table, ordered_categories

    if kind == "DataFrame":
        return Source(kind, _with_order(table, ordered_categories(data.schema)), arrow_table(data), name)
    lazy = LazyDataset(data)
    return Source(kind, _with_order(table, ordered_categories(lazy.types)), lazy, name)


def _with_order(table: exp.Table, categories: Mapping[str, Sequence[str]]) -> exp.Expr:
    """The table with columns of declared categories as ENUM: the first is a factor's reference."""
    if not categories:
        return table
    casts = []
    for column, values in categories.items():
        enum = exp.DataType(this=exp.DataType.Type.ENUM, expressions=[exp.Literal.string(v) for v in values])
        value = exp.Cast(this=exp.column(exp.to_identifier(column, quoted=True)), to=enum)
        casts.append(exp.alias_(value, column, quoted=True))
    query = exp.select(exp.Star(replace=casts)).from_(table)
    return exp.Subquery(this=query, alias=exp.TableAlias(this=exp.to_identifier("data", quoted=True)))


def _text(text: str, role: str, exists: Exists | None) -> Source:
    if not text.strip():
        raise DataError(f"{role} is an empty text")
    table = exp.Table(this=exp.to_identifier(text, quoted=True))
    if exists is not None and exists(table):
        return Source(text, table)
    dotted = _dotted(text)
    if exists is not None and dotted is not None and exists(dotted):
        return Source(text, dotted)
    query = _query(text, role)
    if query is not None:
        return Source(" ".join(text.split()), query)
    if _suffix(text) or Path(text).exists() or any(c in text for c in "*?["):
        return _file(text)
    if exists is None:
        raise DataError(
            f"{role} {text!r} is not a file that can be read (Parquet or CSV) and not SQL; "
            "for a table of a database pass con= as well"
        )
    raise DataError(f"{role} {text!r} is not a table or view of the connection, not SQL, and not a Parquet or CSV file")


def _dotted(text: str) -> exp.Table | None:
    try:
        table = exp.to_table(text, dialect="duckdb")
    except (ParseError, TokenError, ValueError):
        return None
    for identifier in table.find_all(exp.Identifier):
        identifier.set("quoted", True)
    return table


def _query(text: str, role: str) -> exp.Expr | None:
    word = re.match(r"\w*", _BEFORE_SQL.sub("", text))
    if word is None or word.group().lower() not in ("select", "with", "from", "values", "pivot"):
        return None
    try:
        tree = sqlglot.parse_one(text, dialect="duckdb")
    except (ParseError, TokenError) as error:
        raise DataError(f"{role} is not SQL that can be read: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, exp.Query):
        raise DataError(f"{role} must be one SELECT statement, found {type(tree).__name__.upper()}")
    inner = tree.unnest() if isinstance(tree, exp.Subquery) else tree
    return exp.Subquery(this=inner, alias=exp.TableAlias(this=exp.to_identifier("data", quoted=True)))


def _suffix(path: str) -> str | None:
    return next((s for s in sorted(_READERS, key=len, reverse=True) if path.lower().endswith(s)), None)


def _file(path: str) -> Source:
    path = os.path.expanduser(path)
    suffix = _suffix(path)
    remote = "://" in path
    if suffix is None:
        raise DataError(
            f"{path}: only Parquet and CSV files are read directly (.parquet, .csv, .tsv, .csv.gz); "
            "for other formats pass SQL text"
        )
    if not remote and not any(c in path for c in "*?[") and not Path(path).exists():
        raise DataError(f"the file {path} does not exist")
    reader = exp.Anonymous(this=_READERS[suffix], expressions=[exp.Literal.string(path)])
    return Source(path, exp.Table(this=reader))
