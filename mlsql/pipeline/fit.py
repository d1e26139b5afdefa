"""`fit` and `evaluate`: from data to estimates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from mlsql._arrays import Array
from mlsql._typing import Method
from mlsql.design.membership import Membership, MembershipTable, with_sums
from mlsql.engine.duckdb import Progress
from mlsql.errors import FitError
from mlsql.formula.spec import ModelSpec
from mlsql.likelihood.covariance import Covariance
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.scales import Scales
from mlsql.optimise.search import optimise
from mlsql.pipeline.analysis import Analysis, analyse
from mlsql.pipeline.factor_tables import level2_tables, prepare_factor_tables
from mlsql.pipeline.fitted import Fit
from mlsql.pipeline.membership import prepare_memberships
from mlsql.pipeline.objective import make_objective
from mlsql.pipeline.prepare import Inputs, make_inputs, make_spec
from mlsql.pipeline.products import Products
from mlsql.results.advice import advice
from mlsql.results.estimates import Estimates
from mlsql.status import Status

if TYPE_CHECKING:
    import duckdb


def fit(
    formula: str | ModelSpec,
    data: object,
    *,
    method: Method = "REML",
    con: duckdb.DuckDBPyConnection | None = None,
    level2: object = None,
    weights: str | None = None,
    groups: str | None = None,
    memberships: Mapping[str, Membership] | None = None,
    drop_collinear: bool = False,
    max_evaluations: int = 200,
    progress: Progress | None = None,
) -> Fit:
    """Fit a multilevel model; the rows stay where they are.

    Levels may be nested to any depth, `(year | school/child)`, factors crossed, `(1 | student) + (1 | lecturer)`, and
    rows may belong to several units (`memberships`).

    Parameters
    ----------
    formula : str or ModelSpec
        lme4's grammar, `mathach ~ ses + (ses | school)`, or level equations with `groups`.
    data : path, table name, SQL text, or frame
        Path or glob of Parquet or CSV; with `con` also a table name or SQL text; a DuckDB relation; a Polars
        DataFrame or LazyFrame; an Arrow table; a pandas frame.
    method : {"REML", "ML"}
        Restricted or full maximum likelihood.
    con : DuckDB connection, optional
        Where table names are looked up and queries run.  Nothing is written to it.
    level2 : like data, optional
        A second table with one row per group and the same key columns; joined after aggregation.  With several
        grouping factors a mapping from factor to table, `{"school": schools, "school:child": children}`; each is
        joined to the rows by its factor's keys.
    weights : str, optional
        Column or SQL expression of positive precision weights: Var(e_i) = sigma2 / w_i.  Centring uses unweighted
        means.
    groups : str, optional
        Grouping column(s) of level equations, `"school"`, `"country:school"`, or of three levels `"school/child"`.
    memberships : mapping of str to Membership, optional
        Factors whose groups come from a table of their own: several units to a row, with weights.
    drop_collinear : bool
        Leave out fixed columns that depend linearly on earlier ones instead of refusing them.
    max_evaluations : int
        Limit for the optimiser, over all starts.
    progress : callable, optional
        Called with a step's name and the share done while a query runs.

    Returns
    -------
    Fit

    Raises
    ------
    FormulaError, DataError, DesignError, QueryError, FitError

    Examples
    --------
    >>> import mlsql
    >>> fit = mlsql.fit("mathach ~ group_center(ses) + (group_center(ses) | school)", mlsql.example_data("hsb"))
    >>> round(fit.deviance, 3), fit.status.label
    (46714.234, 'converged')
    """
    spec = make_spec(formula, method, weights, groups)
    _check_limit(max_evaluations)
    spec, inputs, tables, noted = _tables(spec, data, level2, con, memberships or {})
    analysis = analyse(spec, inputs, memberships=tables, drop_collinear=drop_collinear, progress=progress)
    assembled = time.perf_counter()
    deviance = make_objective(analysis.design, analysis.moments, spec.method)
    started = time.perf_counter()
    found = optimise(deviance, max_evaluations=max_evaluations)
    seconds = {**analysis.seconds, "optimise": time.perf_counter() - started}
    seconds["pack"] += started - assembled
    estimates = Estimates.at_optimum(analysis.design, analysis.moments, deviance.statistics, found)
    return _fit(estimates, analysis, inputs, seconds, noted)


def evaluate(
    formula: str | ModelSpec,
    data: object,
    *,
    T: Array | Sequence[Sequence[float]] | float | Mapping[str, object],
    sigma2: float,
    method: Method = "REML",
    con: duckdb.DuckDBPyConnection | None = None,
    level2: object = None,
    weights: str | None = None,
    groups: str | None = None,
    memberships: Mapping[str, Membership] | None = None,
) -> Fit:
    """Everything a fit gives, at variance components that you choose: how printed tables are checked.

    Parameters
    ----------
    formula, data, method, con, level2, weights, groups, memberships
        As for `fit`.
    T : (q, q) array, a number for one random coefficient, or a mapping
        Covariance matrix of the random coefficients, in the formula's order; symmetric, positive semidefinite, zero
        between blocks of `||`.  With several grouping factors one matrix each, by the factor's name.
    sigma2 : float
        Level-1 variance, positive.

    Raises
    ------
    FitError
        When T or sigma2 are not variances.

    Examples
    --------
    >>> import mlsql
    >>> book = mlsql.evaluate("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"), T=8.61, sigma2=39.15)
    >>> book.fixed_effects["estimate"].round(2).to_list()
    [12.64]
    """
    spec = make_spec(formula, method, weights, groups)
    spec, inputs, tables, noted = _tables(spec, data, level2, con, memberships or {})
    analysis = analyse(spec, inputs, memberships=tables)
    started = time.perf_counter()
    deviance = make_objective(analysis.design, analysis.moments, spec.method)
    statistics = deviance.statistics
    L = _given_factor(statistics, _given_matrix(T, spec, statistics), sigma2)
    evaluation = deviance.at(L, sigma2=sigma2)
    singular = bool(np.any(np.diag(L) == 0.0))
    estimates = Estimates(
        analysis.design, analysis.moments, statistics, L, evaluation, Status.GIVEN, False, singular, 1, float("nan")
    )
    seconds = {**analysis.seconds, "optimise": time.perf_counter() - started}
    return _fit(estimates, analysis, inputs, seconds, noted)


def _tables(
    spec: ModelSpec,
    data: object,
    level2: object,
    con: duckdb.DuckDBPyConnection | None,
    memberships: Mapping[str, Membership],
) -> tuple[ModelSpec, Inputs, Mapping[str, MembershipTable], tuple[str, ...]]:
    """The data with the tables beside them, and what is to be said of these."""
    table, joined = level2_tables(spec, level2, memberships)
    inputs = make_inputs(data, table, con)
    found: Mapping[str, MembershipTable] = {}
    noted: tuple[str, ...] = ()
    if memberships:
        with inputs.engine() as engine:
            spec, inputs, found, noted = prepare_memberships(spec, inputs, memberships, engine)
    else:
        spec = with_sums(spec, {}, list)[0]
    inputs, said = prepare_factor_tables(spec, inputs, joined)
    return spec, inputs, found, (*noted, *said)


def _fit(
    estimates: Estimates, analysis: Analysis, inputs: Inputs, seconds: Mapping[str, float], noted: tuple[str, ...]
) -> Fit:
    warnings = (*noted, *analysis.warnings, *advice(estimates))
    products = Products(estimates, inputs)
    return Fit(estimates, inputs, analysis.plan, analysis.dropped, warnings, dict(seconds), products)


def _given_matrix(T: object, spec: ModelSpec, statistics: Scales) -> Array:
    """T of all random coefficients, from that of each factor where there are several."""
    if not isinstance(statistics, LevelStatistics):
        return _matrix(next(iter(T.values())) if isinstance(T, Mapping) and len(T) == 1 else T)
    names = [f.name for f in spec.factors]
    if not isinstance(T, Mapping):
        raise FitError(f"the model has {len(names)} grouping factors: T is a mapping with a matrix for each of {names}")
    whole, seen = np.zeros((statistics.q, statistics.q)), set()
    for name, value in T.items():
        factor = spec.factor(str(name))
        if factor is None:
            raise FitError(f"T has a matrix for {name!r}, which is no grouping factor of the model; they are {names}")
        places, matrix = statistics.columns[spec.factors.index(factor)], _matrix(value)
        if matrix.shape != (len(places), len(places)):
            raise FitError(f"T of {name} has shape {matrix.shape}, but {len(places)} coefficients vary over {name}")
        whole[np.ix_(places, places)] = matrix
        seen.add(factor.name)
    missing = [n for n in names if n not in seen]
    if missing:
        raise FitError(f"T has no matrix for {', '.join(missing)}; give one for every grouping factor")
    return whole


def _matrix(T: object) -> Array:
    try:
        return np.atleast_2d(np.asarray(T, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise FitError(f"T is {T!r}; it must be a matrix of numbers, or one number") from error


def _given_factor(statistics: Scales, T: Array, sigma2: float) -> Array:
    q = statistics.q
    if T.shape != (q, q):
        raise FitError(f"T has shape {T.shape}, but the model has {q} random coefficients: it must be ({q}, {q})")
    if not (isinstance(sigma2, Real) and np.isfinite(sigma2) and sigma2 > 0):
        raise FitError(f"sigma2 is {sigma2}; a level-1 variance is a positive number")
    if not np.allclose(T, T.T, rtol=1e-10, atol=0) or not np.all(np.isfinite(T)):
        raise FitError("T must be symmetric and finite")
    inverse = np.linalg.inv(statistics.u_transform)
    Lambda = inverse @ T @ inverse.T / sigma2
    scale = np.abs(np.diag(Lambda)).max(initial=0.0)
    covariance = Covariance(statistics.blocks)
    outside = np.ones((q, q), dtype=np.bool_)
    for s in covariance.slices:
        outside[s, s] = False
        values = np.linalg.eigvalsh(Lambda[s, s])
        if values[0] < -1e-8 * scale:
            raise FitError(
                f"T is not a covariance matrix: its block {T[s, s].tolist()} has a negative eigenvalue; a correlation "
                "is beyond +-1 or a variance negative"
            )
    if np.any(np.abs(T[outside]) > 0):
        raise FitError("T has covariances between coefficients that the formula keeps apart with ||; they must be 0")
    return covariance.factor(covariance.theta_of(Lambda, negligible=1e-10))


def _check_limit(max_evaluations: int) -> None:
    if not (isinstance(max_evaluations, int) and max_evaluations >= 2):
        raise FitError(f"max_evaluations is {max_evaluations}; at least 2 are needed")
