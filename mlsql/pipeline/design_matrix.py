"""The fixed part's columns for any frame of raw columns, on the user's scale: X with  population = X beta + offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
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
        means behind `group_center(x)` and `group_mean(x)` are the frame's own column called `group_mean(x)`, or,
        without one, those of the fit, found by the grouping columns.
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
            value = means[v.sql] if v.origin == "group_mean" else values[v.sql]
            X[:, f] *= value - (means[v.sql] if v.centering == "group" else shifts.user_shift(v))
    return X, offset


def raw_columns(design: Design) -> tuple[str, ...]:
    """Columns that the fixed part and the offset read row by row; not those read for their group means alone."""
    texts = [v.sql for v in _direct(design)] + [o.sql for o in design.spec.offset]
    return tuple(dict.fromkeys(c for text in texts for c in columns_read(text)))


def mean_columns(design: Design) -> dict[str, str]:
    """Names of the group means that the fixed part uses, by the SQL of what is averaged."""
    names = {b.sql: b.name for b in design.bases}
    return {v.sql: f"group_mean({names[v.sql]})" for v in _fixed_variables(design) if _needs_mean(v)}


def group_means(estimates: Estimates, wanted: Iterable[str]) -> pa.Table:
    """One row per group of the fit: keys and the wanted means, named by `key_name` and `effect_name`."""
    design, moments = estimates.design, estimates.moments
    columns: dict[str, Any] = {key_name(i): column for i, column in enumerate(moments.keys.columns)}
    pivots = {b.sql: b.pivot for b in design.bases}
    for sql in wanted:
        position = design.means.index(sql)
        columns[effect_name("mean", position)] = moments.means[position] + pivots[sql]
    return pa.table(columns)


def same_group(design: Design, alias: str) -> exp.Expr:
    """A row of the data belongs to a row of `group_means`."""
    pairs = [exp.EQ(this=scalar(k.sql), expression=column(key_name(i), alias)) for i, k in enumerate(design.keys)]
    return exp.and_(*pairs)


def _fixed_variables(design: Design) -> list[Variable]:
    return list(dict.fromkeys(v for c in design.fixed.columns for v in c.variables))


def _direct(design: Design) -> list[Variable]:
    return [v for v in _fixed_variables(design) if v.origin != "group_mean"]


def _needs_mean(variable: Variable) -> bool:
    return variable.origin == "group_mean" or variable.centering == "group"


def _evaluate(
    estimates: Estimates, frame: pl.DataFrame, con: duckdb.DuckDBPyConnection | None
) -> tuple[Mapping[str, Array], Mapping[str, Array], Array]:
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
    absent = {sql: label for sql, label in names.items() if label.lower() not in have}
    if absent:
        _require_keys(design, have, next(iter(absent.values())))
    # 2
    keys = [k.sql for k in design.keys] if absent else []
    used = {have[c.lower()] for c in raw_columns(design)} | {have[c.lower()] for k in keys for c in columns_read(k)}
    used |= {have[label.lower()] for sql, label in names.items() if sql not in absent}
    source = make_source(_plain(frame, used), role="data", exists=None)
    direct = list({v.sql: v for v in _direct(design)}.values())
    items = [guarded(v, design) for v in direct]
    items += [column(_mean_label(design, sql, absent, have, label)) for sql, label in names.items()]
    items += [scalar(o.sql) for o in design.spec.offset]
    with open_engine(con, [source]) as engine, ExitStack() as stack:
        query = exp.select(*[aliased(_double(t), f"c{i}") for i, t in enumerate(items)], column(_ROW))
        query = query.from_(source.relation.copy()).order_by(column(_ROW))
        if absent:
            groups = _registered(stack, engine, group_means(estimates, absent))
            query = query.join(groups, on=same_group(design, "groups"), join_type="left")
        answer = engine.query(Step("design matrix", "the fixed part's variables, row by row", query))
    found = [np.asarray(c.to_numpy(), dtype=np.float64) for c in answer.columns[: len(items)]]
    values = dict(zip([v.sql for v in direct], found, strict=False))
    means = dict(zip(names, found[len(direct) :], strict=False))
    offset = np.sum([np.zeros(frame.height), *found[len(direct) + len(names) :]], axis=0)
    return values, means, offset


def _require_keys(design: Design, have: Mapping[str, str], mean: str) -> None:
    for key in design.keys:
        if not {c.lower() for c in columns_read(key.sql)} <= have.keys():
            raise DataError(
                f"the group's mean is needed: add the grouping column {key.name} to the data, or a column {mean!r}"
            )


def _plain(frame: pl.DataFrame, used: set[str]) -> pa.Table:
    """The used columns with the row's number; categories as text, which compares with any literal."""
    import polars as pl

    numbered = frame.with_columns(pl.Series(_ROW, np.arange(frame.height)))
    chosen = numbered.select(c for c in numbered.columns if c in used or c == _ROW)
    categories = [c for c, kind in chosen.schema.items() if isinstance(kind, pl.Categorical | pl.Enum)]
    return chosen.with_columns(pl.col(categories).cast(pl.String)).to_arrow()


def _mean_label(design: Design, sql: str, absent: Mapping[str, str], have: Mapping[str, str], label: str) -> str:
    return effect_name("mean", design.means.index(sql)) if sql in absent else have[label.lower()]


def _double(tree: exp.Expr) -> exp.Expr:
    return exp.cast(tree, exp.DataType.Type.DOUBLE)


def _registered(stack: ExitStack, engine: DuckDBEngine, table: pa.Table) -> exp.Expr:
    label = f"mlsql_means_{id(table):x}"
    stack.enter_context(engine.registered(label, table))
    return exp.alias_(exp.Table(this=name(label)), "groups", table=True)
