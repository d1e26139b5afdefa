"""Two ways to say the same: weights or copies, joined or separate tables, equations or formula, one or four threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
import mlsql.design.design

Rows = Callable[..., pl.DataFrame]

RTOL = 1e-9
"""The same sums in another order, and an optimum found to 1e-10 of a unit of deviance."""


def same(ours: mlsql.Fit, theirs: mlsql.Fit, terms: bool = True) -> None:
    assert (ours.n_rows, ours.n_groups) == (theirs.n_rows, theirs.n_groups)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=RTOL)
    np.testing.assert_allclose(ours.fixed_effects["estimate"], theirs.fixed_effects["estimate"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.fixed_effects["std_error"], theirs.fixed_effects["std_error"], rtol=1e-7)
    np.testing.assert_allclose(ours.T, theirs.T, rtol=1e-6, atol=1e-8)
    assert ours.sigma2 == pytest.approx(theirs.sigma2, rel=1e-7)
    left, right = ours.group_effects(), theirs.group_effects()
    for column in ("estimate", "std_error", "coefficient", "ols_estimate", "n"):
        np.testing.assert_allclose(left[column].cast(float), right[column].cast(float), rtol=1e-6, atol=1e-8)
    if terms:
        assert ours.fixed_effects["term"].to_list() == theirs.fixed_effects["term"].to_list()


# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("method", ["ML", "REML"])
@pytest.mark.parametrize(
    "formula", ["y ~ w*x + (x | g)", "y ~ 0 + x + f + (1 | g)", "y ~ x + z + offset(o) + (x || g)"]
)
def test_weights_are_copies_of_rows_at_equal_variances(rows: Rows, formula: str, method: str) -> None:
    data = rows().with_columns(times=(2 * pl.col("weight")).cast(pl.Int64))
    copies = data.select(pl.exclude("times").repeat_by("times").explode())
    q = 1 if "(1 |" in formula else 2
    T, sigma2 = np.diag([0.8, 0.3][:q]), 1.7
    weighted = mlsql.evaluate(formula, data, T=T, sigma2=sigma2, weights="times", method=method)  # type: ignore[arg-type]
    copied = mlsql.evaluate(formula, copies, T=T, sigma2=sigma2, method=method)  # type: ignore[arg-type]
    np.testing.assert_allclose(weighted.fixed_effects["estimate"], copied.fixed_effects["estimate"], rtol=1e-9)
    np.testing.assert_allclose(weighted.vcov, copied.vcov, rtol=1e-9)
    for column in ("estimate", "std_error", "conditional_sd", "ols_estimate", "reliability"):
        left, right = (f.group_effects()[column].cast(float).to_numpy() for f in (weighted, copied))
        if column == "ols_estimate" or column == "reliability":
            # one weighted row is one row: its copies do not give a group full rank either
            assert np.array_equal(np.isnan(left), np.isnan(right))
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-10)
    constant = (len(copies) - len(data)) * np.log(2 * np.pi * sigma2) + data["times"].log().sum()
    assert copied.deviance - weighted.deviance == pytest.approx(constant, rel=1e-9)


@pytest.mark.parametrize(
    "formula", ["y ~ w*x + (x | g)", "y ~ group_center(x) + group_mean(x) + (group_center(x) | g)"]
)
@pytest.mark.parametrize("weights", ["one", "one * 1.0"])
def test_weights_of_one_are_no_weights(rows: Rows, formula: str, weights: str) -> None:
    data = rows().with_columns(one=pl.lit(1.0))
    same(mlsql.fit(formula, data, weights=weights), mlsql.fit(formula, data))


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e8])
def test_the_scale_of_weights_is_the_scale_of_sigma2(rows: Rows, factor: float) -> None:
    data = rows().with_columns(scaled=pl.col("weight") * factor)
    plain = mlsql.fit("y ~ x + (1 | g)", data, weights="weight", method="ML")
    scaled = mlsql.fit("y ~ x + (1 | g)", data, weights="scaled", method="ML")
    # Var(e) = sigma2 / w is the same, so all the rest is
    assert scaled.sigma2 == pytest.approx(factor * plain.sigma2, rel=1e-7)
    np.testing.assert_allclose(scaled.T, plain.T, rtol=1e-6)
    assert scaled.deviance == pytest.approx(plain.deviance, rel=RTOL)
    np.testing.assert_allclose(scaled.vcov, plain.vcov, rtol=1e-6)


# ---------------------------------------------------------------------------------------------- tables and texts


@pytest.mark.parametrize(
    "formula", ["y ~ w*x + (x | g)", "y ~ s + grand_center(v):x + x + (x | g)", "y ~ C(v) + grand_center(w) + (1 | g)"]
)
def test_a_level_2_table_is_the_same_as_joined_data(rows: Rows, formula: str) -> None:
    data = rows()
    upper = data.select("g", "w", "v", "s").unique().sample(fraction=1.0, shuffle=True, seed=1)
    same(mlsql.fit(formula, data.drop("w", "v", "s"), level2=upper), mlsql.fit(formula, data))


def test_groups_of_the_level_2_table_without_rows_do_not_count(rows: Rows) -> None:
    data = rows()
    upper = data.select("g", "w").unique()
    more = pl.concat([upper, pl.DataFrame({"g": [1000, 1001], "w": [50.0, 60.0]})])
    formula = "y ~ w + x + (1 | g)"
    same(mlsql.fit(formula, data.drop("w"), level2=more), mlsql.fit(formula, data))


def test_level_equations_are_the_formula(rows: Rows) -> None:
    equations = """
        # level 1
        y = b0 + b1*group_center(x) + b2*z + b3*t + r
        # level 2
        b0 = g00 + g01*w + g02*s + u0
        b1 = g10 + g11*w + u1
        b2 = g20 + g21*v
        b3 = g30
    """
    formula = "y ~ w*group_center(x) + s + z*v - v + t + (group_center(x) | g)"
    ours = mlsql.fit(equations, rows(), groups="g")
    theirs = mlsql.fit(formula, rows())
    assert set(ours.fixed_effects["term"]) == set(theirs.fixed_effects["term"])
    left, right = (f.fixed_effects.sort("term") for f in (ours, theirs))
    np.testing.assert_allclose(left["estimate"], right["estimate"], rtol=1e-7)
    np.testing.assert_allclose(left["std_error"], right["std_error"], rtol=1e-7)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=RTOL)


def test_a_written_formula_is_the_model_again(case: Any, rows: Rows) -> None:
    data, options = case.inputs(rows())
    spec = mlsql.parse_model(case.formula, groups=options.pop("groups", None), weights=options.pop("weights", None))
    again = mlsql.parse_model(spec.formula, weights=None if spec.weights is None else spec.weights.sql)
    first, second = (mlsql.evaluate(s, data, T=case.T, sigma2=1.0, **options) for s in (spec, again))
    assert first.deviance == second.deviance
    assert first.fixed_effects.equals(second.fixed_effects)


@pytest.mark.parametrize(
    "formula",
    ["y ~ {0} + ({0} | g)", "y ~ {0}*w + ({0} | g)", "y ~ {0} + group_mean(z) + (0 + {0} | g)", "y ~ {0}*x + (1 | g)"],
)
def test_centring_in_the_model_is_centring_in_sql(rows: Rows, formula: str) -> None:
    con = duckdb.connect()
    con.register("plain", rows().to_arrow())
    centered = "SELECT *, z - avg(z) OVER (PARTITION BY g) AS cz FROM plain"
    ours = mlsql.fit(formula.format("group_center(z)"), "plain", con=con)
    same(ours, mlsql.fit(formula.format("cz"), centered, con=con), terms=False)


# ---------------------------------------------------------------------------------------------- missing values


@pytest.mark.parametrize("missing", [None, float("nan")], ids=["NULL", "NaN"])
@pytest.mark.parametrize("column", ["y", "x", "w", "o"])
@pytest.mark.parametrize("layout", ["full", "lean"])
def test_incomplete_rows_are_dropped(
    rows: Rows, monkeypatch: pytest.MonkeyPatch, column: str, missing: float | None, layout: str
) -> None:
    monkeypatch.setattr(mlsql.design.design, "SMALL", 10**9 if layout == "full" else 0)
    data = rows().sample(fraction=1.0, shuffle=True, seed=2)
    hit = pl.col("row") % 7 == 3
    holes = data.with_columns(
        pl.when(hit).then(pl.lit(missing, dtype=pl.Float64)).otherwise(pl.col(column)).alias(column)
    )
    # means are those of the rows that are used
    formula = "y ~ w*group_center(x) + group_mean(x) + grand_center(z) + offset(o) + (group_center(x) | g)"
    ours, theirs = mlsql.fit(formula, holes), mlsql.fit(formula, data.filter(~hit))
    same(ours, theirs)
    lost = int(data.select(hit.sum()).item())
    assert ours.dropped[0].startswith(f"{lost} of {len(data)} rows")
    assert not theirs.dropped


@pytest.mark.parametrize("column", ["g", "f", "t", "s"])
def test_rows_without_group_or_category_are_dropped(rows: Rows, column: str) -> None:
    data = rows()
    hit = pl.col("row") % 7 == 3
    holes = data.with_columns(pl.when(~hit).then(pl.col(column)).alias(column))
    formula = "y ~ f + t + s + x + (1 | g)"
    same(mlsql.fit(formula, holes), mlsql.fit(formula, data.filter(~hit)))


@pytest.mark.parametrize("column", ["w", "s"])
def test_groups_with_an_incomplete_level_2_row_are_dropped(rows: Rows, column: str) -> None:
    data = rows()
    upper = data.select("g", "w", "s").unique()
    holes = upper.with_columns(pl.when(pl.col("g") != 40).then(pl.col(column)).alias(column))
    formula = "y ~ w + s + x + grand_center(w):x + (1 | g)"
    ours = mlsql.fit(formula, data.drop("w", "s"), level2=holes)
    same(ours, mlsql.fit(formula, data.filter(pl.col("g") != 40)))
    without = mlsql.fit(formula, data.drop("w", "s"), level2=upper.filter(pl.col("g") != 40))
    same(without, ours)


# ---------------------------------------------------------------------------------------------- threads and layouts


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300,000 rows in random order, 3,000 groups, several row groups so that threads share the scan."""
    path = tmp_path_factory.mktemp("large") / "rows.parquet"
    con = duckdb.connect()
    con.execute("SET threads = 1")
    con.execute(
        f"""COPY (
            WITH r AS (SELECT hash(i) AS h, hash(i + 10000000) AS k, hash(i + 20000000) AS e FROM range(300000) t(i)),
            s AS (SELECT (k % 3000)::INT AS g, (h % 1000003) / 1e6 - 0.5 AS x, 2020 + (h % 7) AS year,
                         (e % 999983) / 1e6 - 0.5 AS e FROM r)
            SELECT g, x, year, (g % 11) / 11 AS w,
                   3 + x + 0.1 * (year - 2020) + ((g * 7919) % 3001) / 3001 + ((g * 104729) % 2999) / 2999 * x + e AS y
            FROM s) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 20000)"""
    )
    return path


LARGE = "y ~ w*group_center(x) + year + (group_center(x) | g)"


def test_one_and_four_threads_agree(large: Path) -> None:
    fits = []
    for threads in (1, 4):
        con = duckdb.connect()
        con.execute(f"SET threads = {threads}")
        fits.append(mlsql.fit(LARGE, str(large), con=con))
    same(*fits)


def test_lean_and_full_layouts_agree_at_the_optimum(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = mlsql.fit(LARGE, str(large))
    monkeypatch.setattr(mlsql.design.design, "SMALL", 0)
    lean = mlsql.fit(LARGE, str(large))
    assert (full.estimates.design.layout, lean.estimates.design.layout) == ("full", "lean")
    assert len(lean.plan.steps) == 2
    same(lean, full)


def test_rows_in_order_of_groups_are_read_in_one_scan(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlsql.design.design, "SMALL", 0)
    ordered = mlsql.fit(LARGE, f"SELECT * FROM '{large}' ORDER BY g")
    assert ordered.estimates.design.layout == "full"
    same(ordered, mlsql.fit(LARGE, str(large)))


# ---------------------------------------------------------------------------------------------- nested models


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("y ~ 1 + (1 | g)", "y ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", "y ~ x + (x || g)"),
        ("y ~ x + (x || g)", "y ~ x + (x | g)"),
        ("y ~ x + (x | g)", "y ~ x*w + (x | g)"),
        ("y ~ x + (x | g)", "y ~ x + (x + z | g)"),
        ("y ~ x + (0 + x | g)", "y ~ x + (x | g)"),
        ("y ~ group_center(x) + (1 | g)", "y ~ group_center(x) + group_mean(x) + (1 | g)"),
        ("y ~ x + (1 | g)", "y ~ x + f + s + t + (1 | g)"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_larger_model_has_no_larger_deviance(rows: Rows, small: str, large: str, seed: int) -> None:
    data = rows(seed)
    # a change of the deviance below 1e-7 is what going to the exact boundary may cost
    assert mlsql.fit(large, data, method="ML").deviance <= mlsql.fit(small, data, method="ML").deviance + 1e-6


# ---------------------------------------------------------------------------------------------- new rows


def test_rows_of_new_groups_have_the_variance_of_a_new_group(rows: Rows, cases: dict[str, Any], dense: Any) -> None:
    case = cases["cross-level, group-centred"]
    data = rows()
    fit = mlsql.evaluate(case.formula, data, T=case.T, sigma2=1.3)
    new = data.filter(pl.col("g") >= 40).with_columns(pl.col("g") + 1000)
    with pytest.raises(mlsql.DataError, match="did not see"):
        fit.predict(new)
    scores = fit.predict(new, unseen="population")
    missing = fit.predict(new, unseen="missing")
    assert scores is not None
    assert missing is not None
    scores = scores.sort("row")
    # a new group's own mean centres its rows
    X, Z = case.columns(new, case.X), case.columns(new, case.Z)
    model = case.dense(dense, data, 1.3)
    np.testing.assert_allclose(scores["population"], X @ model.beta, rtol=1e-8)
    np.testing.assert_allclose(scores["conditional"], X @ model.beta, rtol=1e-8)
    fixed = np.einsum("if,fg,ig->i", X, model.vcov, X)
    random = np.einsum("ia,ab,ib->i", Z, case.T, Z)
    np.testing.assert_allclose(scores["population_std_error"], np.sqrt(fixed), rtol=1e-8)
    np.testing.assert_allclose(scores["conditional_std_error"], np.sqrt(fixed + random), rtol=1e-8)
    assert missing["conditional"].null_count() == len(new)
    assert missing["conditional_std_error"].null_count() == len(new)


def test_new_rows_of_known_groups_keep_the_fits_means(rows: Rows, cases: dict[str, Any], dense: Any) -> None:
    case = cases["within and between"]
    data = rows()
    fit = mlsql.evaluate(case.formula, data, T=case.T, sigma2=1.3)
    model = case.dense(dense, data, 1.3)
    some = data.filter(pl.col("row") % 3 == 0)
    scores = fit.predict(some)
    assert scores is not None
    kept = np.flatnonzero(data["row"].to_numpy() % 3 == 0)
    expected = model.X[kept] @ model.beta + model.wide[kept] @ model.u.ravel()
    np.testing.assert_allclose(scores.sort("row")["conditional"], expected, rtol=1e-8)


def test_a_missing_predictor_gives_no_prediction(rows: Rows) -> None:
    fit = mlsql.fit("y ~ x + f + (x | g)", rows())
    holes = rows().with_columns(pl.when(pl.col("row") % 5 > 0).then(pl.col("x")).alias("x"))
    scores = fit.predict(holes)
    assert scores is not None
    empty = scores["row"] % 5 == 0
    for column in ("population", "population_std_error", "conditional", "conditional_std_error"):
        assert (scores[column].is_null() == empty).all()
    # a level that the fit did not see
    other = fit.predict(rows().with_columns(f=pl.lit("new")))
    assert other is not None
    assert other["population"].null_count() == len(other)


def test_predictions_on_the_data_given_again_are_those_of_the_fit(spelled: Any, rows: Rows) -> None:
    data, options = spelled.inputs(rows())
    fit = mlsql.evaluate(spelled.formula, data, T=spelled.T, sigma2=1.0, **options)
    own = fit.predict()
    again = fit.predict(data, level2=options.get("level2"))
    assert own is not None
    assert again is not None
    assert own.sort("row").equals(again.sort("row"))
