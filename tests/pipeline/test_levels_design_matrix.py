"""The fixed part of models with several factors row by row: means of named groups, marginal effects, new data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.pipeline.design_matrix import design_matrix, mean_columns
from mlsql.pipeline.model_frame import model_frame

Files = Callable[[str], str]

# the same products of a handful of doubles
SAME = 1e-12

FORMULA = (
    "math ~ year + group_center(grade, schoolid) + group_mean(grade, schoolid) + "
    "group_mean(year, schoolid:childid):black + (1 | schoolid/childid)"
)


@pytest.fixture(scope="module")
def frame(data_file: Files) -> pl.DataFrame:
    return pl.read_parquet(data_file("egsingle"))


@pytest.fixture(scope="module")
def fitted(frame: pl.DataFrame) -> mlsql.Fit:
    return mlsql.fit(FORMULA, frame)


def expected(frame: pl.DataFrame) -> np.ndarray:
    means = frame.select(
        pl.col("grade").mean().over("schoolid"), pl.col("year").mean().over("schoolid", "childid").alias("own")
    )
    columns = [frame["year"], frame["grade"] - means["grade"], means["grade"], means["own"] * frame["black"]]
    return np.column_stack([np.ones(frame.height), *columns])


def test_means_of_the_named_factor(fitted: mlsql.Fit, frame: pl.DataFrame) -> None:
    X, offset = design_matrix(fitted.estimates, frame)
    assert np.abs(X - expected(frame)).max() < SAME
    assert not offset.any()
    # by the keys of each factor, in any order of the rows
    order = np.random.default_rng(3).permutation(frame.height)[:500]
    whole = design_matrix(fitted.estimates, frame[order])[0]
    rows = expected(frame)[order]
    assert np.abs(whole - rows).max() < SAME


def test_means_that_the_frame_brings(fitted: mlsql.Fit, frame: pl.DataFrame) -> None:
    named = mean_columns(fitted.estimates.design)
    assert list(named.values()) == ["group_mean(grade, schoolid)", "group_mean(year, schoolid:childid)"]
    own = frame.with_columns(pl.lit(7.0).alias("group_mean(grade, schoolid)")).drop("schoolid", "childid")
    with pytest.raises(mlsql.DataError, match=r"add the grouping column schoolid .* a column 'group_mean"):
        design_matrix(fitted.estimates, own)
    X, _ = design_matrix(fitted.estimates, own.with_columns(pl.lit(2.0).alias("group_mean(year, schoolid:childid)")))
    assert np.array_equal(X[:, 2], frame["grade"] - 7.0)
    assert np.array_equal(X[:, 4], 2.0 * frame["black"])


def test_groups_that_the_fit_did_not_see(fitted: mlsql.Fit, frame: pl.DataFrame) -> None:
    other = frame.head(3).with_columns(childid=pl.lit(1, dtype=pl.Int64))
    X, _ = design_matrix(fitted.estimates, other)
    assert np.isnan(X).tolist() == [[False, False, False, False, True]] * 3


def test_rows_of_the_analysis(fitted: mlsql.Fit, frame: pl.DataFrame) -> None:
    found = model_frame(fitted.estimates, fitted.inputs)
    names = ["year", "grade", "black", "schoolid", "childid"]
    means = ["group_mean(grade, schoolid)", "group_mean(year, schoolid:childid)"]
    assert set(found.columns) == {*names, *means, "math"}
    assert found.height == frame.height
    X, _ = design_matrix(fitted.estimates, found)
    population = fitted.predict()
    assert population is not None
    assert np.allclose(np.sort(X @ fitted.estimates.beta), np.sort(population["population"]), rtol=SAME, atol=SAME)


def test_new_data_need_the_keys_behind_means_alone(frame: pl.DataFrame) -> None:
    pytest.importorskip("marginaleffects")
    few = frame.head(20)
    plain = mlsql.fit("math ~ year + black + (1 | schoolid/childid)", frame)
    model = plain.as_marginaleffects(few.drop("schoolid", "childid"))
    assert model.get_exog(model.get_modeldata()).shape == (20, 3)
    centred = mlsql.fit("math ~ group_center(year, schoolid) + (1 | schoolid/childid)", frame)
    model = centred.as_marginaleffects(few.drop("childid"))
    assert model.get_exog(model.get_modeldata()).shape == (20, 2)
    with pytest.raises(mlsql.DataError, match="schoolid is needed"):
        centred.as_marginaleffects(few.drop("schoolid"))


def test_slopes_are_those_of_the_fixed_effects(fitted: mlsql.Fit) -> None:
    package = pytest.importorskip("marginaleffects")
    table = package.avg_slopes(fitted.as_marginaleffects())
    found = dict(zip(table["term"], table["estimate"], strict=True))
    beta = dict(zip(fitted.estimates.fixed_names, fitted.estimates.beta, strict=True))
    # a derivative by a difference of 1e-4 between predictions of size 10 in double precision
    assert found["year"] == pytest.approx(beta["year"], abs=1e-8)
    assert found["grade"] == pytest.approx(beta["group_center(grade, schoolid)"], abs=1e-8)


def test_sets_of_a_membership_are_left_out() -> None:
    pytest.importorskip("marginaleffects")
    rows = pl.DataFrame({"y": [1.0, 2, 4, 3, 5, 7, 2, 1], "x": [1.0, 3, 2, 5, 4, 4, 1, 0]})
    rows = rows.with_columns(pupil=pl.int_range(8) // 2 + 1)
    history = pl.DataFrame({"pupil": [1, 2, 2, 3, 4, 4], "teacher": ["a", "a", "b", "b", "a", "c"]})
    named = {"teacher": mlsql.Membership(history, on="pupil", normalise=True)}
    fit = mlsql.fit("y ~ x + (1 | teacher) + (1 | pupil)", rows, memberships=named)
    assert set(fit.as_marginaleffects().get_modeldata().columns) == {"x", "pupil", "y"}


# contextual effects


def test_contextual_effect_of_a_named_factor(frame: pl.DataFrame) -> None:
    model = "math ~ {} + group_mean(year, schoolid) + (1 | schoolid/childid)"
    centred = mlsql.fit(model.format("group_center(year, schoolid)"), frame)
    table = centred.contrasts.contextual_effect("group_center(year, schoolid)")
    beta = centred.estimates.beta
    assert table["estimate"].to_list() == pytest.approx([beta[1], beta[2], beta[2] - beta[1]])
    raw = mlsql.fit(model.format("year"), frame).contrasts.contextual_effect("year", "group_mean(year, schoolid)")
    # the same model written otherwise: two optima of one likelihood
    assert raw["estimate"].to_list() == pytest.approx(table["estimate"].to_list(), rel=1e-5)


def test_a_predictor_of_children_within_schools(frame: pl.DataFrame) -> None:
    """It does not vary within children: level 2, and varies where its mean does not."""
    fit = mlsql.fit("math ~ year + black + group_mean(black, schoolid) + (1 | schoolid/childid)", frame)
    beta = fit.estimates.beta
    table = fit.contrasts.contextual_effect("black")
    assert table["estimate"].to_list() == pytest.approx([beta[2], beta[2] + beta[3], beta[3]])
    upper = mlsql.fit("math ~ lowinc + black + (1 | schoolid/childid)", frame)
    with pytest.raises(mlsql.FitError, match="no grouping factor within which lowinc varies and black does not"):
        upper.contrasts.contextual_effect("lowinc", "black")


def test_means_over_two_factors_are_a_sum_of_coefficients(frame: pl.DataFrame) -> None:
    model = "math ~ year + group_mean(year, schoolid:childid) + group_mean(year, schoolid) + (1 | schoolid/childid)"
    fit = mlsql.fit(model, frame)
    with pytest.raises(mlsql.FitError, match=r"of several grouping factors \(schoolid:childid, schoolid\)"):
        fit.contrasts.contextual_effect("year", "group_mean(year, schoolid)")
    with pytest.raises(mlsql.FitError, match=r"add group_mean\(\"year\", factor\) to the formula"):
        mlsql.fit("math ~ year + (1 | schoolid/childid)", frame).contrasts.contextual_effect("year")
