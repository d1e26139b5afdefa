"""Queries that look at a membership table before its sets are made: bad entries, repeated ones, what meets the data."""

from __future__ import annotations

from sqlglot import exp

from mlsql.design.schema import Input
from mlsql.sql.membership import (
    KEYS,
    MEMBERS,
    TIME,
    UNITS,
    Expr,
    MembershipQuery,
    members,
    missing,
    or_zero,
    same,
    table_as,
    unnested,
)
from mlsql.sql.plan import Step
from mlsql.sql.syntax import aliased, call, column, is_floating, name, number, present, scalar, total

HISTORY = "mlsql_history"


def problems_step(query: MembershipQuery) -> Step:
    """One row per kind of entry that cannot be used.

    Row layout: problem, how many have it; of the first, in order: weight, then as text the keys and the unit.
    """
    kinds = [("no unit", _unknown("unit", query.unit))]
    if query.time is not None:
        kinds.append(("no time", _unknown(TIME, query.time[1])))
    if query.weight is not None:
        w = column("w")
        kinds += [
            ("no weight", missing(w)),
            ("a weight that is NaN", call("ISNAN", w.copy())),
            ("an infinite weight", call("ISINF", w.copy())),
            ("a negative weight", exp.LT(this=w.copy(), expression=number(0.0))),
        ]
    problem = exp.Case(ifs=[exp.If(this=c, true=exp.Literal.string(kind)) for kind, c in kinds])
    flagged = exp.select("*", aliased(problem, "problem")).from_(name(MEMBERS))
    by = [column("problem")]
    found = aliased(exp.Window(this=exp.Count(this=exp.Star()), partition_by=[b.copy() for b in by]), "found")
    place = exp.Window(this=exp.RowNumber(), partition_by=by, order=_order(query))
    tree = exp.select(column("problem"), found, column("w"), *_shown(query)).from_(flagged.subquery("flagged"))
    tree = tree.where(exp.not_(missing(column("problem")))).qualify(exp.EQ(this=place, expression=number(1)))
    tree = tree.with_(name(MEMBERS), as_=members(query))
    return Step("survey of memberships", "entries that cannot be used", tree)


def _unknown(label: str, item: Input) -> Expr:
    """NULL, or NaN where the type admits it."""
    tree = missing(column(label))
    return exp.or_(tree, call("ISNAN", column(label))) if is_floating(item.dtype) else tree


def _shown(query: MembershipQuery) -> list[Expr]:
    """What identifies an entry, as text."""
    return [aliased(exp.cast(column(c), exp.DataType.Type.VARCHAR), c) for c in [*query.labels, "unit"]]


def _order(query: MembershipQuery) -> exp.Order:
    return exp.Order(expressions=[exp.Ordered(this=column(c)) for c in [*query.labels, "unit"]])


def any_repeated_step(query: MembershipQuery, histories: Expr) -> Step:
    """How many entries of the distinct histories occur more than once; `repeated_step` costs more and names one."""
    fields = [*([TIME] if query.time else []), "u"]
    items = [aliased(exp.Dot(this=column("e"), expression=name(f)), f) for f in fields]
    each = exp.select(column("history"), *items).from_(unnested(histories).subquery("each")).subquery("entries")
    by = [column(c) for c in ["history", *fields]]
    grouped = exp.select(*by).from_(each).group_by(*[b.copy() for b in by])
    grouped = grouped.having(exp.GT(this=exp.Count(this=exp.Star()), expression=number(1)))
    tree = exp.select(aliased(exp.Count(this=exp.Star()), "found")).from_(grouped.subquery("repeated"))
    return Step("repeated memberships", "does an entry occur more than once", tree)


def repeated_step(query: MembershipQuery) -> Step:
    """The first entry that occurs more than once: how many do, how often it does, its keys and unit as text."""
    by = [*query.labels, "unit"]
    grouped = (
        exp.select(*[column(c) for c in by], aliased(exp.Count(this=exp.Star()), "times"))
        .from_(name(MEMBERS))
        .where(*[exp.not_(missing(column(c))) for c in by])
        .group_by(*[column(c) for c in by])
        .having(exp.GT(this=exp.Count(this=exp.Star()), expression=number(1)))
    )
    found = aliased(exp.Window(this=exp.Count(this=exp.Star())), "found")
    tree = exp.select(found, column("times"), *_shown(query)).from_(grouped.subquery("repeated"))
    tree.set("order", _order(query))
    tree = tree.limit(1).with_(name(MEMBERS), as_=members(query))
    return Step("first repeated membership", "entries that occur more than once", tree)


def units_table_step(query: MembershipQuery) -> Step:
    """Units that have several rows in the units table, the first of them as text, and units that have none."""
    assert query.units is not None
    assert query.unit_key is not None
    grouped = (
        exp.select(aliased(scalar(query.unit_key.sql), "unit"), aliased(exp.Count(this=exp.Star()), "times"))
        .from_(query.units.copy())
        .where(*present([query.unit_key]))
        .group_by(scalar(query.unit_key.sql))
    )
    here = exp.select(aliased(scalar(query.unit.sql), "unit")).from_(query.members.copy()).distinct()
    absent = exp.select(exp.Count(this=exp.Star())).from_(here.subquery("a"))
    absent = absent.join(table_as(UNITS, "b"), on=same(["unit"]), join_type="anti")
    repeated = exp.select(column("unit")).from_(name(UNITS)).where(exp.GT(this=column("times"), expression=number(1)))
    count = exp.select(exp.Count(this=exp.Star())).from_(repeated.subquery("a"))
    first = exp.select(exp.cast(exp.Min(this=column("unit")), exp.DataType.Type.VARCHAR)).from_(repeated.subquery("a"))
    parts = {"repeated": count, "first": first, "absent": absent}
    tree = exp.select(*[aliased(part.subquery(), label) for label, part in parts.items()])
    return Step("survey of units", "is each unit in the units table, once", tree.with_(name(UNITS), as_=grouped))


def reach_step(query: MembershipQuery) -> Step:
    """How the membership table and the data meet, in one row.

    Row layout: entries; entries that no row of the data takes; rows whose key the table does not have; sets of the
    data that begin after the table's first time (0 without time).
    """
    labels = query.on_labels
    raw = [aliased(scalar(a.sql), label) for (a, _), label in zip(query.on, labels, strict=True)]
    counted = [aliased(exp.Count(this=exp.Star()), "n")]
    first: list[Expr] = []
    lost = missing(column("n", "b"))
    late = exp.select(number(0))
    if query.time is not None:
        counted.append(aliased(exp.Max(this=scalar(query.time[0].sql)), "last"))
        first.append(aliased(exp.Min(this=column(TIME)), "first"))
        lost = exp.or_(lost, exp.GT(this=column(TIME, "a"), expression=column("last", "b")))
        start = exp.select(exp.Min(this=column(TIME))).from_(name(MEMBERS)).subquery()
        late = _keys_and_history(exp.Count(this=exp.Star()), query, "inner")
        late = late.where(exp.GT(this=column("first", "b"), expression=start))
    keys = exp.select(*raw, *counted).from_(query.rows.copy()).where(*present(query.row_keys))
    keys = keys.group_by(*[scalar(a.sql) for a, _ in query.on])
    history = (
        exp.select(*[column(c) for c in labels], *first).from_(name(MEMBERS)).group_by(*[column(c) for c in labels])
    )
    met = (
        exp.select(aliased(exp.Count(this=exp.Star()), "entries"), aliased(or_zero(exp.CountIf(this=lost)), "lost"))
        .from_(table_as(MEMBERS, "a"))
        .join(table_as(KEYS, "b"), on=same(labels), join_type="left")
    )
    unknown = _keys_and_history(or_zero(total(column("n", "a"))), query, "anti")
    parts = {"unknown": unknown, "late": late}
    tree = exp.select("*", *[aliased(part.subquery(), label) for label, part in parts.items()]).from_(
        met.subquery("met")
    )
    for label, part in {MEMBERS: members(query), KEYS: keys, HISTORY: history}.items():
        tree = tree.with_(name(label), as_=part, materialized=label == MEMBERS or None)
    return Step("reach of memberships", "entries without rows, rows without entries", tree)


def _keys_and_history(item: Expr, query: MembershipQuery, kind: str) -> exp.Select:
    tree = exp.select(item).from_(table_as(KEYS, "a"))
    return tree.join(table_as(HISTORY, "b"), on=same(query.on_labels), join_type=kind)
