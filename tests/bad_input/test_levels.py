"""Several grouping factors: nesting not written, factors that repeat each other, lonely cells, memory, memberships."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.moments import structure
from mlsql.results import cost, memory

Refuse = Callable[..., str]
FitTable = Callable[..., mlsql.Fit]

CROSSED = "y ~ x + (1 | g) + (1 | f)"


@pytest.fixture
def fit(con: duckdb.DuckDBPyConnection) -> FitTable:
    """Fit the small table, or a query of it."""

    def fitted(formula: str, data: Any = "t", **named: Any) -> mlsql.Fit:
        return mlsql.fit(formula, data, **({"con": con} | named))

    return fitted


def about_groups(fit: mlsql.Fit) -> list[str]:
    """Warnings but those of a variance that is estimated as zero."""
    return [w for w in fit.warnings if not w.startswith(("singular", "the variance of", "the correlation of"))]


# --------------------------------------------------------------------------------------------- implicit nesting


def test_labels_that_start_anew_in_every_group(fit: FitTable) -> None:
    crossed = fit(CROSSED)
    warning = "f takes the same values within each g: if f a of one g is not f a of another, write (1 | g/f)"
    assert about_groups(crossed) == [warning]
    # a warning only: they are taken as crossed, as written
    assert crossed.levels.factors()["groups"].to_list() == [12, 3]
    nested = fit("y ~ x + (1 | g/f)")
    assert about_groups(nested) == []
    assert nested.levels.factors()["groups"].to_list() == [12, 36]


def test_labels_of_their_own_need_no_slash(fit: FitTable) -> None:
    """A child's number that no other school has nests it without the formula's help."""
    data = "SELECT *, g * 100 + i % 5 AS child FROM t"
    implied, written = fit("y ~ x + (1 | g) + (1 | child)", data), fit("y ~ x + (1 | g/child)", data)
    assert about_groups(implied) == []
    assert implied.levels.structure()["inner"].to_list() == ["child"]
    # the same model summed in another order: rounding
    assert implied.deviance == pytest.approx(written.deviance, abs=1e-8)


# --------------------------------------------------------------------------------------- factors by themselves


@pytest.mark.parametrize("formula", ["y ~ x + (1 | g) + (1 | h)", "y ~ x + (1 | h/g)"])
def test_a_factor_with_one_level(refuse: Refuse, formula: str) -> None:
    parts = ["random term (1 | h): h has 1 level in 120 rows", "at least 2 are needed", "check the filter or drop"]
    refuse(mlsql.DesignError, parts, formula, "SELECT *, 7 AS h FROM t")


def test_one_level_left_by_missing_values(refuse: Refuse) -> None:
    data = "SELECT *, CASE WHEN flag THEN 7 END AS h FROM t"
    refuse(mlsql.DesignError, ["h has 1 level in 60 rows"], "y ~ x + (1 | g) + (1 | h)", data)


@pytest.mark.parametrize(("formula", "name"), [("y ~ x + (1 | g) + (1 | i)", "i"), ("y ~ x + (1 | g/i)", "g:i")])
def test_a_factor_with_a_level_for_each_row(refuse: Refuse, formula: str, name: str) -> None:
    parts = [f"{name} has as many values as rows (120)", "every group has one row", "choose a column that repeats"]
    refuse(mlsql.DesignError, parts, formula)


def test_more_coefficients_than_rows_of_the_finest_groups(refuse: Refuse) -> None:
    parts = ["2 random coefficients of g:pair", "no group has more than 2 rows", "use fewer random coefficients"]
    refuse(mlsql.DesignError, parts, "y ~ x + (x | g/pair)", "SELECT *, i // 2 AS pair FROM t")


def test_a_slope_over_few_groups_is_warned_of(fit: FitTable) -> None:
    warnings = about_groups(fit("y ~ x + (1 | g) + (x | flag)"))
    assert [w for w in warnings if w.startswith("flag has 2 groups for 3 variances and covariances of 2 random")]


def test_a_coefficient_given_twice(refuse: Refuse) -> None:
    parts = ["the random coefficient (Intercept) of g is given twice", "keep one"]
    refuse(mlsql.FormulaError, parts, "y ~ x + (1 | g) + (1 | g)")


def test_centring_says_which_groups(refuse: Refuse) -> None:
    parts = ["the model has 2 grouping factors (g, f)", "name the one that is meant", "group_center(x, g)"]
    refuse(mlsql.FormulaError, parts, "y ~ group_center(x) + (1 | g) + (1 | f)")
    parts = ["the group 'k' is none of the model's groups", "they are g, f"]
    refuse(mlsql.FormulaError, parts, "y ~ group_mean(x, k) + (1 | g) + (1 | f)")


# ------------------------------------------------------------------------------------ factors that say the same


def test_two_identical_factors(refuse: Refuse) -> None:
    data = "SELECT *, 'group ' || g AS name FROM t"
    parts = ["g and name have the same 12 groups", "their variances of (Intercept) cannot be told", "(1 | g)"]
    refuse(mlsql.DesignError, parts, "y ~ x + (1 | g) + (1 | name)", data)
    refuse(mlsql.DesignError, ["variances of (Intercept), x"], "y ~ x + (x | g) + (x | name)", data)
    # the finer groups of a nesting too
    refuse(mlsql.DesignError, ["g and g:name have the same 12 groups"], "y ~ x + (1 | g/name)", data)


def test_identical_factors_with_different_coefficients(fit: FitTable) -> None:
    """Intercepts under one name and slopes under another is what || means, if it is meant."""
    split = fit("y ~ x + (1 | g) + (0 + x | h)", "SELECT *, -g AS h FROM t")
    (warning,) = about_groups(split)
    assert warning.startswith("g and h have the same 12 groups, and covariances of 1 with x are zero by the formula")
    assert "(1 + x | g)" in warning
    # the same model by another path of the likelihood: rounding
    assert split.deviance == pytest.approx(fit("y ~ x + (x || g)").deviance, abs=1e-8)


def test_a_factor_that_is_a_function_of_another(fit: FitTable) -> None:
    """Its groups contain those of the other: three levels, as if written so."""
    data = "SELECT *, g // 3 AS region FROM t"
    implied, written = fit("y ~ x + (1 | g) + (1 | region)", data), fit("y ~ x + (1 | region/g)", data)
    assert about_groups(implied) == []
    assert implied.levels.structure().select("relation", "inner").row(0) == ("nested", "g")
    assert implied.n_groups == 4
    # the same model summed in another order: rounding
    assert implied.deviance == pytest.approx(written.deviance, abs=1e-8)


# ---------------------------------------------------------------------------------------------- random cells


@pytest.mark.parametrize("cell", ["g:k", "label"])
def test_cells_of_one_row_and_a_random_cell(refuse: Refuse, cell: str) -> None:
    """Also under a name of its own."""
    parts = [
        f"random term (1 | {cell}): each of its 120 groups, the occupied combinations of g and k, has one row",
        "its variance cannot be told from sigma2",
        "drop the term: sigma2 then contains it",
    ]
    data = "SELECT *, i % 10 AS k, 'cell ' || i AS label FROM t"
    refuse(mlsql.DesignError, parts, f"y ~ x + (1 | g) + (1 | k) + (1 | {cell})", data)


def test_cells_of_mostly_one_row_and_a_random_cell(fit: FitTable) -> None:
    warnings = about_groups(
        fit("y ~ x + (1 | g) + (1 | k) + (1 | g:k)", "SELECT *, least(i % 10, 8) AS k FROM t")
    )  # fmt: skip
    assert warnings == [
        "g:k, the combination of g and k: 96 of 108 cells (89%) have one row, and only the other 12 tell its variance "
        "from sigma2; consider dropping the term: sigma2 then contains it"
    ]


# ---------------------------------------------------------------------------------------------------- memory


def available(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: size)


def test_a_joint_matrix_that_would_not_fit(refuse: Refuse, fit: FitTable, monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 2_000)
    data = "SELECT *, i % 11 AS k FROM t"
    parts = [
        "k solved jointly in a dense matrix of 11 columns: this needs about 22 kB of memory, and 2 kB are available",
        "use fewer random coefficients or groups of crossed factors, or a machine with more memory",
    ]
    refuse(mlsql.FitError, parts, "y ~ x + (1 | g) + (1 | k)", data)
    # with slopes the other factor is the larger
    refuse(mlsql.FitError, ["a dense matrix of 12 columns: this needs about 37 kB"], "y ~ x + (1 | g) + (x | k)", data)
    # nested factors have no such matrix, but products by cell
    refuse(mlsql.FitError, ["cells of 2 factors: this needs about"], "y ~ x + (1 | g/f)")
    available(monkeypatch, 30_000)
    assert fit("y ~ x + (1 | g) + (1 | k)", data).converged


def test_a_sparse_matrix_that_would_not_fit(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before its pattern is made, or before its factor is."""
    data = "SELECT *, i % 11 AS k FROM t"
    for module in (structure, cost):
        monkeypatch.setattr(module, "DENSE", 5)
    available(monkeypatch, 500)
    parts = ["k solved jointly in a sparse matrix of 11 columns: this needs about", "and 0 kB are available"]
    refuse(mlsql.FitError, parts, "y ~ x + (1 | g) + (1 | k)", data)
    left = iter([1_000_000, 500])
    monkeypatch.setattr(memory, "available_memory", lambda: next(left))
    parts = ["the sparse factor of the crossed factors' 11 columns: this needs about"]
    refuse(mlsql.FitError, parts, "y ~ x + (1 | g) + (1 | k)", data)


def test_what_does_not_fit_can_still_be_planned(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(monkeypatch, 10)
    notes = mlsql.plan(CROSSED, "t", con=con, survey=True).notes
    assert "g absorbed group by group; f solved jointly in a dense matrix of 3 columns" in notes


# ----------------------------------------------------------------------------------------------- memberships


SCORES = pl.DataFrame(
    {
        "child": np.repeat(np.arange(30), 3),
        "year": np.tile(np.arange(3), 30),
        "y": np.random.default_rng(3).normal(size=90),
    }
)
MET = pl.DataFrame(
    {
        "child": np.repeat(np.arange(30), 3),
        "year": np.tile(np.arange(3), 30),
        "teacher": np.random.default_rng(4).integers(0, 6, 90),
        "share": 1.0,
    }
)
BY_TEACHER = "y ~ year + (1 | child) + (1 | teacher)"


def member(history: pl.DataFrame, data: pl.DataFrame = SCORES, **named: Any) -> mlsql.Fit:
    given = mlsql.Membership(history, **({"on": "child", "time": "year", "weight": "share"} | named))
    return mlsql.fit(BY_TEACHER, data, memberships={"teacher": given})


def with_share(value: float | None) -> pl.DataFrame:
    """Another weight for what child 7 met in year 1."""
    row = (pl.col("child") == 7) & (pl.col("year") == 1)
    return MET.with_columns(share=pl.when(row).then(pl.lit(value, pl.Float64)).otherwise("share"))


@pytest.mark.parametrize(
    ("share", "found"),
    [
        (-0.5, "1 row of the membership table with a negative weight, first child 7, year 1, teacher "),
        (None, "1 row of the membership table with no weight, first child 7, year 1, teacher "),
        (float("nan"), "1 row of the membership table with a weight that is NaN, first child 7, year 1, teacher "),
        (float("inf"), "1 row of the membership table with an infinite weight, first child 7, year 1, teacher "),
    ],
    ids=["negative", "missing", "NaN", "infinite"],
)
def test_weights_that_are_none(share: float | None, found: str) -> None:
    with pytest.raises(mlsql.DataError) as caught:
        member(with_share(share))
    assert "memberships of teacher: " + found in str(caught.value)
    assert "each needs a unit, a time and a finite weight of 0 or more" in str(caught.value)


def test_a_weight_of_zero_is_no_membership() -> None:
    zero, absent = member(with_share(0.0)), member(MET.filter(~((pl.col("child") == 7) & (pl.col("year") == 1))))
    # the same sums of the same rows in the same order
    assert zero.deviance == absent.deviance


def test_entries_of_unknown_rows_are_counted() -> None:
    unknown = MET.head(2).with_columns(child=pl.lit(99, pl.Int64))
    fitted = member(pl.concat([MET, unknown]))
    assert fitted.warnings[0] == (
        "memberships of teacher: 2 of 92 entries refer to no row of the data, at their year or later; they were left "
        "out"
    )
    # entries left out leave no trace
    assert fitted.deviance == member(MET).deviance


def test_rows_of_unknown_members_are_counted() -> None:
    fitted = member(MET.filter(pl.col("child") != 7))
    assert fitted.warnings[0] == (
        "memberships of teacher: 3 rows of the data without any unit (3 with child that the membership table does not "
        "have); they stay, with no effect of teacher"
    )
    assert fitted.n_rows == 90


def test_a_membership_table_of_other_rows() -> None:
    with pytest.raises(mlsql.DataError, match="no row of the data takes any of the 90 entries of the membership table"):
        member(MET.with_columns(child=pl.col("child") + 100))


def test_a_membership_that_the_model_does_not_use() -> None:
    given = mlsql.Membership(MET, on="child", time="year")
    with pytest.raises(
        mlsql.FormulaError, match="given for 'teacher', which is no factor of the model; its factors are"
    ):
        mlsql.fit("y ~ year + (1 | child)", SCORES, memberships={"teacher": given})


# ------------------------------------------------------------------------------------------ asking a fit of several


def test_groups_of_which_factor(fit: FitTable) -> None:
    fitted = fit(CROSSED)
    with pytest.raises(mlsql.FitError, match=r"2 grouping factors, g, f; name one: group_effects\('g'\)"):
        fitted.group_effects()
    with pytest.raises(mlsql.FitError, match="no random effects of 'g:f'; its groups are g, f"):
        fitted.group_effects("g:f")


def test_predictions_of_a_factor_that_is_none(fit: FitTable) -> None:
    with pytest.raises(mlsql.FitError, match="terms has 'k', which is no grouping factor of the model; its factors"):
        fit(CROSSED).predict(terms=["g", "k"])


def test_predictions_of_groups_that_were_not_seen(fit: FitTable) -> None:
    fitted = fit(CROSSED)
    new = pl.DataFrame({"g": [3, 77, 78], "f": ["a", "b", "z"], "x": [0.1, 0.2, 0.3]})
    with pytest.raises(mlsql.DataError) as caught:
        fitted.predict(new)
    message = str(caught.value)
    assert (
        "2 rows belong to 2 groups of g (g 77; g 78) and 1 rows belong to 1 groups of f (f z) that the fit" in message
    )
    assert "unseen='population'" in message
    # the factor alone whose groups are known
    known = fitted.predict(new.head(2), terms="f")
    assert known is not None
    assert known["conditional"].null_count() == 0


@pytest.mark.parametrize(
    ("T", "message"),
    [
        (1.0, "2 grouping factors: T is a mapping with a matrix for each of"),
        ({"g": 1.0}, "T has no matrix for f; give one for every grouping factor"),
        ({"g": 1.0, "f": 1.0, "k": 1.0}, "T has a matrix for 'k', which is no grouping factor of the model"),
        ({"g": [[1.0, 0.0], [0.0, 1.0]], "f": 1.0}, r"T of g has shape \(2, 2\), but 1 coefficients vary over g"),
        ({"g": 1.0, "f": -1.0}, "T is not a covariance matrix"),
    ],
    ids=["a number", "one missing", "one too many", "its shape", "negative"],
)
def test_variances_that_are_given(con: duckdb.DuckDBPyConnection, T: Any, message: str) -> None:
    with pytest.raises(mlsql.FitError, match=message):
        mlsql.evaluate(CROSSED, "t", con=con, T=T, sigma2=0.1)
