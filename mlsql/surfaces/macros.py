"""The SQL functions of `udfs/`, installed in a database: they stay in its file, for clients without Python.

Each file holds one macro under a header of comment lines (`-- summary: ...`).  A macro that calls others names them
under `needs`, since DuckDB looks them up when the macro is made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sqlglot import exp

from mlsql.errors import StoreError
from mlsql.sql.syntax import name as identifier
from mlsql.sql.syntax import render

if TYPE_CHECKING:
    import duckdb

MARK = "[mlsql"
"""In the comment of each macro of ours: what bears it may be replaced.

`[mlsql]` comes from a file that was run by hand, `[mlsql 1f3a88c2]` from here: a digest of the statement, to see if it
is up to date.  The catalogue's text of a macro would not tell: it varies with the version of DuckDB, and between a
macro just made and the same one read from a file."""

_STATEMENT = re.compile(r"^CREATE OR REPLACE MACRO (?P<name>\w+)\((?P<parameters>[^)]*)\) AS(?P<table> TABLE)?\b", re.M)


@dataclass(frozen=True, slots=True)
class Macro:
    """One file of `udfs/`.

    Attributes
    ----------
    name : str
    parameters : str
        As the statement gives them, with defaults.
    is_table : bool
        A table macro, to stand after FROM.
    header : dict of str to str
        name, arguments, returns, needs (of macros that call others), summary, example.
    statement : str
        CREATE OR REPLACE MACRO ...;
    """

    name: str
    parameters: str
    is_table: bool
    header: dict[str, str]
    statement: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Macros that this one calls."""
        return tuple(self.header["needs"].split(", ")) if "needs" in self.header else ()

    @property
    def kind(self) -> str:
        """What SQL calls it."""
        return "MACRO TABLE" if self.is_table else "MACRO"

    @property
    def comment(self) -> str:
        """What the database shows beside it."""
        digest = hashlib.sha256(self.statement.encode()).hexdigest()[:8]
        return f"{self.header['summary']} {MARK} {digest}]"

    def statement_in(self, schema: str | None) -> str:
        """The statement that makes the macro in a schema, where it finds those that it calls."""
        if schema is None:
            return self.statement
        qualifier = render(identifier(schema))
        ours = "|".join([self.name, *self.needs])
        return re.sub(rf"\b({ours})\(", lambda call: f"{qualifier}.{call[1]}(", self.statement)


def folder() -> Path:
    """Where the files are: in the installed package, or beside it in a checkout."""
    inside = Path(str(files("mlsql"))) / "udfs"
    return inside if inside.is_dir() else inside.parent.parent / "udfs"


def read_macro(path: Path) -> Macro:
    """A file of `udfs/`."""
    text = path.read_text(encoding="utf-8")
    found = _STATEMENT.search(text)
    assert found is not None, f"{path} makes no macro"
    header = dict(line[3:].split(": ", 1) for line in text.splitlines() if line.startswith("-- "))
    statement = text[found.start() : text.index("\nCOMMENT ON ", found.start())]
    return Macro(found["name"], found["parameters"], found["table"] is not None, header, statement)


def macros() -> tuple[Macro, ...]:
    """All of them, each after those that it calls."""
    known = {m.name: m for m in map(read_macro, sorted(folder().glob("*.sql")))}
    ordered: dict[str, Macro] = {}

    def place(macro: Macro) -> None:
        for need in macro.needs:
            place(known[need])
        ordered.setdefault(macro.name, macro)

    for macro in known.values():
        place(macro)
    return tuple(ordered.values())


def install_macros(con: duckdb.DuckDBPyConnection, schema: str | None = None) -> tuple[str, ...]:
    """Install the SQL functions in the database of a connection.

    What is there already is left alone, so that a database that has them all need not be writable; those of another
    version are replaced.  All are installed, or none; an open transaction is joined.

    Parameters
    ----------
    con : duckdb.DuckDBPyConnection
    schema : str, optional
        Where; the current schema when not given.

    Returns
    -------
    tuple of str
        The functions that were made or replaced.

    Raises
    ------
    StoreError
        When the database cannot be written, or has a macro of one of the names that is not mlsql's; nothing is changed
        then.
    """
    import duckdb

    if not isinstance(con, duckdb.DuckDBPyConnection):
        raise StoreError(
            f"con is a {type(con).__name__}; pass an open DuckDB connection: duckdb.connect('results.duckdb')"
        )
    wanted = macros()
    try:
        present = _present(con, wanted, schema)
        foreign = [m for m in wanted if MARK not in (present.get((m.name, m.is_table), MARK) or "")]
        if foreign:
            raise StoreError(_refusal(foreign))
        missing = [m for m in wanted if present.get((m.name, m.is_table)) != m.comment]
        if missing:
            with _transaction(con):
                for macro in missing:
                    con.execute(macro.statement_in(schema))
                    con.execute(_comment(macro, schema))
    except duckdb.Error as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise StoreError(f"the SQL functions cannot be installed, nothing was changed: {lines}") from error
    return tuple(m.name for m in missing)


def _present(
    con: duckdb.DuckDBPyConnection, wanted: Sequence[Macro], schema: str | None
) -> dict[tuple[str, bool], str | None]:
    """Comments of the macros of those names that the schema has, by name and whether they are tables."""
    rows = con.execute(
        "SELECT lower(function_name), function_type = 'table_macro', comment "
        "FROM duckdb_functions() WHERE function_type IN ('macro', 'table_macro') "
        "AND database_name = current_database() AND lower(schema_name) = lower(coalesce(?, current_schema())) "
        "AND lower(function_name) IN (SELECT unnest(?))",
        [schema, [m.name for m in wanted]],
    ).fetchall()
    return {(name, table): comment for name, table, comment in rows}


def _refusal(found: Sequence[Macro]) -> str:
    names = ", ".join(m.name for m in found)
    drops = " ".join(f"DROP {m.kind} {m.name};" for m in found)
    return (
        f"the database has {'macros' if len(found) > 1 else 'a macro'} of its own called {names}; nothing was changed. "
        f"Remove what is not needed ({drops}), or choose another schema"
    )


def _comment(macro: Macro, schema: str | None) -> str:
    place = "" if schema is None else f"{render(identifier(schema))}."
    return f"COMMENT ON {macro.kind} {place}{macro.name} IS {render(exp.Literal.string(macro.comment))}"


@contextmanager
def _transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """A transaction of its own, unless the user has one open: the number of that one stays from query to query."""
    import duckdb

    first, second = (con.execute("SELECT txid_current()").fetchall() for _ in range(2))
    if first == second:
        yield
        return
    con.execute("BEGIN TRANSACTION")
    try:
        yield
        con.execute("COMMIT")
    except BaseException:
        # a failed COMMIT has ended it
        with suppress(duckdb.Error):
            con.execute("ROLLBACK")
        raise
