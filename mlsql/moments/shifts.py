"""Group-level factors of the model's columns: centring offsets, level-2 values, and the way back to user columns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mlsql._arrays import Array
from mlsql.design.basis import Piece
from mlsql.design.columns import Column, Variable
from mlsql.design.design import Design, Part, group_value
from mlsql.moments.moments import Moments


@dataclass(frozen=True, slots=True)
class Shifts:
    """Numbers behind a design's symbols, for given moments."""

    design: Design
    moments: Moments

    def pivoted_values(self, variable: Variable) -> Array:
        """(J,) value of a level-2 variable minus its pivot."""
        if variable.origin == "group_mean":
            return self.group_mean(variable)
        position = self.design.group_values.index(group_value(variable, self.design.schema))
        return np.asarray(self.moments.values[position])

    def group_mean(self, variable: Variable) -> Array:
        """(J,) unweighted group mean of a column of the rows, minus its pivot; of the named factor's groups."""
        means = np.asarray(self.moments.means[self.design.means.index(variable.sql)])
        if variable.group is None:
            return means
        of = self.moments.incidence(variable.group)
        return np.asarray((of.total(means * self.moments.n) / of.total(self.moments.n.astype(np.float64)))[of.group])

    def grand_mean(self, variable: Variable) -> float:
        """Mean of a level-1 variable over rows, of a level-2 variable over groups; on the user's scale.

        With several factors: over the groups of the factor with the fewest within which it does not vary, else over
        rows.
        """
        if variable.level == 1:
            return float(self.group_mean(variable) @ self.moments.n) / self.moments.n_rows + variable.pivot
        values = self.pivoted_values(variable)
        if not self.moments.incidences:
            return float(values.mean()) + variable.pivot
        for of in sorted(self.moments.incidences, key=lambda i: i.n_groups):
            once = of.constant(values)
            if once is not None:
                return float(once.mean()) + variable.pivot
        return float(values @ self.moments.n) / self.moments.n_rows + variable.pivot

    def user_shift(self, variable: Variable) -> float:
        """The constant subtracted from the raw value in the user's column."""
        return self.grand_mean(variable) if variable.centering == "grand" else 0.0

    def offset(self, variable: Variable, pivoted: frozenset[Variable]) -> Array | float:
        """What to add to the pivoted value of a level-1 variable to get its value in the part's basis."""
        if variable.centering == "group":
            return -self.group_mean(variable)
        return 0.0 if variable in pivoted else variable.pivot - self.user_shift(variable)

    def values(self, variable: Variable, pivoted: frozenset[Variable] = frozenset()) -> Array:
        """(J,) value of a level-2 variable in a part's basis; with nothing pivoted, the user's own value."""
        value = self.pivoted_values(variable)
        return value if variable in pivoted else value + (variable.pivot - self.user_shift(variable))

    def multiplier(self, piece: Piece, pivoted: frozenset[Variable]) -> Array | float:
        """The group-level factor of a piece: an array over groups, or one number when it does not vary."""
        factors = [self.offset(v, pivoted) for v in piece.left_out] + [self.values(v, pivoted) for v in piece.level2]
        product: Array | float = 1.0
        for factor in factors:
            product = product * factor
        return product

    def level2_product(self, column: Column) -> Array:
        """(J,) the level-2 part of a column on the user's scale: an entry of W_j."""
        product = np.ones(self.moments.n_groups)
        for variable in column.level2:
            product = product * self.values(variable)
        return product

    def to_user(self, part: Part) -> Array:
        """(k, k) matrix M with  user columns = internal columns @ M."""
        index = {frozenset(c.variables): i for i, c in enumerate(part.columns)}
        M = np.zeros((len(part.columns), len(part.columns)))
        for u, column in enumerate(part.columns):
            moved = [v for v in column.variables if v in part.pivoted]
            for size in range(len(moved) + 1):
                for left_out in combinations(moved, size):
                    rest = frozenset(column.variables) - frozenset(left_out)
                    M[index[rest], u] += np.prod([v.pivot - self.user_shift(v) for v in left_out])
        return M
