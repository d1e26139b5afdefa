"""Fitted values and residuals beside the data's columns, from one query."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.sql.augment import AUGMENT_COLUMNS

Con = duckdb.DuckDBPyConnection
OWN = ["i", "g", "x", "z", "f", "y"]


def together(fitted: mlsql.Fit) -> pl.DataFrame:
    """What augment says, and what predict and residuals say, side by side."""
    augmented, predicted, residuals = fitted.augment(), fitted.predict(), fitted.residuals()
    assert augmented is not None
    assert predicted is not None
    assert residuals is not None
    apart = predicted.select("i", "population", "conditional").join(
        residuals.select("i", pl.selectors.starts_with("residual")), on="i"
    )
    return augmented.join(apart, on="i", suffix="_apart").sort("i")


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("y ~ x + f + group_center(z) + (x | g)", None),
        ("y ~ x + offset(z) + (1 | g)", None),
        ("y ~ x + (1 | g)", "z / 40"),
    ],
)
def test_the_numbers_are_those_of_predict_and_residuals(con: Con, formula: str, weights: str | None) -> None:
    frame = together(mlsql.fit(formula, "t", con=con, weights=weights))
    pairs = {"fitted": "conditional", "fitted_population": "population"}
    pairs |= {c: f"{c}_apart" for c in ("residual", "residual_population", "residual_standardized")}
    for ours, other in pairs.items():
        # the same expressions in another query
        assert frame[ours].to_numpy() == pytest.approx(frame[other].to_numpy(), rel=1e-12, abs=1e-12)
    assert (frame["fitted"] + frame["residual"]).to_numpy() == pytest.approx(frame["y"].to_numpy(), rel=1e-12)
    sums = (frame["fitted_population"] + frame["residual_population"]).to_numpy()
    assert sums == pytest.approx(frame["y"].to_numpy(), rel=1e-12)


def test_columns(fitted: mlsql.Fit) -> None:
    frame = fitted.augment()
    assert frame is not None
    assert frame.columns == [*OWN, *AUGMENT_COLUMNS]
    assert {frame.schema[c] for c in AUGMENT_COLUMNS} == {pl.Float64()}
    assert frame.height == 120


def test_with_a_level2_table(con: Con) -> None:
    fitted = mlsql.fit("y ~ x*w + k + (x | g)", "t", con=con, level2="upper")
    frame = together(fitted)
    assert frame["fitted"].to_numpy() == pytest.approx(frame["conditional"].to_numpy(), rel=1e-12)


def test_rows_that_the_fit_left_out(con: Con) -> None:
    data = "SELECT * REPLACE (CASE WHEN i % 7 > 0 THEN y END AS y, CASE WHEN i % 11 > 0 THEN x END AS x) FROM t"
    frame = mlsql.fit("y ~ x + (1 | g)", data, con=con).augment()
    assert frame is not None
    without_x, without_y = frame["i"] % 11 == 0, frame["i"] % 7 == 0
    assert frame["fitted"].is_null().equals(without_x)
    assert frame["residual"].is_null().equals(without_x | without_y)


def test_residuals_by_hand(con: Con, fitted: mlsql.Fit) -> None:
    frame = together(fitted)
    scaled = frame["residual"].to_numpy() / np.sqrt(fitted.sigma2)
    assert frame["residual_standardized"].to_numpy() == pytest.approx(scaled, rel=1e-12)


def test_into_a_table_and_a_file(con: Con, fitted: mlsql.Fit, tmp_path: Path) -> None:
    assert fitted.augment(into="augmented") is None
    file = tmp_path / "augmented.parquet"
    assert fitted.augment(into=file) is None
    expected = fitted.augment()
    assert expected is not None
    for found in (con.sql("FROM augmented ORDER BY i").pl(), pl.read_parquet(file).sort("i")):
        assert found.equals(expected.sort("i"))
    with pytest.raises(mlsql.StoreError, match="exists"):
        fitted.augment(into="augmented")
    assert fitted.augment(into="augmented", replace=True) is None


def test_a_column_of_the_same_name(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (1 | g)", "SELECT *, x AS fitted FROM t", con=con)
    with pytest.raises(mlsql.DataError, match="have a column called 'fitted' already"):
        fitted.augment()
