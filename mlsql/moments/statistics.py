"""`Moments` and `Design` to the statistics of one model: Z'Z, Z'[X y] by group and [X y]'[X y], well scaled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.linalg import block_diag, solve_triangular

from mlsql._arrays import Array, IntArray
from mlsql.design.design import Design, Part
from mlsql.errors import DesignError
from mlsql.moments.cross import EMPTY, Cross, fixed_and_outcome, part_pieces
from mlsql.moments.moments import Moments
from mlsql.moments.scales import Scales
from mlsql.moments.shifts import Shifts

COLLINEAR = 1e-10
"""A column whose part not explained by those before it is below this share of its sum of squares is collinear.

Sums of pivoted squares carry a relative error near 1e-15; what is left of a column after that much cancellation
has five digits, and less than that is noise."""


@dataclass(frozen=True, slots=True)
class Statistics(Scales):
    """What the likelihood of a two-level model needs; J groups, p fixed and q random columns.

    Attributes
    ----------
    n : (J,) rows per group
    ZtZ : (q, q, J)
    ZtXy : (q, p+1, J)
    """

    n: IntArray
    ZtZ: Array
    ZtXy: Array

    @property
    def n_rows(self) -> int:
        """Rows."""
        return int(self.n.sum())

    @property
    def n_groups(self) -> int:
        """Groups, J."""
        return len(self.n)

    @property
    def block_groups(self) -> tuple[int, ...]:
        """Groups behind each covariance block: J throughout."""
        return (self.n_groups,) * len(self.blocks)

    @property
    def p(self) -> int:
        """Fixed columns."""
        return int(self.ZtXy.shape[1]) - 1


@dataclass(frozen=True, slots=True)
class Collinear:
    """A fixed column that is a linear combination of columns before it."""

    name: str
    explained_by: tuple[str, ...]


def assemble(design: Design, moments: Moments) -> Statistics:
    """Bring the moments into the model's own columns.

    1. Expand every column into sums of the query times group-level factors.
    2. Form Z'Z and Z'[X y] by group and [X y]'[X y] over all rows.
    3. Scale X, orthonormalise each block of Z.

    Raises
    ------
    DesignError
        When a fixed or random column is zero or collinear with those before it.
    """
    shifts = Shifts(design, moments)
    cross = Cross(design, moments)
    # 1
    columns = fixed_and_outcome(shifts, design)
    fixed = columns[:-1]
    random = [pieces for block in design.blocks for pieces in part_pieces(shifts, design, block)]
    # 2
    q, p, J = len(random), len(fixed), moments.n_groups
    ZtZ, ZtXy, XytXy = np.empty((q, q, J)), np.empty((q, p + 1, J)), np.empty((p + 1, p + 1))
    for a, b in combinations_with_replacement(range(q), 2):
        ZtZ[a, b] = ZtZ[b, a] = cross.by_group(random[a], random[b])
    for a in range(q):
        for f in range(p + 1):
            ZtXy[a, f] = cross.by_group(random[a], columns[f])
        empty = ZtZ[a, a] <= EMPTY * cross.magnitude(random[a])
        ZtZ[a, :, empty] = 0.0
        ZtZ[:, a, empty] = 0.0
        ZtXy[a, :, empty] = 0.0
    for f, g in combinations_with_replacement(range(p + 1), 2):
        XytXy[f, g] = XytXy[g, f] = cross.pooled(columns[f], columns[g])
    # 3
    return _scaled(design, moments, shifts, ZtZ, ZtXy, XytXy)


def collinear_columns(design: Design, moments: Moments) -> tuple[Collinear, ...]:
    """Fixed columns that depend linearly on columns before them."""
    shifts, cross = Shifts(design, moments), Cross(design, moments)
    fixed = part_pieces(shifts, design, design.fixed)
    p = len(fixed)
    G, magnitude = np.empty((p, p)), np.empty(p)
    for f, g in combinations_with_replacement(range(p), 2):
        G[f, g] = G[g, f] = cross.pooled(fixed[f], fixed[g])
    for f in range(p):
        magnitude[f] = float(np.sum(cross.magnitude(fixed[f])))
    names = [c.name for c in design.fixed.columns]
    found: list[Collinear] = []
    kept: list[int] = []
    for f in range(p):
        if G[f, f] <= EMPTY * magnitude[f]:
            # nothing is left of it once its pivot is gone: it is constant
            pivoted = design.has_intercept and set(design.fixed.columns[f].variables) & design.fixed.pivoted
            found.append(Collinear(names[f], ("(Intercept)",) if pivoted else ()))
            continue
        scale = np.sqrt(np.diag(G)[kept])
        R = G[np.ix_(kept, kept)] / np.outer(scale, scale)
        r = G[kept, f] / scale / np.sqrt(G[f, f])
        coefficients = np.linalg.solve(R, r) if kept else np.zeros(0)
        if kept and 1.0 - float(r @ coefficients) < COLLINEAR:
            by = tuple(names[k] for k, c in zip(kept, coefficients, strict=True) if abs(c) > 1e-6)
            found.append(Collinear(names[f], by))
        else:
            kept.append(f)
    return tuple(found)


def _scaled(design: Design, moments: Moments, shifts: Shifts, ZtZ: Array, ZtXy: Array, XytXy: Array) -> Statistics:
    N, p = moments.n_rows, len(design.fixed.columns)
    scale = np.append(np.sqrt(np.diag(XytXy)[:p] / N), 1.0)
    transforms, roots, start = [], [], 0
    for block in design.blocks:
        stop = start + len(block.columns)
        roots.append(block_root(ZtZ[start:stop, start:stop].sum(axis=2) / N, block))
        transforms.append(np.linalg.solve(shifts.to_user(block), np.linalg.inv(roots[-1]).T))
        start = stop
    inverse_root = block_diag(*[np.linalg.inv(r) for r in roots])
    return Statistics(
        n=moments.n,
        ZtZ=np.einsum("ab,bcj,dc->adj", inverse_root, ZtZ, inverse_root, optimize=True),
        ZtXy=np.einsum("ab,bfj->afj", inverse_root, ZtXy, optimize=True) / scale[:, None],
        XytXy=XytXy / np.outer(scale, scale),
        log_weights=moments.log_weights,
        blocks=tuple(len(b.columns) for b in design.blocks),
        x_scale=scale[:p],
        beta_transform=np.asarray(np.linalg.solve(shifts.to_user(design.fixed), np.diag(1.0 / scale[:p])), np.float64),
        u_transform=block_diag(*transforms),
        log_det_x=2.0 * float(np.log(scale[:p]).sum()),
        y_shift=design.outcome.pivot,
        intercept=next((i for i, c in enumerate(design.fixed.columns) if not c.variables), None),
    )


def block_root(G: Array, block: Part) -> Array:
    """Cholesky factor of a block's average Z'Z; refuses collinear columns."""
    names = [c.name for c in block.columns]
    scale = np.sqrt(np.diag(G))
    for name, s in zip(names, scale, strict=True):
        if not s > 0:
            raise DesignError(f"random coefficient {name}: its column is zero in every row; leave it out")
    R = G / np.outer(scale, scale)
    factor = np.zeros_like(R)
    for k in range(len(names)):
        row = solve_triangular(factor[:k, :k], R[:k, k], lower=True) if k else np.zeros(0)
        rest = R[k, k] - row @ row
        if rest < COLLINEAR:
            raise DesignError(
                f"random coefficient {names[k]} is a linear combination of {', '.join(names[:k])} in every row; "
                "leave it out"
            )
        factor[k, :k], factor[k, k] = row, np.sqrt(rest)
    return np.asarray(factor * scale[:, None])
