"""Small random data with awkward groups, designs spelled out in numpy, and inference by n x n matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
import mlsql.design.design

Array = NDArray[np.float64]
Columns = dict[str, Any]

SIZES = [1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 4, 5, 6, 7]
"""Single rows and groups of deficient rank among them."""

NULL = 1e-10
"""Eigenvalues below this share of the largest are zeros of a group's residual covariance; the others are near 1."""


def small_rows(seed: int = 5) -> pl.DataFrame:
    """g; level 1: x, z, weight, k (0 / 1, nonzero in group 12 only); level 2: w, s (text); y."""
    rng = np.random.default_rng(seed)
    J, N = len(SIZES), sum(SIZES)
    j = np.repeat(np.arange(J), SIZES)
    u = rng.normal(size=(J, 3)) * [1.5, 1.1, 0.9]
    w, x, z = rng.normal(size=J), rng.normal(size=N), 2 + rng.normal(size=N)
    x = x + w[j]
    y = 5 + x + 0.5 * w[j] + u[j, 0] + u[j, 1] * x + u[j, 2] * z + rng.normal(size=N)
    k = np.where(j == 12, np.arange(N) % 2, 0)
    s = np.array(["p", "q", "r"])[np.arange(J) % 3][j]
    weight = rng.integers(1, 5, N) / 2
    return pl.DataFrame(
        {"row": np.arange(N), "g": 10 + 3 * j, "x": x, "z": z, "k": k, "weight": weight, "w": w[j], "s": s, "y": y}
    )


@dataclass(frozen=True)
class Case:
    """A formula, and its X and Z as functions of the columns; `blocks` are sizes of the blocks of T."""

    name: str
    formula: str
    X: Callable[[Columns], list[Any]]
    Z: Callable[[Columns], list[Any]]
    blocks: tuple[int, ...] = (1,)
    weights: bool = False
    level2: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def T(self) -> Array:
        """A covariance matrix of the blocks' shape, neither small nor near singular."""
        q = sum(self.blocks)
        T = 0.6 * np.eye(q) + 0.3 + np.diag(np.arange(q) * 0.2)
        start, mask = 0, np.zeros((q, q))
        for size in self.blocks:
            mask[start : start + size, start : start + size] = 1.0
            start += size
        return np.asarray(T * mask)

    def inputs(self, data: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Data and keyword arguments for `mlsql.fit` and `mlsql.evaluate`."""
        options: dict[str, Any] = {"weights": "weight"} if self.weights else {}
        if not self.level2:
            return data, options
        return data.drop("w", "s"), options | {"level2": data.select("g", "w", "s").unique(maintain_order=True)}


CASES = [
    Case("random intercept", "y ~ w + x + (1 | g)", lambda d: [1, d["w"], d["x"]], lambda d: [1]),
    Case(
        "cross-level",
        "y ~ w*x + (x | g)",
        lambda d: [1, d["w"], d["x"], d["w"] * d["x"]],
        lambda d: [1, d["x"]],
        (2,),
    ),
    Case("blocks", "y ~ x + z + (x + z || g)", lambda d: [1, d["x"], d["z"]], lambda d: [1, d["x"], d["z"]], (1, 1, 1)),
    Case(
        "two blocks",
        "y ~ x + z + (x | g) + (0 + z | g)",
        lambda d: [1, d["x"], d["z"]],
        lambda d: [1, d["x"], d["z"]],
        (2, 1),
    ),
    Case(
        "group-centred",
        "y ~ w*group_center(x) + group_mean(x) + (group_center(x) | g)",
        lambda d: [1, d["w"], d["x"] - d["mx"], d["mx"], d["w"] * (d["x"] - d["mx"])],
        lambda d: [1, d["x"] - d["mx"]],
        (2,),
    ),
    Case(
        "weights",
        "y ~ w*x + (x | g)",
        lambda d: [1, d["w"], d["x"], d["w"] * d["x"]],
        lambda d: [1, d["x"]],
        (2,),
        True,
    ),
    Case(
        "weights, centred",
        "y ~ group_center(x) + z + (1 | g)",
        lambda d: [1, d["x"] - d["mx"], d["z"]],
        lambda d: [1],
        (1,),
        True,
    ),
    Case("one group's dummy", "y ~ x + k + (1 | g)", lambda d: [1, d["x"], d["k"]], lambda d: [1]),
    Case("no intercept", "y ~ 0 + x + z + (0 + x | g)", lambda d: [d["x"], d["z"]], lambda d: [d["x"]]),
    Case(
        "level-2 table",
        "y ~ w*x + s + (x | g)",
        lambda d: [1, d["w"], d["x"], d["s"] == "q", d["s"] == "r", d["w"] * d["x"]],
        lambda d: [1, d["x"]],
        (2,),
        False,
        True,
    ),
]


def stacked(columns: list[Any], N: int) -> Array:
    return np.column_stack([np.broadcast_to(np.asarray(c, dtype=np.float64), (N,)) for c in columns])


@dataclass(frozen=True)
class DenseInference:
    """Inference on the fixed effects by n x n matrices; nothing is simplified, all groups are loops over indices.

    Attributes
    ----------
    model
        The dense model of tests/conftest.py.
    blocks : tuple of int
        Sizes of the blocks of T; its free entries and, last, sigma2 are the variance parameters.
    """

    model: Any
    blocks: tuple[int, ...]

    @cached_property
    def X(self) -> Array:
        return np.asarray(self.model.X)

    @cached_property
    def inverse(self) -> Array:
        return np.linalg.inv(self.model.V)

    @cached_property
    def phi(self) -> Array:
        return np.linalg.inv(self.X.T @ self.inverse @ self.X)

    @cached_property
    def residual_maker(self) -> Array:
        return np.eye(len(self.X)) - self.X @ self.phi @ self.X.T @ self.inverse

    @cached_property
    def directions(self) -> list[Array]:
        """Symmetric q x q matrices of the free entries of T."""
        q, found, start = sum(self.blocks), [], 0
        for size in self.blocks:
            for a in range(start, start + size):
                for b in range(start, a + 1):
                    D = np.zeros((q, q))
                    D[a, b] = D[b, a] = 1.0
                    found.append(D)
            start += size
        return found

    @cached_property
    def derivatives(self) -> list[Array]:
        """dV along every variance parameter."""
        J = self.model.n_groups
        own = [self.model.wide @ np.kron(np.eye(J), D) @ self.model.wide.T for D in self.directions]
        return [*own, np.diag(1.0 / self.model.w)]

    # ------------------------------------------------------------------------------------ robust

    def adjustments(self, kind: str, root: str = "symmetric") -> list[tuple[NDArray[np.int64], Array]]:
        """Rows and estimating matrix M X_j'V_j^-1 A_j of every group; A_j is found for rows multiplied by sqrt(w)."""
        J, found = self.model.n_groups, []
        for j in range(J):
            rows = np.flatnonzero(self.model.groups == j)
            s = np.sqrt(self.model.w[rows])
            V = self.model.V[np.ix_(rows, rows)] * np.outer(s, s)
            x = self.X[rows] * s[:, None]
            A = np.eye(len(rows)) * (np.sqrt(J / (J - 1)) if kind == "CR1" else 1.0)
            if kind == "CR2":
                values, vectors = np.linalg.eigh(V)
                D = (vectors * np.sqrt(values)) @ vectors.T if root == "symmetric" else np.linalg.cholesky(V).T
                values, vectors = np.linalg.eigh(D @ (V - x @ self.phi @ x.T) @ D.T)
                kept = values > NULL * values[-1]
                A = D.T @ (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T @ D
            found.append((rows, self.phi @ x.T @ np.linalg.solve(V, A) * s))
        return found

    def robust(self, kind: str, root: str = "symmetric") -> Array:
        parts = [E @ self.model.residual[rows] for rows, E in self.adjustments(kind, root)]
        return np.asarray(sum(np.outer(c, c) for c in parts))

    def P(self, kind: str, contrasts: Array) -> Array:
        """(r, r, J, J) covariances, the model taken as true, of the groups' parts of the contrasts' estimates."""
        N, groups = len(self.X), self.adjustments(kind)
        wide = np.zeros((len(contrasts), len(groups), N))
        for j, (rows, E) in enumerate(groups):
            wide[:, j, rows] = contrasts @ E
        e = self.residual_maker @ self.model.V @ self.residual_maker.T
        return np.einsum("sim,mn,tjn->stij", wide, e, wide, optimize=True)

    def robust_df(self, kind: str, contrast: Array) -> float:
        P = self.P(kind, contrast[None])[0, 0]
        return float(np.trace(P) ** 2 / np.trace(P @ P))

    def hotelling_df(self, kind: str, contrasts: Array) -> float:
        """eta = r (r + 1) / sum of Var(d_st), d = O^-1/2 C V^R C' O^-1/2 with O the mean of C V^R C'."""
        r = len(contrasts)
        mean = np.einsum("stii->st", self.P(kind, contrasts))
        values, vectors = np.linalg.eigh(mean)
        P = self.P(kind, (vectors / np.sqrt(values)) @ vectors.T @ contrasts)
        total = sum(np.sum(P[s, s] * P[t, t]) + np.sum(P[s, t] * P[s, t].T) for s in range(r) for t in range(r))
        return float(r * (r + 1) / total)

    # ------------------------------------------------------------------------------------ Kenward-Roger

    @cached_property
    def slopes(self) -> list[Array]:
        """P_i = d (X'V^-1 X)."""
        A = self.inverse @ self.X
        return [-A.T @ G @ A for G in self.derivatives]

    @cached_property
    def expected(self) -> Array:
        """Inverse expected information of the restricted likelihood."""
        A = self.inverse @ self.X
        projection = self.inverse - A @ self.phi @ A.T
        PG = [projection @ G for G in self.derivatives]
        return np.linalg.inv([[0.5 * np.sum(a * b.T) for b in PG] for a in PG])

    @cached_property
    def kenward_roger(self) -> Array:
        A, inner = self.inverse @ self.X, np.zeros_like(self.phi)
        for i, G in enumerate(self.derivatives):
            for j, H in enumerate(self.derivatives):
                Q = A.T @ G @ self.inverse @ H @ A
                inner += self.expected[i, j] * (Q - self.slopes[i] @ self.phi @ self.slopes[j])
        return np.asarray(self.phi + 2.0 * self.phi @ inner @ self.phi)

    def kenward_roger_test(self, contrasts: Array) -> tuple[float, float]:
        """Factor of F and its df; Kenward & Roger (1997), as in the appendix of Halekoh & Hojsgaard (2014)."""
        q, phi, W = len(contrasts), self.phi, self.expected
        theta = contrasts.T @ np.linalg.inv(contrasts @ phi @ contrasts.T) @ contrasts
        M = [theta @ phi @ P @ phi for P in self.slopes]
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

    # ------------------------------------------------------------------------------------ Satterthwaite

    def moved(self, change: Array) -> Any:
        """The dense model with other variance parameters."""
        T = self.model.T + sum(c * D for c, D in zip(change, self.directions, strict=False))
        m = self.model
        return type(m)(m.X, m.Z, m.y, m.groups, T, m.sigma2 + change[-1], m.w)

    def satterthwaite_df(self, method: str, contrasts: Array) -> list[float]:
        """From central differences of the deviance and of the covariance matrix, with one step of extrapolation."""
        m, step = len(self.directions) + 1, 2e-3 * self.model.sigma2

        def differences(h: float) -> tuple[Array, Array]:
            e = h * np.eye(m)
            # the deviance with beta at its best for each V
            d = {}

            def value(change: Array) -> float:
                key = change.tobytes()
                if key not in d:
                    d[key] = self.moved(change).deviance(method)
                return float(d[key])

            H = [[value(a + b) - value(a - b) - value(b - a) + value(-a - b) for b in e] for a in e]
            slopes = [(self.moved(a).vcov - self.moved(-a).vcov) / (2 * h) for a in e]
            return np.array(H) / (4 * h * h), np.array(slopes)

        coarse, fine = differences(step), differences(step / 2)
        H, slopes = ((4 * b - a) / 3 for a, b in zip(coarse, fine, strict=True))
        components = 2.0 * np.linalg.inv(H)
        g = np.einsum("rp,mpf,rf->rm", contrasts, slopes, contrasts)
        variance = np.einsum("rp,pf,rf->r", contrasts, self.phi, contrasts)
        return [float(x) for x in 2 * variance**2 / np.einsum("rm,mn,rn->r", g, components, g)]


class Answer:
    """A fit of a case, beside the dense model at the estimates of its variance components."""

    def __init__(self, case: Case, layout: str, method: str, given: bool, model: Any) -> None:
        self.case, self.method = case, method
        rows = small_rows()
        # out of order, so that a small limit makes the layout lean
        data, options = case.inputs(rows.sample(fraction=1.0, shuffle=True, seed=3))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlsql.design.design, "SMALL", 10**9 if layout == "full" else 0)
            if given:
                self.fit = mlsql.evaluate(case.formula, data, T=case.T, sigma2=1.3, method=method, **options)  # type: ignore[arg-type]
            else:
                self.fit = mlsql.fit(case.formula, data, method=method, **options)  # type: ignore[arg-type]
        assert self.fit.estimates.design.layout == layout
        columns = {name: rows[name].to_numpy() for name in rows.columns}
        groups = np.unique(columns["g"], return_inverse=True)[1]
        columns["mx"] = (np.bincount(groups, columns["x"]) / np.bincount(groups))[groups]
        N = len(rows)
        w = columns["weight"] if case.weights else np.ones(N)
        X, Z = stacked(case.X(columns), N), stacked(case.Z(columns), N)
        self.model = model(X, Z, columns["y"], groups, self.fit.T, self.fit.sigma2, w)
        self.dense = DenseInference(self.model, case.blocks)
        self.p = X.shape[1]

    @property
    def contrasts(self) -> Array:
        """Two rows of a hypothesis, the first a mixture."""
        L = np.zeros((2, self.p))
        L[0, 0], L[0, 1], L[1, -1] = 1.0, -0.5, 2.0
        return L


@pytest.fixture(scope="session")
def answer(dense: Any) -> Callable[..., Answer]:
    """Each fit once: by case, layout and method, fitted or evaluated at the case's own T."""
    found: dict[tuple[str, str, str, bool], Answer] = {}

    def find(case: Case, layout: str = "full", method: str = "REML", given: bool = False) -> Answer:
        key = (case.name, layout, method, given)
        if key not in found:
            found[key] = Answer(case, layout, method, given, dense)
        return found[key]

    return find


@pytest.fixture(scope="session")
def rows() -> Callable[..., pl.DataFrame]:
    return small_rows


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `case` runs for every design."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str)
