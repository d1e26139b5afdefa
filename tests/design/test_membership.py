"""Memberships as described by the user, their use in a model, and the table of patterns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import mlsql
from mlsql.design.membership import (
    Membership,
    MembershipSum,
    MembershipTable,
    check_factors,
    check_key_types,
    check_time,
    sum_table,
    unused_warning,
    with_sums,
)
from mlsql.sql.syntax import unique

GIVEN = {"teacher": Membership("history", on="child")}


def model(formula: str, **named: Any) -> mlsql.ModelSpec:
    return mlsql.parse_model(formula, **named)


def distinct(*taken: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda names: unique(names, taken)


@pytest.fixture
def table() -> MembershipTable:
    """Pattern 1: a; pattern 2: a and c with half weights; pattern 3: b twice, d."""
    return MembershipTable(
        pa.table({"teacher": ["a", "b", "c", "d"]}),
        np.array([1, 2, 2, 3, 3]),
        np.array([0, 0, 2, 1, 3]),
        np.array([1.0, 0.5, 0.5, 2.0, 1.0]),
        rows_without=4,
        unused=1,
    )


def test_columns_are_a_tuple() -> None:
    assert Membership("h", on="child").columns == ("child",)
    assert Membership("h", on=["child", "year"]).columns == ("child", "year")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": []}, "on is []; name the columns"),
        ({"on": ["child", 3]}, "on is ['child', 3]; name the columns"),
        ({"on": ["child", "Child"]}, "column 'child' is given twice"),
        ({"on": ["child", "year"], "time": "year"}, "column 'year' is given twice in on and time"),
        ({"on": "child", "time": "year", "decay": 0}, "decay is 0; it is the share of an effect"),
        ({"on": "child", "time": "year", "decay": 1.5}, "decay is 1.5; it is the share"),
        ({"on": "child", "time": "year", "decay": -0.5}, "decay is -0.5; it is the share"),
        ({"on": "child", "time": "year", "decay": float("nan")}, "decay is nan; it is the share"),
        ({"on": "child", "time": "year", "decay": True}, "decay is True; it is the share"),
        ({"on": "child", "time": "year", "decay": "0.5"}, "decay is '0.5'; it is the share"),
        ({"on": "child", "decay": 0.5}, "decay needs time="),
    ],
)
def test_descriptions_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(mlsql.DesignError, match=re.escape(message)):
        Membership("history", **given)


@pytest.mark.parametrize("decay", [1, 1.0, 0.5, np.float64(0.25)])
def test_decays_that_make_sense(decay: float) -> None:
    assert Membership("history", on="child", time="year", decay=decay).decay == decay


def test_a_factor_of_the_model_is_accepted() -> None:
    check_factors(model("y ~ x + (x | child) + (1 | teacher) + (0 + x | teacher)"), GIVEN)
    check_factors(model("y ~ group_center(x, child) + (1 | child) + (1 | teacher)"), GIVEN)


@pytest.mark.parametrize(
    ("formula", "memberships", "message"),
    [
        ("y ~ 1 + (1 | child)", GIVEN, "given for 'teacher', which is no factor of the model; its factors are child"),
        ("y ~ 1 + (1 | school:teacher)", GIVEN, "the factor school:teacher combines teacher, whose units come from"),
        ("y ~ 1 + (1 | teacher/year)", GIVEN, "the factor teacher:year combines teacher"),
        ("y ~ 1 + (1 | teacher)", {"teacher": "history"}, "memberships['teacher'] is a str; pass a mlsql.Membership"),
        ("y ~ 1 + (1 | teacher)", GIVEN["teacher"], "memberships is a Membership; pass a mapping"),
        ("y ~ group_center(x) + (1 | teacher)", GIVEN, "group_center(x): a row belongs to several units of teacher"),
        (
            "y ~ group_mean(x, teacher) + (1 | teacher) + (1 | child)",
            GIVEN,
            "group_mean(x, teacher): a row belongs to several units of teacher",
        ),
    ],
)
def test_uses_that_memberships_do_not_have(formula: str, memberships: Any, message: str) -> None:
    with pytest.raises(mlsql.FormulaError, match=re.escape(message)):
        check_factors(model(formula), memberships)


def test_sums_become_columns_and_keep_their_names() -> None:
    formula = (
        "y ~ 1 + x + membership_sum(degree, teacher) + (1 + membership_sum(degree, teacher) | child) + (1 | teacher)"
    )
    spec = model(formula)
    changed, sums = with_sums(spec, GIVEN, distinct("x"))
    assert sums == (MembershipSum("teacher", '"degree"', "sum of degree over teacher"),)
    assert sums[0].shown == "membership_sum(degree, teacher)"
    assert changed.formula == spec.formula == formula
    assert [t.name for t in changed.fixed] == ["(Intercept)", "x", "membership_sum(degree, teacher)"]
    assert changed.fixed[2].atoms[0].sql == '"sum of degree over teacher"'
    assert changed.random[0].terms[1].atoms[0].sql == '"sum of degree over teacher"'
    # what has no sum stays as it is
    assert changed.outcome == spec.outcome
    assert changed.fixed[:2] == spec.fixed[:2]


def test_sums_within_expressions() -> None:
    formula = (
        "I(y - Membership_Sum(d, teacher)) ~ I(membership_sum(a * 2, teacher) / membership_sum(d, teacher)) + "
        "grand_center(membership_sum(d, teacher)) + offset(membership_sum(a, teacher)) + (1 | teacher)"
    )
    changed, sums = with_sums(model(formula, weights="1 + membership_sum(d, teacher)"), GIVEN, distinct())
    assert {s.column for s in sums} == {
        "sum of d over teacher",
        "sum of a * 2 over teacher",
        "sum of a over teacher",
    }
    assert changed.outcome.sql == '"y" - "sum of d over teacher"'
    assert changed.fixed[1].atoms[0].sql == '"sum of a * 2 over teacher" / "sum of d over teacher"'
    assert changed.fixed[2].atoms[0].sql == '"sum of d over teacher"'
    assert changed.fixed[2].atoms[0].centering == "grand"
    assert changed.offset[0].sql == '"sum of a over teacher"'
    assert changed.weights is not None
    assert changed.weights.sql == '1 + "sum of d over teacher"'


def test_sums_do_not_take_a_column_of_the_data() -> None:
    _, sums = with_sums(
        model("y ~ membership_sum(d, teacher) + (1 | teacher)"), GIVEN, distinct("Sum of d over teacher")
    )
    assert sums[0].column == "sum of d over teacher 2"


def test_without_sums_the_model_stays() -> None:
    spec = model("y ~ x*z + (x | child) + (1 | teacher)")
    assert with_sums(spec, GIVEN, distinct()) == (spec, ())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("membership_sum(d)", "membership_sum() takes a predictor of the units and the factor"),
        ("membership_sum(d, teacher, 2)", "membership_sum() takes a predictor of the units and the factor"),
        ("membership_sum(d, 'teacher')", "membership_sum() takes a predictor of the units and the factor"),
        ("membership_sum(d, child)", "child is no factor with a membership table (memberships are given for teacher)"),
        ("membership_sum(membership_sum(d, teacher), teacher)", "a membership_sum() of a membership_sum()"),
        ("I(teacher + 1)", "I(teacher + 1) reads teacher, whose units come from a membership table"),
        ("C(Teacher)", "reads Teacher, whose units come from a membership table"),
    ],
)
def test_sums_that_make_no_sense(term: str, message: str) -> None:
    spec = model(f"y ~ x + {term} + (1 | child) + (1 | teacher)")
    with pytest.raises(mlsql.FormulaError, match=re.escape(message)):
        with_sums(spec, GIVEN, distinct())


def test_a_sum_without_any_memberships() -> None:
    with pytest.raises(mlsql.FormulaError, match=re.escape("teacher is no factor with a membership table (no memb")):
        with_sums(model("y ~ membership_sum(d, teacher) + (1 | child)"), {}, distinct())


@pytest.mark.parametrize(
    ("sql", "units", "expected"),
    [
        ('"d"', None, "memberships"),
        ('"d"', {"teacher": "INT"}, "memberships"),
        ('"D" + "e"', {"teacher": "INT", "d": "INT", "e": "INT"}, "units"),
        ('"Teacher" > 2', {"teacher": "INT"}, "memberships"),
        ('"e" * "teacher"', {"teacher": "INT", "e": "INT"}, "units"),
        ("1", {"teacher": "INT"}, "memberships"),
    ],
)
def test_the_table_of_a_sum(sql: str, units: dict[str, str] | None, expected: str) -> None:
    members = {"child": "INT", "teacher": "INT", "d": "DOUBLE"}
    assert sum_table(MembershipSum("teacher", sql, "c"), members, units, "teacher") == expected


def test_a_sum_of_unknown_or_scattered_columns() -> None:
    members, units = {"teacher": "INT", "degree": "INT"}, {"teacher": "INT", "size": "INT"}
    with pytest.raises(mlsql.DataError, match=r"column 'degre' is not in the data; did you mean 'degree'"):
        sum_table(MembershipSum("teacher", '"degre"', "c"), members, None, "teacher")
    with pytest.raises(mlsql.DesignError, match=r"mixes columns of the membership table and of the units table \(size"):
        sum_table(MembershipSum("teacher", '"degree" * "size"', "c"), members, units, "teacher")


def test_key_types() -> None:
    tables = ("data", "membership table")
    for one, other in [("INTEGER", "BIGINT"), ("DOUBLE", "INTEGER"), ("VARCHAR", "ENUM('a')"), ("HUGEINT", "INTEGER")]:
        check_key_types("teacher", "child", (one, other), tables)
    for one, other in [("INTEGER", "VARCHAR"), ("DATE", "TIMESTAMP"), ("HUGEINT", "DOUBLE")]:
        message = f"column child is {one} in the data and {other} in the membership table"
        with pytest.raises(mlsql.DataError, match=message):
            check_key_types("teacher", "child", (one, other), tables)


def test_time_types() -> None:
    plain = Membership("h", on="child", time="year")
    fading = Membership("h", on="child", time="year", decay=0.5)
    for dtype in ("INTEGER", "DECIMAL(5,2)", "DOUBLE", "DATE"):
        check_time("teacher", plain, dtype)
        check_time("teacher", fading, dtype)
    check_time("teacher", plain, "TIMESTAMP WITH TIME ZONE")
    with pytest.raises(mlsql.DataError, match="decay needs a difference of times as a number, and time year has type"):
        check_time("teacher", fading, "TIMESTAMP")
    for dtype in ("VARCHAR", "TIME", "BOOLEAN", "UUID"):
        with pytest.raises(mlsql.DataError, match=f"time year has type {dtype}; a time is a number or a date"):
            check_time("teacher", plain, dtype)


def test_entries_of_cells(table: MembershipTable) -> None:
    cell, unit, weight = table.entries(np.array([3, 0, 1, 3]))
    assert cell.tolist() == [0, 0, 2, 3, 3]
    assert unit.tolist() == [1, 3, 0, 1, 3]
    assert weight.tolist() == [2.0, 1.0, 1.0, 2.0, 1.0]


def test_entries_of_no_cell(table: MembershipTable) -> None:
    for patterns in (np.array([], dtype=np.int64), np.array([0, 0])):
        assert [len(part) for part in table.entries(patterns)] == [0, 0, 0]


def test_restriction_drops_units_that_only_other_patterns_have(table: MembershipTable) -> None:
    kept = table.restricted(np.array([3, 1, 1, 0]))
    assert kept.units.to_pydict() == {"teacher": ["a", "b", "d"]}
    assert kept.pattern.tolist() == [1, 3, 3]
    assert kept.unit.tolist() == [0, 1, 2]
    assert kept.weight.tolist() == [1.0, 2.0, 1.0]
    assert (kept.unused, kept.rows_without) == (2, 4)
    assert table.restricted(table.pattern).unused == table.unused


def test_what_is_said_of_unused_units() -> None:
    assert unused_warning("teacher", 1) == (
        "memberships of teacher: 1 unit of the membership table has no row of the data and was left out"
    )
    assert unused_warning("teacher", 1200, complete=True) == (
        "memberships of teacher: 1,200 units of the membership table have no complete row of the data and were left out"
    )
