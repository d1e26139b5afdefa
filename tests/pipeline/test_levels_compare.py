"""Models with different grouping factors on the same rows, compared; and what is refused as other rows."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest
from scipy.stats import chi2

import mlsql

Files = Callable[[str], str]

BOTH, ONE = "diameter ~ 1 + (1 | plate) + (1 | sample)", "diameter ~ 1 + (1 | plate)"

# deviances of one optimum found twice
SAME = 1e-6


@pytest.fixture(scope="module")
def plates(data_file: Files) -> pl.DataFrame:
    return pl.read_parquet(data_file("penicillin"))


def fitted(formula: str, data: object, method: str = "REML") -> mlsql.Fit:
    return mlsql.fit(formula, data, method=method)  # type: ignore[arg-type]


def test_one_factor_more(plates: pl.DataFrame) -> None:
    one, both = fitted(ONE, plates), fitted(BOTH, plates)
    table = mlsql.compare(one, both)
    difference = one.deviance - both.deviance
    assert table["chi2"].to_list() == [None, pytest.approx(difference, abs=SAME)]
    assert table["df"].to_list() == [None, 1]
    assert table["mixture_p_value"][1] == pytest.approx(chi2.sf(difference, 1) / 2)
    assert table["aic"].to_list() == [one.aic, both.aic]
    # there is one intercept variance to show in a two-level model alone, and nothing to compare it with
    assert table["intercept_variance"].to_list() == [pytest.approx(one.T[0, 0]), None]
    assert table["explained_level1"].to_list() == [None, None]
    # either way round
    assert both.likelihood_ratio(one)["chi2"].item() == pytest.approx(difference, abs=SAME)
    assert mlsql.compare(both, one)["chi2"][1] == pytest.approx(difference, abs=SAME)


def test_the_order_of_factors_does_not_matter(plates: pl.DataFrame) -> None:
    first = fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", plates)
    second = fitted("diameter ~ 1 + (1 | sample) + (1 | plate)", plates)
    table = mlsql.compare(first, second)
    assert table["deviance"][0] == pytest.approx(table["deviance"][1], abs=SAME)
    assert table["explained_level1"][1] == pytest.approx(0.0, abs=SAME)
    assert "same parameters" in table["note"][1]


def test_nested_and_not_nested(data_file: Files) -> None:
    data = data_file("egsingle")
    school, child = fitted("math ~ year + (1 | schoolid)", data), fitted("math ~ year + (1 | schoolid:childid)", data)
    both = fitted("math ~ year + (1 | schoolid/childid)", data)
    assert mlsql.compare(school, both, child)["df"].to_list() == [None, 1, 1]
    table = mlsql.compare(school, child)
    assert table["chi2"].to_list() == [None, None]
    assert "the models are not nested: one has random effects of schoolid" in table["note"][1]


def test_explained_variances_of_nested_factors(data_file: Files) -> None:
    data = data_file("egsingle")
    base = fitted("math ~ year + (1 | schoolid/childid)", data, "ML")
    school = fitted("math ~ year + lowinc + (1 | schoolid/childid)", data, "ML")
    child = fitted("math ~ year + lowinc + black + (1 | schoolid/childid)", data, "ML")
    table = mlsql.compare(base, school, child)
    assert table["explained_level1"][1] == pytest.approx(1 - school.sigma2 / base.sigma2)
    found = school.derived.explained_variance(base).filter(measure="raudenbush_bryk")
    assert found["level"].to_list() == [1, 3, 2]
    assert found["term"].to_list() == [None, "schoolid: (Intercept)", "schoolid:childid: (Intercept)"]
    expected = [1 - school.sigma2 / base.sigma2, *(1 - school.T[i, i] / base.T[i, i] for i in range(2))]
    assert found["proportion"].to_list() == pytest.approx(expected)
    # a child's predictor changes what varies between schools, and not what a child's variance is of
    found = child.derived.explained_variance(school).filter(measure="raudenbush_bryk")
    assert found["proportion"].is_null().to_list() == [False, True, False]
    assert found["note"][1] == (
        "the predictors that vary within schoolid differ (black only in the model): the variances are of different "
        "quantities"
    )


def test_explained_variance_needs_the_same_factors(plates: pl.DataFrame) -> None:
    one, both = fitted(ONE, plates), fitted(BOTH, plates)
    with pytest.raises(mlsql.FitError, match="random effects of plate, sample, the baseline of plate: variances are"):
        both.derived.explained_variance(one)


# other rows

OTHER = {
    "fewer": (lambda d: d[1:], "different rows \\(143 and 144\\)"),
    "other values": (lambda d: d.with_columns(pl.col("diameter") * 2), "other values of diameter"),
    "other groups": (
        # the same values over all, plates renamed in a ring
        lambda d: d.with_columns(pl.col("plate").shift(6).fill_null(pl.col("plate").last())),
        "other rows or values of diameter in the groups of plate; fit both",
    ),
    "other sizes": (
        lambda d: d.with_columns(
            pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("b")).otherwise("plate").alias("plate")
        ),
        "in the groups of plate",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_other_rows_are_refused(plates: pl.DataFrame, case: str) -> None:
    change, message = OTHER[case]
    other, both = fitted(ONE, change(plates)), fitted(BOTH, plates)
    for pair in ((other, both), (both, other)):
        with pytest.raises(mlsql.FitError, match=message.replace("143 and 144", "14[34] and 14[34]")):
            mlsql.compare(*pair)
    with pytest.raises(mlsql.FitError, match=message.replace("143 and 144", "14[34] and 14[34]")):
        both.likelihood_ratio(other)


def test_types_of_keys_may_differ(plates: pl.DataFrame) -> None:
    """The same data from another source: categories, and another order of rows, which pivots otherwise."""
    both = fitted(BOTH, plates)
    coded = plates.with_columns(pl.col("plate").cast(pl.Categorical)).sample(fraction=1.0, shuffle=True, seed=1)
    assert mlsql.compare(fitted(ONE, coded), both)["df"].to_list() == [None, 1]


def test_no_column_in_common(plates: pl.DataFrame) -> None:
    """Row counts and sums over all are what both know."""
    sample, plate = fitted("diameter ~ 1 + (1 | sample)", plates), fitted(ONE, plates)
    assert mlsql.compare(sample, plate)["note"][1] is not None


def test_sets_of_a_membership_are_no_groups_in_common() -> None:
    rows = pl.DataFrame({"y": [1.0, 2, 4, 3, 5, 7, 2, 1, 4, 2], "pupil": [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]})
    one = pl.DataFrame({"pupil": [1, 2, 3, 4, 5], "teacher": ["a", "b", "b", "a", "c"]})
    more = pl.concat([one, pl.DataFrame({"pupil": [1, 4], "teacher": ["b", "c"]})])
    fits = [
        mlsql.fit("y ~ 1 + (1 | teacher)", rows, memberships={"teacher": mlsql.Membership(h, on="pupil")})
        for h in (one, more)
    ]
    table = mlsql.compare(*fits)
    assert table["aic"].null_count() == 0
    note = "the memberships of teacher are not the same in both models; compare them by AIC or BIC"
    assert table["note"].to_list() == [None, note]
    pupil, named = mlsql.fit("y ~ 1 + (1 | pupil)", rows), {"teacher": mlsql.Membership(more, on="pupil")}
    both = mlsql.fit("y ~ 1 + (1 | pupil) + (1 | teacher)", rows, memberships=named)
    assert mlsql.compare(pupil, both)["df"].to_list() == [None, 1]
    assert mlsql.compare(fits[1], both)["df"].to_list() == [None, 1]
    assert mlsql.compare(fits[0], both)["note"][1] == note
