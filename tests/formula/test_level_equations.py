"""Level equations of three and four levels: the same model as a formula, and errors that show the line."""

from __future__ import annotations

import pytest

import mlsql
from mlsql.formula.spec import ModelSpec

GROWTH = """
y = p0 + p1*year + e
p0 = b00 + b01*female + r0
p1 = b10 + r1
b00 = g000 + g001*size + u00
b01 = g010
b10 = g100 + u10
"""

SAME = [
    (GROWTH, "school/child", "y ~ female + size + year + (year | school/child)"),
    # coefficients without an equation are fixed: here b01 and b10
    (
        "y = p0 + p1*year + e\np0 = b00 + b01*female + r0\np1 = b10 + r1\nb00 = g000 + u00",
        "school/child",
        "y ~ female + year + (1 | school) + (year | school:child)",
    ),
    # random at level 3, not at level 2, and the reverse
    (
        "y = p0 + p1*year + e\np0 = b00 + r0\np1 = b10\nb00 = g000 + u00\nb10 = g100 + u10",
        "school/child",
        "y ~ year + (year | school) + (1 | school:child)",
    ),
    (
        "y = p0 + p1*year + e\np0 = b00 + r0\np1 = b10 + r1\nb00 = g000 + u00\nb10 = g100",
        "school/child",
        "y ~ year + (1 | school) + (year | school:child)",
    ),
    # the effect of a level-2 predictor varies between level-3 groups
    (
        "y = p0 + e\np0 = b00 + b01*female + r0\nb00 = g000 + u00\nb01 = g010 + g011*size + u01",
        "school/child",
        "y ~ female + size:female + (female | school) + (1 | school:child)",
    ),
    # three-way cross-level product
    (
        "y = p0 + p1*year + e\np0 = b00 + r0\np1 = b10 + b11*female + r1\nb00 = g000 + u00\nb10 = g100 + u10\n"
        "b11 = g110 + g111*size + u11",
        "school/child",
        "y ~ year + female:year + size:female:year + (1 + year + female:year | school) + (year | school:child)",
    ),
    # no intercept, no level-2 constant, products and calls as predictors
    (
        "y = p1*I(year - 1) + p2*a:b + e\np1 = b10 + b11*C(f, ref='m') + r1\np2 = r2\nb10 = u10",
        "s/c",
        "y ~ 0 + I(year - 1):C(f, ref='m') + (0 + I(year - 1) | s) + (0 + I(year - 1) + a:b | s:c)",
    ),
    # keys of two columns
    ("y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0", "country:school/child", "y ~ 1 + (1 | country:school/child)"),
    # four levels: r, u, v
    (
        "y = a0 + a1*t + e\na0 = p0 + p1*x + r0\na1 = p2 + r1\np0 = b0 + b1*w + u0\np2 = b2 + u2\nb0 = g0 + g1*z + v0\n"
        "b1 = g2 + v1\nb2 = g3",
        "district/school/child",
        "y ~ t + x + w + z + (1 + w | district) + (t | district:school) + (t | district:school:child)",
    ),
    # two levels take u, with any depth of keys
    ("y = b0 + r\nb0 = g00 + u0", "school:child", "y ~ 1 + (1 | school:child)"),
]


def content(spec: ModelSpec) -> tuple[object, ...]:
    """What a model is, but for the order in which it was written."""
    random = {f.name: [frozenset(spec.random[i].terms) for i in f.blocks] for f in spec.factors}
    return spec.outcome, frozenset(spec.fixed), random


@pytest.mark.parametrize(("equations", "groups", "formula"), SAME, ids=[s[2] for s in SAME])
def test_equations_are_the_same_model_as_the_formula(equations: str, groups: str, formula: str) -> None:
    spec = mlsql.parse_model(equations, groups=groups)
    assert content(spec) == content(mlsql.parse_model(formula))
    assert mlsql.parse_model(spec.formula) == spec


def test_coarse_factors_come_first() -> None:
    spec = mlsql.parse_model(GROWTH, groups="school/child")
    assert spec.formula == "y ~ 1 + size + female + year + (1 + year | school) + (1 + year | school:child)"
    assert [f.name for f in spec.factors] == ["school", "school:child"]


def test_equations_in_any_order() -> None:
    first, *rest = GROWTH.strip().splitlines()
    turned = "\n".join([first, *reversed(rest)])
    assert mlsql.parse_model(turned, groups="school/child") == mlsql.parse_model(GROWTH, groups="school/child")


def test_centring_names_its_factor() -> None:
    text = "y = p0 + p1*group_center(x, {}) + e\np0 = b0 + r0\np1 = b1 + r1\nb0 = g0 + u0"
    spec = mlsql.parse_model(text.format("school:child"), groups="school/child")
    assert spec.fixed[1].atoms[0].group == "school:child"
    with pytest.raises(mlsql.FormulaError, match="the group 'child' is none of the model's groups"):
        mlsql.parse_model(text.format("child"), groups="school/child")


@pytest.mark.parametrize("residual", ["e", "r", "eps", "e_tij", "eijk", "epsilon_ijk"])
def test_names_of_the_residual(residual: str) -> None:
    text = f"y = p0 + {residual}\np0 = b0 + r0\nb0 = g0 + u0"
    assert mlsql.parse_model(text, groups="a/b") == mlsql.parse_model("y ~ 1 + (1 | a/b)")


WRONG = [
    # the equations have more levels than the groups, or fewer
    (
        "y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0",
        "school",
        ["'p0 = b0 + r0': b0 has an equation of its own, which makes 3 levels", "groups='school/child'"],
    ),
    (
        "y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0\ng0 = h0 + v0",
        "school/child",
        ["'b0 = g0 + u0': g0 has an equation of its own, which makes 4 levels, but groups='school/child' names"],
    ),
    ("y = p0 + e\np0 = b0 + r0", "school/child", ["names the groups school", "no equation has a random effect", "u0"]),
    (
        "y = p0 + e\np0 = b0\nb0 = g0 + u0",
        "school/child",
        ["names the groups school:child", "no equation has a random effect of theirs, such as r0"],
    ),
    # letters
    (
        "y = p0 + e\np0 = b0 + u0\nb0 = g0 + u1",
        "school/child",
        ["'p0 = b0 + u0' is an equation of level 2", "start with r", "u0 starts with u, the letter of level 3"],
    ),
    (
        "y = p0 + e\np0 = b0 + r0\nb0 = g0 + r1",
        "school/child",
        ["'b0 = g0 + r1' is an equation of level 3", "start with u", "r1 starts with r, the letter of level 2"],
    ),
    ("y = p0 + r0\np0 = b0 + r1\nb0 = g0 + u0", "school/child", ["'y = p0 + r0'", "one residual called r or e"]),
    (
        "y = p0 + e\np0 = b0 + r0 + r1\nb0 = g0 + u0",
        "school/child",
        ["'p0 = b0 + r0 + r1'", "one constant, one r at most"],
    ),
    (
        "y = p0 + e\np0 = b0 + r0\nb0 = g0 + g1 + u0",
        "school/child",
        ["'b0 = g0 + g1 + u0'", "one constant, one u at most"],
    ),
    # equations and symbols
    ("y = p0 + p1*x + e\np0 = b0 + r0\nb0 = g0 + u0", "school/child", ["no equation for p1", "'p1 = g10 + r1'"]),
    (
        "y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0\nb1 = g1 + u1",
        "school/child",
        ["the equation of b1 belongs to no coefficient of 'y = p0 + e' nor of the equations below it"],
    ),
    ("y = p0 + e\np0 = b0 + r0\nb0 = p0 + u0", "school/child", ["the symbol p0 stands in two places"]),
    ("y = p0 + e\np0 = b0 + r0\nb0 = b0 + u0", "school/child", ["the symbol b0 stands in two places"]),
    (
        "y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0\nb1 = b2 + u1\nb2 = b1 + u2",
        "a/b",
        ["the equation of b1, b2 belongs to no coefficient"],
    ),
    ("y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0\nb0 = g1 + u1", "school/child", ["b0 has two equations"]),
    (
        "y = p0 + p1*x + e\np0 = b0 + b1*w + r0\np1 = b2 + r1\nb0 = g0 + g1*w + u0",
        "school/child",
        ["b1 and g1 are both the coefficient of w"],
    ),
    ("y = p0 + e\np0 = b0 + r0\nb0 - u0", "school/child", ["'b0 - u0' is not an equation 'name = sum'"]),
    # groups
    ("y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0", "a/b/c/d", ["makes 5 levels", "at most 4", "write a formula"]),
    ("y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0", "a + b", ["groups='a + b' is no grouping column", "'school/child'"]),
    ("y = p0 + e\np0 = b0 + r0\nb0 = g0 + u0", "a/a", ["the grouping column a stands twice"]),
]


@pytest.mark.parametrize(("equations", "groups", "parts"), WRONG)
def test_equations_that_make_no_sense(equations: str, groups: str, parts: list[str]) -> None:
    with pytest.raises(mlsql.FormulaError) as caught:
        mlsql.parse_model(equations, groups=groups)
    for part in parts:
        assert part in str(caught.value)
