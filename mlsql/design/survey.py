"""`Survey`: what the data answered before any moment is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlsql.design.schema import Input


@dataclass(frozen=True, slots=True)
class ColumnSurvey:
    """Facts about one input over all rows of its table.

    `mean`, `minimum`, `maximum` are of the finite values of a numeric input (nan when there are none); `spread` is a
    standard deviation seen in a preview, good to an order of magnitude.
    """

    input: Input
    rows: int
    nulls: int = 0
    nans: int = 0
    infinite: int = 0
    mean: float = math.nan
    minimum: float = math.nan
    maximum: float = math.nan

    @property
    def incomplete(self) -> int:
        """Rows whose value is NULL or NaN: dropped, and counted here."""
        return self.nulls + self.nans

    @property
    def constant(self) -> bool:
        """True when all values are one value."""
        return self.minimum == self.maximum


@dataclass(frozen=True, slots=True)
class Preview:
    """Facts from the first rows: enough to choose the cheaper query, never to decide a result.

    Attributes
    ----------
    rows, groups, runs : int
        Rows read, distinct groups among them, and stretches of equal keys.
    varying : frozenset of str
        SQL of inputs that were seen to vary within a group, which is proof; the others are checked exactly with the
        moments.
    spread : mapping of str to float
        Standard deviation by SQL of the input.
    """

    rows: int
    groups: int
    runs: int
    varying: frozenset[str] = frozenset()
    spread: Mapping[str, float] = field(default_factory=dict)

    @property
    def clustered(self) -> bool:
        """True when each group's rows lie together, so that aggregation by group does not scatter."""
        return 0 < self.groups < self.rows and self.runs <= self.groups + self.groups // 50


@dataclass(frozen=True, slots=True)
class Survey:
    """All answers.

    Attributes
    ----------
    rows : int
        Rows of the data.
    columns : tuple of ColumnSurvey
        One per input, in the schema's order.
    levels : mapping of str to tuple of str
        Levels, in order, by SQL of a factor.
    empty_levels : mapping of str to tuple of str
        Declared levels (ENUM) without rows.
    preview : Preview
    unmatched : int
        Rows of the data whose group is not in the level-2 table.
    """

    rows: int
    columns: tuple[ColumnSurvey, ...]
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    empty_levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    preview: Preview = Preview(0, 0, 0)
    unmatched: int = 0

    def column(self, sql: str) -> ColumnSurvey:
        """The answers for an input, by its SQL."""
        return next(c for c in self.columns if c.input.sql == sql)

    def incomplete_inputs(self, table: str) -> tuple[Input, ...]:
        """Inputs of a table that have NULL or NaN somewhere."""
        return tuple(c.input for c in self.columns if c.incomplete and c.input.table == table)

    def pivot(self, sql: str) -> float:
        """A round number near the mean of an input, subtracted before squaring.

        Any value is correct; one within a standard deviation of the mean keeps all digits.  Rounding keeps the
        generated SQL short and the same from run to run.
        """
        answer = self.column(sql)
        if answer.constant or not math.isfinite(answer.mean):
            return answer.minimum if math.isfinite(answer.minimum) else 0.0
        spread = self.preview.spread.get(sql, 0.0) or (answer.maximum - answer.minimum) / 4
        digits = -math.floor(math.log10(spread)) if 0 < spread < math.inf else 6
        return round(answer.mean, digits) + 0.0
