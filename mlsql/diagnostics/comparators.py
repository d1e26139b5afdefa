"""Regressions that a multilevel fit is compared with: on rows, on group means, within groups.

All come from the same sums by group; weights of the model are used throughout, W_j is their sum in group j.

    total     [X y]'W[X y] over all rows
    between   sum_j v_j m_j m_j',  m_j = weighted group mean of [X y],  v_j = 1 or W_j
    within    sum_j ([X y]'W[X y]_j - W_j m_j m_j')

Cluster-robust covariance matrices are Raudenbush & Bryk's (9.15): (X'X)^-1 [sum_j X_j'r_j r_j'X_j] (X'X)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mlsql._arrays import Array
from mlsql.design.design import Design
from mlsql.errors import FitError
from mlsql.moments.cross import Cross, fixed_and_outcome
from mlsql.moments.shifts import Shifts
from mlsql.moments.statistics import COLLINEAR
from mlsql.results.estimates import Estimates


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A fixed column that a regression cannot have.

    Attributes
    ----------
    column : int
    explained_by : tuple of int
        Columns before it that it depends on; none when it is zero.
    """

    column: int
    explained_by: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Regression:
    """Least squares on k of the p fixed columns, user's columns.

    Attributes
    ----------
    columns : tuple of int
        Positions among the fixed columns.
    left_out : tuple of LeftOut
    beta : (k,)
    covariance : (k, k)
        sigma2 (X'X)^-1.
    robust : (k, k)
        CR0 by group.
    sigma2 : float
    rss : float
    df : int
    """

    columns: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    beta: Array
    covariance: Array
    robust: Array
    sigma2: float
    rss: float
    df: int


def total_regression(estimates: Estimates, products: Array) -> Regression:
    """Regression on rows as if there were no groups.

    Parameters
    ----------
    estimates : Estimates
    products : (p+1, p+1, J)
        [X y]'W[X y] by group, internal columns; with several factors by whatever the robust matrix is to be robust to.
    """
    stats = estimates.statistics
    return _regress(estimates, products, np.diag(stats.XytXy), stats.n_rows, "the regression on rows")


def between_regression(estimates: Estimates, weighted: bool) -> Regression:
    """Regression of the group means of the outcome on those of the fixed columns; one point for each group.

    Parameters
    ----------
    estimates : Estimates
        Its moments may be those of the lean layout.
    weighted : bool
        Give each point the group's number of rows (sum of weights); else all count the same.
    """
    stats, W = estimates.grouped, estimates.moments.sums[0]
    means = group_sums(estimates) / W
    v = W if weighted else np.ones_like(W)
    products = means[:, None] * means * v
    # a mean square over rows, so that what is only rounding in the means is seen as that
    magnitude = np.diag(stats.XytXy) / W.sum() * v.sum()
    return _regress(estimates, products, magnitude, stats.n_groups, "the regression on group means")


def within_regression(estimates: Estimates, products: Array) -> Regression:
    """Regression with an intercept for each group (fixed effects); columns of level 2 are absorbed.

    Parameters
    ----------
    estimates, products
        As for `total_regression`.
    """
    stats, W = estimates.grouped, estimates.moments.sums[0]
    sums = group_sums(estimates)
    inside = products - sums[:, None] * sums / W
    points = stats.n_rows - stats.n_groups
    return _regress(estimates, inside, np.diag(stats.XytXy), points, "the regression within groups")


def group_sums(estimates: Estimates) -> Array:
    """(p+1, J) sums of w x over each group's rows, internal columns, the outcome last."""
    design, moments = estimates.design, estimates.moments
    cross = Cross(design, moments)
    columns = fixed_and_outcome(Shifts(design, moments), design)
    scale = np.append(estimates.grouped.x_scale, 1.0)
    return np.asarray(np.array([cross.by_group(c, [(0, 1.0)]) for c in columns]) / scale[:, None])


def between_share(estimates: Estimates, products: Array, column: int) -> float:
    """Share of a fixed column's sum of squares that lies between groups: eta squared (5.38)."""
    W, sums = estimates.moments.sums[0], group_sums(estimates)[column]
    centre = sums.sum() / W.sum()
    between = float(np.sum(W * (sums / W - centre) ** 2))
    within = float(np.sum(products[column, column] - sums**2 / W))
    return between / (between + within)


@dataclass(frozen=True, slots=True)
class DesignEffect:
    """What grouping does to standard errors, from the variance of the intercept and groups of average size.

    Attributes
    ----------
    size : float
        Average rows in a group.
    icc : float
        tau00 / (tau00 + sigma2), given the model's predictors.
    effect : float
        1 + (size - 1) icc.
    reliability : float
        lambda = tau00 / (tau00 + sigma2 / size).
    """

    size: float
    icc: float
    effect: float
    reliability: float

    @property
    def factor(self) -> float:
        """Standard error of a level-2 coefficient by OLS on rows, over its right one: sqrt(1 - lambda) (5.15)."""
        return float(np.sqrt(1.0 - self.reliability))


def design_effect(estimates: Estimates) -> DesignEffect | None:
    """The design effect; None when the model has no random intercept, or several grouping factors.

    With weights sigma2 is taken at the average weight.
    """
    position = next((q for q, c in enumerate(estimates.design.random) if not c.variables), None)
    if position is None or estimates.levels is not None:
        return None
    stats, total = estimates.grouped, float(estimates.moments.sums[0].sum())
    tau, s2 = float(estimates.T[position, position]), estimates.sigma2 * stats.n_rows / total
    size = stats.n_rows / stats.n_groups
    icc = tau / (tau + s2)
    return DesignEffect(size, icc, 1.0 + (size - 1.0) * icc, tau / (tau + s2 / size))


def contextual_pairs(design: Design) -> list[tuple[int, int, bool]]:
    """Fixed columns of a level-1 predictor and of its group mean, and whether the first is centred within groups."""
    single = {i: c.variables[0] for i, c in enumerate(design.fixed.columns) if len(c.variables) == 1}
    means = {v.sql: i for i, v in single.items() if v.origin == "group_mean"}
    found = [(i, v) for i, v in single.items() if v.level == 1 and v.sql in means]
    return [(i, means[v.sql], v.centering == "group") for i, v in found]


def _regress(estimates: Estimates, products: Array, magnitude: Array, points: int, label: str) -> Regression:
    """Least squares from cross-products of groups.

    1. Columns that depend on those before them left out.
    2. Coefficients and covariance matrices of the internal columns.
    3. The user's columns: U = X M with M = beta_transform^-1; a column left out is X_d = X_k C.
    """
    stats, p = estimates.statistics, estimates.statistics.p
    G = products.sum(axis=2)
    # 1
    kept, left_out, C = _independent(G[:p, :p], magnitude[:p])
    df = points - len(kept)
    if not kept:
        raise FitError(f"{label} has no column: none of the fixed effects varies there")
    if df < 1:
        raise FitError(
            f"{label} has {len(kept)} coefficients for {points} points: no degrees of freedom are left; use fewer "
            "fixed effects"
        )
    # 2
    S = G[np.ix_(kept, kept)]
    factor = cho_factor(S)
    gamma = cho_solve(factor, G[kept, p])
    rss = max(float(G[p, p] - gamma @ G[kept, p]), 0.0)
    sigma2 = rss / df
    scores = products[kept, p] - np.einsum("klj,l->kj", products[np.ix_(kept, kept)], gamma, optimize=True)
    half = cho_solve(factor, scores)
    # 3
    M = np.linalg.inv(stats.beta_transform)
    dropped = [d.column for d in left_out]
    back = np.linalg.inv(M[np.ix_(kept, kept)] + C @ M[np.ix_(dropped, kept)])
    beta = back @ gamma
    if stats.intercept in kept:
        beta[kept.index(stats.intercept)] += stats.y_shift
    moved = back @ half
    covariance = sigma2 * back @ cho_solve(factor, back.T)
    return Regression(tuple(kept), left_out, beta, covariance, moved @ moved.T, sigma2, rss, df)


def _independent(G: Array, magnitude: Array) -> tuple[list[int], tuple[LeftOut, ...], Array]:
    """Columns in order, without those that depend on kept ones; and how these do, (k, d)."""
    kept: list[int] = []
    left_out: list[LeftOut] = []
    for c in range(len(G)):
        if G[c, c] <= COLLINEAR * magnitude[c]:
            left_out.append(LeftOut(c, ()))
            continue
        scale = np.sqrt(np.diag(G)[kept])
        r = G[kept, c] / scale
        explained = np.linalg.solve(G[np.ix_(kept, kept)] / np.outer(scale, scale), r) if kept else np.zeros(0)
        if G[c, c] - float(r @ explained) <= COLLINEAR * max(magnitude[c], G[c, c]):
            by = [k for k, e in zip(kept, explained, strict=True) if abs(e) > 1e-6 * np.sqrt(G[c, c])]
            left_out.append(LeftOut(c, tuple(by)))
        else:
            kept.append(c)
    dropped = [d.column for d in left_out]
    C = np.zeros((len(kept), len(dropped)))
    for d, found in enumerate(left_out):
        if found.explained_by:
            C[:, d] = np.linalg.lstsq(G[np.ix_(kept, kept)], G[kept, found.column], rcond=None)[0]
    return kept, tuple(left_out), C
