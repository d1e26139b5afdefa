"""Whether two fits are of the same data."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.errors import FitError
from mlsql.results.estimates import Estimates

SAME = 1e-9
"""Sums of the outcome that differ by more than this share of their size come from different data."""


def same_rows(first: Estimates, second: Estimates) -> None:
    """Refuse fits of different outcomes, rows or weights; they may group the rows differently.

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
    totals, size = sums.sum(axis=1) - other.sum(axis=1), np.sqrt(squares * sums[0].sum())
    if abs(totals[0]) > SAME * sums[0].sum() or abs(totals[1]) > SAME * size or abs(squares - others) > SAME * squares:
        raise FitError(
            f"the fits are of different rows: both have {rows[0]:,}, but other values of {_outcome(first)}; fit "
            "both to the same data"
        )


def same_grouping(first: Estimates, second: Estimates) -> bool:
    """True when both have random effects of the same key columns."""
    keys = [[k.sql for k in e.design.keys] for e in (first, second)]
    return keys[0] == keys[1]


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
    size = sums[0] * np.sqrt(squares / np.sum(sums[0]))
    differ = np.abs(sums - other_sums) > SAME * np.array([sums[0], size])
    if np.any(differ) or abs(squares - other_squares) > SAME * squares:
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
    new, old = estimates.moments.keys, baseline.moments.keys
    if new.num_columns != old.num_columns:
        return False
    # types may differ between sources of the same data
    return all(a.equals(b) or a.to_pylist() == b.to_pylist() for a, b in zip(new.columns, old.columns, strict=True))
