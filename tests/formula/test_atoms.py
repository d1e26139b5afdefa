"""Calls inside a formula: SQL expressions, factors, centring functions and their nesting."""

from __future__ import annotations

import pytest

import mlsql
from mlsql.formula.terms import Atom


def atom(text: str) -> Atom:
    return mlsql.parse_model(f"y ~ {text} + (1 | g)").atoms[0]


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("log(x)", 'LOG("x")'),
        ("I(x^2)", None),
        ("I(x - 40)", '"x" - 40'),
        ("I(CASE WHEN x > 3 THEN 1 ELSE 0 END)", 'CASE WHEN "x" > 3 THEN 1 ELSE 0 END'),
        ("I(CASE WHEN s = 'a' THEN 1 END)", "CASE WHEN \"s\" = 'a' THEN 1 END"),
        ("I(x IN (1, 2))", '"x" IN (1, 2)'),
        ("I(x > 3)", '"x" > 3'),
        ("CAST(x AS DOUBLE)", 'CAST("x" AS DOUBLE)'),
        ("coalesce(x, 0)", 'COALESCE("x", 0)'),
        ('I("my x" * 2)', '"my x" * 2'),
        ("I(`my x` * 2)", '"my x" * 2'),
        ("least(a, b)", 'LEAST("a", "b")'),
    ],
)
def test_a_call_is_a_sql_scalar(text: str, sql: str | None) -> None:
    found = atom(text)
    assert found.name.replace('"', "`") == text.replace('"', "`")
    assert (found.kind, found.centering, found.categorical) == ("value", "none", False)
    if sql is not None:
        assert found.sql == sql


def test_names_are_shown_on_one_line() -> None:
    assert atom("I(x\n    * 2)").name == "I(x * 2)"


@pytest.mark.parametrize(
    ("text", "name", "reference"),
    [
        ("C(x)", "x", None),
        ("C(x, ref='b')", "C(x, ref='b')", "b"),
        ("C(x, ref = 'it''s')", "C(x, ref = 'it''s')", "it's"),
        ("C(x, ref=3)", "C(x, ref=3)", "3"),
        ("C(x, ref=b)", "C(x, ref=b)", "b"),
    ],
)
def test_factors(text: str, name: str, reference: str | None) -> None:
    found = atom(text)
    assert (found.name, found.sql, found.categorical, found.reference) == (name, '"x"', True, reference)


def test_a_factor_of_an_expression() -> None:
    found = atom("C(I(x // 10))")
    assert found.categorical
    assert found.sql == '"x" // 10'
    assert atom("C(upper(s))").sql == 'UPPER("s")'


@pytest.mark.parametrize(
    ("text", "sql", "kind", "centering"),
    [
        ("group_center(x)", '"x"', "value", "group"),
        ("grand_center(x)", '"x"', "value", "grand"),
        ("group_mean(x)", '"x"', "group_mean", "none"),
        ("grand_center(group_mean(x))", '"x"', "group_mean", "grand"),
        ("group_center(log(x))", 'LOG("x")', "value", "group"),
        ("group_center(I(x * 2))", '"x" * 2', "value", "group"),
        ("group_center(x * 2)", '"x" * 2', "value", "group"),
        ("group_center(`my x`)", '"my x"', "value", "group"),
        ("group_mean(log(x))", 'LOG("x")', "group_mean", "none"),
        ("grand_center(group_mean(log(x)))", 'LOG("x")', "group_mean", "grand"),
    ],
)
def test_centring(text: str, sql: str, kind: str, centering: str) -> None:
    found = atom(text)
    assert (found.sql, found.kind, found.centering) == (sql, kind, centering)


def test_the_group_may_be_named() -> None:
    assert atom("group_center(x, g)").group == "g"
    assert atom("grand_center(group_mean(x, g))").group == "g"
    spec = mlsql.parse_model("y ~ group_center(x, a:b) + (1 | a:b)")
    assert spec.atoms[0].group == "a:b"
    with pytest.raises(mlsql.FormulaError, match=r"group_center\(x, h\): the group 'h' is not the model's group 'g'"):
        atom("group_center(x, h)")


def test_factors_can_be_centred() -> None:
    found = atom("group_center(C(x, ref='b'))")
    assert (found.categorical, found.reference, found.centering) == (True, "b", "group")


def test_centring_and_factors_do_not_mix_with_plain_columns() -> None:
    plain, centred, mean = atom("x"), atom("group_center(x)"), atom("group_mean(x)")
    assert len({plain, centred, mean, atom("C(x)")}) == 4
    assert plain.plain() == centred.plain().__class__(name=plain.name, sql=plain.sql)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("C(group_center(x))", "centre the factor, not the other way round"),
        ("group_mean(group_center(x))", "the column is centred already; centre once"),
        ("grand_center(group_center(x))", "the column is centred already; centre once"),
        ("group_center(grand_center(x))", "the column is centred already; centre once"),
        ("group_center(group_mean(x))", "zero in every row; leave it out"),
        ("group_mean(group_mean(x))", "write group_mean once"),
        ("group_center(x, g, h)", r"takes a column and, if wanted, the group"),
        ("group_center(x,, g)", r"takes a column and, if wanted, the group"),
        ("group_center(, g)", r"takes a column and, if wanted, the group"),
        ("C(x, 'b')", r"C\(\) takes a column and ref='level'"),
        ("C(x, reference='b')", r"C\(\) takes a column and ref='level'"),
        ("C(x, ref=)", r"C\(\) takes a column and ref='level'"),
        ("sum(x)", r"looks beyond one row; use group_mean\(x\)"),
        ("avg(x)", "looks beyond one row"),
        ("count(*)", "looks beyond one row"),
        ("group_center(sum(x))", "looks beyond one row"),
        ("I(lag(x) OVER ())", "looks beyond one row"),
        ("I(x - avg(x) OVER (PARTITION BY g))", "looks beyond one row"),
        ("I((SELECT max(x) FROM t))", "not a SQL scalar expression|looks beyond one row"),
        ("I(x + (SELECT 1))", "looks beyond one row"),
        ("I(x; DROP TABLE t)", "is not a SQL scalar expression"),
        ("I(x +)", "is not a SQL scalar expression"),
        ("I(*)", "is not a SQL scalar expression"),
        ("log()", r"log\(\) needs an argument"),
        ("I()", r"I\(\) needs an argument"),
        ("C()", r"C\(\) needs an argument"),
        ("group_center()", r"group_center\(\) needs an argument"),
        ("group_center(C())", r"needs an argument"),
    ],
)
def test_calls_that_make_no_sense(text: str, problem: str) -> None:
    with pytest.raises(mlsql.FormulaError, match=problem) as caught:
        atom(text)
    # position and caret lead to the call
    assert "(position 5)" in str(caught.value)
    assert str(caught.value).splitlines()[-1] == " " * 6 + "^"


@pytest.mark.parametrize("text", ["sum(w)", "w; DROP TABLE t", "", "(SELECT 1)"])
def test_weights_are_scalars_too(text: str) -> None:
    with pytest.raises(mlsql.FormulaError):
        mlsql.parse_model("y ~ x + (1 | g)", weights=text)


def test_an_offset_is_a_scalar_too() -> None:
    with pytest.raises(mlsql.FormulaError, match="looks beyond one row"):
        mlsql.parse_model("y ~ x + offset(sum(x)) + (1 | g)")
