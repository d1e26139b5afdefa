"""Sources and schema: what the user passed becomes relations, located columns and their types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from mlsql._typing import Method
from mlsql.design.schema import Candidate, Input, Schema, classify, comparable, locate
from mlsql.engine.duckdb import DuckDBEngine, Progress, open_engine
from mlsql.engine.source import Source, make_source
from mlsql.errors import DataError, FormulaError, QueryError
from mlsql.formula.spec import ModelSpec, parse_model
from mlsql.sql.survey import Tables, types_step

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class JoinedTable:
    """A table of a factor's groups that the relation of the rows reads, and the columns that the rows have from it."""

    source: Source
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The data of a model: sources and the connection to read them on.

    Attributes
    ----------
    rows : Source
    level2 : Source or None
    con : DuckDB connection or None
        The user's; None for the process's own.
    others : tuple of Source
        What the relation of the rows reads besides the user's data: the sets of membership tables.
    joined : tuple of JoinedTable
        Level-2 tables of several factors, which the relation of the rows reads, too.
    """

    rows: Source
    level2: Source | None
    con: duckdb.DuckDBPyConnection | None
    others: tuple[Source, ...] = ()
    joined: tuple[JoinedTable, ...] = ()

    @property
    def tables(self) -> Tables:
        """Relations for the statements."""
        return Tables(self.rows.relation, None if self.level2 is None else self.level2.relation)

    @contextmanager
    def engine(self, progress: Progress | None = None) -> Iterator[DuckDBEngine]:
        """An engine that sees the sources."""
        above = (t.source for t in self.joined)
        sources = [s for s in (self.rows, self.level2, *self.others, *above) if s is not None]
        with open_engine(self.con, sources, progress) as engine:
            yield engine


def make_spec(formula: str | ModelSpec, method: Method, weights: str | None, groups: str | None) -> ModelSpec:
    """The specification of a call: parsed, or as given.

    Raises
    ------
    FormulaError
        When the text is no model, or a ModelSpec is combined with settings that it carries itself.
    """
    if not isinstance(formula, ModelSpec):
        return parse_model(formula, method=method, weights=weights, groups=groups)
    if weights is not None or groups is not None or method not in (formula.method, "REML"):
        raise FormulaError("a ModelSpec carries its own method, weights and groups; give them to parse_model")
    return formula


def make_inputs(data: object, level2: object, con: Any) -> Inputs:
    """Turn the user's data into sources."""
    with open_engine(con, []) as engine:
        exists = None if con is None else engine.exists
        rows = make_source(data, role="data", exists=exists)
        upper = None if level2 is None else make_source(level2, role="level2", exists=exists)
    return Inputs(rows, upper, con)


def make_schema(spec: ModelSpec, inputs: Inputs, engine: DuckDBEngine) -> Schema:
    """Find every part of the model in the tables, and its type; no row is read.

    Raises
    ------
    DataError, FormulaError, DesignError
        When a column, a function or a type does not fit.
    """
    rows = engine.columns(inputs.rows, "data")
    level2 = None if inputs.level2 is None else engine.columns(inputs.level2, "level2")
    candidates, warnings = locate(spec, rows, level2)
    offsets = [Candidate(f"offset({o.name})", o.sql, "offset", "rows") for o in spec.offset]
    for offset, dtype in zip(offsets, types_of(engine, inputs.tables.rows, offsets), strict=True):
        classify(offset, dtype)
    found = []
    for table, relation in (("rows", inputs.tables.rows), ("level2", inputs.tables.level2)):
        chosen = [c for c in candidates if c.table == table]
        if relation is not None and chosen:
            types = types_of(engine, relation, chosen)
            found += [classify(c, t) for c, t in zip(chosen, types, strict=True)]
    if inputs.level2 is not None:
        _check_keys([i for i in found if i.role == "key"], inputs.level2.relation, engine)
    position = {c.sql: i for i, c in reversed(list(enumerate(candidates)))}
    found.sort(key=lambda item: position[item.sql])
    return Schema(tuple(dict.fromkeys(found)), level2 is not None, warnings)


def _check_keys(keys: list[Input], level2: exp.Expr, engine: DuckDBEngine) -> None:
    candidates = [Candidate(k.name, k.sql, "key", "level2") for k in keys]
    for key, dtype in zip(keys, types_of(engine, level2, candidates), strict=True):
        if not comparable(key.dtype, dtype):
            raise DataError(
                f"the grouping column {key.name} is {key.dtype} in the data and {dtype} in the level2 table; "
                "convert one of them, so that groups can be matched"
            )


def types_of(engine: DuckDBEngine, relation: exp.Expr, candidates: list[Candidate]) -> list[str]:
    """Types of expressions; an error names the one that fails."""
    if not candidates:
        return []
    try:
        answer = engine.query(types_step(relation, candidates))
    except QueryError as error:
        for candidate in candidates:
            try:
                engine.query(types_step(relation, [candidate]))
            except QueryError as single:
                raise FormulaError(f"{candidate.name}: {str(single).split(': ', 1)[-1]}") from error
        raise DataError(str(error)) from error
    if answer.num_rows != len(candidates):
        if len(candidates) > 1:
            return [t for c in candidates for t in types_of(engine, relation, [c])]
        raise FormulaError(f"{candidates[0].name} gives {answer.num_rows} columns; a term is one value of a row")
    return [str(t) for t in answer.column("column_type").to_pylist()]
