"""The rows of the analysis as a frame: the raw columns of the fixed part, for packages that work in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from mlsql.design.design import Design
from mlsql.design.schema import Input, columns_read
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError
from mlsql.pipeline.design_matrix import MeanTable, mean_columns, mean_tables, raw_columns, registered
from mlsql.pipeline.newdata import check_new_data
from mlsql.pipeline.prepare import Inputs
from mlsql.results.estimates import Estimates
from mlsql.sql.plan import Step
from mlsql.sql.syntax import aliased, as_double, column, present, scalar

if TYPE_CHECKING:
    import polars as pl

LIMIT = 5_000_000
"""Rows that are brought to memory at most."""

_WIDE = ("DECIMAL", "HUGEINT", "UHUGEINT", "BIGNUM")
"""Numbers that frames hold in types of their own; the model computes with their double."""


def model_frame(estimates: Estimates, inputs: Inputs) -> pl.DataFrame:
    """Bring the complete rows to memory.

    Parameters
    ----------
    estimates : Estimates
    inputs : Inputs
        The fit's, or others with the same columns; the outcome and the weights may be absent there.

    Returns
    -------
    polars.DataFrame
        The raw columns of the fixed part and the offset, of both tables, in the data's own types (wide numbers as
        doubles, text as Enum, a factor's levels in the model's order); columns of the keys and the weights; the
        outcome; the group means that the model uses, called `group_mean(x)`.

    Raises
    ------
    DataError
        For more than `LIMIT` rows, rows of groups that the fit did not see when their means are needed, or a column
        that the model reads from both tables.
    """
    import polars as pl

    design = estimates.design
    means = mean_columns(design)
    tables = mean_tables(estimates, means)
    with inputs.engine() as engine, ExitStack() as stack:
        columns = engine.columns(inputs.rows, "data")
        check_new_data(_reduced(estimates, tables), inputs, engine, columns, ())
        labels = [aliased(column(c, t.alias), means[m]) for t in tables for m, c in t.columns.items()]
        query = _query(estimates, inputs, engine, columns, labels).limit(LIMIT + 1)
        for table in tables:
            query = table.join(query, registered(stack, engine, table.table))
        step = Step("model frame", "the rows of the analysis, raw columns of the fixed part", query)
        frame = pl.from_arrow(engine.query(step))
    assert isinstance(frame, pl.DataFrame)
    if frame.height > LIMIT:
        raise DataError(
            f"{inputs.rows.label} has more than {LIMIT:,} complete rows, too many to bring to memory; pass a "
            "sample of them as data=: the table's name with USING SAMPLE 100000, say"
        )
    unseen = max((frame[c].null_count() for c in means.values()), default=0)
    if unseen:
        raise DataError(f"{unseen:,} rows belong to groups that the fit did not see, so that their means are not known")
    return _with_levels(design, frame)


def _reduced(estimates: Estimates, tables: Sequence[MeanTable]) -> Design:
    """With several factors only the keys that find group means, or rows of the level-2 table, must be there."""
    design = estimates.design
    if estimates.levels is None or design.schema.has_level2:
        return design
    keys = {sql for t in tables for _, sql in t.keys}
    kept = tuple(i for i in design.schema.inputs if i.role != "key" or i.sql in keys)
    return replace(design, schema=replace(design.schema, inputs=kept))


def _query(
    estimates: Estimates, inputs: Inputs, engine: DuckDBEngine, columns: Mapping[str, str], means: Sequence[exp.Expr]
) -> exp.Select:
    """Rows that have every value, without the group means joined."""
    design = estimates.design
    have = {c.lower(): c for c in columns}
    upper = {} if inputs.level2 is None else engine.columns(inputs.level2, "level2")
    above = _level2_columns(design, upper)
    # those of a membership number sets of units, and are of no use to anybody
    sets = {i.name for i in estimates.moments.incidences if not i.ordinary}
    keys = [c for k in design.keys if k.name not in sets for c in columns_read(k.sql) if c.lower() in have]
    weight = design.schema.weight
    optional = [] if weight is None else [c for c in columns_read(weight.sql) if c.lower() in have]
    own = [c for c in raw_columns(design) if c.lower() not in above]
    chosen = {have[c.lower()]: None for c in [*own, *keys, *optional]}
    items = [_item(column(c, "data"), columns[c], c) for c in chosen]
    items += [_item(column(f"mlsql level2 {c}", "level2"), upper[c], c) for c in above.values()]
    items += means
    outcome, taken = design.spec.outcome, {c.lower() for c in [*chosen, *above.values()]}
    if _available(outcome.sql, have) and outcome.name.lower() not in taken:
        items.append(aliased(as_double(outcome.sql, ""), outcome.name))
    inputs_there = [i for i in design.schema.of_table("rows") if i.name not in sets and _available(i.sql, have)]
    query = exp.select(*items).from_(_named(inputs.tables.rows, "data")).where(*present(inputs_there))
    if inputs.level2 is None:
        return query
    select = exp.select(
        *[aliased(scalar(k.sql), f"mlsql level2 key {i}") for i, k in enumerate(design.keys)],
        *[aliased(column(c), f"mlsql level2 {c}") for c in above.values()],
    ).from_(inputs.level2.relation.copy())
    select = select.where(*present([*design.schema.of_table("level2"), *design.keys]))
    pairs = [
        exp.EQ(this=scalar(k.sql), expression=column(f"mlsql level2 key {i}", "level2"))
        for i, k in enumerate(design.keys)
    ]
    return query.join(select.subquery("level2"), on=exp.and_(*pairs))


def _level2_columns(design: Design, upper: Mapping[str, str]) -> dict[str, str]:
    """Columns read from the level-2 table, keys apart, by their names in lower case."""
    keys = {c.lower() for k in design.keys for c in columns_read(k.sql)}
    there = {c.lower(): c for c in upper}
    variables = [v for part in design.fixed.columns for v in part.variables]
    found = {c.lower() for v in variables if v.origin == "level2" for c in columns_read(v.sql)} - keys
    twice = found & {c.lower() for v in variables if v.origin == "rows" for c in columns_read(v.sql)}
    if twice:
        raise DataError(f"the model reads {min(twice)!r} of the data and of the level2 table; rename one of them")
    return {c: there[c] for c in there if c in found}


def _available(sql: str, have: Mapping[str, str]) -> bool:
    return {c.lower() for c in columns_read(sql)} <= have.keys()


def _item(tree: exp.Expr, dtype: str, label: str) -> exp.Expr:
    wide = dtype.split("(", maxsplit=1)[0].upper() in _WIDE
    return aliased(exp.cast(tree, exp.DataType.Type.DOUBLE) if wide else tree, label)


def _named(relation: exp.Expr, alias: str) -> exp.Expr:
    return exp.select("*").from_(relation.copy()).subquery(alias)


def _with_levels(design: Design, frame: pl.DataFrame) -> pl.DataFrame:
    """Text as Enum: the model's levels in its order for a factor, values in sorted order otherwise."""
    import polars as pl

    order = {columns_read(i.sql)[0].lower(): _levels(design, i) for i in design.schema.of_role("factor") if _plain(i)}
    text = [c for c, kind in frame.schema.items() if isinstance(kind, pl.String | pl.Categorical | pl.Enum)]
    for c in text:
        values = frame[c].cast(pl.String)
        known = order.get(c.lower(), [])
        others = sorted(set(values.drop_nulls().unique()) - set(known))
        frame = frame.with_columns(values.cast(pl.Enum([*known, *others])))
    return frame


def _plain(item: Input) -> bool:
    tree = scalar(item.sql)
    return isinstance(tree, exp.Column) and len(tree.parts) == 1


def _levels(design: Design, factor: Input) -> list[str]:
    """The reference level first, as the model codes it."""
    assert design.survey is not None
    levels = list(design.survey.levels[factor.sql])
    chosen = [a.reference for a in design.spec.atoms if a.sql == factor.sql and a.reference is not None]
    return chosen[:1] + [level for level in levels if level not in chosen[:1]]
