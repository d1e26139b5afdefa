"""Empirical-Bayes and least-squares group effects, their variances and reliabilities.

With A = Z'WZ, B = Z'W[X y] of a group, K = (Lambda^-1 + A)^-1 and e = Z'W(y - X beta):

    EB residual    u* = K e,            Var(u | y, beta) = s2 K
                   Var(u* - u) = s2 K + (K Z'WX) Var(beta) (K Z'WX)'
    coefficient    b* = W_j beta + u*,  Var(b* - b) = s2 K + (W_j - K Z'WX) Var(beta) (W_j - K Z'WX)'
    OLS residual   u^ = A^-1 e,         variance s2 A^-1 (groups of full rank only)
    reliability    tau_qq / (tau_qq + s2 (A^-1)_qq)

Raudenbush & Bryk (2002), equations 3.56 to 3.64, in the form that allows a singular T and groups of deficient rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky

from mlsql._arrays import Array, BoolArray
from mlsql.likelihood import batched
from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates

DEFICIENT = 1e-9
"""A group has no least-squares estimate when a random column, given those before it, keeps less than this share of
its sum of squares there: rounding of the sums reaches 1e-12."""


@dataclass(frozen=True, slots=True)
class GroupEffects:
    """Effects of J groups on q random coefficients, in the user's columns.

    Attributes
    ----------
    u : (q, J)            empirical-Bayes residuals
    fixed_part : (q, J)   W_j beta: the coefficient that the fixed effects predict
    conditional : (q, q, J)   Var(u | y) with the fixed effects known
    posterior : (q, q, J)     Var(u* - u), the fixed effects' uncertainty included
    coefficient : (q, q, J)   Var(b* - b)
    ols_u : (q, J)        least-squares residuals, nan for groups of deficient rank
    ols_variance : (q, J)  their sampling variances
    reliability : (q, J)  nan for groups of deficient rank
    full_rank : (J,) bool
    """

    u: Array
    fixed_part: Array
    conditional: Array
    posterior: Array
    coefficient: Array
    ols_u: Array
    ols_variance: Array
    reliability: Array
    full_rank: BoolArray


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Least-squares residuals of the groups that have them; see `GroupEffects`."""

    u: Array
    variance: Array
    full_rank: BoolArray


def least_squares(estimates: Estimates, transform: Array | None = None) -> LeastSquares:
    """OLS residuals of every group around the fitted fixed effects, and their variances.

    In the user's columns, or those of a given `transform` of the internal ones.
    """
    stats, transform = estimates.grouped, _or_user(estimates, transform)
    inverse, full_rank = inverse_of_full_rank(stats.ZtZ)
    e = _residual_scores(estimates)
    u = np.tensordot(transform, batched.product(inverse, e), axes=1)
    variance = np.empty_like(u)
    for a in range(stats.q):
        row = np.tensordot(transform[a], inverse, axes=1)
        variance[a] = estimates.sigma2 * np.tensordot(transform[a], row, axes=1)
    u[:, ~full_rank] = np.nan
    variance[:, ~full_rank] = np.nan
    return LeastSquares(u, variance, full_rank)


def eb_residuals(estimates: Estimates, transform: Array | None = None) -> Array:
    """(q, J) empirical-Bayes residuals, in the user's columns or those of a given `transform` of the internal ones."""
    u = batched.product(estimates.evaluation.K, _residual_scores(estimates))
    return np.asarray(np.tensordot(_or_user(estimates, transform), u, axes=1))


def conditional_variance(estimates: Estimates, transform: Array | None = None) -> Array:
    """(q, q, J) s2 K, in the user's columns or those of a given `transform` of the internal ones."""
    U = _or_user(estimates, transform)
    left = np.tensordot(U, estimates.evaluation.K, axes=1)
    return np.asarray(estimates.sigma2 * np.einsum("abj,cb->acj", left, U, optimize=True))


def shrunken_design(estimates: Estimates, transform: Array | None = None, beta: Array | None = None) -> Array:
    """(q, p, J) K Z'WX: how EB residuals move with the fixed effects.

    In the user's columns, or those of given transforms of the internal random (`transform`) and fixed (`beta`) ones.
    """
    stats = estimates.grouped
    KB = batched.product(estimates.evaluation.K, stats.ZtXy[:, : stats.p])
    KB = np.tensordot(_or_user(estimates, transform), KB, axes=1)
    back = np.linalg.inv(stats.beta_transform if beta is None else beta)
    return np.asarray(np.einsum("qpj,pf->qfj", KB, back, optimize=True))


def _or_user(estimates: Estimates, transform: Array | None) -> Array:
    return estimates.statistics.u_transform if transform is None else transform


def group_effects(estimates: Estimates) -> GroupEffects:
    """Effects of every group, one-row and rank-deficient groups included.

    1. EB residuals and their conditional variances.
    2. The same with the fixed effects' uncertainty.
    3. Least squares and reliabilities where the group's own data suffice.
    """
    # 1
    u, conditional = eb_residuals(estimates), conditional_variance(estimates)
    # 2
    W = level2_design(estimates)
    KB = shrunken_design(estimates)
    root = cholesky(estimates.vcov, lower=True).T
    posterior = conditional + batched.gram(_whitened(root, KB))
    coefficient = conditional + batched.gram(_whitened(root, W - KB))
    # 3
    ols = least_squares(estimates)
    tau = np.diag(estimates.T)[:, None]
    return GroupEffects(
        u=u,
        fixed_part=np.einsum("qpj,p->qj", W, estimates.beta),
        conditional=conditional,
        posterior=posterior,
        coefficient=coefficient,
        ols_u=ols.u,
        ols_variance=ols.variance,
        reliability=tau / (tau + ols.variance),
        full_rank=ols.full_rank,
    )


def level2_design(estimates: Estimates) -> Array:
    """(q, p, J) W_j: entry (q, f) is the level-2 part of fixed column f when it belongs to coefficient q, else 0."""
    shifts = Shifts(estimates.design, estimates.moments)
    columns = estimates.design.fixed.columns
    W = np.zeros((estimates.statistics.q, len(columns), estimates.statistics.n_groups))
    for q in range(estimates.statistics.q):
        for f in estimates.equation_members(q):
            W[q, f] = shifts.level2_product(columns[f])
    return W


def _whitened(root: Array, D: Array) -> Array:
    """root @ D_j' for every group, as (p, q, J): its Gram matrix is D Var(beta) D'."""
    return np.asarray(np.einsum("fp,qpj->fqj", root, D, optimize=True))


def _residual_scores(estimates: Estimates) -> Array:
    """(q, J) Z'W(y - X beta), internal basis."""
    contrast = np.append(-estimates.evaluation.beta, 1.0)
    return np.asarray(np.tensordot(contrast, estimates.grouped.ZtXy, axes=(0, 1)))


def inverse_of_full_rank(A: Array) -> tuple[Array, BoolArray]:
    """Inverses of Z'Z (q, q, J), and which are of full rank; the others' inverses are meaningless."""
    q, _, J = A.shape
    full = np.ones(J, dtype=np.bool_)
    safe = A.copy()
    C = np.zeros_like(A)
    for k in range(q):
        rest = safe[k, k] - sum((C[k, i] ** 2 for i in range(k)), np.zeros(J))
        full &= (rest > DEFICIENT * np.maximum(safe[k, k], 0.0)) & (safe[k, k] > 0)
        C[k, k] = np.sqrt(np.where(full, rest, 1.0))
        for r in range(k + 1, q):
            C[r, k] = (safe[r, k] - sum((C[r, i] * C[k, i] for i in range(k)), np.zeros(J))) / C[k, k]
    return batched.gram(batched.solve_lower(C, np.eye(q))), full
