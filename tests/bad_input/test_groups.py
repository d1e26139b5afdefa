"""Groupings that identify no variance: one group, one row a group, too many random coefficients."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import polars as pl
import pytest

import mlsql

Refuse = Callable[..., str]


def test_one_group(refuse: Refuse) -> None:
    parts = ["g has 1 level in 10 rows", "at least 2 are needed", "check the filter or drop the term"]
    refuse(mlsql.DesignError, parts, "y ~ x + (1 | g)", "SELECT * FROM t WHERE g = 3")
    refuse(mlsql.DesignError, ["g has 1 level in 120 rows"], "y ~ x + (1 | g)", "SELECT * REPLACE (7 AS g) FROM t")


def test_one_group_left_by_missing_values(refuse: Refuse) -> None:
    data = "SELECT * REPLACE (CASE WHEN g = 3 THEN x END AS x) FROM t"
    refuse(mlsql.DesignError, ["g has 1 level in 10 rows"], "y ~ x + (1 | g)", data)


def test_every_row_its_own_group(refuse: Refuse) -> None:
    parts = ["the group i has as many values as rows (120)", "every group has one row", "choose a column that repeats"]
    refuse(mlsql.DesignError, parts, "y ~ x + (1 | i)")
    refuse(mlsql.DesignError, ["g:i", "(120)"], "y ~ x + (1 | g:i)")


def test_groups_of_one_row_beside_others_are_fine(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("y ~ x + (1 | g)", "SELECT * REPLACE (CASE WHEN i < 40 THEN -i ELSE g END AS g) FROM t", con=con)
    assert fitted.converged
    assert fitted.n_groups == 48
    assert fitted.group_effects().filter(pl.col("n") == 1).height == 40


def test_more_random_coefficients_than_rows(refuse: Refuse) -> None:
    pairs = "SELECT * REPLACE (i // 2 AS g) FROM t"
    parts = ["3 random coefficients of g", "no group has more than 2 rows", "use fewer random coefficients"]
    refuse(mlsql.DesignError, parts, "y ~ x + (x + z | g)", pairs)
    refuse(mlsql.DesignError, ["2 random coefficients of g", "no group has more than 2 rows"], "y ~ x + (x | g)", pairs)
    refuse(mlsql.DesignError, ["3 random coefficients of g"], "y ~ x + (f | g)", pairs)


def test_random_coefficients_that_are_collinear(refuse: Refuse) -> None:
    parts = ["random coefficient I(2 * x + 1) is a linear combination of (Intercept), x", "leave it out"]
    refuse(mlsql.DesignError, parts, "y ~ x + (x + I(2 * x + 1) | g)")


def test_a_random_coefficient_that_is_zero(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["I(0 * x) is 0 in every row", "leave it out"], "y ~ x + (0 + I(0 * x) | g)")


@pytest.mark.parametrize(
    ("formula", "factors"), [("y ~ x + (1 | g) + (1 | f)", ["g", "f"]), ("y ~ x + (1 | g/f)", ["g", "g:f"])]
)
def test_two_grouping_factors_are_fine(con: duckdb.DuckDBPyConnection, formula: str, factors: list[str]) -> None:
    """What is wrong with them at times is in test_levels.py."""
    fitted = mlsql.fit(formula, "t", con=con)
    assert fitted.converged
    assert fitted.levels.factors()["factor"].to_list() == factors


@pytest.mark.parametrize("group", ["group_mean(x)", "group_center(x)", "C(g)"])
def test_groups_are_columns_or_expressions(con: duckdb.DuckDBPyConnection, group: str) -> None:
    """Centring and factors mean nothing for a group; at least they must not change it silently."""
    try:
        fitted = mlsql.fit(f"y ~ z + (1 | {group})", "t", con=con)
    except mlsql.MlsqlError:
        return
    assert group == "C(g)"
    assert fitted.n_groups == 12


def test_no_random_term(refuse: Refuse) -> None:
    refuse(mlsql.FormulaError, ["no random term", "(1 | group)"], "y ~ x")


def test_more_fixed_effects_than_rows(refuse: Refuse) -> None:
    refuse(
        mlsql.DesignError,
        ["12 fixed effects but 12 complete rows"],
        "y ~ C(i) + (1 | g)",
        "SELECT * FROM t WHERE i < 12",
    )
