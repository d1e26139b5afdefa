"""The moments queries: sums and products by group, and the pooled products that need no group."""

from __future__ import annotations

from sqlglot import exp

from mlsql.design.columns import Variable
from mlsql.design.design import Design
from mlsql.design.layout import MomentColumns, moment_columns
from mlsql.sql.plan import Step
from mlsql.sql.survey import Tables
from mlsql.sql.syntax import aliased, as_double, column, name, present, scalar, shifted, times, total, unique

ROWS, GROUPS, LEVEL2 = "mlsql_rows", "mlsql_groups", "mlsql_level2"
"""Common tables of the statements.  Prefixed: a user's own table of the same name would be shadowed."""

WEIGHT = "mlsql weight"


def moments_steps(design: Design, tables: Tables) -> tuple[Step, ...]:
    """The query by group and, in the lean layout, the pooled query."""
    columns = moment_columns(design)
    steps = [Step("moments by group", "one row per group: counts, sums, products", _by_group(design, columns, tables))]
    if columns.pooled:
        steps.append(Step("pooled moments", "one row: products that need no group", _pooled(design, columns, tables)))
    return tuple(steps)


def completion_step(design: Design, tables: Tables) -> Step:
    """The products that the lean layout has only pooled, by group: one row per group, keys, count, products."""
    keys = [column(k.name) for k in design.keys]
    items: list[tuple[str, exp.Expr]] = [("n", exp.Count(this=exp.Star()))]
    items += [_pair(design, pair) for pair in moment_columns(design).pooled]
    sums = _labelled(items, [k.name for k in design.keys])
    query = exp.select(*keys, *sums).from_(name(ROWS)).group_by(*[k.copy() for k in keys])
    query = query.order_by(*[k.copy() for k in keys]).with_(name(ROWS), as_=model_rows(design, tables, keys=True))
    return Step("products by group", "one row per group: the products that the likelihood does not need", query)


def base_aliases(design: Design) -> dict[str, str]:
    """The name of each pivoted base within the queries, by its SQL."""
    taken = [k.name for k in design.keys]
    return dict(zip([b.sql for b in design.bases], unique([b.name for b in design.bases], taken), strict=True))


def value_aliases(design: Design) -> dict[Variable, str]:
    """The name of each group value within the queries."""
    taken = [*[k.name for k in design.keys], *base_aliases(design).values()]
    names = unique([v.name for v in design.group_values], taken)
    return dict(zip(design.group_values, names, strict=True))


def model_rows(design: Design, tables: Tables, *, keys: bool) -> exp.Select:
    """The complete rows with every base pivoted: the common table that both queries aggregate."""
    aliases = base_aliases(design)
    items = [aliased(scalar(k.sql), k.name) for k in design.keys] if keys else []
    items += [aliased(shifted(as_double(b.sql, b.dtype), b.pivot), aliases[b.sql]) for b in design.bases]
    if keys:
        checked = [(v, label) for v, label in value_aliases(design).items() if v.origin == "rows"]
        items += [aliased(shifted(as_double(v.sql, v.dtype), v.pivot), label) for v, label in checked]
    weight = design.schema.weight
    if weight is not None:
        items.append(aliased(as_double(weight.sql, weight.dtype), _weight_alias(design)))
    query = exp.select(*items).from_(tables.rows.copy())
    conditions = complete_rows(design)
    if conditions:
        query = query.where(*conditions)
    return _matched(query, design, tables)


def complete_rows(design: Design) -> list[exp.Expr]:
    """Conditions that a row has every value of the model; only on inputs that the survey found incomplete."""
    inputs = design.schema.of_table("rows")
    if design.survey is not None:
        missing = design.survey.incomplete_inputs("rows")
        inputs = tuple(i for i in inputs if i in missing)
    return present(inputs)


def complete_level2(design: Design, tables: Tables) -> exp.Select:
    """The level-2 table's keys and pivoted values, complete rows only."""
    assert tables.level2 is not None
    values = value_aliases(design)
    joined = [v for v in values if v.origin == "level2"]
    inputs = [*design.schema.of_table("level2"), *design.keys]
    return (
        exp.select(
            *[aliased(scalar(k.sql), k.name) for k in design.keys],
            *[aliased(shifted(as_double(v.sql, v.dtype), v.pivot), values[v]) for v in joined],
        )
        .from_(tables.level2.copy())
        .where(*present(inputs))
    )


def _matched(query: exp.Select, design: Design, tables: Tables) -> exp.Select:
    """Keep rows whose group is in the level-2 table, when the survey met others."""
    if tables.level2 is None:
        return query
    survey = design.survey
    if survey is not None and survey.unmatched == 0 and not survey.incomplete_inputs("level2"):
        return query
    inputs = [*design.schema.of_table("level2"), *design.keys]
    keys = exp.select(*[scalar(k.sql) for k in design.keys]).from_(tables.level2.copy()).where(*present(inputs))
    left = scalar(design.keys[0].sql)
    if len(design.keys) > 1:
        left = exp.Tuple(expressions=[scalar(k.sql) for k in design.keys])
    return query.where(exp.In(this=left, query=keys.subquery()))


def _weight_alias(design: Design) -> str:
    taken = [*[k.name for k in design.keys], *base_aliases(design).values(), *value_aliases(design).values()]
    return unique([WEIGHT], taken)[0]


def _source_label(design: Design, index: int) -> str:
    aliases = base_aliases(design)
    return " * ".join(aliases[sql] for sql in design.sources[index])


def _source_factors(design: Design, index: int) -> list[exp.Expr]:
    aliases = base_aliases(design)
    return [column(aliases[sql]) for sql in design.sources[index]]


def _weighted(design: Design, factors: list[exp.Expr]) -> exp.Expr:
    weight = [column(_weight_alias(design))] if design.schema.weight is not None else []
    return total(times([*weight, *factors]))


def _pair(design: Design, pair: tuple[int, int]) -> tuple[str, exp.Expr]:
    a, b = pair
    label = f"{_source_label(design, a)} * {_source_label(design, b)}"
    return label, _weighted(design, _source_factors(design, a) + _source_factors(design, b))


def _labelled(items: list[tuple[str, exp.Expr]], taken: list[str]) -> list[exp.Expr]:
    """Trees under their labels, made distinct from each other and from the names taken."""
    labels = unique([label for label, _ in items], taken)
    return [aliased(tree, label) for label, (_, tree) in zip(labels, items, strict=True)]


def _by_group(design: Design, columns: MomentColumns, tables: Tables) -> exp.Expr:
    keys = [column(k.name) for k in design.keys]
    aliases, values = base_aliases(design), value_aliases(design)
    items: list[tuple[str, exp.Expr]] = [("n", exp.Count(this=exp.Star()))]
    if columns.weighted:
        weight = column(_weight_alias(design))
        items += [("sum of weights", total(weight)), ("sum of log weights", total(exp.Ln(this=weight.copy())))]
    items += [(_source_label(design, s), _weighted(design, _source_factors(design, s))) for s in columns.sums]
    items += [_pair(design, pair) for pair in columns.products]
    items += [(f"unweighted {aliases[sql]}", total(column(aliases[sql]))) for sql in columns.means]
    for variable in columns.checked:
        label = values[variable]
        items += [(f"min of {label}", exp.Min(this=column(label))), (f"max of {label}", exp.Max(this=column(label)))]
    sums = _labelled(items, [k.name for k in design.keys])
    grouped = exp.select(*keys, *sums).from_(name(ROWS)).group_by(*[k.copy() for k in keys])
    rows = model_rows(design, tables, keys=True)
    if not columns.joined:
        return grouped.order_by(*[k.copy() for k in keys]).with_(name(ROWS), as_=rows)
    on = exp.and_(*[exp.EQ(this=column(k.name, GROUPS), expression=column(k.name, LEVEL2)) for k in design.keys])
    outer = (
        exp.select(
            exp.Column(this=exp.Star(), table=name(GROUPS)),
            *[column(values[v], LEVEL2) for v in columns.joined],
        )
        .from_(name(GROUPS))
        .join(exp.Table(this=name(LEVEL2)), on=on)
        .order_by(*[column(k.name, GROUPS) for k in design.keys])
    )
    outer = outer.with_(name(ROWS), as_=rows).with_(name(GROUPS), as_=grouped)
    return outer.with_(name(LEVEL2), as_=complete_level2(design, tables))


def _pooled(design: Design, columns: MomentColumns, tables: Tables) -> exp.Expr:
    items = _labelled([_pair(design, pair) for pair in columns.pooled], [])
    rows = model_rows(design, tables, keys=False)
    return exp.select(*items).from_(name(ROWS)).with_(name(ROWS), as_=rows)
