"""DuckDB: runs steps, times them, reports progress, and turns failures into mlsql's errors."""

from __future__ import annotations

import atexit
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import duckdb
from sqlglot import exp

from mlsql.engine.source import Source
from mlsql.errors import DataError, QueryError, QueryInterrupted, StoreError
from mlsql.sql.plan import Step
from mlsql.sql.syntax import name, render

if TYPE_CHECKING:
    import pyarrow as pa

_UNUSABLE = ("ConnectionException", "TransactionException", "ResourceInUseException", "InterruptException")
"""Errors that speak of the connection, not of the statement; by name, since not all versions have all of them."""

COPY_WAITS = not duckdb.__version__.startswith(("0.", "1."))
"""Whether a COPY may wait for ever when its query fails: one in ten did with DuckDB 2.0.0, none with 1.4; making a
table of the same query never does."""

Progress = Callable[[str, float], None]
"""Receives a step's name and the share of it that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A statement that ran: its step and text, seconds, rows of the answer."""

    step: str
    sql: str
    seconds: float
    rows: int


Listener = Callable[[Executed], None]

_listener: ContextVar[Listener | None] = ContextVar("mlsql_listener", default=None)


@contextmanager
def traced(listener: Listener) -> Iterator[None]:
    """Tell a listener of every statement that runs within."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(done: Executed) -> None:
    """Tell whoever listens."""
    listener = _listener.get()
    if listener is not None:
        listener(done)


def run_told(con: duckdb.DuckDBPyConnection, step: str, sql: str) -> None:
    """Run a statement that changes a database; its rows are those that it wrote or deleted."""
    started = time.perf_counter()
    answer = con.execute(sql).fetchall()
    counted = len(answer) == 1 and len(answer[0]) == 1 and isinstance(answer[0][0], int)
    tell(Executed(step, sql, time.perf_counter() - started, answer[0][0] if counted else 0))


@dataclass(slots=True)
class DuckDBEngine:
    """A connection with its sources attached.

    Attributes
    ----------
    con : DuckDB connection
    run : callable
        Statement to relation: the connection's own `sql`, or a relation's `query`, which runs where the relation lives.
    progress : callable or None
    foreign : bool
        Statements run on a relation's connection that the user did not pass.
    log : list of Executed
    """

    con: duckdb.DuckDBPyConnection
    run: Callable[[str], duckdb.DuckDBPyRelation]
    progress: Progress | None = None
    foreign: bool = False
    log: list[Executed] = field(default_factory=list)

    def query(self, step: Step) -> pa.Table:
        """Run a step and return its answer.

        Raises
        ------
        QueryError
            With the statement, when the engine refuses it.
        QueryInterrupted
            When the user stopped it.
        """
        started = time.perf_counter()
        with self._guarded(step.name, step.sql), self._watched(step.name):
            answer = self.run(step.sql).to_arrow_table()
        self._ran(step, started, answer.num_rows)
        return answer

    def create_table(self, table: exp.Table, step: Step, *, replace: bool) -> None:
        """Make a table of a step's answer in one statement: all of it or nothing.

        Raises
        ------
        StoreError
            When the database cannot be written.
        """
        statement = exp.Create(this=table, kind="TABLE", expression=step.tree, replace=replace)
        self._write(Step("write", step.purpose, statement))

    def copy_to(self, step: Step, path: str, file_format: str) -> None:
        """Write a step's answer to a file; a failure may leave it half written, but no other file beside it.

        Where COPY_WAITS, the answer is a temporary table first.
        """
        if not COPY_WAITS:
            self._copy(step, path, file_format)
            return
        with self._passing(step) as table:
            self._copy(Step(step.name, step.purpose, exp.select("*").from_(table)), path, file_format)

    def _copy(self, step: Step, path: str, file_format: str) -> None:
        target = exp.Literal.string(path)
        settings = {"FORMAT": file_format.upper(), "USE_TMP_FILE": "FALSE"}
        params = [exp.CopyParameter(this=exp.var(k), expression=exp.var(v)) for k, v in settings.items()]
        statement = exp.Copy(this=exp.Subquery(this=step.tree), kind=False, files=[target], params=params)
        self._write(Step("write", step.purpose, statement))

    @contextmanager
    def _passing(self, step: Step) -> Iterator[exp.Table]:
        """A temporary table of a step's answer while it is needed."""
        table = exp.Table(this=name(f"mlsql_rows_{secrets.token_hex(8)}"))
        temporary = exp.Properties(expressions=[exp.TemporaryProperty()])
        statement = exp.Create(this=table, kind="TABLE", expression=step.tree, properties=temporary)
        self._write(Step(step.name, step.purpose, statement))
        try:
            yield table.copy()
        finally:
            # in a transaction of the user's that has failed nothing can be dropped, and nothing remains of it
            with suppress(duckdb.Error):
                self.run(render(exp.Drop(tables=[table.copy()], kind="TABLE")))

    def _write(self, step: Step) -> None:
        started = time.perf_counter()
        with self._guarded(step.name, step.sql), self._watched(step.name):
            answer = self.run(step.sql)
            if answer is not None:
                answer.fetchall()
        self._ran(step, started, 0)

    def _ran(self, step: Step, started: float, rows: int) -> None:
        done = Executed(step.name, step.sql, time.perf_counter() - started, rows)
        self.log.append(done)
        tell(done)

    @contextmanager
    def registered(self, label: str, table: pa.Table) -> Iterator[None]:
        """A small result table made visible to statements.

        Raises
        ------
        DataError
            When statements run on a relation's connection, which is not at hand.
        """
        if self.foreign:
            raise DataError(
                "predictions and residuals of a DuckDB relation need con=, the connection that made the relation"
            )
        try:
            self.con.register(label, table)
        except duckdb.Error as error:
            raise StoreError(f"the results cannot be brought to the connection: {_first_lines(error)}") from error
        try:
            yield
        finally:
            self.con.unregister(label)

    @contextmanager
    def _guarded(self, name: str, sql: str) -> Iterator[None]:
        """Turn the engine's exceptions into mlsql's."""
        try:
            yield
        except (duckdb.Error, RuntimeError) as error:
            text = _first_lines(error)
            if isinstance(error, duckdb.InterruptException) or "interrupted" in text.lower():
                raise QueryInterrupted(f"the query of step {name!r} was interrupted; nothing was written") from error
            if "read-only" in text:
                raise StoreError(f"the database is read-only, nothing was written: {text}") from error
            raise QueryError(name, sql, text) from error

    def columns(self, source: Source, role: str) -> dict[str, str]:
        """Names and types of a source's columns.

        Raises
        ------
        DataError
            When the source cannot be read.
        """
        statement = exp.Describe(this=exp.select("*").from_(source.relation.copy()))
        try:
            rows = self.run(render(statement)).fetchall()
        except duckdb.Error as error:
            raise DataError(f"{role} {source.label} cannot be read: {_first_lines(error)}") from error
        names = [str(r[0]) for r in rows]
        lowered = [n.lower() for n in names]
        twice = next((n for i, n in enumerate(names) if n.lower() in lowered[:i]), None)
        if twice is not None:
            raise DataError(
                f"{role} {source.label}: column {twice!r} occurs twice but for upper and lower case; rename one"
            )
        return {str(r[0]): str(r[1]) for r in rows}

    def exists(self, relation: exp.Expr) -> bool:
        """True when a table or view is there.

        Raises
        ------
        DataError
            When the connection itself fails: closed, or busy with an unfinished result.
        """
        try:
            self.run(render(exp.select("*").from_(relation.copy()).limit(0))).fetchall()
        except duckdb.Error as error:
            if type(error).__name__ in _UNUSABLE:
                raise DataError(f"the connection cannot be used: {_first_lines(error)}") from error
            return False
        return True

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Poll the engine's own progress from a thread while a statement runs."""
        if self.progress is None:
            yield
            return
        done = threading.Event()
        report = self.progress

        def poll() -> None:
            while not done.wait(0.1):
                share = self.con.query_progress()
                report(name, max(0.0, share / 100.0))

        watcher = threading.Thread(target=poll, daemon=True)
        watcher.start()
        try:
            yield
            report(name, 1.0)
        finally:
            done.set()
            watcher.join()


_default: duckdb.DuckDBPyConnection | None = None
_lock = threading.Lock()


@atexit.register
def _close_default() -> None:
    """Let go of the database while the interpreter still stands."""
    global _default
    _default = None


def default_connection() -> duckdb.DuckDBPyConnection:
    """A cursor of the process's own in-memory database, made once: opening one costs 15-50 ms."""
    global _default
    with _lock:
        if _default is None:
            _default = duckdb.connect(":memory:")
            # without this, a table name could find a Python variable of ours
            _default.execute("SET python_enable_replacements = false")
        return _default.cursor()


@contextmanager
def open_engine(
    con: duckdb.DuckDBPyConnection | None, sources: Sequence[Source], progress: Progress | None = None
) -> Iterator[DuckDBEngine]:
    """An engine on the user's connection, or on the process's own, with frames attached while it is open.

    Raises
    ------
    DataError
        When con is no connection, or a relation is combined with a frame and no connection brings them together.
    """
    if con is not None and not isinstance(con, duckdb.DuckDBPyConnection):
        raise DataError(f"con is a {type(con).__name__}; pass an open DuckDB connection: duckdb.connect('data.duckdb')")
    relations = [s for s in sources if s.duckdb_relation is not None]
    if len(relations) > 1:
        raise DataError("data and level2 are both DuckDB relations; pass one of them as a table name, with con=")
    if relations and con is None and any(s.frame is not None for s in sources):
        raise DataError("a DuckDB relation with a frame beside it needs con=, the connection that made the relation")
    connection = default_connection() if con is None else con
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(source.attached(connection))
        yield DuckDBEngine(
            connection, _runner(connection, relations), progress, foreign=bool(relations) and con is None
        )


def _runner(con: duckdb.DuckDBPyConnection, relations: Sequence[Source]) -> Callable[[str], duckdb.DuckDBPyRelation]:
    if not relations:
        return con.sql
    source = relations[0]

    def run(sql: str) -> duckdb.DuckDBPyRelation:
        answer: duckdb.DuckDBPyRelation = source.duckdb_relation.query(source.frame_name, sql)
        return answer

    return run


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])
