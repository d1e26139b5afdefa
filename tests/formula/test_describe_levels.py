"""Models of several grouping factors, printed level by level, mixed and with their distributions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import mlsql
from mlsql.formula.describe_levels import many_level_equations
from mlsql.formula.spec import ModelSpec

CHAIN = ("school:child", "school")
CONSTANT = {"school:child": frozenset({"female", "size"}), "school": frozenset({"size"})}


def lines(formula: str, constant: Mapping[str, frozenset[str]] = CONSTANT, chain: tuple[str, ...] = CHAIN) -> list[str]:
    text = many_level_equations(mlsql.parse_model(formula), constant, chain)
    return [line.strip() for line in text.splitlines()]


def test_growth_in_the_notation_of_three_levels() -> None:
    spec = mlsql.parse_model("math ~ female + size + year + female:year + size:female:year + (year | school/child)")
    assert many_level_equations(spec, CONSTANT, CHAIN) == (
        "Level-1 model\n"
        "    math = p0 + p1*year + e\n"
        "Level-2 model (groups: school:child)\n"
        "    p0 = b00 + b01*female + r0\n"
        "    p1 = b10 + b11*female + r1\n"
        "Level-3 model (groups: school)\n"
        "    b00 = g000 + g001*size + u00\n"
        "    b01 = g010\n"
        "    b10 = g100 + u10\n"
        "    b11 = g110 + g111*size\n"
        "Mixed model\n"
        "    math = g000 + g001*size + g010*female + g100*year + g110*female*year + g111*size*female*year "
        "+ u00 + u10*year + r0 + r1*year + e\n"
        "Distributions\n"
        "    e ~ N(0, sigma2)\n"
        "    (r0, r1) ~ N(0, T_school:child)\n"
        "    (u00, u10) ~ N(0, T_school)"
    )


NESTED = [
    (
        "y ~ 1 + (1 | school/child)",
        ["y = p0 + e", "p0 = b00 + r0", "b00 = g000 + u00", "y = g000 + u00 + r0 + e"],
    ),
    # random at level 3 but not at level 2, and the effect of a level-2 predictor random at level 3
    (
        "y ~ female + year + (year + female | school) + (1 | school:child)",
        ["p1 = b10", "b01 = g010 + u01", "b10 = g100 + u10", "(u00, u10, u01) ~ N(0, T_school)"],
    ),
    # random without a fixed part
    (
        "y ~ 1 + (year | school:child) + (1 | school)",
        ["y = p0 + p1*year + e", "p1 = r1", "y = g000 + u00 + r0 + r1*year + e"],
    ),
    # independent blocks
    (
        "y ~ year + (year || school/child)",
        [
            "(r0, r1) ~ N(0, T_school:child), r0 and r1 independent",
            "(u00, u10) ~ N(0, T_school), u00 and u10 independent",
        ],
    ),
    # no intercept: 0 stays free for it
    ("y ~ 0 + year + (0 + year | school/child)", ["y = p1*year + e", "p1 = b10 + r1", "b10 = g100 + u10"]),
    # a group mean belongs to the level of its group
    (
        "y ~ group_mean(x, school) + group_mean(x, school:child) + group_center(x, school:child) + (1 | school/child)",
        [
            "y = p0 + p1*group_center(x, school:child) + e",
            "p0 = b00 + b01*group_mean(x, school:child) + r0",
            "b00 = g000 + g001*group_mean(x, school) + u00",
        ],
    ),
    # the effect of what is constant in the groups themselves
    (
        "y ~ size + (size | school) + (1 | school:child)",
        ["p0 = b00 + b01*size + r0", "b00 = g000 + g001*size + u00", "b01 = u01"],
    ),
    (
        "y ~ year*z + offset(o) + (1 | school/child)",
        ["y = p0 + p1*year + p2*z + p3*year:z + offset(o) + e", "p3 = b30", "b30 = g300"],
    ),
]


@pytest.mark.parametrize(("formula", "expected"), NESTED, ids=[n[0] for n in NESTED])
def test_nested(formula: str, expected: list[str]) -> None:
    found = lines(formula)
    assert [line for line in expected if line not in found] == []


def content(spec: ModelSpec) -> tuple[object, ...]:
    """What a model is, but for the order in which it was written."""
    random = {f.name: [frozenset(spec.random[i].terms) for i in f.blocks] for f in spec.factors}
    return spec.outcome, frozenset(spec.fixed), random


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ 1 + (1 | school/child)",
        "y ~ female*year*size + (year | school/child)",
        "y ~ female + year + size:female + (year + female | school) + (1 | school:child)",
        "y ~ size + (size | school) + (1 | school:child)",
        "y ~ 1 + (year | school:child) + (1 | school)",
        "y ~ 0 + year + female:year + (0 + year | school/child)",
        "y ~ a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11 + female:a11 + female:a1 + (a10 | school/child)",
    ],
)
def test_printed_equations_can_be_read_again(formula: str) -> None:
    spec = mlsql.parse_model(formula)
    printed = many_level_equations(spec, CONSTANT, CHAIN).splitlines()
    equations = [line for line in printed[: printed.index("Mixed model")] if line.startswith(" ")]
    assert content(mlsql.parse_model("\n".join(equations), groups="school/child")) == content(spec)


def test_four_levels() -> None:
    spec = mlsql.parse_model("y ~ x*w + (x | a/b/c)")
    text = many_level_equations(spec, {"a": frozenset({"w"})}, ("a:b:c", "a:b", "a"))
    printed = text.splitlines()
    assert "Level-4 model (groups: a)" in printed
    assert "    b000 = g0000 + g0001*w + v000" in printed
    assert "    y = g0000 + g0001*w + g1000*x + g1001*w*x + v000 + v100*x + u00 + u10*x + r0 + r1*x + e" in printed
    equations = [line for line in printed[: printed.index("Mixed model")] if line.startswith(" ")]
    assert content(mlsql.parse_model("\n".join(equations), groups="a/b/c")) == content(spec)


def test_five_levels_number_their_letters() -> None:
    found = lines("y ~ 1 + (1 | a/b/c/d)", {}, ("a:b:c:d", "a:b:c", "a:b", "a"))
    assert "y = c1_0 + e" in found
    assert "c4_0000 = c5_00000 + u5_0000" in found


def test_more_than_nine_predictors_keep_their_numbers_apart() -> None:
    formula = "y ~ " + " + ".join(f"a{i}" for i in range(1, 12)) + " + (1 | school/child)"
    found = lines(formula)
    assert "p11 = b11_0" in found
    assert "b1_0 = g1_0_0" in found


def test_crossed_in_the_notation_of_rows_and_columns() -> None:
    spec = mlsql.parse_model("diameter ~ 1 + (1 | plate) + (1 | sample)")
    assert many_level_equations(spec, {}, ()) == (
        "Level-1 model\n"
        "    diameter = p0 + e\n"
        "Level-2 model (groups: plate, sample)\n"
        "    p0 = g00 + b_0[plate] + c_0[sample]\n"
        "Mixed model\n"
        "    diameter = g00 + b_0[plate] + c_0[sample] + e\n"
        "Distributions\n"
        "    e ~ N(0, sigma2)\n"
        "    b_0[plate] ~ N(0, T_plate)\n"
        "    c_0[sample] ~ N(0, T_sample)"
    )


CROSSED = {"row": frozenset({"w"}), "col": frozenset({"x"}), "row:col": frozenset({"w", "x", "z"})}


def test_crossed_with_predictors_of_rows_columns_and_cells() -> None:
    """The combined model of rows (W), columns (X) and cells (Z), with slopes of each kind."""
    found = lines("y ~ a*w*x + z + (a + x | row) + (a || col) + (1 | row:col)", CROSSED, ())
    assert found == [
        "Level-1 model",
        "y = p0 + p1*a + e",
        "Level-2 model (groups: row, col, row:col)",
        "p0 = g00 + g01*w + g02*x + g03*z + g04*w:x + b_0[row] + b_02[row]*x + c_0[col] + d_0[row:col]",
        "p1 = g10 + g11*w + g12*x + g13*w:x + b_1[row] + c_1[col]",
        "Mixed model",
        "y = g00 + g01*w + g02*x + g03*z + g04*w:x + g10*a + g11*w*a + g12*x*a + g13*w:x*a "
        "+ b_0[row] + b_1[row]*a + b_02[row]*x + c_0[col] + c_1[col]*a + d_0[row:col] + e",
        "Distributions",
        "e ~ N(0, sigma2)",
        "(b_0[row], b_1[row], b_02[row]) ~ N(0, T_row)",
        "(c_0[col], c_1[col]) ~ N(0, T_col), c_0[col] and c_1[col] independent",
        "d_0[row:col] ~ N(0, T_row:col)",
    ]


def test_a_random_slope_without_a_fixed_one() -> None:
    found = lines("y ~ 1 + (a | row) + (1 | col)", CROSSED, ())
    assert "p1 = b_1[row]" in found
    assert "y = g00 + b_0[row] + b_1[row]*a + c_0[col] + e" in found


@pytest.mark.parametrize(("weights", "variance"), [("w", "sigma2/w"), ("w + 1", "sigma2/(w + 1)")])
def test_precision_weights_divide_the_residual_variance(weights: str, variance: str) -> None:
    spec = mlsql.parse_model("y ~ 1 + (1 | a/b)", weights=weights)
    for chain in ((), ("a:b", "a")):
        assert f"    e ~ N(0, {variance})" in many_level_equations(spec, {}, chain).splitlines()


def test_one_factor_is_printed_as_two_levels() -> None:
    spec = mlsql.parse_model("y ~ w*x + (x | g)")
    assert many_level_equations(spec, {"g": frozenset({"w"})}, ("g",)) == mlsql.level_equations(spec, ["w"])


def test_two_level_equations_are_for_one_factor() -> None:
    with pytest.raises(mlsql.FormulaError, match=r"2 grouping factors \(a, a:b\)"):
        mlsql.level_equations(mlsql.parse_model("y ~ 1 + (1 | a/b)"))
