"""One least-squares regression for each group, on the level-1 columns of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array, BoolArray, IntArray
from mlsql.design.basis import expand, pivotable
from mlsql.design.columns import Column
from mlsql.design.design import Design, Part
from mlsql.moments.cross import EMPTY, Cross, Pieces, part_pieces
from mlsql.moments.moments import Moments
from mlsql.moments.shifts import Shifts

DEFICIENT = 1e-9
"""A column adds nothing to a group when, given those before it, it keeps less than this share of its sum of squares
there: rounding of the sums reaches 1e-12."""


@dataclass(frozen=True, slots=True)
class GroupLeastSquares:
    """Regressions of J groups on m level-1 columns, weighted when the model is; user's columns.

    Attributes
    ----------
    columns : tuple of Column
        Distinct level-1 parts of the model's columns, the intercept first.
    redundant : tuple of Column
        Level-1 parts left out since they depend on `columns` in every group, as a raw predictor does beside the
        centred one and the intercept.
    coefficients : (m, J)
        nan for groups of deficient rank.
    inverse : (m, m, J)
        (X'WX)^-1, likewise; times the residual variance it is the coefficients' covariance matrix.
    rss : (J,)
        Residual sum of squares, also for groups of deficient rank: it belongs to the columns that the group has.
    rank : (J,)
    n : (J,) rows
    """

    columns: tuple[Column, ...]
    redundant: tuple[Column, ...]
    coefficients: Array
    inverse: Array
    rss: Array
    rank: IntArray
    n: IntArray

    @property
    def full_rank(self) -> BoolArray:
        """(J,) whether the group's own rows determine every coefficient."""
        return np.asarray(self.rank == len(self.columns), dtype=np.bool_)

    @property
    def df(self) -> IntArray:
        """(J,) rows minus rank."""
        return np.asarray(self.n - self.rank, dtype=np.int64)

    @property
    def sigma2(self) -> Array:
        """(J,) residual variance, nan without residual degrees of freedom."""
        df = self.df
        return np.where(df > 0, self.rss / np.maximum(df, 1), np.nan)

    @property
    def std_error(self) -> Array:
        """(m, J) standard errors from each group's own residual variance."""
        return np.asarray(np.sqrt(np.einsum("mmj->mj", self.inverse) * self.sigma2))


def group_least_squares(design: Design, moments: Moments) -> GroupLeastSquares:
    """Regress the outcome within every group.

    1. Level-1 columns, expanded over the query's sums; those that add nothing in any group left out.
    2. Triangular factors of every group's cross-products.
    3. Coefficients by back substitution, carried to the user's columns.

    Parameters
    ----------
    design, moments
        With all products by group.
    """
    # 1
    shifts, cross = Shifts(design, moments), Cross(design, moments)
    wanted = level1_columns(design)
    adds = _added(_gram(shifts, cross, design, wanted), len(wanted))[1]
    columns = tuple(c for i, c in enumerate(wanted) if adds[i].any())
    redundant = tuple(c for i, c in enumerate(wanted) if not adds[i].any())
    # 2
    m = len(columns)
    gram = _gram(shifts, cross, design, columns)
    R, adds = _added(gram, m)
    rank = np.asarray(adds.sum(axis=0), dtype=np.int64)
    rest = gram[m, m] - np.einsum("kj,kj->j", R[:, m], R[:, m])
    rss = np.where(rank < moments.n, np.maximum(rest, 0.0), 0.0)
    # 3
    full = rank == m
    root = np.where(full, R, np.eye(m, m + 1)[:, :, None])
    inverse_root = _inverse_upper(root[:, :m])
    to_user = np.linalg.inv(shifts.to_user(_part(columns)))
    back = np.einsum("um,mkj->ukj", to_user, inverse_root, optimize=True)
    coefficients = np.einsum("ukj,kj->uj", back, root[:, m], optimize=True)
    position = next((c for c, column in enumerate(columns) if not column.variables), None)
    if position is not None:
        coefficients[position] += design.outcome.pivot
    inverse = np.einsum("ukj,vkj->uvj", back, back, optimize=True)
    coefficients[:, ~full] = np.nan
    inverse[:, :, ~full] = np.nan
    return GroupLeastSquares(columns, redundant, coefficients, inverse, rss, rank, moments.n)


def level1_columns(design: Design) -> tuple[Column, ...]:
    """Distinct level-1 parts of the fixed and random columns, by number of factors."""
    parts: dict[frozenset[object], Column] = {}
    for column in (*design.fixed.columns, *design.random):
        parts.setdefault(frozenset(column.level1), Column(column.level1))
    return tuple(sorted(parts.values(), key=lambda c: len(c.variables)))


def _part(columns: tuple[Column, ...]) -> Part:
    pivoted = pivotable([columns])
    return Part(columns, tuple(expand(c, pivoted) for c in columns), pivoted)


def _gram(shifts: Shifts, cross: Cross, design: Design, columns: tuple[Column, ...]) -> Array:
    """(m+1, m+1, J) cross-products of columns and outcome; a column without variation in a group is zero there."""
    m = len(columns)
    outcome: Pieces = [(len(design.sources) - 1, 1.0)]
    if design.outcome.pivot and not any(not c.variables for c in columns):
        outcome.append((0, design.outcome.pivot))
    pieces = [*part_pieces(shifts, design, _part(columns)), outcome]
    gram = np.empty((m + 1, m + 1, cross.moments.n_groups))
    for a in range(m + 1):
        for b in range(a + 1):
            gram[a, b] = gram[b, a] = cross.by_group(pieces[a], pieces[b])
    for a in range(m):
        empty = gram[a, a] <= EMPTY * cross.magnitude(pieces[a])
        gram[a, :, empty] = 0.0
        gram[:, a, empty] = 0.0
    return gram


def _added(gram: Array, m: int) -> tuple[Array, BoolArray]:
    """Rows of the upper triangular factors (m, m+1, J), zero where a column adds nothing, and where each adds."""
    R = np.zeros((m, m + 1, gram.shape[2]))
    adds = np.zeros((m, gram.shape[2]), dtype=np.bool_)
    for c in range(m):
        rest = gram[c].copy()
        for k in range(c):
            rest -= R[k, c] * R[k]
        adds[c] = (rest[c] > DEFICIENT * gram[c, c]) & (gram[c, c] > 0)
        R[c] = np.where(adds[c], rest / np.sqrt(np.where(adds[c], rest[c], 1.0)), 0.0)
        R[c, :c] = 0.0
    return R, adds


def _inverse_upper(R: Array) -> Array:
    """Inverses of upper triangular (m, m, J)."""
    m = len(R)
    inverse = np.zeros_like(R)
    for k in range(m):
        inverse[k, k] = 1.0 / R[k, k]
        for i in range(k - 1, -1, -1):
            inverse[i, k] = -sum((R[i, h] * inverse[h, k] for h in range(i + 1, k + 1)), np.zeros(R.shape[2])) / R[i, i]
    return inverse
