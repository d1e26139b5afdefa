"""Rules of thumb that a fit breaks, as far as the fit alone can tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.design.columns import Variable
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.shifts import Shifts
from mlsql.results.advice import HIGH_CORRELATION, LOW_RELIABILITY, random_labels
from mlsql.results.components import homogeneity_tests
from mlsql.results.estimates import Estimates
from mlsql.results.measures import correlation

GROUPS_PER_PREDICTOR = 10
MANY_COEFFICIENTS = 4
COLLINEAR = 0.95
FEW_GROUPS = 30
DETERMINED = 0.9
BETWEEN = 0.05
COVERED = 0.9

FEW = (
    "variances between groups are imprecise: use REML, df='satterthwaite' or 'kenward_roger', and likelihood "
    "ratio or chi-square tests of variances rather than Wald tests"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of thumb that the fit breaks: what about, where, the value found, the rule, what to do."""

    topic: str
    term: str
    value: float | None
    rule: str
    advice: str


def broken_rules(estimates: Estimates) -> list[Rule]:
    """Rules of thumb of Raudenbush & Bryk (chapters 5 and 9) that the fit breaks, as far as the fit alone can tell.

    Those on groups' own estimates, centring and equations are of two levels.
    """
    if estimates.levels is not None:
        return [*_random_rules(estimates), *_factor_rules(estimates, estimates.levels)]
    return [
        *_random_rules(estimates),
        *_group_rules(estimates),
        *_centring_rules(estimates),
        *_equation_rules(estimates),
    ]


def _random_rules(estimates: Estimates) -> Iterator[Rule]:
    T, names = estimates.T, random_labels(estimates)
    for name, variance in zip(names, np.diag(T), strict=True):
        if variance == 0.0:
            yield Rule(
                "variance on the boundary", name, 0.0, "variance > 0",
                "groups do not differ here by more than chance: make the coefficient fixed, or let level-2 predictors "
                "explain it without a random term",
            )  # fmt: skip
    for name, test in zip(names, homogeneity_tests(estimates), strict=True):
        if test.reliability < LOW_RELIABILITY:
            yield Rule(
                "reliability", name, test.reliability, f"mean reliability >= {LOW_RELIABILITY}",
                "the groups' own estimates are almost all noise: make the coefficient fixed or non-randomly varying",
            )  # fmt: skip
    for a in range(len(names)):
        for b in range(a):
            found = correlation(T, a, b)
            if abs(found) >= HIGH_CORRELATION:
                yield Rule(
                    "correlation of random coefficients", f"{names[b]}, {names[a]}", found,
                    f"|correlation| < {HIGH_CORRELATION}",
                    "the two carry the same information about groups: keep one random, or move the predictor's zero",
                )  # fmt: skip
    # each factor has a matrix of its own
    of = [estimates.factor_of(q) for q in range(len(names))]
    for own in ([n for n, f in zip(names, of, strict=True) if f == factor] for factor in dict.fromkeys(of)):
        if len(own) <= MANY_COEFFICIENTS:
            continue
        yield Rule(
            "number of random coefficients", ", ".join(own), float(len(own)), f"at most {MANY_COEFFICIENTS}",
            f"{estimates.n_covariance_parameters} variances and covariances ask for much data: step up from fewer, "
            "keeping those with reliability and a chi-square test that speak for them",
        )  # fmt: skip
    V, terms = estimates.vcov, estimates.fixed_names
    for f in range(len(terms)):
        for g in range(f):
            found = correlation(V, g, f)
            if abs(found) >= COLLINEAR:
                yield Rule(
                    "collinear fixed effects", f"{terms[g]}, {terms[f]}", found, f"|correlation| < {COLLINEAR}",
                    "the estimates can hardly be told apart: centre the predictors, or leave one out",
                )  # fmt: skip


def _factor_rules(estimates: Estimates, levels: LevelStatistics) -> Iterator[Rule]:
    for incidence in levels.incidences:
        if incidence.n_groups < FEW_GROUPS:
            yield Rule(
                "number of groups", incidence.name, float(incidence.n_groups), f"at least {FEW_GROUPS}", FEW
            )  # fmt: skip


def _group_rules(estimates: Estimates) -> Iterator[Rule]:
    J, tests = estimates.statistics.n_groups, homogeneity_tests(estimates)
    if J < FEW_GROUPS:
        yield Rule(
            "number of groups", estimates.design.spec.group, float(J), f"at least {FEW_GROUPS}", FEW
        )  # fmt: skip
    if tests[0].groups < DETERMINED * J:
        yield Rule(
            "groups with estimates of their own", estimates.design.spec.group, tests[0].groups / J,
            f"share >= {DETERMINED}",
            "reliabilities and chi-square tests speak for the other groups only: compare likelihoods, which use all",
        )  # fmt: skip
    for q, name in enumerate(estimates.random_names):
        columns = estimates.design.fixed.columns
        predictors = [f for f in estimates.equation_members(q) if columns[f].level2]
        if predictors and J / len(predictors) < GROUPS_PER_PREDICTOR:
            yield Rule(
                "groups per level-2 predictor", name, J / len(predictors), f"at least {GROUPS_PER_PREDICTOR}",
                f"{len(predictors)} predictors of this coefficient are many for {J} groups: fit conceptual subsets and "
                "keep the strongest",
            )  # fmt: skip


def _centring_rules(estimates: Estimates) -> Iterator[Rule]:
    """Predictors whose group means differ: are the means in the intercept's equation, and what slope variance means."""
    design = estimates.design
    main = {c.variables[0] for c in design.fixed.columns if len(c.variables) == 1 and c.level1}
    random = {c.variables[0] for c in design.random if len(c.variables) == 1 and c.level1}
    for variable in sorted(main | random, key=lambda v: v.name):
        means = _means_between(estimates, variable)
        if means is None or means.share <= BETWEEN:
            continue
        covered, rule = _covered(estimates, means.values), f"share of its group means' variance explained >= {COVERED}"
        plain = next((i.name for i in design.schema.inputs if i.sql == variable.sql), variable.sql)
        if variable in main and covered < COVERED and variable.centering == "group":
            yield Rule(
                "group mean absent", variable.name, covered, rule,
                "centred within groups, it adjusts no effect of the intercept's equation: put its group mean there, "
                f"group_mean({plain})",
            )  # fmt: skip
        elif variable in main and covered < COVERED:
            yield Rule(
                "group mean absent", variable.name, covered, rule,
                f"its coefficient blends the slopes within and between groups: add group_mean({plain}) to the "
                "intercept's equation, or test that the two are equal",
            )  # fmt: skip
        if variable in random and variable.centering != "group":
            yield Rule(
                "random slope not centred within groups", variable.name, means.share,
                f"share of its variance between groups <= {BETWEEN}",
                f"the slope's variance is biased downward where group means differ: compare group_center({plain})",
            )  # fmt: skip


def _equation_rules(estimates: Estimates) -> Iterator[Rule]:
    design = estimates.design
    random = {frozenset(c.level1): c.name for c in design.random if not c.level2}
    equations: dict[frozenset[Variable], dict[frozenset[Variable], str]] = {}
    for column in design.fixed.columns:
        upper = {frozenset(column.level2): ":".join(v.name for v in column.level2)} if column.level2 else {}
        equations.setdefault(frozenset(column.level1), {}).update(upper)
    fixed = [own for own in equations if own and own not in random]
    if fixed:
        yield Rule(
            "slopes without a random term", ", ".join(sorted(":".join(sorted(v.name for v in o)) for o in fixed)),
            float(len(fixed)), "slopes that vary are random",
            "if one varies between groups, the standard error of its mean is too small: test it with a random term",
        )  # fmt: skip
    everywhere = {k: v for found in equations.values() for k, v in found.items()}
    for own, name in random.items():
        absent = [label for key, label in everywhere.items() if key not in equations.get(own, {})]
        if absent:
            yield Rule(
                "predictors of other equations", f"{name}: {', '.join(absent)}", float(len(absent)),
                "the same level-2 predictors in every equation",
                "correlated residuals carry an omitted effect into the other equations: try to_enter() with these"
                + ("" if own else ", and keep in the intercept's equation what predicts a slope"),
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Means:
    """Group means of a level-1 variable (J,), and the share of its variance between groups (intraclass correlation)."""

    values: Array
    share: float


def _means_between(estimates: Estimates, variable: Variable) -> _Means | None:
    """None when the moments do not hold the variable's own sum."""
    moments, sources = estimates.moments, estimates.design.sources
    if (variable.sql,) not in sources:
        return None
    s, J = sources.index((variable.sql,)), moments.n_groups
    # with weights, of mean one
    unit = moments.n_rows / float(moments.sums[0].sum())
    n, values = moments.sums[0] * unit, moments.sums[s] / moments.sums[0]
    N = moments.n_rows
    mean = float(n @ values) / N
    between = float(n @ (values - mean) ** 2)
    within = max(float(moments.pooled[s, s]) * unit - N * mean**2 - between, 0.0) / max(N - J, 1)
    between = between / (J - 1)
    size = (N - float(n @ n) / N) / (J - 1)
    total = between + (size - 1) * within
    return _Means(values, (between - within) / total if total > 0 else 0.0)


def _covered(estimates: Estimates, means: Array) -> float:
    """R2 of group means on the level-2 predictors of the intercept's equation."""
    shifts = Shifts(estimates.design, estimates.moments)
    columns = [shifts.level2_product(c) for c in estimates.design.fixed.columns if c.level2 and not c.level1]
    centred = means - means.mean()
    if not columns or not centred @ centred > 0:
        return 0.0
    X = np.array([c - c.mean() for c in columns]).T
    scale = np.sqrt(np.sum(X**2, axis=0))
    X = X / np.where(scale > 0, scale, 1.0)
    rest = centred - X @ np.linalg.lstsq(X, centred, rcond=None)[0]
    return 1.0 - float(rest @ rest) / float(centred @ centred)
