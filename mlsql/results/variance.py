"""Functions of the variance components with their sampling errors: shares, correlations, design.

Delta method: the derivative of a function f of T and sigma2, given as the symmetric G with df = sum_ab G_ab dT_ab and
the number df/dsigma2, is carried to (Lambda, sigma2), whose sampling covariance the observed information gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from numbers import Real

import numpy as np

from mlsql._arrays import Array, IntArray
from mlsql.design.columns import Column
from mlsql.errors import FitError
from mlsql.results.estimates import Estimates
from mlsql.results.information import Information, observed_information
from mlsql.results.measures import correlation, icc
from mlsql.results.points import Points, is_indicator, relatives

FLAT = 1e-10
"""Smallest eigenvalue of the slopes' correlation matrix below which the between variance has no single minimum."""


@dataclass(frozen=True, slots=True)
class ComponentCovariance:
    """Sampling covariance of the variance components and of functions of them.

    Kept in internal columns, where the user's distance from the origin costs no digits.

    Attributes
    ----------
    estimates : Estimates
    known : Information or None
        Of the entries of Lambda and of sigma2 that have a sampling covariance; None when the information is singular.
    """

    estimates: Estimates
    known: Information | None

    @property
    def entries(self) -> tuple[tuple[int, int], ...]:
        """Distinct entries (a, b), a >= b, of T within its blocks."""
        return self.estimates.covariance.entries

    @property
    def covariance(self) -> Array:
        """(k + 1, k + 1) of T at the entries, user columns, and, last, sigma2; nan where there is none."""
        k, q = len(self.entries), self.estimates.statistics.q
        matrices = np.zeros((k + 1, q, q))
        for i, (a, b) in enumerate(self.entries):
            matrices[i, a, b] += 0.5
            matrices[i, b, a] += 0.5
        return self.of(matrices, np.append(np.zeros(k), 1.0))

    def of(self, matrices: Array, residual: Array) -> Array:
        """(m, m) sampling covariance of m functions, nan where they depend on a component that has none.

        A block on the boundary has none, and the others' is given that block.

        Parameters
        ----------
        matrices : (m, q, q)
            Symmetric derivatives in T, user columns, as if all its entries were free.
        residual : (m,)
            Derivatives in sigma2.
        """
        if self.known is None:
            return np.full((len(residual), len(residual)), np.nan)
        s2, U = self.estimates.sigma2, self.estimates.statistics.u_transform
        G = np.einsum("ca,mcd,db->mab", U, matrices, U, optimize=True)
        Lambda = self.estimates.L @ self.estimates.L.T
        W = s2 * np.einsum("mab,iab->mi", G, self.known.directions)
        W = np.column_stack([W, np.einsum("mab,ab->m", G, Lambda) + residual])
        result: Array = W @ self.known.covariance @ W.T
        without = np.zeros(len(W), dtype=np.bool_)
        for s in self.estimates.covariance.slices:
            if s not in self.known.blocks:
                without |= np.any(G[:, s, s] != 0.0, axis=(1, 2))
        result[without] = np.nan
        result[:, without] = np.nan
        return result


def component_covariance(estimates: Estimates) -> ComponentCovariance:
    """The inverse observed information of (T, sigma2), the fixed effects profiled out."""
    return ComponentCovariance(estimates, observed_information(estimates))


@dataclass(frozen=True, slots=True)
class VarianceAt:
    """Variance of the outcome around its fixed part at m points, and the share between groups.

    Attributes
    ----------
    between : (m,)  z'Tz
    between_error, total_error : (m,)
        Standard errors on the variance scale.
    residual : float
    share_error, logit_error : (m,)
        Standard errors of the share, and of its logit.
    """

    between: Array
    between_error: Array
    residual: float
    total_error: Array
    share_error: Array
    logit_error: Array

    @property
    def total(self) -> Array:
        """(m,) z'Tz + sigma2."""
        return self.between + self.residual

    @property
    def share(self) -> Array:
        """(m,) intraclass correlation z'Tz / (z'Tz + sigma2)."""
        return self.between / self.total

    def share_interval(self, z: float) -> tuple[Array, Array]:
        """Limits of the share, +- z standard errors of its logit."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            odds, factor = self.between / self.residual, np.exp(z * self.logit_error)
            return 1.0 / (1.0 + factor / odds), 1.0 / (1.0 + 1.0 / (odds * factor))


def log_interval(variance: Array, error: Array, z: float) -> tuple[Array, Array]:
    """Limits of variances, +- z standard errors of the logarithm."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factor = np.exp(z * error / variance)
        return variance / factor, variance * factor


def variance_at(estimates: Estimates, z: Array) -> VarianceAt:
    """Between and total variance at rows z (m, q) of the random columns."""
    q, s2, m = estimates.statistics.q, estimates.sigma2, len(z)
    between = s2 * np.sum(np.square(z @ estimates.statistics.u_transform @ estimates.L), axis=1)
    sampling = component_covariance(estimates)
    errors = np.empty((3, m))
    for i, row in enumerate(z):
        C = sampling.of(np.array([np.outer(row, row), np.zeros((q, q))]), np.array([0.0, 1.0]))
        errors[0, i], errors[1, i] = C[0, 0], C.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            # logit of the share: log z'Tz - log sigma2
            step = np.array([1.0 / between[i] if between[i] > 0 else np.nan, -1.0 / s2])
            errors[2, i] = step @ C @ step
    between_error, total_error, logit_error = np.sqrt(np.maximum(errors, 0.0))
    share = between / (between + s2)
    return VarianceAt(between, between_error, s2, total_error, share * (1.0 - share) * logit_error, logit_error)


def icc_kind(estimates: Estimates) -> str:
    """Whether the share between groups is that of the outcome, or of what the predictors leave of it."""
    return "conditional" if any(c.variables for c in estimates.design.fixed.columns) else "unconditional"


def minimum_point(estimates: Estimates, points: Points) -> Array | None:
    """(v,) values of the predictors where the variance between groups is smallest.

    None unless the random part is an intercept with slopes of numbers, each of its own column, whose variances and
    correlations leave one minimum.
    """
    columns, T = estimates.design.random, estimates.T
    slopes = [i for i, c in enumerate(columns) if c.variables]
    simple = all(len(c.variables) <= 1 for c in columns) and len(slopes) == len(columns) - 1
    if not slopes or not simple or any(is_indicator(v) for v in points.variables):
        return None
    if any(relatives(points.variables, [v]) for v in points.variables):
        return None
    own = next(i for i, c in enumerate(columns) if not c.variables)
    S, scale = T[np.ix_(slopes, slopes)], np.sqrt(np.diag(T)[slopes])
    if not np.all(scale > 0) or np.linalg.eigvalsh(S / np.outer(scale, scale))[0] < FLAT:
        return None
    where = dict(zip((columns[i].variables[0] for i in slopes), -np.linalg.solve(S, T[slopes, own]), strict=True))
    return np.array([where[v] for v in points.variables])


def moved_origins(estimates: Estimates, points: Points) -> Array:
    """(m, q, q) matrices A with u(c) = A u: the random coefficients when each predictor x is written as x - c.

    A product of predictors gives each product of a part of them its share, so that part must be a random column too.

    Raises
    ------
    FitError
        When it is not, or when another random column is computed from a moved one.
    """
    columns = estimates.design.random
    moved = {v for v, values in zip(points.variables, points.values, strict=True) if np.any(values != 0.0)}
    clashes = relatives(points.variables, points.given)
    for v in points.given:
        clashes += relatives(points.given, [v])
    for other, v in clashes:
        raise FitError(
            f"the origin of {v.name} cannot be moved: the random column {other.name} is computed from it; write the "
            "new origin into the formula and fit again"
        )
    of = factors_of(estimates)
    index = {(of[i], frozenset(c.variables)): i for i, c in enumerate(columns)}
    A = np.zeros((points.values.shape[1], len(columns), len(columns)))
    for i, column in enumerate(columns):
        movable = [v for v in column.variables if v in moved]
        for size in range(len(movable) + 1):
            for left_out in combinations(movable, size):
                rest = frozenset(column.variables) - frozenset(left_out)
                if (of[i], rest) not in index:
                    absent = Column(tuple(v for v in column.variables if v in rest)).name
                    raise FitError(
                        f"the origin of {', '.join(v.name for v in left_out)} cannot be moved: the random coefficient "
                        f"{column.name} has no {absent} beside it to take up the shift"
                    )
                A[:, index[of[i], rest], i] += points.product(left_out)
    return A


@dataclass(frozen=True, slots=True)
class Pairs:
    """Covariances and correlations of pairs of random coefficients; arrays of length r.

    Attributes
    ----------
    origin : (r,)
        Which of the given transforms.
    first, second : (r,)
        Positions of the two coefficients.
    variance1, variance2, covariance, correlation : (r,)
    covariance_error, correlation_error : (r,)
        Standard errors; nan on the boundary and for covariances that are zero by definition.
    """

    origin: IntArray
    first: IntArray
    second: IntArray
    variance1: Array
    variance2: Array
    covariance: Array
    covariance_error: Array
    correlation: Array
    correlation_error: Array

    def interval(self, z: float) -> tuple[Array, Array]:
        """Limits of the correlations, +- z standard errors of Fisher's transform."""
        with np.errstate(divide="ignore", invalid="ignore"):
            center, half = np.arctanh(self.correlation), z * self.correlation_error / (1.0 - self.correlation**2)
        return np.tanh(center - half), np.tanh(center + half)


def random_pairs(estimates: Estimates, transforms: Array) -> Pairs:
    """Every pair of a factor's random coefficients A u, for each A of (m, q, q) transforms."""
    sampling, within = component_covariance(estimates), _within(estimates)
    where, numbers = [], []
    for i, A in enumerate(transforms):
        root = A @ estimates.statistics.u_transform @ estimates.L
        T = estimates.sigma2 * root @ root.T
        for a, b in correlated(estimates):
            G = np.array([_symmetric(A[a], A[a]), _symmetric(A[b], A[b]), _symmetric(A[a], A[b])])
            r, scale = correlation(T, a, b), np.sqrt(T[a, a] * T[b, b])
            errors = np.full(2, np.nan)
            if scale > 0 and np.any(G[2] * within):
                C = sampling.of(G, np.zeros(3))
                step = np.array([-r / (2.0 * T[a, a]), -r / (2.0 * T[b, b]), 1.0 / scale])
                errors = np.sqrt(np.maximum([C[2, 2], step @ C @ step], 0.0))
            where.append((i, a, b))
            numbers.append((T[a, a], T[b, b], T[a, b], errors[0], r, errors[1]))
    return Pairs(*np.array(where, dtype=np.int64).T, *np.array(numbers).T)


def factors_of(estimates: Estimates) -> list[str]:
    """The factor of each random coefficient."""
    return [estimates.factor_of(i) for i in range(estimates.statistics.q)]


def correlated(estimates: Estimates) -> list[tuple[int, int]]:
    """Pairs of random coefficients of one factor."""
    of = factors_of(estimates)
    return [(a, b) for a, b in combinations(range(len(of)), 2) if of[a] == of[b]]


def _within(estimates: Estimates) -> Array:
    """(q, q) 1 within blocks of T, 0 where covariances are zero by definition."""
    result = np.zeros_like(estimates.T)
    for s in estimates.covariance.slices:
        result[s, s] = 1.0
    return result


def _symmetric(a: Array, b: Array) -> Array:
    return np.asarray((np.outer(a, b) + np.outer(b, a)) / 2.0)


@dataclass(frozen=True, slots=True)
class Equation:
    """The fixed part of one random coefficient: fixed columns, and the level-2 columns that multiply them."""

    members: tuple[int, ...]
    level2: tuple[Column, ...]

    @property
    def conditional(self) -> bool:
        """True when the equation has level-2 predictors, so that the variance is a residual one."""
        return any(c.variables for c in self.level2)

    def mean(self, estimates: Estimates, points: Points) -> Array:
        """(m,) mean coefficient at values of the level-2 predictors; 0 for a coefficient without a fixed part."""
        return np.asarray(points.rows(self.level2) @ estimates.beta[list(self.members)])


def equation(estimates: Estimates, random: int) -> Equation:
    """The fixed columns that predict a random coefficient; none when it has no fixed part."""
    columns, column = estimates.design.fixed.columns, estimates.design.random[random]
    if estimates.levels is not None:
        several, own = estimates.equation_members(random), frozenset(column.variables)
        beyond = [Column(tuple(v for v in columns[f].variables if v not in own)) for f in several]
        return Equation(tuple(several), tuple(beyond))
    if column.level2:
        same = [f for f, c in enumerate(columns) if frozenset(c.variables) == frozenset(column.variables)]
        return Equation(tuple(same), tuple(Column() for _ in same))
    members = estimates.equation_members(random)
    return Equation(tuple(members), tuple(Column(columns[f].level2) for f in members))


def limit_ratio(low: Array, high: Array) -> Array:
    """The limit farther from 0 over the nearer; nan where 0 lies between."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(low > 0, high / low, low / high)
    return np.where(low * high > 0, ratio, np.nan)


def design_effects(n: IntArray, rho: float) -> tuple[Array, Array]:
    """Group sizes (2,) and design effects 1 + (size - 1) rho (2,): for the mean size, and for the size that is exact.

    The variance of the plain mean of all rows, sizes n_j unequal, is that of independent rows times
    1 + (sum n_j^2 / N - 1) rho.
    """
    sizes = np.array([np.mean(n), np.sum(np.square(n, dtype=np.float64)) / np.sum(n)])
    return sizes, 1.0 + (sizes - 1.0) * rho


@dataclass(frozen=True, slots=True)
class OptimalSize:
    """Rows per group that minimise a variance at a given cost; nan where it is not defined, inf where any number is."""

    effect: str
    term: str
    n: float
    note: str | None


def optimal_sizes(estimates: Estimates, cost_group: float, cost_row: float) -> list[OptimalSize]:
    """Sizes for a level-2 predictor and for a treatment within groups at each random slope.

    sqrt(C (1 - rho) / rho) (5.63), and sqrt(C 4 sigma2 / tau) for a treatment of half of each group (5.64), with C the
    cost of a group over that of a row.

    Raises
    ------
    FitError
        For costs that are not positive numbers.
    """
    for name, cost in (("cost_group", cost_group), ("cost_row", cost_row)):
        if not (isinstance(cost, Real) and not isinstance(cost, bool) and np.isfinite(cost) and cost > 0):
            raise FitError(f"{name} is {cost!r}; a cost is a positive number")
    cost_ratio = cost_group / cost_row
    rho, s2 = icc(estimates), estimates.sigma2
    names, tau = estimates.random_names, np.diag(estimates.T)
    if rho is None:
        none = "with random slopes there is no single intraclass correlation"
        found = [OptimalSize("level-2 predictor", "(Intercept)", float("nan"), none)]
    else:
        found = [_optimal("level-2 predictor", "(Intercept)", cost_ratio * (1.0 - rho), rho)]
    slopes = [q for q, c in enumerate(estimates.design.random) if c.level1]
    return found + [_optimal("level-1 treatment", names[q], cost_ratio * 4.0 * s2, float(tau[q])) for q in slopes]


def _optimal(effect: str, term: str, above: float, below: float) -> OptimalSize:
    if below > 0:
        return OptimalSize(effect, term, float(np.sqrt(above / below)), None)
    return OptimalSize(effect, term, float("inf"), "groups do not differ: only the number of rows counts")
