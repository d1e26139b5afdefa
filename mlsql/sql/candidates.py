"""Candidate level-2 predictors, all in one statement: their value in every group, and whether they have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.design import Design
from mlsql.design.schema import Table
from mlsql.sql.moments import GROUPS, LEVEL2, ROWS, model_rows
from mlsql.sql.plan import Step
from mlsql.sql.survey import Tables
from mlsql.sql.syntax import aliased, call, column, name, present, scalar


@dataclass(frozen=True, slots=True)
class GroupCandidate:
    """A candidate predictor.

    Attributes
    ----------
    name : str
        As the user wrote it.
    sql : str
        Scalar expression over its table's columns.
    table : {"rows", "level2"}
    averaged : bool
        The group's mean of a value that varies within it.
    """

    name: str
    sql: str
    table: Table
    averaged: bool


def candidates_step(design: Design, tables: Tables, candidates: Sequence[GroupCandidate]) -> Step:
    """One row per group of the analysis, in key order.

    Row layout: keys, rows, then per candidate its minimum and maximum in the group (of an averaged one, its mean
    twice); values that are not finite count as missing.
    """
    keys = [f"key {i}" for i in range(len(design.keys))]
    lower = [(i, c) for i, c in enumerate(candidates) if c.table == "rows"]
    upper = [(i, c) for i, c in enumerate(candidates) if c.table == "level2"]
    rows = model_rows(design, tables, keys=True).select(
        *[aliased(scalar(k.sql), label) for k, label in zip(design.keys, keys, strict=True)],
        *[aliased(_finite(c.sql), f"x{i}") for i, c in lower],
        append=False,
    )
    items: list[exp.Expr] = [aliased(exp.Count(this=exp.Star()), "n")]
    for i, candidate in lower:
        low, high = (exp.Avg, exp.Avg) if candidate.averaged else (exp.Min, exp.Max)
        items += [aliased(low(this=column(f"x{i}")), f"low {i}"), aliased(high(this=column(f"x{i}")), f"high {i}")]
    grouped = exp.select(*[column(k) for k in keys], *items).from_(name(ROWS)).group_by(*[column(k) for k in keys])
    answer = [
        column(f"{side} {i}", GROUPS if c.table == "rows" else LEVEL2)
        for i, c in enumerate(candidates)
        for side in ("low", "high")
    ]
    query = exp.select(*[column(k, GROUPS) for k in keys], column("n", GROUPS), *answer).from_(name(GROUPS))
    query = query.order_by(*[column(k, GROUPS) for k in keys])
    query = query.with_(name(ROWS), as_=rows).with_(name(GROUPS), as_=grouped)
    if upper:
        assert tables.level2 is not None
        above = (
            exp.select(
                *[aliased(scalar(k.sql), label) for k, label in zip(design.keys, keys, strict=True)],
                *[aliased(_finite(c.sql), f"{side} {i}") for i, c in upper for side in ("low", "high")],
            )
            .from_(tables.level2.copy())
            .where(*present(design.keys))
        )
        on = exp.and_(*[exp.EQ(this=column(k, GROUPS), expression=column(k, LEVEL2)) for k in keys])
        query = query.join(exp.Table(this=name(LEVEL2)), on=on, join_type="left").with_(name(LEVEL2), as_=above)
    return Step("candidates", "one row per group: the value of each candidate level-2 predictor", query)


def _finite(sql: str) -> exp.Expr:
    """The value in double precision, NULL where it is not finite."""
    value = exp.cast(scalar(sql), exp.DataType.Type.DOUBLE)
    return exp.Case(ifs=[exp.If(this=call("ISFINITE", value), true=value.copy())])
