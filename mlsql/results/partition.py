"""Where the variance of a row comes from: shares of levels, correlations of rows that share groups, slopes by level.

Delta method as in `variance`: a share is (c'v)/(1'v) for the vector v of the parts, whose sampling covariance the
information of the components gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.errors import FitError
from mlsql.results.estimates import Estimates
from mlsql.results.measures import correlation
from mlsql.results.relations import Relation, combination_of, relations
from mlsql.results.variance import component_covariance

RESIDUAL = "Residual"
"""Name of level 1 beside those of the factors, as in the table of variance components."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the total variance at m points; its standard error, and that of its logit, nan where unknown.

    Attributes
    ----------
    estimate, error, logit_error : (m,)
    """

    estimate: Array
    error: Array
    logit_error: Array

    def interval(self, z: float) -> tuple[Array, Array]:
        """Limits, +- z standard errors of the logit."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            odds, factor = self.estimate / (1.0 - self.estimate), np.exp(z * self.logit_error)
            return 1.0 / (1.0 + factor / odds), 1.0 / (1.0 + 1.0 / (odds * factor))


@dataclass(frozen=True, slots=True)
class Parts:
    """Independent parts of a variance at m points.

    Attributes
    ----------
    names : tuple of str
    variance : (k, m)
    sampling : (m, k, k) or None
        Their sampling covariance.
    """

    names: tuple[str, ...]
    variance: Array
    sampling: Array | None = None

    @property
    def total(self) -> Array:
        """(m,) sum of the parts."""
        return np.asarray(self.variance.sum(axis=0))

    def share(self, chosen: Sequence[int]) -> Share:
        """What some parts are of the total: nan where nothing varies."""
        inside = np.zeros(len(self.names))
        inside[list(chosen)] = 1.0
        own = inside @ self.variance
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = own / self.total
            if self.sampling is None:
                return Share(estimate, *(np.full_like(estimate, np.nan),) * 2)
            # d logit(a / (a + b)) = da / a - db / b
            step = np.divide.outer(inside, own) - np.divide.outer(1.0 - inside, self.total - own)
            step = np.where(np.isfinite(step), step, np.nan)
            logit = np.sqrt(np.maximum(np.einsum("km,mkl,lm->m", step, self.sampling, step), 0.0))
        return Share(estimate, estimate * (1.0 - estimate) * logit, logit)


def row_parts(estimates: Estimates, z: Array) -> Parts:
    """Variance of a row around its fixed part: one part per factor, level 1 last.

    Of a membership, whose weights differ from row to row, the mean over rows: tau times the mean sum of squared
    weights.  With precision weights of a row of weight 1.

    Parameters
    ----------
    estimates : Estimates
    z : (m, q)
        Rows of the random columns, user columns; ones for random intercepts.
    """
    q, m = estimates.statistics.q, len(z)
    columns, scales = factor_columns(estimates), membership_scales(estimates)
    matrices = np.zeros((m, len(columns) + 1, q, q))
    variance = np.empty((len(columns) + 1, m))
    root = estimates.statistics.u_transform @ estimates.L
    for t, (places, scale) in enumerate(zip(columns, scales, strict=True)):
        own = np.zeros_like(z)
        own[:, places] = z[:, places]
        variance[t] = scale * estimates.sigma2 * np.sum(np.square(own @ root), axis=1)
        matrices[:, t] = scale * own[:, :, None] * own[:, None, :]
    variance[-1] = estimates.sigma2
    residual = np.append(np.zeros(len(columns)), 1.0)
    known = component_covariance(estimates)
    sampling = np.array([known.of(each, residual) for each in matrices])
    return Parts((*factor_names(estimates), RESIDUAL), variance, sampling)


def intercepts_only(estimates: Estimates) -> bool:
    """True when no random coefficient has a predictor: then one row's variance is every row's."""
    return all(not c.variables for c in estimates.design.random)


def factor_names(estimates: Estimates) -> tuple[str, ...]:
    """Names of the factors, in the model's order."""
    return tuple(f.name for f in estimates.design.spec.factors)


def factor_columns(estimates: Estimates) -> tuple[IntArray, ...]:
    """Positions of each factor's coefficients among all random coefficients."""
    levels = estimates.levels
    return (np.arange(estimates.statistics.q),) if levels is None else levels.columns


def membership_scales(estimates: Estimates) -> tuple[float, ...]:
    """Mean over rows of the sum of squared weights, by factor: 1 where a row has one group."""
    found = []
    for incidence in estimates.moments.incidences:
        if incidence.weight is None:
            found.append(1.0)
            continue
        n = estimates.moments.n
        found.append(float(np.sum(incidence.weight**2 * n[incidence.cell])) / estimates.moments.n_rows)
    return tuple(found) or (1.0,)


@dataclass(frozen=True, slots=True)
class Shared:
    """Two rows that have the groups of some factors in common and of the others not.

    Attributes
    ----------
    same, different : tuple of int
        Positions of factors.
    """

    same: tuple[int, ...]
    different: tuple[int, ...]


def shared_groups(estimates: Estimates) -> tuple[Shared, ...]:
    """What two rows can have in common: nested factors bring theirs along, rows and columns bring their cell."""
    moments, factors = estimates.moments, estimates.design.spec.factors
    found = relations(moments)
    return possible_sets(factor_names(estimates), found, [f.columns for f in factors], combination_of(moments, found))


def possible_sets(
    names: Sequence[str],
    found: Sequence[Relation],
    keys: Sequence[frozenset[str]],
    cells: dict[str, tuple[str, str]],
) -> tuple[Shared, ...]:
    """Non-empty sets of factors that two rows can share, small ones first.

    Parameters
    ----------
    names : sequence of str
    found : sequence of Relation
    keys : sequence of frozenset of str
        Key columns of each factor.
    cells : mapping of str to (str, str)
        Factors that are the combination of two others.
    """
    index = {name: t for t, name in enumerate(names)}
    implied = [(frozenset({index[a]}), index[b]) for r in found for a, b in r.implied]
    implied += [(frozenset(index[n] for n in pair), index[cell]) for cell, pair in cells.items()]
    result = []
    everything = range(len(names))
    for same in chain.from_iterable(combinations(everything, size) for size in range(1, len(names) + 1)):
        given = frozenset[str]().union(*[keys[t] for t in same])
        left = [t for t in everything if t not in same]
        possible = all(then in same for given_by, then in implied if given_by <= set(same))
        if possible and not any(keys[t] <= given for t in left):
            result.append(Shared(same, tuple(left)))
    return tuple(result)


@dataclass(frozen=True, slots=True)
class SlopeParts:
    """One coefficient that varies over several nested factors.

    Attributes
    ----------
    term : str
    parts : Parts
        Its variance over each, the finest first; `share([-1])` is that between the groups of the coarsest (8.18).
    """

    term: str
    parts: Parts


def slope_parts(estimates: Estimates) -> tuple[SlopeParts, ...]:
    """Coefficients random at several levels of a nesting, in the model's order; a coefficient may be in several chains.

    Raises
    ------
    FitError
        When there is none.
    """
    T, known = estimates.T, component_covariance(estimates)
    names, places = factor_names(estimates), factor_columns(estimates)
    above = {(r.inner, r.outer) for r in relations(estimates.moments) if r.kind == "nested"}
    found = []
    for term in dict.fromkeys(estimates.random_names):
        column = {names[t]: int(c) for t, own in enumerate(places) for c in own if estimates.random_names[c] == term}
        for line in nested_chains(list(column), above):
            at = [column[name] for name in line]
            matrices = np.zeros((len(at), *T.shape))
            matrices[np.arange(len(at)), at, at] = 1.0
            sampling = known.of(matrices, np.zeros(len(at)))[None]
            found.append(SlopeParts(term, Parts(line, T[at, at][:, None], sampling)))
    if not found:
        raise FitError(
            "no coefficient varies over two factors of which one is nested in the other, so that no variance can be "
            f"split between them; the factors are {', '.join(names)}"
        )
    return tuple(found)


def nested_chains(names: Sequence[str], above: set[tuple[str | None, str | None]]) -> list[tuple[str, ...]]:
    """Chains of at least two names, each nested in all that follow; one for each name in which no other is nested.

    Parameters
    ----------
    names : sequence of str
    above : set of (str, str)
        Pairs (inner, outer).  A name that is nested in two others, neither in the other, starts no chain.
    """
    # the more of the others a factor lies in, the finer it is
    beyond = {a: [b for b in names if (a, b) in above] for a in names}
    found = []
    for lowest in names:
        if any((other, lowest) in above for other in names):
            continue
        over = sorted(beyond[lowest], key=lambda name: len(beyond[name]), reverse=True)
        line = (lowest, *over)
        if len(line) > 1 and all((a, b) in above for a, b in combinations(line, 2)):
            found.append(line)
    return found


@dataclass(frozen=True, slots=True)
class LevelMatrix:
    """Covariance matrix of one factor's coefficients.

    Attributes
    ----------
    factor : str
    terms : tuple of str
    T : (q, q)
    free : (q, q) of bool
        False where a covariance is zero by the formula (`||`).
    """

    factor: str
    terms: tuple[str, ...]
    T: Array
    free: Array

    @property
    def mixed(self) -> Array:
        """(q, q) variances on the diagonal, covariances below it and correlations above."""
        q = len(self.terms)
        result = np.tril(self.T)
        for a in range(q):
            for b in range(a + 1, q):
                result[a, b] = correlation(self.T, a, b) if self.free[a, b] else 0.0
        return result


def level_matrices(estimates: Estimates) -> tuple[LevelMatrix, ...]:
    """The matrix of every factor, in the model's order."""
    free = np.zeros_like(estimates.T)
    for s in estimates.covariance.slices:
        free[s, s] = 1.0
    found = []
    for name, places in zip(factor_names(estimates), factor_columns(estimates), strict=True):
        own = np.ix_(places, places)
        terms = tuple(estimates.random_names[c] for c in places)
        found.append(LevelMatrix(name, terms, estimates.T[own], free[own]))
    return tuple(found)
