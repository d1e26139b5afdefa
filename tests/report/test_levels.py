"""Tables of models with several grouping factors: columns, order, nulls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.report import levels as report
from mlsql.results import partition
from mlsql.results.partition import LevelMatrix, Parts, Shared, SlopeParts
from mlsql.results.points import Points
from mlsql.results.relations import Relation, Spread, relations

DataFile = Callable[[str], str]

PLAIN = Points((), np.zeros((0, 1)), frozenset())


@pytest.fixture(scope="module")
def growth(data_file: DataFile) -> mlsql.Fit:
    return mlsql.fit("math ~ year + (year | schoolid/childid)", data_file("egsingle"))


def test_factors_of_nested_levels(growth: mlsql.Fit) -> None:
    table = report.factors_table(growth.estimates)
    assert table.columns == [
        "factor", "groups", "rows_min", "rows_mean", "rows_max", "terms", "groups_per_row", "solution", "position",
    ]  # fmt: skip
    assert table.row(0) == ("schoolid", 60, 18, 120.5, 387, "(Intercept), year", 1.0, "absorbed", 2)
    assert table.row(1)[:2] == ("schoolid:childid", 1721)
    assert table["position"].to_list() == [2, 1]


def test_factors_of_crossed_levels(data_file: DataFile) -> None:
    fit = mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    table = report.factors_table(fit.estimates)
    assert table.select("factor", "solution", "position").rows() == [
        ("plate", "absorbed", 1),
        ("sample", "joint", None),
    ]


def test_factor_of_a_two_level_model(data_file: DataFile) -> None:
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff"))
    assert report.factors_table(fit.estimates).rows() == [("Batch", 6, 5, 5.0, 5, "(Intercept)", 1.0, "absorbed", 1)]
    empty = report.structure_table(relations(fit.estimates.moments))
    assert empty.height == 0
    assert empty.schema["occupied"] == pl.Int64


def test_structure() -> None:
    found = Relation(
        "a", "b", "partially crossed", None, 30, 120, 7, Spread(1, 3.0, 5), Spread(2, 2.5, 3), Spread(1, 4.0, 9)
    )
    table = report.structure_table([found])
    assert table.schema == {
        "factor1": pl.String, "factor2": pl.String, "relation": pl.String, "inner": pl.String, "occupied": pl.Int64,
        "possible": pl.Int64, "share": pl.Float64, "one_row": pl.Int64, "degree1_min": pl.Int64,
        "degree1_mean": pl.Float64, "degree1_max": pl.Int64, "degree2_min": pl.Int64, "degree2_mean": pl.Float64,
        "degree2_max": pl.Int64, "rows_min": pl.Int64, "rows_mean": pl.Float64, "rows_max": pl.Int64,
    }  # fmt: skip
    expected = ("a", "b", "partially crossed", None, 30, 120, 0.25, 7, 1, 3.0, 5, 2, 2.5, 3, 1, 4.0, 9)
    assert table.rows() == [expected]


def test_partition_of_printed_variances(growth: mlsql.Fit) -> None:
    # Raudenbush & Bryk (2002), table 8.1; without sampling errors
    parts = Parts(("school", "teacher", "Residual"), np.array([[0.01], [3.11], [5.85]]))
    table = report.partition_table(growth.estimates, parts, PLAIN)
    assert table.columns == ["factor", "variance", "share", "std_error", "conf_low", "conf_high", "kind"]
    assert table["factor"].to_list() == ["school", "teacher", "Residual"]
    assert [f"{100 * s:.1f}" for s in table["share"]] == ["0.1", "34.7", "65.2"]
    assert table.select("std_error", "conf_low", "conf_high").null_count().row(0) == (3, 3, 3)
    assert set(table["kind"]) == {"conditional"}


def test_partition_at_several_points_goes_point_by_point(growth: mlsql.Fit) -> None:
    (year,) = {v for c in growth.estimates.design.random for v in c.variables}
    points = Points((year,), np.array([[-1.0, 2.0]]), frozenset({year}))
    parts = partition.row_parts(growth.estimates, points.rows(growth.estimates.design.random))
    table = report.partition_table(growth.estimates, parts, points)
    assert table.columns[0] == "year"
    assert table["year"].to_list() == [-1.0] * 3 + [2.0] * 3
    assert table["factor"].to_list() == ["schoolid", "schoolid:childid", "Residual"] * 2
    np.testing.assert_allclose(table.group_by("year").agg(pl.sum("share"))["share"], 1.0, rtol=1e-12)
    np.testing.assert_array_equal(table["variance"].to_numpy().reshape(2, 3).T, parts.variance)
    narrow = report.partition_table(growth.estimates, parts, points, level=0.5)
    assert (narrow["conf_low"] > table["conf_low"]).all()
    assert (narrow["conf_low"] < narrow["share"]).all()


def test_a_predictor_called_like_a_column_is_renamed() -> None:
    rng = np.random.default_rng(2)
    frame = pl.DataFrame({"g": np.arange(200) // 10, "share": rng.normal(size=200), "y": rng.normal(size=200)})
    estimates = mlsql.evaluate("y ~ share + (share | g)", frame, T=[[1, 0], [0, 1]], sigma2=1.0).estimates
    (share,) = {v for c in estimates.design.random for v in c.variables}
    points = Points((share,), np.array([[2.0]]), frozenset({share}))
    parts = partition.row_parts(estimates, points.rows(estimates.design.random))
    assert report.partition_table(estimates, parts, points).columns[:2] == ["at_share", "factor"]
    sets = partition.shared_groups(estimates)
    table = report.intra_unit_correlations_table(estimates, parts, sets, points)
    assert table.columns[:2] == ["share", "same"]
    assert table["correlation"].to_list() == pytest.approx([5.0 / 6.0])


def test_intra_unit_correlations_name_what_is_shared(growth: mlsql.Fit) -> None:
    # Raudenbush & Bryk (2002), table 12.6
    parts = Parts(("neighbourhood", "school", "Residual"), np.array([[0.141], [0.075], [0.799]]))
    sets = [Shared((0,), (1,)), Shared((1,), (0,)), Shared((0, 1), ())]
    table = report.intra_unit_correlations_table(growth.estimates, parts, sets, PLAIN)
    assert table["same"].to_list() == ["neighbourhood", "school", "neighbourhood, school"]
    assert table["different"].to_list() == ["school", "neighbourhood", None]
    assert [f"{r:.3f}" for r in table["correlation"]] == ["0.139", "0.074", "0.213"]


def test_slope_shares_of_printed_variances() -> None:
    # Raudenbush & Bryk (2002), table 8.2
    found = [
        SlopeParts("status", Parts(("student", "school"), np.array([[1127.633], [98.546]]))),
        SlopeParts("rate", Parts(("student", "school"), np.array([[48.970], [68.568]]))),
    ]
    table = report.slope_shares_table(found)
    assert table.columns == ["term", "factor", "variance", "share", "std_error", "conf_low", "conf_high"]
    schools = table.filter(factor="school")
    assert schools["term"].to_list() == ["status", "rate"]
    assert [f"{100 * s:.1f}" for s in schools["share"]] == ["8.0", "58.3"]


def test_matrices_have_covariances_below_and_correlations_above() -> None:
    T = np.array([[98.546, 29.697], [29.697, 68.568]])
    flat = np.array([[1.0, 0.0], [0.0, 0.0]])
    matrices = [LevelMatrix(n, ("status", "rate"), M, np.ones((2, 2))) for n, M in (("school", T), ("class", flat))]
    table = report.level_correlations_table(matrices)
    assert table.columns == ["factor", "term1", "term2", "quantity", "value"]
    assert table.head(4).select("term1", "term2", "quantity").rows() == [
        ("status", "status", "variance"),
        ("status", "rate", "correlation"),
        ("rate", "status", "covariance"),
        ("rate", "rate", "variance"),
    ]
    assert [round(v, 3) for v in table["value"][:4]] == [98.546, 0.361, 29.697, 68.568]
    assert table["value"][4:].to_list() == [1.0, None, 0.0, 0.0]
