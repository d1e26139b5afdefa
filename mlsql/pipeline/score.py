"""Predictions and residuals: the group table goes to the database, the rows stay there."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy.linalg import block_diag, cholesky
from sqlglot import exp

from mlsql._arrays import Array
from mlsql._typing import Unseen
from mlsql.design.columns import Variable
from mlsql.design.design import Part
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError, StoreError
from mlsql.moments.shifts import Shifts
from mlsql.pipeline.factor_tables import new_inputs
from mlsql.pipeline.level_score import chosen_factors, level_step
from mlsql.pipeline.newdata import check_new_data
from mlsql.pipeline.prepare import Inputs
from mlsql.results.effects import conditional_variance, eb_residuals, least_squares, shrunken_design
from mlsql.results.estimates import Estimates
from mlsql.sql import scoring
from mlsql.sql.plan import Step
from mlsql.sql.syntax import name

if TYPE_CHECKING:
    import duckdb
    import polars as pl

Build = Callable[[scoring.ScoreQuery], exp.Expr]


def score_predictions(
    estimates: Estimates,
    inputs: Inputs,
    data: object,
    *,
    into: str | os.PathLike[str] | None,
    con: duckdb.DuckDBPyConnection | None,
    level2: object,
    unseen: Unseen,
    replace: bool,
    terms: str | Sequence[str] | None = None,
) -> pl.DataFrame | None:
    """See `Fit.predict`."""
    if unseen not in ("error", "population", "missing"):
        raise DataError(f"unseen is {unseen!r}; it is 'error', 'population' or 'missing'")
    if data is None:
        if level2 is not None:
            raise DataError("level2 belongs to new data; pass data as well")
        chosen = inputs if con is None else dataclasses.replace(inputs, con=con)
    else:
        chosen = new_inputs(estimates, data, level2, con if con is not None else inputs.con)
    columns = scoring.PREDICTION_COLUMNS
    return score_rows(estimates, chosen, scoring.prediction_query, columns, into, unseen, replace, terms)


def score_residuals(
    estimates: Estimates,
    inputs: Inputs,
    *,
    into: str | os.PathLike[str] | None,
    con: duckdb.DuckDBPyConnection | None,
    replace: bool,
) -> pl.DataFrame | None:
    """See `Fit.residuals`."""
    chosen = inputs if con is None else dataclasses.replace(inputs, con=con)
    columns = [c for c in scoring.RESIDUAL_COLUMNS if estimates.levels is None or c != "residual_ols"]
    return score_rows(estimates, chosen, scoring.residual_query, columns, into, "missing", replace)


def score_rows(
    estimates: Estimates,
    inputs: Inputs,
    build: Build,
    added: Sequence[str],
    into: str | os.PathLike[str] | None,
    unseen: Unseen,
    replace: bool,
    terms: str | Sequence[str] | None = None,
) -> pl.DataFrame | None:
    """Run a scoring query: that of `build` for the one grouping factor of a two-level model, else one of its own.

    1. The statement, while the tables of group effects are at hand.
    2. Return the rows, or write them in one statement.
    """
    chosen = chosen_factors(estimates.design.spec, terms)
    with inputs.engine() as engine:
        # 1
        if estimates.levels is not None or not chosen:
            pivoted, model = _pivoted(estimates), score_model(estimates)
            steps = level_step(estimates, model, (pivoted.beta, pivoted.u), inputs, engine, added, chosen, unseen)
        else:
            steps = _group_step(estimates, inputs, engine, build, added, unseen)
        # 2
        with steps as step:
            if into is None:
                import polars as pl

                frame = pl.from_arrow(engine.query(step))
                assert isinstance(frame, pl.DataFrame)
                return frame
            _write(engine, step, os.fspath(into), replace, inputs)
            return None


@contextmanager
def _group_step(
    estimates: Estimates, inputs: Inputs, engine: DuckDBEngine, build: Build, added: Sequence[str], unseen: Unseen
) -> Iterator[Step]:
    """The statement of a two-level model.

    1. Check the data's columns.
    2. Bring the group table to the engine; with unseen="error", refuse groups it does not have.
    """
    # 1
    columns = engine.columns(inputs.rows, "data")
    check_new_data(estimates.design, inputs, engine, columns, added)
    # 2
    with registered(engine, group_table(estimates)) as groups:
        query = scoring.ScoreQuery(
            score_model(estimates),
            inputs.tables.rows,
            groups,
            inputs.tables.level2,
            tuple(columns),
            unseen == "population",
        )
        if unseen == "error":
            _refuse_unseen(engine, query)
        yield Step("score", "predictions or residuals of every row", build(query))


def _write(engine: DuckDBEngine, step: Step, into: str, replace: bool, inputs: Inputs) -> None:
    if into.lower().endswith((".parquet", ".csv")):
        _write_file(engine, step, into, replace)
        return
    if inputs.con is None and inputs.rows.duckdb_relation is None:
        raise StoreError(
            f"into={into!r} is a table: pass con=, the connection to make it on; or a path ending in .parquet"
        )
    parts = into.split(".") if re.fullmatch(r"\w+(\.\w+){1,2}", into) else [into]
    table = exp.Table(**dict(zip(("this", "db", "catalog"), map(name, reversed(parts)), strict=False)))
    if not replace and engine.exists(table):
        raise StoreError(f"the table {into!r} exists; choose another name or pass replace=True")
    engine.create_table(table, step, replace=replace)


def _write_file(engine: DuckDBEngine, step: Step, into: str, replace: bool) -> None:
    """Write beside the target and move into place, so that an interruption leaves no half file."""
    target = Path(into).expanduser()
    if target.exists() and not target.is_file():
        raise StoreError(f"{into} is no ordinary file; name one ending in .parquet or .csv")
    if target.exists() and not replace:
        raise StoreError(f"the file {into} exists; choose another name or pass replace=True")
    if not target.parent.exists():
        raise StoreError(f"the folder {target.parent} does not exist; make it first")
    partial = str(target.with_name(f".mlsql-{secrets.token_hex(8)}{target.suffix}"))
    try:
        engine.copy_to(step, partial, "parquet" if target.suffix.lower() == ".parquet" else "csv")
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


@contextmanager
def registered(engine: DuckDBEngine, table: pa.Table) -> Iterator[exp.Expr]:
    """The group table as a relation of the engine's statements."""
    label = f"mlsql_groups_{id(table):x}"
    with engine.registered(label, table):
        yield exp.Table(this=name(label))


def _refuse_unseen(engine: DuckDBEngine, query: scoring.ScoreQuery) -> None:
    answer = engine.query(Step("unseen groups", "rows of groups that the fit did not see", scoring.unseen_query(query)))
    rows, groups = (int(column[0].as_py()) for column in answer.columns)
    if rows:
        raise DataError(
            f"{rows:,} rows belong to {groups:,} groups that the fit did not see; pass unseen='population' to predict "
            "them as new groups, or unseen='missing' to leave them NULL"
        )


@dataclass(frozen=True, slots=True)
class _Pivoted:
    """Transforms from the internal columns to the pivoted ones that the query computes in.

    Attributes
    ----------
    beta : (p, p)
    u : (q, q)
    """

    beta: Array
    u: Array


def _pivoted(estimates: Estimates) -> _Pivoted:
    design, stats = estimates.design, estimates.statistics
    shifts = Shifts(design, estimates.moments)
    random = block_diag(*[shifts.to_user(block) for block in design.blocks])
    return _Pivoted(shifts.to_user(design.fixed) @ stats.beta_transform, random @ stats.u_transform)


def score_model(estimates: Estimates) -> scoring.ScoreModel:
    """The numbers of a fit that scoring queries need."""
    design, shifts, pivoted = estimates.design, Shifts(estimates.design, estimates.moments), _pivoted(estimates)
    V = pivoted.beta @ estimates.evaluation.beta_covariance @ pivoted.beta.T
    root = pivoted.u @ estimates.L
    return scoring.ScoreModel(
        design=design,
        fixed_shifts=_constants(design.fixed, shifts),
        random_shifts=tuple(_constants(block, shifts) for block in design.blocks for _ in block.columns),
        beta=tuple((pivoted.beta @ estimates.evaluation.beta).tolist()),
        constant=design.outcome.pivot if design.has_intercept else 0.0,
        root=tuple(tuple(row) for row in cholesky(V, lower=False).tolist()),
        T=tuple(tuple(row) for row in (estimates.sigma2 * root @ root.T).tolist()),
        sigma=float(np.sqrt(estimates.sigma2)),
        means=design.means,
    )


def _constants(part: Part, shifts: Shifts) -> dict[Variable, float]:
    """What the part's basis subtracts from each variable that is not centred within groups."""
    variables = {v for c in part.columns for v in c.variables if v.centering != "group"}
    return {v: v.pivot if v in part.pivoted else shifts.user_shift(v) for v in variables}


def group_table(estimates: Estimates) -> pa.Table:
    """One row per group: keys, effects, and what the standard errors need, in the pivoted columns."""
    design, moments, pivoted = estimates.design, estimates.moments, _pivoted(estimates)
    u = eb_residuals(estimates, pivoted.u)
    ols = least_squares(estimates, pivoted.u).u
    K = conditional_variance(estimates, pivoted.u)
    C = shrunken_design(estimates, pivoted.u, pivoted.beta)
    columns: dict[str, Any] = {scoring.key_name(i): column for i, column in enumerate(moments.keys.columns)}
    for a in range(estimates.statistics.q):
        columns[scoring.effect_name("u", a)] = u[a]
        columns[scoring.effect_name("ols", a)] = pa.array(ols[a], from_pandas=True)
        for f in range(C.shape[1]):
            columns[scoring.effect_name("C", a, f)] = C[a, f]
        for b in range(a + 1):
            columns[scoring.effect_name("K", a, b)] = K[a, b]
    pivots = {b.sql: b.pivot for b in design.bases}
    for i, sql in enumerate(design.means):
        columns[scoring.effect_name("mean", i)] = moments.means[i] + pivots[sql]
    return pa.table(columns)
