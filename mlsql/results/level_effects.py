"""Effects of the groups of every factor: empirical Bayes, posterior covariances, reliabilities, chi-square tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky
from scipy.special import chdtrc

from mlsql._arrays import Array, BoolArray, IntArray
from mlsql.likelihood import batched
from mlsql.likelihood.absorb import Absorbed
from mlsql.likelihood.descend import information_blocks
from mlsql.likelihood.threads import suited
from mlsql.moments.incidence import Incidence
from mlsql.moments.levels import LevelStatistics
from mlsql.results.effects import inverse_of_full_rank
from mlsql.results.estimates import Estimates
from mlsql.results.homogeneity import Homogeneity


@dataclass(frozen=True, slots=True)
class LevelEffects:
    """Effects of one factor's J groups on its q random coefficients, in the user's columns.

    Attributes
    ----------
    incidence : Incidence
    names : tuple of str
    u : (q, J)               empirical-Bayes residuals
    conditional : (q, q, J)  Var(u | y) with the fixed effects known
    posterior : (q, q, J)    Var(u* - u), the fixed effects' uncertainty included
    shrunken : (q, p, J)     how u moves with the fixed effects: u = u0 - shrunken @ beta
    reliability : (q, J)
        For a factor of a nested chain tau / (tau + v), v the sampling variance of the group's least-squares coefficient
        given the levels below (Raudenbush & Bryk 8.7, 8.8), nan where its own data do not determine it; for a crossed
        factor or a membership 1 - Var(u | y) / tau.
    n : (J,)
        Rows of each group; for a membership the rows with a weight for it.
    """

    incidence: Incidence
    names: tuple[str, ...]
    u: Array
    conditional: Array
    posterior: Array
    shrunken: Array
    reliability: Array
    n: IntArray


def level_effects(estimates: Estimates) -> tuple[LevelEffects, ...]:
    """Effects of the groups of every factor, in the model's order.

    1. Z_t'V^-1[X y] and Z_t'V^-1Z_t of every group, V the whole covariance matrix.
    2. u = Lambda Z'V^-1(y - X beta) and Var(u | y) = sigma2 (Lambda - Lambda Z'V^-1Z Lambda).
    3. The fixed effects' uncertainty; reliabilities.

    Parameters
    ----------
    estimates : Estimates
        Of a model with several grouping factors.
    """
    stats, absorbed = _levels(estimates)
    p, s2 = stats.p, estimates.sigma2
    # 1
    with suited(stats):
        scores, information = information_blocks(stats, absorbed)
    contrast = np.append(-estimates.evaluation.beta, 1.0)
    root = cholesky(estimates.vcov, lower=True).T if p else np.zeros((0, 0))
    back = np.linalg.inv(stats.beta_transform)
    sampling = _sampling_variances(estimates)
    found = []
    for t, (places, D, G) in enumerate(zip(stats.columns, scores, information, strict=True)):
        U, Lambda = stats.u_transform[np.ix_(places, places)], estimates.Lambda[np.ix_(places, places)]
        carry = U @ Lambda
        # 2
        u = carry @ np.tensordot(contrast, D, axes=(0, 1))
        shrunken = np.einsum("ab,bpj,pf->afj", carry, D[:, :p], back, optimize=True)
        explained = np.einsum("ab,bcj,dc->adj", carry, G, carry, optimize=True)
        conditional = s2 * ((U @ Lambda @ U.T)[:, :, None] - explained)
        # 3
        spread = np.einsum("fp,qpj->fqj", root, shrunken, optimize=True)
        posterior = conditional + (batched.gram(spread) if p else 0.0)
        tau, own = np.diag(estimates.T)[places][:, None], sampling[t]
        with np.errstate(invalid="ignore", divide="ignore"):
            reliability = 1.0 - np.einsum("aaj->aj", conditional) / tau if own is None else tau / (tau + own)
        names = tuple(estimates.random_names[c] for c in places)
        found.append(
            LevelEffects(
                stats.incidences[t], names, u, conditional, posterior, shrunken, reliability,
                stats.incidences[t].rows(stats.n),
            )
        )  # fmt: skip
    return tuple(found)


def level_tests(estimates: Estimates) -> tuple[Homogeneity, ...]:
    """Chi-square test that a random coefficient does not vary, one per random column, in order.

    For a factor of the nested chain (Raudenbush & Bryk 3.103 at every level): least-squares residuals of its groups,
    given the levels below, against their sampling variances.  Where the coefficient also varies over a factor above,
    its groups' weighted means are taken out, and df is J minus the groups above minus the predictors of the coefficient
    that vary within those; else J minus the fixed effects in the coefficient's equation.  Not defined for crossed
    factors and memberships, whose least-squares effects depend on each other: nan there.
    """
    stats, absorbed = _levels(estimates)
    undefined = Homogeneity(np.nan, 0, np.nan, 0, np.nan)
    found = [undefined] * stats.q
    if stats.structure.rest:
        return tuple(found)
    contrast = np.append(-estimates.evaluation.beta, 1.0)
    chain = stats.structure.chain
    for i, t in enumerate(chain):
        places = stats.columns[t]
        U = stats.u_transform[np.ix_(places, places)]
        inverse, full = inverse_of_full_rank(absorbed.levels[i].A)
        score = np.tensordot(contrast, absorbed.columns.chain[i], axes=(0, 1))
        u = U @ batched.product(inverse, score)
        variance = estimates.sigma2 * np.einsum("ab,bcj,ac->aj", U, inverse, U, optimize=True)
        for a, column in enumerate(places):
            found[column] = _test(estimates, i, int(column), u[a], variance[a], full) or undefined
    return tuple(found)


def _test(estimates: Estimates, i: int, column: int, u: Array, variance: Array, full: BoolArray) -> Homogeneity | None:
    stats = estimates.levels
    assert stats is not None
    chain, names = stats.structure.chain, estimates.random_names
    members, J = estimates.equation_members(column), int(full.sum())
    chi2, df = float(np.sum(u[full] ** 2 / variance[full])), J - len(members)
    for j in range(i + 1, len(chain)):
        same = [int(c) for c in stats.columns[chain[j]] if names[c] == names[column]]
        if same:
            parent = stats.structure.links[i, j].parent[full]
            weight = np.bincount(parent, 1.0 / variance[full])
            mean = np.bincount(parent, u[full] / variance[full]) / np.where(weight > 0, weight, 1.0)
            chi2 = float(np.sum((u[full] - mean[parent]) ** 2 / variance[full]))
            df = J - int(np.sum(weight > 0)) - len(set(members) - set(estimates.equation_members(same[0])))
            break
    if df < 1:
        return Homogeneity(np.nan, df, np.nan, J, np.nan)
    tau = float(estimates.T[column, column])
    reliability = float(np.mean(tau / (tau + variance[full])))
    return Homogeneity(chi2, df, float(chdtrc(df, chi2)), J, reliability)


def _sampling_variances(estimates: Estimates) -> list[Array | None]:
    """(q, J) sampling variances of the least-squares coefficients given the levels below; None outside the chain."""
    stats, absorbed = _levels(estimates)
    found: list[Array | None] = [None] * len(stats.columns)
    if stats.structure.rest:
        return found
    for i, t in enumerate(stats.structure.chain):
        U = stats.u_transform[np.ix_(stats.columns[t], stats.columns[t])]
        inverse, full = inverse_of_full_rank(absorbed.levels[i].A)
        variance = estimates.sigma2 * np.einsum("ab,bcj,ac->aj", U, inverse, U, optimize=True)
        variance[:, ~full] = np.nan
        found[t] = variance
    return found


def _levels(estimates: Estimates) -> tuple[LevelStatistics, Absorbed]:
    stats, absorbed = estimates.levels, estimates.evaluation.state
    assert stats is not None
    assert isinstance(absorbed, Absorbed)
    return stats, absorbed
