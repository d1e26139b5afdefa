"""The fixed part's columns for rows of a frame: X times the fixed effects is the population's prediction."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.pipeline.design_matrix import design_matrix, mean_columns, raw_columns

Con = duckdb.DuckDBPyConnection


def predicted(fitted: mlsql.Fit, frame: pl.DataFrame, con: Con | None = None) -> np.ndarray[tuple[int], np.dtype]:
    X, offset = design_matrix(fitted.estimates, frame, con)
    assert X.shape == (frame.height, len(fitted.fixed_effects))
    return X @ fitted.fixed_effects["estimate"].to_numpy() + offset


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ 1 + (1 | g)",
        "y ~ 0 + f + x + (1 | g)",
        "y ~ x*f + group_center(z)*x + group_mean(z) + (x | g)",
        "y ~ grand_center(x)*grand_center(z) + (1 | g)",
        "y ~ grand_center(group_mean(x)) + group_center(x) + (1 | g)",
        "y ~ group_center(C(f)) + group_mean(C(f)) + (1 | g)",
        "y ~ exp(x) + I(CASE WHEN z > 45 THEN 1 ELSE 0 END) + C(f, ref='c'):x + offset(z / 10) + (1 | g)",
        "y ~ x + (1 | g:f)",
        "y ~ group_center(x) + (1 | g:f)",
    ],
)
def test_products_with_the_fixed_effects_are_the_predictions(con: Con, formula: str) -> None:
    fitted = mlsql.fit(formula, "t", con=con)
    frame = con.sql("FROM t").pl().sample(fraction=1.0, shuffle=True, seed=5)
    expected = fitted.predict()
    assert expected is not None
    # of raw columns in the frame's own order; the fit computes in pivoted ones
    assert predicted(fitted, frame, con) == pytest.approx(
        frame.join(expected, on="i", maintain_order="left")["population"].to_numpy(), rel=1e-10
    )


def test_columns_of_a_level2_table_come_in_the_frame(con: Con) -> None:
    fitted = mlsql.fit("y ~ x*w + k + (x | g)", "t", con=con, level2="upper")
    frame = con.sql("FROM t JOIN upper USING (g) ORDER BY i").pl()
    expected = fitted.predict()
    assert expected is not None
    assert raw_columns(fitted.estimates.design) == ("x", "w", "k")
    assert predicted(fitted, frame, con) == pytest.approx(expected.sort("i")["population"].to_numpy(), rel=1e-10)


def test_the_columns_themselves(con: Con) -> None:
    fitted = mlsql.fit("y ~ x*f + group_center(z) + (1 | g)", "t", con=con)
    frame = con.sql("FROM t ORDER BY i").pl().with_columns(m=pl.col("z").mean().over("g"))
    X, offset = design_matrix(fitted.estimates, frame)
    b, c = (frame["f"] == "b").to_numpy(), (frame["f"] == "c").to_numpy()
    x, zc = frame["x"].to_numpy(), (frame["z"] - frame["m"]).to_numpy()
    terms = dict(zip(fitted.fixed_effects["term"], X.T, strict=True))
    for name, column in {"(Intercept)": np.ones(120), "f[b]": b, "x:f[c]": x * c, "group_center(z)": zc}.items():
        assert terms[name] == pytest.approx(column.astype(float), abs=1e-12)
    assert not offset.any()


def test_group_means_in_the_frame_stand_for_the_groups(con: Con) -> None:
    fitted = mlsql.fit("y ~ group_center(z) + group_mean(x) + (1 | g)", "t", con=con)
    names = mean_columns(fitted.estimates.design)
    assert set(names.values()) == {"group_mean(z)", "group_mean(x)"}
    frame = pl.DataFrame({"z": [50.0], "group_mean(z)": [45.0], "group_mean(x)": [0.25]})
    X, _ = design_matrix(fitted.estimates, frame)
    assert dict(zip(fitted.fixed_effects["term"], X[0], strict=True)) == {
        "(Intercept)": 1.0,
        "group_center(z)": 5.0,
        "group_mean(x)": 0.25,
    }


def test_far_from_zero(con: Con) -> None:
    fitted = mlsql.fit("y ~ year + (1 | g)", "SELECT *, 2e6 + x AS year FROM t", con=con)
    frame = con.sql("SELECT i, 2e6 + x AS year FROM t ORDER BY i").pl()
    expected = fitted.predict()
    assert expected is not None
    # of terms a million times as large
    assert predicted(fitted, frame) == pytest.approx(expected.sort("i")["population"].to_numpy(), rel=1e-9)


def test_rows_without_a_value(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + f + group_center(z) + (1 | g)", "t", con=con)
    frame = pl.DataFrame(
        {
            "x": [None, float("nan"), 0.5, 0.5, 0.5],
            "f": ["a", "a", "d", "b", "b"],
            "z": [45.0] * 5,
            "g": [0, 0, 0, 99, 0],
        }
    )
    X, _ = design_matrix(fitted.estimates, frame)
    assert np.isnan(X).any(axis=1).tolist() == [True, True, True, True, False]


def test_categories_and_names_in_another_case(con: Con) -> None:
    fitted = mlsql.fit("y ~ X + f + (1 | G)", "SELECT *, 'k' || g AS h FROM t", con=con)
    frame = con.sql("SELECT X AS x, F AS f FROM t ORDER BY i").pl()
    X, _ = design_matrix(fitted.estimates, frame)
    for kind in (pl.Categorical(), pl.Enum(["c", "b", "a", "z"])):
        other, _ = design_matrix(fitted.estimates, frame.rename({"x": "X"}).with_columns(pl.col("f").cast(kind)))
        assert np.array_equal(X, other)


def test_functions_of_the_users_own(con: Con) -> None:
    con.execute("CREATE MACRO doubled(v) AS v * 2")
    fitted = mlsql.fit("y ~ doubled(x) + (1 | g)", "t", con=con)
    X, _ = design_matrix(fitted.estimates, pl.DataFrame({"x": [0.5, 2.0]}), con)
    assert X[:, 1].tolist() == [1.0, 4.0]


def test_no_rows(con: Con) -> None:
    fitted = mlsql.fit("y ~ group_center(x) + (1 | g)", "t", con=con)
    X, offset = design_matrix(fitted.estimates, con.sql("FROM t LIMIT 0").pl())
    assert (X.shape, offset.shape) == ((0, 2), (0,))


def test_missing_columns(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + group_center(z) + offset(z) + (1 | g)", "t", con=con)
    with pytest.raises(mlsql.DataError, match=r"x: column 'x' is not in the data"):
        design_matrix(fitted.estimates, pl.DataFrame({"z": [1.0], "g": [1]}))
    with pytest.raises(mlsql.DataError, match=r"add the grouping column g to the data, or a column 'group_mean\(z\)'"):
        design_matrix(fitted.estimates, pl.DataFrame({"x": [1.0], "z": [1.0]}))
