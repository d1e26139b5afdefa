"""Likelihood-ratio tests of nested models, with the rules that make them tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from mlsql.design.columns import Column, Variable
from mlsql.errors import FitError
from mlsql.formula.spec import ModelSpec
from mlsql.likelihood.objective import make_deviance
from mlsql.results.estimates import Estimates
from mlsql.results.same_data import other_memberships, same_grouping, same_groups, same_rows
from mlsql.status import Status


@dataclass(frozen=True, slots=True)
class LikelihoodRatio:
    """A test of a smaller model within a larger one.

    Attributes
    ----------
    chi2 : float
        Difference of the deviances.
    df : int
        Difference of the numbers of parameters.
    p_value : float
        From chi-square on df; conservative when variances are tested, whose null value lies on the boundary.
    mixture : str or None
        The mixture of chi-squares that holds on the boundary, for instance "0.5 chi2(1) + 0.5 chi2(2)"; None where the
        plain chi-square holds, or where the weights are not known.
    mixture_p_value : float
        nan without a mixture.
    note : str or None
        What to know about the p values.
    """

    chi2: float
    df: int
    p_value: float
    mixture: str | None
    mixture_p_value: float
    note: str | None


def likelihood_ratio(smaller: Estimates, larger: Estimates) -> LikelihoodRatio:
    """Test the smaller of two nested models (Raudenbush & Bryk, 3.107; Stram & Lee 1994 for the boundary).

    The larger may have grouping factors that the smaller lacks: (1 | a) + (1 | b) against (1 | a).

    Raises
    ------
    FitError
        Different outcomes, rows, weights or methods; models that are not nested; REML deviances of different fixed
        parts; a model whose variance components were given.
    """
    same_rows(smaller, larger)
    small, large = ({f.columns for f in e.design.spec.factors} for e in (smaller, larger))
    if not (small <= large or large <= small):
        raise FitError(
            f"the models are not nested: one has random effects of {smaller.design.spec.group}, the other of "
            f"{larger.design.spec.group}; compare them by AIC or BIC"
        )
    if same_grouping(smaller, larger):
        same_groups(larger, smaller)
    reason = incomparable(smaller, larger)
    if reason is not None:
        raise FitError(reason)
    other = other_memberships(smaller, larger)
    if other is not None:
        raise FitError(f"the memberships of {other} are not the same in both models; compare them by AIC or BIC")
    fixed, pairs = _added(smaller, larger)
    if fixed is None or pairs is None:
        if None not in _added(larger, smaller):
            raise FitError("the model given as the smaller one is the larger; turn the two around")
        raise FitError(
            f"the models are not nested: each has a term that the other lacks ({_lacking(smaller, larger)} against "
            f"{_lacking(larger, smaller)}); compare them by AIC or BIC, or fit one that contains both"
        )
    if not fixed and not pairs:
        raise FitError("the two models have the same parameters; there is nothing to test")
    chi2 = smaller.deviance - larger.deviance
    coefficients = sum(variance for variance, _ in pairs)
    return _test(max(chi2, 0.0), fixed, len(pairs), coefficients)


def single_level_ratio(estimates: Estimates) -> LikelihoodRatio:
    """Test a fit against the same fixed part without any random coefficient: ordinary least squares."""
    if estimates.status is Status.GIVEN:
        raise FitError("the variance components were given, not estimated: the deviance is no minimum to test against")
    stats, q = estimates.statistics, estimates.statistics.q
    alone = make_deviance(stats, estimates.design.spec.method).at(np.zeros((q, q)), slopes=False)
    chi2 = max(alone.deviance - estimates.deviance, 0.0)
    return _test(chi2, 0, estimates.covariance.n_parameters, q)


def _test(chi2: float, fixed: int, pairs: int, coefficients: int) -> LikelihoodRatio:
    df = fixed + pairs
    plain = float(chdtrc(df, chi2))
    if coefficients == 0:
        return LikelihoodRatio(chi2, df, plain, None, float("nan"), None)
    if coefficients > 1:
        return LikelihoodRatio(
            chi2,
            df,
            plain,
            None,
            float("nan"),
            f"{coefficients} variances are tested at their boundary: the p value is conservative",
        )
    # one variance: in half of the samples the larger model ends on the boundary, which has one dimension less
    low = df - 1
    tail = 0.5 * (float(chdtrc(low, chi2)) if low else float(chi2 <= 0.0)) + 0.5 * plain
    return LikelihoodRatio(chi2, df, plain, f"0.5 chi2({low}) + 0.5 chi2({df})", tail, None)


def incomparable(smaller: Estimates, larger: Estimates) -> str | None:
    """Why the deviances of two fits to the same data cannot be compared, or None."""
    first, second = smaller.design.spec.method, larger.design.spec.method
    if first != second:
        return f"one model was fitted by {first}, the other by {second}: their deviances have nothing in common"
    small, large = _columns(smaller), _columns(larger)
    if first == "REML" and set(small) != set(large):
        only = [name for key, name in (small | large).items() if (key in small) != (key in large)]
        return (
            f"REML deviances of different fixed parts ({', '.join(only)}) cannot be compared: each is the "
            "likelihood of other contrasts of the outcome; fit both with method='ML'"
        )
    if Status.GIVEN in (smaller.status, larger.status):
        return "the variance components of one model were given, not estimated: its deviance is no minimum"
    return None


def _added(smaller: Estimates, larger: Estimates) -> tuple[int | None, list[tuple[bool, str]] | None]:
    """What the larger model has beside all of the smaller; None where it lacks some.

    The number of fixed effects, and entries of T as (is a variance, name).
    """
    small, large = _columns(smaller).keys(), _columns(larger).keys()
    fixed = len(large - small) if small <= large else None
    inner, outer = _entries(smaller), _entries(larger)
    if not inner.keys() <= outer.keys():
        return fixed, None
    return fixed, [outer[key] for key in outer.keys() - inner.keys()]


def _lacking(smaller: Estimates, larger: Estimates) -> str:
    """What the smaller model has and the larger lacks."""
    small, large = _columns(smaller), _columns(larger)
    fixed = [name for key, name in small.items() if key not in large]
    inner, outer = _entries(smaller), _entries(larger)
    return ", ".join([*fixed, *(f"random {name}" for key, (_, name) in inner.items() if key not in outer)])


Key = frozenset[tuple[str, str, str, frozenset[str]]]
"""What a column is, whatever the order of its factors or the pivot; the columns of a factor whose means are meant."""

Entry = tuple[frozenset[str], frozenset[Key]]
"""An entry of T: the columns of its factor, and its two coefficients."""


def _key(column: Column, spec: ModelSpec) -> Key:
    return frozenset(
        (v.sql, v.origin if v.origin == "group_mean" else "value", v.centering, _factor(v, spec))
        for v in column.variables
    )


def _factor(variable: Variable, spec: ModelSpec) -> frozenset[str]:
    """Columns of the factor behind a mean or a deviation within groups; none for other variables."""
    if variable.origin != "group_mean" and variable.centering != "group":
        return frozenset()
    named = None if variable.group is None else spec.factor(variable.group)
    return (named or spec.factors[0]).columns


def _columns(estimates: Estimates) -> dict[Key, str]:
    return {_key(c, estimates.design.spec): c.name for c in estimates.design.fixed.columns}


def _entries(estimates: Estimates) -> dict[Entry, tuple[bool, str]]:
    columns, spec, slices = estimates.design.random, estimates.design.spec, estimates.covariance.slices
    found = {}
    for factor in spec.factors:
        own = [range(slices[b].start, slices[b].stop) for b in factor.blocks]
        of = f" of {factor.name}" if len(spec.factors) > 1 else ""
        for a, b in estimates.covariance.entries:
            if any(a in block for block in own):
                pair = frozenset((_key(columns[a], spec), _key(columns[b], spec)))
                found[factor.columns, pair] = (a == b, columns[a].name + of)
    return found
