"""What a model with several grouping factors will take, told from counts alone: memory, and time of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from mlsql.design.design import Design
from mlsql.design.layout import moment_columns
from mlsql.design.membership import MembershipTable
from mlsql.likelihood.rest import DENSE_WORK
from mlsql.moments.moments import Moments
from mlsql.moments.structure import DENSE, choose_chain
from mlsql.results.memory import check_memory, size_text
from mlsql.results.relations import occupancy

COPIES = 8
"""Matrices of the joint matrix's size at the peak of an evaluation with derivatives, measured with tracemalloc at 1,500
and 3,000 columns: Z'Z, what absorption leaves of it, its factor, the inverse, that in the columns of Z, workspaces."""

NUMBER, ENTRY, CUBE, PRODUCT = 1.6e-8, 5e-8, 2e-11, 6e-9
"""Seconds of processor time on one core of an x86 server: for a number of a group of the chain, an entry of the joint
matrix, one of the K^3 multiplications of its factorisation and inverse, and one of a product of sparse rows.  Fitted to
evaluations with 200,000 nested groups of 1 and 2 coefficients, and with 500 to 3,000 crossed columns and 100,000 and
400,000 pairs, which they meet to a third."""

EVALUATIONS = 10
"""Of a usual search."""


@dataclass(frozen=True, slots=True)
class FactorCount:
    """Groups of a factor and its random coefficients; `ordinary` unless a row may have several groups."""

    name: str
    groups: int
    width: int
    ordinary: bool = True


@dataclass(frozen=True, slots=True)
class PairCount:
    """Occupied pairs of groups; sums of squared degrees over the groups of the first factor, and of the second."""

    occupied: int
    first_squares: int
    second_squares: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The size of a model.

    Attributes
    ----------
    rows, cells : int
    factors : tuple of FactorCount
    pairs : mapping of (int, int) to PairCount
        By positions of factors, the first smaller.
    fixed : int
        Fixed columns.
    by_cell : int
        Numbers that a cell has: in the query's answer, and unpacked.
    """

    rows: int
    cells: int
    factors: tuple[FactorCount, ...]
    pairs: Mapping[tuple[int, int], PairCount]
    fixed: int
    by_cell: int

    def nested(self, inner: int, outer: int) -> bool:
        """True when each group of one lies in one group of the other."""
        if not (self.factors[inner].ordinary and self.factors[outer].ordinary):
            return False
        found = self.pairs[min(inner, outer), max(inner, outer)]
        return found.occupied == self.factors[inner].groups

    def relation(self, first: int, second: int) -> str:
        """`a nested in b`, `a crossed with b`, `a partially crossed with b`, with pairs."""
        a, b, found = self.factors[first], self.factors[second], self.pairs[first, second]
        if not (a.ordinary and b.ordinary):
            return f"{a.name} and {b.name}: multiple membership"
        for inner, outer in ((first, second), (second, first)):
            if self.nested(inner, outer):
                return f"{self.factors[inner].name} nested in {self.factors[outer].name}"
        possible = a.groups * b.groups
        how = "crossed" if found.occupied == possible else "partially crossed"
        return f"{a.name} {how} with {b.name} ({found.occupied:,} of {possible:,} pairs have rows)"


@dataclass(frozen=True, slots=True)
class Cost:
    """A prediction; bytes of the numerical part, beside what the database and the interpreter take.

    Attributes
    ----------
    chain, joint : tuple of int
        Factors absorbed group by group, the finest first, and those solved jointly.
    width : int
        Columns of the joint matrix.
    sparse : bool
        Too many for a dense one.  What its factor fills in is known only when its pattern is studied: between `matrix`
        and `most`.
    moments : int
        Bytes of the sums by cell.
    couplings : int
        Bytes of products by group and by pair of groups.
    matrix, most : int
        Bytes of the joint matrix and its factors.
    seconds : float or None
        Of an evaluation with derivatives; None for a sparse matrix.
    """

    chain: tuple[int, ...]
    joint: tuple[int, ...]
    width: int
    sparse: bool
    moments: int
    couplings: int
    matrix: int
    most: int
    seconds: float | None

    @property
    def memory(self) -> int:
        """Bytes at the peak, the joint matrix at its least."""
        return self.moments + self.couplings + self.matrix


def read_counts(
    design: Design, values: Sequence[int], memberships: Mapping[str, MembershipTable] | None = None
) -> Counts:
    """The answer of the counts query, one row.

    Of a membership the query counts patterns; its units are those of the table, and its pairs are estimated from the
    mean number of units in a pattern.

    Parameters
    ----------
    design : Design
    values : sequence of int
        rows; cells; groups of each factor; of each pair of factors occupied pairs and two sums of squares.
    memberships : mapping of str to MembershipTable, optional
        By factor.
    """
    factors, tables = design.spec.factors, memberships or {}
    numbers = iter(values)
    rows, cells = int(next(numbers)), int(next(numbers))
    counted: list[FactorCount] = []
    times: list[float] = []
    for f in factors:
        groups, table = int(next(numbers)), tables.get(f.name)
        width = sum(len(design.blocks[b].columns) for b in f.blocks)
        counted.append(FactorCount(f.name, groups if table is None else table.n_units, width, table is None))
        times.append(1.0 if table is None else len(table.pattern) / max(len(np.unique(table.pattern)), 1))
    pairs = {}
    for a, b in combinations(range(len(factors)), 2):
        occupied, first, second = (int(next(numbers)) for _ in range(3))
        most = counted[a].groups * counted[b].groups
        pairs[a, b] = PairCount(
            min(round(occupied * times[a] * times[b]), most),
            min(round(first * times[b] ** 2), most * counted[b].groups),
            min(round(second * times[a] ** 2), most * counted[a].groups),
        )
    return Counts(rows, cells, tuple(counted), pairs, len(design.fixed.columns), _by_cell(design))


def counts_of(design: Design, moments: Moments) -> Counts:
    """The same from moments: exact for memberships too."""
    widths = [sum(len(design.blocks[b].columns) for b in f.blocks) for f in design.spec.factors]
    groups = [i.n_groups for i in moments.incidences] or [moments.n_groups]
    ordinary = [i.ordinary for i in moments.incidences] or [True]
    names = [f.name for f in design.spec.factors]
    factors = tuple(FactorCount(*counted) for counted in zip(names, groups, widths, ordinary, strict=True))
    pairs = {}
    for a, b in combinations(range(len(moments.incidences)), 2):
        met = occupancy(moments.incidences[a], moments.incidences[b], moments.n)
        degrees = np.diff(met.indptr), np.bincount(met.indices, minlength=groups[b])
        pairs[a, b] = PairCount(int(met.nnz), *(int(np.sum(np.square(d, dtype=np.int64))) for d in degrees))
    p = len(design.fixed.columns)
    return Counts(moments.n_rows, moments.n_groups, factors, pairs, p, _by_cell(design))


def predict_cost(counts: Counts) -> Cost:
    """Memory and time, from counts.

    1. Which factors are absorbed and which are solved jointly, by the rule of the fit.
    2. Bytes: sums by cell; products by cell, by group and by pair; the joint matrix.
    3. Seconds of an evaluation.
    """
    # 1
    widths, groups = [f.width for f in counts.factors], [f.groups for f in counts.factors]
    nested = {(t, s) for t, s in permutations(range(len(groups)), 2) if groups[t] >= groups[s] and counts.nested(t, s)}
    chain, rest = choose_chain(groups, widths, nested, {t for t, f in enumerate(counts.factors) if not f.ordinary})
    K = sum(counts.factors[t].groups * widths[t] for t in rest)
    sparse = K > DENSE
    # 2
    p, widest = counts.fixed, max(widths)
    numbers = 2 * counts.cells * widest * (p + 1 + widest)
    numbers += sum(f.groups * f.width * (p + 1 + f.width) for f in counts.factors)
    numbers += sum(2 * c.occupied * (widths[a] * widths[b] + 2) for (a, b), c in counts.pairs.items())
    grams = _gram_work(counts, chain, rest, K)
    met = sum(counts.pairs[min(a, b), max(a, b)].occupied * widths[a] * widths[b] for a, b in combinations(rest, 2))
    filled = min(sum(grams.values()) + met + K * widest, K * (K + 1) // 2)
    least, most = (2 * 16 * filled, 2 * 8 * K * K) if sparse else (COPIES * 8 * K * K,) * 2
    # 3
    entries = sum(w * (w + 1) // 2 for w in widths)
    seconds = NUMBER * sum(
        counts.factors[t].groups * widths[t] * (widths[t] + p + 1 + entries) for t in range(len(widths))
    )
    for t, work in grams.items():
        times = widths[t] + widths[t] * (widths[t] + 1) // 2
        seconds += PRODUCT * times * min(work, counts.factors[t].groups * K * K // DENSE_WORK)
    seconds += ENTRY * K**2 + CUBE * K**3
    return Cost(
        chain=tuple(chain),
        joint=tuple(rest),
        width=K,
        sparse=sparse,
        moments=8 * counts.cells * counts.by_cell,
        couplings=8 * numbers,
        matrix=least,
        most=most,
        seconds=None if sparse else seconds,
    )


def cost_notes(counts: Counts, cost: Cost) -> tuple[str, ...]:
    """The structure and its price, in words."""
    names = [f.name for f in counts.factors]
    groups = ", ".join(f"{f.name} {f.groups:,}" for f in counts.factors)
    found = [f"groups: {groups}; {counts.cells:,} cells of {counts.rows:,} rows"]
    found += [counts.relation(a, b) for a, b in counts.pairs]
    steps = []
    if cost.chain:
        steps.append(", then ".join(names[t] for t in cost.chain) + " absorbed group by group")
    if cost.joint:
        steps.append(_joint_text(counts, cost))
    found.append("; ".join(steps))
    if cost.seconds is None:
        most = size_text(cost.moments + cost.couplings + cost.most)
        found.append(
            f"memory about {size_text(cost.memory)}, and up to {most} if the sparse factor fills in: known when its "
            "pattern is studied, before the first evaluation"
        )
    else:
        found.append(
            f"memory about {size_text(cost.memory)} beside the database's; about {cost.seconds:.2g} s an evaluation on "
            f"one core, {EVALUATIONS * cost.seconds:.2g} s for {EVALUATIONS}"
        )
    return tuple(found)


def check_cost(counts: Counts, cost: Cost, available: int | None = None) -> None:
    """Stop before products by group and the joint matrix are made, when they cannot be held.

    Of a sparse matrix the least that it takes; what it fills in is to be checked when its pattern is studied.

    Raises
    ------
    FitError
    """
    what = _joint_text(counts, cost) if cost.joint else f"{counts.cells:,} cells of {len(counts.factors)} factors"
    check_memory(cost.couplings + cost.matrix, what, available)


def _by_cell(design: Design) -> int:
    """Numbers of a cell in the answer of the moments query, and unpacked."""
    layout, S = moment_columns(design), len(design.sources)
    answer = layout.n_keys + 1 + 2 * layout.weighted + len(layout.sums) + len(layout.products) + len(layout.means)
    answer += 2 * len(layout.checked) + len(layout.joined)
    return answer + 1 + S + len(design.per_group) * S + len(design.means) + len(design.group_values)


def _joint_text(counts: Counts, cost: Cost) -> str:
    names = ", ".join(counts.factors[t].name for t in cost.joint)
    return f"{names} solved jointly in a {'sparse' if cost.sparse else 'dense'} matrix of {cost.width:,} columns"


def _gram_work(counts: Counts, chain: Sequence[int], rest: Sequence[int], K: int) -> dict[int, int]:
    """Multiplications in the product of each chain factor's rows against the rest, at most all pairs of columns."""
    found = {}
    for t in chain:
        # (sum of degrees)^2 <= factors of the rest times the sum of their squares
        squares = 0
        for s in rest:
            pair = counts.pairs[min(s, t), max(s, t)]
            squares += (pair.first_squares if t < s else pair.second_squares) * counts.factors[s].width ** 2
        found[t] = min(len(rest) * squares, counts.factors[t].groups * K * K)
    return found
