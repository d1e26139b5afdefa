"""Residual diagnostics that read the rows: summaries of level-1 residuals, and values of candidate predictors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import sqlglot
from scipy.special import ndtri
from sqlglot import exp

from mlsql._arrays import Array, IntArray
from mlsql.design.design import Design
from mlsql.design.schema import Candidate, Table, columns_read, require_columns
from mlsql.diagnostics.dispersion import shape
from mlsql.diagnostics.enter import simple_regressions
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError, DesignError, FormulaError
from mlsql.formula.atoms import column_atom, sql_atom
from mlsql.moments.moments import Moments
from mlsql.pipeline.newdata import check_new_data
from mlsql.pipeline.prepare import Inputs, types_of
from mlsql.pipeline.products import Products
from mlsql.pipeline.score import group_table, registered, score_model
from mlsql.results.effects import eb_residuals, least_squares
from mlsql.results.estimates import Estimates
from mlsql.results.one_factor import require_one_factor
from mlsql.sql.candidates import GroupCandidate, candidates_step
from mlsql.sql.plan import Step
from mlsql.sql.residual_summaries import Residuals, Value, analysis_rows, bins_step, free_labels, summary_step
from mlsql.sql.scoring import ScoreQuery
from mlsql.sql.syntax import scalar

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

ResidualKind = Literal["residual", "residual_population", "residual_ols", "residual_standardized"]

EXACT_ROWS = 1_000_000
"""Up to this many rows quantiles are exact; beyond, they come from the engine's digest.  Measured at 10 M rows and 99
quantiles: 17 s exact (DuckDB 1.4; 2 s in 2.0), 0.6 s by digest, which is off by less than 0.001 in probability."""

MAX_VALUES = 1_000
PROBABILITIES = {"q01": 0.01, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "q99": 0.99}


@dataclass(frozen=True, slots=True)
class _Expression:
    """A column or expression of the user: its text, SQL over one table, and whether its group mean is meant."""

    text: str
    sql: str
    table: Table
    averaged: bool = False


def summarise(products: Products, by: str | None, kind: ResidualKind) -> pl.DataFrame:
    """See `Diagnostics.residuals`."""
    import polars as pl

    limit = None if by is None else MAX_VALUES + 1

    def build(residuals: Residuals, labels: list[str]) -> Step:
        return summary_step(residuals, tuple(PROBABILITIES.values()), labels, limit)

    answer, scale = _run(products, kind, [] if by is None else [by], build)
    if answer.num_rows > MAX_VALUES:
        raise DataError(
            f"by={by!r} has more than {MAX_VALUES:,} values; by_group() compares groups and against() intervals of a "
            "number, or pass an expression with fewer values"
        )
    _check_rows(products, int(_floats(answer, "rows").sum()))
    first = {} if by is None else {"value": pl.from_arrow(answer.column(0))}
    frame = _shape_frame(answer, scale, first)
    lists = answer.column("quantiles").to_pylist()
    quantiles = {
        label: [None if found is None else found[i] * scale for found in lists] for i, label in enumerate(PROBABILITIES)
    }
    frame = frame.with_columns(**{k: pl.Series(v, dtype=pl.Float64) for k, v in quantiles.items()})
    return frame if by is None else frame.sort("value", nulls_last=True)


def quantile_pairs(products: Products, points: int) -> pl.DataFrame:
    """See `Diagnostics.qq`."""
    import polars as pl

    _whole("points", points, 1, 10_000)
    probabilities = np.arange(1, points + 1) / (points + 1)
    shares = tuple(float(p) for p in probabilities)
    answer, _ = _run(products, "residual_standardized", [], lambda residuals, _: summary_step(residuals, shares))
    _check_rows(products, int(_floats(answer, "rows").sum()))
    found = answer.column("quantiles")[0].as_py()
    return pl.DataFrame({"probability": probabilities, "quantile": found, "normal_quantile": ndtri(probabilities)})


def summarise_groups(products: Products, kind: ResidualKind) -> pl.DataFrame:
    """See `Diagnostics.by_group`."""
    moments = products.estimates.moments
    answer, scale = _run(products, kind, [], lambda residuals, keys: summary_step(residuals, (), keys), keys=True)
    _check_groups(moments, answer, "rows")
    return _shape_frame(answer, scale, key_columns(moments), only=("n", "mean", "sd", "skewness", "min", "max"))


def summarise_bins(products: Products, predictor: str, bins: int, kind: ResidualKind) -> pl.DataFrame:
    """See `Diagnostics.against`."""
    import polars as pl

    _whole("bins", bins, 2, 100)

    def build(residuals: Residuals, labels: list[str]) -> Step:
        return bins_step(residuals, labels[0], bins)

    answer, scale = _run(products, kind, [predictor], build, numeric=True)
    _check_rows(products, int(_floats(answer, "rows").sum()))
    # whatever the connection's order of NULLs, rows without a value come last
    places = _floats(answer, "bin")
    answer, complete = answer.take(np.argsort(places, kind="stable")), int(np.isfinite(places).sum())
    first = {
        "bin": pl.Series([i + 1 if i < complete else None for i in range(answer.num_rows)], dtype=pl.Int64),
        "predictor_min": _series(_floats(answer, "x min")),
        "predictor_max": _series(_floats(answer, "x max")),
        "predictor_mean": _series(_floats(answer, "x mean")),
    }
    frame = _shape_frame(answer, scale, first, only=("n", "mean", "sd"))
    return frame.with_columns((pl.col("sd") / pl.col("n").sqrt()).alias("std_error"))


def enter_table(products: Products, candidates: Sequence[str]) -> pl.DataFrame:
    """See `Diagnostics.to_enter`."""
    import polars as pl

    estimates = products.estimates
    if isinstance(candidates, str) or not candidates:
        raise FormulaError("candidates is a list of columns or SQL expressions: to_enter(['size', 'ln(size)'])")
    require_one_factor(estimates, "diagnostics.to_enter() is", "compare fits with the candidate and without")
    found, values = _candidate_values(estimates, products.inputs, candidates)
    eb = simple_regressions(eb_residuals(estimates), values)
    ols = simple_regressions(least_squares(estimates).u, values)
    t, rows = eb.t, []
    for a, term in enumerate(estimates.random_names):
        for b in sorted(range(len(found)), key=lambda b: -np.nan_to_num(abs(t[a, b]), nan=-1.0)):
            rows.append(
                {
                    "term": term,
                    "candidate": found[b].text,
                    "coefficient": eb.coefficient[a, b],
                    "std_error": eb.std_error[a, b],
                    "t": t[a, b],
                    "correlation_eb": eb.correlation[a, b],
                    "correlation_ols": ols.correlation[a, b],
                    "groups": int(eb.groups[a, b]),
                    "groups_ols": int(ols.groups[a, b]),
                    "missing": int(np.isnan(values[b]).sum()),
                    "in_equation": _in_equation(estimates, a, found[b]),
                }
            )
    return pl.DataFrame(rows).with_columns(pl.selectors.float().fill_nan(None))


def key_columns(moments: Moments) -> dict[str, Any]:
    """The groups' keys as series, by name."""
    import polars as pl

    return {k: pl.from_arrow(c) for k, c in zip(moments.keys.column_names, moments.keys.columns, strict=True)}


def frame_of(first: Mapping[str, Any], columns: Mapping[str, Any]) -> pl.DataFrame:
    """Keys and results side by side; a key called like a result is shown as `group_<key>`."""
    import polars as pl

    return pl.DataFrame({(f"group_{k}" if k in columns else k): v for k, v in first.items()} | dict(columns))


def _run(
    products: Products,
    kind: ResidualKind,
    texts: Sequence[str],
    build: Callable[[Residuals, list[str]], Step],
    *,
    keys: bool = False,
    numeric: bool = False,
) -> tuple[pa.Table, float]:
    """Run a summary over the analysis' rows; the answer, and what its residuals were divided by.

    1. Check the data's columns, locate the expressions to compare by.
    2. Bring the group table to the engine.
    3. One statement.
    """
    if kind not in get_args(ResidualKind):
        raise DataError(f"kind is {kind!r}; it is one of {', '.join(map(repr, get_args(ResidualKind)))}")
    estimates, inputs = products.estimates, products.inputs
    methods = "diagnostics.residuals(), qq(), by_group() and against() are"
    require_one_factor(estimates, methods, "fit.residuals() has the residuals of every row")
    design = estimates.design
    with inputs.engine() as engine:
        # 1
        columns = engine.columns(inputs.rows, "data")
        check_new_data(design, inputs, engine, columns, ())
        upper = _level2_columns(inputs, engine)
        found = [_locate(text, design, columns, upper) for text in texts]
        types = _expression_types(found, inputs, engine)
        for expression, dtype in zip(found, types, strict=True):
            if expression.averaged or (numeric and not _is_number(dtype)):
                raise DataError(_not_a_number(expression, dtype))
        trees = [(scalar(e.sql), e.table == "level2") for e in found]
        trees += [(scalar(k.sql), False) for k in design.keys] if keys else []
        labels = free_labels("mlsql by", len(trees), [*columns, *(upper or {})])
        values = [Value(label, tree, above) for label, (tree, above) in zip(labels, trees, strict=True)]
        # 2
        with registered(engine, group_table(estimates)) as groups:
            query = ScoreQuery(
                model=score_model(estimates),
                data=analysis_rows(design, inputs.tables, values),
                groups=groups,
                level2=inputs.tables.level2,
                columns=tuple(labels),
                unseen=False,
            )
            scale = 1.0 if kind == "residual_standardized" else float(np.sqrt(estimates.sigma2))
            exact = estimates.moments.n_rows <= EXACT_ROWS
            # 3
            return engine.query(build(Residuals(query, kind, scale, exact), labels)), scale


def _candidate_values(
    estimates: Estimates, inputs: Inputs, candidates: Sequence[str]
) -> tuple[list[_Expression], Array]:
    """The candidates located, and their (c, J) values, nan where a group has none."""
    design, moments = estimates.design, estimates.moments
    with inputs.engine() as engine:
        columns, upper = engine.columns(inputs.rows, "data"), _level2_columns(inputs, engine)
        found = [_locate(text, design, columns, upper) for text in candidates]
        for expression, dtype in zip(found, _expression_types(found, inputs, engine), strict=True):
            if not _is_number(dtype):
                raise DataError(_not_a_number(expression, dtype))
        wanted = [GroupCandidate(e.text, e.sql, e.table, e.averaged) for e in found]
        answer = engine.query(candidates_step(design, inputs.tables, wanted))
    _check_groups(moments, answer, "n")
    values = np.empty((len(found), moments.n_groups))
    for i, expression in enumerate(found):
        low, high = _floats(answer, f"low {i}"), _floats(answer, f"high {i}")
        varies = int(np.sum(low < high))
        if varies:
            raise DataError(
                f"candidate {expression.text} varies within {varies:,} of {moments.n_groups:,} groups; a level-2 "
                f"predictor has one value per group: group_mean({expression.text})"
            )
        there = low[np.isfinite(low)]
        if not len(there) or there.min() == there.max():
            state = f"is {there[0]:g} in every group" if len(there) else "has no value in any group"
            raise DataError(f"candidate {expression.text} {state}; leave it out")
        values[i] = low
    return found, values


def _locate(text: object, design: Design, rows: Mapping[str, str], level2: Mapping[str, str] | None) -> _Expression:
    """Validate the user's text as a scalar expression and find its table, the level-2 table first as in a formula."""
    if not isinstance(text, str):
        raise FormulaError(f"{text!r} is a {type(text).__name__}; write the column or SQL expression as text")
    known = {c.lower() for c in (*rows, *(level2 or {}))}
    sql, averaged = (column_atom(text) if text.lower() in known else sql_atom(text)).sql, False
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    if isinstance(tree, exp.Anonymous) and tree.name.lower() == "group_mean" and len(tree.expressions) == 1:
        sql, averaged = tree.expressions[0].sql("duckdb"), True
    if level2 is None:
        require_columns(text, sql, rows)
        return _Expression(text, sql, "rows", averaged)
    lower, upper = {c.lower() for c in rows}, {c.lower() for c in level2}
    keys = {c.lower() for key in design.keys for c in columns_read(key.sql)}
    used = [c for c in columns_read(sql) if c.lower() not in keys]
    require_columns(text, sql, {**rows, **level2})
    if used and all(c.lower() in upper for c in used):
        return _Expression(text, sql, "level2", averaged)
    above = [c for c in used if c.lower() not in lower]
    if above:
        raise DesignError(
            f"{text} mixes columns of the data and of the level2 table ({', '.join(above)}); add the column to one "
            "table"
        )
    return _Expression(text, sql, "rows", averaged)


def _level2_columns(inputs: Inputs, engine: DuckDBEngine) -> Mapping[str, str] | None:
    return None if inputs.level2 is None else engine.columns(inputs.level2, "level2")


def _expression_types(found: Sequence[_Expression], inputs: Inputs, engine: DuckDBEngine) -> list[str]:
    tables = {"rows": inputs.tables.rows, "level2": inputs.tables.level2}
    types = []
    for expression in found:
        relation = tables[expression.table]
        assert relation is not None
        candidate = Candidate(expression.text, expression.sql, "numeric", expression.table)
        types += types_of(engine, relation, [candidate])
    return types


def _is_number(dtype: str) -> bool:
    kind = dtype.split("(", maxsplit=1)[0].upper()
    return kind in ("FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN", "BIGNUM") or kind.endswith("INT") or kind == "INTEGER"


def _not_a_number(expression: _Expression, dtype: str) -> str:
    if expression.averaged and _is_number(dtype):
        return f"{expression.text}: residuals are compared by a row's value; leave out group_mean()"
    return (
        f"{expression.text} has type {dtype}; a number is needed: compare text with a value, {expression.text} = 'a', "
        "which counts as 0 and 1, or convert it"
    )


def _in_equation(estimates: Estimates, random: int, candidate: _Expression) -> bool:
    columns = [estimates.design.fixed.columns[f] for f in estimates.equation_members(random)]
    alone = [c.level2[0] for c in columns if len(c.level2) == 1]
    return any(v.sql == candidate.sql and (v.origin == "group_mean") == candidate.averaged for v in alone)


def _check_rows(products: Products, rows: int) -> None:
    if rows != products.estimates.moments.n_rows:
        raise DataError(
            f"the data have changed since the fit: it saw {products.estimates.moments.n_rows:,} complete rows, now "
            f"there are {rows:,}; fit again"
        )


def _check_groups(moments: Moments, answer: pa.Table, count: str) -> None:
    """The answer's first columns are the fit's keys, its counts the fit's."""
    keys = answer.select(list(range(moments.keys.num_columns))).rename_columns(moments.keys.column_names)
    n: IntArray = answer.column(count).to_numpy()
    if not (keys.equals(moments.keys) and np.array_equal(n, moments.n)):
        raise DataError(
            f"the data have changed since the fit: it saw {moments.n_rows:,} rows in {moments.n_groups:,} groups, now "
            f"there are {int(n.sum()):,} in {answer.num_rows:,}; fit again"
        )


def _shape_frame(
    answer: pa.Table, scale: float, first: Mapping[str, Any], only: Sequence[str] | None = None
) -> pl.DataFrame:
    """Counts, shape and range of the residuals, back on their own scale."""
    import polars as pl

    n = _floats(answer, "n")
    found = shape(n, np.array([_floats(answer, f"sum {k}") for k in range(1, 5)]))
    columns: dict[str, Any] = {
        "n": pl.Series(n.astype(np.int64)),
        "mean": _series(found.mean * scale),
        "sd": _series(found.sd * scale),
        "skewness": _series(found.skewness),
        "kurtosis": _series(found.kurtosis),
    }
    columns |= {s: _series(_floats(answer, s) * scale) for s in ("min", "max") if s in answer.column_names}
    return frame_of(first, {k: v for k, v in columns.items() if only is None or k in only})


def _series(values: Array) -> pl.Series:
    import polars as pl

    return pl.Series(values).fill_nan(None)


def _floats(answer: pa.Table, label: str) -> Array:
    return np.asarray(answer.column(label).to_numpy(), dtype=np.float64)


def _whole(label: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise DataError(f"{label} is {value!r}; it is a whole number from {low} to {high:,}")
