"""`LevelStatistics`: Z'Z, Z'[X y] of every grouping factor and [X y]'[X y], from the moments of cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.linalg import block_diag

from mlsql._arrays import Array, IntArray
from mlsql.design.design import Design
from mlsql.moments.couplings import Coupling, coupling
from mlsql.moments.cross import Cross, Pieces, fixed_and_outcome, part_pieces
from mlsql.moments.incidence import Incidence
from mlsql.moments.moments import Moments
from mlsql.moments.scales import Scales
from mlsql.moments.shifts import Shifts
from mlsql.moments.statistics import block_root
from mlsql.moments.structure import Structure, build_structure, choose_chain, nested_pairs


@dataclass(frozen=True, slots=True)
class LevelStatistics(Scales):
    """What the likelihood of a model with several grouping factors needs.

    Attributes
    ----------
    n : (cells,) rows per cell
    incidences : tuple of Incidence
        One per factor, in the model's order; groups of the chain stand so that siblings are together.
    columns : tuple of (q,) of int
        Positions of each factor's coefficients among all random columns.
    ZtXy : tuple of (q, p+1, J)
        By group of each factor.
    structure : Structure
    """

    n: IntArray
    incidences: tuple[Incidence, ...]
    columns: tuple[IntArray, ...]
    ZtXy: tuple[Array, ...]
    structure: Structure

    @property
    def n_rows(self) -> int:
        """Rows."""
        return int(self.n.sum())

    @property
    def n_groups(self) -> int:
        """Groups that are independent: of the factor in which all others nest; 1 when factors are crossed."""
        top = self.top
        return 1 if top is None else self.incidences[top].n_groups

    @property
    def top(self) -> int | None:
        """The factor in which all others are nested, if there is one."""
        return None if self.structure.rest else self.structure.chain[-1]

    @property
    def block_groups(self) -> tuple[int, ...]:
        """Groups behind each covariance block."""
        first = np.cumsum([0, *self.blocks])[:-1]
        return tuple(next(self.incidences[f].n_groups for f, c in enumerate(self.columns) if i in c) for i in first)

    @property
    def p(self) -> int:
        """Fixed columns."""
        return len(self.XytXy) - 1


def assemble_levels(design: Design, moments: Moments) -> LevelStatistics:
    """Bring the moments of cells into the model's own columns, factor by factor.

    1. Expand every column into sums of the query times cell-level factors; Z columns that factors share are one.
    2. Order the chain's groups so that siblings are together.
    3. Sum over the cells of each group, and of each occupied pair of groups.
    4. Scale X, orthonormalise each block of Z.

    Raises
    ------
    DesignError
        When a random column is zero or collinear with those before it.
    """
    shifts, cross = Shifts(design, moments), Cross(design, moments)
    # 1
    columns, at, shared = _random_columns(design, shifts)
    fixed = fixed_and_outcome(shifts, design)
    p = len(fixed) - 1
    XytXy = np.empty((p + 1, p + 1))
    for f, g in combinations_with_replacement(range(p + 1), 2):
        XytXy[f, g] = XytXy[g, f] = cross.pooled(fixed[f], fixed[g])
    ZtXy = np.array([[cross.by_group(z, x) for x in fixed] for z in shared])
    ZtZ = np.empty((len(shared), len(shared), moments.n_groups))
    for a, b in combinations_with_replacement(range(len(shared)), 2):
        ZtZ[a, b] = ZtZ[b, a] = cross.by_group(shared[a], shared[b])
    # 2
    groups, nested = [i.n_groups for i in moments.incidences], nested_pairs(moments.incidences)
    memberships = {t for t, i in enumerate(moments.incidences) if not i.ordinary}
    chain, rest = choose_chain(groups, [len(c) for c in columns], nested, memberships)
    incidences = _ordered(moments.incidences, chain)
    # 3
    own = {t: incidences[t].total(_rows(_rows(ZtZ, at[t]).swapaxes(0, 1), at[t])) for t in chain}
    order = (*chain, *rest)
    couplings = {
        (t, s): coupling(incidences[t], incidences[s], ZtZ[np.ix_(at[t], at[s])])
        for i, t in enumerate(order)
        for s in order[i if t in rest else i + 1 :]
    }
    sums = [incidence.total(_rows(ZtXy, at[t])) for t, incidence in enumerate(incidences)]
    # 4
    N = moments.n_rows
    scale = np.append(np.sqrt(np.diag(XytXy)[:p] / N), 1.0)
    inverse, transform = _block_roots(design, shifts, columns, own, couplings, N)
    roots = [inverse[np.ix_(c, c)] for c in columns]
    own = {t: _between(roots[t], A, roots[t]) for t, A in own.items()}
    couplings = {
        (t, s): Coupling(c.left, c.right, _between(roots[t], c.cross, roots[s])) for (t, s), c in couplings.items()
    }
    return LevelStatistics(
        XytXy=XytXy / np.outer(scale, scale),
        log_weights=moments.log_weights,
        blocks=tuple(len(b.columns) for b in design.blocks),
        x_scale=scale[:p],
        beta_transform=np.asarray(np.linalg.solve(shifts.to_user(design.fixed), np.diag(1.0 / scale[:p])), np.float64),
        u_transform=transform,
        log_det_x=2.0 * float(np.log(scale[:p]).sum()),
        y_shift=design.outcome.pivot,
        intercept=next((i for i, c in enumerate(design.fixed.columns) if not c.variables), None),
        n=moments.n,
        incidences=tuple(incidences),
        columns=tuple(columns),
        ZtXy=tuple(_scaled(np.tensordot(root, B, axes=1), scale) for root, B in zip(roots, sums, strict=True)),
        structure=build_structure(chain, rest, own, couplings, columns, [i.n_groups for i in incidences]),
    )


def _rows(values: Array, at: IntArray) -> Array:
    """Chosen rows; the array itself where that is all of them, since there may be a million cells."""
    return values if np.array_equal(at, np.arange(len(values))) else values[at]


def _scaled(B: Array, scale: Array) -> Array:
    """Columns of (q, p+1, J) divided by their scale, in place."""
    B /= scale[:, None]
    return B


def _between(left: Array, values: Array, right: Array) -> Array:
    """left @ values_j @ right' for (q, r, J) values."""
    whole = np.tensordot(left, values, axes=1)
    result = np.zeros_like(whole)
    for a, row in enumerate(right):
        for b, factor in enumerate(row):
            if factor:
                result[:, a] += factor * whole[:, b]
    return result


def _random_columns(design: Design, shifts: Shifts) -> tuple[list[IntArray], list[IntArray], list[Pieces]]:
    """Positions of each factor's columns among all, and among the distinct ones; the distinct ones as pieces."""
    known: dict[object, int] = {}
    shared: list[Pieces] = []
    where: list[list[int]] = []
    for block in design.blocks:
        places = []
        expanded = part_pieces(shifts, design, block)
        for column, symbols, pieces in zip(block.columns, block.pieces, expanded, strict=True):
            key = (symbols, block.pivoted & frozenset(column.variables))
            if key not in known:
                known[key] = len(shared)
                shared.append(pieces)
            places.append(known[key])
        where.append(places)
    first = np.cumsum([0, *[len(b.columns) for b in design.blocks]])
    columns, at = [], []
    for factor in design.spec.factors:
        columns.append(np.concatenate([np.arange(first[b], first[b + 1]) for b in factor.blocks]).astype(np.int64))
        at.append(np.array([place for b in factor.blocks for place in where[b]], dtype=np.int64))
    return columns, at, shared


def _ordered(incidences: tuple[Incidence, ...], chain: tuple[int, ...]) -> list[Incidence]:
    """Groups of each factor of the chain sorted by their parent, from the top down."""
    found = list(incidences)
    for above, t in zip(reversed(chain), list(reversed(chain))[1:], strict=False):
        parent = found[t].parent_in(found[above])
        assert parent is not None
        position = np.argsort(parent, kind="stable").astype(np.int64)
        if np.any(position[1:] < position[:-1]):
            found[t] = found[t].sorted_by(position)
    return found


def _block_roots(
    design: Design,
    shifts: Shifts,
    columns: list[IntArray],
    own: dict[int, Array],
    couplings: dict[tuple[int, int], Coupling],
    n_rows: int,
) -> tuple[Array, Array]:
    """Inverse roots of each block's average Z'Z, block diagonal, and the transform back to the user's columns."""
    q = sum(len(c) for c in columns)
    average = np.zeros((q, q))
    for t, places in enumerate(columns):
        if t in own:
            total = own[t].sum(axis=2)
        else:
            pair = couplings[t, t]
            total = pair.cross[:, :, pair.left == pair.right].sum(axis=2)
        average[np.ix_(places, places)] = total / n_rows
    roots, transforms, start = [], [], 0
    for block in design.blocks:
        stop = start + len(block.columns)
        roots.append(block_root(average[start:stop, start:stop], block))
        transforms.append(np.linalg.solve(shifts.to_user(block), np.linalg.inv(roots[-1]).T))
        start = stop
    return block_diag(*[np.linalg.inv(r) for r in roots]), block_diag(*transforms)
