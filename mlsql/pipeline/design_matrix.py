"""The fixed part's columns for any frame of raw columns, on the user's scale: X with  population = X beta + offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from sqlglot import exp

from mlsql._arrays import Array
from mlsql.design.columns import Variable
from mlsql.design.design import Design
from mlsql.design.schema import columns_read, require_columns
from mlsql.engine.duckdb import DuckDBEngine, open_engine
from mlsql.engine.source import make_source
from mlsql.errors import DataError
from mlsql.moments.shifts import Shifts
from mlsql.results.centering import factor_means
from mlsql.results.estimates import Estimates
from mlsql.sql.plan import Step
from mlsql.sql.scoring import effect_name, guarded, key_name
from mlsql.sql.syntax import aliased, column, name, scalar

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_ROW = "mlsql row"


def design_matrix(
    estimates: Estimates, frame: pl.DataFrame, con: duckdb.DuckDBPyConnection | None = None
) -> tuple[Array, Array]:
    """Evaluate the fixed part for the rows of a frame.

    Parameters
    ----------
    estimates : Estimates
    frame : polars.DataFrame
        The raw columns that the fixed part reads (`raw_columns`), those of a level-2 table among them.  The group
        means behind `group_center(x)` and `group_mean(x)` are the frame's own column called `group_mean(x)`, with
        several factors `group_mean(x, school)`, or, without one, those of the fit, found by the grouping columns.
    con : DuckDB connection, optional
        Where the model's expressions are known; needed for macros and functions of the user's own.

    Returns
    -------
    X : (n, p)
        One column per fixed effect.  Rows without a value are nan: a missing predictor, a factor level or a group
        that the fit did not see.
    offset : (n,)

    Raises
    ------
    DataError
        For a column that the frame does not have.
    """
    design, shifts = estimates.design, Shifts(estimates.design, estimates.moments)
    values, means, offset = _evaluate(estimates, frame, con)
    X = np.ones((frame.height, len(design.fixed.columns)))
    for f, product in enumerate(design.fixed.columns):
        for v in product.variables:
            value = means[v.sql, v.group] if v.origin == "group_mean" else values[v.sql]
            X[:, f] *= value - (means[v.sql, v.group] if v.centering == "group" else shifts.user_shift(v))
    return X, offset


def raw_columns(design: Design) -> tuple[str, ...]:
    """Columns that the fixed part and the offset read row by row; not those read for their group means alone."""
    texts = [v.sql for v in _direct(design)] + [o.sql for o in design.spec.offset]
    return tuple(dict.fromkeys(c for text in texts for c in columns_read(text)))


Mean = tuple[str, str | None]
"""SQL of what is averaged, and the factor over whose groups; None where there is one factor."""


def mean_columns(design: Design) -> dict[Mean, str]:
    """Names of the group means that the fixed part uses."""
    names = {b.sql: b.name for b in design.bases}
    found = {(v.sql, v.group): v for v in _fixed_variables(design) if _needs_mean(v)}
    return {m: f"group_mean({names[v.sql]}{'' if v.group is None else f', {v.group}'})" for m, v in found.items()}


@dataclass(frozen=True, slots=True)
class MeanTable:
    """Means by group of one factor.

    Attributes
    ----------
    alias : str
        Under which a query joins it.
    keys : tuple of (str, str)
        Name and SQL of each grouping column.
    table : pyarrow.Table
        One row per group of the fit: keys, named by `key_name`, and means.
    columns : mapping of Mean to str
        Names of the means in the table.
    """

    alias: str
    keys: tuple[tuple[str, str], ...]
    table: pa.Table
    columns: Mapping[Mean, str]

    def join(self, query: exp.Select, relation: exp.Expr) -> exp.Select:
        """The query with the means beside its rows; null for groups that the fit did not see."""
        pairs = [
            exp.EQ(this=scalar(sql), expression=column(key_name(i), self.alias)) for i, (_, sql) in enumerate(self.keys)
        ]
        return query.join(exp.alias_(relation, self.alias, table=True), on=exp.and_(*pairs), join_type="left")


def mean_tables(estimates: Estimates, wanted: Iterable[Mean]) -> list[MeanTable]:
    """The wanted means, one table for each factor over whose groups some are."""
    design, moments, found = estimates.design, estimates.moments, []
    variables = {(v.sql, v.group): v for v in _fixed_variables(design) if _needs_mean(v)}
    by_factor: dict[str | None, list[Mean]] = {}
    for mean in wanted:
        by_factor.setdefault(mean[1], []).append(mean)
    for position, (name_of, means) in enumerate(by_factor.items()):
        of = None if name_of is None else moments.incidence(name_of)
        factor = None if name_of is None else design.spec.factor(name_of)
        keys = design.keys if factor is None else factor.keys
        table = moments.keys if of is None else of.keys
        columns: dict[str, Any] = {key_name(i): values for i, values in enumerate(table.columns)}
        names = {m: effect_name("mean", i) for i, m in enumerate(means)}
        columns |= {names[m]: factor_means(estimates, variables[m], of) for m in means}
        alias = "groups" if not position else f"groups {position}"
        found.append(MeanTable(alias, tuple((k.name, k.sql) for k in keys), pa.table(columns), names))
    return found


def _fixed_variables(design: Design) -> list[Variable]:
    return list(dict.fromkeys(v for c in design.fixed.columns for v in c.variables))


def _direct(design: Design) -> list[Variable]:
    return [v for v in _fixed_variables(design) if v.origin != "group_mean"]


def _needs_mean(variable: Variable) -> bool:
    return variable.origin == "group_mean" or variable.centering == "group"


def _evaluate(
    estimates: Estimates, frame: pl.DataFrame, con: duckdb.DuckDBPyConnection | None
) -> tuple[Mapping[str, Array], Mapping[Mean, Array], Array]:
    """Values of the variables and of the group means, by SQL, and the offset.

    1. Check the frame's columns; find the means that it does not bring.
    2. One query, in the frame's order.
    """
    design = estimates.design
    # 1
    have = {c.lower(): c for c in frame.columns}
    for v in _direct(design):
        require_columns(v.name, v.sql, have)
    for o in design.spec.offset:
        require_columns(f"offset({o.name})", o.sql, have)
    names = mean_columns(design)
    tables = mean_tables(estimates, [m for m, label in names.items() if label.lower() not in have])
    for table in tables:
        _require_keys(table, have, names)
    absent = {m: column(label, t.alias) for t in tables for m, label in t.columns.items()}
    # 2
    keys = [sql for t in tables for _, sql in t.keys]
    used = {have[c.lower()] for c in raw_columns(design)} | {have[c.lower()] for k in keys for c in columns_read(k)}
    used |= {have[label.lower()] for m, label in names.items() if m not in absent}
    source = make_source(_plain(frame, used), role="data", exists=None)
    direct = list({v.sql: v for v in _direct(design)}.values())
    items = [guarded(v, design) for v in direct]
    items += [absent[m] if m in absent else column(have[label.lower()]) for m, label in names.items()]
    items += [scalar(o.sql) for o in design.spec.offset]
    with open_engine(con, [source]) as engine, ExitStack() as stack:
        query = exp.select(*[aliased(_double(t), f"c{i}") for i, t in enumerate(items)], column(_ROW))
        query = query.from_(source.relation.copy()).order_by(column(_ROW))
        for table in tables:
            query = table.join(query, registered(stack, engine, table.table))
        answer = engine.query(Step("design matrix", "the fixed part's variables, row by row", query))
    found = [np.asarray(c.to_numpy(), dtype=np.float64) for c in answer.columns[: len(items)]]
    values = dict(zip([v.sql for v in direct], found, strict=False))
    means = dict(zip(names, found[len(direct) :], strict=False))
    offset = np.sum([np.zeros(frame.height), *found[len(direct) + len(names) :]], axis=0)
    return values, means, offset


def _require_keys(table: MeanTable, have: Mapping[str, str], names: Mapping[Mean, str]) -> None:
    for name_of, sql in table.keys:
        if not {c.lower() for c in columns_read(sql)} <= have.keys():
            mean = names[next(iter(table.columns))]
            raise DataError(
                f"the group's mean is needed: add the grouping column {name_of} to the data, or a column {mean!r}"
            )


def _plain(frame: pl.DataFrame, used: set[str]) -> pa.Table:
    """The used columns with the row's number; categories as text, which compares with any literal."""
    import polars as pl

    numbered = frame.with_columns(pl.Series(_ROW, np.arange(frame.height)))
    chosen = numbered.select(c for c in numbered.columns if c in used or c == _ROW)
    categories = [c for c, kind in chosen.schema.items() if isinstance(kind, pl.Categorical | pl.Enum)]
    return chosen.with_columns(pl.col(categories).cast(pl.String)).to_arrow()


def _double(tree: exp.Expr) -> exp.Expr:
    return exp.cast(tree, exp.DataType.Type.DOUBLE)


def registered(stack: ExitStack, engine: DuckDBEngine, table: pa.Table) -> exp.Expr:
    """A table of this process as a relation, for as long as the stack."""
    label = f"mlsql_means_{id(table):x}"
    stack.enter_context(engine.registered(label, table))
    return exp.Table(this=name(label))
