"""Products by group: those of the rows in both layouts, fetched once, and only from the data that were fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.pipeline.products import Products

RTOL = 1e-10
"""Rounding of sums of products of pivoted values, against the sizes of the two columns."""


def of_rows(found: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(p+1, p+1, J) [X y]'W[X y] of the rows in the statistics' own columns."""
    statistics, model = found.fit.estimates.statistics, found.model
    y = model.y - (statistics.y_shift if statistics.intercept is not None else 0.0)
    columns = np.column_stack([model.X @ statistics.beta_transform, y])
    groups = [np.flatnonzero(model.groups == j) for j in range(model.n_groups)]
    return np.stack([(columns[i].T * model.w[i]) @ columns[i] for i in groups], axis=2)


@pytest.mark.parametrize("layout", ["full", "lean"])
def test_products_are_those_of_the_rows(answer: Callable[..., Any], case: Any, layout: str) -> None:
    found = answer(case, layout)
    ours, theirs = found.fit.products.by_group(), of_rows(found)
    assert ours.shape == theirs.shape
    size = np.sqrt(np.einsum("ffj->f", theirs))
    assert np.all(np.abs(ours - theirs).max(axis=2) <= RTOL * np.outer(size, size))
    # symmetric, and the whole is the sum of its parts
    np.testing.assert_array_equal(ours, np.swapaxes(ours, 0, 1))
    pooled = found.fit.estimates.statistics.XytXy
    assert np.all(np.abs(ours.sum(axis=2) - pooled) <= RTOL * np.outer(size, size))


def test_completed_moments_are_the_full_ones(answer: Callable[..., Any], case: Any) -> None:
    full, lean = (answer(case, layout).fit for layout in ("full", "lean"))
    design, moments = lean.products.complete()
    assert design.layout == "full"
    assert design.per_group == full.estimates.design.per_group
    assert moments.products.shape == full.estimates.moments.products.shape
    assert moments.keys.equals(full.estimates.moments.keys)
    expected = full.estimates.moments.products
    # two queries add the same numbers in two orders
    largest = np.abs(expected).max(axis=2)
    assert np.all(np.abs(moments.products - expected).max(axis=2) <= RTOL * largest)
    # the moments of the fit are as they were
    assert lean.estimates.design.layout == "lean"
    assert lean.estimates.moments.products.shape[0] < moments.products.shape[0]


def test_completed_estimates_are_the_same_estimates(answer: Callable[..., Any], case: Any) -> None:
    lean = answer(case, "lean").fit
    complete = lean.products.estimates_complete()
    assert complete.design.layout == "full"
    assert complete.statistics is lean.estimates.statistics
    np.testing.assert_array_equal(complete.vcov, lean.vcov)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that run from now on."""
    from mlsql.engine.duckdb import DuckDBEngine

    found: list[str] = []
    query = DuckDBEngine.query

    def counting(self: DuckDBEngine, step: Any) -> Any:
        found.append(step.name)
        return query(self, step)

    monkeypatch.setattr(DuckDBEngine, "query", counting)
    return found


def lean_fit(rows: Callable[..., pl.DataFrame], monkeypatch: pytest.MonkeyPatch, small: int = 0) -> mlsql.Fit:
    monkeypatch.setattr("mlsql.design.design.SMALL", small)
    return mlsql.fit("y ~ w + x + (1 | g)", rows().sample(fraction=1.0, shuffle=True, seed=3))


def test_one_query_and_only_when_needed(
    rows: Callable[..., pl.DataFrame], monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    fit = lean_fit(rows, monkeypatch)
    counted.clear()
    for df in ("hlm", "satterthwaite", "kenward_roger"):
        fit.inference(df)  # type: ignore[arg-type]
        fit.test("x", df=df)  # type: ignore[arg-type]
    fit.confint()
    assert counted == []
    first = fit.inference(vcov="CR2")
    assert counted == ["products by group"]
    assert fit.inference(vcov="CR2").equals(first)
    fit.inference(vcov="CR0")
    fit.test("x, w", vcov="CR1")
    assert fit.fixed_effects["robust_std_error"].null_count() == 0
    fit.summary()
    assert counted == ["products by group"]
    # another holder of the same estimates asks for itself
    np.testing.assert_array_equal(Products(fit.estimates, fit.inputs).by_group(), fit.products.by_group())
    assert counted == ["products by group"] * 2


def test_the_full_layout_needs_no_query(
    rows: Callable[..., pl.DataFrame], monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    fit = lean_fit(rows, monkeypatch, 10**9)
    assert fit.estimates.design.layout == "full"
    counted.clear()
    fit.inference(vcov="CR2")
    fit.summary()
    assert counted == []
    assert fit.products.complete()[1] is fit.estimates.moments
