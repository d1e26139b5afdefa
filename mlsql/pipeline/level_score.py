"""Predictions and residuals with any of a model's grouping factors: one small table per factor goes to the database.

Standard errors are exact given the variances.  With effects of several factors they need the covariances between them:
one query finds the combinations of groups in the data, and a table with those covariances is joined too.  Where they
are not to be had the column is NULL, never an approximation:

- crossed factors have so many groups that the matrix of the rest is factorised sparse and its inverse never formed
  (the errors of one factor's effects need it only if the factor is a membership);
- the data hold more combinations than `JOINT_NUMBERS` allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array
from sqlglot import exp

from mlsql._arrays import Array, IntArray
from mlsql._typing import Unseen
from mlsql.design.columns import Variable
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError, FitError
from mlsql.formula.spec import ModelSpec
from mlsql.moments.incidence import Incidence
from mlsql.pipeline.newdata import check_new_data
from mlsql.pipeline.prepare import Inputs
from mlsql.results.estimates import Estimates
from mlsql.results.joint_effects import JointEffects, joint_effects
from mlsql.sql import level_scoring
from mlsql.sql.level_scoring import GROUP, UNKNOWN, FactorTable, LevelQuery
from mlsql.sql.plan import Step
from mlsql.sql.scoring import ScoreModel, effect_name, key_name
from mlsql.sql.syntax import name

JOINT_NUMBERS = 50_000_000
"""Combinations of groups times numbers of each: up to this many (0.4 GB) are brought here for the covariances of the
factors' effects.  Ten million combinations of two random intercepts need thirty million."""

SHOWN = 3
"""Unseen groups that an error names."""


def chosen_factors(spec: ModelSpec, terms: str | Sequence[str] | None) -> tuple[int, ...]:
    """Positions of the factors whose effects enter a prediction; see `Fit.predict`.

    Raises
    ------
    FitError
        When a name is no factor of the model.
    """
    factors = spec.factors
    if terms is None:
        return tuple(range(len(factors)))
    if terms == "none" and spec.factor(terms) is None:
        return ()
    found = set()
    for term in terms if isinstance(terms, Sequence) and not isinstance(terms, str) else (terms,):
        factor = spec.factor(term) if isinstance(term, str) else None
        if factor is None:
            raise FitError(
                f"terms has {term!r}, which is no grouping factor of the model; its factors are {spec.group}: name "
                "some of them, or pass () for none"
            )
        found.add(factors.index(factor))
    return tuple(sorted(found))


@contextmanager
def level_step(
    estimates: Estimates,
    model: ScoreModel,
    transforms: tuple[Array, Array],
    inputs: Inputs,
    engine: DuckDBEngine,
    wanted: Sequence[str],
    chosen: tuple[int, ...],
    unseen: Unseen,
) -> Iterator[Step]:
    """The statement that adds the wanted columns, while its tables are at hand.

    1. Check the data's columns.
    2. One table per factor; refuse groups that they do not have when unseen="error".
    3. The combinations of groups in the data, and the covariances of their effects.

    Parameters
    ----------
    estimates : Estimates
    model : ScoreModel
    transforms : (p, p), (q, q)
        From the internal columns to those of the model.
    inputs : Inputs
    engine : DuckDBEngine
    wanted : sequence of str
    chosen : tuple of int
        Positions of the factors whose effects are used.
    unseen : {"error", "population", "missing"}
    """
    design = estimates.design
    # 1
    means = _means(estimates, chosen)
    needed = (*chosen, *(t for t in means if t not in chosen))
    members = [design.spec.factors[t].name for t in needed if not _ordinary(estimates, t)]
    if members and not inputs.others:
        raise DataError(
            f"the units of {members[0]} come from a membership table, which new data do not have: predict the rows of "
            "the fit (no data=), or leave the factor's effects out: terms= the other factors, or () for none"
        )
    columns, errors = engine.columns(inputs.rows, "data"), "conditional_std_error" in wanted
    _check(estimates, chosen, needed, inputs, engine, columns, wanted)
    # 2
    with ExitStack() as stack:
        sets = {t: _sets(estimates, t) for t in needed if not _ordinary(estimates, t)}
        effects = None
        if chosen:
            effects = joint_effects(estimates, {t: weights for t, (_, weights) in sets.items()}, *transforms)
        tables = []
        for t in needed:
            factor, own = design.spec.factors[t], effects if t in chosen else None
            columns_of = () if own is None else _columns(own, t)
            table = _factor_table(estimates, own, model, t, sets[t][0] if t in sets else None, means.get(t, ()), errors)
            relation, keys = _registered(stack, engine, table), tuple(k.sql for k in factor.keys)
            tables.append(FactorTable(factor.name, keys, relation, columns_of, means.get(t, ()), t not in sets))
        # rows of a membership carry the number of their set in a column of ours, called like the factor
        ours = {f.name for t, f in enumerate(design.spec.factors) if inputs.others and not _ordinary(estimates, t)}
        ours |= {c for table in inputs.joined for c in table.columns}
        kept = tuple(c for c in columns if c not in ours)
        new = unseen == "population"
        query = LevelQuery(model, inputs.tables.rows, tuple(tables), None, not chosen, inputs.tables.level2, kept, new)
        if unseen == "error":
            _refuse_unseen(estimates, engine, query)
        # 3
        if effects is not None and errors:
            query = _with_covariances(stack, engine, query, effects, chosen)
        yield Step("score", "predictions or residuals of every row", level_scoring.level_query(query, wanted))


def _ordinary(estimates: Estimates, t: int) -> bool:
    return estimates.levels is None or estimates.levels.incidences[t].ordinary


def _means(estimates: Estimates, chosen: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
    """SQL of the columns whose group means are read, by position of the factor."""
    design, factors = estimates.design, estimates.design.spec.factors
    position = {f.name: t for t, f in enumerate(factors)}
    parts = [design.fixed, *(design.blocks[b] for t in chosen for b in factors[t].blocks)]
    used = dict.fromkeys(v for part in parts for c in part.columns for v in c.variables if _needs_mean(v))
    found: dict[int, dict[str, None]] = {}
    for v in used:
        found.setdefault(0 if v.group is None else position[v.group], {})[v.sql] = None
    return {t: tuple(sqls) for t, sqls in found.items()}


def _needs_mean(variable: Variable) -> bool:
    return variable.origin == "group_mean" or variable.centering == "group"


def _check(
    estimates: Estimates,
    chosen: tuple[int, ...],
    needed: tuple[int, ...],
    inputs: Inputs,
    engine: DuckDBEngine,
    columns: dict[str, str],
    wanted: Sequence[str],
) -> None:
    """Of the data only what these factors need: keys of others may be missing, unless nothing else is read."""
    design, factors = estimates.design, estimates.design.spec.factors
    keys = {k.sql for t in needed for k in factors[t].keys}
    everything = design.schema.has_level2 or not (keys or any(c.variables for c in design.fixed.columns))
    kept = tuple(i for i in design.schema.inputs if i.role != "key" or i.sql in keys or everything)
    blocks = tuple(design.blocks[b] for t in chosen for b in factors[t].blocks)
    reduced = replace(design, schema=replace(design.schema, inputs=kept), blocks=blocks)
    check_new_data(reduced, inputs, engine, columns, wanted)


def _registered(stack: ExitStack, engine: DuckDBEngine, table: pa.Table) -> exp.Expr:
    label = f"mlsql_groups_{id(table):x}"
    stack.enter_context(engine.registered(label, table))
    return exp.Table(this=name(label))


def _refuse_unseen(estimates: Estimates, engine: DuckDBEngine, query: LevelQuery) -> None:
    named = {k.sql: k.name for k in estimates.design.keys}
    found, advice = [], "unseen='population' to predict their effects as those of new groups, or unseen='missing' to"
    for factor in query.factors:
        answer = engine.query(level_scoring.unseen_step(query.data, factor, SHOWN))
        if not answer.num_rows:
            continue
        *keys, groups, rows = (column.to_pylist() for column in answer.columns)
        if not factor.single:
            advice = "unseen='missing' to"
            found.append(f"{rows[0]:,} rows have {groups[0]:,} sets of units of {factor.name}")
            continue
        labels = [named[k] for k in factor.keys]
        first = [", ".join(f"{c} {v}" for c, v in zip(labels, key, strict=True)) for key in zip(*keys, strict=True)]
        more = "; ..." if groups[0] > len(first) else ""
        found.append(f"{rows[0]:,} rows belong to {groups[0]:,} groups of {factor.name} ({'; '.join(first)}{more})")
    if found:
        raise DataError(f"{' and '.join(found)} that the fit did not see; pass {advice} leave them NULL")


def _columns(effects: JointEffects, t: int) -> tuple[int, ...]:
    """Positions of a factor's columns among all random ones."""
    return tuple(int(c) for c in effects.statistics.columns[t])


def _factor_table(
    estimates: Estimates,
    effects: JointEffects | None,
    model: ScoreModel,
    t: int,
    sets: pa.Table | None,
    means: tuple[str, ...],
    errors: bool,
) -> pa.Table:
    """One row per group, or per set of units of a membership, in the columns of the model."""
    levels, moments = estimates.levels, estimates.moments
    of = None if levels is None else levels.incidences[t]
    keys = sets if sets is not None else moments.keys if of is None else of.keys
    columns: dict[str, Any] = {key_name(i): column for i, column in enumerate(keys.columns)}
    columns[GROUP] = np.arange(keys.num_rows, dtype=np.int64)
    if effects is not None:
        places = _columns(effects, t)
        columns |= {effect_name("u", a): u for a, u in zip(places, effects.effects(t), strict=True)}
        if errors:
            moved = np.einsum("rf,afj->arj", np.array(model.root), effects.shrunken(t), optimize=True)
            own = effects.conditional(t)
            for i, a in enumerate(places):
                columns |= {effect_name("C", a, r): values for r, values in enumerate(moved[i])}
                columns |= {effect_name("K", a, b): own[i, k] for k, b in enumerate(places) if b <= a}
    pivots = {b.sql: b.pivot for b in estimates.design.bases}
    for i, sql in enumerate(means):
        values = moments.means[estimates.design.means.index(sql)]
        if of is not None:
            values = of.total(values * moments.n) / of.total(moments.n.astype(np.float64))
        columns[effect_name("mean", i)] = values + pivots[sql]
    return pa.table(columns)


def _sets(estimates: Estimates, t: int) -> tuple[pa.Table, csr_array]:
    """Sets of units that rows have: their numbers, and the weights (sets, units)."""
    levels, moments = estimates.levels, estimates.moments
    assert levels is not None
    of: Incidence = levels.incidences[t]
    assert of.weight is not None
    sets, first = np.unique(moments.keys.column(of.name).to_numpy(), return_index=True)
    whole = csr_array((of.weight, (of.cell, of.group)), shape=(moments.n_groups, of.n_groups))
    return pa.table({of.name: sets}), csr_array(whole[first])


def _with_covariances(
    stack: ExitStack, engine: DuckDBEngine, query: LevelQuery, effects: JointEffects, chosen: tuple[int, ...]
) -> LevelQuery:
    """The query with the covariances of the factors' effects, for the combinations of groups in the data.

    Without them (see `Fit.predict`) it leaves the standard error NULL.
    """
    if len(chosen) == 1:
        return replace(query, exact=effects.complete or query.acting[0].single)
    if not effects.complete:
        return query
    limit = JOINT_NUMBERS // (len(chosen) + len(level_scoring.crossing(query.acting)))
    answer = engine.query(level_scoring.combinations_step(query, limit + 1))
    if answer.num_rows > limit:
        return query
    numbers = [np.asarray(column.to_numpy(), dtype=np.int64) for column in answer.columns]
    columns: dict[str, Any] = {key_name(i): column for i, column in enumerate(numbers)}
    for i, t in enumerate(chosen):
        for k, s in enumerate(chosen[:i]):
            for (a, b), values in _covariances(effects, t, numbers[i], s, numbers[k]).items():
                columns[effect_name("K", a, b)] = values
    return replace(query, joint=_registered(stack, engine, pa.table(columns)), exact=True)


def _covariances(effects: JointEffects, t: int, j: IntArray, s: int, k: IntArray) -> dict[tuple[int, int], Array]:
    """Covariances of groups' effects by pair of random columns; zero where a group is unknown."""
    both = (j != UNKNOWN) & (k != UNKNOWN)
    # few pairs among many combinations: each once
    pairs, at = np.unique(j[both] * effects.n_groups(s) + k[both], return_inverse=True)
    S = effects.covariance(t, pairs // effects.n_groups(s), s, pairs % effects.n_groups(s))
    found = {}
    for m, a in enumerate(_columns(effects, t)):
        for n, b in enumerate(_columns(effects, s)):
            found[a, b] = np.zeros(len(j))
            found[a, b][both] = S[m, n, at]
    return found
