"""Level-2 tables that do not fit the rows."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pytest

import mlsql

Refuse = Callable[..., str]
FORMULA = "y ~ x*w + k + (1 | g)"


def fit(con: duckdb.DuckDBPyConnection, level2: str, formula: str = FORMULA, data: str = "t") -> mlsql.Fit:
    return mlsql.fit(formula, data, con=con, level2=level2)


def test_duplicate_keys(refuse: Refuse) -> None:
    parts = ["the level2 table has 15 rows but 12 distinct values of g", "it needs one row per group"]
    refuse(mlsql.DataError, parts, FORMULA, level2="SELECT * FROM upper UNION ALL SELECT * FROM upper WHERE g < 3")


def test_missing_groups_are_counted(con: duckdb.DuckDBPyConnection) -> None:
    fitted = fit(con, "SELECT * FROM upper WHERE g > 2")
    assert (fitted.n_rows, fitted.n_groups) == (90, 9)
    assert "30 rows belong to groups that the level2 table does not have; they were left out" in fitted.warnings
    assert fitted.dropped == (
        "30 of 120 rows are incomplete in the model's columns",
        "group not in the level2 table: 30 rows",
    )
    joined = mlsql.fit(FORMULA, "SELECT * FROM t JOIN upper USING (g) WHERE g > 2", con=con)
    assert fitted.deviance == pytest.approx(joined.deviance, rel=1e-11)


def test_groups_without_rows_do_no_harm(con: duckdb.DuckDBPyConnection) -> None:
    fitted = fit(con, "SELECT * FROM upper UNION ALL SELECT 1000 + range, 99, 'z' FROM range(50)")
    expected = fit(con, "upper")
    assert fitted.n_groups == 12
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    # nor may a level that no row has become a column of zeros
    assert fitted.fixed_effects["term"].to_list() == expected.fixed_effects["term"].to_list()


def test_no_group_in_common(refuse: Refuse) -> None:
    parts = ["120 rows", "level2 table"]
    refuse(mlsql.DataError, parts, FORMULA, level2="SELECT * REPLACE (g + 1000 AS g) FROM upper")


def test_an_empty_level2_table(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["level2", "no rows"], FORMULA, level2="SELECT * FROM upper WHERE false")


def test_missing_values_are_counted(con: duckdb.DuckDBPyConnection) -> None:
    fitted = fit(con, "SELECT * REPLACE (CASE WHEN g > 2 THEN w END AS w) FROM upper")
    assert (fitted.n_rows, fitted.n_groups) == (90, 9)
    assert fitted.dropped == (
        "30 of 120 rows are incomplete in the model's columns",
        "w: 3 NULL (level2 table)",
    )


@pytest.mark.parametrize("nulls", [1, 2])
def test_null_keys_belong_to_no_group(con: duckdb.DuckDBPyConnection, nulls: int) -> None:
    fitted = fit(con, f"SELECT * FROM upper UNION ALL SELECT NULL, 1, 'p' FROM range({nulls})")
    assert fitted.n_rows == 120
    assert fitted.deviance == pytest.approx(fit(con, "upper").deviance, rel=1e-11)


def test_a_column_in_both_tables(con: duckdb.DuckDBPyConnection) -> None:
    fitted = fit(con, "upper", data="SELECT *, -99 * i AS w FROM t")
    warning = "column w is in the data and in the level2 table; the level2 table's value is used"
    assert [w for w in fitted.warnings if "level2" in w] == [warning]
    assert fitted.deviance == pytest.approx(fit(con, "upper").deviance, rel=1e-11)
    assert fitted.predict().height == 120  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("level2", "problem"),
    [
        ("SELECT w, k FROM upper", "level2 table, group g: column 'g' is not in the data"),
        ("SELECT g, w FROM upper", "column 'k' is not in the data"),
        ("SELECT * REPLACE (1 AS w) FROM upper", "predictor w is 1 in every row"),
        (
            "SELECT * REPLACE (CASE WHEN g > 2 THEN w ELSE 'inf'::DOUBLE END AS w) FROM upper",
            "w has 3 infinite values in 12 rows",
        ),
        ("SELECT * REPLACE (DATE '2020-01-01' AS w) FROM upper", "predictor w has type DATE"),
        ("SELECT * REPLACE ('p' AS k) FROM upper", "k has 1 level"),
        ("SELECT * REPLACE (NULL::DOUBLE AS w) FROM upper", "column w has no value in any of 12 rows"),
        ("nosuch", "level2 'nosuch' is not a table or view"),
        ("SELECT * FROM nosuch", "level2 SELECT * FROM nosuch cannot be read"),
        ("SELECT * FRM upper", "level2"),
        ("", "level2 is an empty text"),
    ],
)
def test_tables_that_cannot_serve(con: duckdb.DuckDBPyConnection, level2: str, problem: str) -> None:
    with pytest.raises((mlsql.DataError, mlsql.DesignError)) as caught:
        fit(con, level2)
    assert problem in str(caught.value)


@pytest.mark.parametrize("key", ["'school ' || g", "DATE '2020-01-01' + g::INT", "[g]"])
def test_keys_of_another_type(refuse: Refuse, key: str) -> None:
    """Named as what they are: the keys' types, not a failed statement."""
    refuse(mlsql.DataError, ["g", "BIGINT", "level2"], FORMULA, level2=f"SELECT * REPLACE ({key} AS g) FROM upper")


def test_keys_of_a_type_that_compares(con: duckdb.DuckDBPyConnection) -> None:
    for key in ("g::UTINYINT", "g::DOUBLE", "g::HUGEINT"):
        fitted = fit(con, f"SELECT * REPLACE ({key} AS g) FROM upper")
        assert fitted.deviance == pytest.approx(fit(con, "upper").deviance, rel=1e-11)


@pytest.mark.parametrize(
    ("formula", "parts"),
    [
        (
            "y ~ I(x * w) + (1 | g)",
            ["mixes columns of the data (x) and of the level2 table (w)", "write it as a product a:b"],
        ),
        ("y ~ x + group_center(w) + (1 | g)", ["group_center(w)", "one value per group", "grand_center()"]),
        ("y ~ x + group_mean(w) + (1 | g)", ["group_mean(w)", "one value per group"]),
    ],
)
def test_expressions_over_both_tables(refuse: Refuse, formula: str, parts: list[str]) -> None:
    refuse(mlsql.DesignError, parts, formula, level2="upper")


def test_the_outcome_and_weights_are_in_the_rows(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["column 'w' is not in the data"], "w ~ x + (1 | g)", level2="upper")
    refuse(mlsql.DataError, ["column 'w' is not in the data"], "y ~ x + (1 | g)", level2="upper", weights="w + 1")


def test_something_else_as_level2(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["level2 is a builtins.int", "pass a path, a table name"], FORMULA, level2=3)
