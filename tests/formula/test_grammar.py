"""lme4's grammar: which terms a formula means, in which order, and how names are written."""

from __future__ import annotations

import pytest

import mlsql
from mlsql.formula.spec import ModelSpec


def fixed(spec: ModelSpec) -> list[str]:
    return [t.name for t in spec.fixed]


def random(spec: ModelSpec) -> list[list[str]]:
    return [[t.name for t in block.terms] for block in spec.random]


ONE = "(Intercept)"

FIXED = {
    "1": [ONE],
    "x": [ONE, "x"],
    "1 + x": [ONE, "x"],
    "0 + x": ["x"],
    "x + 0": ["x"],
    "x - 1": ["x"],
    "-1 + x": ["x"],
    "x + 0 + 1": [ONE, "x"],
    "x - 0": [ONE, "x"],
    "a + b": [ONE, "a", "b"],
    "b + a": [ONE, "b", "a"],
    "a + a": [ONE, "a"],
    "a:b": [ONE, "a:b"],
    "a*b": [ONE, "a", "b", "a:b"],
    "b*a": [ONE, "b", "a", "b:a"],
    "a*b*c": [ONE, "a", "b", "c", "a:b", "a:c", "b:c", "a:b:c"],
    "a*b*c - a:b:c": [ONE, "a", "b", "c", "a:b", "a:c", "b:c"],
    "a*b - b:a": [ONE, "a", "b"],
    "a*b - a": [ONE, "b", "a:b"],
    "a:b + b:a": [ONE, "a:b"],
    "a:a": [ONE, "a"],
    "a*a": [ONE, "a"],
    "a/b": [ONE, "a", "a:b"],
    "a/b/c": [ONE, "a", "a:b", "a:b:c"],
    "(a + b)/c": [ONE, "a", "b", "a:b:c"],
    "(a + b + c)^2": [ONE, "a", "b", "c", "a:b", "a:c", "b:c"],
    "(a + b + c)^3": [ONE, "a", "b", "c", "a:b", "a:c", "b:c", "a:b:c"],
    "(a + b)^1": [ONE, "a", "b"],
    "a^2": [ONE, "a"],
    "(a + b)*c": [ONE, "a", "b", "c", "a:c", "b:c"],
    "(a + b):c": [ONE, "a:c", "b:c"],
    "a:b + a + b": [ONE, "a", "b", "a:b"],
    "b:a + a": [ONE, "a", "b:a"],
    "(a)": [ONE, "a"],
    "((a + b))": [ONE, "a", "b"],
    "a*(b + c)": [ONE, "a", "b", "c", "a:b", "a:c"],
    "a + b*c - 1": ["a", "b", "c", "b:c"],
}


@pytest.mark.parametrize("text", FIXED)
def test_fixed_terms(text: str) -> None:
    assert fixed(mlsql.parse_model(f"y ~ {text} + (1 | g)")) == FIXED[text]


RANDOM = {
    "(1 | g)": [[ONE]],
    "(x | g)": [[ONE, "x"]],
    "(1 + x | g)": [[ONE, "x"]],
    "(0 + x | g)": [["x"]],
    "(x - 1 | g)": [["x"]],
    "(-1 + x | g)": [["x"]],
    "(x + z | g)": [[ONE, "x", "z"]],
    "(x*z | g)": [[ONE, "x", "z", "x:z"]],
    "(x || g)": [[ONE], ["x"]],
    "(1 + x + z || g)": [[ONE], ["x"], ["z"]],
    "(0 + x + z || g)": [["x"], ["z"]],
    "(1 | g) + (0 + x | g)": [[ONE], ["x"]],
    "(0 + x | g) + (1 | g)": [["x"], [ONE]],
}


@pytest.mark.parametrize("text", RANDOM)
def test_random_terms(text: str) -> None:
    spec = mlsql.parse_model(f"y ~ x + z + {text}")
    assert random(spec) == RANDOM[text]
    assert spec.group == "g"


def test_random_terms_may_stand_anywhere() -> None:
    first, last = mlsql.parse_model("y ~ (x | g) + x + z"), mlsql.parse_model("y ~ x + z + (x | g)")
    assert first == last


@pytest.mark.parametrize(
    ("text", "group", "keys"),
    [
        ("(1 | g)", "g", ['"g"']),
        ("(1 | country:school)", "country:school", ['"country"', '"school"']),
        ("(1 | country : school)", "country:school", ['"country"', '"school"']),
        ("(1 | a:b:c)", "a:b:c", ['"a"', '"b"', '"c"']),
        ('(1 | "my group")', "my group", ['"my group"']),
        ("(1 | `my group`)", "my group", ['"my group"']),
        ("(1 | date_part('year', d))", "date_part('year', d)", None),
    ],
)
def test_groups(text: str, group: str, keys: list[str] | None) -> None:
    spec = mlsql.parse_model(f"y ~ x + {text}")
    assert spec.group == group
    if keys is not None:
        assert [k.sql for k in spec.keys] == keys


@pytest.mark.parametrize(
    "text",
    ["y~x*z+(x|g)", "  y ~ x * z + ( x | g )  ", "y\n~ x * z\n+ (x | g)", "y ~ x*z -- a SQL comment\n + (x | g)"],
)
def test_white_space_is_free(text: str) -> None:
    assert mlsql.parse_model(text) == mlsql.parse_model("y ~ x*z + (x | g)")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("`my col`", "my col"),
        ('"my col"', "my col"),
        ('"a ""b"" c"', 'a "b" c'),
        ("`a+b`", "a+b"),
        ("`1st`", "1st"),
        ("`a~b`", "a~b"),
        ("`(x | g)`", "(x | g)"),
        ('"it\'s"', "it's"),
        ("größe", "größe"),
        ("日本", "日本"),
        ("_x1", "_x1"),
    ],
)
def test_names_that_need_quotes(written: str, name: str) -> None:
    spec = mlsql.parse_model(f"y ~ {written} + (1 | g)")
    assert fixed(spec) == [ONE, name]
    assert spec.atoms[0].sql == '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("name", ["order", "group", "select", "from", "in", "table", "sum", "count", "case", "end"])
def test_sql_keywords_are_names(name: str) -> None:
    spec = mlsql.parse_model(f"{name} ~ x + (1 | g)")
    assert spec.outcome.sql == f'"{name}"'
    spec = mlsql.parse_model(f"y ~ {name} + x:{name} + ({name} | {name}_group)")
    assert fixed(spec) == [ONE, name, f"{name}:x"] or fixed(spec) == [ONE, name, f"x:{name}"]
    assert spec.group == f"{name}_group"
    assert mlsql.parse_model(f"y ~ x + (1 | {name})").group == name


def test_backticks_and_double_quotes_are_the_same() -> None:
    assert mlsql.parse_model("y ~ `my x` + (1 | `my g`)") == mlsql.parse_model('y ~ "my x" + (1 | "my g")')


@pytest.mark.parametrize(
    ("text", "name", "sql"),
    [
        ("y", "y", '"y"'),
        ('"my y"', "my y", '"my y"'),
        ("`my y`", "my y", '"my y"'),
        ("log(y)", "log(y)", 'LOG("y")'),
        ("I(y / 100)", "I(y / 100)", '"y" / 100'),
        ("y * 2", "y * 2", '"y" * 2'),
        ("I(a - b)", "I(a - b)", '"a" - "b"'),
    ],
)
def test_outcomes(text: str, name: str, sql: str) -> None:
    outcome = mlsql.parse_model(f"{text} ~ x + (1 | g)").outcome
    assert (outcome.name, outcome.sql) == (name, sql)


def test_offsets_are_no_terms() -> None:
    spec = mlsql.parse_model("y ~ offset(z) + x + offset(log(w)) + (1 | g)")
    assert fixed(spec) == [ONE, "x"]
    assert [o.sql for o in spec.offset] == ['"z"', 'LOG("w")']


def test_method_weights_and_hash() -> None:
    spec = mlsql.parse_model("y ~ x + (1 | g)", method="ML", weights="w + 1")
    assert spec.method == "ML"
    assert spec.weights is not None
    assert (spec.weights.name, spec.weights.sql) == ("w + 1", '"w" + 1')
    again = mlsql.parse_model("y ~ x + (1 | g)", method="ML", weights="w + 1")
    assert len({spec, again, mlsql.parse_model("y ~ x + (1 | g)")}) == 2
