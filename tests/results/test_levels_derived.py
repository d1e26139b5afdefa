"""Derived quantities of fits with several grouping factors, against rows and against models written otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

import mlsql

Files = Callable[[str], str]

# sums over rows in another order
SAME = 1e-9
# two optima of one likelihood, each to a gradient of 1e-6 or so in scaled parameters
OPTIMUM = 1e-4


@pytest.fixture(scope="module")
def frame(data_file: Files) -> pl.DataFrame:
    return pl.read_parquet(data_file("egsingle"))


@pytest.fixture(scope="module")
def slopes(frame: pl.DataFrame) -> mlsql.Fit:
    return mlsql.fit("math ~ year*lowinc + (year | schoolid/childid)", frame)


def test_shares_of_the_rows_variance(slopes: mlsql.Fit, frame: pl.DataFrame) -> None:
    """Nakagawa and Johnson: the random part's variance is its mean over rows, of all factors together."""
    year, low = frame["year"].to_numpy(), frame["lowinc"].to_numpy()
    X = np.column_stack([np.ones(len(year)), year, low, year * low])
    fixed = np.var(X @ slopes.estimates.beta, ddof=1)
    z = np.column_stack([np.ones(len(year)), year])
    random = sum(np.mean(np.einsum("ni,ij,nj->n", z, slopes.T[s, s], z)) for s in (slice(0, 2), slice(2, 4)))
    total = fixed + random + slopes.sigma2
    found = slopes.derived.explained_variance()
    assert found["measure"].to_list() == ["nakagawa_marginal", "nakagawa_conditional"]
    assert found["proportion"].to_list() == pytest.approx([fixed / total, 1 - slopes.sigma2 / total], rel=SAME)


def test_shares_with_a_membership() -> None:
    """A row's variance from its units is tau times its sum of squared weights."""
    rng = np.random.default_rng(5)
    rows = pl.DataFrame({"y": rng.normal(0, 1, 60), "x": rng.normal(0, 1, 60), "pupil": np.repeat(np.arange(20), 3)})
    pairs = [(p, t, 0.2 + (p * 3 + t) % 4) for p in range(20) for t in range(5) if (p + t) % 3]
    history = pl.DataFrame(pairs, schema=["pupil", "teacher", "w"], orient="row")
    named = {"teacher": mlsql.Membership(history, on="pupil", weight="w")}
    fit = mlsql.evaluate(
        "y ~ x + (1 | teacher) + (1 | pupil)", rows, T={"teacher": 0.8, "pupil": 0.3}, sigma2=1.1, memberships=named
    )
    squares = history.group_by("pupil").agg((pl.col("w") ** 2).sum())
    random = 0.8 * rows.join(squares, on="pupil")["w"].mean() + 0.3  # type: ignore[operator]
    fixed = np.var(rows["x"].to_numpy() * fit.estimates.beta[1], ddof=1)
    found = fit.derived.explained_variance()["proportion"]
    total = fixed + random + 1.1
    assert found.to_list() == pytest.approx([fixed / total, 1 - 1.1 / total], rel=SAME)


def test_reliabilities_are_means_over_the_groups_of_a_factor(slopes: mlsql.Fit) -> None:
    table = slopes.derived.reliability()
    assert table.columns == ["group", "term", "reliability", "groups_used", "groups"]
    assert table["groups"].to_list() == [60, 60, 1721, 1721]
    for group, term, mean, used, _ in table.iter_rows():
        own = slopes.group_effects(group).filter(term=term)["reliability"].drop_nulls()
        assert (mean, used) == (pytest.approx(own.mean(), rel=SAME), len(own))
    with pytest.raises(mlsql.FitError, match=r"derived.reliability\(by_group=True\) is for .*fit.group_effects"):
        slopes.derived.reliability(by_group=True)


def test_correlations_within_factors(slopes: mlsql.Fit, frame: pl.DataFrame) -> None:
    """At another origin those of the model written with the moved predictor."""
    moved = mlsql.fit("math ~ I(year - 1)*lowinc + (I(year - 1) | schoolid/childid)", frame)
    found, other = slopes.derived.correlations(at={"year": 1}), moved.derived.correlations()
    assert found["group"].to_list() == other["group"].to_list() == ["schoolid", "schoolid:childid"]
    for name in ("variance1", "variance2", "covariance", "correlation", "std_error"):
        assert found[name].to_list() == pytest.approx(other[name].to_list(), rel=OPTIMUM)


def test_an_origin_that_one_factor_cannot_take_up(frame: pl.DataFrame) -> None:
    fit = mlsql.fit("math ~ year + (year | schoolid) + (0 + year | schoolid:childid)", frame)
    assert fit.derived.correlations()["group"].to_list() == ["schoolid"]
    with pytest.raises(mlsql.FitError, match=r"coefficient year has no \(Intercept\) beside it to take up the shift"):
        fit.derived.correlations(at={"year": 1})


def test_plausible_values_of_each_factor(slopes: mlsql.Fit) -> None:
    """Around the mean coefficient, which both levels' equations have; effects 0 of the other factor."""
    found = slopes.derived.plausible_values(at_w={"lowinc": 40})
    assert found["group"].to_list() == ["schoolid", "schoolid", "schoolid:childid", "schoolid:childid"]
    beta = slopes.estimates.beta
    assert found["estimate"].to_list() == pytest.approx([beta[0] + 40 * beta[2], beta[1] + 40 * beta[3]] * 2)
    assert found["sd"].to_list() == pytest.approx(np.sqrt(np.diag(slopes.T)).tolist())
    assert found["conditional"].to_list() == [True] * 4


def test_least_squares_of_the_rows(slopes: mlsql.Fit, frame: pl.DataFrame, data_file: Files) -> None:
    """Robust to the coarsest of nested factors; crossed ones leave nothing to be robust to."""
    year, low = frame["year"].to_numpy(), frame["lowinc"].to_numpy()
    X = np.column_stack([np.ones(len(year)), year, low, year * low])
    y = frame["math"].to_numpy()
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    scores = pl.DataFrame(X * (y - X @ beta)[:, None]).with_columns(frame["schoolid"]).group_by("schoolid").sum()
    S = scores.drop("schoolid").to_numpy()
    robust = np.sqrt(np.diag(inverse @ S.T @ S @ inverse))
    found = slopes.comparators.ols("CR0")
    assert found["estimate"].to_list() == pytest.approx(beta.tolist(), rel=SAME)
    assert found["robust_std_error"].to_list() == pytest.approx(robust.tolist(), rel=SAME)
    assert found["df"].to_list() == [59.0] * 4
    crossed = mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    assert crossed.comparators.ols()["robust_std_error"].to_list() == [None]
    ratio = crossed.comparators.design_effects()
    assert ratio["ols_std_error"].item() == pytest.approx(crossed.comparators.ols()["std_error"].item())
    assert (
        ratio.select("expected_ratio", "mean_group_size", "icc", "reliability", "design_effect").null_count().row(0)
        == (1,) * 5
    )
