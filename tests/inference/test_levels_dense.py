"""Inference on the fixed effects of models with several factors against n x n matrices at the same variances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.inference.kenward_roger import kenward_roger
from mlsql.inference.reference import make_reference
from mlsql.inference.satterthwaite import satterthwaite

Array = NDArray[np.float64]
Columns = dict[str, Any]

NULL = 1e-10
"""Eigenvalues below this share of the largest are zeros of a cluster's residual covariance; the others are near 1."""

EXACT = 1e-8
"""Closed forms from moments against n x n matrices, both of a condition near 1e4."""

DIFFERENCED = 1e-6
"""Degrees of freedom from an information by differences, 3e-9 of its size but inverted; at estimates that are within
1e-5 of a standard error of the optimum, where (Lambda, sigma2) and (T, sigma2) give the same one."""


def _finish(rng: Any, columns: Columns, effects: Array) -> pl.DataFrame:
    N = len(effects)
    x, t = rng.normal(size=N), rng.integers(0, 4, N) * 1.0
    y = 4 + 0.5 * x + 0.3 * t + effects + rng.normal(size=N)
    return pl.DataFrame(columns | {"x": x, "t": t, "weight": rng.integers(1, 5, N) / 2, "y": y})


def _sizes(rng: Any, n: int, most: int) -> Any:
    sizes = rng.integers(1, most + 1, n)
    sizes[:2] = 1
    return sizes


@cache
def nested(seed: int = 20) -> pl.DataFrame:
    """Rows in c in b in a, one-row groups among them; d, s, m are those of a, b, c; k is not zero in one a only."""
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(9), _sizes(rng, 9, 5))
    own = np.repeat(np.arange(len(school)), _sizes(rng, len(school), 4))
    rows = np.repeat(np.arange(len(own)), _sizes(rng, len(own), 4))
    at = own[rows]
    d, s, c = rng.normal(size=9), rng.normal(size=len(school)), rng.normal(size=len(own))
    u, v = 0.9 * rng.normal(size=(9, 2)), 0.8 * rng.normal(size=len(school))
    r = 0.7 * rng.normal(size=(len(own), 2))
    k = np.where(school[at] == 3, np.arange(len(rows)) % 2, 0)
    columns = {"a": school[at], "b": at, "c": rows, "d": d[school[at]], "s": s[at], "m": c[rows], "k": k}
    frame = _finish(rng, columns, u[school[at], 0] + v[at] + r[rows, 0])
    slopes = u[school[at], 1] + r[rows, 1]
    return frame.with_columns(y=pl.col("y") + pl.col("t") * 0.4 * slopes)


@cache
def crossed() -> pl.DataFrame:
    """Fourteen a by eight b, half of the cells with rows; b in four g; p is a's, e is b's."""
    rng = np.random.default_rng(13)
    cells = np.argwhere(rng.random((14, 8)) < 0.5)
    at = cells[np.repeat(np.arange(len(cells)), rng.integers(1, 4, len(cells)))]
    a, b = at.T
    p, e, ua, ub, ug = (rng.normal(size=n) for n in (14, 8, 14, 8, 4))
    sa = rng.normal(size=14)
    frame = _finish(rng, {"a": a, "b": b, "g": b // 2, "p": p[a], "e": e[b]}, ua[a] + ub[b] + ug[b // 2])
    return frame.with_columns(y=pl.col("y") + pl.col("t") * 0.5 * sa[a])


@dataclass(frozen=True)
class Case:
    """A formula, its X, and the factors with their Z and the sizes of the blocks of T."""

    name: str
    formula: str
    rows: Callable[[], pl.DataFrame]
    X: Callable[[Columns], list[Any]]
    Z: Sequence[tuple[tuple[str, ...], Callable[[Columns], list[Any]], tuple[int, ...]]]
    weights: bool = False

    def __str__(self) -> str:
        return self.name


def one(d: Columns) -> list[Any]:
    return [1]


def slope(d: Columns) -> list[Any]:
    return [1, d["t"]]


NESTED = [
    Case(
        "three levels",
        "y ~ t*d + x + s + (t | a/b)",
        nested,
        lambda d: [1, d["t"], d["d"], d["x"], d["s"], d["t"] * d["d"]],
        [(("a",), slope, (2,)), (("a", "b"), slope, (2,))],
    ),
    Case(
        "four levels",
        "y ~ t + d + m + (t || a) + (1 | a:b) + (t | a:b:c)",
        nested,
        lambda d: [1, d["t"], d["d"], d["m"]],
        [(("a",), slope, (1, 1)), (("a", "b"), one, (1,)), (("a", "b", "c"), slope, (2,))],
    ),
    Case(
        "weights",
        "y ~ t + s + (t | a) + (1 | b)",
        nested,
        lambda d: [1, d["t"], d["s"]],
        [(("a",), slope, (2,)), (("b",), one, (1,))],
        True,
    ),
    Case(
        "an effect of one cluster",
        "y ~ t + k + x + (1 | a) + (1 | b)",
        nested,
        lambda d: [1, d["t"], d["k"], d["x"]],
        [(("a",), one, (1,)), (("b",), one, (1,))],
    ),
]
BOUNDARY = Case(
    "on the boundary",
    "y ~ t*d + x + s + (t | a/b)",
    lambda: nested(11),
    lambda d: [1, d["t"], d["d"], d["x"], d["s"], d["t"] * d["d"]],
    [(("a",), slope, (2,)), (("a", "b"), slope, (2,))],
)
CROSSED = [
    Case(
        "crossed",
        "y ~ t + p + e + (t | a) + (1 | b)",
        crossed,
        lambda d: [1, d["t"], d["p"], d["e"]],
        [(("a",), slope, (2,)), (("b",), one, (1,))],
    ),
    Case(
        "crossed over nested",
        "y ~ x + t + (1 | a) + (1 | b) + (1 | g)",
        crossed,
        lambda d: [1, d["x"], d["t"]],
        [(("a",), one, (1,)), (("b",), one, (1,)), (("g",), one, (1,))],
        True,
    ),
]


def _stacked(columns: list[Any], N: int) -> Array:
    return np.column_stack([np.broadcast_to(np.asarray(c, dtype=np.float64), (N,)) for c in columns])


def _codes(frame: pl.DataFrame, names: tuple[str, ...]) -> NDArray[np.int64]:
    return np.unique(frame.select(names).to_numpy(), axis=0, return_inverse=True)[1].ravel()


class Dense:
    """A fit beside V, its derivatives and all that follows, spelled out."""

    def __init__(self, model: Case, method: str) -> None:
        frame, self.method = model.rows(), method
        options: Any = {"weights": "weight"} if model.weights else {}
        self.fit = mlsql.fit(model.formula, frame, method=method, **options)  # type: ignore[arg-type]
        d = {name: frame[name].to_numpy() for name in frame.columns}
        N, T = len(frame), self.fit.T
        self.X, self.y = _stacked(model.X(d), N), d["y"]
        self.w = d["weight"] if model.weights else np.ones(N)
        self.clusters = _codes(frame, ("a",))
        self.derivatives: list[Array] = []
        self.V, start = np.diag(self.fit.sigma2 / self.w), 0
        for names, columns, blocks in model.Z:
            Z, same = _stacked(columns(d), N), np.equal.outer(code := _codes(frame, names), code)
            own = slice(start, start + Z.shape[1])
            self.V = self.V + same * (Z @ T[own, own] @ Z.T)
            start, first = own.stop, 0
            for size in blocks:
                for i in range(first, first + size):
                    for j in range(first, i + 1):
                        D = np.outer(Z[:, i], Z[:, j]) * same
                        self.derivatives.append(D if i == j else D + D.T)
                first += size
        self.derivatives.append(np.diag(1.0 / self.w))

    @cached_property
    def inverse(self) -> Array:
        return np.asarray(np.linalg.inv(self.V), dtype=np.float64)

    @cached_property
    def phi(self) -> Array:
        return np.asarray(np.linalg.inv(self.X.T @ self.inverse @ self.X), dtype=np.float64)

    @cached_property
    def residual(self) -> Array:
        return np.asarray(self.y - self.X @ self.phi @ self.X.T @ self.inverse @ self.y)

    @cached_property
    def projection(self) -> Array:
        A = self.inverse @ self.X
        return np.asarray(self.inverse - A @ self.phi @ A.T)

    @cached_property
    def expected(self) -> Array:
        middle = self.projection if self.method == "REML" else self.inverse
        own = [middle @ D for D in self.derivatives]
        return np.array([[0.5 * np.sum(a * b.T) for b in own] for a in own])

    @cached_property
    def observed(self) -> Array:
        DPy = np.array([D @ self.projection @ self.y for D in self.derivatives])
        return np.asarray(DPy @ self.projection @ DPy.T - self.expected)

    def satterthwaite(self, L: Array) -> Array:
        A = self.inverse @ self.X @ self.phi @ L.T
        g = np.array([np.einsum("nr,nm,mr->r", A, D, A, optimize=True) for D in self.derivatives])
        variance = np.einsum("rp,pf,rf->r", L, self.phi, L)
        return np.asarray(2 * variance**2 / np.einsum("mr,mn,nr->r", g, np.linalg.inv(self.observed), g))

    @cached_property
    def slopes(self) -> list[Array]:
        A = self.inverse @ self.X
        return [-A.T @ D @ A for D in self.derivatives]

    @cached_property
    def kenward_roger(self) -> Array:
        A, inner, W = self.inverse @ self.X, np.zeros_like(self.phi), np.linalg.inv(self.expected)
        for i, D in enumerate(self.derivatives):
            for j, E in enumerate(self.derivatives):
                Q = A.T @ D @ self.inverse @ E @ A
                inner += W[i, j] * (Q - self.slopes[i] @ self.phi @ self.slopes[j])
        return np.asarray(self.phi + 2.0 * self.phi @ inner @ self.phi)

    def kenward_roger_test(self, L: Array) -> tuple[float, float]:
        """Factor of F and its df; Kenward & Roger (1997), as in the appendix of Halekoh & Hojsgaard (2014)."""
        q, W = len(L), np.linalg.inv(self.expected)
        theta = L.T @ np.linalg.inv(L @ self.phi @ L.T) @ L
        M = [theta @ self.phi @ P @ self.phi for P in self.slopes]
        m = range(len(M))
        A1 = sum(W[i, j] * np.trace(M[i]) * np.trace(M[j]) for i in m for j in m)
        A2 = sum(W[i, j] * np.trace(M[i] @ M[j]) for i in m for j in m)
        B = (A1 + 6 * A2) / (2 * q)
        g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
        c = np.array([g, q - g, q + 2 - g]) / (3 * q + 2 * (1 - g))
        mean = 1 / (1 - A2 / q)
        variance = 2 / q * (1 + c[0] * B) / ((1 - c[1] * B) ** 2 * (1 - c[2] * B))
        df = 4 + (q + 2) / (q * variance / (2 * mean**2) - 1)
        return float(df / (mean * (df - 2))), float(df)

    def adjustments(self, kind: str) -> Array:
        """(J, p, N) M X_j'V_j^-1 A_j of every cluster; A_j is found for rows multiplied by sqrt(w)."""
        J = int(self.clusters.max()) + 1
        found = np.zeros((J, self.X.shape[1], len(self.y)))
        for j in range(J):
            rows = np.flatnonzero(self.clusters == j)
            s = np.sqrt(self.w[rows])
            V, x = self.V[np.ix_(rows, rows)] * np.outer(s, s), self.X[rows] * s[:, None]
            A = np.eye(len(rows)) * (np.sqrt(J / (J - 1)) if kind == "CR1" else 1.0)
            if kind == "CR2":
                D = np.linalg.cholesky(V).T
                values, vectors = np.linalg.eigh(D @ (V - x @ self.phi @ x.T) @ D.T)
                kept = values > NULL * values[-1]
                A = D.T @ (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T @ D
            found[j][:, rows] = self.phi @ x.T @ np.linalg.solve(V, A) * s
        return found

    def robust(self, kind: str) -> Array:
        parts = self.adjustments(kind) @ self.residual
        return np.asarray(parts.T @ parts)

    def P(self, kind: str, L: Array) -> Array:
        """(r, r, J, J) covariances, the model taken as true, of the clusters' parts of the contrasts' estimates."""
        wide = np.einsum("rp,jpn->rjn", L, self.adjustments(kind))
        middle = self.V - self.X @ self.phi @ self.X.T
        return np.asarray(np.einsum("sim,mn,tjn->stij", wide, middle, wide, optimize=True))

    def robust_df(self, kind: str, contrast: Array) -> float:
        P = self.P(kind, contrast[None])[0, 0]
        return float(np.trace(P) ** 2 / np.sum(P * P.T))

    @property
    def contrasts(self) -> Array:
        """Two rows of a hypothesis, the first a mixture."""
        L = np.zeros((2, self.X.shape[1]))
        L[0, 0], L[0, 1], L[1, -1] = 1.0, -0.5, 2.0
        return L


@pytest.fixture(scope="module")
def answer() -> Callable[..., Dense]:
    found: dict[tuple[str, str], Dense] = {}

    def find(model: Case, method: str = "REML") -> Dense:
        if (model.name, method) not in found:
            found[model.name, method] = Dense(model, method)
        return found[model.name, method]

    return find


@pytest.mark.parametrize("model", [*NESTED, *CROSSED, BOUNDARY], ids=str)
def test_the_fit_is_the_one_that_is_spelled_out(answer: Callable[..., Dense], model: Case) -> None:
    dense = answer(model)
    assert dense.fit.estimates.singular == (model is BOUNDARY)
    np.testing.assert_allclose(dense.fit.estimates.vcov, dense.phi, rtol=EXACT, atol=EXACT * np.abs(dense.phi).max())


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("model", [*NESTED, *CROSSED], ids=str)
def test_satterthwaite(answer: Callable[..., Dense], model: Case, method: str) -> None:
    dense = answer(model, method)
    found = satterthwaite(dense.fit.estimates)
    assert found is not None
    for L in (np.eye(len(dense.phi)), dense.contrasts):
        np.testing.assert_allclose(found.df(L), dense.satterthwaite(L), rtol=DIFFERENCED)


@pytest.mark.parametrize("model", [*NESTED, *CROSSED, BOUNDARY], ids=str)
def test_kenward_roger(answer: Callable[..., Dense], model: Case) -> None:
    dense = answer(model)
    found = kenward_roger(dense.fit.estimates)
    size = np.abs(dense.kenward_roger).max()
    np.testing.assert_allclose(found.covariance, dense.kenward_roger, rtol=EXACT, atol=EXACT * size)
    for L in (*np.eye(len(dense.phi))[:, None], dense.contrasts):
        assert found.scale_and_df(L) == pytest.approx(dense.kenward_roger_test(L), rel=EXACT)


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR2"])
@pytest.mark.parametrize("model", [*NESTED, BOUNDARY], ids=str)
def test_robust(answer: Callable[..., Dense], model: Case, kind: Any) -> None:
    dense = answer(model)
    fit = dense.fit
    found = make_reference(fit.estimates, fit.products.by_group, "satterthwaite", kind)
    expected = dense.robust(kind)
    np.testing.assert_allclose(found.covariance, expected, rtol=EXACT, atol=EXACT * np.abs(expected).max())
    L = np.vstack([np.eye(len(dense.phi)), dense.contrasts])
    np.testing.assert_allclose(found.df(L), [dense.robust_df(kind, row) for row in L], rtol=EXACT)


def test_a_membership() -> None:
    """Rows of pupils with one to three teachers each, by weights."""
    rng = np.random.default_rng(7)
    shares = np.zeros((40, 9))
    for i in range(40):
        own = rng.choice(9, 1 + i % 3, replace=False)
        shares[i, own] = rng.dirichlet(np.ones(len(own)))
    pupil = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    x, M, N = rng.normal(size=len(pupil)), shares[pupil], len(pupil)
    y = 4 + 0.5 * x + rng.normal(size=40)[pupil] + 1.5 * M @ rng.normal(size=9) + rng.normal(size=N)
    who, unit = np.nonzero(shares)
    history = pl.DataFrame({"pupil": who, "teacher": unit, "share": shares[who, unit]})
    fit = mlsql.fit(
        "y ~ x + (1 | pupil) + (1 | teacher)",
        pl.DataFrame({"pupil": pupil, "x": x, "y": y}),
        memberships={"teacher": mlsql.Membership(history, on=["pupil"], weight="share")},
    )
    assert not fit.estimates.singular
    dense = Dense.__new__(Dense)
    dense.method, dense.X, dense.y = "REML", np.column_stack([np.ones(N), x]), y
    same = np.equal.outer(pupil, pupil) * 1.0
    dense.derivatives = [same, M @ M.T, np.eye(N)]
    dense.V = fit.T[0, 0] * same + fit.T[1, 1] * M @ M.T + fit.sigma2 * np.eye(N)
    reference = kenward_roger(fit.estimates)
    np.testing.assert_allclose(reference.covariance, dense.kenward_roger, rtol=EXACT)
    for row in np.eye(2)[:, None]:
        assert reference.scale_and_df(row) == pytest.approx(dense.kenward_roger_test(row), rel=EXACT)
    found = satterthwaite(fit.estimates)
    assert found is not None
    np.testing.assert_allclose(found.df(np.eye(2)), dense.satterthwaite(np.eye(2)), rtol=DIFFERENCED)
