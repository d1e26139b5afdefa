"""Expressions that the type of a column settles: the engine folds them when it reads the statement."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from mlsql.design.schema import FACTOR, NUMERIC
from mlsql.sql.syntax import call, name, scalar

Expr = exp.Expr

_TYPES = {
    dtype: exp.DataType.build(dtype, dialect="duckdb")
    for dtype in ("BIGINT", "INTEGER", "DOUBLE", "VARCHAR", "VARCHAR[]", "DOUBLE[]")
}


def is_type(tree: Expr, types: Sequence[str]) -> Expr:
    """A condition on the type, which the engine settles when it reads the statement."""
    pattern = exp.Literal.string(f"(?s)({'|'.join(types)})([(].*)?")
    return call("REGEXP_FULL_MATCH", type_of(tree), pattern)


def as_number(sql: str) -> Expr:
    """The value in double precision, NULL where it is no number."""
    tree = scalar(sql)
    double = exp.TryCast(this=tree.copy(), to=_TYPES["DOUBLE"].copy())
    return exp.Case(ifs=[exp.If(this=is_type(tree, NUMERIC), true=double)])


def as_label(sql: str, category: bool) -> Expr:
    """The value as a category, NULL where it is none."""
    tree = scalar(sql)
    return tree if category else exp.Case(ifs=[exp.If(this=is_type(tree, FACTOR), true=tree.copy())])


def has_value(tree: Expr) -> Expr:
    """Neither NULL nor NaN, for any type."""
    double = exp.TryCast(this=tree.copy(), to=_TYPES["DOUBLE"].copy())
    is_nan = exp.Case(ifs=[exp.If(this=is_type(tree, ("DOUBLE", "FLOAT")), true=call("ISNAN", double))])
    return all_of([not_null(tree), exp.not_(exp.Coalesce(this=is_nan, expressions=[exp.false()]), copy=False)])


def not_null(tree: Expr) -> Expr:
    """`tree IS NOT NULL`."""
    return exp.not_(exp.Is(this=tree, expression=exp.Null()), copy=False)


def is_number(tree: Expr) -> Expr:
    """Neither NULL nor NaN: NaN is the largest number to the engine."""
    return exp.LTE(this=tree, expression=typed_as(exp.Literal.string("infinity"), "DOUBLE"))


def all_of(conditions: Sequence[Expr]) -> Expr:
    """All conditions hold."""
    return exp.and_(*conditions, copy=False)


def any_of(conditions: Sequence[Expr]) -> Expr:
    """Some condition holds."""
    return exp.paren(exp.or_(*conditions, copy=False), copy=False)


def type_of(tree: Expr) -> Expr:
    """The name of the type, a constant when the statement is read."""
    return call("TYPEOF", tree.copy())


def typed_as(tree: Expr, dtype: str) -> Expr:
    """The tree cast to a type of the answer."""
    return exp.Cast(this=tree, to=_TYPES[dtype].copy())


def named(tree: Expr, alias: str) -> Expr:
    """`tree AS "alias"`, without a copy of the tree."""
    return exp.Alias(this=tree, alias=name(alias))
