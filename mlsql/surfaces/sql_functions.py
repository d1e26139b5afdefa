"""`register` and `connect`: fits as SQL table functions, `FROM ml_fit('y ~ x + (1 | g)', 'table')`.

A table function is a macro around two functions.  The first turns formula and table into one query, when the statement
is read; the macro runs that query within the caller's statement, so that it sees what the statement sees; the second
takes the answer as one list and fits.  An error of mlsql travels as data and is raised by the macro: raised in Python,
it would reach the user with a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from mlsql.errors import FormulaError, MlsqlError, StoreError

if TYPE_CHECKING:
    from mlsql.surfaces.sql_tables import TableFunction

PREFIX = "_mlsql_"
"""Of the functions behind the macros, by which a macro is known to be ours."""

ARGUMENTS = ("formula", "tbl", "method", "level2", "weights", "groups", "df", "vcov")
"""Of the first function, in the order of `Call`."""


_MACRO = """CREATE OR REPLACE TEMP MACRO {name}({parameters}) AS TABLE
SELECT unnest(CASE WHEN answer.failure IS NULL THEN answer.found ELSE error(answer.failure) END, recursive := true)
FROM (SELECT {function}({answers}) AS answer)"""
_ANSWER = "(SELECT list(cell) FROM {} AS cell)"


def register(con: duckdb.DuckDBPyConnection, *, replace: bool = False) -> duckdb.DuckDBPyConnection:
    """Make the table functions known to a connection; nothing is written to its database.

    They are temporary macros: they last as long as the connection, and a cursor of it needs a call of its own.  A
    second call changes nothing.

    Parameters
    ----------
    con : DuckDB connection
    replace : bool
        Hide macros of the same names that are not mlsql's, instead of refusing.

    Returns
    -------
    DuckDB connection
        The same.

    Raises
    ------
    StoreError
        When a macro of such a name exists, or the connection cannot be used.

    Examples
    --------
    >>> import duckdb, mlsql
    >>> con = mlsql.register(duckdb.connect())
    >>> hsb = mlsql.example_data("hsb")
    >>> con.execute(
    ...     "SELECT term, round(estimate, 3) FROM ml_fixed_effects('mathach ~ sector + (1 | school)', ?)", [hsb]
    ... ).fetchall()
    [('(Intercept)', 11.393), ('sector', 2.805)]
    """
    from mlsql.surfaces.sql_known import new_home
    from mlsql.surfaces.sql_tables import FUNCTIONS

    if not isinstance(con, duckdb.DuckDBPyConnection):
        raise StoreError(
            f"con is a {type(con).__name__}; pass an open DuckDB connection: duckdb.connect('data.duckdb')"
        )
    try:
        known = con.execute(
            "SELECT function_name, function_type, coalesce(macro_definition, '') FROM duckdb_functions() "
            "WHERE starts_with(function_name, 'ml_') OR starts_with(function_name, ?)",
            [PREFIX],
        ).fetchall()
        ours = {name for name, _, definition in known if name.startswith(PREFIX) or PREFIX in definition}
        foreign = [name for name, kind, _ in known if name in FUNCTIONS and kind.endswith("macro") and name not in ours]
        if foreign and not replace:
            raise StoreError(
                f"the connection has a macro {foreign[0]} that is not mlsql's; drop or rename it, or hide it while the "
                "connection lasts: mlsql.register(con, replace=True)"
            )
        if not {PREFIX + "cells", *FUNCTIONS, *(PREFIX + name for name in FUNCTIONS)} <= ours:
            _refuse_transaction(con)
            _create_functions(con, ours, FUNCTIONS)
            home = new_home()
            for name, function in FUNCTIONS.items():
                con.execute(macro(name, function, home))
    except duckdb.Error as error:
        raise StoreError(f"the functions cannot be registered: {str(error).splitlines()[0]}") from error
    return con


def connect(
    path: str | os.PathLike[str] = ":memory:",
    *,
    read_only: bool = False,
    **config: str | bool | int | float | list[str],
) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB database with the table functions.

    Parameters
    ----------
    path : str or path
        A database file, made when it does not exist; `:memory:` for none.
    read_only : bool
    **config
        DuckDB's own settings: `threads=4`, `memory_limit="8GB"`.

    Returns
    -------
    DuckDB connection

    Raises
    ------
    StoreError
        When the database cannot be opened.

    Examples
    --------
    >>> import mlsql
    >>> con = mlsql.connect()
    >>> con.execute("CREATE TABLE hsb AS FROM read_parquet(?)", [mlsql.example_data("hsb")]).fetchall()
    [(7185,)]
    >>> con.execute("SELECT round(deviance, 2) FROM ml_fit_statistics('mathach ~ 1 + (1 | school)', hsb)").fetchall()
    [(47116.79,)]
    """
    try:
        con = duckdb.connect(os.fspath(path), read_only=read_only, config=dict(config))
    except duckdb.Error as error:
        raise StoreError(f"the database {path} cannot be opened: {str(error).splitlines()[0]}") from error
    return register(con)


def macro(name: str, function: TableFunction, home: str) -> str:
    """The statement that makes a table function of the connection of that name."""
    formulas = ["formula"] if function.models == 1 else [f"formula{i + 1}" for i in range(function.models)]
    named = [f"{key} := {_literal(value)}" for key, value in function.settings.items()]
    settings = [key if key in function.settings else "NULL" for key in ARGUMENTS[2:]]
    queries = [
        f"query({PREFIX}cells({', '.join([formula, 'tbl', *settings, _literal(home)])}))" for formula in formulas
    ]
    return _MACRO.format(
        name=name,
        parameters=", ".join([*formulas, "tbl", *named]),
        function=PREFIX + name,
        answers=", ".join(_ANSWER.format(query) for query in queries),
    )


def _literal(value: str | None) -> str:
    return "NULL" if value is None else f"'{value}'"


def _refuse_transaction(con: duckdb.DuckDBPyConnection) -> None:
    """Functions made in a transaction end with it, and the engine refuses to make them again."""
    first, second = (con.execute("SELECT txid_current()").fetchall() for _ in range(2))
    if first == second:
        raise StoreError("the connection has an open transaction; commit it or roll it back, then register")


def _create_functions(con: duckdb.DuckDBPyConnection, known: set[str], functions: dict[str, TableFunction]) -> None:
    """The two functions behind each macro; the database keeps them for all its connections."""
    from mlsql.sql.cell_rows import ROW_TYPE

    if PREFIX + "cells" not in known:
        _create(con, PREFIX + "cells", cells_query, ["VARCHAR"] * (len(ARGUMENTS) + 1), "VARCHAR")
    for name, function in functions.items():
        if PREFIX + name not in known:
            columns = ", ".join(f'"{column}" {dtype}' for column, dtype in function.columns.items())
            answer = f"STRUCT(failure VARCHAR, found STRUCT({columns})[])"
            _create(con, PREFIX + name, fitter(name), [ROW_TYPE + "[]"] * function.models, answer)


def _create(
    con: duckdb.DuckDBPyConnection, name: str, function: Callable[..., Any], arguments: list[str], answer: str
) -> None:
    types = [duckdb.sqltype(a) for a in arguments]
    # the engine takes these settings as text; its annotations say otherwise
    untyped: Any = con
    untyped.create_function(name, function, types, duckdb.sqltype(answer), type="arrow", null_handling="special")


def cells_query(
    formula: pa.ChunkedArray,
    tbl: pa.ChunkedArray,
    method: pa.ChunkedArray,
    level2: pa.ChunkedArray,
    weights: pa.ChunkedArray,
    groups: pa.ChunkedArray,
    df: pa.ChunkedArray,
    vcov: pa.ChunkedArray,
    home: pa.ChunkedArray,
) -> pa.Array:
    """The query of a table function, or one that carries an error."""
    from mlsql.sql.cell_rows import failure_query
    from mlsql.surfaces.sql_fit import Call, cells_sql

    found = []
    arguments = (formula, tbl, method, level2, weights, groups, df, vcov, home)
    for *values, where in zip(*[a.to_pylist() for a in arguments], strict=True):
        try:
            found.append(cells_sql(Call(*values), where))
        except MlsqlError as error:
            found.append(failure_query(one_line(error)))
    return pa.array(found, pa.string())


@cache
def fitter(name: str) -> Callable[..., pa.Array]:
    """The function that takes a query's answers and returns rows, or an error's text.

    Kept for good: the database has it as long as any of its connections is open, but a reference to it only as long as
    the connection that made it known.
    """
    from mlsql.surfaces.sql_tables import FUNCTIONS

    function = FUNCTIONS[name]

    def rows(*answers: pa.ChunkedArray) -> pa.Array:
        failures: list[str | None] = []
        found: list[pa.Array] = []
        for i in range(len(answers[0])):
            try:
                found.append(function.packed(tuple(a[i].values for a in answers)))
                failures.append(None)
            except MlsqlError as error:
                found.append(pa.nulls(1, pa.list_(function.arrow)))
                failures.append(one_line(error))
        lists = pa.concat_arrays(found) if found else pa.array([], pa.list_(function.arrow))
        return pa.StructArray.from_arrays([pa.array(failures, pa.string()), lists], names=["failure", "found"])

    # the engine counts a function's parameters
    def of_one(answer: pa.ChunkedArray) -> pa.Array:
        return rows(answer)

    def of_two(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.Array:
        return rows(first, second)

    return of_one if function.models == 1 else of_two


def one_line(error: MlsqlError) -> str:
    """An error's text without the line of the caret, which needs a terminal to point."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, FormulaError) and lines[-1:] == ["^"]:
        lines = [": ".join(lines[:-1])]
    return " ".join(lines)
