"""Hypotheses, methods and data that inference cannot use: each is refused with what, why and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pytest

import mlsql


@pytest.fixture
def fit(con: duckdb.DuckDBPyConnection) -> mlsql.Fit:
    return mlsql.fit("y ~ f*x + (1 | g)", "t", con=con)


def expect(parts: list[str], call: Callable[..., Any], *args: Any, error: Any = mlsql.FitError, **named: Any) -> None:
    """This error, with all these parts in its message."""
    with pytest.raises(error) as caught:
        call(*args, **named)
    # the error itself, not a relative
    assert caught.type is error
    assert [p for p in parts if p not in str(caught.value)] == [], str(caught.value)


# ---------------------------------------------------------------------------------------------- hypotheses


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("z", ["'z'", "is not a fixed effect", "fixed effects are (Intercept), f[b], f[c], x, f[b]:x, f[c]:x"]),
        ("f[a] = 0", ["'f[a]'", "is not a fixed effect", "did you mean", "f[b]"]),
        ("x:f[b]", ["is not a fixed effect", "f[b]:x"]),
        ("Intercept = 2", ["'Intercept'", "did you mean (Intercept)?"]),
        ("x = xx", ["'x = xx'", "'xx'"]),
        ("f[b] - f = 0", ["'f' is not a fixed effect", "f[b]"]),
        ("x = 0 = 0", ["'x = 0 = 0' is no linear equation", "write it as 'a - b = 0'"]),
        ("x == 0", ["'x == 0' is no linear equation", "write it as"]),
        ("x =", ["is no linear equation"]),
        ("= 0", ["is no linear equation"]),
        ("", ["is no linear equation"]),
        ("x f[b]", ["a + or - is missing before 'f[b]'"]),
        ("x > 0", ["a + or - is missing before '> 0'"]),
        ("x/0", ["x is divided by"]),
        ("x/f[b]", ["x is divided by something that is no number"]),
        ("2*3*x", ["'2*3*x'"]),
        ("(x + f[b])/2", ["'(x + f[b])/2'"]),
        ("x*x", ["'x*x'"]),
    ],
)
def test_what_is_no_linear_equation_of_terms(fit: mlsql.Fit, text: str, parts: list[str]) -> None:
    expect(parts, fit.test, text)
    expect(parts, fit.test, ["f[c]", text])


@pytest.mark.parametrize("text", ["x +", "x + = 0", "x - , f[b]"])
def test_a_sum_without_its_last_term(fit: mlsql.Fit, text: str) -> None:
    """The complaint is about what is missing, not about a fixed effect with an empty name."""
    with pytest.raises(mlsql.FitError) as caught:
        fit.test(text)
    assert "'' is not" not in str(caught.value)


@pytest.mark.parametrize("text", ["x = 1e999", "1e999*x"])
def test_numbers_that_are_not_finite(fit: mlsql.Fit, text: str) -> None:
    expect([], fit.test, text)


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [
        ([1.0, 0.0], "(1, 2)"),
        (np.eye(5), "(5, 5)"),
        (np.ones((1, 7)), "(1, 7)"),
        (np.ones((2, 2, 6)), "(2, 2, 6)"),
        ([], "(1, 0)"),
        ([[]], "(1, 0)"),
        (3, "(1, 1)"),
        (None, "(1, 1)"),
        ([[np.nan] * 6], "(1, 6)"),
        ([[np.inf] + [0.0] * 5], "(1, 6)"),
    ],
)
def test_matrices_of_the_wrong_shape(fit: mlsql.Fit, matrix: Any, shape: str) -> None:
    expect([f"shape {shape}", "needs 6 finite columns", "(Intercept), f[b], f[c], x, f[b]:x, f[c]:x"], fit.test, matrix)


@pytest.mark.parametrize("given", [{"x": 1}, [["x"]], ["x", 1], object(), [[1.0, 2.0], [3.0]]])
def test_what_is_neither_text_nor_matrix(fit: mlsql.Fit, given: Any) -> None:
    expect(["a hypothesis is text or a matrix of numbers"], fit.test, given)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["x", "2*x = 1"], ["2 rows of rank 1", "follow from the others"]),
        ("f[b], f[c], f[b] = f[c]", ["3 rows of rank 2", "leave those out"]),
        (np.zeros((1, 6)), ["a row is zero"]),
        ("x - x", ["a row is zero"]),
        ("1 = 1", ["a row is zero"]),
        (np.vstack([np.eye(6), np.ones(6)]), ["7 rows of rank 6"]),
    ],
)
def test_rows_that_follow_from_others(fit: mlsql.Fit, given: Any, parts: list[str]) -> None:
    expect(parts, fit.test, given)


# ---------------------------------------------------------------------------------------------- methods

DF = "it is one of hlm, between_within, residual, satterthwaite, kenward_roger, normal"


@pytest.mark.parametrize("df", ["Satterthwaite", "kr", "", 3, 12.5, ["hlm"], float("inf")])
def test_names_of_df(fit: mlsql.Fit, df: Any) -> None:
    for call in (fit.inference, fit.confint, fit.reference):
        expect([f"df is {df!r}", DF], call, df=df)
    expect([f"df is {df!r}", DF], fit.test, "x", df=df)


@pytest.mark.parametrize("vcov", ["HC1", "cr2", "", None, True, ["CR0"]])
def test_names_of_vcov(fit: mlsql.Fit, vcov: Any) -> None:
    # intervals have a default of their own
    for call in (fit.inference, fit.reference, *([fit.confint] if vcov is not None else [])):
        expect([f"vcov is {vcov!r}", "it is one of model, CR0, CR1, CR2"], call, vcov=vcov)
    expect([f"vcov is {vcov!r}"], fit.test, "x", vcov=vcov)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, float("nan"), None, "0.95"])
def test_levels(fit: mlsql.Fit, level: Any) -> None:
    for call in (fit.inference, fit.confint):
        expect([f"level is {level}", "between 0 and 1", "0.95"], call, level=level)


def test_kenward_roger_needs_reml_and_the_models_covariance(con: duckdb.DuckDBPyConnection, fit: mlsql.Fit) -> None:
    ml = mlsql.fit("y ~ x + (1 | g)", "t", con=con, method="ML")
    expect(["REML", "this fit is by ML", "method='REML'", "df='satterthwaite'"], ml.inference, df="kenward_roger")
    for vcov in ("CR0", "CR1", "CR2"):
        parts = ["df='kenward_roger'", f"does not exist for vcov={vcov!r}", "df='satterthwaite'"]
        expect(parts, fit.inference, df="kenward_roger", vcov=vcov)
        expect(parts, fit.test, "x", df="kenward_roger", vcov=vcov)


# ---------------------------------------------------------------------------------------------- too few groups


def test_cr2_needs_more_groups_than_fixed_effects(con: duckdb.DuckDBPyConnection) -> None:
    """Six fixed effects and 4 or 6 groups are refused, 7 groups are not."""
    for groups in (4, 6):
        few = mlsql.fit("y ~ f*x + (1 | g)", f"SELECT * FROM t WHERE g < {groups}", con=con)
        parts = ["vcov='CR2' needs more groups than fixed effects", f"not {groups} for 6", "vcov='model'"]
        expect(parts, few.inference, vcov="CR2")
        expect(parts, few.test, "x", vcov="CR2", df="hlm")
        # what the message advises exists
        assert few.inference(df="kenward_roger")["std_error"].is_finite().all()
    enough = mlsql.fit("y ~ f*x + (1 | g)", "SELECT * FROM t WHERE g < 7", con=con)
    assert enough.inference(vcov="CR2")["std_error"].is_finite().all()


@pytest.mark.parametrize("vcov", ["CR0", "CR1"])
def test_a_robust_test_of_more_contrasts_than_groups(con: duckdb.DuckDBPyConnection, vcov: str) -> None:
    """J scores that sum to zero give a matrix of rank J - 1 at most."""
    few = mlsql.fit("y ~ f*x + (1 | g)", "SELECT * FROM t WHERE g < 4", con=con)
    terms = ["f[b]", "f[c]", "x", "f[b]:x"]
    parts = [f"(vcov={vcov!r})", "4 contrasts is singular", "too few groups", "test fewer, or use vcov='model'"]
    expect(parts, few.test, terms, vcov=vcov)
    assert few.test(terms)["df1"].item() == 4


def test_a_robust_test_whose_df_are_used_up(con: duckdb.DuckDBPyConnection) -> None:
    """As many contrasts as J - 1 leave eta - r + 1 <= 0 df."""
    few = mlsql.fit("y ~ f*z + x + (1 | g)", "SELECT * FROM t WHERE g < 8", con=con)
    parts = [
        "too few groups for a robust test of 7 coefficients",
        "its df is -",
        "test fewer coefficients, or use vcov=",
    ]
    expect(parts, few.test, np.eye(7), vcov="CR2")
    assert few.test(np.eye(7)[1:3], vcov="CR2")["df2"].item() > 0


# ---------------------------------------------------------------------------------------------- data that changed


@pytest.fixture
def lean(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> mlsql.Fit:
    """A fit whose robust errors need another scan, of a temporary table."""
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    con.execute("CREATE TEMP TABLE temporary AS SELECT * FROM t ORDER BY hash(i)")
    found = mlsql.fit("y ~ x + (1 | g)", "temporary", con=con)
    assert found.estimates.design.layout == "lean"
    return found


CHANGED = ["the data have changed since the fit", "fit again"]


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ("INSERT INTO temporary SELECT * FROM temporary LIMIT 2", ["120 rows in 12 groups", "122 in 12"]),
        ("INSERT INTO temporary SELECT * REPLACE (99 AS g) FROM temporary LIMIT 1", ["121 in 13"]),
        ("DELETE FROM temporary WHERE g = 3", ["110 in 11"]),
        ("DELETE FROM temporary", ["0 in 0"]),
        ("UPDATE temporary SET g = g + 100", []),
        ("UPDATE temporary SET x = NULL WHERE i = 5", []),
    ],
)
def test_rows_that_changed_since_the_fit(
    con: duckdb.DuckDBPyConnection, lean: mlsql.Fit, change: str, now: list[str]
) -> None:
    con.execute(change)
    for _ in range(2):
        # again: nothing half done is kept
        expect([*CHANGED, *now], lean.inference, error=mlsql.DataError, vcov="CR2")
    # the model's own errors need no data
    assert lean.inference(df="kenward_roger")["std_error"].is_finite().all()


@pytest.mark.parametrize("change", ["x = x * 3", "y = y + (i % 7)", "x = y, y = x"])
def test_values_that_changed_since_the_fit(con: duckdb.DuckDBPyConnection, lean: mlsql.Fit, change: str) -> None:
    """As many rows in every group, but other ones: their products do not add up to those of the fit."""
    con.execute(f"UPDATE temporary SET {change}")
    expect(CHANGED, lean.inference, error=mlsql.DataError, vcov="CR0")


def test_a_table_that_is_gone(con: duckdb.DuckDBPyConnection, lean: mlsql.Fit) -> None:
    con.execute("DROP TABLE temporary")
    for call in (lean.inference, lean.confint):
        # which query, why it was needed, and what does without
        expect(["products by group", "temporary", "robust", "vcov='model'"], call, error=mlsql.QueryError, vcov="CR0")
    assert lean.inference()["std_error"].is_finite().all()
    assert lean.test("x")["p_value"].is_finite().all()


def test_estimates_can_be_read_when_their_table_is_gone(con: duckdb.DuckDBPyConnection, lean: mlsql.Fit) -> None:
    """What has been estimated does not get lost for want of the robust column."""
    con.execute("DROP TABLE temporary")
    assert lean.fixed_effects["estimate"].is_finite().all()
    assert "x" in lean.summary()


def test_products_fetched_in_time_are_kept(con: duckdb.DuckDBPyConnection, lean: mlsql.Fit) -> None:
    before = lean.inference(vcov="CR2")
    con.execute("DROP TABLE temporary")
    assert lean.inference(vcov="CR2").equals(before)
    assert lean.fixed_effects["robust_std_error"].is_finite().all()
