"""Rows of the cells query's answer, all of one type, and those that tell about the tables."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from mlsql.design import cells
from mlsql.design.cells import CellLayout
from mlsql.design.schema import NUMERIC
from mlsql.sql.cell_types import Expr, all_of, any_of, is_type, named, not_null, type_of, typed_as
from mlsql.sql.syntax import call, column, name, number, scalar

TYPED, RAW, PIVOTS, ROWS = "mlsql_typed", "mlsql_raw", "mlsql_pivots", "mlsql_rows"
CELLS, TROUBLE, UPPER, LOCATED = "mlsql_cells", "mlsql_trouble", "mlsql_upper", "mlsql_located"
"""Common tables of the query."""

ROW_TYPE = "STRUCT(kind VARCHAR, position BIGINT, keys VARCHAR[], labels VARCHAR[], sums DOUBLE[])"
"""A row of the answer, the same for all models."""


def failure_query(message: str) -> str:
    """A query that carries an error to whoever reads the answer."""
    row = answer_row(cells.FAILED, labels=[exp.Literal.string(message)])
    return row.sql(dialect="duckdb")


def answer_row(
    kind: str,
    position: Expr | None = None,
    keys: Sequence[Expr] | Expr | None = None,
    labels: Sequence[Expr] | Expr | None = None,
    sums: Sequence[Expr] | Expr | None = None,
) -> exp.Select:
    """A row of the answer."""
    lists = {"keys": (keys, "VARCHAR[]"), "labels": (labels, "VARCHAR[]"), "sums": (sums, "DOUBLE[]")}
    return exp.select(
        named(exp.Literal.string(kind), "kind"),
        named(typed_as(number(0) if position is None else position, "BIGINT"), "position"),
        *[named(typed_as(_list(tree), dtype), label) for label, (tree, dtype) in lists.items()],
    )


def _list(tree: Sequence[Expr] | Expr | None) -> Expr:
    if tree is None:
        return exp.Null()
    return tree if isinstance(tree, exp.Expr) else exp.Array(expressions=list(tree))


def header_rows(layout: CellLayout, relation: Expr, safe: Expr, prefix: str) -> list[exp.Select]:
    """Column names with types, and types of the model's expressions."""
    described = exp.Subquery(this=exp.Describe(this=exp.select("*").from_(relation.copy(), copy=False)))
    listed = [call("LIST", column(c)) for c in ("column_name", "column_type")]
    names = answer_row(prefix + cells.COLUMNS, keys=listed[0], labels=listed[1]).from_(described)
    expressions = layout.upper if prefix else layout.typed
    nothing = exp.select("*").from_(safe.copy(), copy=False).limit(0).subquery("mlsql_nothing")
    values = [exp.AnyValue(this=scalar(sql)) for sql in expressions]
    return [names, answer_row(prefix + cells.TYPES, labels=[type_of(v) for v in values]).from_(nothing)]


def _facts(layout: CellLayout, table: str, expressions: Sequence[str], numbers: Sequence[str]) -> list[Expr]:
    """For each expression: values, NaN, infinities, mean, minimum and maximum of what is finite."""
    place = {sql: f"x{i}" for i, sql in enumerate(numbers)}
    if layout.weight is not None:
        place.setdefault(layout.weight, "w")
    labels = {p.sql: f"l{i}" for i, p in enumerate(layout.predictors)}
    keys = {sql: f"k{i}" for i, sql in enumerate(layout.keys)}
    items: list[Expr] = []
    for sql in expressions:
        names = [names[sql] for names in (keys, labels, place) if sql in names]
        items.append(exp.CountIf(this=any_of([not_null(column(n, table)) for n in names])))
        if sql in keys or sql not in place:
            items += [exp.Null() for _ in range(5)]
            continue
        x = column(place[sql], table)
        finite = exp.Where(this=call("ISFINITE", x))
        items += [exp.CountIf(this=call("ISNAN", x.copy())), exp.CountIf(this=call("ISINF", x.copy()))]
        items += [exp.Filter(this=f(this=x.copy()), expression=finite.copy()) for f in (exp.Avg, exp.Min, exp.Max)]
    return items


def survey_row(layout: CellLayout) -> exp.Select:
    """What each column lacks; no row, and no scan, when nothing is."""
    facts = _facts(layout, RAW, layout.surveyed, layout.numbers)
    query = (
        answer_row(cells.SURVEY, sums=facts)
        .from_(name(RAW), copy=False)
        .join(name(TROUBLE), join_type="cross", copy=False)
    )
    return query.having(exp.GT(this=exp.Count(this=column("found", TROUBLE)), expression=number(0)))


def upper_survey_row(layout: CellLayout) -> exp.Select:
    """Rows and distinct keys of the level-2 table, and what its columns lack."""
    keys = [column(f"k{i}") for i in range(len(layout.keys))]
    given = all_of([not_null(k.copy()) for k in keys])
    distinct = (
        exp.select(*keys).from_(name(UPPER), copy=False).where(given.copy()).distinct().subquery("mlsql_distinct")
    )
    count = exp.select(exp.Count(this=exp.Star())).from_(distinct).subquery()
    facts = _facts(layout, UPPER, layout.upper, [p.sql for p in layout.predictors])
    sums = [exp.Count(this=exp.Star()), exp.CountIf(this=given), call("ANY_VALUE", count), *facts]
    return answer_row(cells.UPPER_SURVEY, sums=sums).from_(name(UPPER), copy=False)


def unmatched_row(layout: CellLayout) -> exp.Select:
    """Rows of the data whose group the level-2 table does not have, counted when some rows are missing in the cells."""
    keys = range(len(layout.keys))
    same = all_of([same_key(column(f"k{i}", RAW), column(f"k{i}", UPPER)) for i in keys])
    matched = exp.select(number(1)).from_(name(UPPER), copy=False).where(same, copy=False)
    given = [not_null(column(f"k{i}", RAW)) for i in keys]
    query = answer_row(cells.UNMATCHED, sums=[exp.Count(this=exp.Star())]).from_(name(RAW), copy=False)
    query = query.join(name(TROUBLE), join_type="cross", copy=False)
    return query.where(*given, exp.not_(exp.Exists(this=matched), copy=False), copy=False)


def same_key(a: Expr, b: Expr) -> Expr:
    """Equal keys; those of different kinds match nothing instead of failing, since the answer's types are compared.

    Each side is an expression of its own table, so that the engine can join by hashing.
    """
    kinds = exp.EQ(this=is_type(a, NUMERIC), expression=is_type(b, NUMERIC))
    left, right = (exp.Case(ifs=[exp.If(this=kinds.copy(), true=side)]) for side in (a, b))
    return exp.EQ(this=left, expression=right)


def pivot_row(layout: CellLayout) -> exp.Select:
    """What was subtracted from each number."""
    pivots = [column(f"p{i}") for i in range(len(layout.numbers))]
    return answer_row(cells.PIVOTS, sums=pivots).from_(name(PIVOTS), copy=False)


def range_row(layout: CellLayout) -> exp.Select:
    """Ranges of the uncentred numbers among the complete rows; no scan when none is away from 0 in the first rows."""
    xs = [column(f"x{layout.numbers.index(sql)}", RAW) for sql in layout.natural]
    ends = [f(this=x.copy()) for x in xs for f in (exp.Min, exp.Max)]
    query = answer_row(cells.RANGES, sums=ends).from_(name(RAW), copy=False)
    query = query.join(name(PIVOTS), join_type="cross", copy=False)
    query = query.where(column("complete", RAW), column("away", PIVOTS), copy=False)
    return query.having(exp.GT(this=exp.Count(this=exp.Star()), expression=number(0)))


def size_row(rows: Expr) -> exp.Select:
    """How many rows the data have."""
    return answer_row(cells.SIZE, sums=[exp.Count(this=exp.Star())]).from_(rows.copy(), copy=False)
