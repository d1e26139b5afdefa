"""`compare` and `step_up`: several models of the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlsql._typing import Method
from mlsql.design.design import Design
from mlsql.errors import FitError, FormulaError
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import INTERCEPT, Atom, RandomBlock, Term
from mlsql.pipeline.fit import fit
from mlsql.pipeline.fitted import Fit
from mlsql.pipeline.prepare import make_spec
from mlsql.pipeline.submodels import submodel
from mlsql.report.comparison import comparison_table, comparison_text
from mlsql.results.submodel import submodel_name

if TYPE_CHECKING:
    import duckdb
    import polars as pl


def compare(*fits: Fit, names: Sequence[str] | None = None) -> pl.DataFrame:
    """Several fits of the same rows side by side; they may have different grouping factors.

    Each fit is tested against the one before it by the likelihood ratio where one of the two is nested in the other.
    Where the test does not exist (REML with different fixed parts, models that are not nested) its columns are null
    and `note` says why.

    Parameters
    ----------
    *fits : Fit
        Two or more; the first is the baseline of explained variance.
    names : sequence of str, optional
        Labels; 1, 2, ... when not given.

    Returns
    -------
    polars.DataFrame
        model, n_parameters, deviance, aic, bic, against, chi2, df, p_value, mixture and mixture_p_value (one variance
        at its boundary), sigma2, intercept_variance (null with several grouping factors), explained_level1,
        explained_intercept (proportions of the baseline's variances; null where those are of other quantities or
        factors), baseline, method, formula, note.

    Raises
    ------
    FitError
        Different outcomes, rows or weights.

    Examples
    --------
    >>> import mlsql
    >>> hsb = mlsql.example_data("hsb")
    >>> null = mlsql.fit("mathach ~ 1 + (1 | school)", hsb, method="ML")
    >>> means = mlsql.fit("mathach ~ meanses + (1 | school)", hsb, method="ML")
    >>> mlsql.compare(null, means)["chi2"].round(1).to_list()
    [None, 156.7]
    """
    if len(fits) < 2:
        raise FitError(f"compare takes two or more fits, not {len(fits)}")
    for item in fits:
        if not isinstance(item, Fit):
            raise FitError(f"compare takes fits, not a {type(item).__name__}; call mlsql.fit first")
    labels = _labels(names, len(fits))
    models = [(label, item.estimates) for label, item in zip(labels, fits, strict=True)]
    return comparison_table(models, [None, *range(len(fits) - 1)], [0] * len(fits))


def _labels(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [str(i + 1) for i in range(count)]
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise FitError(f"names is {names!r}; it is a list of texts, one for each fit")
    if len(names) != count or len(set(names)) != count:
        raise FitError(f"there are {len(set(names))} different names for {count} fits; give each its own")
    return list(names)


@dataclass(frozen=True, slots=True, repr=False)
class StepUp:
    """The models of a step-up sequence.

    Attributes
    ----------
    fits : mapping of str to Fit
        By the textbook's name, in order.
    table : polars.DataFrame
        As `compare`; each model is tested against, and explains the variance of, the one that the textbook puts before
        it.
    """

    fits: Mapping[str, Fit]
    table: pl.DataFrame

    def __str__(self) -> str:
        return comparison_text(self.table)

    def __repr__(self) -> str:
        return f"<mlsql.StepUp {', '.join(self.fits)}>"


def step_up(
    formula: str | ModelSpec,
    data: object,
    *,
    method: Method = "ML",
    con: duckdb.DuckDBPyConnection | None = None,
    level2: object = None,
    weights: str | None = None,
    groups: str | None = None,
) -> StepUp:
    """The textbook's sequence of submodels up to a final one, all from one set of moments.

    1. One-way ANOVA with random effects.
    2. Means as outcomes: the level-2 predictors of the intercept.
    3. One-way ANCOVA with random effects: the level-1 predictors, slopes fixed; grand-mean centred where the final
       model centres within groups.
    4. Random coefficients: the level-1 predictors as in the final model, with its random part.
    5. Nonrandomly varying slopes: the final fixed part, the intercept alone random.
    6. The final model: intercepts and slopes as outcomes.

    Steps that the final model does not have, or that repeat another, are left out.  A model whose intercept alone is
    random has in place of step 4 the level-1 predictors centred as in the final model, when that is within groups.

    Parameters
    ----------
    formula : str or ModelSpec
        The final model.
    data, con, level2, weights, groups
        As for `fit`.
    method : {"ML", "REML"}
        ML by default, since the steps differ in their fixed parts.

    Returns
    -------
    StepUp
        `fits` by name and the `table` of their comparison.

    Raises
    ------
    FormulaError, DataError, DesignError, QueryError, FitError

    Examples
    --------
    >>> import mlsql
    >>> final = "mathach ~ sector * group_center(ses) + (group_center(ses) | school)"
    >>> steps = mlsql.step_up(final, mlsql.example_data("hsb"))
    >>> list(steps.fits)[0], steps.table.height
    ('one-way ANOVA', 6)
    """
    if isinstance(formula, ModelSpec) and method != formula.method:
        formula = replace(formula, method=method)
    spec = make_spec(formula, method if not isinstance(formula, ModelSpec) else "REML", weights, groups)
    if len(spec.factors) > 1:
        raise FitError(
            f"step_up is for models with one grouping factor, whose textbook sequence it fits; the model has "
            f"{len(spec.factors)}: {spec.group}; fit the models that you want to see and compare(...) them"
        )
    if INTERCEPT not in spec.fixed:
        raise FormulaError("step_up starts from a model with an intercept; leave out the 0 of the fixed part")
    final = fit(spec, data, con=con, level2=level2)
    steps = _steps(final.spec, final.estimates.design)
    fits = {name: final if own == final.spec else submodel(final.products, own) for name, own, _, _ in steps}
    names = list(fits)
    position = {name: i for i, name in enumerate(names)}
    table = comparison_table(
        [(name, item.estimates) for name, item in fits.items()],
        [position.get(against) if against else None for _, _, against, _ in steps],
        [position.get(base) if base else None for _, _, _, base in steps],
    )
    return StepUp(fits, table)


ANOVA, MEANS, ANCOVA = "one-way ANOVA", "means as outcomes", "one-way ANCOVA"
COEFFICIENTS, NONRANDOM = "random coefficients", "nonrandomly varying slopes"
CENTRED = "one-way ANCOVA, centred within groups"

Step = tuple[str, ModelSpec, str | None, str | None]
"""Name, model, name of the one it is tested against, name of its baseline."""


def _steps(spec: ModelSpec, design: Design) -> list[Step]:
    upper = _level2_atoms(spec, design)
    means = [t for t in spec.fixed if t.atoms and all(a in upper for a in t.atoms)]
    slopes = [t for t in spec.fixed if t.atoms and not any(a in upper for a in t.atoms)]
    crossed = len(means) + len(slopes) + 1 < len(spec.fixed)
    intercept = (RandomBlock((INTERCEPT,), spec.keys),)
    sequence: list[Step] = [(ANOVA, replace(spec, fixed=(INTERCEPT,), random=intercept), None, None)]
    if means:
        sequence.append((MEANS, replace(spec, fixed=(INTERCEPT, *means), random=intercept), ANOVA, ANOVA))
    if slopes:
        grand = tuple(_grand(t, design) for t in slopes)
        sequence.append((ANCOVA, replace(spec, fixed=(INTERCEPT, *grand), random=intercept), ANOVA, ANOVA))
        own = replace(spec, fixed=(INTERCEPT, *slopes))
        if spec.random != intercept:
            sequence.append((COEFFICIENTS, own, ANOVA, ANOVA))
        elif any(a.centering == "group" for t in slopes for a in t.atoms):
            sequence.append((CENTRED, own, ANOVA, ANOVA))
    before = sequence[-1][0] if slopes else MEANS if means else ANOVA
    final = submodel_name(design)
    if crossed and spec.random != intercept:
        sequence.append((NONRANDOM, replace(spec, random=intercept), final, before))
    known = [own for _, own, _, _ in sequence]
    if spec in known:
        kept = known.index(spec)
        return [*sequence[:kept], *sequence[kept + 1 :], sequence[kept]]
    return [*sequence, (final, spec, before, before)]


def _level2_atoms(spec: ModelSpec, design: Design) -> set[Atom]:
    """Predictors that have one value per group."""
    upper = {(v.source, v.origin == "group_mean") for c in (*design.fixed.columns, *design.random) for v in c.level2}
    return {a for a in spec.atoms if (design.schema.find(a).sql, a.kind == "group_mean") in upper}


def _grand(term: Term, design: Design) -> Term:
    """The term with group-centred predictors centred at their grand means instead; other centring is kept."""

    def moved(atom: Atom) -> Atom:
        if atom.centering != "group":
            return atom
        name = f"grand_center({design.schema.find(atom).name})"
        return replace(atom.plain(), name=name, centering="grand")

    return Term(tuple(moved(a) for a in term.atoms))
