"""What each SQL table function returns: its columns with their types, and the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlsql.design.basis import Monomial
from mlsql.pipeline.compare import compare
from mlsql.report.fixed import fixed_effects_table
from mlsql.report.tables import EFFECT_COLUMNS, group_effects_tables
from mlsql.surfaces.sql_fit import Call, analyse_cells, fit_cells

if TYPE_CHECKING:
    import polars as pl

    from mlsql.pipeline.fitted import Fit

Answers = tuple[pa.StructArray, ...]
"""The answer of each query: one for every model."""

_TEXT, _NUMBER, _COUNT, _FLAG = "VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN"
_ARROW = {_TEXT: pa.string(), _NUMBER: pa.float64(), _COUNT: pa.int64(), _FLAG: pa.bool_()}


def _columns(**types: str) -> dict[str, str]:
    return {name: dtype for dtype, names in types.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class TableFunction:
    """A table function.

    Attributes
    ----------
    models : int
        Formulas it takes, each with a query of its own.
    settings : mapping of str to str or None
        Named arguments with their defaults.
    columns : mapping of name to SQL type
    rows : callable
        Answers to a frame with at least these columns.
    """

    models: int
    settings: Mapping[str, str | None]
    columns: Mapping[str, str]
    rows: Callable[[Answers], pl.DataFrame]

    @property
    def arrow(self) -> pa.DataType:
        """The type of a row."""
        return pa.struct([(name, _ARROW[dtype]) for name, dtype in self.columns.items()])

    def packed(self, answers: Answers) -> pa.Array:
        """The rows as one list."""
        table = self.rows(answers).select(list(self.columns)).to_arrow()
        table = table.cast(pa.schema(list(self.arrow)))
        rows = pa.StructArray.from_arrays([c.combine_chunks() for c in table.columns], fields=list(self.arrow))
        return pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)


def _parameters(answers: Answers) -> pl.DataFrame:
    """One row per parameter, and the fit's statistics."""
    import polars as pl

    call, fit = fit_cells(answers[0])
    # a few rows are put together faster as such than as frames
    rows = [{**row, "effect": "fixed"} for row in _beside_robust(call, fit).to_dicts()]
    for row in fit.variance_components.to_dicts():
        rows.append({**row, "effect": "variance", "term": row["term1"], "statistic": row["chi2"]})
    for name, value in fit.statistics.row(0, named=True).items():
        if isinstance(value, int | float):
            rows.append({"effect": "statistic", "term": name, "estimate": value})
    types = {_TEXT: pl.String, _NUMBER: pl.Float64}
    schema = {name: types[dtype] for name, dtype in FUNCTIONS["ml_fit"].columns.items()}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema, strict=False)


def _fixed_effects(answers: Answers) -> pl.DataFrame:
    return _beside_robust(*fit_cells(answers[0]))


def _beside_robust(call: Call, fit: Fit) -> pl.DataFrame:
    """The tests asked for, with CR0 errors beside them: the cells hold what these need."""
    return fixed_effects_table(fit.estimates, fit.robust_or_reason(), fit.reference(call.df, call.vcov))


def _variance_components(answers: Answers) -> pl.DataFrame:
    return fit_cells(answers[0])[1].variance_components


def _group_effects(answers: Answers) -> pl.DataFrame:
    import polars as pl

    fit = fit_cells(answers[0])[1]
    parts = []
    for factor, frame in zip(fit.spec.factors, group_effects_tables(fit.estimates), strict=True):
        names = [c for c in frame.columns if c not in EFFECT_COLUMNS]
        key = pl.Series("key", key_texts(frame.select(names).to_arrow()), dtype=pl.String)
        # with several factors there are no least-squares columns
        own = [pl.col(c) if c in frame.columns else pl.lit(None, pl.Float64).alias(c) for c in EFFECT_COLUMNS]
        parts.append(frame.select(pl.lit(factor.name).alias("group"), key, *own))
    return pl.concat(parts)


def _fit_statistics(answers: Answers) -> pl.DataFrame:
    import polars as pl

    fit = fit_cells(answers[0])[1]
    told = {"source": fit.inputs.rows.label, "group": fit.spec.group}
    told |= {"dropped": "; ".join(fit.dropped), "warnings": "; ".join(fit.warnings)}
    return fit.statistics.with_columns([pl.lit(text or None, pl.String).alias(name) for name, text in told.items()])


def _comparison(answers: Answers) -> pl.DataFrame:
    return compare(*[fit_cells(answer)[1] for answer in answers])


def _moments(answers: Answers) -> pl.DataFrame:
    """Sums by group of products of pivoted columns; values and means that are one per group."""
    import numpy as np
    import polars as pl

    found = analyse_cells(answers[0])[1]
    design, moments = found.design, found.moments
    labels = {b.sql: _shifted(b.name, b.pivot) for b in design.bases}
    terms = [_term(source, labels) for source in design.sources]
    rows: list[tuple[str, str, str | None, Any]] = [("sum", "1", term, moments.sums[s]) for s, term in enumerate(terms)]
    for s in range(1, len(terms)):
        rows += [("sum", terms[s], terms[t], moments.products[s - 1, t]) for t in range(s, len(terms))]
    rows += [("mean", labels[sql], None, moments.means[i]) for i, sql in enumerate(design.means)]
    rows += [
        ("group value", _shifted(v.name, v.pivot), None, moments.values[i]) for i, v in enumerate(design.group_values)
    ]
    groups = pl.DataFrame({"key": key_texts(moments.keys), "n": moments.n}, schema={"key": pl.String, "n": pl.Int64})
    frames = [
        groups.with_columns(
            pl.lit(kind).alias("kind"),
            pl.lit(first).alias("term1"),
            pl.lit(second, pl.String).alias("term2"),
            pl.Series("value", np.asarray(values, dtype=np.float64)),
        )
        for kind, first, second, values in rows
    ]
    order = np.arange(moments.n_groups * len(frames)).reshape(len(frames), -1).T.ravel()
    return pl.concat(frames)[order]


def key_texts(keys: pa.Table) -> list[str]:
    """Keys as text: a composite one is a JSON list of its parts, as in `Fit.to_tables`."""
    columns = [column.cast(pa.string()).to_pylist() for column in keys.columns]
    if len(columns) == 1:
        return [str(key) for key in columns[0]]
    return [json.dumps(list(parts), ensure_ascii=False) for parts in zip(*columns, strict=True)]


def _term(source: Monomial, labels: Mapping[str, str]) -> str:
    return " * ".join(labels[sql] for sql in source) or "1"


def _shifted(name: str, pivot: float) -> str:
    if not pivot:
        return name
    return f"({name} {'-' if pivot > 0 else '+'} {abs(pivot)!r})"


_MODEL: dict[str, str | None] = {"method": "REML", "level2": None, "weights": None, "groups": None}
_INFERENCE: dict[str, str | None] = {"method": "REML", "df": "hlm", "vcov": "model", **_MODEL}

_ESTIMATE = "estimate std_error df statistic p_value conf_low conf_high"

FUNCTIONS: dict[str, TableFunction] = {
    "ml_fit": TableFunction(
        1,
        _INFERENCE,
        _columns(VARCHAR="effect group term term2")
        | _columns(DOUBLE="estimate sd_or_corr std_error df statistic p_value conf_low conf_high robust_std_error")
        | _columns(DOUBLE="robust_ratio", VARCHAR="note"),
        _parameters,
    ),
    "ml_fixed_effects": TableFunction(
        1,
        _INFERENCE,
        _columns(VARCHAR="term")
        | _columns(DOUBLE=f"{_ESTIMATE} robust_std_error robust_ratio")
        | _columns(VARCHAR="df_method vcov centering note"),
        _fixed_effects,
    ),
    "ml_variance_components": TableFunction(
        1,
        _MODEL,
        _columns(VARCHAR="group term1 term2", DOUBLE="estimate sd_or_corr std_error conf_low conf_high chi2")
        | _columns(BIGINT="df")
        | _columns(DOUBLE="p_value")
        | _columns(BIGINT="groups_used")
        | _columns(DOUBLE="reliability"),
        _variance_components,
    ),
    "ml_group_effects": TableFunction(
        1,
        _MODEL,
        _columns(VARCHAR="group key term") | _columns(DOUBLE=" ".join(EFFECT_COLUMNS[1:-1])) | _columns(BIGINT="n"),
        _group_effects,
    ),
    "ml_fit_statistics": TableFunction(
        1,
        _MODEL,
        _columns(VARCHAR="formula method source group", BIGINT="n_rows n_groups")
        | _columns(DOUBLE="deviance log_likelihood aic bic", BIGINT="n_parameters n_covariance_parameters")
        | _columns(DOUBLE="sigma2 icc", BOOLEAN="converged singular", VARCHAR="status", BIGINT="evaluations")
        | _columns(DOUBLE="promised_decrease", VARCHAR="dropped warnings"),
        _fit_statistics,
    ),
    "ml_moments": TableFunction(
        1,
        _MODEL,
        _columns(VARCHAR="key") | _columns(BIGINT="n") | _columns(VARCHAR="kind term1 term2", DOUBLE="value"),
        _moments,
    ),
    "ml_compare": TableFunction(
        2,
        {**_MODEL, "method": "ML"},
        _columns(VARCHAR="model", BIGINT="n_parameters", DOUBLE="deviance aic bic")
        | _columns(VARCHAR="against", DOUBLE="chi2", BIGINT="df")
        | _columns(DOUBLE="p_value", VARCHAR="mixture")
        | _columns(DOUBLE="mixture_p_value sigma2 intercept_variance explained_level1 explained_intercept")
        | _columns(VARCHAR="baseline method formula note"),
        _comparison,
    ),
}
