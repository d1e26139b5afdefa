"""Tables with one row per group of a factor: checked, and joined to the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.schema import Input
from mlsql.sql.membership import missing, or_zero, same, table_as
from mlsql.sql.plan import Step
from mlsql.sql.syntax import aliased, column, name, number, present, scalar, unique

Expr = exp.Expr

KEYS = "mlsql_table_keys"
"""Common table of the statement.  Prefixed: a user's own table of the same name would be shadowed."""


@dataclass(frozen=True, slots=True)
class GroupTable:
    """A table of a factor's groups, as the statements read it.

    Attributes
    ----------
    factor : str
    relation : sqlglot expression
    keys : tuple of (Input, Input)
        Of the data and of the table: the same expressions, of types that compare.
    columns : tuple of str
        Those that the model reads, as the table spells them.
    """

    factor: str
    relation: Expr
    keys: tuple[tuple[Input, Input], ...]
    columns: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """Names of the keys within the check."""
        return [f"k{i}" for i in range(len(self.keys))]


def check_step(rows: Expr, table: GroupTable) -> Step:
    """How the table and the data meet, in one row; only rows and groups whose keys are known count.

    Row layout: groups of the table; groups that it has more than once; rows of the data; rows whose group it does not
    have; of the first repeated group how often it occurs, and its keys as text.
    """
    labels, times = table.labels, column("times")
    own = exp.select(*_keys([b for _, b in table.keys], labels), aliased(exp.Count(this=exp.Star()), "times"))
    own = own.from_(table.relation.copy()).where(*present([b for _, b in table.keys]))
    own = own.group_by(*[scalar(b.sql) for _, b in table.keys])
    several = exp.GT(this=times, expression=number(1))
    groups = exp.select(
        aliased(exp.Count(this=exp.Star()), "groups"), aliased(or_zero(exp.CountIf(this=several)), "repeated")
    ).from_(name(KEYS))
    keyed = exp.select(*_keys([a for a, _ in table.keys], labels)).from_(rows.copy())
    keyed = keyed.where(*present([a for a, _ in table.keys]))
    met = (
        exp.select(
            aliased(exp.Count(this=exp.Star()), "rows"),
            aliased(or_zero(exp.CountIf(this=missing(column("times", "b")))), "unmatched"),
        )
        .from_(keyed.subquery("a"))
        .join(table_as(KEYS, "b"), on=same(labels), join_type="left")
    )
    texts = [aliased(exp.cast(column(c), exp.DataType.Type.VARCHAR), f"first {c}") for c in labels]
    first = exp.select(times.copy(), *texts).from_(name(KEYS)).where(several.copy())
    first = first.order_by(*[column(c) for c in labels]).limit(1)
    tree = exp.select("*").from_(groups.subquery("groups")).join(met.subquery("met"), join_type="cross")
    tree = tree.join(first.subquery("first"), on=exp.true(), join_type="left")
    tree = tree.with_(name(KEYS), as_=own, materialized=True)
    return Step(f"survey of the level2 table of {table.factor}", "does it have each group, once", tree)


def with_group_tables(rows: Expr, columns: Sequence[str], tables: Sequence[GroupTable]) -> exp.Subquery:
    """The data with the tables' columns, NULL for a group that a table does not have.

    A column that the data have too is replaced.  The tables must have each group once, or rows would multiply.

    Parameters
    ----------
    rows : sqlglot expression
    columns : sequence of str
        Those of the data.
    tables : sequence of GroupTable
    """
    have = {c.lower(): c for c in columns}
    replaced: list[Expr] = []
    added: list[Expr] = []
    joins = []
    for i, table in enumerate(tables):
        alias = f"mlsql_table_{i}"
        # the data's keys are not qualified in the condition: nothing else may have the name of one of their columns
        keys = unique([f"mlsql {i} key {k}" for k in range(len(table.keys))], columns)
        values = unique([f"mlsql {i} value {k}" for k in range(len(table.columns))], columns)
        for source, label in zip(table.columns, values, strict=True):
            own = have.get(source.lower())
            (added if own is None else replaced).append(aliased(column(label, alias), own or source))
        items = [aliased(column(c), label) for c, label in zip(table.columns, values, strict=True)]
        right = exp.select(*_keys([b for _, b in table.keys], keys), *items).from_(table.relation.copy())
        pairs = zip(table.keys, keys, strict=True)
        on = [exp.EQ(this=scalar(a.sql), expression=column(label, alias)) for (a, _), label in pairs]
        joins.append((right.subquery(alias), exp.and_(*on)))
    star = exp.Star(replace=replaced) if replaced else exp.Star()
    tree = exp.select(exp.Column(this=star, table=name("data")), *added)
    tree = tree.from_(exp.select("*").from_(rows.copy()).subquery("data"))
    for right_side, condition in joins:
        tree = tree.join(right_side, on=condition, join_type="left")
    return tree.subquery("data")


def _keys(inputs: Sequence[Input], labels: Sequence[str]) -> list[Expr]:
    return [aliased(scalar(k.sql), label) for k, label in zip(inputs, labels, strict=True)]
