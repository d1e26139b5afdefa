"""Fitted values and residuals of the fit's own rows: numbers, columns, targets."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import mlsql

Con = duckdb.DuckDBPyConnection
PREDICTED = ["population", "population_std_error", "conditional", "conditional_std_error"]
RESIDUALS = ["residual_population", "residual", "residual_ols", "residual_standardized"]
OWN = ["i", "g", "x", "z", "f", "y"]


def predicted(fitted: mlsql.Fit, *arguments: object, **named: object) -> pl.DataFrame:
    frame = fitted.predict(*arguments, **named)  # type: ignore[arg-type]
    assert frame is not None
    return frame.sort("i")


def residuals(fitted: mlsql.Fit) -> pl.DataFrame:
    frame = fitted.residuals()
    assert frame is not None
    return frame.sort("i")


def test_columns(fitted: mlsql.Fit) -> None:
    frame = predicted(fitted)
    assert frame.columns == [*OWN, *PREDICTED]
    assert {frame.schema[c] for c in PREDICTED} == {pl.Float64()}
    assert frame.height == 120
    assert residuals(fitted).columns == [*OWN, *RESIDUALS]
    assert {residuals(fitted).schema[c] for c in RESIDUALS} == {pl.Float64()}


def test_numbers_are_the_coefficients(con: Con, fitted: mlsql.Fit) -> None:
    frame = predicted(fitted).with_columns(zc=pl.col("z") - pl.col("z").mean().over("g"))
    one, x, b, c, z = fitted.fixed_effects["estimate"]
    population = one + x * frame["x"] + b * (frame["f"] == "b") + c * (frame["f"] == "c") + z * frame["zc"]
    # rounding of a handful of products
    assert frame["population"].to_numpy() == pytest.approx(population.to_numpy(), rel=1e-12)
    effects = fitted.group_effects().pivot("term", index="g", values="estimate")
    joined = frame.join(effects, on="g", suffix="_effect").sort("i")
    conditional = joined["population"] + joined["(Intercept)"] + joined["x"] * joined["x_effect"]
    assert frame["conditional"].to_numpy() == pytest.approx(conditional.to_numpy(), rel=1e-12)


def test_standard_errors_of_the_population(fitted: mlsql.Fit) -> None:
    frame = predicted(fitted).with_columns(zc=pl.col("z") - pl.col("z").mean().over("g"))
    X = np.column_stack(
        [np.ones(120), frame["x"], frame["f"] == "b", frame["f"] == "c", frame["zc"]],
    ).astype(float)
    expected = np.sqrt(np.einsum("np,pq,nq->n", X, fitted.vcov, X))
    # a variance by cancellation of larger ones
    assert frame["population_std_error"].to_numpy() == pytest.approx(expected, rel=1e-9)
    assert (frame["conditional_std_error"] > 0).all()


def test_residuals_are_what_predictions_leave(fitted: mlsql.Fit) -> None:
    frame, found = predicted(fitted), residuals(fitted)
    for name, fit in (("residual_population", "population"), ("residual", "conditional")):
        assert found[name].to_numpy() == pytest.approx((frame["y"] - frame[fit]).to_numpy(), abs=1e-12)
    scaled = found["residual"] / fitted.sigma2**0.5
    assert found["residual_standardized"].to_numpy() == pytest.approx(scaled.to_numpy(), rel=1e-12)
    effects = fitted.group_effects().pivot("term", index="g", values="ols_estimate")
    joined = frame.join(effects, on="g", suffix="_effect").sort("i")
    ols = joined["y"] - joined["population"] - joined["(Intercept)"] - joined["x"] * joined["x_effect"]
    assert found["residual_ols"].to_numpy() == pytest.approx(ols.to_numpy(), abs=1e-11)
    # least squares within a group leaves residuals that sum to zero
    sums = found.group_by("g").agg(pl.col("residual_ols").sum())
    assert sums["residual_ols"].to_numpy() == pytest.approx(np.zeros(12), abs=1e-9)


def test_weights_scale_the_residuals(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (1 | g)", "t", con=con, weights="z / 40")
    found = residuals(fitted)
    expected = found["residual"] / fitted.sigma2**0.5 * (found["z"] / 40).sqrt()
    assert found["residual_standardized"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-12)


def test_an_offset_is_part_of_the_prediction(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + offset(z) + (1 | g)", "t", con=con)
    found = residuals(fitted)
    frame = predicted(fitted)
    assert found["residual"].to_numpy() == pytest.approx((frame["y"] - frame["conditional"]).to_numpy(), abs=1e-11)


def test_with_a_level2_table(con: Con) -> None:
    formula = "y ~ x*w + k + (x | g)"
    apart = mlsql.fit(formula, "t", con=con, level2="upper")
    joined = mlsql.fit(formula, "SELECT * FROM t JOIN upper USING (g)", con=con)
    for column in PREDICTED:
        expected = predicted(joined)[column].to_numpy()
        # the same model from sums in another order
        assert predicted(apart)[column].to_numpy() == pytest.approx(expected, rel=1e-6)


def test_rows_that_the_fit_left_out(con: Con) -> None:
    """A missing outcome does not hinder a prediction, a missing predictor does."""
    data = "SELECT * REPLACE (CASE WHEN i % 7 > 0 THEN y END AS y, CASE WHEN i % 11 > 0 THEN x END AS x) FROM t"
    fitted = mlsql.fit("y ~ x + (1 | g)", data, con=con)
    frame, found = predicted(fitted), residuals(fitted)
    without_x = frame["i"] % 11 == 0
    assert frame["conditional"].is_null().equals(without_x)
    assert frame["population"].is_null().equals(without_x)
    assert found["residual"].is_null().equals(without_x | (frame["i"] % 7 == 0))


def test_groups_without_least_squares(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (x | g)", "SELECT * FROM t WHERE g > 0 OR i = 4", con=con)
    found = residuals(fitted)
    assert found["residual_ols"].is_null().sum() == 1
    assert found["residual"].null_count() == 0


def test_into_a_table(con: Con, fitted: mlsql.Fit) -> None:
    assert fitted.predict(into="predicted") is None
    assert_frame_equal(con.sql("FROM predicted ORDER BY i").pl(), predicted(fitted))
    assert fitted.residuals(into="left over") is None
    assert_frame_equal(con.sql('FROM "left over" ORDER BY i').pl(), residuals(fitted))


@pytest.mark.parametrize("verb", ["predict", "residuals"])
def test_an_existing_table(con: Con, fitted: mlsql.Fit, verb: str) -> None:
    con.execute("CREATE TABLE target AS SELECT 42 AS mine")
    write = getattr(fitted, verb)
    with pytest.raises(mlsql.StoreError, match=r"table 'target' exists; choose another name or pass replace=True"):
        write(into="target")
    assert con.sql("FROM target").fetchall() == [(42,)]
    write(into="target", replace=True)
    assert con.sql("SELECT count(*) FROM target").fetchall() == [(120,)]


def test_an_existing_view_is_not_replaced(con: Con, fitted: mlsql.Fit) -> None:
    con.execute("CREATE VIEW target AS SELECT 42 AS mine")
    with pytest.raises(mlsql.StoreError):
        fitted.predict(into="target")
    with pytest.raises(mlsql.MlsqlError, match=r"(?i)view"):
        fitted.predict(into="target", replace=True)
    assert con.sql("FROM target").fetchall() == [(42,)]


@pytest.mark.parametrize("verb", ["predict", "residuals"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_into_a_file(con: Con, fitted: mlsql.Fit, tmp_path: Path, verb: str, suffix: str) -> None:
    target = tmp_path / f"it's {verb}{suffix}"
    write = getattr(fitted, verb)
    assert write(into=str(target)) is None
    assert list(tmp_path.iterdir()) == [target]
    read = pl.read_parquet(target) if suffix == ".parquet" else pl.read_csv(target)
    assert read.height == 120
    assert read.columns == write().columns
    with pytest.raises(mlsql.StoreError, match=r"exists; choose another name or pass replace=True"):
        write(into=str(target))
    write(into=str(target), replace=True)
    assert list(tmp_path.iterdir()) == [target]


def test_into_a_pathlib_path(fitted: mlsql.Fit, tmp_path: Path) -> None:
    """Data may be given as a path, so may the target."""
    fitted.predict(into=tmp_path / "p.parquet")  # type: ignore[arg-type]
    assert pl.read_parquet(tmp_path / "p.parquet").height == 120


def test_into_a_folder_that_does_not_exist(fitted: mlsql.Fit, tmp_path: Path) -> None:
    with pytest.raises(mlsql.StoreError, match=r"the folder .* does not exist; make it first"):
        fitted.predict(into=str(tmp_path / "nowhere" / "p.parquet"))


def test_a_failing_query_leaves_no_file(con: Con, fitted: mlsql.Fit, tmp_path: Path) -> None:
    rows = "SELECT * REPLACE (CASE WHEN i = 77 THEN error('boom') ELSE x END AS x) FROM t"
    with pytest.raises(mlsql.QueryError, match="boom"):
        fitted.predict(rows, into=str(tmp_path / "p.parquet"))
    with pytest.raises(mlsql.QueryError, match="boom"):
        fitted.predict(rows, into="p")
    assert list(tmp_path.iterdir()) == []
    assert con.sql("SHOW TABLES").fetchall() == [("t",), ("upper",)]


def test_a_table_needs_a_connection(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (1 | g)", con.sql("FROM t").pl())
    with pytest.raises(mlsql.StoreError, match=r"pass con="):
        fitted.predict(into="predicted")
    fitted.predict(into="predicted", con=con)
    fitted.residuals(into="rest", con=con)
    assert con.sql("SELECT count(*) FROM predicted JOIN rest USING (i)").fetchall() == [(120,)]


def test_a_read_only_database(con: Con, fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as target:
        target.execute("CREATE TABLE kept AS SELECT 1 AS a")
    frame = con.sql("FROM t").pl()
    with duckdb.connect(path, read_only=True) as target:
        for name, replace in (("new", False), ("kept", True)):
            with pytest.raises(mlsql.StoreError, match="read-only, nothing was written"):
                fitted.predict(frame, into=name, con=target, replace=replace)
        assert target.sql("FROM kept").fetchall() == [(1,)]


def test_data_with_a_column_of_the_result(con: Con, fitted: mlsql.Fit) -> None:
    for name in ("population", "Conditional"):
        with pytest.raises(mlsql.DataError, match=f"(?i)a column called '{name}' already"):
            fitted.predict(f'SELECT *, 1 AS "{name}" FROM t')


def test_the_table_may_replace_its_own_source(con: Con, fitted: mlsql.Fit) -> None:
    expected = predicted(fitted)
    fitted.predict(into="t", replace=True)
    assert_frame_equal(con.sql("FROM t ORDER BY i").pl(), expected)
