"""Level 2: how far each group lies from what the model expects of it.

The distance of the EB residuals u* in their own dispersion T - Var(u* - u) and that of the least-squares residuals u^
in s2 A^-1 + T - Var(W_j gamma) (Raudenbush & Bryk, chapter 9) are one number where both exist, because u* is u^ times
an invertible matrix.  It is computed from the score they share.  With A = Z'Z, Lambda = T / s2 = F F' of rank r, and
t = F'Z'(y - X beta),

    Var(t) / s2 = B + B B - F'Z'X V X'Z F,        B = F'A F,   V = Var(beta) / s2

and d2 = t' Var(t)^- t, chi-square with as many df as Var(t) has rank: r, less where a group's own data do not tell the
r directions apart or the fixed effects take one up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky
from scipy.special import chdtrc, chdtri

from mlsql._arrays import Array, IntArray
from mlsql.design.design import Design
from mlsql.diagnostics.dispersion import VANISHING
from mlsql.moments.cross import Cross
from mlsql.moments.moments import Moments
from mlsql.results.effects import DEFICIENT
from mlsql.results.estimates import Estimates

FLAT = 1e-8
"""A direction of T whose standard deviation is below this share of the largest (each measured by what it contributes
to the outcome) is one in which groups do not vary: the search sets it to zero, factorising leaves rounding."""

TAKEN_UP = 1e-7
"""Share of a direction's variance, once the fixed effects are fitted, below which nothing but rounding is left."""


@dataclass(frozen=True, slots=True)
class Distances:
    """Squared Mahalanobis distances of J groups.

    Attributes
    ----------
    d2 : (J,)        nan where no direction is left
    df : (J,)
    rank : (J,)      place among the groups with the same df, 1 for the nearest; 0 without a distance
    expected : (J,)  chi-square quantile at (rank - 1/2) / groups with the same df
    p_value : (J,)
    """

    d2: Array
    df: IntArray
    rank: IntArray
    expected: Array
    p_value: Array


def distances(estimates: Estimates) -> Distances:
    """Distance of every group, one-row and rank-deficient groups included.

    1. The directions in which groups vary, and each group's score in them.
    2. Whiten by B: the score's variance becomes I + N N' - C V C'; directions that the data do not tell fall out.
    3. Whiten by I + N N': what is left of the identity is what the fixed effects do not take up.
    """
    stats, J = estimates.grouped, estimates.grouped.n_groups
    # 1
    left, singular, _ = np.linalg.svd(estimates.L)
    r = int(np.sum(singular > FLAT * singular[0])) if singular[0] > 0 else 0
    if not r:
        return _ranked(np.full(J, np.nan), np.zeros(J, dtype=np.int64))
    F = left[:, :r] * singular[:r]
    B = np.einsum("qa,qsj,sb->jab", F, stats.ZtZ, F, optimize=True)
    FZX = np.einsum("qa,qfj->jaf", F, stats.ZtXy, optimize=True)
    t = FZX @ np.append(-estimates.evaluation.beta, 1.0) / np.sqrt(estimates.sigma2)
    # 2
    scale = np.sqrt(np.maximum(np.einsum("jaa->ja", B), 0.0))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(B / (scale[:, :, None] * scale[:, None, :]))
    told = values > DEFICIENT
    root = np.sqrt(np.where(told, values, 1.0))
    P = np.where(told[:, None, :], vectors / root[:, None, :], 0.0).transpose(0, 2, 1) / scale[:, None, :]
    t = np.einsum("jka,ja->jk", P, t)
    N = P @ B
    # 3
    vcov_root = cholesky(estimates.evaluation.beta_covariance / estimates.sigma2, lower=True)
    C = P @ FZX[:, :, : stats.p] @ vcov_root
    inverse = np.linalg.inv(np.linalg.cholesky(np.eye(r) + N @ N.transpose(0, 2, 1)))
    t = np.einsum("jkl,jl->jk", inverse, t)
    C = inverse @ C
    values, vectors = np.linalg.eigh(np.eye(r) - C @ C.transpose(0, 2, 1))
    remains = values > TAKEN_UP
    t = np.einsum("jlk,jl->jk", vectors, t)
    d2 = np.sum(np.where(remains, t**2 / np.where(remains, values, 1.0), 0.0), axis=1)
    df = remains.sum(axis=1) - (~told).sum(axis=1)
    return _ranked(np.where(df > 0, d2, np.nan), df)


def _ranked(d2: Array, df: IntArray) -> Distances:
    rank = np.zeros(len(df), dtype=np.int64)
    expected = np.full(len(df), np.nan)
    for value in np.unique(df[df > 0]):
        members = np.flatnonzero(df == value)
        order = members[np.argsort(d2[members], kind="stable")]
        rank[order] = np.arange(1, len(order) + 1)
        expected[order] = chdtri(value, 1.0 - (np.arange(len(order)) + 0.5) / len(order))
    p_value = np.where(df > 0, chdtrc(np.maximum(df, 1), np.where(df > 0, d2, 0.0)), np.nan)
    return Distances(d2, df, rank, expected, p_value)


@dataclass(frozen=True, slots=True)
class OutcomeSpread:
    """Of the outcome in each of J groups, weighted when the model is.

    Attributes
    ----------
    squares : (J,)  sum of squares about the pivot, as the query delivered it
    sd : (J,)       standard deviation about the group's mean; nan for one row, 0 for equal values
    """

    squares: Array
    sd: Array


def outcome_spread(design: Design, moments: Moments) -> OutcomeSpread:
    """Spread of the outcome within groups, from moments with all products by group."""
    outcome, cross = len(design.sources) - 1, Cross(design, moments)
    squares = cross.group(outcome, outcome)
    about_mean = squares - cross.group(0, outcome) ** 2 / cross.group(0, 0)
    about_mean = np.where(about_mean > VANISHING * squares, about_mean, 0.0)
    sd = np.sqrt(np.where(moments.n > 1, about_mean / np.maximum(moments.n - 1, 1), np.nan))
    return OutcomeSpread(squares, sd)


# thresholds of the rules of thumb: Raudenbush & Bryk where they name one (reliability, correlation, groups per
# predictor, coefficients that 45 rows a group bear), custom elsewhere
