"""Rows and values that carry no model: none, missing, constant, collinear, infinite; levels of factors."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pytest

import mlsql

Refuse = Callable[..., str]
FORMULA = "y ~ x + (1 | g)"


def test_no_rows(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["the data have no rows"], FORMULA, "SELECT * FROM t WHERE false")


def test_no_complete_rows(refuse: Refuse) -> None:
    data = "SELECT * REPLACE (CASE WHEN i % 2 = 0 THEN y END AS y, CASE WHEN i % 2 = 1 THEN x END AS x) FROM t"
    # how many values each column lacks
    refuse(mlsql.DataError, ["no complete rows", "y: 60", "x: 60"], FORMULA, data)


@pytest.mark.parametrize("column", ["x", "y", "g"])
def test_a_column_without_values(refuse: Refuse, column: str) -> None:
    data = f"SELECT * REPLACE (CASE WHEN i < 0 THEN {column} END AS {column}) FROM t"
    refuse(mlsql.DataError, [f"column {column} has no value in any of 120 rows"], FORMULA, data)


def test_missing_values_are_counted(con: duckdb.DuckDBPyConnection) -> None:
    data = (
        "SELECT * REPLACE (CASE WHEN i % 10 > 0 THEN x END AS x, "
        "CASE WHEN i % 7 > 0 THEN y ELSE 'nan'::DOUBLE END AS y, CASE WHEN i > 3 THEN f END AS f) FROM t"
    )
    fitted = mlsql.fit("y ~ x + f + (1 | g)", data, con=con)
    (complete,) = con.sql("SELECT count(*) FROM t WHERE i % 10 > 0 AND i % 7 > 0 AND i > 3").fetchall()[0]
    assert fitted.n_rows == complete
    assert fitted.dropped[0] == f"{120 - complete} of 120 rows are incomplete in the model's columns"
    assert set(fitted.dropped[1:]) == {"y: 0 NULL, 18 NaN", "x: 12 NULL", "f: 4 NULL"}
    by_hand = mlsql.fit("y ~ x + f + (1 | g)", "SELECT * FROM t WHERE i % 10 > 0 AND i % 7 > 0 AND i > 3", con=con)
    # the same rows
    assert fitted.deviance == pytest.approx(by_hand.deviance, rel=1e-11)


def test_a_constant_outcome(refuse: Refuse) -> None:
    parts = ["the outcome y is 1.5 in every row", "its variance is zero"]
    refuse(mlsql.DataError, parts, FORMULA, "SELECT * REPLACE (1.5 AS y) FROM t")


@pytest.mark.parametrize("value", ["3", "0", "2.5"])
def test_a_constant_predictor(refuse: Refuse, value: str) -> None:
    data = f"SELECT * REPLACE ({value} AS x) FROM t"
    refuse(mlsql.DataError, [f"predictor x is {value} in every row", "leave it out"], FORMULA, data)


def test_a_predictor_that_is_constant_in_the_complete_rows(refuse: Refuse) -> None:
    data = "SELECT * REPLACE (CASE WHEN i < 60 THEN x END AS x), i < 60 AS early, i // 60 AS half FROM t"
    with pytest.raises(mlsql.MlsqlError, match="half"):
        refuse(mlsql.DataError, ["half"], "y ~ x + half + (1 | g)", data)


def test_a_constant_column_may_stand_for_the_intercept(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("y ~ 0 + one + x + (1 | g)", "SELECT *, 1 AS one FROM t", con=con)
    expected = mlsql.fit(FORMULA, "t", con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-8)


COLLINEAR = "SELECT *, 2 * x + 3 * z - 1 AS both, 5 * x AS fivefold, i // 20 AS h, (i // 20) * 2 + 1 AS h2 FROM t"


@pytest.mark.parametrize(
    ("formula", "name", "others", "without"),
    [
        ("y ~ x + z + both + (1 | g)", "both", "(Intercept), x, z", "y ~ x + z + (1 | g)"),
        ("y ~ x + fivefold + z + (x | g)", "fivefold", "x", "y ~ x + z + (x | g)"),
        ("y ~ h + x + h2 + (1 | g)", "h2", "(Intercept), h", "y ~ h + x + (1 | g)"),
        ("y ~ C(h) + h + (1 | g)", "h", "h[", "y ~ C(h) + (1 | g)"),
        (
            "y ~ x + group_mean(x) + group_center(x) + (1 | g)",
            "group_center(x)",
            "x, group_mean(x)",
            "y ~ x + group_mean(x) + (1 | g)",
        ),
    ],
)
def test_a_collinear_predictor(
    refuse: Refuse, con: duckdb.DuckDBPyConnection, formula: str, name: str, others: str, without: str
) -> None:
    parts = [f"predictor {name} is a linear combination of ", others, "leave it out, or pass drop_collinear=True"]
    refuse(mlsql.DesignError, parts, formula, COLLINEAR)
    fitted = mlsql.fit(formula, COLLINEAR, con=con, drop_collinear=True)
    assert any(
        w.startswith(f"predictor {name} is a linear combination of") and "left out" in w for w in fitted.warnings
    )
    expected = mlsql.fit(without, COLLINEAR, con=con)
    # the very same model
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    assert fitted.fixed_effects["term"].to_list() == expected.fixed_effects["term"].to_list()
    assert fitted.fixed_effects["estimate"].to_list() == pytest.approx(expected.fixed_effects["estimate"].to_list())
    assert fitted.predict().height == 120  # type: ignore[union-attr]


def test_a_group_mean_that_is_the_same_everywhere(refuse: Refuse) -> None:
    refuse(mlsql.DesignError, ["group_mean(flag)", "leave it out"], "y ~ x + group_mean(flag) + (1 | g)")


def test_centring_a_level_2_predictor_leaves_nothing(refuse: Refuse) -> None:
    parts = ["group_center(h)", "zero in every row"]
    refuse(mlsql.DesignError, parts, "y ~ x + group_center(h) + (1 | g)", COLLINEAR)


def test_nearly_collinear_is_fine(con: duckdb.DuckDBPyConnection) -> None:
    data = "SELECT *, 1e6 + x AS far FROM t"
    fitted = mlsql.fit("y ~ far + (far | g)", data, con=con)
    expected = mlsql.fit("y ~ x + (x | g)", "t", con=con)
    # 1e-6 relative: the promise for predictors far from zero
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-8)
    assert fitted.fixed_effects["estimate"][1] == pytest.approx(expected.fixed_effects["estimate"][1], rel=1e-6)


@pytest.mark.parametrize("value", ["'inf'::DOUBLE", "'-inf'::DOUBLE", "'inf'::FLOAT"])
@pytest.mark.parametrize("column", ["x", "y"])
def test_infinite_values(refuse: Refuse, column: str, value: str) -> None:
    data = f"SELECT * REPLACE (CASE WHEN i < 3 THEN {value} ELSE {column} END AS {column}) FROM t"
    parts = [f"column {column} has 3 infinite values in 120 rows", "replace them by NULL", "CASE WHEN isfinite("]
    refuse(mlsql.DataError, parts, FORMULA, data)


def test_infinities_made_by_the_formula_and_the_advice(refuse: Refuse, con: duckdb.DuckDBPyConnection) -> None:
    data = "SELECT * REPLACE (i % 4 / 2 AS x) FROM t"
    refuse(mlsql.DataError, ["I(1 / x)", "30 infinite values"], "y ~ I(1 / x) + (1 | g)", data)
    fitted = mlsql.fit("y ~ I(CASE WHEN isfinite(1 / x) THEN 1 / x END) + (1 | g)", data, con=con)
    assert fitted.n_rows == 90


@pytest.mark.parametrize("formula", ["y ~ f + (1 | g)", "y ~ x + (f | g)", "y ~ C(flag) + (1 | g)"])
def test_a_factor_with_one_level(refuse: Refuse, formula: str) -> None:
    data = "SELECT * FROM t WHERE f = 'a' AND flag"
    message = refuse(
        mlsql.DesignError, ["1 level in the complete rows", "at least 2 are needed", "leave it out"], formula, data
    )
    assert "(a)" in message or "(true)" in message


def test_a_factor_with_one_level_among_the_complete_rows(refuse: Refuse) -> None:
    data = "SELECT * REPLACE (CASE WHEN f = 'a' THEN x END AS x) FROM t"
    refuse(mlsql.DesignError, ["factor f has 1 level in the complete rows (a)"], "y ~ x + f + (1 | g)", data)


def test_a_factor_with_too_many_levels(refuse: Refuse) -> None:
    data = "SELECT i, i // 10 AS g, i * 37 % 101 AS y, 's' || i AS s FROM range(1200) r(i)"
    parts = ["factor s has 1,200 levels, more than 500", "a number stored as text (then CAST it)"]
    refuse(mlsql.DesignError, parts, "y ~ s + (1 | g)", data)
    refuse(mlsql.DesignError, ["factor i has 1,200 levels"], "y ~ C(i) + (1 | g)", data)


def test_empty_levels_of_an_enum(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE TYPE e AS ENUM ('none', 'a', 'b', 'it''s, none', 'c')")
    fitted = mlsql.fit("y ~ f + (1 | g)", "SELECT * REPLACE (f::e AS f) FROM t", con=con)
    assert fitted.fixed_effects["term"].to_list() == ["(Intercept)", "f[b]", "f[c]"]
    (warning,) = (w for w in fitted.warnings if "factor f" in w)
    assert "none" in warning
    assert "it's, none" in warning
    assert "no complete row" in warning
    # a level whose rows are all incomplete is empty as well
    data = "SELECT * REPLACE (f::e AS f, CASE WHEN f <> 'b' THEN x END AS x) FROM t"
    again = mlsql.fit("y ~ x + f + (1 | g)", data, con=con)
    assert again.fixed_effects["term"].to_list() == ["(Intercept)", "x", "f[c]"]
    assert any("b" in w for w in again.warnings if "factor f" in w)


def test_a_factor_of_empty_and_odd_texts(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("y ~ f + (1 | g)", "SELECT * REPLACE (['', ' ', ']['][i % 3 + 1] AS f) FROM t", con=con)
    expected = mlsql.fit("y ~ f + (1 | g)", "t", con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    assert fitted.fixed_effects["term"].to_list() == ["(Intercept)", "f[ ]", "f[][]"]
