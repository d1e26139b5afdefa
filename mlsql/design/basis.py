"""Which shifts the internal basis may apply, and how a column expands over the query's sums.

The query subtracts a pivot from every column.  A *part* of the model (the fixed effects, or one random block) may
keep a pivoted variable instead of the user's own when its columns span the same space either way: whenever a column
holds the variable, the column without it must be in the part too (the intercept for a main effect, the main effects
for a product).  Otherwise the pivot is undone by algebra.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from mlsql.design.columns import Column, Variable

Monomial = tuple[str, ...]
"""A product of pivoted level-1 values, named by their SQL and sorted; the empty one is the constant 1."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A summand of a column: a sum the query delivers, times group-level factors.

    The column is  sum over pieces of  monomial x prod(offset of `left_out`) x prod(value of `level2`).
    """

    monomial: Monomial
    left_out: tuple[Variable, ...]
    level2: tuple[Variable, ...]

    @property
    def varies(self) -> bool:
        """True when its factor differs between groups."""
        return bool(self.level2) or any(v.centering == "group" for v in self.left_out)


def pivotable(parts: Iterable[tuple[Column, ...]]) -> frozenset[Variable]:
    """Variables whose pivot every part can absorb; centring within groups removes any pivot by itself."""
    good: dict[Variable, bool] = {}
    for part in parts:
        sets = {frozenset(c.variables) for c in part}
        for column in part:
            for variable in column.variables:
                if variable.centering == "group":
                    continue
                inside = column.without(variable) in sets and column.variables.count(variable) == 1
                good[variable] = good.get(variable, True) and inside
    return frozenset(v for v, inside in good.items() if inside)


def expand(column: Column, pivoted: frozenset[Variable]) -> tuple[Piece, ...]:
    """A column of the internal basis as pieces over the query's sums.

    Each level-1 variable is (pivoted value + offset): the offset is zero where the basis keeps the pivot, minus the
    group's mean where the variable is centred within groups, and a constant that undoes the pivot elsewhere.
    """
    movable = [v for v in column.level1 if has_offset(v, pivoted)]
    fixed = [v for v in column.level1 if v not in movable]
    pieces = []
    for size in range(len(movable), -1, -1):
        for kept in combinations(movable, size):
            left_out = tuple(v for v in movable if v not in kept)
            monomial = tuple(sorted(v.sql for v in (*fixed, *kept)))
            pieces.append(Piece(monomial, left_out, column.level2))
    return tuple(pieces)


def has_offset(variable: Variable, pivoted: frozenset[Variable]) -> bool:
    """True when the internal value differs from the pivoted one."""
    if variable.centering == "group":
        return True
    return variable not in pivoted and (variable.centering == "grand" or variable.pivot != 0.0)
