"""Result tables in a database, keyed by fit: written in one transaction, and shown from the tables alone."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
from sqlglot import exp

from mlsql._arrays import Array
from mlsql.design.columns import Column, Variable
from mlsql.design.membership import SUM_CALL
from mlsql.engine.duckdb import default_connection
from mlsql.engine.write import TableRows, read_rows, replace_rows
from mlsql.errors import StoreError
from mlsql.formula.terms import Atom
from mlsql.moments.shifts import Shifts
from mlsql.report import stored, tables
from mlsql.results.centering import factor_means
from mlsql.results.effects import group_effects, shrunken_design
from mlsql.results.estimates import Estimates
from mlsql.results.level_effects import LevelEffects, level_effects
from mlsql.sql.scoring import guarded
from mlsql.sql.syntax import aliased, call, column, name, render, scalar, shifted, times
from mlsql.version import package_version

if TYPE_CHECKING:
    import polars as pl

MANY_GROUPS = 5_000
"""Up to this many groups, of all factors together, their covariances are written without being asked for."""

SHOWN = ("fits", "fixed_effects", "variance_components")


def fit_identifier(estimates: Estimates, source: str) -> str:
    """Sixteen hexadecimal digits of the model, the data's name and its size."""
    spec, stats = estimates.design.spec, estimates.statistics
    weights = None if spec.weights is None else spec.weights.sql
    numbers = [estimates.deviance, *estimates.moments.pooled.diagonal()]
    parts = [spec.formula, spec.method, weights, source, stats.n_rows, stats.n_groups, [f"{x:.7e}" for x in numbers]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def write_tables(
    estimates: Estimates,
    source: str,
    warnings: Sequence[str],
    con: duckdb.DuckDBPyConnection,
    prefix: str,
    fixed_effects: pl.DataFrame,
    *,
    history: bool = False,
    covariances: bool | None = None,
) -> str:
    """See `Fit.to_tables`."""
    _check_connection(con)
    fit_id, groups = fit_identifier(estimates, source), _grouped(estimates)
    if covariances is None:
        covariances = sum(len(g.keys) for g in groups) <= MANY_GROUPS
    frames = {
        "fits": _fits(estimates, source, warnings),
        "fixed_effects": fixed_effects,
        "fixed_covariances": _fixed_covariances(estimates),
        "variance_components": tables.variance_components_table(estimates),
        "group_effects": _stacked([_group_effects(estimates, g) for g in groups]),
        "group_covariances": _stacked([_group_covariances(estimates, g, covariances) for g in groups]),
        "group_means": _stacked([_group_means(estimates, g) for g in groups]),
        "terms": _terms(estimates, fit_id, prefix),
    }
    rows = {label: _rows(fit_id, frame) for label, frame in frames.items()}
    past = {label: f"{prefix}history_{label}" if history else None for label in frames}
    replace_rows(con, fit_id, [TableRows(prefix + label, rows[label], past[label]) for label in frames])
    return fit_id


def show_stored(con: duckdb.DuckDBPyConnection, fit_id: str | None = None, prefix: str = "ml_") -> str:
    """A stored fit as text, from its tables alone; without a fit_id, the list of those stored.

    Raises
    ------
    StoreError
        When there are no result tables, or no such fit: with the identifiers nearest to it.
    """
    _check_connection(con)
    fits = read_rows(con, prefix + "fits")
    if fits is None:
        raise StoreError(f"there is no table {prefix}fits: no fit was stored here under the prefix {prefix!r}")
    if fit_id is None:
        return stored.listed(fits)
    known = [str(f["fit_id"]) for f in fits]
    if fit_id not in known:
        near = [k for k in known if k.startswith(fit_id)] or difflib.get_close_matches(fit_id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near[:3])}?" if near else f"stored are {', '.join(known[:5]) or 'none'}"
        if not near and len(known) > 5:
            hint += f", ... ({len(known)} in all)"
        raise StoreError(f"no fit {fit_id!r} is in {prefix}fits; {hint}")
    fit, fixed, components = (read_rows(con, prefix + label, fit_id) or [] for label in SHOWN)
    return stored.shown(fit[0], fixed, components)


def _check_connection(con: object) -> None:
    if not isinstance(con, duckdb.DuckDBPyConnection):
        raise StoreError(
            f"con is a {type(con).__name__}; pass an open DuckDB connection: duckdb.connect('results.duckdb')"
        )


def _rows(fit_id: str, frame: pl.DataFrame) -> pa.Table:
    import polars as pl

    return frame.select(pl.lit(fit_id).alias("fit_id"), pl.all()).to_arrow()


def _fits(estimates: Estimates, source: str, warnings: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    return tables.fit_statistics_table(estimates).with_columns(
        pl.lit(source).alias("source"),
        pl.lit(estimates.design.spec.group).alias("group"),
        pl.lit("\n".join(warnings)).alias("warnings"),
        pl.lit(package_version()).alias("mlsql_version"),
        pl.lit(datetime.now(tz=UTC)).alias("written_at"),
    )


def _fixed_covariances(estimates: Estimates) -> pl.DataFrame:
    """The whole matrix, one row per entry."""
    import polars as pl

    names, V = estimates.fixed_names, estimates.vcov
    pairs = [(a, b) for a in range(len(names)) for b in range(len(names))]
    return pl.DataFrame(
        {
            "term1": pl.Series([names[a] for a, _ in pairs], dtype=pl.String),
            "term2": pl.Series([names[b] for _, b in pairs], dtype=pl.String),
            "covariance": pl.Series([float(V[pair]) for pair in pairs], dtype=pl.Float64),
        }
    )


# groups


@dataclass(frozen=True, slots=True)
class _Groups:
    """The groups of one factor.

    Attributes
    ----------
    factor : str
    keys : polars.Series
        Text of each group's key.
    effects : LevelEffects or None
        None for a two-level model.
    """

    factor: str
    keys: pl.Series
    effects: LevelEffects | None


def _grouped(estimates: Estimates) -> list[_Groups]:
    if estimates.levels is None:
        return [_Groups(estimates.design.spec.group, _key_texts(estimates.moments.keys), None)]
    found = level_effects(estimates)
    return [_Groups(e.incidence.name, _key_texts(e.incidence.keys), e) for e in found]


def _stacked(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    import polars as pl

    return pl.concat(frames)


def _key_texts(keys: pa.Table) -> pl.Series:
    """One text per group as DuckDB itself casts keys, so that SQL finds them: see `_key_text`."""
    import polars as pl

    with default_connection() as con:
        con.register("mlsql_keys", keys.rename_columns([f"k{i}" for i in range(keys.num_columns)]))
        text = aliased(_key_text([column(f"k{i}") for i in range(keys.num_columns)]), "key")
        answer = con.sql(render(exp.select(text).from_(name("mlsql_keys")))).to_arrow_table()
        con.unregister("mlsql_keys")
    frame = pl.from_arrow(answer)
    assert isinstance(frame, pl.DataFrame)
    return frame.to_series()


def _key_text(keys: Sequence[exp.Expr]) -> exp.Expr:
    """The key as VARCHAR; a composite one as a JSON list of its parts, `["DE", "17"]`."""
    texts = [exp.cast(k, exp.DataType.Type.VARCHAR) for k in keys]
    if len(texts) == 1:
        return texts[0]
    parts = call("CONCAT_WS", exp.Literal.string(", "), *[call("TO_JSON", t) for t in texts])
    return exp.DPipe(this=exp.DPipe(this=exp.Literal.string("["), expression=parts), expression=exp.Literal.string("]"))


def _group_effects(estimates: Estimates, groups: _Groups) -> pl.DataFrame:
    """The accessor's table with one text column in place of the typed key columns, so that all fits share a table.

    Columns that there are not with several factors are NULL.
    """
    import polars as pl

    if groups.effects is None:
        (frame,) = tables.group_effects_tables(estimates)
    else:
        frame = tables.level_effects_table(groups.effects)
    absent = [pl.lit(None, dtype=pl.Float64).alias(c) for c in tables.EFFECT_COLUMNS if c not in frame.columns]
    frame = frame.with_columns(absent).select(tables.EFFECT_COLUMNS)
    return _of_groups(groups, groups.keys, frame.height // len(groups.keys), frame.get_columns())


def _of_groups(groups: _Groups, keys: pl.Series, times_each: int, columns: Sequence[Any]) -> pl.DataFrame:
    """Columns of several rows per group, in key order, after the factor's name and the group's key."""
    import polars as pl

    repeated = keys.gather(np.repeat(np.arange(len(keys)), times_each)).alias("key")
    return pl.DataFrame([repeated, *columns]).select(pl.lit(groups.factor).alias("group"), pl.all())


def _group_covariances(estimates: Estimates, groups: _Groups, wanted: bool) -> pl.DataFrame:
    """Covariances of the errors of a group's effects with each other and with those of the fixed effects."""
    import polars as pl

    own = groups.effects
    fixed, random = estimates.fixed_names, estimates.random_names if own is None else own.names
    labels = [("fixed", f, "random", r) for f in fixed for r in random]
    labels += [("random", a, "random", b) for a in random for b in random]
    J, values = 0, np.zeros(0)
    if wanted:
        J = len(groups.keys)
        shrunken = shrunken_design(estimates) if own is None else own.shrunken
        posterior = group_effects(estimates).posterior if own is None else own.posterior
        crossed = -np.einsum("fg,qgj->jfq", estimates.vcov, shrunken, optimize=True)
        among = np.moveaxis(posterior, 2, 0)
        values = np.concatenate([crossed.reshape(J, -1), among.reshape(J, -1)], axis=1).ravel()
    words = [pl.Series(n, [label[i] for label in labels], dtype=pl.String) for i, n in enumerate(PAIR)]
    tiled = [w.gather(np.tile(np.arange(len(labels)), J)) for w in words]
    return _of_groups(groups, groups.keys.head(J), len(labels), [*tiled, pl.Series("covariance", values)])


PAIR = ("effect1", "term1", "effect2", "term2")


def _group_means(estimates: Estimates, groups: _Groups) -> pl.DataFrame:
    """Group means that the model's columns are made of, on the user's scale."""
    import polars as pl

    used, bases = _averaged(estimates, groups), {b.sql: b for b in estimates.design.bases}
    labels = pl.Series("variable", [bases[v.sql].name for v in used], dtype=pl.String)
    of = None if groups.effects is None else groups.effects.incidence
    means: Array = np.array([factor_means(estimates, v, of) for v in used])
    J = len(groups.keys) if used else 0
    return _of_groups(
        groups,
        groups.keys.head(J),
        len(used),
        [labels.gather(np.tile(np.arange(len(used)), J)), pl.Series("mean", means.T.ravel(), dtype=pl.Float64)],
    )


def _averaged(estimates: Estimates, groups: _Groups) -> list[Variable]:
    """One variable for each column whose means of these groups the model uses."""
    found: dict[str, Variable] = {}
    for item in (*estimates.design.fixed.columns, *estimates.design.random):
        for v in item.variables:
            if (v.centering == "group" or v.origin == "group_mean") and v.group in (None, groups.factor):
                found.setdefault(v.sql, v)
    return [found[sql] for sql in estimates.design.means if sql in found]


# terms


def _terms(estimates: Estimates, fit_id: str, prefix: str) -> pl.DataFrame:
    """What the model reads and computes with, as SQL expressions of a row; columns on the user's scale."""
    import polars as pl

    spec, shifts = estimates.design.spec, Shifts(estimates.design, estimates.moments)
    rows: list[tuple[str, int, str, str, str | None, str | None]] = []

    def add_atoms(part: str, atoms: Sequence[Atom], group: str | None = None, table: str = "data") -> None:
        rows.extend((part, i, a.name, scalar(a.sql).sql("duckdb"), table, group) for i, a in enumerate(atoms))

    add_atoms("outcome", [spec.outcome])
    add_atoms("offset", spec.offset)
    add_atoms("weight", [] if spec.weights is None else [spec.weights])
    members = {i.name for i in estimates.moments.incidences if not i.ordinary}
    for factor in spec.factors:
        add_atoms("key", factor.keys, factor.name, "membership" if factor.name in members else "data")
    for part, columns in (("fixed", estimates.design.fixed.columns), ("random", estimates.design.random)):
        for i, item in enumerate(columns):
            sql = _column_sql(estimates, item, shifts, fit_id, prefix).sql("duckdb")
            places = dict.fromkeys(_table_of(v) for v in item.variables)
            group = estimates.factor_of(i) if part == "random" else None
            rows.append((part, i, item.name, sql, ", ".join(sorted(places)) or None, group))
    names = ("part", "position", "term", "sql", "in_table", "group")
    schema = dict.fromkeys(names, pl.String) | {"position": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _table_of(variable: Variable) -> str:
    """Where a variable is read: the sums over a membership's units are in no table of the user's."""
    if f"{SUM_CALL}(" in variable.name:
        return "membership"
    return "level2" if variable.origin == "level2" else "data"


def _column_sql(estimates: Estimates, item: Column, shifts: Shifts, fit_id: str, prefix: str) -> exp.Expr:
    if not item.variables:
        return exp.cast(exp.Literal.number(1), exp.DataType.Type.DOUBLE)
    factors = [_variable_sql(estimates, v, shifts, fit_id, prefix) for v in item.variables]
    return times([exp.paren(f) if isinstance(f, exp.Add | exp.Sub) and len(factors) > 1 else f for f in factors])


def _variable_sql(estimates: Estimates, variable: Variable, shifts: Shifts, fit_id: str, prefix: str) -> exp.Expr:
    """The user's value: NULL for NaN, for a factor level or a group that the fit did not see."""
    value = guarded(variable, estimates.design)
    if variable.origin == "group_mean":
        value = _mean_sql(estimates, variable, fit_id, prefix)
    elif variable.centering == "group":
        return exp.Sub(this=value, expression=_mean_sql(estimates, variable, fit_id, prefix))
    return shifted(value, shifts.user_shift(variable))


def _mean_sql(estimates: Estimates, variable: Variable, fit_id: str, prefix: str) -> exp.Expr:
    """The group's mean, looked up; under names of its own, for the row's columns may be called `key` or `mean`."""
    design = estimates.design
    base = next(b.name for b in design.bases if b.sql == variable.sql)
    names = [f"mlsql_{n}" for n in ("fit_id", "group", "key", "variable", "mean")]
    alias = exp.TableAlias(this=name("mlsql_means"), columns=[name(n) for n in names])
    factor = None if variable.group is None else design.spec.factor(variable.group)
    key = _key_text([scalar(k.sql) for k in (design.keys if factor is None else factor.keys)])
    conditions = [
        exp.EQ(this=column(names[0]), expression=exp.Literal.string(fit_id)),
        exp.EQ(this=column(names[2]), expression=key),
        exp.EQ(this=column(names[3]), expression=exp.Literal.string(base)),
    ]
    if factor is not None:
        conditions.insert(1, exp.EQ(this=column(names[1]), expression=exp.Literal.string(factor.name)))
    return (
        exp.select(column(names[4]))
        .from_(exp.Table(this=name(f"{prefix}group_means"), alias=alias))
        .where(*conditions)
        .subquery()
    )
