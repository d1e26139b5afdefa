"""New outcomes from a fit with several grouping factors, simulated in the space of its moments: no row is made.

Given the cells, the combinations of all factors' groups, the errors' moments Z'e, X'e and e'e have the distribution of
`simulate`, with cells in place of groups and the columns of all factors in place of those of one.  The effects of all
factors that a cell has are added to it, v = sum_t M_t u_t; then with A = Z'Z of the cell

    Z'y = Z'(X b + e) + A v,    X'y = X'(X b + e) + sum (Z'X)'v,    y'y = (...) + sum v'A v + 2 sum v'Z'(X b + e),

and Z_t'y of a factor's groups are sums over its cells.  A replicate costs as much as a sum over the cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mlsql._arrays import Array
from mlsql.inference.simulate import Simulator, make_simulator
from mlsql.likelihood import batched
from mlsql.moments.incidence import Incidence
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.statistics import assemble
from mlsql.results.estimates import Estimates


@dataclass(frozen=True, slots=True)
class LevelSimulator:
    """What does not change from replicate to replicate; made by `make_level_simulator`.

    Attributes
    ----------
    statistics : LevelStatistics
    errors : Simulator
        Of X b + e, by cell.
    carry : tuple of (q, q)
        For each factor the matrix B with Z = Z_cells B, its columns in those of the cells.
    roots : tuple of (q, q)
        For each factor B times a root of its T: effects in the columns of the cells.
    """

    statistics: LevelStatistics
    errors: Simulator
    carry: tuple[Array, ...]
    roots: tuple[Array, ...]

    def draw(self, rng: np.random.Generator) -> LevelStatistics:
        """The statistics of one simulated data set."""
        stats, p = self.statistics, self.statistics.p
        drawn = self.errors.draw(rng)
        v = np.zeros((stats.q, len(stats.n)))
        for places, incidence, root in zip(stats.columns, stats.incidences, self.roots, strict=True):
            v[places] += by_cell(incidence, root @ rng.standard_normal((len(places), incidence.n_groups)), v.shape[1])
        Av = batched.product(drawn.ZtZ, v)
        XytXy = drawn.XytXy.copy()
        XytXy[:p, p] += np.einsum("apj,aj->p", drawn.ZtXy[:, :p], v)
        XytXy[p, :p] = XytXy[:p, p]
        XytXy[p, p] += float(np.sum(v * Av)) + 2.0 * float(np.sum(v * drawn.ZtXy[:, p]))
        outcome = drawn.ZtXy[:, p] + Av
        sums = []
        for t, (places, incidence) in enumerate(zip(stats.columns, stats.incidences, strict=True)):
            ZtXy = stats.ZtXy[t].copy()
            ZtXy[:, p] = self.carry[t].T @ incidence.total(outcome[places])
            sums.append(ZtXy)
        return replace(stats, ZtXy=tuple(sums), XytXy=XytXy)


def make_level_simulator(estimates: Estimates) -> LevelSimulator:
    """Prepare simulations of a fit with several grouping factors.

    1. Z'Z and Z'X of the cells, all factors' columns side by side.
    2. The factors' own columns in terms of those.
    """
    stats = estimates.levels
    assert stats is not None
    # 1
    cells = assemble(estimates.design, estimates.moments)
    none = np.zeros_like(estimates.L)
    errors = make_simulator(cells, none, estimates.evaluation.beta, estimates.sigma2)
    # 2
    B: Array = np.asarray(np.linalg.solve(cells.u_transform, stats.u_transform), dtype=np.float64)
    carry = tuple(B[np.ix_(places, places)] for places in stats.columns)
    sigma = float(np.sqrt(estimates.sigma2))
    roots = tuple(b @ estimates.L[np.ix_(c, c)] * sigma for b, c in zip(carry, stats.columns, strict=True))
    return LevelSimulator(stats, errors, carry, roots)


def by_cell(incidence: Incidence, values: Array, cells: int) -> Array:
    """(q, cells) weighted sums over the groups of every cell of (q, groups) values."""
    if incidence.ordinary:
        return np.asarray(values[:, incidence.group])
    assert incidence.weight is not None
    weighted = values[:, incidence.group] * incidence.weight
    return np.array([np.bincount(incidence.cell, weights=row, minlength=cells) for row in weighted])
