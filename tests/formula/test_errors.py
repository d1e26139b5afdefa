"""Formulas that cannot be read: the problem, its position, the caret, and what is not supported, by name."""

from __future__ import annotations

import pytest

import mlsql

# text, position of the caret (0 for the first character), the problem
SYNTAX = [
    ("y ~", 3, "the formula ends where a term is expected"),
    ("y ~ x +", 7, "the formula ends where a term is expected"),
    ("y ~ x *", 7, "the formula ends where a term is expected"),
    ("~ x + (1 | g)", 0, "the outcome before '~' is missing"),
    ("y ~ x ~ z + (1 | g)", 6, "unexpected '~'"),
    ("y ~ x, z + (1 | g)", 5, "unexpected ','"),
    ("y ~ x + + z + (1 | g)", 8, "expected a term, found '+'"),
    ("y ~ x - - z + (1 | g)", 8, "expected a term, found '-'"),
    ("y ~ x z + (1 | g)", 6, "unexpected 'z'"),
    ("y ~ x % z + (1 | g)", 6, "unexpected '%'"),
    ("y ~ x == 3 + (1 | g)", 6, "unexpected '=='"),
    ("y ~ t.x + (1 | g)", 5, "unexpected '.'"),
    ("y ~ 'a' + (1 | g)", 4, "expected a term, found 'a'"),
    ("y ~ ? + (1 | g)", 4, "expected a term, found '?'"),
    ("y ~ x + 2 + (1 | g)", 8, "the number 2 is not a term; only 0 and 1 are"),
    ("y ~ x + 1.0 + (1 | g)", 8, "the number 1.0 is not a term; only 0 and 1 are"),
    ("y ~ x^z + (1 | g)", 6, "'^' in a formula needs a whole number; powers of a value are I(x^2)"),
    ("y ~ x^0 + (1 | g)", 6, "'^' in a formula needs a whole number"),
    ("y ~ x^1.5 + (1 | g)", 6, "'^' in a formula needs a whole number"),
    ("y ~ (x + z", 10, "expected ')' to close the parenthesis, found the end of the formula"),
    ("y ~ x + () + (1 | g)", 9, "expected a term, found ')'"),
    ("y ~ x + (1 | g))", 15, "unexpected ')'"),
    ("y ~ x + (1 | g", 14, "expected ')' after the group of a random term, found the end of the formula"),
    ("y ~ x + (1 |", 12, "expected the name of the grouping column"),
    ("y ~ x + (1 | )", 13, "expected the name of the grouping column"),
    ("y ~ x + (1 | 3)", 13, "expected the name of the grouping column"),
    ("y ~ x + (1 | g + h)", 15, "expected ')' after the group of a random term, found '+'"),
    ("y ~ x + (1 | t.g)", 14, "expected ')' after the group of a random term, found '.'"),
    ("y ~ x + ( | g)", 10, "expected a term, found '|'"),
    ("y ~ x + (0 | g)", 8, "a random term needs at least one coefficient"),
    ("y ~ x | g", 6, "unexpected '|'"),
    ("y ~ x + ((1 | g))", 12, "a random term cannot stand inside another parenthesis"),
    ("y ~ x*(1 | g)", 5, "a random term or an offset cannot be multiplied"),
    ("y ~ (1 | g):x", 11, "a random term or an offset cannot be multiplied"),
    ("y ~ x:offset(z) + (1 | g)", 5, "a random term or an offset cannot be multiplied"),
    ("y ~ log(x + (1 | g)", 4, "the parenthesis of log( is not closed"),
    ("y ~ `x + (1 | g)", 4, "a backtick is left open"),
    ("y ~ x + (1 | `g)", 13, "a backtick is left open"),
    ("y ~ CASE WHEN x THEN 1 END + (1 | g)", 9, "unexpected 'WHEN'"),
    ("y ~ x + (1 | a/)", 15, "expected the name of the grouping column"),
    ("y ~ x + (1 | a/(b:c))", 15, "'(b:c)' is no grouping factor: join the columns of one factor by ':'"),
    ("y ~ x + (1 | (a + b))", 13, "'(a + b)' is no grouping factor: join the columns of one factor by ':'"),
    ("y ~ x + (1 | (a + b)", 13, "'(a + b)' is no grouping factor"),
    ("y ~ x + (1 | (a/b", 13, "'(a/b' is no grouping factor"),
    ("y ~ x + (1 | a:a)", 15, "the grouping column a stands twice in one factor; name it once"),
    ("y ~ x + (1 | a/b/a)", 17, "the grouping column a stands twice in one factor; name it once"),
    ("y ~ x + (1 | group_mean(x))", 13, "group_mean() cannot name groups; give a column"),
    ("y ~ x + (1 | offset(x))", 13, "offset() cannot name groups; give a column"),
]


@pytest.mark.parametrize(("text", "position", "problem"), SYNTAX, ids=[s[0] for s in SYNTAX])
def test_position_and_caret(text: str, position: int, problem: str) -> None:
    with pytest.raises(mlsql.FormulaError) as caught:
        mlsql.parse_model(text)
    first, shown, caret = str(caught.value).splitlines()
    assert first.startswith(problem)
    assert first.endswith(f"(position {position + 1})")
    assert shown == "  " + text.replace("`", "`" if problem.startswith("a backtick") else '"')
    assert caret == "  " + " " * position + "^"


def test_the_caret_points_into_the_right_line() -> None:
    with pytest.raises(mlsql.FormulaError) as caught:
        mlsql.parse_model("y ~ x\n  + z @ w\n  + (1 | g)")
    assert str(caught.value).splitlines()[1:] == ["    + z @ w", "        ^"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("y ~ x", ["no random term", "(1 | group)"]),
        ("y ~ 0 + (1 | g)", ["the fixed part is empty", "keep at least the intercept"]),
        ("y ~ x + (1 | g) + (x | g)", ["random coefficient (Intercept) of g is given twice", "keep one"]),
        ("y ~ x + (x | g) + (0 + x | g)", ["random coefficient x of g is given twice"]),
        ("y ~ x + (a:b | g) + (0 + b:a | g)", ["given twice"]),
        ("y ~ y + (1 | g)", ["the outcome y is also a predictor"]),
        ("y ~ x + group_mean(y) + (1 | g)", ["the outcome y is also a predictor"]),
        ("y ~ x + (y | g)", ["the outcome y is also a predictor"]),
        ("log(y) ~ log(y) + (1 | g)", ["the outcome log(y) is also a predictor"]),
        ("y ~ g + (1 | g)", ["g is a grouping column and cannot also be a predictor"]),
        ("y ~ C(g) + (1 | g)", ["g is a grouping column and cannot also be a predictor"]),
        ("y ~ a + (1 | a:b)", ["a is a grouping column and cannot also be a predictor"]),
    ],
)
def test_models_that_make_no_sense(text: str, parts: list[str]) -> None:
    with pytest.raises(mlsql.FormulaError) as caught:
        mlsql.parse_model(text)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["y ~ x - (1 | g)", "y ~ x + (1 | g) - (0 + x | g)", "y ~ x - offset(z) + (1 | g)"])
def test_only_fixed_terms_can_be_taken_away(text: str) -> None:
    """A minus before a random term or an offset must not be read as a plus."""
    with pytest.raises(mlsql.FormulaError):
        mlsql.parse_model(text)


def test_an_open_double_quote() -> None:
    with pytest.raises(mlsql.FormulaError, match="is a quote left open"):
        mlsql.parse_model('y ~ "x + (1 | g)')


def test_a_double_quote_inside_backticks() -> None:
    with pytest.raises(mlsql.FormulaError, match="a name in backticks holds a double quote"):
        mlsql.parse_model('y ~ `a"b` + (1 | g)')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the model's text is empty"),
        ("   \n ", "the model's text is empty"),
        ("y x + (1 | g)", r"neither a formula \(it has no '~'\) nor an equation"),
        ("nonsense", r"neither a formula \(it has no '~'\) nor an equation"),
    ],
)
def test_text_that_is_no_model(text: str, problem: str) -> None:
    with pytest.raises(mlsql.FormulaError, match=problem):
        mlsql.parse_model(text)


@pytest.mark.parametrize("method", ["reml", "MLE", "", None])
def test_unknown_methods(method: object) -> None:
    with pytest.raises(mlsql.FormulaError, match="it is 'REML' or 'ML'"):
        mlsql.parse_model("y ~ x + (1 | g)", method=method)  # type: ignore[arg-type]


def test_groups_belong_to_equations() -> None:
    with pytest.raises(mlsql.FormulaError, match=r"groups='g' belongs to level equations"):
        mlsql.parse_model("y ~ x + (1 | g)", groups="g")


@pytest.mark.parametrize("text", [None, 3, ["y ~ x + (1 | g)"]])
def test_a_model_is_text(text: object) -> None:
    with pytest.raises(mlsql.MlsqlError):
        mlsql.fit(text, mlsql.example_data("hsb"))  # type: ignore[arg-type]
