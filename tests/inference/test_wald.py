"""Wald tests: F and t of one row agree, chi-squares add up, and nothing depends on units, origins, order or threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy import stats

import mlsql
from mlsql._typing import DfMethod, Vcov

Array = NDArray[np.float64]

METHODS = [
    (df, vcov)
    for df in get_args(DfMethod)
    for vcov in get_args(Vcov)
    if not (df == "kenward_roger" and vcov != "model")
]
IDS = [f"{df}-{vcov}" for df, vcov in METHODS]

FORMULA = "y ~ w*x + (x | g)"

FAR = 2.0**20
"""A million standard deviations; a power of two and data of few digits, so that the moved column is exact."""

SEEN = 1e-6
"""The contract: moving the origin by a million standard deviations changes nothing a user sees beyond this."""

SAME = 1e-8
"""The same statement in another order or unit: rounding, and an optimum found to 1e-9 from another start."""


def grid_rows() -> pl.DataFrame:
    """Forty groups of 3 to 9 rows; x, w and y are multiples of 2^-10."""
    rng = np.random.default_rng(11)
    sizes = rng.integers(3, 10, 40)
    j = np.repeat(np.arange(40), sizes)

    def rounded(values: Array) -> Array:
        return np.round(values * 1024) / 1024

    x, w = rounded(rng.normal(size=len(j))), rounded(rng.normal(size=40))
    u = rng.normal(size=(40, 2)) * [1.2, 0.8]
    y = rounded(1 + 0.5 * x + 0.3 * w[j] + 0.4 * x * w[j] + u[j, 0] + u[j, 1] * x + rng.normal(size=len(j)))
    return pl.DataFrame({"g": j, "x": x, "w": w[j], "y": y})


GRID = grid_rows()


@pytest.fixture(scope="module")
def base() -> mlsql.Fit:
    return mlsql.fit(FORMULA, GRID)


# ---------------------------------------------------------------------------------------------- one row, many rows


@pytest.mark.parametrize(("df", "vcov"), METHODS, ids=IDS)
def test_f_of_one_row_is_t_squared(base: mlsql.Fit, df: Any, vcov: Any) -> None:
    table = base.inference(df, vcov)
    for row in table.iter_rows(named=True):
        test = base.test(row["term"], df, vcov).row(0, named=True)
        assert test["statistic"] == pytest.approx(row["statistic"] ** 2, rel=1e-9)
        assert test["df1"] == 1
        assert test["df2"] == pytest.approx(row["df"], rel=1e-9)
        assert test["p_value"] == pytest.approx(row["p_value"], rel=1e-6)
        assert test["chi2"] == pytest.approx(row["statistic"] ** 2, rel=1e-9)
        assert (test["df_method"], test["vcov"]) == (df, vcov) == (row["df_method"], row["vcov"])


@pytest.mark.parametrize(("df", "vcov"), METHODS, ids=IDS)
def test_t_and_p_and_interval(base: mlsql.Fit, df: Any, vcov: Any) -> None:
    for row in base.inference(df, vcov, level=0.9).iter_rows(named=True):
        t = row["estimate"] / row["std_error"]
        distribution = stats.norm if np.isinf(row["df"]) else stats.t(row["df"])
        half = distribution.ppf(0.95) * row["std_error"]
        assert row["statistic"] == pytest.approx(t, rel=1e-12)
        assert row["p_value"] == pytest.approx(2 * distribution.sf(abs(t)), rel=1e-9)
        assert row["conf_low"] == pytest.approx(row["estimate"] - half, rel=1e-9)
        assert row["conf_high"] == pytest.approx(row["estimate"] + half, rel=1e-9)


@pytest.mark.parametrize(("df", "vcov"), METHODS, ids=IDS)
def test_chi2_and_f_of_two_rows(base: mlsql.Fit, df: Any, vcov: Any) -> None:
    L, values = np.array([[0.0, 1, 0, -1], [0, 0, 2, 1]]), np.array([0.1, 0.8])
    text = ["w - w:x = 0.1", "2*x + w:x = 0.8"]
    V = L @ base.reference(df, vcov).covariance @ L.T
    d = L @ base.inference()["estimate"].to_numpy() - values
    test = base.test(text, df, vcov).row(0, named=True)
    wald = float(d @ np.linalg.solve(V, d))
    assert test["chi2"] == pytest.approx(wald, rel=1e-9)
    assert (test["chi2_df"], test["df1"]) == (2, 2)
    assert test["chi2_p_value"] == pytest.approx(stats.chi2.sf(wald, 2), rel=1e-9)
    if np.isinf(test["df2"]):
        assert test["p_value"] == pytest.approx(test["chi2_p_value"], rel=1e-9)
    else:
        assert test["p_value"] == pytest.approx(stats.f.sf(test["statistic"], 2, test["df2"]), rel=1e-9)
    if df in ("hlm", "between_within", "residual", "normal"):
        assert test["statistic"] == pytest.approx(wald / 2, rel=1e-9)


BASIS = ("satterthwaite", "model")
"""Fai and Cornelius take the eigenvectors of the contrasts' covariance matrix, which depend on the contrasts' units and
basis; so does df2, in its fourth digit.  lmerTest does the same."""


@pytest.mark.parametrize(("df", "vcov"), METHODS, ids=IDS)
def test_rows_of_a_hypothesis_may_be_mixed(base: mlsql.Fit, df: Any, vcov: Any) -> None:
    """The same space of contrasts, another basis: the same test."""
    plain, mixed = (base.test(t, df, vcov).row(0, named=True) for t in ("x, w:x", "x - 3*w:x, 2*x + w:x"))
    # counted df belong to terms: the smallest of those that occur
    for column in ("chi2", "statistic", "df1", *(["df2", "p_value"] if (df, vcov) != BASIS else [])):
        assert mixed[column] == pytest.approx(plain[column], rel=1e-7)


def test_normal_and_residual_bound_the_others(base: mlsql.Fit) -> None:
    """More df, smaller p."""
    p = {df: base.inference(df)["p_value"].to_numpy() for df in ("hlm", "residual", "normal")}
    assert np.all(p["normal"] < p["residual"])
    assert np.all(p["residual"] < p["hlm"])


# ---------------------------------------------------------------------------------------------- what must not matter


def compare(ours: mlsql.Fit, theirs: mlsql.Fit, kept: dict[str, str], unit: float, rtol: float) -> None:
    """All methods for the terms of `kept` (ours: theirs), our estimates being `unit` times theirs; and joint tests."""
    for df, vcov in METHODS:
        left, right = (f.inference(df, vcov) for f in (ours, theirs))  # type: ignore[arg-type]
        for name, other in kept.items():
            a = left.row(by_predicate=pl.col("term") == name, named=True)
            b = right.row(by_predicate=pl.col("term") == other, named=True)
            assert a["std_error"] == pytest.approx(abs(unit) * b["std_error"], rel=rtol), (df, vcov)
            assert a["df"] == pytest.approx(b["df"], rel=10 * rtol), (df, vcov)
            assert abs(a["statistic"]) == pytest.approx(abs(b["statistic"]), rel=10 * rtol), (df, vcov)
        tests = [
            f.test(list(names), df, vcov).row(0, named=True)  # type: ignore[arg-type]
            for f, names in ((ours, kept), (theirs, kept.values()))
        ]
        for column in ("chi2", "statistic", "df2"):
            assert tests[0][column] == pytest.approx(tests[1][column], rel=10 * rtol), (df, vcov)


SLOPES = {"x": "x", "w:x": "w:x"}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_rows_does_not_matter(base: mlsql.Fit, seed: int) -> None:
    shuffled = mlsql.fit(FORMULA, GRID.sample(fraction=1.0, shuffle=True, seed=seed))
    compare(shuffled, base, {t: t for t in base.fixed_effects["term"]}, 1.0, SAME)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_does_not_matter(base: mlsql.Fit, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lean too: the completing query runs on its own."""
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    with duckdb.connect(config={"threads": threads}) as con:
        con.register("frame", GRID.sample(fraction=1.0, shuffle=True, seed=3).to_arrow())
        con.execute("CREATE TABLE grid AS SELECT * FROM frame")
        fit = mlsql.fit(FORMULA, "grid", con=con)
        assert fit.estimates.design.layout == "lean"
        compare(fit, base, {t: t for t in base.fixed_effects["term"]}, 1.0, SAME)


@pytest.mark.parametrize("column", ["x", "w", "y"])
@pytest.mark.parametrize("unit", [1e-6, -1e6])
def test_units_do_not_matter(base: mlsql.Fit, column: str, unit: float) -> None:
    moved = mlsql.fit(FORMULA, GRID.with_columns(pl.col(column) * unit))
    terms = {"x": ["x", "w:x"], "w": ["w", "w:x"], "y": list(base.fixed_effects["term"])}[column]
    compare(moved, base, {t: t for t in terms}, unit if column == "y" else 1 / unit, SEEN)


@pytest.mark.parametrize("layout", ["full", "lean"])
@pytest.mark.parametrize(
    ("formula", "column", "kept"),
    [
        # moving x changes the meaning of the intercept and of w beside w:x, not of the slopes
        (FORMULA, "x", ["x", "w:x"]),
        (FORMULA, "w", ["w", "w:x"]),
        (FORMULA, "y", ["w", "x", "w:x"]),
        ("y ~ w*group_center(x) + (group_center(x) | g)", "x", ["(Intercept)", "w", "group_center(x)"]),
        ("y ~ x + w + (1 | g)", "x", ["x", "w"]),
    ],
)
def test_origins_do_not_matter(
    formula: str, column: str, kept: list[str], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlsql.design.design.SMALL", 0 if layout == "lean" else 10**9)
    data = GRID.sample(fraction=1.0, shuffle=True, seed=3)
    plain, moved = mlsql.fit(formula, data), mlsql.fit(formula, data.with_columns(pl.col(column) + FAR))
    compare(moved, plain, {t: t for t in kept}, 1.0, SEEN)


def test_the_reference_level_does_not_matter(rows: Callable[..., pl.DataFrame]) -> None:
    """Contrasts among three levels span the same space whichever is left out."""
    first, other = (mlsql.fit(f"y ~ {s} + x + (1 | g)", rows()) for s in ("s", "C(s, ref='q')"))
    for df, vcov in METHODS:
        tests = [
            f.test([t for t in f.fixed_effects["term"] if "[" in t], df, vcov).row(0, named=True)  # type: ignore[arg-type]
            for f in (first, other)
        ]
        for column in ("chi2", "statistic", *(["df2"] if (df, vcov) != BASIS else [])):
            # two searches for the same optimum, each within 1e-6 of the variances
            assert tests[0][column] == pytest.approx(tests[1][column], rel=1e-5), (df, vcov)
