"""Ways to say the same model with several grouping factors, and changes of data that change results as algebra says."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql

RTOL = 1e-9
"""The same sums in another order, and an optimum found to 1e-10 of a unit of deviance."""

METHODS = ("REML", "ML")


def components(fit: mlsql.Fit, names: dict[str, str] | None = None) -> dict[tuple[str, frozenset[str | None]], float]:
    table = fit.variance_components.select("group", "term1", "term2", "estimate")
    return {((names or {}).get(g, g), frozenset({a, b})): v for g, a, b, v in table.rows()}


def same(ours: mlsql.Fit, theirs: mlsql.Fit, names: dict[str, str] | None = None) -> None:
    """Equal estimates; `names` renames the groups of `ours`."""
    assert ours.deviance == pytest.approx(theirs.deviance, rel=RTOL)
    assert ours.fixed_effects["term"].to_list() == theirs.fixed_effects["term"].to_list()
    np.testing.assert_allclose(ours.fixed_effects["estimate"], theirs.fixed_effects["estimate"], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.fixed_effects["std_error"], theirs.fixed_effects["std_error"], rtol=1e-6)
    left, right = components(ours, names), components(theirs)
    assert left.keys() == right.keys()
    # two searches, each within 1e-10 of the least deviance: the root of that
    for key, value in right.items():
        assert left[key] == pytest.approx(value, rel=1e-5, abs=1e-5 * theirs.sigma2), key


def orders(terms: list[str]) -> list[list[str]]:
    """Backwards, and each term first."""
    return [terms[::-1], *(terms[i:] + terms[:i] for i in range(1, len(terms)))]


PERMUTED = {
    "slope at the top only": ["(t | school)", "(1 | school:child)"],
    "four levels": ["(1 | district)", "(1 | district:school)", "(1 | district:school:class)"],
    "crossed, random cells": ["(1 | a)", "(1 | b)", "(1 | a:b)"],
    "partially crossed": ["(1 | a)", "(x | b)"],
    "three crossed": ["(1 | a)", "(1 | b)", "(x | c)"],
    "crossed over nested": ["(x | a)", "(1 | c)", "(1 | c:b)"],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PERMUTED)
def test_the_order_of_terms_changes_nothing(cases: dict[str, Any], name: str, method: Any) -> None:
    case, terms = cases[name], PERMUTED[name]
    fixed = case.formula.split(" + (")[0]
    first = mlsql.fit(case.formula, case.frame, method=method)
    for order in orders(terms):
        same(mlsql.fit(" + ".join([fixed, *order]), case.frame, method=method), first)


@pytest.mark.parametrize("name", PERMUTED)
def test_the_order_of_terms_changes_nothing_at_given_variances(cases: dict[str, Any], name: str) -> None:
    case, terms = cases[name], PERMUTED[name]
    fixed = case.formula.split(" + (")[0]
    first = mlsql.evaluate(case.formula, case.frame, T=case.T, sigma2=1.3)
    for order in orders(terms):
        again = mlsql.evaluate(" + ".join([fixed, *order]), case.frame, T=case.T, sigma2=1.3)
        assert again.deviance == pytest.approx(first.deviance, rel=1e-12)
        np.testing.assert_allclose(again.vcov, first.vcov, rtol=RTOL, atol=RTOL * np.abs(first.vcov).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("slash", "apart"),
    [
        ("y ~ x + c + (1 | school/child)", "y ~ x + c + (1 | school) + (1 | pupil)"),
        ("y ~ t*c + (t | school/child)", "y ~ t*c + (t | school) + (t | pupil)"),
        ("y ~ t + (t | school) + (1 | school:child)", "y ~ t + (1 | pupil) + (t | school)"),
        ("y ~ t + (1 | school) + (t || school:child)", "y ~ t + (1 | school) + (t || pupil)"),
    ],
)
def test_unique_labels_are_the_same_model(cases: dict[str, Any], slash: str, apart: str, method: Any) -> None:
    frame = cases["nested intercepts"].frame
    ours, theirs = mlsql.fit(apart, frame, method=method), mlsql.fit(slash, frame, method=method)
    same(ours, theirs, {"pupil": "school:child"})


def test_a_slash_is_two_terms(cases: dict[str, Any]) -> None:
    frame = cases["nested intercepts"].frame
    same(mlsql.fit("y ~ t + (t | school/child)", frame), mlsql.fit("y ~ t + (t | school) + (t | school:child)", frame))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["three-way cross-level", "crossed, slopes over rows and columns", "three crossed"])
@pytest.mark.parametrize("shift", [-3.0, 1e6])
def test_shifted_and_scaled_predictors(cases: dict[str, Any], name: str, shift: float, method: Any) -> None:
    """x -> shift + 3 x and t -> shift + t / 2, full covariance matrices: another parametrisation of the same model."""
    case = cases[name]
    moved = case.frame.with_columns(x=shift + 3 * pl.col("x"), t=shift + pl.col("t") / 2)
    plain, other = (mlsql.fit(case.formula, d, method=method) for d in (case.frame, moved))
    # columns of X that carry x or t are multiplied; shifts add multiples of other columns
    powers = {"x": 3.0, "t": 0.5}
    by = sum(np.log(powers.get(part, 1.0)) for term in plain.fixed_effects["term"] for part in term.split(":"))
    constant = 2 * by if method == "REML" else 0.0
    # the shift of 1e6 costs twelve digits of squares: only pivots keep the rest
    assert other.deviance == pytest.approx(plain.deviance + constant, rel=1e-8)
    assert other.sigma2 == pytest.approx(plain.sigma2, rel=1e-5)
    last = {
        d: f.fixed_effects.filter(pl.col("term").str.contains("x|t"))[-1].row(0, named=True)
        for d, f in (("plain", plain), ("other", other))
    }
    assert last["other"]["term"] == last["plain"]["term"]
    assert last["other"]["statistic"] == pytest.approx(last["plain"]["statistic"], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-3, 1e4])
@pytest.mark.parametrize("name", ["four levels", "crossed, random cells", "crossed over nested"])
def test_a_scaled_outcome(cases: dict[str, Any], name: str, factor: float, method: Any) -> None:
    case = cases[name]
    plain = mlsql.fit(case.formula, case.frame, method=method)
    scaled = mlsql.fit(case.formula, case.frame.with_columns(y=factor * pl.col("y")), method=method)
    rest = plain.n_rows - (len(plain.fixed_effects) if method == "REML" else 0)
    assert scaled.deviance == pytest.approx(plain.deviance + 2 * rest * np.log(factor), rel=1e-8)
    found = components(scaled)
    for key, value in components(plain).items():
        expected = factor**2 * value
        assert found[key] == pytest.approx(expected, rel=1e-4, abs=1e-5 * scaled.sigma2), key


@pytest.mark.parametrize("name", ["three-way cross-level", "partially crossed", "nested in one of two crossed"])
def test_the_order_of_rows_and_the_labels_of_groups_change_nothing(cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    frame = case.frame.sample(fraction=1.0, shuffle=True, seed=9)
    keys = sorted({key for factor in case.Z for key in factor.split(":")})
    renamed = frame.with_columns(
        # another order, another type
        (pl.lit("g") + (pl.col(key).rank("dense").cast(pl.Int64) * 7 % 23).cast(pl.String)).alias(key)
        for key in keys
    )
    for factor in case.Z:
        names = factor.split(":")
        assert renamed.select(names).n_unique() == frame.select(names).n_unique()
    same(mlsql.fit(case.formula, renamed), mlsql.fit(case.formula, case.frame))


@pytest.mark.parametrize("name", ["nested, weights", "crossed, weights"])
def test_weights_are_copies_of_rows_at_equal_variances(cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    data = case.frame.with_columns(times=(2 * pl.col("weight")).cast(pl.Int64))
    copies = data.select(pl.exclude("times").repeat_by("times").explode())
    weighted = mlsql.evaluate(case.formula, data, T=case.T, sigma2=1.7, weights="times")
    copied = mlsql.evaluate(case.formula, copies, T=case.T, sigma2=1.7)
    np.testing.assert_allclose(weighted.vcov, copied.vcov, rtol=RTOL, atol=RTOL * np.abs(copied.vcov).max())
    constant = (len(copies) - len(data)) * np.log(2 * np.pi * 1.7) + data["times"].log().sum()
    assert copied.deviance - weighted.deviance == pytest.approx(constant, rel=1e-9)
    for factor in case.Z:
        for column in ("estimate", "std_error", "conditional_sd"):
            left, right = (f.group_effects(factor)[column].to_numpy() for f in (weighted, copied))
            np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_factor_without_variance_is_the_model_without_it(cases: dict[str, Any], method: Any) -> None:
    frame = cases["crossed, random cells"].frame
    two = mlsql.evaluate("y ~ x + (x | a)", frame, T=[[0.7, 0.1], [0.1, 0.4]], sigma2=1.1, method=method)
    three = mlsql.evaluate(
        "y ~ x + (x | a) + (1 | b) + (1 | a:b)",
        frame,
        T={"a": [[0.7, 0.1], [0.1, 0.4]], "b": [[0.0]], "a:b": [[0.0]]},
        sigma2=1.1,
        method=method,
    )
    assert three.deviance == pytest.approx(two.deviance, rel=1e-12)
    np.testing.assert_allclose(three.vcov, two.vcov, rtol=RTOL)
    for column in ("estimate", "std_error"):
        np.testing.assert_allclose(three.group_effects("a")[column], two.group_effects()[column], rtol=1e-8)
    assert np.all(three.group_effects("b")["estimate"].to_numpy() == 0.0)


def test_membership_of_one_unit_is_an_ordinary_factor(cases: dict[str, Any]) -> None:
    frame = cases["partially crossed"].frame
    table = frame.select("row", teacher="b").sample(fraction=1.0, shuffle=True, seed=2)
    own = mlsql.fit(
        "y ~ x + (1 | a) + (1 | teacher)", frame, memberships={"teacher": mlsql.Membership(table, on=["row"])}
    )
    same(own, mlsql.fit("y ~ x + (1 | a) + (1 | b)", frame), {"teacher": "b"})
