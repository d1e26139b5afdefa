"""One regression per group from moments, against numpy's least squares group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.diagnostics.group_ols import group_least_squares, level1_columns

Array = NDArray[np.float64]
Columns = Callable[[Mapping[str, Array]], list[Array]]

CLOSE = 1e-9
"""Relative: sums of pivoted squares carry 1e-15, the condition of a group of few rows takes some digits."""

SIZES = [9, 12, 7, 15, 6, 11, 5, 1, 3, 8, 20, 4]
"""Group 7 has one row; in group 6 `x` does not vary; group 8 has as many rows as the widest model has columns."""


def rows() -> pl.DataFrame:
    rng = np.random.default_rng(20)
    g = np.repeat(np.arange(len(SIZES)), SIZES)
    n = len(g)
    x = 2000.0 + rng.normal(size=n) + rng.normal(size=len(SIZES))[g]
    x[g == 6] = 2001.5
    z, w = rng.normal(size=n), rng.normal(size=len(SIZES))[g]
    f = np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    y = 1e4 + 2.0 * (x - 2000) + z + w + rng.normal(size=len(SIZES))[g] + rng.normal(size=n)
    return pl.DataFrame({"g": g, "x": x, "z": z, "w": w, "f": f, "wt": rng.uniform(0.5, 2.0, n), "y": y})


DATA = rows()
CASES: list[tuple[str, list[str], Columns]] = [
    ("y ~ x + (1 | g)", ["(Intercept)", "x"], lambda d: [d["x"]]),
    ("y ~ x*w + z + (z | g)", ["(Intercept)", "x", "z"], lambda d: [d["x"], d["z"]]),
    ("y ~ w + (x | g)", ["(Intercept)", "x"], lambda d: [d["x"]]),
    ("y ~ group_center(x) + (1 | g)", ["(Intercept)", "group_center(x)"], lambda d: [d["x"] - d["x"].mean()]),
    ("y ~ grand_center(z)*w + (1 | g)", ["(Intercept)", "grand_center(z)"], lambda d: [d["z"] - DATA["z"].mean()]),
    ("y ~ x*z + (1 | g)", ["(Intercept)", "x", "z", "x:z"], lambda d: [d["x"], d["z"], d["x"] * d["z"]]),
    ("y ~ f + z + (1 | g)", ["(Intercept)", "f[b]", "f[c]", "z"], lambda d: [d["fb"], d["fc"], d["z"]]),
    ("y ~ w + (1 | g)", ["(Intercept)"], lambda d: []),
]


def group_data(j: int) -> dict[str, Array]:
    part = DATA.filter(pl.col("g") == j)
    found = {c: part[c].to_numpy() for c in ("x", "z", "wt", "y")}
    return found | {"f" + v: (part["f"] == v).to_numpy().astype(float) for v in "bc"}


@pytest.mark.parametrize("weights", [None, "wt"])
@pytest.mark.parametrize(("formula", "names", "columns"), CASES, ids=[c[0] for c in CASES])
def test_every_group_has_its_own_regression(
    formula: str, names: list[str], columns: Columns, weights: str | None
) -> None:
    fit = mlsql.fit(formula, DATA, weights=weights)
    found = group_least_squares(*fit.products.complete())
    assert [c.name for c in found.columns] == names
    assert found.redundant == ()
    for j, n in enumerate(SIZES):
        d = group_data(j)
        X = np.column_stack([np.ones(n), *columns(d)])
        root = np.sqrt(d["wt"]) if weights else np.ones(n)
        # the columns are centred for numpy's sake: 2000 squared would cost it the digits that are compared
        shift = np.append(0.0, X[:, 1:].mean(axis=0))
        centred = (X - shift) * root[:, None]
        beta, _, rank, _ = np.linalg.lstsq(centred, root * (d["y"] - 1e4), rcond=1e-9)
        residual = root * (d["y"] - 1e4) - centred @ beta
        assert found.rank[j] == rank
        assert found.full_rank[j] == (rank == len(names))
        assert found.df[j] == n - rank
        scale = float(np.sum((root * (d["y"] - 1e4)) ** 2))
        assert found.rss[j] == pytest.approx(residual @ residual, rel=CLOSE, abs=1e-11 * scale)
        if rank < len(names):
            assert np.isnan(found.coefficients[:, j]).all()
            assert np.isnan(found.std_error[:, j]).all()
            continue
        back = np.eye(len(names))
        back[0, 1:] = -shift[1:]
        expected = back @ beta + np.append(1e4, np.zeros(len(names) - 1))
        np.testing.assert_allclose(found.coefficients[:, j], expected, rtol=CLOSE, atol=1e-8)
        root_inverse = back @ np.linalg.inv(np.linalg.qr(centred)[1])
        inverse = root_inverse @ root_inverse.T
        np.testing.assert_allclose(found.inverse[:, :, j], inverse, rtol=CLOSE, atol=1e-12 * np.abs(inverse).max())
        if n > rank:
            error = np.sqrt(np.diag(inverse) * (residual @ residual) / (n - rank))
            np.testing.assert_allclose(found.std_error[:, j], error, rtol=CLOSE)
        else:
            assert np.isnan(found.std_error[:, j]).all()


def test_deficient_groups_stay_and_are_flagged() -> None:
    found = group_least_squares(*mlsql.fit("y ~ x + (1 | g)", DATA).products.complete())
    assert np.flatnonzero(~found.full_rank).tolist() == [6, 7]
    assert found.rank[6:8].tolist() == [1, 1]
    assert found.n.tolist() == SIZES
    # what the rows of group 6 leave after their mean
    y = group_data(6)["y"]
    assert found.rss[6] == pytest.approx(float(np.sum((y - y.mean()) ** 2)), rel=CLOSE)
    assert (found.rss[7], found.df[7]) == (0.0, 0)
    assert np.isnan(found.sigma2[7])


def test_a_group_with_as_many_rows_as_columns_fits_exactly() -> None:
    found = group_least_squares(*mlsql.fit("y ~ x + z + (1 | g)", DATA).products.complete())
    assert (found.rank[8], found.df[8], found.rss[8]) == (3, 0, 0.0)
    assert np.isfinite(found.coefficients[:, 8]).all()
    assert np.isnan(found.sigma2[8])


def test_raw_and_centred_forms_of_a_predictor_are_one_column_within_groups() -> None:
    fit = mlsql.fit("y ~ x + (group_center(x) | g)", DATA)
    found = group_least_squares(*fit.products.complete())
    assert [c.name for c in found.columns] == ["(Intercept)", "x"]
    assert [c.name for c in found.redundant] == ["group_center(x)"]
    plain = group_least_squares(*mlsql.fit("y ~ x + (1 | g)", DATA).products.complete())
    np.testing.assert_allclose(found.coefficients, plain.coefficients, rtol=CLOSE)


def test_without_an_intercept_there_is_none() -> None:
    fit = mlsql.fit("y ~ 0 + x + x:w + (0 + x | g)", DATA)
    assert [c.name for c in level1_columns(fit.estimates.design)] == ["x"]
    found = group_least_squares(*fit.products.complete())
    for j in range(len(SIZES)):
        d = group_data(j)
        assert found.coefficients[0, j] == pytest.approx(d["x"] @ d["y"] / (d["x"] @ d["x"]), rel=1e-12)
    assert found.full_rank.all()


def test_the_lean_layout_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = "y ~ x + z + (1 | g)"
    direct = group_least_squares(*mlsql.fit(formula, DATA).products.complete())
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    fit = mlsql.fit(formula, DATA.sample(fraction=1.0, shuffle=True, seed=1))
    assert fit.estimates.design.layout == "lean"
    found = group_least_squares(*fit.products.complete())
    np.testing.assert_allclose(found.coefficients, direct.coefficients, rtol=CLOSE)
