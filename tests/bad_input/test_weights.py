"""Weights that are no precisions."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pytest

import mlsql

Refuse = Callable[..., str]
FORMULA = "y ~ x + (1 | g)"


@pytest.mark.parametrize(
    ("weights", "smallest"), [("i - 7", "-7"), ("i", "0"), ("x - 0.5", "-0.5"), ("-1 - i", "-120"), ("0 * x", "0")]
)
def test_weights_that_are_not_positive(refuse: Refuse, weights: str, smallest: str) -> None:
    parts = [f"weights {weights}: the smallest is {smallest}", "precision weights must be positive"]
    refuse(mlsql.DataError, parts, FORMULA, weights=weights)


@pytest.mark.parametrize("missing", ["NULL", "'nan'::DOUBLE"])
def test_missing_weights(refuse: Refuse, missing: str) -> None:
    weights = f"CASE WHEN i < 5 THEN {missing} ELSE 1 END"
    refuse(mlsql.DataError, ["5 of 120 are NULL or NaN", "give every row a weight"], FORMULA, weights=weights)


def test_no_weight_at_all(refuse: Refuse) -> None:
    refuse(mlsql.DataError, ["w"], FORMULA, "SELECT *, NULL::DOUBLE AS w FROM t", weights="w")


def test_infinite_weights(refuse: Refuse) -> None:
    message = refuse(
        mlsql.DataError,
        ["2 infinite values in 120 rows"],
        FORMULA,
        weights="CASE WHEN i < 2 THEN 'inf'::DOUBLE ELSE 1 END",
    )
    # NULL weights are refused as well, so that cannot be the advice
    assert "replace them by NULL" not in message


@pytest.mark.parametrize("weights", ["f", "flag", "DATE '2020-01-01'"])
def test_weights_that_are_no_numbers(refuse: Refuse, weights: str) -> None:
    refuse(mlsql.DataError, [f"the weight {weights} has type", "must be numeric"], FORMULA, weights=weights)


@pytest.mark.parametrize("weights", ["sum(x)", "", "x +", "x; DROP TABLE t", "x, z"])
def test_weights_that_are_no_scalar(con: duckdb.DuckDBPyConnection, weights: str) -> None:
    with pytest.raises(mlsql.FormulaError):
        mlsql.fit(FORMULA, "t", con=con, weights=weights)
    assert con.sql("SELECT count(*) FROM t").fetchall() == [(120,)]


def test_equal_weights_change_nothing_but_sigma2(con: duckdb.DuckDBPyConnection) -> None:
    plain = mlsql.fit(FORMULA, "t", con=con)
    weighted = mlsql.fit(FORMULA, "t", con=con, weights="4")
    assert weighted.deviance == pytest.approx(plain.deviance, rel=1e-8)
    assert weighted.sigma2 == pytest.approx(4 * plain.sigma2, rel=1e-4)
    assert weighted.T[0, 0] == pytest.approx(plain.T[0, 0], rel=1e-4)
