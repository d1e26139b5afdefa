"""Multiple membership in SQL: the set of units of every row, equal sets under one pattern number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.schema import Input
from mlsql.sql.plan import Step
from mlsql.sql.syntax import aliased, as_double, call, column, is_floating, name, number, scalar, times, total

Expr = exp.Expr

KEYS, UNITS, MEMBERS, ENTRIES = "mlsql_keys", "mlsql_units", "mlsql_members", "mlsql_entries"
LISTS, HISTORIES, TAKEN, SETS, PATTERNS = (
    "mlsql_lists", "mlsql_histories", "mlsql_taken", "mlsql_sets", "mlsql_patterns",
)  # fmt: skip
"""Common tables of the statements.  Prefixed: a user's own table of the same name would be shadowed."""

TIME = "t"

_TRAVELS = (
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE",
    "DECIMAL", "VARCHAR", "BOOLEAN", "DATE",
)  # fmt: skip
"""Types that reach Arrow and come back as they were, as do timestamps; keys of other types travel as text."""


@dataclass(frozen=True, slots=True)
class Sum:
    """A predictor of the units, and whether the units table holds it."""

    input: Input
    in_units: bool


@dataclass(frozen=True, slots=True)
class MembershipQuery:
    """What the statements read.

    Attributes
    ----------
    rows, members, units : sqlglot expression
        Relations: the data, the membership table, the units table if there is one.
    on : tuple of (Input, Input)
        Columns that identify a row's set, of the data and of the membership table.
    time : (Input, Input) or None
        The time in both.
    unit : Input
        The unit in the membership table.
    unit_key : Input or None
        The unit in the units table.
    weight : Input or None
    normalise : bool
    decay : float or None
    sums : tuple of Sum
    """

    rows: Expr
    members: Expr
    units: Expr | None
    on: tuple[tuple[Input, Input], ...]
    time: tuple[Input, Input] | None
    unit: Input
    unit_key: Input | None
    weight: Input | None
    normalise: bool
    decay: float | None
    sums: tuple[Sum, ...]

    @property
    def on_labels(self) -> list[str]:
        """Names of the columns of `on` within the statements."""
        return [f"k{i}" for i in range(len(self.on))]

    @property
    def labels(self) -> list[str]:
        """The same, and the time's."""
        return [*self.on_labels, *([TIME] if self.time else [])]

    @property
    def row_keys(self) -> tuple[Input, ...]:
        """Columns of the data that settle a row's set."""
        return tuple(a for a, _ in (*self.on, *([self.time] if self.time else [])))

    @property
    def member_keys(self) -> tuple[Input, ...]:
        """The same columns of the membership table."""
        return tuple(b for _, b in (*self.on, *([self.time] if self.time else [])))


def members(query: MembershipQuery) -> exp.Select:
    """The membership table under internal names."""
    items = [aliased(scalar(k.sql), label) for k, label in zip(query.member_keys, query.labels, strict=True)]
    items.append(aliased(scalar(query.unit.sql), "unit"))
    weight = number(1.0) if query.weight is None else scalar(query.weight.sql)
    items.append(aliased(exp.cast(weight, exp.DataType.Type.DOUBLE), "w"))
    items += [aliased(as_double(s.input.sql, s.input.dtype), x) for x, s in _sums(query, in_units=False)]
    return exp.select(*items).from_(query.members.copy())


def _sums(query: MembershipQuery, *, in_units: bool) -> list[tuple[str, Sum]]:
    return [(f"x{i}", s) for i, s in enumerate(query.sums) if s.in_units == in_units]


def same(labels: Sequence[str], left: str = "a", right: str = "b") -> Expr:
    """Columns of one name are equal in two tables."""
    return exp.and_(*[exp.EQ(this=column(c, left), expression=column(c, right)) for c in labels])


def table_as(table: str, alias: str) -> exp.Table:
    """A common table under an alias."""
    return exp.Table(this=name(table), alias=exp.TableAlias(this=name(alias)))


def missing(tree: Expr) -> Expr:
    """`tree IS NULL`."""
    return exp.Is(this=tree, expression=exp.Null())


def or_zero(tree: Expr) -> Expr:
    """`COALESCE(tree, 0)`."""
    return exp.Coalesce(this=tree, expressions=[number(0)])


def units_step(query: MembershipQuery, label: str) -> Step:
    """The units of the membership table, in order."""
    units = exp.select(aliased(scalar(query.unit.sql), label)).from_(query.members.copy()).distinct()
    tree = exp.select(column(label)).from_(units.subquery("units")).order_by(column(label))
    return Step("units", "the units of the membership table, in order", tree)


def histories_step(query: MembershipQuery) -> Step:
    """One row per key of the membership table: the key, and the number of its history, shared by equal ones.

    Row layout: `k0`, ...; `history`; `members`, the history as a sorted list of {t, u, w, x0, ...} with the unit's
    position u, in one row of each history alone.
    """
    fields = [*([TIME] if query.time else []), "u", "w", *[f"x{i}" for i in range(len(query.sums))]]
    listed = call("LIST_SORT", call("LIST", _struct({f: column(f) for f in fields})))
    lists = exp.select(*[column(c) for c in query.on_labels], aliased(listed, "members")).from_(name(ENTRIES))
    lists = lists.where(*[exp.not_(missing(column(c))) for c in query.on_labels])
    lists = lists.group_by(*[column(c) for c in query.on_labels])
    items = [
        aliased(_portable(column(label, "a"), a, b), label)
        for (a, b), label in zip(query.on, query.on_labels, strict=True)
    ]
    items += [column("history", "b"), aliased(_once("history", "b", column("members", "a")), "members")]
    # a list may hold NULL
    equal = exp.NullSafeEQ(this=column("members", "a"), expression=column("members", "b"))
    tree = exp.select(*items).from_(table_as(LISTS, "a")).join(table_as(HISTORIES, "b"), on=equal)
    parts = {MEMBERS: members(query), UNITS: _positions(), ENTRIES: _entries(query), LISTS: lists}
    parts[HISTORIES] = _numbered(LISTS, "history", ordered=False)
    # what is read twice is computed once, a file as well
    return Step("membership histories", "who met whom: equal histories once", _with(tree, parts, {MEMBERS, LISTS}))


def patterns_step(query: MembershipQuery, histories: Expr) -> Step:
    """One row per history (and time) that the data have: rows, pattern number, sums.

    Row layout: `history` (and `t`); `n` rows; `entries`; `pattern`, 0 for an empty set; sums `s0`, ...; `members`, the
    set as a list of {u, w} in order of u, in one row of each pattern alone.

    Parameters
    ----------
    query : MembershipQuery
    histories : sqlglot expression
        The answer of `histories_step`, as a relation.
    """
    stamp = [(column(query.time[0].name, "a"), TIME)] if query.time else []
    by = [column("history", "b"), *[tree for tree, _ in stamp]]
    counted = (
        exp.select(column("history", "b"), *[aliased(t, label) for t, label in stamp])
        .select(aliased(exp.Count(this=exp.Star()), "n"))
        .from_(_whole(query.rows, "a"))
        .join(_whole(histories, "b"), on=_matched(query, "a", "b"))
        .where(*[_known(tree, k) for (tree, _), k in zip(stamp, query.row_keys[len(query.on) :], strict=True)])
        .group_by(*[b.copy() for b in by])
    )
    keys = exp.select("*", aliased(exp.Window(this=exp.RowNumber()), "id")).from_(counted.subquery("counted"))
    parts = {KEYS: keys, ENTRIES: unnested(histories), TAKEN: _taken(query), SETS: _sets(query)}
    parts[PATTERNS] = _numbered(SETS, "pattern", ordered=True)
    tree = _with(_patterns(query), parts, {KEYS})
    return Step("membership patterns", "the set of units of each history and time", tree)


def unnested(histories: Expr) -> exp.Select:
    """The entries `e` of each history."""
    each = exp.select(column("history"), aliased(call("UNNEST", column("members")), "e")).from_(histories.copy())
    return each.where(exp.not_(missing(column("members"))))


def _with(tree: exp.Select, parts: Mapping[str, exp.Select], materialized: Set[str]) -> exp.Select:
    for label, part in parts.items():
        tree = tree.with_(name(label), as_=part, materialized=label in materialized or None)
    return tree


def _positions() -> exp.Select:
    order = exp.Order(expressions=[exp.Ordered(this=column("unit"))])
    position = exp.Sub(this=exp.Window(this=exp.RowNumber(), order=order), expression=number(1))
    units = exp.select(column("unit")).from_(name(MEMBERS)).distinct().subquery("units")
    return exp.select(column("unit"), aliased(position, "u")).from_(units)


def _entries(query: MembershipQuery) -> exp.Select:
    """The membership table with positions of units, and predictors of the units table."""
    items = [*[column(c, "a") for c in [*query.labels, "w"]], column("u", "b")]
    items += [column(x, "a") for x, _ in _sums(query, in_units=False)]
    above = _sums(query, in_units=True)
    tree = exp.select(*items, *[column(x, "c") for x, _ in above]).from_(table_as(MEMBERS, "a"))
    tree = tree.join(table_as(UNITS, "b"), on=same(["unit"]))
    if not above:
        return tree
    assert query.units is not None
    assert query.unit_key is not None
    values = [aliased(as_double(s.input.sql, s.input.dtype), x) for x, s in above]
    upper = exp.select(aliased(scalar(query.unit_key.sql), "unit"), *values).from_(query.units.copy())
    return tree.join(upper.subquery("c"), on=same(["unit"], "a", "c"), join_type="left")


def _numbered(table: str, label: str, *, ordered: bool) -> exp.Select:
    """Distinct lists of a table, numbered from 1."""
    distinct = exp.select(column("members")).from_(name(table)).where(exp.not_(missing(column("members")))).distinct()
    order = exp.Order(expressions=[exp.Ordered(this=column("members"))]) if ordered else None
    numbers = aliased(exp.Window(this=exp.RowNumber(), order=order), label)
    return exp.select(column("members"), numbers).from_(distinct.subquery("different"))


def _once(by: str, table: str, tree: Expr) -> Expr:
    """The tree in one row of each value, else NULL."""
    place = exp.Window(this=exp.RowNumber(), partition_by=[column(by, table)])
    return exp.Case(ifs=[exp.If(this=exp.EQ(this=place, expression=number(1)), true=tree)])


def _taken(query: MembershipQuery) -> exp.Select:
    """One row per key and unit: weight, and of each predictor the weighted sum and how many values are missing."""
    on, tree = same(["history"]), _field("w")
    if query.time is not None:
        on = exp.and_(on, exp.LTE(this=_field(TIME), expression=column(TIME, "a")))
        if query.decay is not None and query.decay != 1.0:
            tree = times([tree, call("POWER", number(float(query.decay)), _elapsed(query, query.time[0]))])
    values = [aliased(_field(f"x{i}"), f"x{i}") for i in range(len(query.sums))]
    joined = exp.select(column("id", "a"), aliased(_field("u"), "u"), aliased(tree, "w"), *values)
    joined = joined.from_(table_as(KEYS, "a")).join(table_as(ENTRIES, "b"), on=on)
    items: list[Expr] = [aliased(total(column("w")), "w")]
    for i in range(len(query.sums)):
        # a unit without weight adds nothing, whatever its predictor
        product = _where(total(times([column("w"), column(f"x{i}")])), _positive())
        absent = exp.CountIf(this=exp.and_(_positive(), missing(column(f"x{i}"))))
        items += [aliased(product, f"s{i}"), aliased(absent, f"m{i}")]
    tree = exp.select(column("id"), column("u"), *items).from_(joined.subquery("joined"))
    return tree.group_by(column("id"), column("u"))


def _field(label: str) -> Expr:
    """A field of an entry of a history."""
    return exp.Dot(this=column("e", "b"), expression=name(label))


def _elapsed(query: MembershipQuery, time: Input) -> Expr:
    """Time from the membership to the row, as a double."""
    now: Expr = column(TIME, "a")
    if query.normalise:
        # an average is the same from wherever time is counted: from the last membership, sets stay equal over time
        now = exp.Window(this=exp.Max(this=_field(TIME)), partition_by=[column("id", "a")])
    sides = [now, _field(TIME)]
    if time.dtype.upper() != "DATE":
        sides = [exp.cast(s, exp.DataType.Type.DOUBLE) for s in sides]
    return exp.cast(exp.paren(exp.Sub(this=sides[0], expression=sides[1])), exp.DataType.Type.DOUBLE)


def _positive() -> Expr:
    return exp.GT(this=column("w"), expression=number(0.0))


def _where(aggregate: Expr, condition: Expr) -> Expr:
    return exp.Filter(this=aggregate, expression=exp.Where(this=condition))


def _sets(query: MembershipQuery) -> exp.Select:
    """One row per key: its units of positive weight in order, and the sums."""
    listed = _where(call("LIST", _struct({"u": column("u"), "w": column("w")})), _positive())
    items = [aliased(exp.Count(this=exp.Star()), "entries"), aliased(call("LIST_SORT", listed), "members")]
    sums = [f"s{i}" for i in range(len(query.sums))]
    for i, s in enumerate(sums):
        # a set with an unknown value adds up to something unknown
        complete = exp.EQ(this=total(column(f"m{i}")), expression=number(0))
        items.append(aliased(exp.Case(ifs=[exp.If(this=complete, true=total(column(s)))]), s))
    tree = exp.select(column("id"), *items).from_(name(TAKEN)).group_by(column("id"))
    if not query.normalise:
        return tree
    # added up in the order of the sorted list, so that equal sets stay equal to the last digit
    summed = exp.select("*", aliased(call("LIST_SUM", _each(column("w", "m"))), "total")).from_(tree.subquery("raw"))
    share = exp.Div(this=column("w", "m"), expression=column("total"))
    averaged = [aliased(exp.Div(this=column(s), expression=column("total")), s) for s in sums]
    shares = aliased(_each(_struct({"u": column("u", "m"), "w": share})), "members")
    return exp.select(column("id"), column("entries"), shares, *averaged).from_(summed.subquery("summed"))


def _struct(fields: Mapping[str, Expr]) -> exp.Struct:
    return exp.Struct(expressions=[exp.PropertyEQ(this=name(k), expression=tree) for k, tree in fields.items()])


def _each(tree: Expr) -> exp.Array:
    """A list of a value made from each member `m` of the set."""
    made = exp.Comprehension(this=tree, expression=name("m"), iterator=column("members"))
    return exp.Array(expressions=[made])


def _patterns(query: MembershipQuery) -> exp.Select:
    pattern = exp.cast(or_zero(column("pattern", "c")), exp.DataType.Type.INT)
    items: list[Expr] = [column(c, "a") for c in ["history", *([TIME] if query.time else []), "n"]]
    items += [aliased(or_zero(column("entries", "b")), "entries"), aliased(pattern, "pattern")]
    for i in range(len(query.sums)):
        # nothing added up is zero
        empty = exp.If(this=missing(column("members", "b")), true=number(0.0))
        items.append(aliased(exp.Case(ifs=[empty], default=column(f"s{i}", "b")), f"s{i}"))
    items.append(aliased(_once("pattern", "c", column("members", "b")), "members"))
    tree = exp.select(*items).from_(table_as(KEYS, "a")).join(table_as(SETS, "b"), on=same(["id"]), join_type="left")
    return tree.join(table_as(PATTERNS, "c"), on=same(["members"], "b", "c"), join_type="left")


def _portable(tree: Expr, one: Input, other: Input) -> Expr:
    return tree if travels(one.dtype) and travels(other.dtype) else exp.cast(tree, exp.DataType.Type.VARCHAR)


def travels(dtype: str) -> bool:
    """True when values of a type come back from Arrow as they were."""
    kind = dtype.split("(", maxsplit=1)[0].upper()
    return kind in _TRAVELS or kind.startswith("TIMESTAMP")


def _whole(relation: Expr, alias: str) -> exp.Subquery:
    return exp.select("*").from_(relation.copy()).subquery(alias)


def _matched(query: MembershipQuery, rows: str, histories: str) -> Expr:
    """A row's key is a history's."""
    pairs = [
        exp.EQ(this=_portable(column(a.name, rows), a, b), expression=column(label, histories))
        for (a, b), label in zip(query.on, query.on_labels, strict=True)
    ]
    return exp.and_(*pairs)


def _known(tree: Expr, item: Input) -> Expr:
    there = exp.not_(missing(tree.copy()))
    return exp.and_(there, exp.not_(call("ISNAN", tree.copy()))) if is_floating(item.dtype) else there


@dataclass(frozen=True, slots=True)
class Lookup:
    """The sets of one factor as tables to be joined, and the columns that they give the data.

    Attributes
    ----------
    query : MembershipQuery
    histories, patterns : sqlglot expression
        Answers of the two steps, as relations.
    factor : str
        Name of the pattern's column.
    sums : tuple of str
        Names of the sums' columns.
    """

    query: MembershipQuery
    histories: Expr
    patterns: Expr
    factor: str
    sums: tuple[str, ...]


def with_patterns(rows: Expr, lookups: Sequence[Lookup]) -> exp.Subquery:
    """The data with a pattern number per factor, and sums; NULL where a key of the row is missing."""
    tree = exp.select(exp.Column(this=exp.Star(), table=name("data"))).from_(_whole(rows, "data"))
    for i, lookup in enumerate(lookups):
        query, one, other = lookup.query, f"mlsql_histories_{i}", f"mlsql_patterns_{i}"
        on: list[Expr] = [exp.EQ(this=column("history", one), expression=column("history", other))]
        if query.time is not None:
            on.append(exp.EQ(this=column(query.time[0].name, "data"), expression=column(TIME, other)))
        matched = _matched(query, "data", one)
        tree = tree.join(_whole(lookup.histories, one), on=matched, join_type="left")
        tree = tree.join(_whole(lookup.patterns, other), on=exp.and_(*on), join_type="left")
        known = exp.and_(*[_known(column(k.name, "data"), k) for k in query.row_keys])
        cases = [(exp.not_(known), exp.Null()), (missing(column("pattern", other)), number(0))]
        for label, made in [("pattern", lookup.factor), *((f"s{k}", s) for k, s in enumerate(lookup.sums))]:
            ifs = [exp.If(this=condition.copy(), true=value.copy()) for condition, value in cases]
            tree = tree.select(aliased(exp.Case(ifs=ifs, default=column(label, other)), made))
    return tree.subquery("data")
