"""The one query of a SQL table function: header rows about the tables, then one row per cell."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from mlsql.design import cells
from mlsql.design.cells import CellLayout
from mlsql.design.schema import columns_read
from mlsql.sql.cell_rows import (
    CELLS,
    LOCATED,
    PIVOTS,
    RAW,
    ROWS,
    TROUBLE,
    TYPED,
    UPPER,
    answer_row,
    header_rows,
    pivot_row,
    range_row,
    same_key,
    size_row,
    survey_row,
    unmatched_row,
    upper_survey_row,
)
from mlsql.sql.cell_types import (
    Expr,
    all_of,
    any_of,
    as_label,
    as_number,
    has_value,
    is_number,
    named,
    not_null,
    type_of,
    typed_as,
)
from mlsql.sql.plan import Step
from mlsql.sql.survey import PREVIEW_ROWS
from mlsql.sql.syntax import call, column, name, number, scalar, times, total


def cells_step(layout: CellLayout, rows: Expr, level2: Expr | None, call: Sequence[str | None] = ()) -> Step:
    """The query.

    Numbers and labels of the model's inputs, whichever the types give; pivots from the first complete rows; sums by
    cell; the level-2 table, joined to the cells.  If rows are missing in the cells, or a number is not finite, also
    what each column lacks: that scan does not happen otherwise.

    Parameters
    ----------
    layout : CellLayout
    rows, level2 : sqlglot expression
    call : sequence of str or None
        Repeated in the answer, for whoever reads it.
    """
    safe = _with_columns(rows, layout.columns)
    upper = None if level2 is None else _with_columns(level2, layout.columns)
    told = [exp.Null() if text is None else exp.Literal.string(text) for text in call]
    parts = [
        answer_row(cells.CALL, labels=told),
        *header_rows(layout, rows, safe, ""),
        pivot_row(layout),
        range_row(layout),
        size_row(rows),
        survey_row(layout),
    ]
    if level2 is not None and upper is not None:
        parts += [*header_rows(layout, level2, upper, "level2 "), upper_survey_row(layout), unmatched_row(layout)]
    parts.append(_cell_rows(layout))
    tree: exp.Query = parts[0]
    for part in parts[1:]:
        tree = exp.Union(this=tree, expression=part, distinct=False)
    common: list[tuple[str, Expr, bool]] = []
    if upper is not None:
        common += [(LOCATED, _located(layout, upper), True), (UPPER, _upper(layout, upper), True)]
    common += [(TYPED, _typed(layout, safe), False), (RAW, _raw(layout), False), (PIVOTS, _pivots(layout), True)]
    common += [(ROWS, _rows(layout), False), (CELLS, _cells(layout), True), (TROUBLE, _trouble(rows), True)]
    for label, query, kept in common:
        # without "not materialized" a table that is read twice would be copied to memory
        tree = tree.with_(name(label), as_=query, materialized=kept, copy=False)
    return Step("cells", "columns, types, pivots, missing values; then sums by cell", tree)


def _with_columns(relation: Expr, columns: Sequence[str]) -> exp.Subquery:
    """The relation with columns that it lacks as NULL of no type."""
    empty = exp.select(*[named(exp.Null(), c) for c in columns]).where(exp.false())
    everything = exp.select("*").from_(relation.copy(), copy=False)
    union = exp.Union(this=empty, expression=everything, distinct=False, by_name=True)
    return exp.Subquery(this=union, alias=exp.TableAlias(this=name("mlsql_safe")))


def _typed(layout: CellLayout, safe: Expr) -> exp.Select:
    """Every row: keys, numbers, labels."""
    items = [named(scalar(k), f"k{i}") for i, k in enumerate(layout.keys)]
    items += [named(as_number(sql), f"x{i}") for i, sql in enumerate(layout.numbers)]
    items += [named(as_label(p.sql, p.category), f"l{i}") for i, p in enumerate(layout.predictors)]
    if layout.weight is not None:
        items.append(named(as_number(layout.weight), "w"))
    return exp.select(*items).from_(safe, copy=False)


def _raw(layout: CellLayout) -> exp.Select:
    """Every row, and whether it is complete."""
    place = {sql: f"x{i}" for i, sql in enumerate(layout.numbers)}
    needed = [has_value(column(f"k{i}")) for i in range(len(layout.keys))]
    needed += [is_number(column(x)) for x in ("x0", *(["w"] if layout.weight is not None else []))]
    for i, p in enumerate(layout.predictors):
        here = [has_value(column(f"l{i}"))] if p.category else [not_null(column(f"l{i}"))]
        if p.number and not p.category:
            here.append(is_number(column(place[p.sql])))
        if layout.level2:
            here.append(column(f"u{i}", LOCATED))
        needed.append(any_of(here))
    complete = named(all_of(needed), "complete")
    query = exp.select(exp.Column(this=exp.Star(), table=name(TYPED)), complete).from_(name(TYPED), copy=False)
    return query.join(name(LOCATED), join_type="cross", copy=False) if layout.level2 else query


def _pivots(layout: CellLayout) -> exp.Select:
    """A round number near the mean of the first complete rows, for each number; the value itself where it is one.

    The mean of n rows that hold m of them is within sqrt(n/m) standard deviations of theirs, so the sums of squares
    keep all but log10(n/m) digits whatever the order of the rows.
    """
    xs = [f"x{i}" for i in range(len(layout.numbers))]
    first = (
        exp.select(*[column(x) for x in xs]).from_(name(RAW), copy=False).where(column("complete")).limit(PREVIEW_ROWS)
    )
    facts = []
    for x in xs:
        facts += [named(exp.Avg(this=column(x)), f"{x} mean")]
        facts += [named(exp.Min(this=column(x)), f"{x} low"), named(exp.Max(this=column(x)), f"{x} high")]
    found = exp.select(*facts).from_(first.subquery("mlsql_first"))
    away = [
        test(this=column(f"x{layout.numbers.index(sql)} {end}"), expression=number(0))
        for sql in layout.natural
        for end, test in (("low", exp.GT), ("high", exp.LT))
    ]
    items = [*[named(_pivot(x), f"p{i}") for i, x in enumerate(xs)], named(any_of([exp.false(), *away]), "away")]
    return exp.select(*items).from_(found.subquery("mlsql_facts"))


def _pivot(x: str) -> Expr:
    mean, low, high = (column(f"{x} {what}") for what in ("mean", "low", "high"))
    spread = exp.paren(exp.Sub(this=high, expression=low))
    log = call("LOG10", exp.Div(this=spread, expression=number(4.0)))
    digits = typed_as(exp.Neg(this=exp.Floor(this=log)), "INTEGER")
    return exp.Case(
        ifs=[
            exp.If(this=exp.EQ(this=low.copy(), expression=high.copy()), true=low.copy()),
            exp.If(
                this=exp.Between(this=spread.copy(), low=number(4e-15), high=number(4e15)),
                true=exp.Round(this=mean, decimals=digits),
            ),
            exp.If(this=call("ISFINITE", mean.copy()), true=mean.copy()),
        ],
        default=number(0.0),
    )


def _rows(layout: CellLayout) -> exp.Select:
    """The complete rows, pivoted."""
    items: list[Expr] = [column(f"k{i}", RAW) for i in range(len(layout.keys))]
    items += [
        named(exp.Sub(this=column(f"x{i}", RAW), expression=column(f"p{i}", PIVOTS)), f"x{i}")
        for i in range(len(layout.numbers))
    ]
    items += [column(f"l{i}", RAW) for i in range(len(layout.predictors))]
    if layout.weight is not None:
        items.append(column("w", RAW))
    query = exp.select(*items).from_(name(RAW), copy=False).join(name(PIVOTS), join_type="cross", copy=False)
    return query.where(column("complete", RAW), copy=False)


def _cells(layout: CellLayout) -> exp.Select:
    """One row per cell: keys, labels, sums."""
    x = {sql: column(f"x{i}") for i, sql in enumerate(layout.numbers)}
    weight = [column("w")] if layout.weight is not None else []
    sums: list[Expr] = [exp.Count(this=exp.Star())]
    if weight:
        positive = exp.GT(this=weight[0].copy(), expression=number(0.0))
        logarithm = exp.Case(ifs=[exp.If(this=positive, true=exp.Ln(this=weight[0].copy()))])
        sums += [total(weight[0].copy()), total(logarithm), exp.Min(this=weight[0].copy())]
    sums += [total(times([t.copy() for t in (*weight, *(x[sql] for sql in product))])) for product in layout.products]
    sums += [total(x[sql].copy()) for sql in layout.unweighted]
    by = [column(f"k{i}") for i in range(len(layout.keys))] + [column(f"l{i}") for i in range(len(layout.predictors))]
    query = exp.select(*by, named(typed_as(exp.Array(expressions=sums), "DOUBLE[]"), "sums")).from_(
        name(ROWS), copy=False
    )
    return query.group_by(*[b.copy() for b in by], copy=False).limit(layout.max_cells + 1, copy=False)


def _rows_in_cells() -> Expr:
    counted = total(call("LIST_EXTRACT", column("sums"), number(1)))
    return exp.select(exp.Coalesce(this=counted, expressions=[number(0)])).from_(name(CELLS), copy=False).subquery()


def _trouble(rows: Expr) -> exp.Select:
    """One row if a row is missing in the cells or a sum is not finite, else none."""
    size = exp.select(exp.Count(this=exp.Star())).from_(rows.copy(), copy=False).subquery()
    odd = exp.CountIf(this=exp.not_(call("ISFINITE", call("LIST_SUM", column("sums")))))
    infinite = exp.select(odd).from_(name(CELLS), copy=False).subquery()
    lost = exp.NEQ(this=size, expression=_rows_in_cells())
    found = exp.or_(lost, exp.GT(this=infinite, expression=number(0)))
    return exp.select(named(exp.true(), "found")).where(found)


def _located(layout: CellLayout, upper: Expr) -> exp.Select:
    """For each predictor, whether the level-2 table has all its columns, the keys apart."""
    keys = {c.lower() for k in layout.keys for c in columns_read(k)}
    items = []
    for i, p in enumerate(layout.predictors):
        used = [c for c in columns_read(p.sql) if c.lower() not in keys]
        missing = exp.Literal.string('"NULL"')
        there = [exp.NEQ(this=type_of(exp.AnyValue(this=column(c))), expression=missing.copy()) for c in used]
        items.append(named(all_of(there) if there else exp.false(), f"u{i}"))
    nothing = exp.select("*").from_(upper.copy(), copy=False).limit(0).subquery("mlsql_nothing")
    # the count makes it one row even without a predictor
    return exp.select(named(exp.Count(this=exp.Star()), "n"), *items).from_(nothing, copy=False)


def _upper(layout: CellLayout, upper: Expr) -> exp.Select:
    """The level-2 table: keys, numbers, labels."""
    items = [named(exp.true(), "there")]
    items += [named(scalar(k), f"k{i}") for i, k in enumerate(layout.keys)]
    items += [named(as_number(p.sql), f"x{i}") for i, p in enumerate(layout.predictors)]
    items += [named(as_label(p.sql, p.category), f"l{i}") for i, p in enumerate(layout.predictors)]
    return exp.select(*items).from_(upper.copy(), copy=False)


def _ranks(layout: CellLayout, table: str) -> list[Expr]:
    """The place of a category's label among the labels, in the order of its values."""
    found: list[Expr] = []
    for i, p in enumerate(layout.predictors):
        if p.category:
            order = exp.Order(expressions=[exp.Ordered(this=column(f"l{i}", table))])
            found.append(exp.Window(this=call("DENSE_RANK"), order=order))
    return found


def _cell_rows(layout: CellLayout) -> exp.Select:
    """The cells as rows of the answer; all cells of a group have its position."""
    keys = [column(f"k{i}", CELLS) for i in range(len(layout.keys))]
    order = exp.Order(expressions=[exp.Ordered(this=k.copy()) for k in keys])
    labels: list[Expr] = [column(f"l{i}", CELLS) for i in range(len(layout.predictors))]
    further = _ranks(layout, CELLS)
    if layout.level2:
        labels += [column(f"l{i}", UPPER) for i in range(len(layout.predictors))]
        there = exp.Coalesce(this=column("there", UPPER), expressions=[exp.false()])
        further += [typed_as(there, "DOUBLE"), *[column(f"x{i}", UPPER) for i in range(len(layout.predictors))]]
        further += _ranks(layout, UPPER)
    sums: Expr = column("sums", CELLS)
    if further:
        more = typed_as(exp.Array(expressions=[typed_as(f, "DOUBLE") for f in further]), "DOUBLE[]")
        sums = call("LIST_CONCAT", sums, more)
    query = answer_row(
        cells.CELL,
        position=exp.Window(this=call("DENSE_RANK"), order=order),
        keys=[typed_as(k, "VARCHAR") for k in keys],
        labels=[typed_as(label, "VARCHAR") for label in labels],
        sums=sums,
    ).from_(name(CELLS), copy=False)
    if not layout.level2:
        return query
    pairs = [(column(f"k{i}", CELLS), column(f"k{i}", UPPER)) for i in range(len(layout.keys))]
    on = [same_key(a, b) for a, b in pairs]
    return query.join(exp.Table(this=name(UPPER)), on=all_of(on), join_type="left", copy=False)
