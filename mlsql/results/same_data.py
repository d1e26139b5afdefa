"""Whether two fits are of the same data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.moments.incidence import Incidence
from mlsql.results.estimates import Estimates

if TYPE_CHECKING:
    import pyarrow as pa

SAME = 1e-9
"""Sums of the outcome that differ by more than this share of their size come from different data."""


def same_rows(first: Estimates, second: Estimates) -> None:
    """Refuse fits of different outcomes, rows or weights; they may group the rows differently.

    Rows are judged by what both fits know of them: their number, the outcome's sums over all, and, where the fits group
    by some of the same columns but not by all, its sums by the groups of those.

    Raises
    ------
    FitError
    """
    a, b = first.design, second.design
    if a.outcome.sql != b.outcome.sql:
        raise FitError(f"the outcomes differ: {_outcome(first)} and {_outcome(second)}; fit both models to one outcome")
    weights = ["none" if d.spec.weights is None else d.spec.weights.name for d in (a, b)]
    if a.spec.weights != b.spec.weights:
        raise FitError(f"the weights differ ({weights[0]} and {weights[1]}); fit both models with the same")
    rows = first.statistics.n_rows, second.statistics.n_rows
    if rows[0] != rows[1]:
        raise FitError(
            f"the fits are of different rows ({rows[0]:,} and {rows[1]:,}): missing values of a predictor leave rows "
            "out of one; fit both to the rows that are complete in all columns"
        )
    (sums, squares), (other, others) = (_outcome_sums(e, a.outcome.pivot) for e in (first, second))
    if _different(sums.sum(axis=1), other.sum(axis=1), squares) or abs(squares - others) > SAME * squares:
        raise FitError(
            f"the fits are of different rows: both have {rows[0]:,}, but other values of {_outcome(first)}; fit "
            "both to the same data"
        )
    if not same_grouping(first, second):
        _check_in_common(first, second)


def _different(sums: Array, other: Array, squares: float) -> bool:
    """Whether sums (2, ...) of w and of w (y - pivot) are of different data; `squares` that of w (y - pivot)^2."""
    size = np.sqrt(squares * np.sum(sums[0])) * sums[0] / np.sum(sums[0])
    return bool(np.any(np.abs(sums - other) > SAME * np.array([sums[0], size])))


def _check_in_common(first: Estimates, second: Estimates) -> None:
    """Refuse fits whose rows or outcome differ in the groups of the key columns that both have."""
    columns = [_key_columns(e) for e in (first, second)]
    shared = [sql for sql in columns[0] if sql in columns[1]]
    if not shared:
        return
    pivot = first.design.outcome.pivot
    (keys, n, sums, squares), (other_keys, other_n, others, _) = (
        _by_keys(e, [own[sql] for sql in shared], pivot) for e, own in zip((first, second), columns, strict=True)
    )
    if not (np.array_equal(n, other_n) and _equal(keys, other_keys)) or _different(sums, others, squares):
        of = ", ".join(columns[0][sql] for sql in shared)
        raise FitError(
            f"the fits are of different rows: both have {first.statistics.n_rows:,}, but other rows or values of "
            f"{_outcome(first)} in the groups of {of}; fit both to the same data"
        )


def _key_columns(estimates: Estimates) -> dict[str, str]:
    """Names of the key columns by their SQL, those apart that number the sets of a membership."""
    sets = {i.name for i in estimates.moments.incidences if not i.ordinary}
    return {k.sql: k.name for k in estimates.design.keys if k.name not in sets}


def _by_keys(estimates: Estimates, names: Sequence[str], pivot: float) -> tuple[pa.Table, Array, Array, float]:
    """Keys in order, rows and outcome sums of the groups of some key columns, and the sum of squares over all rows."""
    sums, squares = _outcome_sums(estimates, pivot)
    labels = [f"k{i}" for i in range(len(names))]
    table = estimates.moments.keys.select(list(names)).rename_columns(labels)
    for i, label in enumerate(labels):
        table = table.set_column(i, label, _decoded(table.column(i)))
    values = {"n": estimates.moments.n, "w": sums[0], "y": sums[1]}
    for label, value in values.items():
        table = table.append_column(label, [value])
    grouped = table.group_by(labels).aggregate([(label, "sum") for label in values])
    grouped = grouped.sort_by([(label, "ascending") for label in labels])
    n, w, y = (np.asarray(grouped.column(f"{label}_sum").to_numpy(), dtype=np.float64) for label in values)
    return grouped.select(labels), n, np.array([w, y]), squares


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Categories as their values: only those can be sorted."""
    values = getattr(column.type, "value_type", None)
    return column if values is None else column.cast(values)


def same_grouping(first: Estimates, second: Estimates) -> bool:
    """True when both have random effects of the same key columns, none of them a membership's."""
    if any(not i.ordinary for e in (first, second) for i in e.moments.incidences):
        return False
    keys = [[k.sql for k in e.design.keys] for e in (first, second)]
    return keys[0] == keys[1]


def same_factors(first: Estimates, second: Estimates) -> bool:
    """True when both have random effects of the same grouping factors."""
    factors = [{f.columns for f in e.design.spec.factors} for e in (first, second)]
    return factors[0] == factors[1]


def other_memberships(first: Estimates, second: Estimates) -> str | None:
    """The factor that both have, and whose units rows belong to in another way; None when there is none.

    Judged by what each unit's rows have of it: their weights and squared weights.
    """
    for name in {f.name for f in first.design.spec.factors} & {f.name for f in second.design.spec.factors}:
        found = [(e, i) for e in (first, second) for i in e.moments.incidences if i.name == name and not i.ordinary]
        if not found:
            continue
        if len(found) < 2:
            return name
        (a, one), (b, other) = found
        sums, others = _shares(a, one), _shares(b, other)
        if not _equal(one.keys, other.keys) or np.any(np.abs(sums - others) > SAME * np.abs(sums).max(initial=0.0)):
            return name
    return None


def _shares(estimates: Estimates, of: Incidence) -> Array:
    """(2, units) sums over rows of weights and of squared weights."""
    assert of.weight is not None
    n = estimates.moments.n[of.cell]
    powers = (of.weight, of.weight**2)
    return np.array([np.bincount(of.group, weights=n * w, minlength=of.n_groups) for w in powers])


def same_groups(estimates: Estimates, baseline: Estimates) -> None:
    """Refuse a baseline of other rows, another outcome or other weights.

    Groups and their sizes are compared, and the outcome's sums by group and its sum of squares.

    Raises
    ------
    FitError
    """
    own, base = estimates.design, baseline.design
    if own.outcome.sql != base.outcome.sql:
        raise FitError(
            f"the baseline's outcome is {_outcome(baseline)}, this model's {_outcome(estimates)}: variances of "
            "different outcomes cannot be compared"
        )
    weights = ["none" if w is None else w.name for w in (own.spec.weights, base.spec.weights)]
    if own.spec.weights != base.spec.weights:
        raise FitError(f"the model's weights are {weights[0]}, the baseline's {weights[1]}; fit both with the same")
    new, old = estimates.moments, baseline.moments
    same_groups = new.n_groups == old.n_groups and np.array_equal(new.n, old.n)
    if not same_groups or not _same_keys(estimates, baseline):
        raise FitError(
            f"the model was fitted to {new.n_rows:,} rows in {new.n_groups:,} groups of {own.spec.group}, the baseline "
            f"to {old.n_rows:,} rows in {old.n_groups:,} groups of {base.spec.group}, and they are not the same rows; "
            "a predictor with missing values drops rows: fit the baseline to the rows that are complete for both"
        )
    pivot = own.outcome.pivot
    (sums, squares), (other_sums, other_squares) = _outcome_sums(estimates, pivot), _outcome_sums(baseline, pivot)
    if _different(sums, other_sums, squares) or abs(squares - other_squares) > SAME * squares:
        raise FitError(
            f"the values of {_outcome(estimates)} (or of the weights) are not those that the baseline was fitted to; "
            "fit both to the same data"
        )


def _outcome_sums(estimates: Estimates, pivot: float) -> tuple[Array, float]:
    """(2, J) sums of w and of w (y - pivot) by group, and the sum of w (y - pivot)^2 over all rows."""
    moments, shift = estimates.moments, estimates.design.outcome.pivot - pivot
    w, y = moments.sums[0], moments.sums[-1]
    squares = moments.pooled[-1, -1] + 2.0 * shift * y.sum() + shift**2 * w.sum()
    return np.array([w, y + shift * w]), float(squares)


def _outcome(estimates: Estimates) -> str:
    offsets = "".join(f" - {o.name}" for o in estimates.design.spec.offset)
    return estimates.design.spec.outcome.name + offsets


def _same_keys(estimates: Estimates, baseline: Estimates) -> bool:
    return _equal(estimates.moments.keys, baseline.moments.keys)


def _equal(new: pa.Table, old: pa.Table) -> bool:
    if new.num_columns != old.num_columns:
        return False
    # types may differ between sources of the same data
    return all(a.equals(b) or a.to_pylist() == b.to_pylist() for a, b in zip(new.columns, old.columns, strict=True))
