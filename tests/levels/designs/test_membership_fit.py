"""Multiple membership equals the same model by n x n matrices of weighted memberships."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql

Array = NDArray[np.float64]

RTOL = 1e-8
"""Both sides solve well-conditioned systems of size 80 in double precision."""

SIGMA2 = 1.1
T = {"pupil": np.array([[0.8]]), "teacher": np.array([[1.7]])}
FORMULA = "y ~ x + (1 | pupil) + (1 | teacher)"
WEIGHTS = {"share": {"weight": "share"}, "sum": {}, "mean": {"normalise": True}}

Rows = tuple[pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="session")
def member_rows() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of 24 pupils with one to three teachers each; and pupil, teacher, share."""
    rng = np.random.default_rng(7)
    pupils, effect, rows = 24, rng.normal(size=7), []
    for i in range(pupils):
        own = rng.choice(len(effect), 1 + i % 3, replace=False)
        share = rng.dirichlet(np.ones(len(own)))
        rows += [(i, 10 + int(t), float(v)) for t, v in zip(own, share, strict=True)]
    history = pl.DataFrame(rows, schema=["pupil", "teacher", "share"], orient="row")
    total = np.zeros(pupils)
    for i, t, v in rows:
        total[i] += v * effect[t - 10]
    pupil = np.repeat(np.arange(pupils), [1, 1, *rng.integers(1, 6, pupils - 2)])
    x, u = rng.normal(size=len(pupil)), rng.normal(size=pupils)
    y = 4 + 0.5 * x + u[pupil] + 1.5 * total[pupil] + rng.normal(size=len(pupil))
    return pl.DataFrame({"row": np.arange(len(pupil)), "pupil": pupil, "x": x, "y": y}), history


def weights(history: pl.DataFrame, kind: str) -> pl.DataFrame:
    size = {"share": pl.col("share"), "sum": pl.lit(1.0), "mean": 1.0 / pl.len().over("pupil")}[kind]
    return history.with_columns(weight=size)


def model(oracle: Any, part: Any, rows: pl.DataFrame, history: pl.DataFrame, kind: str, slope: bool = False) -> Any:
    N = len(rows)
    pupils, teachers = rows["pupil"].unique().sort().to_list(), history["teacher"].unique().sort().to_list()
    own = np.eye(len(pupils))[[pupils.index(p) for p in rows["pupil"]]]
    M = np.zeros((N, len(teachers)))
    for pupil, teacher, weight in weights(history, kind).select("pupil", "teacher", "weight").iter_rows():
        M[(rows["pupil"] == pupil).to_numpy(), teachers.index(teacher)] += weight
    used = M.any(axis=0)
    ones, x = np.ones((N, 1)), rows["x"].to_numpy()[:, None]
    Z = np.hstack([ones, x]) if slope else ones
    parts = (part("pupil", own, ones, (1,)), part("teacher", M[:, used], Z, (Z.shape[1],)))
    return oracle(np.hstack([ones, x]), rows["y"].to_numpy(), parts, np.ones(N), {}, 1.0)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_at_given_variances(member_rows: Rows, oracle: Any, part: Any, kind: str) -> None:
    rows, history = member_rows
    table = mlsql.Membership(history, on=["pupil"], **WEIGHTS[kind])  # type: ignore[arg-type]
    for method in ("REML", "ML"):
        fit = mlsql.evaluate(FORMULA, rows, T=T, sigma2=SIGMA2, method=method, memberships={"teacher": table})  # type: ignore[arg-type]
        own = model(oracle, part, rows, history, kind).at(T, SIGMA2)
        assert fit.deviance == pytest.approx(own.deviance(method), rel=RTOL)
        np.testing.assert_allclose(fit.fixed_effects["estimate"], own.beta, rtol=RTOL)
        np.testing.assert_allclose(fit.vcov, own.vcov, rtol=RTOL, atol=RTOL * own.vcov.max())
    for factor in T:
        table_of = fit.group_effects(factor).sort(factor)
        np.testing.assert_allclose(table_of["estimate"], own.u(factor)[:, 0], rtol=RTOL, atol=1e-10)
        np.testing.assert_allclose(table_of["std_error"] ** 2, own.posterior(factor)[:, 0], rtol=RTOL)
        np.testing.assert_allclose(table_of["conditional_sd"] ** 2, own.conditional(factor)[:, 0], rtol=RTOL)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("slope", [False, True], ids=["intercept", "slope"])
def test_the_optimum(member_rows: Rows, oracle: Any, part: Any, kind: str, method: Any, slope: bool) -> None:
    rows, history = member_rows
    table = mlsql.Membership(history, on=["pupil"], **WEIGHTS[kind])  # type: ignore[arg-type]
    formula = FORMULA.replace("(1 | teacher)", "(x | teacher)") if slope else FORMULA
    fit = mlsql.fit(formula, rows, method=method, memberships={"teacher": table})
    best = model(oracle, part, rows, history, kind, slope).optimum(method)
    assert fit.converged
    assert fit.deviance == pytest.approx(best.deviance(method), abs=1e-6)


def test_memberships_of_one_row_each(member_rows: Rows, oracle: Any, part: Any) -> None:
    """The table by row in place of by pupil: the same sets, said again for every row."""
    rows, history = member_rows
    longer = rows.select("row", "pupil").join(history, on="pupil").drop("pupil")
    by_row = mlsql.Membership(longer, on=["row"], weight="share")
    by_pupil = mlsql.Membership(history, on=["pupil"], weight="share")
    ours, theirs = (mlsql.fit(FORMULA, rows, memberships={"teacher": m}) for m in (by_row, by_pupil))
    assert ours.deviance == pytest.approx(theirs.deviance, rel=1e-9)
    np.testing.assert_allclose(ours.vcov, theirs.vcov, rtol=1e-6)
