"""What must not matter: the order of rows, names of groups, units and origins of outcome and predictors."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import mlsql

Array = NDArray[np.float64]

FORMULA = "y ~ x + w + x:w + (x | g)"
FAR = 2.0**20
"""A million standard deviations of x; powers of two, so that the shifted column itself is exact."""

SEEN = 1e-6
"""The contract: moving the origin by a million standard deviations changes nothing a user sees beyond this."""


def grid_rows() -> pl.DataFrame:
    """Forty groups of 3 to 9 rows; x, w and y are multiples of 2^-10, so that sums with FAR are exact."""
    rng = np.random.default_rng(11)
    sizes = rng.integers(3, 10, 40)
    j = np.repeat(np.arange(40), sizes)

    def rounded(values: Array) -> Array:
        return np.round(values * 1024) / 1024

    x, w = rounded(rng.normal(size=len(j))), rounded(rng.normal(size=40))
    u = rng.normal(size=(40, 2)) * [1.2, 0.8]
    y = rounded(1 + 0.5 * x + 0.3 * w[j] + 0.4 * x * w[j] + u[j, 0] + u[j, 1] * x + rng.normal(size=len(j)))
    return pl.DataFrame({"row": np.arange(len(j)), "g": j, "x": x, "w": w[j], "y": y})


GRID = grid_rows()


@pytest.fixture(scope="module")
def base() -> mlsql.Fit:
    return mlsql.fit(FORMULA, GRID)


def estimates(fit: mlsql.Fit) -> Array:
    return fit.fixed_effects["estimate"].to_numpy()


def errors(fit: mlsql.Fit) -> Array:
    return fit.fixed_effects["std_error"].to_numpy()


def same(ours: mlsql.Fit, theirs: mlsql.Fit, rtol: float) -> None:
    """All that does not depend on the order or names of groups."""
    assert ours.deviance == pytest.approx(theirs.deviance, rel=rtol)
    np.testing.assert_allclose(estimates(ours), estimates(theirs), rtol=rtol)
    np.testing.assert_allclose(ours.vcov, theirs.vcov, rtol=rtol, atol=rtol * np.diag(theirs.vcov).max())
    # the optimum is found to 1e-5 of a standard error at worst
    np.testing.assert_allclose(ours.T, theirs.T, rtol=max(rtol, 1e-6))
    assert ours.sigma2 == pytest.approx(theirs.sigma2, rel=max(rtol, 1e-7))
    columns = ["estimate", "std_error", "df", "p_value", "chi2", "reliability"]
    for table in ("fixed_effects", "variance_components"):
        left, right = getattr(ours, table), getattr(theirs, table)
        for column in [c for c in columns if c in left.columns]:
            np.testing.assert_allclose(left[column].cast(float), right[column].cast(float), rtol=max(rtol, 1e-5))


# ---------------------------------------------------------------------------------------------- rows and groups


@given(seed=st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    shuffled = mlsql.fit(FORMULA, GRID.sample(fraction=1.0, shuffle=True, seed=seed))
    plain = mlsql.fit(FORMULA, GRID)
    same(shuffled, plain, 1e-9)
    np.testing.assert_allclose(
        shuffled.group_effects()["estimate"], plain.group_effects()["estimate"], rtol=1e-6, atol=1e-8
    )


def relabelled() -> dict[str, tuple[str, list[pl.Series]]]:
    """Other names for the groups: the grouping term, and its key columns, one value per group 0 ... 39."""
    codes = (np.arange(40) * 17) % 40  # another order
    return {
        "negative integers": ("k", [pl.Series("k", -codes)]),
        "huge integers": ("k", [pl.Series("k", 2**62 + codes)]),
        "small integers": ("k", [pl.Series("k", codes, dtype=pl.UInt8)]),
        "floats": ("k", [pl.Series("k", codes / 4)]),
        "text": ("k", [pl.Series("k", [f"Schule {c} 'ä' \"x\"" for c in codes])]),
        "text of digits": ("k", [pl.Series("k", [f"{c:04d}" for c in codes])]),
        "categories": ("k", [pl.Series("k", [f"c{c}" for c in codes], dtype=pl.Categorical)]),
        "dates": ("k", [pl.Series("k", [dt.date(1969, 12, 1) + dt.timedelta(days=int(c)) for c in codes])]),
        "times": ("k", [pl.Series("k", [dt.datetime(2024, 2, 29) + dt.timedelta(hours=int(c)) for c in codes])]),
        "two keys": ("a:b", [pl.Series("a", codes // 8), pl.Series("b", codes % 8)]),
        "two keys of two kinds": (
            "a:b",
            [
                pl.Series("a", [f"land {c % 5}" for c in codes]),
                pl.Series("b", [dt.date(2000 + c // 5, 1, 1) for c in codes]),
            ],
        ),
        "three keys": (
            "a:b:c",
            [pl.Series("a", codes % 2), pl.Series("b", codes // 2 % 4), pl.Series("c", codes // 8)],
        ),
    }


@pytest.mark.parametrize("kind", relabelled())
def test_names_of_groups_do_not_matter(base: mlsql.Fit, kind: str) -> None:
    term, keys = relabelled()[kind]
    names = pl.DataFrame(keys).with_columns(g=pl.Series(np.arange(40)))
    data = GRID.join(names, on="g").rename({"g": "number"})
    fit = mlsql.fit(FORMULA.replace("| g", f"| {term}"), data)
    same(fit, base, 1e-9)
    own = [key.name for key in keys]
    # categories come back as text
    names = names.with_columns(pl.col(pl.Categorical).cast(pl.String))
    assert fit.group_effects().columns[: len(own)] == own
    matched = fit.group_effects().join(names, on=own).sort("g", "term")
    expected = base.group_effects().sort("g", "term")
    assert len(matched) == 80
    for column in ("estimate", "std_error", "ols_estimate", "n"):
        np.testing.assert_allclose(matched[column], expected[column], rtol=1e-6, atol=1e-8)
    scores, theirs = fit.predict(), base.predict()
    assert scores is not None
    assert theirs is not None
    np.testing.assert_allclose(scores.sort("row")["conditional"], theirs.sort("row")["conditional"], rtol=1e-6)


def test_uuid_keys(base: mlsql.Fit) -> None:
    names = {g: uuid.uuid5(uuid.NAMESPACE_OID, str(g)) for g in range(40)}
    con = duckdb.connect()
    con.register("grid", GRID.to_arrow())
    con.execute("CREATE TABLE names (g BIGINT, k UUID)")
    con.executemany("INSERT INTO names VALUES (?, ?)", [[g, k] for g, k in names.items()])
    con.execute("CREATE TABLE data AS SELECT * EXCLUDE (g) FROM grid JOIN names USING (g)")
    fit = mlsql.fit(FORMULA.replace("| g", "| k"), "data", con=con)
    same(fit, base, 1e-9)
    by_name = {str(k): e for k, e in fit.group_effects().filter(pl.col("term") == "x").select("k", "estimate").rows()}
    expected = base.group_effects().filter(pl.col("term") == "x")["estimate"]
    np.testing.assert_allclose([by_name[str(names[g])] for g in range(40)], expected, rtol=1e-6, atol=1e-8)
    scores = fit.predict(con=con)
    assert scores is not None
    assert scores["conditional"].null_count() == 0


def test_boolean_and_expression_keys() -> None:
    data = GRID.with_columns(half=pl.col("g") >= 20, third=pl.col("g") % 3)
    fit = mlsql.fit("y ~ x + (1 | half:third)", data)
    number = data.with_columns(k=pl.col("half").cast(int) * 3 + pl.col("third"))
    same(fit, mlsql.fit("y ~ x + (1 | k)", number), 1e-9)


# ---------------------------------------------------------------------------------------------- the outcome


@given(
    a=st.sampled_from([0.0, 3.0, -1e3, FAR, -FAR]),
    c=st.sampled_from([1.0, -2.5, 1e-6, 1e6]),
    method=st.sampled_from(["ML", "REML"]),
)
def test_origin_and_unit_of_the_outcome(a: float, c: float, method: str) -> None:
    plain = mlsql.fit(FORMULA, GRID, method=method)  # type: ignore[arg-type]
    # the origin first: FAR standard deviations of y as it is
    fit = mlsql.fit(FORMULA, GRID.with_columns(y=(pl.col("y") + a) * c), method=method)  # type: ignore[arg-type]
    shift = np.array([a, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(estimates(fit), c * (estimates(plain) + shift), rtol=SEEN)
    np.testing.assert_allclose(errors(fit), abs(c) * errors(plain), rtol=SEEN)
    np.testing.assert_allclose(fit.T, c * c * plain.T, rtol=SEEN)
    assert fit.sigma2 == pytest.approx(c * c * plain.sigma2, rel=SEEN)
    # the density of c y: each of N (N - p) contrasts contributes log c^2
    count = fit.n_rows - (len(shift) if method == "REML" else 0)
    assert fit.deviance == pytest.approx(plain.deviance + count * np.log(c * c), rel=1e-8)
    np.testing.assert_allclose(
        fit.group_effects()["estimate"], c * plain.group_effects()["estimate"].to_numpy(), rtol=1e-5, atol=SEEN * abs(c)
    )


# ---------------------------------------------------------------------------------------------- predictors


@given(a=st.sampled_from([0.0, 2.0, -40.0, FAR, -FAR]), b=st.sampled_from([1.0, -0.5, 1024.0]))
def test_origin_and_unit_of_a_random_predictor(a: float, b: float) -> None:
    """X = a + b x: with C = [[1, -a/b], [0, 1/b]], the new coefficients are C times the old."""
    plain, moved = (
        mlsql.fit(
            "y ~ x + (x | g)", GRID.with_columns(x=a + b * pl.col("x") if with_shift else pl.col("x")), method="ML"
        )
        for with_shift in (False, True)
    )
    C = np.array([[1.0, -a / b], [0.0, 1 / b]])
    np.testing.assert_allclose(estimates(moved), C @ estimates(plain), rtol=SEEN)
    np.testing.assert_allclose(moved.vcov, C @ plain.vcov @ C.T, rtol=SEEN)
    np.testing.assert_allclose(moved.T, C @ plain.T @ C.T, rtol=SEEN)
    assert moved.sigma2 == pytest.approx(plain.sigma2, rel=SEEN)
    assert moved.deviance == pytest.approx(plain.deviance, rel=1e-8)
    assert moved.converged
    assert not moved.singular
    same_scores(moved, plain)
    # the slope of every group, and its test
    slopes = [f.group_effects().filter(pl.col("term") == "x") for f in (moved, plain)]
    for column in ("coefficient", "coefficient_std_error", "ols_coefficient", "ols_std_error"):
        factor = 1 / abs(b) if "std_error" in column else 1 / b
        np.testing.assert_allclose(
            slopes[0][column], factor * slopes[1][column].to_numpy(), rtol=SEEN, atol=SEEN / abs(b)
        )
    np.testing.assert_allclose(slopes[0]["reliability"], slopes[1]["reliability"], rtol=SEEN)
    tests = [f.variance_components.row(1, named=True) for f in (moved, plain)]
    for column in ("chi2", "p_value", "reliability"):
        assert tests[0][column] == pytest.approx(tests[1][column], rel=SEEN)
    assert tests[0]["std_error"] == pytest.approx(tests[1]["std_error"] / b**2, rel=1e-5)


def same_scores(ours: mlsql.Fit, theirs: mlsql.Fit) -> None:
    left, right = ours.predict(), theirs.predict()
    assert left is not None
    assert right is not None
    for column in ("population", "population_std_error", "conditional", "conditional_std_error"):
        values = right.sort("row")[column].to_numpy()
        # predictions near zero are compared on the scale of all of them
        np.testing.assert_allclose(left.sort("row")[column], values, rtol=SEEN, atol=SEEN * np.abs(values).std())
    left, right = ours.residuals(), theirs.residuals()
    assert left is not None
    assert right is not None
    for column in ("residual", "residual_population", "residual_standardized", "residual_ols"):
        values = right.sort("row")[column].to_numpy()
        np.testing.assert_allclose(left.sort("row")[column], values, rtol=SEEN, atol=SEEN)


FAR_MODELS = {
    # formula, fixed effects whose estimate and standard error a shift of x keeps
    "cross-level": ("y ~ w*x + (x | g)", ["x", "w:x"]),
    "fixed slope": ("y ~ x + w + (1 | g)", ["x", "w"]),
    "group-centred": (
        "y ~ w*group_center(x) + (group_center(x) | g)",
        ["(Intercept)", "w", "group_center(x)", "w:group_center(x)"],
    ),
    "within and between": ("y ~ group_center(x) + group_mean(x) + (1 | g)", ["group_center(x)", "group_mean(x)"]),
    "grand-centred": ("y ~ grand_center(x)*w + (grand_center(x) | g)", ["(Intercept)", "grand_center(x)", "w"]),
    "random slope without fixed": ("y ~ w + (group_center(x) | g)", ["(Intercept)", "w"]),
    "blocks, centred": ("y ~ group_center(x) + (group_center(x) || g)", ["(Intercept)", "group_center(x)"]),
}


@pytest.mark.parametrize("name", FAR_MODELS)
@pytest.mark.parametrize("column", ["x", "w", "x and y"])
def test_a_million_standard_deviations_away(name: str, column: str) -> None:
    formula, kept = FAR_MODELS[name]
    shifted = [pl.col(c) + FAR for c in column.split(" and ")]
    plain = mlsql.fit(formula, GRID, method="ML")
    moved = mlsql.fit(formula, GRID.with_columns(shifted), method="ML")
    assert moved.converged
    assert moved.deviance == pytest.approx(plain.deviance, rel=1e-8)
    assert moved.sigma2 == pytest.approx(plain.sigma2, rel=SEEN)
    if column != "w":
        left, right = (dict(zip(f.fixed_effects["term"], f.fixed_effects.rows(), strict=True)) for f in (moved, plain))
        for term in kept:
            estimate = right[term][1] + (FAR if "y" in column and term == "(Intercept)" else 0.0)
            assert left[term][1] == pytest.approx(estimate, rel=SEEN)
            assert left[term][2] == pytest.approx(right[term][2], rel=SEEN)
    if "y" not in column:
        same_scores(moved, plain)
    else:
        residuals = [f.residuals() for f in (moved, plain)]
        assert residuals[0] is not None
        assert residuals[1] is not None
        np.testing.assert_allclose(
            residuals[0].sort("row")["residual"], residuals[1].sort("row")["residual"], rtol=SEEN, atol=SEEN
        )


@pytest.mark.parametrize("formula", ["y ~ {0} + ({0} | g)", "y ~ {0} + I({0}^2) + (1 | g)"], ids=["line", "parabola"])
def test_a_year_is_an_ordinary_predictor(formula: str) -> None:
    data = GRID.with_columns(year=2024 + (pl.col("x") * 4).round().cast(pl.Int64))
    data = data.with_columns(t=pl.col("year") - 2024)
    plain = mlsql.fit(formula.format("t"), data, method="ML")
    years = mlsql.fit(formula.format("year"), data, method="ML")
    assert years.deviance == pytest.approx(plain.deviance, rel=1e-8)
    # the highest power keeps its coefficient
    assert estimates(years)[-1] == pytest.approx(estimates(plain)[-1], rel=SEEN)
    assert errors(years)[-1] == pytest.approx(errors(plain)[-1], rel=SEEN)
    same_scores(years, plain)


def test_the_reference_level_is_a_choice_of_basis(rows: Any) -> None:
    data = rows()
    first, other = (mlsql.fit(f"y ~ {f} + x + (1 | g)", data, method="ML") for f in ("f", "C(f, ref='mid')"))
    assert other.deviance == pytest.approx(first.deviance, rel=1e-10)
    # levels hi, lo, mid: contrasts with hi are those with mid minus hi's own
    _, low, mid, _ = estimates(first)
    _, high_to_mid, low_to_mid, _ = estimates(other)
    assert high_to_mid == pytest.approx(-mid, rel=SEEN)
    assert low_to_mid == pytest.approx(low - mid, rel=SEEN)
    same_scores(other, first)
