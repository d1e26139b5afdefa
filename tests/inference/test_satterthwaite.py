"""Satterthwaite's df equal those from numerical derivatives of the dense deviance and covariance matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlsql
from mlsql.inference.satterthwaite import joint_df

NUMERICAL = 1e-6
"""Central differences with steps of 2e-3 and 1e-3 of sigma2, extrapolated: errors of the order of step^4, and
rounding of the deviance (1e-12) over step^2."""


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("layout", ["full", "lean"])
def test_df(answer: Callable[..., Any], case: Any, layout: str, method: str) -> None:
    found = answer(case, layout, method)
    assert not found.fit.singular
    rows = np.vstack([np.eye(found.p), found.contrasts])
    expected = found.dense.satterthwaite_df(method, rows)
    reference = found.fit.reference("satterthwaite")
    np.testing.assert_allclose(reference.df(rows), expected, rtol=NUMERICAL)
    np.testing.assert_allclose(found.fit.inference("satterthwaite")["df"], expected[: found.p], rtol=NUMERICAL)


def test_joint_test_is_fai_and_cornelius(answer: Callable[..., Any], case: Any) -> None:
    """F = mean of squared t's of contrasts with independent estimates, df2 from the mean of such an F."""
    found = answer(case)
    L = found.contrasts
    _, vectors = np.linalg.eigh(L @ found.model.vcov @ L.T)
    rows = vectors.T @ L
    single = np.array(found.dense.satterthwaite_df("REML", rows))
    t2 = (rows @ found.model.beta) ** 2 / np.einsum("rp,pf,rf->r", rows, found.model.vcov, rows)
    test = found.fit.test(L, df="satterthwaite")
    assert test["statistic"].item() == pytest.approx(t2.mean(), rel=1e-8)
    mean = np.sum(single / (single - 2)) / len(single)
    # the mean of F is df2 / (df2 - 2)
    assert test["df2"].item() == pytest.approx(2 * mean / (mean - 1), rel=10 * NUMERICAL)


def test_joint_df() -> None:
    assert joint_df(np.array([7.5])) == 7.5
    assert joint_df(np.array([1.3])) == pytest.approx(1.3)
    assert joint_df(np.array([5.0, 5.0, 5.0])) == 5.0
    # one of two or fewer df has no mean
    assert joint_df(np.array([2.0, 50.0])) == 2.0
    assert joint_df(np.array([1.5, 50.0])) == 2.0


@given(st.lists(st.floats(2.01, 1e5), min_size=2, max_size=5))
def test_the_joint_df_lie_between_the_single_ones(single: list[float]) -> None:
    df = joint_df(np.array(single))
    # a difference of two numbers near the number of tests: large df lose digits
    assert min(single) * (1 - 1e-6) <= df <= max(single) * (1 + 1e-6)


@pytest.mark.parametrize("J", [3, 5, 8, 20])
def test_balanced_one_way_anova(J: int) -> None:
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(J), 6)
    fit = mlsql.fit("y ~ 1 + (1 | g)", pl.DataFrame({"g": g, "y": 2 * rng.normal(size=J)[g] + rng.normal(size=6 * J)}))
    assert not fit.singular
    # the optimum is found to 1e-6 of the variances
    assert fit.inference("satterthwaite")["df"].item() == pytest.approx(J - 1, rel=1e-5)


# ---------------------------------------------------------------------------------------------- on the boundary


def boundary_rows(kind: str) -> pl.DataFrame:
    """Twenty-five groups: intercepts and slopes in a line (`corr`), no slopes (`slope`), no differences (`nothing`)."""
    rng = np.random.default_rng(4)
    J, n = 25, 6
    g = np.repeat(np.arange(J), n)
    x, e = rng.normal(size=J * n), rng.normal(size=J * n)
    u = {"corr": np.array([2.0, 1.0]), "slope": np.array([2.0, 0.0]), "nothing": np.zeros(2)}[kind]
    b = rng.normal(size=J)
    if kind != "corr":
        # within every group as little slope, or difference, as noise can leave
        for j in range(J):
            rows = g == j
            design = np.column_stack([np.ones(n), x[rows]])
            fitted = design @ np.linalg.lstsq(design, e[rows], rcond=None)[0]
            e[rows] -= 0.9 * (fitted if kind == "nothing" else fitted - fitted.mean())
    return pl.DataFrame({"g": g, "x": x, "y": 1 + x + b[g] * (u[0] + u[1] * x) + e})


BOUNDARY = {
    "corr": "y ~ x + (x | g)",
    "slope": "y ~ x + (x || g)",
    "nothing": "y ~ x + (x || g)",
}


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", BOUNDARY)
def test_every_method_is_finite_on_the_boundary(kind: str, method: str) -> None:
    fit = mlsql.fit(BOUNDARY[kind], boundary_rows(kind), method=method)  # type: ignore[arg-type]
    assert fit.singular
    for df in ("hlm", "between_within", "residual", "satterthwaite", "kenward_roger"):
        for vcov in ("model", "CR0", "CR1", "CR2"):
            if df == "kenward_roger" and (method == "ML" or vcov != "model"):
                continue
            table = fit.inference(df, vcov)  # type: ignore[arg-type]
            for column in ("std_error", "df", "p_value", "conf_low", "conf_high"):
                assert table[column].is_finite().all(), (df, vcov, column)
            assert (table["df"] > 0).all()
            test = fit.test("(Intercept), x", df, vcov)  # type: ignore[arg-type]
            assert test["statistic"].is_finite().all()
            assert test["df2"].item() > 0


def factor_df(fit: mlsql.Fit, model: Any, L: np.ndarray[Any, Any], method: str) -> list[float]:
    """Satterthwaite's df with T = F F' moved through its factor: columns of zeros stay, as lmerTest has it."""
    filled = [(a, b) for b in range(len(L)) for a in range(len(L)) if L[a, b] != 0.0]

    def moved(change: Any) -> Any:
        F = L.copy()
        for (a, b), c in zip(filled, change, strict=False):
            F[a, b] += c
        m = model
        return type(m)(m.X, m.Z, m.y, m.groups, F @ F.T, m.sigma2 + change[-1], m.w)

    k = len(filled) + 1

    def differences(h: float) -> tuple[Any, Any]:
        e = h * np.eye(k)

        def value(change: Any) -> float:
            return float(moved(change).deviance(method))

        H = [[value(a + b) - value(a - b) - value(b - a) + value(-a - b) for b in e] for a in e]
        return np.array(H) / (4 * h * h), np.array([(moved(a).vcov - moved(-a).vcov) / (2 * h) for a in e])

    (H, slopes), (H2, slopes2) = differences(4e-3), differences(2e-3)
    components = 2.0 * np.linalg.inv((4 * H2 - H) / 3)
    g = np.einsum("mpp->pm", (4 * slopes2 - slopes) / 3)
    variance = np.diag(fit.vcov)
    return [float(v) for v in 2 * variance**2 / np.einsum("pm,mn,pn->p", g, components, g)]


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", BOUNDARY)
def test_df_on_the_boundary_keep_what_is_estimated(dense: Any, kind: str, method: str) -> None:
    """A correlation of +-1 takes one parameter away, not the variances: their uncertainty stays in the df."""
    data = boundary_rows(kind)
    fit = mlsql.fit(BOUNDARY[kind], data, method=method)  # type: ignore[arg-type]
    x, y, g = (data[c].to_numpy() for c in ("x", "y", "g"))
    X = np.column_stack([np.ones(len(x)), x])
    model = dense(X, X, y, g, fit.T, fit.sigma2, np.ones(len(x)))
    L = np.zeros((2, 2))
    if kind == "corr":
        L[:, 0] = np.sqrt(np.diag(fit.T)) * [1.0, np.sign(fit.T[0, 1])]
    else:
        L[[0, 1], [0, 1]] = np.sqrt(np.diag(fit.T))
    np.testing.assert_allclose(L @ L.T, fit.T, rtol=1e-6, atol=1e-12)
    expected = factor_df(fit, model, L, method)
    # the boundary itself is found to 1e-7 of the deviance
    np.testing.assert_allclose(fit.inference("satterthwaite")["df"], expected, rtol=1e-4)
