"""What the statements of a connection found of a table's predictors, for leaner queries of later ones.

It is a hint and no more, for the table may have changed, and its name may mean another one: a lean query checks within
itself what it takes for granted.
"""

from __future__ import annotations

import itertools

from sqlglot import exp

from mlsql.design.cells import CellLayout
from mlsql.design.schema import NUMERIC, Schema
from mlsql.sql.survey import Tables
from mlsql.surfaces.sql_lean import FIXED, TEXT, UPPER, VARYING, Known

Expr = exp.Expr
Place = tuple[str, Expr, Expr | None, tuple[str, ...]]

KEPT = 256
"""Tables that are remembered; the oldest is forgotten first."""

_facts: dict[Place, dict[str, str]] = {}
_numbers = itertools.count(1)


def new_home() -> str:
    """Name a connection: another one's tables of the same names are others."""
    return str(next(_numbers))


def recall(home: str, layout: CellLayout, tables: Tables) -> Known | None:
    """What is known of a model's predictors; None unless earlier statements met all of them.

    Parameters
    ----------
    home : str
        The name of the connection.
    layout : CellLayout
    tables : Tables
    """
    facts = _facts.get(_place(home, layout, tables), {})
    averaged = {a.sql for a in layout.spec.atoms if a.kind == "group_mean" or a.centering == "group"}
    found: list[str] = []
    for predictor in layout.predictors:
        fact = facts.get(predictor.sql)
        if fact is None or (fact == UPPER and predictor.sql in averaged):
            return None
        found.append(VARYING if fact == FIXED and predictor.sql in averaged else fact)
    return Known(tuple(found))


def learn(
    home: str, layout: CellLayout, tables: Tables, schema: Schema, varying: frozenset[str], misled: Known | None
) -> None:
    """Remember what the sums of all products tell.

    Parameters
    ----------
    home : str
    layout : CellLayout
    tables : Tables
    schema : Schema
    varying : frozenset of str
        SQL of the predictors that have two values in some group.
    misled : Known or None
        What was believed when the query was written, if it was wrong.
    """
    facts = _facts.pop(_place(home, layout, tables), {})
    if misled is not None:
        # what was wrongly taken for fixed is so no more: a column near the limit would mislead each time
        believed = zip([p.sql for p in layout.predictors], misled.facts, strict=True)
        facts |= {sql: VARYING for sql, fact in believed if fact == FIXED}
    varied = varying | {sql for sql, fact in facts.items() if fact == VARYING}
    for item in schema.of_role("numeric", "factor"):
        if item.table == "level2":
            facts[item.sql] = UPPER
        elif item.dtype.split("(", maxsplit=1)[0].upper() not in NUMERIC:
            facts[item.sql] = TEXT
        else:
            facts[item.sql] = VARYING if item.sql in varied else FIXED
    while len(_facts) >= KEPT:
        _facts.pop(next(iter(_facts)), None)
    _facts[_place(home, layout, tables)] = facts


def forget() -> None:
    """Remember nothing."""
    _facts.clear()


def _place(home: str, layout: CellLayout, tables: Tables) -> Place:
    return home, tables.rows, tables.level2, layout.keys
