"""Several grouping factors: what `a/b` means, the factors and keys of a specification, and the checks of groups."""

from __future__ import annotations

import pytest

import mlsql
from mlsql.formula.parser import parse_groups
from mlsql.formula.terms import Atom, Factor

ONE = "(Intercept)"


def blocks(text: str) -> list[tuple[str, list[str]]]:
    return [(b.group, [t.name for t in b.terms]) for b in mlsql.parse_model(f"y ~ x + {text}").random]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1 | a/b)", [("a", [ONE]), ("a:b", [ONE])]),
        ("(x | a/b)", [("a", [ONE, "x"]), ("a:b", [ONE, "x"])]),
        ("(0 + x | a/b)", [("a", ["x"]), ("a:b", ["x"])]),
        ("(x || a/b)", [("a", [ONE]), ("a", ["x"]), ("a:b", [ONE]), ("a:b", ["x"])]),
        ("(x | a/b/c)", [("a", [ONE, "x"]), ("a:b", [ONE, "x"]), ("a:b:c", [ONE, "x"])]),
        # as in R, ':' binds closer than '/'
        ("(1 | a/b:c)", [("a", [ONE]), ("a:b:c", [ONE])]),
        ("(1 | a:b/c)", [("a:b", [ONE]), ("a:b:c", [ONE])]),
        ('(1 | "my a" / `my b`)', [("my a", [ONE]), ("my a:my b", [ONE])]),
        ("(1 | year(d)/b)", [("year(d)", [ONE]), ("year(d):b", [ONE])]),
        ("(1 | a) + (1 | b)", [("a", [ONE]), ("b", [ONE])]),
        ("(1 | a) + (x | a:b)", [("a", [ONE]), ("a:b", [ONE, "x"])]),
        ("(1 | a) + (1 | b) + (0 + x | a)", [("a", [ONE]), ("b", [ONE]), ("a", ["x"])]),
        # blocks of one factor carry one order of keys
        ("(1 | a:b) + (0 + x | b:a)", [("a:b", [ONE]), ("a:b", ["x"])]),
    ],
)
def test_random_terms(text: str, expected: list[tuple[str, list[str]]]) -> None:
    assert blocks(text) == expected


def test_a_slash_is_short_for_two_random_terms() -> None:
    short = mlsql.parse_model("y ~ x + (x | a/b)")
    assert short == mlsql.parse_model("y ~ x + (x | a) + (x | a:b)")
    assert short.formula == "y ~ 1 + x + (1 + x | a) + (1 + x | a:b)"


@pytest.mark.parametrize(
    ("text", "factors", "keys", "group"),
    [
        ("(1 | g)", {"g": (0,)}, ["g"], "g"),
        ("(x || g)", {"g": (0, 1)}, ["g"], "g"),
        ("(1 | b:a)", {"b:a": (0,)}, ["b", "a"], "b:a"),
        ("(1 | a/b)", {"a": (0,), "a:b": (1,)}, ["a", "b"], "a, a:b"),
        ("(1 | a/b/c)", {"a": (0,), "a:b": (1,), "a:b:c": (2,)}, ["a", "b", "c"], "a, a:b, a:b:c"),
        ("(1 | school:child) + (1 | school)", {"school:child": (0,), "school": (1,)}, ["school", "child"], None),
        ("(1 | child:school) + (1 | school)", {"child:school": (0,), "school": (1,)}, ["school", "child"], None),
        ("(1 | c:b:a) + (1 | b:a) + (1 | a)", {"c:b:a": (0,), "b:a": (1,), "a": (2,)}, ["a", "b", "c"], None),
        # crossed: as they appear
        ("(1 | b) + (1 | a)", {"b": (0,), "a": (1,)}, ["b", "a"], "b, a"),
        ("(1 | a:b) + (1 | c)", {"a:b": (0,), "c": (1,)}, ["a", "b", "c"], None),
        ("(1 | s) + (1 | d) + (1 | p:q)", {"s": (0,), "d": (1,), "p:q": (2,)}, ["s", "d", "p", "q"], "s, d, p:q"),
        ("(1 | a) + (1 | b) + (0 + x | a)", {"a": (0, 2), "b": (1,)}, ["a", "b"], "a, b"),
        ("(1 | a:b) + (0 + x | b:a)", {"a:b": (0, 1)}, ["a", "b"], "a:b"),
    ],
)
def test_factors_keys_and_group(
    text: str, factors: dict[str, tuple[int, ...]], keys: list[str], group: str | None
) -> None:
    spec = mlsql.parse_model(f"y ~ x + {text}")
    assert {f.name: f.blocks for f in spec.factors} == factors
    assert [f.name for f in spec.factors] == list(factors)
    assert [k.name for k in spec.keys] == keys
    assert spec.group == (", ".join(factors) if group is None else group)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("school", "school"),
        ("school:child", "school:child"),
        ("child:school", "school:child"),
        (" school : child ", "school:child"),
        ("my room", "my room"),
        ('"my room"', "my room"),
        ("`my room`", "my room"),
        ("child", None),
        ("school/child", None),
        ("school:child:room", None),
        ("", None),
        ("(", None),
        ("school +", None),
    ],
)
def test_a_factor_by_name(name: str, found: str | None) -> None:
    spec = mlsql.parse_model("y ~ x + (1 | school/child) + (1 | `my room`)")
    factor = spec.factor(name)
    assert (None if factor is None else factor.name) == found


def test_within_is_told_by_the_keys() -> None:
    a, ab, b = (Factor(keys, ()) for keys in ((key("a"),), (key("b"), key("a")), (key("b"),)))
    assert ab.within(a)
    assert ab.within(b)
    assert not a.within(ab)
    assert not a.within(b)
    assert not a.within(a)


def key(name: str) -> Atom:
    return Atom(name=name, sql=f'"{name}"')


def test_parse_groups() -> None:
    assert [[k.name for k in keys] for keys in parse_groups("a/b:c/d")] == [
        ["a"],
        ["a", "b", "c"],
        ["a", "b", "c", "d"],
    ]
    with pytest.raises(mlsql.FormulaError, match="unexpected '\\+' after the groups"):
        parse_groups("a + b")


@pytest.mark.parametrize(
    "text",
    [
        "y ~ x + (x | a/b/c)",
        "y ~ x + (x || a/b)",
        "y ~ x + (1 | a/b:c) + (0 + x | c:b:a)",
        "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)",
        "y ~ group_center(x, b:a) + group_mean(x, a) + (1 | a/b)",
        'y ~ group_center(x, "my a") + (1 | `my a`/`my b`)',
        "y ~ x + (1 | year(d)/b) + (x | I(k + 1))",
        "y ~ w*x*v + (x*v | a/b) + offset(z)",
    ],
)
def test_parsing_the_text_gives_the_spec(text: str) -> None:
    spec = mlsql.parse_model(text)
    assert mlsql.parse_model(spec.formula) == spec


def test_the_order_of_key_columns_in_one_factor_is_the_first() -> None:
    spec = mlsql.parse_model("y ~ x + (1 | c:b) + (0 + x | b:c)")
    assert spec.formula == "y ~ 1 + x + (1 | c:b) + (0 + x | c:b)"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x + (1 | a/b) + (1 | a)", ["the random coefficient (Intercept) of a is given twice", "keep one"]),
        ("x + (x | a/b) + (0 + x | b:a)", ["the random coefficient x of a:b is given twice"]),
        ("x + (1 | a) + (1 | a)", ["the random coefficient (Intercept) of a is given twice"]),
        ("a + (1 | a/b)", ["a is a grouping column and cannot also be a predictor"]),
        ("C(a) + (1 | a) + (1 | b)", ["a is a grouping column and cannot also be a predictor"]),
        (
            "group_center(x) + (1 | a/b)",
            ["the model has 2 grouping factors (a, a:b)", "name the one that is meant", "group_center(x, a)"],
        ),
        ("group_mean(x) + (1 | a) + (1 | b)", ["(a, b)", "for instance group_mean(x, a)"]),
        ("grand_center(group_mean(x)) + (1 | a) + (1 | b)", ["for instance grand_center(group_mean(x), a)"]),
        ("x + (group_center(x) | a) + (1 | b)", ["for instance group_center(x, a)"]),
        ("group_center(x, b) + (1 | a/b)", ["the group 'b' is none of the model's groups; they are a, a:b"]),
        ("group_center(x, a/b) + (1 | a/b)", ["the group 'a/b' is none of the model's groups"]),
        ("grand_center(group_mean(x, a), b) + (1 | a) + (1 | b)", ["one group is b, the other a"]),
        ("group_center(group_mean(x, a:b), a) + (1 | a/b)", ["the mean over a:b cannot be centred within a"]),
        ("group_center(group_mean(x, a), a) + (1 | a/b)", ["zero in every row; leave it out"]),
    ],
)
def test_models_that_make_no_sense(text: str, parts: list[str]) -> None:
    with pytest.raises(mlsql.FormulaError) as caught:
        mlsql.parse_model(f"y ~ {text}")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        "group_center(x, a)",
        "group_center(x, a:b)",
        "group_center(x, a : b)",
        "group_center(x, b:a)",
        "group_mean(x, a:b)",
        "grand_center(group_mean(x, a))",
        "grand_center(group_mean(x), a:b)",
        "grand_center(x)",
    ],
)
def test_a_centring_call_names_its_factor(call: str) -> None:
    spec = mlsql.parse_model(f"y ~ {call} + (1 | a/b)")
    atom = spec.fixed[1].atoms[0]
    assert atom.group is None or spec.factor(atom.group) is not None


def test_one_key_of_a_finer_factor_may_be_a_predictor() -> None:
    spec = mlsql.parse_model("y ~ service + (1 | s) + (1 | d) + (1 | dept:service)")
    assert [t.name for t in spec.fixed] == [ONE, "service"]
