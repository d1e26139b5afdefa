"""The facet of levels: what each table holds for two levels, three levels, crossed factors and memberships."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.design.membership import Membership
from mlsql.errors import FitError
from mlsql.pipeline.levels import Levels

DataFile = Callable[[str], str]


@pytest.fixture(scope="module")
def crossed(data_file: DataFile) -> mlsql.Fit:
    return mlsql.fit("attain ~ 1 + (1 | primary) + (1 | second) + (1 | primary:second)", data_file("scotssec"))


@pytest.fixture(scope="module")
def growth(data_file: DataFile) -> mlsql.Fit:
    return mlsql.fit("math ~ year + (year | schoolid/childid)", data_file("egsingle"))


def test_two_levels(data_file: DataFile) -> None:
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff"))
    levels, icc = Levels(fit.products), fit.derived.icc()
    assert levels.factors()["factor"].to_list() == ["Batch"]
    assert levels.structure().is_empty()
    table = levels.variance_partition()
    assert table["factor"].to_list() == ["Batch", "Residual"]
    # the same functions of the same matrices, in another order of operations
    for name in ("std_error", "conf_low", "conf_high"):
        assert table[name][0] == pytest.approx(icc[name][0], rel=1e-9), name
        assert levels.intra_unit_correlations()[name][0] == pytest.approx(icc[name][0], rel=1e-9), name
    assert table["kind"][0] == "unconditional"
    with pytest.raises(FitError, match="no coefficient varies over two factors"):
        levels.between_share()


def test_variances_are_those_of_the_components_table(crossed: mlsql.Fit) -> None:
    table = Levels(crossed.products).variance_partition()
    components = crossed.variance_components.filter(pl.col("term2").is_null())["estimate"]
    np.testing.assert_allclose(table["variance"], components, rtol=1e-12)
    np.testing.assert_allclose(table["share"], components / components.sum(), rtol=1e-12)


def test_correlations_of_rows_columns_and_cells(crossed: mlsql.Fit) -> None:
    table = Levels(crossed.products).intra_unit_correlations()
    row, column, cell, residual = Levels(crossed.products).variance_partition()["variance"]
    total = row + column + cell + residual
    assert table["same"].to_list() == ["primary", "second", "primary, second, primary:second"]
    assert table["different"].to_list() == ["second, primary:second", "primary, primary:second", None]
    # (12.5), (12.6), (12.4)
    expected = [row / total, column / total, (row + column + cell) / total]
    np.testing.assert_allclose(table["correlation"], expected, rtol=1e-12)
    assert (table["conf_low"] < table["correlation"]).all()
    assert (table["correlation"] < table["conf_high"]).all()


def test_structure_of_crossed_factors(crossed: mlsql.Fit) -> None:
    table = Levels(crossed.products).structure()
    assert table.select("factor1", "factor2", "relation", "inner").rows() == [
        ("primary", "second", "partially crossed", None),
        ("primary", "primary:second", "nested", "primary:second"),
        ("second", "primary:second", "nested", "primary:second"),
    ]


def test_random_slopes_need_a_point(growth: mlsql.Fit) -> None:
    levels = Levels(growth.products)
    for method in (levels.variance_partition, levels.intra_unit_correlations):
        with pytest.raises(FitError, match=r"with random slopes the shares of variance depend on year; say where: "):
            method()
        with pytest.raises(FitError, match="at: 'yaer' is not among the random columns' predictors; did you mean year"):
            method(at={"yaer": 1})
    T, s2 = growth.estimates.T, growth.estimates.sigma2
    table = levels.intra_unit_correlations(at={"year": [-1, 2]})
    assert table["year"].to_list() == [-1.0, -1.0, 2.0, 2.0]
    found = []
    for year in (-1.0, 2.0):
        z = np.array([1.0, year])
        school, child = z @ T[:2, :2] @ z, z @ T[2:, 2:] @ z
        found += [school / (school + child + s2), (school + child) / (school + child + s2)]
    np.testing.assert_allclose(table["correlation"], found, rtol=1e-9)  # T is made of the factor in internal columns


def test_share_of_slopes_between_schools(growth: mlsql.Fit) -> None:
    table, T = Levels(growth.products).between_share(), growth.estimates.T
    schools = table.filter(factor="schoolid")
    assert schools["term"].to_list() == ["(Intercept)", "year"]
    np.testing.assert_allclose(schools["share"], [T[i, i] / (T[i, i] + T[i + 2, i + 2]) for i in (0, 1)], rtol=1e-12)
    sums = table.group_by("term").agg(pl.sum("share"), pl.n_unique("std_error"))
    np.testing.assert_allclose(sums["share"], 1.0, rtol=1e-12)


def test_correlations_level_by_level(growth: mlsql.Fit) -> None:
    table = Levels(growth.products).correlations().filter(quantity="correlation")
    printed = growth.variance_components.filter(pl.col("term2").is_not_null())
    np.testing.assert_allclose(table["value"], printed["sd_or_corr"], rtol=1e-12)
    assert table["factor"].to_list() == ["schoolid", "schoolid:childid"]


@pytest.mark.parametrize("method", ["variance_partition", "intra_unit_correlations", "between_share"])
def test_a_level_of_confidence_is_a_share(growth: mlsql.Fit, method: str) -> None:
    options = {} if method == "between_share" else {"at": {"year": 0}}
    with pytest.raises(FitError, match="level"):
        getattr(Levels(growth.products), method)(level=95, **options)


def test_factors_tell_how_they_are_solved(crossed: mlsql.Fit) -> None:
    table = Levels(crossed.products).factors()
    assert table.select("factor", "solution", "position").rows() == [
        ("primary", "absorbed", 2),
        ("second", "joint", None),
        ("primary:second", "absorbed", 1),
    ]


@pytest.fixture(scope="module")
def cumulative() -> mlsql.Fit:
    """40 children over 4 years, each year with one of 9 teachers, whose effects last."""
    rng = np.random.default_rng(8)
    child, year, teacher = np.repeat(np.arange(40), 4), np.tile(np.arange(4), 40), rng.integers(0, 9, 160)
    lasting = np.cumsum(rng.normal(size=9)[teacher].reshape(40, 4), axis=1).ravel()
    y = lasting + rng.normal(size=40)[child] + rng.normal(size=160)
    history = pl.DataFrame({"child": child, "year": year, "teacher": teacher})
    given = Membership(history, on="child", time="year")
    data = history.select("child", "year").with_columns(y=pl.Series(y))
    return mlsql.fit("y ~ year + (1 | child) + (1 | teacher)", data, memberships={"teacher": given})


def test_a_membership_counts_at_an_average_row(cumulative: mlsql.Fit) -> None:
    levels, T = Levels(cumulative.products), cumulative.estimates.T
    weights = cumulative.estimates.moments.incidence("teacher")
    mean = np.sum(np.square(weights.weight)) / 160  # every cell is one row
    table = levels.variance_partition()
    expected = [T[0, 0], T[1, 1] * mean, cumulative.sigma2]
    np.testing.assert_allclose(table["variance"], expected, rtol=1e-12)
    np.testing.assert_allclose(table["share"], expected / np.sum(expected), rtol=1e-12)
    assert (table["std_error"] > 0).all()
    assert levels.factors()["groups_per_row"].to_list() == [1.0, len(weights.cell) / 160]
    assert levels.structure()["relation"].to_list() == ["multiple membership"]
    assert levels.intra_unit_correlations()["same"].to_list() == ["child", "teacher", "child, teacher"]
