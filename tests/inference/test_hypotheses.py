"""Hypotheses as text: every name that a formula can produce, fractions, constants on either side; and matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlsql
from mlsql.inference.hypotheses import describe, make_hypothesis

NAMES = (
    "(Intercept)",
    "ses",
    "sector",
    "sector:ses",
    "group_center(ses)",
    "sector:group_center(ses)",
    "sex[M]",
    "I(age - 40)",
    "sex[M]:I(age - 40)",
    "round(age, 2)",
    "C(race, ref='a = b')[c, d]",
    "a",
    "ab",
    "a_b",
    "I(a + ab)",
    "I(a = 2)",
    "group_mean(a)",
    "e5",
)

Weights = dict[str, float]

# text, weights by name, value
READ: list[tuple[str, Weights, float]] = [
    ("sector", {"sector": 1}, 0),
    ("sector = 0", {"sector": 1}, 0),
    ("sector=0", {"sector": 1}, 0),
    ("  sector\t=\n0 ", {"sector": 1}, 0),
    ("-sector", {"sector": -1}, 0),
    ("+ sector", {"sector": 1}, 0),
    ("ses + sector:ses = 2", {"ses": 1, "sector:ses": 1}, 2),
    ("ses = sector", {"ses": 1, "sector": -1}, 0),
    ("0 = ses", {"ses": -1}, 0),
    ("1 = ses + 2", {"ses": -1}, 1),
    ("ses - 1 = 2 + 3", {"ses": 1}, 6),
    ("ses + 1 = 1", {"ses": 1}, 0),
    ("ses = -2.5", {"ses": 1}, -2.5),
    ("2*ses - 3 * sector = ses", {"ses": 1, "sector": -3}, 0),
    ("2 ses + .5 sector = 1e-3", {"ses": 2, "sector": 0.5}, 1e-3),
    ("1.5e1*ses", {"ses": 15}, 0),
    ("ses/4 - sector / 2 = 0", {"ses": 0.25, "sector": -0.5}, 0),
    ("3*ses/4", {"ses": 0.75}, 0),
    ("1/2*ses - 1/4 * sector = 0", {"ses": 0.5, "sector": -0.25}, 0),
    ("ses = 1/3", {"ses": 1}, 1 / 3),
    ("ses + ses = sector - sector", {"ses": 2}, 0),
    ("(Intercept) - 40*I(age - 40) = 0", {"(Intercept)": 1, "I(age - 40)": -40}, 0),
    ("2(Intercept)", {"(Intercept)": 2}, 0),
    ("sex[M]:I(age - 40)", {"sex[M]:I(age - 40)": 1}, 0),
    ("sex[M]-I(age - 40)", {"sex[M]": 1, "I(age - 40)": -1}, 0),
    ("group_center(ses) = ses", {"group_center(ses)": 1, "ses": -1}, 0),
    ("sector:group_center(ses) - sector", {"sector:group_center(ses)": 1, "sector": -1}, 0),
    ("round(age, 2) = a", {"round(age, 2)": 1, "a": -1}, 0),
    ("C(race, ref='a = b')[c, d] = 1", {"C(race, ref='a = b')[c, d]": 1}, 1),
    ("C(race, ref='a = b')[c, d]", {"C(race, ref='a = b')[c, d]": 1}, 0),
    ("a + ab - a_b = I(a + ab)", {"a": 1, "ab": 1, "a_b": -1, "I(a + ab)": -1}, 0),
    ("I(a = 2)", {"I(a = 2)": 1}, 0),
    ("group_mean(a) = a", {"group_mean(a)": 1, "a": -1}, 0),
    ("1 e5 = 1e5", {"e5": 1}, 1e5),
    ("2*e5", {"e5": 2}, 0),
]


def row(weights: Weights) -> list[float]:
    return [weights.get(name, 0.0) for name in NAMES]


@pytest.mark.parametrize(("text", "weights", "value"), READ, ids=[text for text, _, _ in READ])
def test_one_equation(text: str, weights: Weights, value: float) -> None:
    found = make_hypothesis(text, NAMES)
    assert found.contrasts.tolist() == [row(weights)]
    assert found.values.tolist() == [pytest.approx(value, abs=0)]
    # a name alone says what it stands for
    (label,) = found.labels
    again = make_hypothesis(label, NAMES)
    assert again.contrasts.tolist() == found.contrasts.tolist()
    assert again.values.tolist() == found.values.tolist()
    stripped = text.strip()
    assert label in (stripped, f"{stripped} = 0")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_alone_is_labelled_as_an_equation(name: str) -> None:
    assert make_hypothesis(name, NAMES).labels == (f"{name} = 0",)


@pytest.mark.parametrize(
    "given_",
    [
        "ses, sector = 1",
        "ses = 0, sector = 1,",
        ["ses", "sector = 1"],
        ("ses", "sector = 1"),
        ["ses, sector = 1"],
    ],
)
def test_several_equations(given_: Any) -> None:
    found = make_hypothesis(given_, NAMES)
    assert found.contrasts.tolist() == [row({"ses": 1}), row({"sector": 1})]
    assert found.values.tolist() == [0, 1]
    assert [label.split(" = ")[0] for label in found.labels] == ["ses", "sector"]


def test_commas_inside_names_do_not_part() -> None:
    found = make_hypothesis("round(age, 2), C(race, ref='a = b')[c, d] = 3, a", NAMES)
    assert found.contrasts.tolist() == [
        row({"round(age, 2)": 1}),
        row({"C(race, ref='a = b')[c, d]": 1}),
        row({"a": 1}),
    ]
    assert found.values.tolist() == [0, 3, 0]


weights = st.dictionaries(
    st.sampled_from(NAMES),
    # six digits are printed
    st.integers(-4000, 4000).filter(bool).map(lambda i: i / 8),
    min_size=1,
    max_size=6,
)


@given(weights, st.integers(-9, 9))
def test_round_trip(weights: Weights, value: int) -> None:
    text = describe(np.array(row(weights)), float(value), NAMES)
    found = make_hypothesis(text, NAMES)
    assert found.contrasts.tolist() == [row(weights)]
    assert found.values.tolist() == [value]
    assert found.labels == (text,)


@given(st.lists(weights, min_size=1, max_size=3))
def test_a_matrix_is_labelled_so_that_its_labels_mean_it(rows: list[Weights]) -> None:
    matrix = np.array([row(r) for r in rows])
    if np.linalg.matrix_rank(matrix) < len(rows):
        return
    found = make_hypothesis(matrix, NAMES)
    assert make_hypothesis(list(found.labels), NAMES).contrasts.tolist() == matrix.tolist()
    assert found.values.tolist() == [0.0] * len(rows)


def test_matrices() -> None:
    unit = np.eye(len(NAMES))
    for given_ in (unit[1], unit[1].tolist(), unit[1:2], unit[1].astype(int), pl.Series(unit[1])):
        assert make_hypothesis(given_, NAMES).labels == ("ses = 0",)
    assert make_hypothesis(unit[1] - 2 * unit[2], NAMES).labels == ("ses - 2*sector = 0",)


def test_rows_of_very_different_size_are_independent() -> None:
    """A slope per kilometre beside one per nanometre."""
    found = make_hypothesis("1e-17*ses, sector", NAMES)
    assert found.contrasts.shape == (2, len(NAMES))


# ---------------------------------------------------------------------------------------------- on fits


def test_text_and_matrix_give_the_same_test(rows: Callable[..., pl.DataFrame]) -> None:
    fit = mlsql.fit("y ~ w*group_center(x) + C(s, ref='q') + I(z - 2) + (group_center(x) | g)", rows())
    names = fit.fixed_effects["term"].to_list()
    at = {name: i for i, name in enumerate(names)}
    text = ["w:group_center(x) = 2*w", "I(z - 2)", next(name for name in names if "[" in name)]
    L = np.zeros((3, len(names)))
    L[0, at["w:group_center(x)"]], L[0, at["w"]] = 1, -2
    L[1, at["I(z - 2)"]] = 1
    L[2, at[text[2]]] = 1
    for df in ("hlm", "satterthwaite", "kenward_roger", "normal"):
        assert fit.test(text, df=df).drop("hypothesis").equals(fit.test(L, df=df).drop("hypothesis"))  # type: ignore[arg-type]
    assert fit.test(L)["hypothesis"].item().split("; ")[1] == "I(z - 2) = 0"
    # every term of the fit is a hypothesis
    for i, name in enumerate(names):
        assert fit.test(name).drop("hypothesis").equals(fit.test(np.eye(len(names))[i]).drop("hypothesis"))


def test_the_value_moves_the_statistic(rows: Callable[..., pl.DataFrame]) -> None:
    fit = mlsql.fit("y ~ w + x + (1 | g)", rows())
    b, se = fit.inference().filter(pl.col("term") == "x").select("estimate", "std_error").row(0)
    for text, null in (("x = 0.5", 0.5), ("0.5 = x", 0.5), ("x + 1 = 0", -1.0), ("2*x = 1", 0.5), (f"x = {b!r}", b)):
        assert fit.test(text)["statistic"].item() == pytest.approx(((b - null) / se) ** 2, rel=1e-9, abs=1e-20)
