"""Level equations, as HLM users write them: the same model as a formula, printed back, and errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from polars.testing import assert_frame_equal

import mlsql
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import Atom

SAME = [
    ("y = b0 + r\nb0 = g00 + u0", "g", "y ~ 1 + (1 | g)"),
    ("y = b0 + b1*x + r\nb0 = g00 + u0\nb1 = g10", "g", "y ~ x + (1 | g)"),
    ("y = b0 + b1*x + r\nb0 = g00 + u0\nb1 = g10 + u1", "g", "y ~ x + (x | g)"),
    ("y = b0 + r\nb0 = g00 + g01*w + u0", "g", "y ~ w + (1 | g)"),
    ("y = b0 + b1*x + r\nb0 = g00 + g01*w + u0\nb1 = g10 + g11*w + u1", "g", "y ~ w*x + (x | g)"),
    ("y = b0 + b1*x + r\nb0 = g00 + u0\nb1 = g10 + g11*w", "g", "y ~ x + w:x + (1 | g)"),
    ("y = b0 + b1*x + r\nb0 = g00\nb1 = g10 + u1", "g", "y ~ x + (0 + x | g)"),
    ("y = b0 + b1*x + r\nb0 = g00 + u0\nb1 = u1", "g", "y ~ 1 + (x | g)"),
    ("y = b1*x + r\nb1 = g10 + u1", "g", "y ~ 0 + x + (0 + x | g)"),
    ("y = b0 + b1*x*z + r\nb0 = g00 + u0\nb1 = g10", "g", "y ~ x:z + (1 | g)"),
    ("y = b0 + b1*x:z + r\nb0 = g00 + u0\nb1 = g10", "g", "y ~ x:z + (1 | g)"),
    ("y = b0 + b1*I(x^2) + r\nb0 = g00 + u0\nb1 = g10", "g", "y ~ I(x^2) + (1 | g)"),
    ("y = b0 + b1*log(x + 1) + r\nb0 = g00 + u0\nb1 = g10", "g", "y ~ log(x + 1) + (1 | g)"),
    ("y = b0 + b1*C(f, ref='b') + r\nb0 = g00 + u0\nb1 = g10", "g", "y ~ C(f, ref='b') + (1 | g)"),
    ("y = b0 + b1*`my x` + r\nb0 = g00 + u0\nb1 = g10", "`my g`", "y ~ `my x` + (1 | `my g`)"),
    ("log(y) = b0 + r\nb0 = g00 + u0", "g", "log(y) ~ 1 + (1 | g)"),
    ("y = b0 + r\nb0 = g00 + u0", "country:school", "y ~ 1 + (1 | country:school)"),
    ("# a comment\n\n  y = b0 + r_ij  \n\n  b0 = g00 + u0j\n", "g", "y ~ 1 + (1 | g)"),
    ("y = b0 + b1*x + e\nb1 = g10 + u1\nb0 = g00 + u0", "g", "y ~ x + (x | g)"),
    ("y = beta0 + beta1*x + e\nbeta0 = gamma00 + u0\nbeta1 = gamma10", "g", "y ~ x + (1 | g)"),
    (
        "mathach = b0 + b1*group_center(ses) + r\n"
        "b0 = g00 + g01*sector + g02*meanses + u0\n"
        "b1 = g10 + g11*sector + g12*meanses + u1",
        "school",
        "mathach ~ sector + meanses + group_center(ses) + sector:group_center(ses) + meanses:group_center(ses) "
        "+ (group_center(ses) | school)",
    ),
]


def content(spec: ModelSpec) -> tuple[Atom, Counter[frozenset[Atom]], list[list[frozenset[Atom]]], tuple[Atom, ...]]:
    """What a model is, but for the order in which it was written."""
    fixed = Counter(frozenset(t.atoms) for t in spec.fixed)
    return spec.outcome, fixed, [[frozenset(t.atoms) for t in b.terms] for b in spec.random], spec.keys


@pytest.mark.parametrize(("equations", "groups", "formula"), SAME, ids=[s[2] for s in SAME])
def test_equations_are_the_same_model_as_the_formula(equations: str, groups: str, formula: str) -> None:
    assert content(mlsql.parse_model(equations, groups=groups)) == content(mlsql.parse_model(formula))


def test_in_the_order_of_the_equations_specs_are_equal() -> None:
    equations = SAME[-1][0]
    assert mlsql.parse_model(equations, groups="school", method="ML") == replace(
        mlsql.parse_model(SAME[-1][2]), method="ML"
    )


def test_equations_and_formula_fit_alike() -> None:
    equations, groups, formula = SAME[-1]
    first = mlsql.fit(equations, mlsql.example_data("hsb"), groups=groups)
    second = mlsql.fit(formula, mlsql.example_data("hsb"))
    # to rounding: the same sums
    assert first.deviance == pytest.approx(second.deviance, rel=1e-11)
    assert_frame_equal(first.fixed_effects, second.fixed_effects)
    assert first.equations() == second.equations()


def test_printed_equations() -> None:
    spec = mlsql.parse_model(
        "mathach ~ sector*group_center(ses) + meanses*group_center(ses) + (group_center(ses) | school)"
    )
    assert mlsql.level_equations(spec, ["sector", "meanses"]) == (
        "Level-1 model\n"
        "    mathach = b0 + b1*group_center(ses) + r\n"
        "Level-2 model (groups: school)\n"
        "    b0 = g00 + g01*sector + g02*meanses + u0\n"
        "    b1 = g10 + g11*sector + g12*meanses + u1\n"
        "Mixed model\n"
        "    mathach = g00 + g01*sector + g02*meanses + g10*group_center(ses) + g11*sector*group_center(ses) "
        "+ g12*meanses*group_center(ses) + u0 + u1*group_center(ses) + r"
    )


PRINTED = [
    (
        "y ~ 1 + (1 | g)",
        [],
        ["y = b0 + r", "b0 = g00 + u0", "y = g00 + u0 + r"],
    ),
    (
        "y ~ x + (1 | g)",
        [],
        ["y = b0 + b1*x + r", "b0 = g00 + u0", "b1 = g10", "y = g00 + g10*x + u0 + r"],
    ),
    (
        "y ~ w + (x | g)",
        ["w"],
        ["y = b0 + b1*x + r", "b0 = g00 + g01*w + u0", "b1 = u1", "y = g00 + g01*w + u0 + u1*x + r"],
    ),
    (
        "y ~ 0 + x + w:x + (x || g)",
        ["w"],
        ["y = b0 + b1*x + r", "b0 = u0", "b1 = g10 + g11*w + u1", "y = g10*x + g11*w*x + u0 + u1*x + r"],
    ),
    (
        "y ~ group_mean(x)*z + offset(o) + (1 | a:b)",
        [],
        [
            "y = b0 + b1*z + offset(o) + r",
            "b0 = g00 + g01*group_mean(x) + u0",
            "b1 = g10 + g11*group_mean(x)",
            "y = g00 + g01*group_mean(x) + g10*z + g11*group_mean(x)*z + u0 + offset(o) + r",
        ],
    ),
    (
        "y ~ x*z + (1 | g)",
        [],
        [
            "y = b0 + b1*x + b2*z + b3*x:z + r",
            "b0 = g00 + u0",
            "b1 = g10",
            "b2 = g20",
            "b3 = g30",
            "y = g00 + g10*x + g20*z + g30*x:z + u0 + r",
        ],
    ),
]


@pytest.mark.parametrize(("formula", "level2", "lines"), PRINTED, ids=[p[0] for p in PRINTED])
def test_printed_level_by_level(formula: str, level2: list[str], lines: list[str]) -> None:
    text = mlsql.level_equations(mlsql.parse_model(formula), level2).splitlines()
    headings = [line for line in text if not line.startswith(" ")]
    assert headings[0] == "Level-1 model"
    assert headings[1].startswith("Level-2 model (groups: ")
    assert headings[2] == "Mixed model"
    assert [line.strip() for line in text if line.startswith("    ")] == lines


def test_a_fit_knows_what_is_level_2() -> None:
    fitted = mlsql.fit("mathach ~ sector*ses + (ses | school)", mlsql.example_data("hsb"))
    assert "    b1 = g10 + g11*sector + u1" in fitted.equations().splitlines()


def test_printed_equations_can_be_read_again() -> None:
    spec = mlsql.parse_model("y ~ w*x + v + (x | g)")
    printed = mlsql.level_equations(spec, ["w", "v"]).splitlines()
    equations = [line for line in printed[: printed.index("Mixed model")] if line.startswith(" ")]
    assert content(mlsql.parse_model("\n".join(equations), groups="g")) == content(spec)


WRONG = [
    ("y = b0 + r\nb0 = g00 + u0", None, "do not name their groups; pass groups='school'"),
    ("y = b0 + b1*x + r\nb0 = g00 + u0", "g", "no equation for b1; write for instance 'b1 = g10 \\+ u1'"),
    ("y = b0 + r\nb0 = g00 + u0\nb2 = g20", "g", "the equation of b2 belongs to no coefficient of 'y = b0 \\+ r'"),
    ("y = b0 + b1*x + b1*z + r\nb0 = g00\nb1 = g10 + u1", "g", "the coefficient b1 is used twice"),
    ("y = b0 + r\nb0 = g00 + g01*w + g01*v + u0", "g", "the coefficient g01 is used twice"),
    ("y = b0 + q\nb0 = g00 + u0", "g", "one residual called r or e; found q"),
    ("y = b0 + r + e\nb0 = g00 + u0", "g", "one residual called r or e"),
    ("y = b0 - b1*x + r\nb0 = g00 + u0\nb1 = g10", "g", "expected a coefficient or coefficient\\*predictor"),
    ("y = b0 + 2*x + r\nb0 = g00 + u0", "g", "expected a coefficient or coefficient\\*predictor, found '2\\*x'"),
    ("y = b0 + + r\nb0 = g00 + u0", "g", "a '\\+' has nothing on one side"),
    ("y =\nb0 = g00 + u0", "g", "is not an equation 'name = sum'"),
    ("y = b0 + r\nb0", "g", "is not an equation 'name = sum'"),
    ("y = b0 + r\nb0 = g00 + u0 + u1", "g", "one constant, one u at most"),
    ("y = b0 + r\nb0 = g00 + h0 + u0", "g", "one constant, one u at most"),
    ("y = b0 + b1* + r\nb0 = g00 + u0\nb1 = g10", "g", "is not one predictor; write one coefficient for each"),
    ("y = b0 + b1*(x + z) + r\nb0 = g00 + u0\nb1 = g10", "g", "'\\(x \\+ z\\)' is not one predictor"),
    ("y = b0 + b1*offset(z) + r\nb0 = g00 + u0\nb1 = g10", "g", "is not one predictor"),
    ("y = b0 + r\nb0 = u0", "g", "the fixed part is empty"),
    ("y = b0 + b1*x + r\nb0 = g00\nb1 = g10", "g", "no random term"),
    ("y = b0 + r\nb0 = g00 + u0", "a/b", "equation of level 2, whose random effects start with r; u0"),
    ("y = b0 + r\nb0 = g00 + u0", "", "expected the name of the grouping column"),
    # a second equation must not silently replace the first
    ("y = b0 + r\nb0 = g00 + u0\nb0 = g00 + g01*w + u0", "g", "b0"),
    # nor may one predictor have two coefficients
    ("y = b0 + r\nb0 = g00 + g01*w + g02*w + u0", "g", "w"),
    ("y = b0 + b1*x + b2*x + r\nb0 = g00 + u0\nb1 = g10\nb2 = g20", "g", "x"),
    # nor is text smuggled into the group taken for a group
    ("y = b0 + r\nb0 = g00 + u0", "a) + (1 | b", "group"),
]


@pytest.mark.parametrize(("equations", "groups", "problem"), WRONG)
def test_equations_that_make_no_sense(equations: str, groups: str | None, problem: str) -> None:
    with pytest.raises(mlsql.FormulaError, match=problem):
        mlsql.parse_model(equations, groups=groups)
