"""The order of the moments queries' columns, shared by the SQL and by whoever unpacks its answer."""

from __future__ import annotations

from dataclasses import dataclass

from mlsql.design.columns import Variable
from mlsql.design.design import Design


@dataclass(frozen=True, slots=True)
class MomentColumns:
    """Which sums the queries deliver, in order.

    Attributes
    ----------
    n_keys : int
    weighted : bool
        True adds sum of weights and sum of their logarithms after the count.
    sums : tuple of int
        Sources whose sums follow (all but the constant).
    products : tuple of (int, int)
        Pairs of sources whose products are summed by group.
    means : tuple of str
        SQL of bases whose unweighted sums follow (only with weights; else the plain sums serve).
    checked : tuple of Variable
        Group values read from the rows as minimum and maximum.
    joined : tuple of Variable
        Group values of the level-2 table.
    pooled : tuple of (int, int)
        Pairs summed over all rows in the pooled query.
    """

    n_keys: int
    weighted: bool
    sums: tuple[int, ...]
    products: tuple[tuple[int, int], ...]
    means: tuple[str, ...]
    checked: tuple[Variable, ...]
    joined: tuple[Variable, ...]
    pooled: tuple[tuple[int, int], ...]


def moment_columns(design: Design) -> MomentColumns:
    """Which sums the queries deliver, in order."""
    last = len(design.sources)
    chosen, full = set(design.per_group), design.layout == "full"
    pairs = [(a, b) for a in range(1, last) for b in range(a, last)]
    weighted = design.schema.weight is not None
    return MomentColumns(
        n_keys=len(design.keys),
        weighted=weighted,
        sums=tuple(range(1, last)),
        products=tuple((a, b) for a, b in pairs if full or a in chosen or b in chosen),
        means=design.means if weighted else (),
        checked=tuple(v for v in design.group_values if v.origin == "rows"),
        joined=tuple(v for v in design.group_values if v.origin == "level2"),
        pooled=tuple((a, b) for a, b in pairs if not full and a not in chosen and b not in chosen),
    )
