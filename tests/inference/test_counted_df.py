"""Degrees of freedom by counting: what each rule says for every kind of column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql

N, J = 83, 18
"""Rows and groups of the small data."""

INF = float("inf")

# formula | hlm | between_within; in the order of terms
TABLE: dict[str, tuple[list[float], list[float]]] = {
    # J - S_q - 1 for the intercept's equation, N - p for fixed slopes
    "y ~ w + x + (1 | g)": ([J - 2, J - 2, N - 3], [J - 2, J - 2, N - J - 1]),
    "y ~ x + (x | g)": ([J - 1, J - 1], [J - 1, N - J - 1]),
    # cross-level terms belong to the slope's equation, but vary within groups
    "y ~ w*x + (x | g)": ([J - 2] * 4, [J - 2, J - 2, N - J - 2, N - J - 2]),
    "y ~ w*x + (1 | g)": ([J - 2, J - 2, N - 4, N - 4], [J - 2, J - 2, N - J - 2, N - J - 2]),
    # the factor's two columns count both
    "y ~ x + s + (x | g)": ([J - 3, J - 1, J - 3, J - 3], [J - 3, N - J - 1, J - 3, J - 3]),
    # a group mean is a level-2 predictor
    "y ~ group_center(x) + group_mean(x) + (1 | g)": ([J - 2, N - 3, J - 2], [J - 2, N - J - 1, J - 2]),
    "y ~ 0 + x + z + (0 + x | g)": ([J - 1, N - 2], [N - J - 2, N - J - 2]),
    "y ~ x + z + (x + z || g)": ([J - 1, J - 1, J - 1], [J - 1, N - J - 2, N - J - 2]),
    # a random coefficient without a fixed effect changes nothing
    "y ~ w + (x | g)": ([J - 2, J - 2], [J - 2, J - 2]),
}


@pytest.fixture(scope="module")
def fitted(rows: Callable[..., pl.DataFrame]) -> Callable[[str], mlsql.Fit]:
    found: dict[str, mlsql.Fit] = {}

    def fit(formula: str) -> mlsql.Fit:
        if formula not in found:
            found[formula] = mlsql.fit(formula, rows())
        return found[formula]

    return fit


def df(fit: mlsql.Fit, method: Any) -> list[float]:
    table = fit.inference(method)
    assert set(table["df_method"]) == {method}
    return table["df"].to_list()


@pytest.mark.parametrize("formula", TABLE)
def test_every_rule(fitted: Callable[[str], mlsql.Fit], formula: str) -> None:
    fit = fitted(formula)
    assert (fit.n_rows, fit.n_groups) == (N, J)
    hlm, between_within = TABLE[formula]
    assert df(fit, "hlm") == hlm
    assert df(fit, "between_within") == between_within
    assert df(fit, "residual") == [N - len(hlm)] * len(hlm)
    assert df(fit, "normal") == [INF] * len(hlm)
    # the default
    assert fit.inference()["df"].to_list() == hlm
    assert fit.fixed_effects["df"].to_list() == hlm


@pytest.mark.parametrize(
    ("terms", "expected"), [(["w"], J - 2), (["x"], N - 3), (["x", "w"], J - 2), (["w - x = 0"], J - 2)]
)
def test_a_contrast_of_several_takes_the_smallest(
    fitted: Callable[[str], mlsql.Fit], terms: Sequence[str], expected: float
) -> None:
    fit = fitted("y ~ w + x + (1 | g)")
    assert fit.test(list(terms))["df2"].item() == expected
    assert fit.test(list(terms), df="normal")["df2"].item() == INF


def test_never_below_one() -> None:
    """Three groups and three level-2 columns leave none."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(3), 9)
    w, v = np.array([0.0, 1.0, 3.0])[g], np.array([1.0, 0.0, 0.5])[g]
    data = pl.DataFrame({"g": g, "w": w, "v": v, "x": rng.normal(size=27), "y": rng.normal(size=27)})
    fit = mlsql.evaluate("y ~ w + v + x + (1 | g)", data, T=1.0, sigma2=1.0)
    assert df(fit, "hlm")[:3] == [1, 1, 1]
    assert df(fit, "between_within")[:3] == [1, 1, 1]


def test_weights_do_not_change_the_counts(rows: Callable[..., pl.DataFrame]) -> None:
    fit = mlsql.fit("y ~ w + x + (1 | g)", rows(), weights="weight")
    assert df(fit, "hlm") == [J - 2, J - 2, N - 3]
    assert df(fit, "residual") == [N - 3] * 3
