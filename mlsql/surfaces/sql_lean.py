"""A leaner cells query, for predictors that an earlier statement has met; exact whatever it found.

A predictor that has one value per group needs no products: they follow from the group's sums.  One that is a number
needs no label to group by, and one that is text no sums.  The lean query leaves these out, and checks within itself
that it may: where the data have changed, the same statement sums everything after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlglot import exp

from mlsql.design.cells import CellLayout
from mlsql.moments.select import CONSTANT
from mlsql.sql.cell_rows import CELLS, LOCATED
from mlsql.sql.cell_types import any_of, named, typed_as
from mlsql.sql.cells import cells_step
from mlsql.sql.plan import Step
from mlsql.sql.syntax import call, column, name, number, total

Expr = exp.Expr

WHOLE_CELL = "whole cell"
"""Of a row of the answer that has all sums; there are none when the lean cells suffice."""

WRONG, WHOLE = "mlsql_wrong", "mlsql_whole"
"""Common tables of the query."""

STRICTER = CONSTANT / 2
"""What passes here as constant within groups is constant to the reader of the answer, who adds in another order."""

VARYING, FIXED, TEXT, UPPER = "varying", "fixed", "text", "upper"


@dataclass(frozen=True, slots=True)
class Known:
    """What is believed of each predictor.

    Attributes
    ----------
    facts : tuple of {"varying", "fixed", "text", "upper"}
        In the order of `CellLayout.predictors`: a number that varies within groups or whose mean by group is wanted; a
        number that does not; no number; a column of the level-2 table.
    """

    facts: tuple[str, ...]

    @property
    def text(self) -> str:
        """As the answer repeats it."""
        return " ".join(self.facts)


def lean_layout(layout: CellLayout, known: Known) -> CellLayout:
    """The layout with the products that are needed if the belief is right."""
    facts = dict(zip([p.sql for p in layout.predictors], known.facts, strict=True))
    sums = {(sql,) * power for sql, fact in facts.items() if fact == FIXED for power in (1, 2)}
    kept = [p for p in layout.products if p in sums or all(facts.get(sql, VARYING) == VARYING for sql in p)]
    return replace(layout, products=tuple(kept))


def lean_step(layout: CellLayout, known: Known, rows: Expr, level2: Expr | None, told: Sequence[str | None]) -> Step:
    """The query: the cells query of the lean layout, and cells with all sums where that does not do.

    Parameters
    ----------
    layout : CellLayout
        With all products.
    known : Known
    rows, level2 : sqlglot expression
    told : sequence of str or None
        Repeated in the answer.
    """
    lean = lean_layout(layout, known)
    tree, whole = cells_step(lean, rows, level2, told).tree, cells_step(layout, rows, level2).tree
    assert isinstance(tree, exp.Union)
    assert isinstance(whole, exp.Union)
    _unlabel(_common_table(tree, CELLS), [i for i in range(len(known.facts)) if not _labelled(layout, known, i)])
    every = _common_table(whole, CELLS).join(name(WRONG), join_type="cross", copy=False)
    tree.with_(name(WRONG), as_=_wrong(lean, known), materialized=True, copy=False)
    tree.with_(name(WHOLE), as_=every, materialized=True, copy=False)
    tree.set("expression", exp.Union(this=tree.expression, expression=_whole_rows(whole.expression), distinct=False))
    return Step("cells", "columns, types, pivots, missing values; then the sums by cell that are needed", tree)


def _common_table(tree: Expr, label: str) -> exp.Select:
    """A common table's query."""
    assert isinstance(tree, exp.Query)
    found = next(cte.this for cte in tree.ctes if cte.alias == label)
    assert isinstance(found, exp.Select)
    return found


def _labelled(layout: CellLayout, known: Known, i: int) -> bool:
    """Whether a predictor may have a label in the rows."""
    return layout.predictors[i].category or known.facts[i] == TEXT


def _unlabel(query: exp.Select, positions: Sequence[int]) -> None:
    """Do not group by labels that no row has."""
    gone = {f"l{i}" for i in positions}
    items = [
        named(typed_as(exp.Null(), "VARCHAR"), item.name) if item.name in gone else item for item in query.expressions
    ]
    query.set("expressions", items)
    group = query.args["group"]
    group.set("expressions", [by for by in group.expressions if by.name not in gone])


def _whole_rows(query: exp.Select) -> exp.Select:
    """The rows of the answer for cells, taken from those with all sums."""
    for found in query.find_all(exp.Identifier):
        if found.name == CELLS:
            found.set("this", WHOLE)
    query.expressions[0].set("this", exp.Literal.string(WHOLE_CELL))
    return query


def _wrong(lean: CellLayout, known: Known) -> exp.Select:
    """One row if the belief was wrong, else none."""
    facts = list(zip(lean.predictors, known.facts, strict=True))
    # what is no number has no sum, and what is one has no label unless it is marked as a category
    summed = call("LIST_COUNT", column("sums"))
    other: list[Expr] = [exp.LT(this=summed, expression=call("LEN", column("sums")))]
    other += [
        exp.Is(this=column(f"l{i}"), expression=exp.Null())
        for i, (p, fact) in enumerate(facts)
        if fact == TEXT and p.number and not p.category
    ]
    found: list[Expr] = [exp.select(exp.CountIf(this=any_of(other))).from_(name(CELLS), copy=False).subquery()]
    fixed = [p.sql for p, fact in facts if fact == FIXED and p.number]
    if fixed:
        found.append(_varying_groups(lean, known, fixed).subquery())
    wrong: list[Expr] = [exp.GT(this=count, expression=number(0)) for count in found]
    upper = [exp.not_(column(f"u{i}"), copy=False) for i, (_, fact) in enumerate(facts) if fact == UPPER]
    if upper:
        wrong.append(exp.select(any_of(upper)).from_(name(LOCATED), copy=False).subquery())
    return exp.select(named(exp.true(), "found")).where(any_of(wrong), copy=False)


def _varying_groups(lean: CellLayout, known: Known, fixed: Sequence[str]) -> exp.Select:
    """How many groups have two values of a predictor that was taken to have one."""
    start = 2 if lean.weight is None else 5
    size = number(1 if lean.weight is None else 2)
    places = [[number(start + lean.products.index((sql,) * power)) for power in (1, 2)] for sql in fixed]
    items = [named(call("LIST_EXTRACT", column("sums"), size), "n")]
    for i, pair in enumerate(places):
        values = [call("LIST_EXTRACT", column("sums"), place) for place in pair]
        items += [named(value, f"{label}{i}") for value, label in zip(values, ("s", "q"), strict=True)]
    source = exp.select(*[column(f"k{i}") for i in range(len(lean.keys))], *items).from_(name(CELLS), copy=False)
    if any(_labelled(lean, known, i) for i in range(len(known.facts))):
        # several cells are a group
        sums = [named(total(column(item.alias)), item.alias) for item in items]
        keys = [column(f"k{i}") for i in range(len(lean.keys))]
        source = exp.select(*sums).from_(source.subquery("mlsql_cell_sums"), copy=False).group_by(*keys, copy=False)
    differs: list[Expr] = []
    for i in range(len(fixed)):
        s, q = column(f"s{i}"), column(f"q{i}")
        square = exp.Div(this=exp.paren(exp.Mul(this=s, expression=s.copy())), expression=column("n"))
        least = exp.Mul(this=number(STRICTER), expression=q.copy())
        differs.append(exp.GT(this=exp.paren(exp.Sub(this=q, expression=square)), expression=least))
    return exp.select(exp.CountIf(this=any_of(differs))).from_(source.subquery("mlsql_group_sums"), copy=False)
