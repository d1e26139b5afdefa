"""Explained variance: against a baseline on the same data, and as shares of the model's own total variance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlsql.design.columns import Column, Variable
from mlsql.errors import FitError
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.cross import Cross, part_pieces
from mlsql.moments.shifts import Shifts
from mlsql.results.estimates import Estimates
from mlsql.results.points import random_intercept
from mlsql.results.same_data import same_factors, same_grouping, same_groups, same_rows

Measure = Literal["raudenbush_bryk", "snijders_bosker", "nakagawa_marginal", "nakagawa_conditional"]


@dataclass(frozen=True, slots=True)
class Explained:
    """A proportional reduction in variance, (baseline - model) / baseline.

    Attributes
    ----------
    measure : str
    level : int or None
        None where the measure belongs to the whole model; of nested factors the finest is level 2, of crossed ones all.
    term : str or None
        The random coefficient of a variance above level 1, after its factor where there are several: `school: ses`.
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
        _same_data(estimates, baseline)
        found = raudenbush_bryk(estimates, baseline)
        if estimates.levels is None:
            found += snijders_bosker(estimates, baseline)
    return [*found, *nakagawa(estimates)]


def _same_data(estimates: Estimates, baseline: Estimates) -> None:
    if estimates.levels is None and baseline.levels is None:
        same_groups(estimates, baseline)
        return
    if estimates.levels is None or baseline.levels is None or not same_factors(estimates, baseline):
        raise FitError(
            f"the model has random effects of {estimates.design.spec.group}, the baseline of "
            f"{baseline.design.spec.group}: variances are compared between models with the same grouping factors"
        )
    same_rows(estimates, baseline)
    if same_grouping(estimates, baseline):
        same_groups(estimates, baseline)


def raudenbush_bryk(estimates: Estimates, baseline: Estimates) -> list[Explained]:
    """Reduction of sigma2 (4.20) and of each tau_qq (4.12, 4.24).

    A tau_qq is compared only when both models have the same level-1 predictors, centred alike, and the same random
    coefficients: otherwise the two variances are of different quantities.  With several factors that of a factor is
    when the predictors that vary within its groups are the same.
    """
    problem = _other_method(estimates, baseline)
    found = [
        Explained.of("raudenbush_bryk", 1, None, baseline.sigma2, estimates.sigma2, problem, valid=problem is None)
    ]
    before = {_place(baseline, i): float(baseline.T[i, i]) for i in range(len(baseline.design.random))}
    for i, column in enumerate(estimates.design.random):
        different = problem or _other_below(estimates, baseline, i)
        base, tau = before.get(_place(estimates, i), float("nan")), float(estimates.T[i, i])
        term = column.name if estimates.levels is None else f"{estimates.factor_of(i)}: {column.name}"
        level = _level(estimates, i)
        found.append(Explained.of("raudenbush_bryk", level, term, base, tau, different, valid=different is None))
    return found


def _level(estimates: Estimates, random: int) -> int:
    """The level of a random coefficient: its factor's place in the nesting, 2 where factors are crossed."""
    levels = estimates.levels
    if levels is None or levels.top is None:
        return 2
    return 2 + next(i for i, t in enumerate(levels.structure.chain) if random in levels.columns[t])


def snijders_bosker(estimates: Estimates, baseline: Estimates) -> list[Explained]:
    """Reduction of the variance of a row, sigma2 + tau, and of a group's mean, sigma2 / n + tau, at the mean size n.

    Snijders & Bosker (1994), for random-intercept models.
    """
    n = estimates.grouped.n_rows / estimates.grouped.n_groups
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
    """Mean of z'Tz over rows, of all factors together; without weights."""
    _, sums = make_deviance(estimates.statistics, estimates.design.spec.method).overlaps()
    return float(estimates.sigma2 * np.sum(estimates.L @ estimates.L.T * sums)) / estimates.statistics.n_rows


def _other_method(estimates: Estimates, baseline: Estimates) -> str | None:
    own, base = estimates.design.spec.method, baseline.design.spec.method
    return None if own == base else f"the model is fitted by {own}, the baseline by {base}: use one method for both"


def _other_below(estimates: Estimates, baseline: Estimates, random: int) -> str | None:
    """Why variances of a coefficient are not comparable: what is different below its level."""
    what = "level-1 predictors"
    if estimates.levels is not None:
        what = f"predictors that vary within {estimates.factor_of(random)}"
    apart = _apart(_varying(estimates, random), _varying(baseline, random))
    if not apart:
        what, apart = "random coefficients", _apart(_random(estimates), _random(baseline))
    if apart:
        return f"the {what} differ ({apart}): the variances are of different quantities"
    if _blocks(estimates) != _blocks(baseline):
        return "the random coefficients are correlated in one model and not in the other (| and ||)"
    return None


def _apart(own: Mapping[Any, str], base: Mapping[Any, str]) -> str:
    """What only one of two models has."""
    return "; ".join(
        f"{', '.join(names[s] for s in names if s not in others)} only in the {where}"
        for names, others, where in ((own, base, "model"), (base, own, "baseline"))
        if names.keys() - others.keys()
    )


Signature = frozenset[tuple[str, str, str]]
"""What a column means: SQL, origin and centring of its variables."""


def _signature(variables: Iterable[Variable]) -> Signature:
    return frozenset((v.sql, v.origin, v.centering) for v in variables)


Place = tuple[frozenset[str], Signature]
"""A random coefficient: the columns of its factor, and its own."""


def _place(estimates: Estimates, random: int) -> Place:
    design = estimates.design
    factor = design.spec.factor(estimates.factor_of(random))
    assert factor is not None
    return factor.columns, _signature(design.random[random].variables)


def _varying(estimates: Estimates, random: int) -> dict[Signature, str]:
    """The parts of the fixed columns that vary within the groups of a coefficient."""
    design, moments = estimates.design, estimates.moments
    constant: set[Variable] = set()
    if estimates.levels is not None:
        shifts, of = Shifts(design, moments), moments.incidence(estimates.factor_of(random))
        upper = {v for c in design.fixed.columns for v in c.level2}
        constant = {v for v in upper if of.constant(shifts.pivoted_values(v)) is not None}
    parts = [
        Column(c.level1 if estimates.levels is None else tuple(v for v in c.variables if v not in constant))
        for c in design.fixed.columns
    ]
    return {_signature(c.variables): c.name for c in parts if c.variables}


def _random(estimates: Estimates) -> dict[Place, str]:
    columns, several = estimates.design.random, estimates.levels is not None
    return {
        _place(estimates, i): c.name + (f" of {estimates.factor_of(i)}" if several else "")
        for i, c in enumerate(columns)
    }


def _blocks(estimates: Estimates) -> frozenset[frozenset[Place]]:
    return frozenset(
        frozenset(_place(estimates, i) for i in range(s.start, s.stop)) for s in estimates.covariance.slices
    )
