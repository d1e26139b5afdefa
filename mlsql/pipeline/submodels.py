"""Other models on the rows of a fit, from the fit's own moments: no scan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mlsql._typing import Method
from mlsql.design.design import Design, build_design
from mlsql.design.schema import Candidate, classify, outcome_sql
from mlsql.errors import DesignError, FitError
from mlsql.formula.spec import ModelSpec, parse_model
from mlsql.formula.terms import INTERCEPT, Atom, RandomBlock, Term
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.moments import Moments
from mlsql.moments.select import select, varying_inputs
from mlsql.moments.statistics import assemble, collinear_columns
from mlsql.optimise.search import optimise
from mlsql.pipeline.analysis import check_groups, collinear_message, dropped_rows, survey_warnings
from mlsql.pipeline.products import Products
from mlsql.results.advice import advice
from mlsql.results.estimates import Estimates
from mlsql.results.one_factor import require_one_factor
from mlsql.sql.plan import Plan

if TYPE_CHECKING:
    from mlsql.pipeline.fitted import Fit


def submodel(products: Products, formula: str | ModelSpec, method: Method | None = None) -> Fit:
    """Fit another model on the same rows, without reading them.

    Its columns must be at hand: products of level-1 predictors as in the fit, any centring, any cross-level product,
    any level-2 predictor of the fit.  Rows that the fit left out stay out.

    Parameters
    ----------
    products : Products
        Of the fit.
    formula : str or ModelSpec
        Same outcome, groups and weights; text takes the weights from the fit.
    method : {"REML", "ML"}, optional
        The fit's (or the specification's) when not given.

    Returns
    -------
    Fit

    Raises
    ------
    FitError
        When the moments lack a column of the model; it names them.
    FormulaError, DesignError
    """
    # the accessors of a fit use this module
    from mlsql.pipeline.fitted import Fit

    started = time.perf_counter()
    estimates = submodel_estimates(products, formula, method)
    design, moments, survey = estimates.design, estimates.moments, estimates.design.survey
    assert survey is not None
    warnings = (*design.schema.warnings, *survey_warnings(survey), *advice(estimates))
    seconds = {"survey": 0.0, "scan": 0.0, "pack": 0.0, "optimise": time.perf_counter() - started}
    inputs = products.inputs
    found = Products(estimates, inputs)
    return Fit(estimates, inputs, Plan(()), dropped_rows(survey, moments), warnings, seconds, found)


def submodel_estimates(
    products: Products,
    formula: str | ModelSpec,
    method: Method | None = None,
    *,
    excluded: frozenset[str] = frozenset(),
) -> Estimates:
    """The estimates of a `submodel`; `excluded` are names of fixed columns to leave out."""
    design, moments = submodel_moments(products, formula, method, excluded=excluded)
    check_groups(design, moments)
    collinear = collinear_columns(design, moments)
    if collinear:
        raise DesignError(collinear_message(collinear[0]) + "; leave it out")
    statistics = assemble(design, moments)
    found = optimise(make_deviance(statistics, design.spec.method), max_evaluations=200)
    return Estimates.at_optimum(design, moments, statistics, found)


def submodel_moments(
    products: Products,
    formula: str | ModelSpec,
    method: Method | None = None,
    *,
    excluded: frozenset[str] = frozenset(),
) -> tuple[Design, Moments]:
    """Design of another model on the same rows, and its moments with all products by group."""
    require_one_factor(products.estimates, "another model from the moments of a fit is")
    design, moments = products.complete()
    spec = _submodel_spec(design, formula, method)
    for atom in spec.atoms:
        _check_atom(atom, design)
    varying = varying_inputs(design, moments)
    wanted = build_design(spec, design.schema, design.survey, varying=varying, excluded=excluded).completed()
    try:
        return wanted, select(design, moments, wanted)
    except DesignError as error:
        raise FitError(f"{spec.formula}: {error}; read the rows again with mlsql.fit") from error


def _submodel_spec(design: Design, formula: str | ModelSpec, method: Method | None) -> ModelSpec:
    own = design.spec
    if isinstance(formula, ModelSpec):
        spec = formula if method is None else replace(formula, method=method)
    else:
        groups = None if isinstance(formula, str) and "~" in formula else own.group
        spec = parse_model(formula, method=own.method if method is None else method, groups=groups)
        spec = replace(spec, weights=own.weights)
    if spec.method not in ("REML", "ML"):
        raise FitError(f"method is {spec.method!r}; it is 'REML' or 'ML'")
    outcome = design.schema.outcome
    if outcome_sql(spec) != outcome.sql:
        raise FitError(
            f"{spec.formula}: the outcome or its offset differs from the fit's, {outcome.name} (SQL {outcome.sql}); "
            "read the rows again with mlsql.fit"
        )
    if len(spec.factors) > 1 or [k.sql for k in spec.keys] != [k.sql for k in own.keys]:
        raise FitError(
            f"{spec.formula}: the groups are {spec.group}, those of the fit {own.group}; read the rows again with "
            "mlsql.fit"
        )
    if (spec.weights is None) != (own.weights is None) or (
        spec.weights is not None and own.weights is not None and spec.weights.sql != own.weights.sql
    ):
        given, fitted = ("none" if w is None else w.name for w in (spec.weights, own.weights))
        raise FitError(
            f"{spec.formula}: weights {given}, those of the fit {fitted}; read the rows again with mlsql.fit"
        )
    return spec


def _check_atom(atom: Atom, design: Design) -> None:
    """Refuse a predictor that the fit has not read, or has read as something else."""
    inputs = design.schema.of_role("numeric", "factor")
    for item in inputs:
        if item.sql != atom.sql:
            continue
        if item.table == "level2" and (atom.kind == "group_mean" or atom.centering == "group"):
            raise DesignError(
                f"{atom.name}: the column comes from the level2 table, where it has one value per group; "
                "use it as it is, or centre it with grand_center()"
            )
        if classify(Candidate(item.name, item.sql, "numeric", item.table, atom.categorical), item.dtype) in inputs:
            return
    names = list(dict.fromkeys(i.name for i in inputs))
    known = f"it has read {', '.join(names)}" if names else "it has read no predictor"
    kind = " as categories" if atom.categorical else ""
    raise FitError(
        f"{atom.name}: the fit has not read this predictor{kind}, and a model from its moments cannot; {known}: "
        "read the rows again with mlsql.fit"
    )


def predictor(products: Products, term: str) -> Atom:
    """The uncentred atom of a level-1 predictor, by the name of its column or of a term.

    Raises
    ------
    FitError
        When the fit has no such predictor, or it is a factor of more than two levels.
    """
    design, moments = products.complete()
    varying = varying_inputs(design, moments)
    known: dict[str, Atom] = {}
    for atom in design.spec.atoms:
        if atom.sql in varying:
            raw = replace(atom.plain(), name=design.schema.find(atom).name)
            known |= {raw.name: raw} if atom.kind == "group_mean" else {raw.name: raw, atom.name: raw}
    by_sql = {raw.sql: raw for raw in known.values()}
    columns = (*design.fixed.columns, *design.random)
    indicators = {v.name: by_sql[v.source] for c in columns for v in c.level1 if v.source in by_sql}
    found = (indicators | known).get(term)
    if found is None:
        names = ", ".join(dict.fromkeys(raw.name for raw in known.values()))
        raise FitError(f"{term!r} is not a level-1 predictor of this fit; its level-1 predictors: {names or 'none'}")
    assert design.survey is not None
    item = design.schema.find(found)
    levels = design.survey.levels[item.sql] if item.role == "factor" else ()
    if len(levels) > 2:
        raise FitError(
            f"{term}: the factor {item.name} has {len(levels)} levels, so its slopes go together; fit a 0/1 column of "
            "one level to see one slope"
        )
    return found


def simple_model(spec: ModelSpec, x: Atom) -> ModelSpec:
    """The outcome on one predictor, with a random intercept."""
    return replace(spec, fixed=(INTERCEPT, Term((x,))), random=(RandomBlock((INTERCEPT,), spec.keys),))


def with_group_means(products: Products) -> tuple[Estimates, list[tuple[str, str]]]:
    """The fit's model with the group mean of every level-1 predictor that is not centred within groups.

    1. Predictors whose mean is to be added.
    2. Means that the model's columns determine already are left out again.

    Returns
    -------
    estimates : Estimates
    left_out : list of (str, str)
        Terms without a mean in the model, each with the reason.
    """
    # 1
    design, moments = products.complete()
    spec, varying = design.spec, varying_inputs(design, moments)
    single = [t.atoms[0] for t in spec.fixed if len(t.atoms) == 1]
    present = {a.sql for a in single if a.kind == "group_mean"}
    added: dict[str, Term] = {}
    left_out: list[tuple[str, str]] = []
    for atom in single:
        if atom.kind == "group_mean" or atom.sql not in varying or atom.sql in present:
            continue
        if atom.centering == "group":
            left_out.append((atom.name, "centred within groups and its mean is not in the model: not tested"))
            continue
        raw = replace(atom.plain(), name=design.schema.find(atom).name)
        mean = replace(raw, name=f"group_mean({plain_text(raw)})", kind="group_mean")
        added[atom.sql] = Term((mean,))
    # 2
    whole = build_design(spec, design.schema, design.survey, varying=varying)
    kept = {c.name for c in design.fixed.columns}
    excluded = frozenset(c.name for c in whole.fixed.columns if c.name not in kept)
    wanted = submodel_moments(products, _with_terms(spec, added), excluded=excluded)
    collinear = {c.name: c.explained_by for c in collinear_columns(*wanted)}
    for column in wanted[0].fixed.columns:
        for variable in column.variables if column.name in collinear else ():
            if variable.origin == "group_mean" and variable.source in added:
                del added[variable.source]
                by = [name for name in collinear[column.name] if name != "(Intercept)"]
                why = f"a linear combination of {', '.join(by)}" if by else "the same in every group"
                left_out.append((column.name, f"{why}: not tested"))
    return submodel_estimates(products, _with_terms(spec, added), excluded=excluded), left_out


def _with_terms(spec: ModelSpec, added: Mapping[str, Term]) -> ModelSpec:
    return replace(spec, fixed=tuple(sorted((*spec.fixed, *added.values()), key=lambda t: len(t.atoms))))


def plain_text(atom: Atom) -> str:
    """An uncentred predictor as it stands within a call of the formula."""
    plain = atom.name if atom.name.isidentifier() else atom.sql
    return f"C({plain})" if atom.categorical else plain
