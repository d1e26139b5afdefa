"""Queries that look at the data before the moments: one scan for counts and means, a glance at the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.schema import Candidate, Input, Schema
from mlsql.sql.plan import Step
from mlsql.sql.syntax import aliased, as_double, call, column, is_floating, name, present, scalar, unique

PREVIEW_ROWS = 20_000

PREVIEW, RUNS, BY_GROUP = "mlsql_preview", "mlsql_runs", "mlsql_by_group"
KEYS, DATA_GROUPS = "mlsql_level2_keys", "mlsql_data_groups"


@dataclass(frozen=True, slots=True)
class Tables:
    """The relations a model reads, as trees for FROM."""

    rows: exp.Expr
    level2: exp.Expr | None = None


def types_step(relation: exp.Expr, candidates: Sequence[Candidate]) -> Step:
    """Types of expressions, without reading a row: DESCRIBE one column per candidate."""
    query = exp.select(*[aliased(scalar(c.sql), f"c{i}") for i, c in enumerate(candidates)]).from_(relation.copy())
    return Step("types", "types of the model's columns", exp.Describe(this=query))


def survey_step(relation: exp.Expr, inputs: Sequence[Input], table: str) -> Step:
    """Count rows and, per input, values; mean, minimum and maximum of numbers.

    Row layout: rows, then for each input its count, and for a number also mean, minimum, maximum.
    A NaN or an infinity shows in minimum or maximum; `irregular_step` then counts them.
    """
    labels = unique([i.name for i in inputs], ["rows"])
    items = [aliased(exp.Count(this=exp.Star()), "rows")]
    for item, label in zip(inputs, labels, strict=True):
        items.append(aliased(exp.Count(this=scalar(item.sql)), f"{label}: count"))
        if item.numeric:
            value = as_double(item.sql, item.dtype)
            items += [
                aliased(exp.Avg(this=value), f"{label}: mean"),
                aliased(exp.Min(this=value.copy()), f"{label}: min"),
                aliased(exp.Max(this=value.copy()), f"{label}: max"),
            ]
    return Step(f"survey of {table}", "rows, missing values, means, ranges", exp.select(*items).from_(relation.copy()))


def irregular_step(relation: exp.Expr, inputs: Sequence[Input]) -> Step:
    """Count NaN and infinite values of the named inputs, and the mean and range of their finite values."""
    items: list[exp.Expr] = []
    for item in inputs:
        value = as_double(item.sql, item.dtype)
        finite = call("ISFINITE", value)
        items += [
            exp.CountIf(this=call("ISNAN", value.copy())),
            exp.CountIf(this=call("ISINF", value.copy())),
            *[_where(f(this=value.copy()), finite.copy()) for f in (exp.Avg, exp.Min, exp.Max)],
        ]
    named = [aliased(tree, f"c{i}") for i, tree in enumerate(items)]
    return Step(
        "survey of NaN and infinity", "counted because the survey met some", exp.select(*named).from_(relation.copy())
    )


def levels_step(tables: Tables, schema: Schema, incomplete: Sequence[Input]) -> Step:
    """Levels of every factor among the complete rows, in the column's own order.

    Of the level-2 table only groups that the data have count: a level that no row has would be a column of zeros.
    """
    factors, keys = schema.of_role("factor"), [scalar(k.sql) for k in schema.of_role("key")]
    left = keys[0] if len(keys) == 1 else exp.Tuple(expressions=keys)
    groups = exp.select(*[k.copy() for k in keys]).from_(tables.rows.copy()).subquery()
    selects = []
    for index, factor in enumerate(factors):
        relation = tables.level2 if factor.table == "level2" and tables.level2 is not None else tables.rows
        filters = present([i for i in incomplete if i.table == factor.table and i != factor] + [factor])
        grouped = (
            exp.select(
                aliased(exp.Literal.number(index), "factor"),
                aliased(exp.cast(scalar(factor.sql), exp.DataType.Type.VARCHAR), "level"),
                aliased(exp.Count(this=exp.Star()), "rows"),
                aliased(_position(factor), "position"),
            )
            .from_(relation.copy())
            .where(*filters, *([exp.In(this=left.copy(), query=groups.copy())] if factor.table == "level2" else []))
            .group_by(scalar(factor.sql))
        )
        selects.append(grouped)
    tree: exp.Expr = selects[0]
    for other in selects[1:]:
        tree = exp.Union(this=tree, expression=other, distinct=False)
    outer = exp.select("*").from_(exp.Subquery(this=tree, alias=exp.TableAlias(this=name("levels"))))
    return Step("factor levels", "levels with rows", outer.order_by(column("factor"), column("position")))


def preview_step(relation: exp.Expr, schema: Schema, incomplete: Sequence[Input]) -> Step:
    """Look at the first complete rows: which inputs vary within a group, whether groups lie together.

    Row layout: rows, groups, runs, then per predictor of the rows a boolean (varies within a group), then per number
    of the rows its standard deviation.
    """
    keys = schema.of_role("key")
    read = [i for i in schema.of_table("rows") if i.role != "key"]
    inner = (
        exp.select(
            *[aliased(scalar(k.sql), f"key {i}") for i, k in enumerate(keys)],
            *[aliased(as_double(x.sql, x.dtype) if x.numeric else scalar(x.sql), f"x{i}") for i, x in enumerate(read)],
        )
        .from_(relation.copy())
        .where(*present([*incomplete, *keys]))
        .limit(PREVIEW_ROWS)
    )
    key_columns = [column(f"key {i}") for i in range(len(keys))]
    before = [exp.Window(this=exp.Lag(this=k.copy()), over="OVER") for k in key_columns]
    changed = exp.or_(*[exp.NullSafeNEQ(this=k.copy(), expression=b) for k, b in zip(key_columns, before, strict=True)])
    runs = exp.select("*", aliased(changed, "starts")).from_(name(PREVIEW))
    candidates = [i for i, x in enumerate(read) if x.role in ("numeric", "factor")]
    varies = [
        aliased(exp.NEQ(this=exp.Min(this=column(f"x{i}")), expression=exp.Max(this=column(f"x{i}"))), f"x{i} varies")
        for i in candidates
    ]
    by_group = (
        exp.select(
            aliased(exp.Count(this=exp.Star()), "n"),
            aliased(exp.CountIf(this=column("starts")), "starts"),
            *varies,
        )
        .from_(name(RUNS))
        .group_by(*[k.copy() for k in key_columns])
    )
    found = exp.select(
        aliased(total_or_zero("n"), "rows"),
        aliased(exp.Count(this=exp.Star()), "groups"),
        aliased(total_or_zero("starts"), "runs"),
        *[aliased(exp.LogicalOr(this=column(f"x{i} varies")), f"x{i} varies") for i in candidates],
    ).from_(name(BY_GROUP))
    numbers = [i for i, x in enumerate(read) if x.numeric]
    spreads = exp.select(*[aliased(exp.StddevPop(this=column(f"x{i}")), f"x{i} spread") for i in numbers]).from_(
        name(PREVIEW)
    )
    tree = exp.select("*").from_(found.subquery("found")).join(spreads.subquery("spreads"), join_type="cross")
    tree = tree.with_(name(PREVIEW), as_=inner, materialized=True).with_(name(RUNS), as_=runs)
    return Step(
        "preview",
        f"first {PREVIEW_ROWS:,} rows: what varies within groups, whether groups lie together, spreads",
        tree.with_(name(BY_GROUP), as_=by_group),
    )


def level2_step(tables: Tables, schema: Schema) -> Step:
    """Rows, distinct keys and NULL keys of the level-2 table; rows of the data whose group it does not have."""
    keys = schema.of_role("key")
    assert tables.level2 is not None
    upper = (
        exp.select(*[aliased(scalar(k.sql), f"k{i}") for i, k in enumerate(keys)])
        .from_(tables.level2.copy())
        .where(*present(keys))
    )
    lower = (
        exp.select(
            *[aliased(scalar(k.sql), f"k{i}") for i, k in enumerate(keys)],
            aliased(exp.Count(this=exp.Star()), "n"),
        )
        .from_(tables.rows.copy())
        .where(*present(keys))
        .group_by(*[scalar(k.sql) for k in keys])
    )
    columns = [f"k{i}" for i in range(len(keys))]
    match = exp.and_(*[exp.EQ(this=column(c, "a"), expression=column(c, "b")) for c in columns])
    unmatched = (
        exp.select(exp.Coalesce(this=exp.Sum(this=column("n", "a")), expressions=[exp.Literal.number(0)]))
        .from_(exp.Table(this=name(DATA_GROUPS), alias=exp.TableAlias(this=name("a"))))
        .join(exp.Table(this=name(KEYS), alias=exp.TableAlias(this=name("b"))), on=match, join_type="anti")
    )
    distinct = exp.select(*[column(c) for c in columns]).from_(name(KEYS)).distinct().subquery("d")
    tree = exp.select(
        aliased(exp.select(exp.Count(this=exp.Star())).from_(name(KEYS)).subquery(), "rows"),
        aliased(exp.select(exp.Count(this=exp.Star())).from_(distinct).subquery(), "keys"),
        aliased(unmatched.subquery(), "unmatched"),
    )
    tree = tree.with_(name(KEYS), as_=upper).with_(name(DATA_GROUPS), as_=lower)
    return Step("survey of keys", "does the level2 table have each group once", tree)


def total_or_zero(identifier: str) -> exp.Expr:
    """`COALESCE(SUM(x), 0)`."""
    return exp.Coalesce(this=exp.Sum(this=column(identifier)), expressions=[exp.Literal.number(0)])


def may_be_irregular(inputs: Sequence[Input]) -> list[Input]:
    """Inputs whose type admits NaN or infinity."""
    return [i for i in inputs if i.numeric and is_floating(i.dtype)]


def _where(aggregate: exp.Expr, condition: exp.Expr) -> exp.Expr:
    return exp.Filter(this=aggregate, expression=exp.Where(this=condition))


def _position(factor: Input) -> exp.Expr:
    """A sortable stand-in for the level: its place in an ENUM's declaration or among the sorted values."""
    return exp.Window(this=exp.RowNumber(), order=exp.Order(expressions=[exp.Ordered(this=scalar(factor.sql))]))
