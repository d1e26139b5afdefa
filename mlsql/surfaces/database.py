"""Opening a DuckDB file that a user named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlsql.errors import StoreError

if TYPE_CHECKING:
    import duckdb

_DATA_FILES = (".parquet", ".csv", ".tsv", ".json", ".gz", ".xlsx")


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a database file, closed at the end.

    Raises
    ------
    StoreError
        When the file cannot be opened, is missing where it is to be read, or is of another format: DuckDB would open a
        data file as a database in memory, and what is written there would be lost.
    """
    import duckdb

    if path.suffix.lower() in _DATA_FILES:
        raise StoreError(f"{path} is not a DuckDB database by its name; results go to a file like results.duckdb")
    if read_only and not path.exists():
        raise StoreError(f"the database {path} does not exist")
    try:
        con = duckdb.connect(str(path), read_only=read_only)
    except duckdb.Error as error:
        raise StoreError(f"the database {path} cannot be opened: {str(error).splitlines()[0]}") from error
    try:
        yield con
    finally:
        con.close()
