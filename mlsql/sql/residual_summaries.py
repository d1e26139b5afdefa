"""Summaries of level-1 residuals as one statement each: the residual query stays inside, only aggregates come out.

The rows are those of the analysis.  Values by which residuals are compared are computed beside the data's columns,
under names of their own, before the rows are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.design import Design
from mlsql.sql.moments import model_rows
from mlsql.sql.plan import Step
from mlsql.sql.scoring import ScoreQuery, residual_query
from mlsql.sql.survey import Tables
from mlsql.sql.syntax import aliased, call, column, name, number, scalar, times, unique

PAIRS, CUTS, BINNED = "mlsql_pairs", "mlsql_cuts", "mlsql_binned"
POWERS = 4


@dataclass(frozen=True, slots=True)
class Value:
    """What residuals are compared by.

    Attributes
    ----------
    label : str
        A name that neither table has.
    tree : sqlglot expression
        Over the columns of its table.
    level2 : bool
    """

    label: str
    tree: exp.Expr
    level2: bool = False


@dataclass(frozen=True, slots=True)
class Residuals:
    """Which residuals are summarised.

    Attributes
    ----------
    query : ScoreQuery
        Over `analysis_rows`.
    kind : str
        Column of the residual query.
    scale : float
        Divides the residual, so that sums of powers are of order one.
    exact : bool
        Quantiles from all values, which are held and sorted; else from a digest of them.
    """

    query: ScoreQuery
    kind: str
    scale: float
    exact: bool


def free_labels(prefix: str, count: int, taken: Sequence[str]) -> list[str]:
    """Names for added columns that the data do not have."""
    return unique([f"{prefix} {i}" for i in range(count)], taken)


def analysis_rows(design: Design, tables: Tables, values: Sequence[Value]) -> exp.Expr:
    """The complete rows with the values beside their columns, as a relation."""
    upper = [v for v in values if v.level2]
    items = [aliased(v.tree, v.label) for v in values if not v.level2]
    lower = model_rows(design, tables, keys=False).select(exp.Star(), *items, append=False)
    if not upper:
        return lower.subquery("analysis")
    assert tables.level2 is not None
    keys = [f"mlsql upper {i}" for i in range(len(design.keys))]
    above = exp.select(
        *[aliased(scalar(k.sql), label) for k, label in zip(design.keys, keys, strict=True)],
        *[aliased(v.tree, v.label) for v in upper],
    ).from_(tables.level2.copy())
    on = [
        exp.EQ(this=scalar(k.sql), expression=column(label, "above"))
        for k, label in zip(design.keys, keys, strict=True)
    ]
    both = exp.select(exp.Column(this=exp.Star(), table=name("below")), *[column(v.label, "above") for v in upper])
    both = both.from_(lower.subquery("below")).join(above.subquery("above"), on=exp.and_(*on), join_type="left")
    return both.subquery("analysis")


def summary_step(
    residuals: Residuals, probabilities: Sequence[float], by: Sequence[str] = (), limit: int | None = None
) -> Step:
    """Shape of the residuals, of all rows or by the named columns.

    Row layout: the columns, rows, residuals, sums of their first to fourth powers, smallest, largest, list of
    quantiles (when there are probabilities).
    """
    r = column("residual")
    items: list[tuple[str, exp.Expr]] = [
        ("rows", exp.Count(this=exp.Star())),
        ("n", exp.Count(this=r.copy())),
        *[(f"sum {k}", exp.Sum(this=times([r.copy()] * k))) for k in range(1, POWERS + 1)],
        ("min", exp.Min(this=r.copy())),
        ("max", exp.Max(this=r.copy())),
    ]
    if probabilities:
        items.append(("quantiles", _quantiles(residuals, r, probabilities, "QUANTILE_CONT")))
    columns = [column(b) for b in by]
    query = exp.select(*columns, *[aliased(tree, label) for label, tree in items])
    query = query.from_(_scaled(residuals, {b: column(b) for b in by}).subquery("residuals"))
    if columns:
        query = query.group_by(*[c.copy() for c in columns]).order_by(*[c.copy() for c in columns])
    if limit is not None:
        query = query.limit(limit)
    return Step("residual summary", "counts, sums of powers and quantiles of the residuals", query)


def bins_step(residuals: Residuals, predictor: str, bins: int) -> Step:
    """Residuals by intervals of a predictor that hold equally many rows; equal values stay together.

    Row layout: bin (NULL for rows without a value), rows, residuals, predictor's minimum, maximum and mean, sums of
    the residuals' first to fourth powers.
    """
    x, r, cuts = column("x"), column("residual"), column("cuts")
    value = exp.cast(column(predictor), exp.DataType.Type.DOUBLE)
    finite = exp.Case(ifs=[exp.If(this=call("ISFINITE", value), true=value.copy())])
    pairs = _scaled(residuals, {"x": finite})
    shares = [k / bins for k in range(1, bins)]
    found = exp.select(aliased(_quantiles(residuals, x, shares, "QUANTILE_DISC"), "cuts")).from_(name(PAIRS))
    above = [
        exp.cast(
            exp.GT(this=x.copy(), expression=call("LIST_EXTRACT", cuts.copy(), exp.Literal.number(k))),
            exp.DataType.Type.INT,
        )
        for k in range(1, bins)
    ]
    place: exp.Expr = above[0]
    for other in above[1:]:
        place = exp.Add(this=place, expression=other)
    binned = (
        exp.select(x.copy(), r.copy(), aliased(place, "bin")).from_(name(PAIRS)).join(name(CUTS), join_type="cross")
    )
    items: list[tuple[str, exp.Expr]] = [
        ("rows", exp.Count(this=exp.Star())),
        ("n", exp.Count(this=r.copy())),
        ("x min", exp.Min(this=x.copy())),
        ("x max", exp.Max(this=x.copy())),
        ("x mean", exp.Avg(this=x.copy())),
        *[(f"sum {k}", exp.Sum(this=times([r.copy()] * k))) for k in range(1, POWERS + 1)],
    ]
    query = exp.select(column("bin"), *[aliased(tree, label) for label, tree in items]).from_(name(BINNED))
    query = query.group_by(column("bin")).order_by(column("bin"))
    query = query.with_(name(PAIRS), as_=pairs, materialized=True).with_(name(CUTS), as_=found)
    return Step("residuals by bins", "residuals by intervals of a predictor", query.with_(name(BINNED), as_=binned))


def _scaled(residuals: Residuals, kept: Mapping[str, exp.Expr]) -> exp.Select:
    """The residuals divided by their scale, with chosen expressions over the kept columns."""
    r = column(residuals.kind)
    scaled: exp.Expr = r if residuals.scale == 1.0 else exp.Div(this=r, expression=number(residuals.scale))
    items = [aliased(tree, label) for label, tree in kept.items()]
    rows = residual_query(residuals.query).subquery("scored")
    return exp.select(*items, aliased(scaled, "residual")).from_(rows)


def _quantiles(residuals: Residuals, tree: exp.Expr, probabilities: Sequence[float], exact: str) -> exp.Expr:
    shares = exp.Array(expressions=[number(p) for p in probabilities])
    return call(exact if residuals.exact else "APPROX_QUANTILE", tree.copy(), shares)
