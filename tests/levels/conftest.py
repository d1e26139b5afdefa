"""Models with several grouping factors by n x n matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]

NULL = 1e-10
"""Eigenvalues below this share of the largest are zeros of a cluster's residual covariance; the others are near 1."""


@dataclass(frozen=True)
class Part:
    """Random coefficients of one factor.

    Attributes
    ----------
    name : str
        The factor, "school:child".
    M : (N, J)
        Weights of the rows' membership of the factor's groups: one 1 in each row, or several weights.
    Z : (N, q)
        Columns of the random coefficients.
    blocks : tuple of int
        Sizes of the blocks of T.
    """

    name: str
    M: Array
    Z: Array
    blocks: tuple[int, ...]

    @cached_property
    def wide(self) -> Array:
        """Z as (N, J q): each group's columns in its own place, times the row's weight."""
        return np.einsum("nj,nq->njq", self.M, self.Z).reshape(len(self.M), -1)

    @property
    def n_groups(self) -> int:
        return int(self.M.shape[1])

    @cached_property
    def directions(self) -> list[tuple[int, int, Array]]:
        """Row, column and symmetric matrix of each free entry of T, lower triangles by columns."""
        q, found, start = sum(self.blocks), [], 0
        for size in self.blocks:
            for b in range(start, start + size):
                for a in range(b, start + size):
                    D = np.zeros((q, q))
                    D[a, b] = D[b, a] = 1.0
                    found.append((a, b, D))
            start += size
        return found

    def spread(self, T: Array) -> Array:
        """Covariance matrix of the rows that this factor makes."""
        return np.asarray(self.wide @ np.kron(np.eye(self.n_groups), T) @ self.wide.T)

    def coded(self) -> NDArray[np.int64]:
        """Group of each row, where it has one only."""
        return np.asarray(self.M.argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Oracle:
    """y = X beta + sum of Z u of every factor + e,  u ~ N(0, T),  e_i ~ N(0, sigma2 / w_i): short, slow, separate.

    `T` maps the name of a factor to its covariance matrix.
    """

    X: Array
    y: Array
    parts: tuple[Part, ...]
    w: Array
    T: Mapping[str, Array]
    sigma2: float

    def at(self, T: Mapping[str, Array], sigma2: float) -> Oracle:
        """The same rows with other variance parameters."""
        return replace(self, T=T, sigma2=sigma2)

    def some_T(self) -> dict[str, Array]:
        """A covariance matrix for each factor, neither small nor near singular."""
        found = {}
        for i, part in enumerate(self.parts):
            q = part.Z.shape[1]
            T = 0.6 * np.eye(q) + 0.3 + np.diag(np.arange(q) * 0.2)
            found[part.name] = (0.5 + 0.3 * i) * T * sum(D for _, _, D in part.directions)
        return found

    # ------------------------------------------------------------------------------------ likelihood

    @cached_property
    def V(self) -> Array:
        own = sum((part.spread(np.asarray(self.T[part.name])) for part in self.parts), np.diag(self.sigma2 / self.w))
        return np.asarray(own)

    @cached_property
    def inverse(self) -> Array:
        return np.linalg.inv(self.V)

    @cached_property
    def vcov(self) -> Array:
        return np.linalg.inv(self.X.T @ np.linalg.solve(self.V, self.X))

    @cached_property
    def beta(self) -> Array:
        return self.vcov @ self.X.T @ np.linalg.solve(self.V, self.y)

    @cached_property
    def residual(self) -> Array:
        return self.y - self.X @ self.beta

    def deviance(self, method: str) -> float:
        """-2 log density of y (ML), or of N - p error contrasts in the usual normalisation (REML)."""
        N, p = self.X.shape
        quadratic = self.residual @ np.linalg.solve(self.V, self.residual)
        ml = N * np.log(2 * np.pi) + np.linalg.slogdet(self.V)[1] + quadratic
        if method == "ML":
            return float(ml)
        return float(ml - p * np.log(2 * np.pi) - np.linalg.slogdet(self.vcov)[1])

    # ------------------------------------------------------------------------------------ group effects

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def covariance(self, name: str) -> Array:
        """(N, J q) covariances of the rows with the effects of a factor."""
        part = self.part(name)
        return np.asarray(part.wide @ np.kron(np.eye(part.n_groups), np.asarray(self.T[name])))

    def u(self, name: str) -> Array:
        """(J, q) empirical-Bayes residuals."""
        found = self.covariance(name).T @ np.linalg.solve(self.V, self.residual)
        return found.reshape(self.part(name).n_groups, -1)

    def conditional(self, name: str) -> Array:
        """(J, q) variances of u given y with beta known; the other factors' effects are not."""
        return self._variances(name, self.inverse)

    def posterior(self, name: str) -> Array:
        """(J, q) variances of u* - u, beta estimated."""
        return self._variances(name, self.projection)

    def _variances(self, name: str, middle: Array) -> Array:
        part, C = self.part(name), self.covariance(name)
        prior = np.tile(np.diag(np.asarray(self.T[name])), part.n_groups)
        return (prior - np.einsum("na,nm,ma->a", C, middle, C, optimize=True)).reshape(part.n_groups, -1)

    @cached_property
    def projection(self) -> Array:
        """P = V^-1 - V^-1 X (X'V^-1 X)^-1 X'V^-1."""
        A = self.inverse @ self.X
        return np.asarray(self.inverse - A @ self.vcov @ A.T)

    def joint(self) -> Array:
        """Covariance matrix of the errors of (beta, effects of all factors): Henderson's equations, T nonsingular."""
        H = np.hstack([self.X, *(part.wide for part in self.parts)])
        C, start = (H.T * self.w) @ H, self.X.shape[1]
        for part in self.parts:
            stop = start + part.wide.shape[1]
            C[start:stop, start:stop] += self.sigma2 * np.kron(np.eye(part.n_groups), np.linalg.inv(self.T[part.name]))
            start = stop
        return np.asarray(self.sigma2 * np.linalg.inv(C))

    def fitted(self) -> Array:
        """Fixed part and the effects of all factors."""
        return np.asarray(self.X @ self.beta + sum(p.wide @ self.u(p.name).ravel() for p in self.parts))

    def reliability(self, name: str, below: tuple[str, ...]) -> Array:
        """(J, q) tau / (tau + sampling variance) in a nested factor, nan where a group's rows do not suffice.

        The sampling variance is that of the generalised least-squares estimate of the group's coefficients from its own
        rows, whose covariance matrix is what the factors `below` and the level-1 residuals make of it; Raudenbush and
        Bryk (2002), 8.7 and 8.8 for intercepts.
        """
        part, tau = self.part(name), np.diag(np.asarray(self.T[name]))
        lower = np.diag(self.sigma2 / self.w) + sum(
            (p.spread(np.asarray(self.T[p.name])) for p in self.parts if p.name in below), np.zeros_like(self.V)
        )
        found = np.full((part.n_groups, part.Z.shape[1]), np.nan)
        for j in range(part.n_groups):
            own = np.flatnonzero(part.M[:, j])
            Z = part.Z[own]
            if np.linalg.matrix_rank(Z) == Z.shape[1]:
                sampling = np.linalg.inv(Z.T @ np.linalg.solve(lower[np.ix_(own, own)], Z))
                found[j] = tau / (tau + np.diag(sampling))
        return found

    # ------------------------------------------------------------------------------------ variance parameters

    @cached_property
    def derivatives(self) -> list[Array]:
        """dV along the free entries of every T, in the order of the factors, and along sigma2."""
        own = [part.spread(D) for part in self.parts for _, _, D in part.directions]
        return [*own, np.diag(1.0 / self.w)]

    def parameters(self) -> Array:
        """Free entries of every T, and sigma2."""
        own = [np.asarray(self.T[part.name])[a, b] for part in self.parts for a, b, _ in part.directions]
        return np.array([*own, self.sigma2])

    def moved(self, parameters: Array) -> Oracle:
        """The same rows at other variance parameters."""
        T, start = {}, 0
        for part in self.parts:
            stop = start + len(part.directions)
            T[part.name] = sum(v * D for v, (_, _, D) in zip(parameters[start:stop], part.directions, strict=True))
            start = stop
        return self.at(T, float(parameters[-1]))

    @cached_property
    def _moved_projections(self) -> list[Array]:
        return [self.projection @ D for D in self.derivatives]

    def score(self, method: str) -> Array:
        """Derivatives of the log likelihood by the variance parameters."""
        Py = self.projection @ self.y
        middle = np.outer(Py, Py) - (self.projection if method == "REML" else self.inverse)
        return np.array([0.5 * np.sum(middle * D) for D in self.derivatives])

    def expected(self, method: str) -> Array:
        """Expected information on the variance parameters."""
        middle = self._moved_projections if method == "REML" else [self.inverse @ D for D in self.derivatives]
        return np.array([[0.5 * np.sum(a * b.T) for b in middle] for a in middle])

    def observed(self, method: str) -> Array:
        """Minus the second derivatives of the log likelihood, beta at its best for each V."""
        DPy = np.array([D @ self.projection @ self.y for D in self.derivatives])
        return np.asarray(DPy @ self.projection @ DPy.T - self.expected(method))

    def optimum(self, method: str, starts: tuple[float, ...] = (1.0, 0.3)) -> Oracle:
        """The best of searches from several starts over L and log sigma, T = sigma2 L L'."""
        sizes = [len(part.directions) for part in self.parts]
        cuts = np.cumsum(sizes)

        def factors(theta: Array) -> list[Array]:
            found = []
            for part, own in zip(self.parts, np.split(theta[:-1], cuts[:-1]), strict=True):
                L = np.zeros((part.Z.shape[1],) * 2)
                for value, (a, b, _) in zip(own, part.directions, strict=True):
                    L[a, b] = value
                found.append(L)
            return found

        def model(theta: Array) -> Oracle:
            sigma2 = float(np.exp(2 * theta[-1]))
            T = {part.name: sigma2 * L @ L.T for part, L in zip(self.parts, factors(theta), strict=True)}
            return self.at(T, sigma2)

        def value(theta: Array) -> tuple[float, Array]:
            here = model(theta)
            by_T = np.split(-2.0 * here.score(method), cuts)
            gradient, to_sigma2 = [], by_T[-1][0]
            for part, L, own in zip(self.parts, factors(theta), by_T[:-1], strict=True):
                G = sum(s * D / (1 if a == b else 2) for s, (a, b, D) in zip(own, part.directions, strict=True))
                to_sigma2 += float(np.sum(G * (L @ L.T)))
                slope = 2.0 * here.sigma2 * G @ L
                gradient += [slope[a, b] for a, b, _ in part.directions]
            return here.deviance(method), np.array([*gradient, 2.0 * here.sigma2 * to_sigma2])

        ols = self.y - self.X @ np.linalg.lstsq(self.X, self.y, rcond=None)[0]
        found = []
        for start in starts:
            own = [start * (a == b) for part in self.parts for a, b, _ in part.directions]
            theta = np.array([*own, 0.5 * np.log(np.mean(self.w * ols**2) / 2)])
            # the end may be where rounding hides further descent: a lesser gradient is not to be had then
            found.append(minimize(value, theta, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 500}).x)
        return min((model(theta) for theta in found), key=lambda m: m.deviance(method))

    def newton(self, method: str, steps: int = 12) -> Oracle:
        """The optimum next to these variance parameters, the score zero to rounding."""
        model = self
        for _ in range(steps):
            model = model.moved(model.parameters() + np.linalg.solve(model.observed(method), model.score(method)))
        return model

    # ------------------------------------------------------------------------------------ degrees of freedom

    def satterthwaite_df(self, method: str, contrasts: Array) -> Array:
        components, A = np.linalg.inv(self.observed(method)), self.inverse @ self.X @ self.vcov @ contrasts.T
        g = np.array([np.einsum("nr,nm,mr->r", A, D, A, optimize=True) for D in self.derivatives])
        variance = np.einsum("rp,pf,rf->r", contrasts, self.vcov, contrasts)
        return np.asarray(2 * variance**2 / np.einsum("mr,mn,nr->r", g, components, g))

    @cached_property
    def slopes(self) -> list[Array]:
        """P_i = d (X'V^-1 X)."""
        A = self.inverse @ self.X
        return [-A.T @ D @ A for D in self.derivatives]

    @cached_property
    def components(self) -> Array:
        """Covariance matrix of the variance parameters by the expected information."""
        return np.linalg.inv(self.expected("REML"))

    @cached_property
    def kenward_roger(self) -> Array:
        A, inner, W = self.inverse @ self.X, np.zeros_like(self.vcov), self.components
        DA = [D @ A for D in self.derivatives]
        for i, left in enumerate(DA):
            for j, right in enumerate(DA):
                inner += W[i, j] * (left.T @ self.inverse @ right - self.slopes[i] @ self.vcov @ self.slopes[j])
        return np.asarray(self.vcov + 2.0 * self.vcov @ inner @ self.vcov)

    def kenward_roger_df(self, contrast: Array) -> float:
        """Of one contrast; Kenward & Roger (1997), as in the appendix of Halekoh & Hojsgaard (2014)."""
        C, W = contrast[None], self.components
        theta = C.T @ np.linalg.inv(C @ self.vcov @ C.T) @ C
        M = [theta @ self.vcov @ P @ self.vcov for P in self.slopes]
        m = range(len(M))
        A1 = sum(W[i, j] * np.trace(M[i]) * np.trace(M[j]) for i in m for j in m)
        A2 = sum(W[i, j] * np.trace(M[i] @ M[j]) for i in m for j in m)
        B, g = (A1 + 6 * A2) / 2, (2 * A1 - 5 * A2) / (3 * A2)
        c = np.array([g, 1 - g, 3 - g]) / (3 + 2 * (1 - g))
        mean = 1 / (1 - A2)
        variance = 2 * (1 + c[0] * B) / ((1 - c[1] * B) ** 2 * (1 - c[2] * B))
        return float(4 + 3 / (variance / (2 * mean**2) - 1))

    # ------------------------------------------------------------------------------------ robust

    def adjustments(self, kind: str, cluster: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Array]]:
        """Rows and estimating matrix M X_j'V_j^-1 A_j of every cluster; A_j is found for rows multiplied by sqrt(w)."""
        J, found = int(cluster.max()) + 1, []
        for j in range(J):
            rows = np.flatnonzero(cluster == j)
            s = np.sqrt(self.w[rows])
            V = self.V[np.ix_(rows, rows)] * np.outer(s, s)
            x = self.X[rows] * s[:, None]
            A = np.eye(len(rows)) * (np.sqrt(J / (J - 1)) if kind == "CR1" else 1.0)
            if kind == "CR2":
                D = np.linalg.cholesky(V).T
                values, vectors = np.linalg.eigh(D @ (V - x @ self.vcov @ x.T) @ D.T)
                kept = values > NULL * values[-1]
                A = D.T @ (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T @ D
            found.append((rows, self.vcov @ x.T @ np.linalg.solve(V, A) * s))
        return found

    def robust(self, kind: str, cluster: NDArray[np.int64]) -> Array:
        parts = [E @ self.residual[rows] for rows, E in self.adjustments(kind, cluster)]
        return np.asarray(sum(np.outer(c, c) for c in parts))

    def robust_df(self, kind: str, cluster: NDArray[np.int64], contrast: Array) -> float:
        """Satterthwaite's, the model taken as true."""
        groups = self.adjustments(kind, cluster)
        wide = np.zeros((len(groups), len(self.X)))
        for j, (rows, E) in enumerate(groups):
            wide[j, rows] = contrast @ E
        e = self.V - self.X @ self.vcov @ self.X.T
        P = wide @ e @ wide.T
        return float(np.trace(P) ** 2 / np.trace(P @ P))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other in matrices of this size."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture(scope="session")
def part() -> type[Part]:
    return Part
