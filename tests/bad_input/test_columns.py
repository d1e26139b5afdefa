"""Columns, functions and types that do not fit the model."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pytest

import mlsql

Refuse = Callable[..., str]


@pytest.mark.parametrize(
    ("formula", "where", "name", "hint"),
    [
        ("y ~ xx + (1 | g)", "xx", "xx", "did you mean 'x'"),
        ("y ~ flags + (1 | g)", "flags", "flags", "did you mean 'flag'"),
        ("y ~ FLAGG + (1 | g)", "FLAGG", "FLAGG", "did you mean 'flag'"),
        ("y ~ nothing_like_it + (1 | g)", "nothing_like_it", "nothing_like_it", "columns are 'i', 'g', 'x', 'z'"),
        ("yy ~ x + (1 | g)", "yy", "yy", "did you mean 'y'"),
        ("y ~ x + (1 | gg)", "gg", "gg", "did you mean 'g'"),
        ("y ~ x + (zz | g)", "zz", "zz", "did you mean 'z'"),
        ("y ~ log(xx) + (1 | g)", "log(xx)", "xx", "did you mean 'x'"),
        ("y ~ I(x + xx) + (1 | g)", "I(x + xx)", "xx", "did you mean 'x'"),
        ("y ~ group_center(xx) + (1 | g)", "group_center(xx)", "xx", "did you mean 'x'"),
        ("y ~ C(ff) + (1 | g)", "ff", "ff", "did you mean 'f'"),
        ("log(yy) ~ x + (1 | g)", "log(yy)", "yy", "did you mean 'y'"),
        ("y ~ x + (1 | g:hh)", "hh", "hh", "columns are"),
        ("y ~ x + (1 | I(gg // 2))", "I(gg // 2)", "gg", "did you mean 'g'"),
        ("y ~ x + offset(zz) + (1 | g)", "zz", "zz", "did you mean 'z'"),
    ],
)
def test_unknown_columns(refuse: Refuse, formula: str, where: str, name: str, hint: str) -> None:
    message = refuse(mlsql.DataError, [where, f"column '{name}' is not in the data", hint], formula)
    if "offset" in formula:
        # the offset is at fault, not the outcome
        assert "offset" in message or message.startswith("zz")
    else:
        assert message.startswith(where)


def test_unknown_weights(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["column 'zz' is not in the data", "did you mean 'z'"], "y ~ x + (1 | g)", weights="zz")


def test_long_lists_of_columns_are_cut(refuse: Refuse, con: duckdb.DuckDBPyConnection) -> None:
    columns = ", ".join(f"{i} AS column_{i}" for i in range(300))
    message = refuse(mlsql.DataError, ["... (307 in all)"], "y ~ q + (1 | g)", f"SELECT *, {columns} FROM t")
    assert len(message) < 500


def test_case_does_not_matter(con: duckdb.DuckDBPyConnection) -> None:
    upper = mlsql.fit("Y ~ X + F + (X | G)", "t", con=con)
    lower = mlsql.fit("y ~ x + f + (x | g)", "t", con=con)
    assert upper.deviance == pytest.approx(lower.deviance, rel=1e-11)
    assert upper.predict().height == 120  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("formula", "parts"),
    [
        ("y ~ foo(x) + (1 | g)", ["foo(x)", "does not exist"]),
        ("y ~ loog(x) + (1 | g)", ["loog(x)", 'Did you mean "log"']),
        ("y ~ I(foo(x) + 1) + (1 | g)", ["I(foo(x) + 1)", "foo does not exist"]),
        ("foo(y) ~ x + (1 | g)", ["foo(y)", "does not exist"]),
        ("y ~ x + (1 | foo(g))", ["foo(g)", "does not exist"]),
        ("y ~ group_center(foo(x)) + (1 | g)", ["foo does not exist"]),
        ("y ~ log(f) + (1 | g)", ["log(f)", "No function matches", "VARCHAR"]),
        ("y ~ I(x.y) + (1 | g)", ["I(x.y)"]),
        ("y ~ I(?) + (1 | g)", ["I(?)"]),
        ("y ~ I($1) + (1 | g)", ["I($1)"]),
    ],
)
def test_functions_that_do_not_exist_or_fit(refuse: Refuse, formula: str, parts: list[str]) -> None:
    refuse(mlsql.FormulaError, parts, formula)


def test_functions_in_weights(refuse: Refuse) -> None:
    refuse(mlsql.FormulaError, ["foo(x)", "does not exist"], "y ~ x + (1 | g)", weights="foo(x)")


def test_an_offset_of_the_wrong_type_is_named(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["offset(f)", "VARCHAR", "must be numeric"], "y ~ x + offset(f) + (1 | g)")


@pytest.mark.parametrize(
    "call", ["unnest([1, x])", "COLUMNS('x|z')", "[x]", "{'a': x}", "NULL", "generate_series(1, 3)"]
)
def test_expressions_that_are_no_number_of_a_row(con: duckdb.DuckDBPyConnection, call: str) -> None:
    with pytest.raises(mlsql.MlsqlError):
        mlsql.fit(f"y ~ I({call}) + (1 | g)", "t", con=con)


def test_a_value_that_cannot_be_converted(refuse: Refuse) -> None:
    parts = ["Could not convert string 'a'"]
    refuse(mlsql.QueryError, parts, "y ~ I(CAST(f AS INTEGER)) + (1 | g)")


def test_a_failed_query_carries_its_step_and_text(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(mlsql.QueryError) as caught:
        mlsql.fit("y ~ I(CAST(f AS INTEGER)) + (1 | g)", "t", con=con)
    assert caught.value.step == "survey of data"
    assert caught.value.sql.startswith("SELECT")
    assert "'survey of data'" in str(caught.value)


@pytest.mark.parametrize(
    ("formula", "kind"),
    [("f ~ x + (1 | g)", "VARCHAR"), ("flag ~ x + (1 | g)", "BOOLEAN"), ("upper(f) ~ x + (1 | g)", "VARCHAR")],
)
def test_an_outcome_that_is_no_number(refuse: Refuse, formula: str, kind: str) -> None:
    outcome = formula.split(" ~ ", maxsplit=1)[0]
    refuse(mlsql.DataError, [f"the outcome {outcome} has type {kind}", "must be numeric", "CAST("], formula)


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("DATE '2020-01-01' + i::INT", "DATE"),
        ("TIMESTAMP '2020-01-01' + INTERVAL 1 DAY * i", "TIMESTAMP"),
        ("INTERVAL 1 DAY * i", "INTERVAL"),
        ("[x]", "DOUBLE[]"),
        ("{'a': x}", "STRUCT(a DOUBLE)"),
        ("'00000000-0000-4000-8000-000000000000'::UUID", "UUID"),
    ],
)
def test_a_predictor_that_is_no_number_and_no_category(refuse: Refuse, expression: str, kind: str) -> None:
    parts = [f"predictor d has type {kind}", "neither a number nor a category", "date_diff", "C(x)"]
    refuse(mlsql.DataError, parts, "y ~ d + (1 | g)", f"SELECT *, {expression} AS d FROM t")


def test_dates_become_numbers_by_the_advice(con: duckdb.DuckDBPyConnection) -> None:
    data = "SELECT *, DATE '2020-01-01' + (100 * x)::INT AS d FROM t"
    fitted = mlsql.fit("y ~ I(date_diff('day', DATE '2020-01-01', d)) + (1 | g)", data, con=con)
    assert fitted.converged


def test_the_outcome_among_the_predictors(refuse: Refuse) -> None:
    refuse(mlsql.FormulaError, ["the outcome y is also a predictor"], "y ~ y + x + (1 | g)")
    parts = ["reproduces the outcome exactly", "is the outcome also among the predictors?"]
    for formula in ("Y ~ y + (1 | g)", "y ~ I(y * 2) + (1 | g)", "y ~ x + I(3 - y) + (x | g)"):
        refuse(mlsql.FitError, parts, formula)


def test_the_group_among_the_predictors(refuse: Refuse) -> None:
    refuse(mlsql.FormulaError, ["g is a grouping column and cannot also be a predictor"], "y ~ g + (1 | g)")


def test_a_model_that_reproduces_the_outcome(refuse: Refuse, con: duckdb.DuckDBPyConnection) -> None:
    refuse(
        mlsql.FitError,
        ["reproduces the outcome exactly"],
        "y ~ x + (1 | g)",
        "SELECT * REPLACE (3 + 2 * x AS y) FROM t",
    )
