"""`spec.formula`: the model as text, and the same model from that text."""

from __future__ import annotations

from dataclasses import replace

import pytest

import mlsql

WRITTEN = {
    "y ~ x + (1 | g)": "y ~ 1 + x + (1 | g)",
    "y ~ 0 + x + (0 + x | g)": "y ~ 0 + x + (0 + x | g)",
    "y ~ x*z + (x | g)": "y ~ 1 + x + z + x:z + (1 + x | g)",
    "y ~ x + (x || g)": "y ~ 1 + x + (1 | g) + (0 + x | g)",
    "y ~ x + (1 | a:b)": "y ~ 1 + x + (1 | a:b)",
    "`my y` ~ `my x` + (1 | `my g`)": '"my y" ~ 1 + "my x" + (1 | "my g")',
    "y ~ C(x) + C(z, ref='b') + (1 | g)": "y ~ 1 + C(x) + C(z, ref='b') + (1 | g)",
    "y ~ offset(z) + x + (1 | g)": "y ~ 1 + x + offset(z) + (1 | g)",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_the_text(text: str) -> None:
    assert mlsql.parse_model(text).formula == WRITTEN[text]


MODELS = [
    *WRITTEN,
    "y ~ (a + b + c)^2 - a:b + (a*b | g)",
    "y ~ a/b + (1 | g)",
    "log(y) ~ log(x) + I(x^2) + (log(x) | g)",
    "I(y / 2) ~ I(CASE WHEN s = 'it''s' THEN 1 ELSE 0 END) + (1 | g)",
    "y ~ group_center(x) + group_mean(x) + grand_center(group_mean(x)) + (group_center(x) | g)",
    "y ~ group_center(x, g)*grand_center(z) + (1 | g)",
    "y ~ group_center(C(f, ref='b')) + C(`my f`) + C(`my f`):x + (C(f, ref='b') | g)",
    'y ~ "a ""b"" c" + "it\'s" + `a+b` + (1 | "x""y")',
    "y ~ order + select:group + (order | table)",
    "y ~ größe + 日本 + (1 | g)",
    "y ~ I(x\n * 2) + (1 | g)",
    "y ~ C(I(x // 10)) + C(upper(s)) + (1 | g)",
    "y ~ x + (1 | I(g + 1))",
    # an offset is written as the user wrote it, not as SQL
    "y ~ offset(log(z)) + x + (1 | g)",
    "y ~ offset(I(z + 1)) + x + (1 | g)",
]


@pytest.mark.parametrize("text", MODELS)
def test_parsing_the_text_gives_the_spec(text: str) -> None:
    spec = mlsql.parse_model(text)
    again = mlsql.parse_model(spec.formula)
    assert again == spec
    assert again.formula == spec.formula


def test_a_product_is_equal_up_to_order() -> None:
    """R names `b:a + a` by the order of appearance, `b:a`; written with main effects first it appears as `a:b`."""
    spec = mlsql.parse_model("y ~ b:a + a + (1 | g)")
    assert [t.name for t in spec.fixed] == ["(Intercept)", "a", "b:a"]
    assert mlsql.parse_model(spec.formula) == spec


def test_equations_round_trip_through_the_formula() -> None:
    spec = mlsql.parse_model(
        "y = b0 + b1*x + r\nb0 = g00 + g01*w + u0\nb1 = g10 + g11*w + u1", groups="a:b", method="ML", weights="w1"
    )
    assert replace(mlsql.parse_model(spec.formula), method=spec.method, weights=spec.weights) == spec


def test_a_spec_can_be_fitted() -> None:
    spec = mlsql.parse_model("mathach ~ ses + (1 | school)", method="ML")
    by_text = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"), method="ML")
    assert mlsql.fit(spec, mlsql.example_data("hsb")).deviance == pytest.approx(by_text.deviance, rel=1e-11)


@pytest.mark.parametrize("extra", [{"weights": "w"}, {"groups": "school"}, {"method": "ML"}])
def test_a_spec_carries_its_own_settings(extra: dict[str, str]) -> None:
    spec = mlsql.parse_model("mathach ~ ses + (1 | school)")
    with pytest.raises(mlsql.FormulaError, match="carries its own method, weights and groups"):
        mlsql.fit(spec, mlsql.example_data("hsb"), **extra)  # type: ignore[arg-type]
