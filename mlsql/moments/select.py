"""Moments of another model on the same rows, taken out of those at hand: no scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlsql._arrays import Array
from mlsql.design.basis import Monomial
from mlsql.design.columns import Variable
from mlsql.design.design import Design
from mlsql.errors import DesignError
from mlsql.moments.moments import Moments

CONSTANT = 1e-12
"""A group's centred sum of squares below this share of the uncentred one is rounding: the value does not vary."""


def select(design: Design, moments: Moments, wanted: Design) -> Moments:
    """The moments that a query for `wanted` would give.

    Parameters
    ----------
    design, moments
        At hand, with all products by group.
    wanted : Design
        Of the same schema and survey; its level-1 products, group values and means are among those of `design`.

    Returns
    -------
    Moments

    Raises
    ------
    DesignError
        Naming what the moments at hand do not have.
    """
    if len(design.per_group) != len(design.sources) - 1:
        raise DesignError("the moments at hand have products by group for some sources only; complete them first")
    if (wanted.outcome, wanted.keys, wanted.schema.weight) != (design.outcome, design.keys, design.schema.weight):
        raise DesignError("the outcome, the groups or the weights are not those of the moments at hand")
    if moments.incidences or len(wanted.spec.factors) > 1:
        raise DesignError("moments are selected for models with one grouping factor")
    _check_bases(design, wanted)
    position = {source: s for s, source in enumerate(design.sources)}
    labels = {b.sql: b.name for b in wanted.bases}
    lacking = [":".join(labels[sql] for sql in s) for s in wanted.sources if s not in position]
    lacking += [f"{v.name} (one value per group)" for v in wanted.group_values if v not in design.group_values]
    lacking += [f"the mean of {labels[sql]} by group" for sql in _lacking_means(design, wanted)]
    if lacking:
        raise DesignError(f"the moments at hand do not have {', '.join(dict.fromkeys(lacking))}")
    chosen = [position[s] for s in wanted.sources]
    # the products of source s are row s - 1: the constant has its sums instead
    rows = [chosen[s] - 1 for s in wanted.per_group]
    return replace(
        moments,
        sums=moments.sums[chosen],
        products=moments.products[np.ix_(rows, chosen)],
        pooled=moments.pooled[np.ix_(chosen, chosen)],
        means=_stacked([_mean(design, moments, sql) for sql in wanted.means], moments),
        values=_stacked([moments.values[design.group_values.index(v)] for v in wanted.group_values], moments),
    )


def varying_inputs(design: Design, moments: Moments) -> frozenset[str]:
    """SQL of the inputs that vary within some group, as far as the moments tell: `build_design` takes it.

    Parameters
    ----------
    design, moments
        With all products by group.
    """
    variables = {v for c in (*design.fixed.columns, *design.random) for v in c.variables}
    return frozenset(
        v.source
        for v in variables
        if (v.level == 1 and v.centering != "group") or _varies(design, moments, (v.sql,), v)
    )


def _varies(design: Design, moments: Moments, source: Monomial, variable: Variable) -> bool:
    if variable.origin == "level2" or source not in design.sources:
        return False
    s = design.sources.index(source)
    squares = moments.products[s - 1, s]
    return bool(np.any(squares - moments.sums[s] ** 2 / moments.sums[0] > CONSTANT * squares))


def _check_bases(design: Design, wanted: Design) -> None:
    pivots = {b.sql: b.pivot for b in design.bases}
    for base in wanted.bases:
        if pivots.get(base.sql, base.pivot) != base.pivot:
            raise DesignError(f"{base.name} has another pivot in the moments at hand: they are of another survey")


def _lacking_means(design: Design, wanted: Design) -> list[str]:
    weighted = design.schema.weight is not None
    return [sql for sql in wanted.means if sql not in design.means and (weighted or (sql,) not in design.sources)]


def _mean(design: Design, moments: Moments, sql: str) -> Array:
    if sql in design.means:
        return np.asarray(moments.means[design.means.index(sql)])
    return np.asarray(moments.sums[design.sources.index((sql,))] / moments.n)


def _stacked(rows: list[Array], moments: Moments) -> Array:
    return np.array(rows, dtype=np.float64).reshape(len(rows), moments.n_groups)
