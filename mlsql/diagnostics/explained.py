"""Explained variance: against a baseline on the same data, and as shares of the model's own total variance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlsql.design.columns import Column, Variable
from mlsql.design.design import Design
from mlsql.moments.cross import Cross, part_pieces
from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates
from mlsql.results.points import random_intercept
from mlsql.results.same_data import same_groups

Measure = Literal["raudenbush_bryk", "snijders_bosker", "nakagawa_marginal", "nakagawa_conditional"]


@dataclass(frozen=True, slots=True)
class Explained:
    """A proportional reduction in variance, (baseline - model) / baseline.

    Attributes
    ----------
    measure : str
    level : int or None
        None where the measure belongs to the whole model.
    term : str or None
        The random coefficient of a level-2 variance.
    baseline_value, model_value : float
        The variances compared; for Nakagawa's measures the model's total variance and what is not explained of it.
    proportion : float
        nan where the comparison does not hold; then `note` says why.
    note : str or None
    """

    measure: Measure
    level: int | None
    term: str | None
    baseline_value: float
    model_value: float
    proportion: float
    note: str | None = None

    @classmethod
    def of(
        cls,
        measure: Measure,
        level: int | None,
        term: str | None,
        baseline: float,
        model: float,
        note: str | None = None,
        *,
        valid: bool = True,
    ) -> Explained:
        """The comparison of two variances; without a proportion when it is not valid or there is nothing to explain."""
        if valid and not baseline > 0:
            valid, note = False, "the baseline's variance is zero: nothing is left to explain"
        proportion = (baseline - model) / baseline if valid else float("nan")
        return cls(measure, level, term, baseline, model, proportion, note)


def explained_variance(estimates: Estimates, baseline: Estimates | None) -> list[Explained]:
    """Every measure of explained variance; see `raudenbush_bryk`, `snijders_bosker`, `nakagawa`.

    Raises
    ------
    FitError
        When the baseline describes other rows, another outcome or other weights.
    """
    found = []
    if baseline is not None:
        same_groups(estimates, baseline)
        found = [*raudenbush_bryk(estimates, baseline), *snijders_bosker(estimates, baseline)]
    return [*found, *nakagawa(estimates)]


def raudenbush_bryk(estimates: Estimates, baseline: Estimates) -> list[Explained]:
    """Reduction of sigma2 (4.20) and of each tau_qq (4.12, 4.24).

    A tau_qq is compared only when both models have the same level-1 predictors, centred alike, and the same random
    coefficients: otherwise the two variances are of different quantities.
    """
    problem = _other_method(estimates, baseline)
    found = [
        Explained.of("raudenbush_bryk", 1, None, baseline.sigma2, estimates.sigma2, problem, valid=problem is None)
    ]
    problem = problem or _other_level1(estimates, baseline)
    before = {_signature(c.variables): float(baseline.T[i, i]) for i, c in enumerate(baseline.design.random)}
    for i, column in enumerate(estimates.design.random):
        base = before.get(_signature(column.variables), float("nan"))
        tau = float(estimates.T[i, i])
        found.append(Explained.of("raudenbush_bryk", 2, column.name, base, tau, problem, valid=problem is None))
    return found


def snijders_bosker(estimates: Estimates, baseline: Estimates) -> list[Explained]:
    """Reduction of the variance of a row, sigma2 + tau, and of a group's mean, sigma2 / n + tau, at the mean size n.

    Snijders & Bosker (1994), for random-intercept models.
    """
    n = estimates.statistics.n_rows / estimates.statistics.n_groups
    problem, note = _other_method(estimates, baseline), f"for groups of the mean size, {n:.6g}"
    if not (random_intercept(estimates.design) and random_intercept(baseline.design)):
        problem = "defined for random intercepts: fit both models with (1 | group) alone to have it"
    elif estimates.design.spec.weights is not None:
        problem = "not defined with precision weights: sigma2 is the variance of a row of weight 1"
    valid, found = problem is None, []
    for level, size in ((1, 1.0), (2, n)):
        before, after = (e.sigma2 / size + float(e.T[0, 0]) for e in (baseline, estimates))
        if not valid:
            before = after = float("nan")
        note_here = problem or (note if level == 2 else None)
        found.append(Explained.of("snijders_bosker", level, None, before, after, note_here, valid=valid))
    return found


def nakagawa(estimates: Estimates) -> list[Explained]:
    """Shares of var(X beta) + mean z'Tz + sigma2: of var(X beta), marginal; of the first two, conditional.

    Nakagawa & Schielzeth (2013), with random slopes Johnson (2014).  The variance of X beta over rows has the divisor
    N - 1, the mean of z'Tz is over rows.
    """
    if estimates.design.spec.weights is not None:
        note = "not defined with precision weights: the level-1 variance differs from row to row"
        none = float("nan")
        return [Explained(m, None, None, none, none, none, note) for m in ("nakagawa_marginal", "nakagawa_conditional")]
    fixed, random, s2 = fixed_variance(estimates), random_variance(estimates), estimates.sigma2
    total = fixed + random + s2
    return [
        Explained.of("nakagawa_marginal", None, None, total, random + s2),
        Explained.of("nakagawa_conditional", None, None, total, s2),
    ]


def fixed_variance(estimates: Estimates) -> float:
    """Variance of X beta over rows, divisor N - 1; without weights."""
    design, moments, stats = estimates.design, estimates.moments, estimates.statistics
    shifts, cross = Shifts(design, moments), Cross(design, moments)
    columns = part_pieces(shifts, design, design.fixed)
    sums = np.array([cross.pooled(pieces, [(0, 1.0)]) for pieces in columns]) / stats.x_scale
    beta = estimates.evaluation.beta
    # centred column by column: the pivots have taken most of the means away already
    C = stats.XytXy[: stats.p, : stats.p] - np.outer(sums, sums) / stats.n_rows
    return max(float(beta @ C @ beta), 0.0) / (stats.n_rows - 1)


def random_variance(estimates: Estimates) -> float:
    """Mean of z'Tz over rows; without weights."""
    stats = estimates.statistics
    mean = stats.ZtZ.sum(axis=2) / stats.n_rows
    return float(estimates.sigma2 * np.sum(estimates.L @ estimates.L.T * mean))


def _other_method(estimates: Estimates, baseline: Estimates) -> str | None:
    own, base = estimates.design.spec.method, baseline.design.spec.method
    return None if own == base else f"the model is fitted by {own}, the baseline by {base}: use one method for both"


def _other_level1(estimates: Estimates, baseline: Estimates) -> str | None:
    """Why variances of coefficients are not comparable: what is different at level 1."""
    for what, signatures in (("level-1 predictors", _level1), ("random coefficients", _random)):
        own, base = signatures(estimates.design), signatures(baseline.design)
        parts = [
            f"{', '.join(names[s] for s in names if s not in others)} only in the {where}"
            for names, others, where in ((own, base, "model"), (base, own, "baseline"))
            if names.keys() - others.keys()
        ]
        if parts:
            return f"the {what} differ ({'; '.join(parts)}): the variances are of different quantities"
    if _blocks(estimates.design) != _blocks(baseline.design):
        return "the random coefficients are correlated in one model and not in the other (| and ||)"
    return None


Signature = frozenset[tuple[str, str, str]]
"""What a column means: SQL, origin and centring of its variables."""


def _signature(variables: Iterable[Variable]) -> Signature:
    return frozenset((v.sql, v.origin, v.centering) for v in variables)


def _level1(design: Design) -> dict[Signature, str]:
    parts = [Column(c.level1) for c in design.fixed.columns if c.level1]
    return {_signature(c.variables): c.name for c in parts}


def _random(design: Design) -> dict[Signature, str]:
    return {_signature(c.variables): c.name for c in design.random}


def _blocks(design: Design) -> frozenset[frozenset[Signature]]:
    return frozenset(frozenset(_signature(c.variables) for c in block.columns) for block in design.blocks)
