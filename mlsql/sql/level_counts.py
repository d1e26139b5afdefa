"""The query that counts groups, cells and occupied pairs of groups: the size of a model before it is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from sqlglot import exp

from mlsql.design.design import Design
from mlsql.sql.moments import model_rows
from mlsql.sql.plan import Step
from mlsql.sql.survey import Tables
from mlsql.sql.syntax import aliased, column, name, times, total, unique

ROWS, CELLS, PAIRS = "mlsql_rows", "mlsql_cells", "mlsql_pairs_{}"


def counts_step(design: Design, tables: Tables) -> Step:
    """One row of counts; nothing by group is fetched.

    Row layout: rows; cells; the groups of each factor, in the model's order; then of each pair of factors, in the order
    of `itertools.combinations`, the occupied pairs, and the sums of squares of the numbers of groups of the other
    factor that a group of the first meets, and of the second: what multiplying out the rows of one factor costs.
    """
    names = {key.sql: key.name for key in design.keys}
    factors = [(f.name, [names[k.sql] for k in f.keys]) for f in design.spec.factors]
    keys = [k.name for k in design.keys]
    (n,) = unique(["n"], keys)
    cells = exp.select(*_columns(keys), aliased(exp.Count(this=exp.Star()), n)).from_(name(ROWS))
    cells = cells.group_by(*_columns(keys))
    items: list[tuple[str, exp.Expr]] = [
        ("rows", exp.select(_integer(total(column(n)))).from_(name(CELLS))),
        ("cells", exp.select(exp.Count(this=exp.Star())).from_(name(CELLS))),
    ]
    items += [(f"groups of {label}", _count(_distinct(own, CELLS))) for label, own in factors]
    together: list[tuple[str, exp.Select]] = []
    for i, ((left, a), (right, b)) in enumerate(combinations(factors, 2)):
        table = PAIRS.format(i)
        together.append((table, _distinct(list(dict.fromkeys([*a, *b])), CELLS)))
        items.append((f"pairs of {left} and {right}", exp.select(exp.Count(this=exp.Star())).from_(name(table))))
        items += [
            (f"met by {who}, squared: {left} and {right}", _squares(own, table)) for who, own in ((left, a), (right, b))
        ]
    labels = unique([label for label, _ in items])
    tree = exp.select(
        *[aliased(exp.Subquery(this=query), label) for (_, query), label in zip(items, labels, strict=True)]
    )
    tree = tree.with_(name(ROWS), as_=model_rows(design, tables, keys=True))
    tree = tree.with_(name(CELLS), as_=cells, materialized=True)
    for table, query in together:
        tree = tree.with_(name(table), as_=query, materialized=True)
    return Step("counts", "groups of each factor, cells, pairs of groups with rows in common", tree)


def _columns(names: Sequence[str]) -> list[exp.Expr]:
    return [column(c) for c in names]


def _distinct(columns: Sequence[str], table: str) -> exp.Select:
    return exp.select(*_columns(columns)).from_(name(table)).distinct()


def _count(query: exp.Select) -> exp.Select:
    return exp.select(exp.Count(this=exp.Star())).from_(query.subquery("found"))


def _squares(columns: Sequence[str], table: str) -> exp.Select:
    """Sum over groups of the squared number of their pairs."""
    counted = exp.select(aliased(exp.Count(this=exp.Star()), "met")).from_(name(table)).group_by(*_columns(columns))
    return exp.select(_integer(total(times([column("met"), column("met")])))).from_(counted.subquery("counted"))


def _integer(tree: exp.Expr) -> exp.Expr:
    """Sums of integers are wider than any count."""
    return exp.cast(tree, exp.DataType.Type.BIGINT)
