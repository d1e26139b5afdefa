"""Tables of models with several grouping factors: the factors, how they lie to each other, where the variance is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from mlsql.inference.fixed_effects import check_level
from mlsql.results.estimates import Estimates
from mlsql.results.partition import (
    LevelMatrix,
    Parts,
    Share,
    Shared,
    SlopeParts,
    factor_columns,
    factor_names,
)
from mlsql.results.points import Points
from mlsql.results.relations import Relation, Spread
from mlsql.results.variance import icc_kind

if TYPE_CHECKING:
    import polars as pl


def factors_table(estimates: Estimates) -> pl.DataFrame:
    """One row per grouping factor, in the model's order.

    Columns: factor, groups, rows_min, rows_mean, rows_max (rows of a group), terms (its random coefficients),
    groups_per_row (mean; more than 1 in a membership), solution ("absorbed": group by group, at a cost that grows with
    their number; "joint": in one matrix with other such groups), position (in which it is absorbed, the finest first).
    """
    import polars as pl

    levels, moments, names = estimates.levels, estimates.moments, estimates.random_names
    chain = (0,) if levels is None else levels.structure.chain
    rows: list[dict[str, Any]] = []
    for t, (factor, places) in enumerate(zip(factor_names(estimates), factor_columns(estimates), strict=True)):
        sizes, per_row = moments.n, 1.0
        if moments.incidences:
            incidence = moments.incidences[t]
            sizes = incidence.rows(moments.n)
            if not incidence.ordinary:
                per_row = float(moments.n[incidence.cell].sum()) / moments.n_rows
        rows.append(
            {"factor": factor, "groups": len(sizes)}
            | _spread("rows", Spread.of(sizes))
            | {
                "terms": ", ".join(names[c] for c in places),
                "groups_per_row": per_row,
                "solution": "absorbed" if t in chain else "joint",
                "position": chain.index(t) + 1 if t in chain else None,
            }
        )
    return pl.DataFrame(rows, schema_overrides={"position": pl.Int64})


def structure_table(found: Sequence[Relation]) -> pl.DataFrame:
    """One row per pair of factors; no row in a two-level model.

    Columns: factor1, factor2, relation, inner (the factor that is nested in the other, else null), occupied (pairs of
    groups with rows in common), possible, share, one_row (occupied pairs with one row), degree1_min, degree1_mean,
    degree1_max (groups of factor2 that a group of factor1 meets), degree2_min, degree2_mean, degree2_max, rows_min,
    rows_mean, rows_max (rows of an occupied pair).
    """
    import polars as pl

    rows = [
        {
            "factor1": r.first,
            "factor2": r.second,
            "relation": r.kind,
            "inner": r.inner,
            "occupied": r.occupied,
            "possible": r.possible,
            "share": r.occupied / r.possible,
            "one_row": r.single,
        }
        | _spread("degree1", r.first_degrees)
        | _spread("degree2", r.second_degrees)
        | _spread("rows", r.rows)
        for r in found
    ]
    schema: dict[str, Any] = dict.fromkeys(("factor1", "factor2", "relation", "inner"), pl.String)
    schema |= {"occupied": pl.Int64, "possible": pl.Int64, "share": pl.Float64, "one_row": pl.Int64}
    for name in ("degree1", "degree2", "rows"):
        schema |= {f"{name}_min": pl.Int64, f"{name}_mean": pl.Float64, f"{name}_max": pl.Int64}
    return pl.DataFrame(rows, schema=schema)


def partition_table(estimates: Estimates, parts: Parts, points: Points, level: float = 0.95) -> pl.DataFrame:
    """One row per point and source of variance, level 1 last.

    Columns: the points' (random slopes only), factor ("Residual" for level 1), variance, share, std_error, conf_low,
    conf_high (of the share, on the logit scale), kind ("unconditional"; "conditional" when the model has predictors).
    """
    shares = [parts.share([t]) for t in range(len(parts.names))]
    m = parts.variance.shape[1]
    columns: dict[str, Any] = {"factor": list(parts.names) * m, "variance": parts.variance.T.ravel()}
    columns |= _shares(shares, "share", level) | {"kind": [icc_kind(estimates)] * (len(shares) * m)}
    return _frame(points, len(shares), columns)


def intra_unit_correlations_table(
    estimates: Estimates, parts: Parts, sets: Sequence[Shared], points: Points, level: float = 0.95
) -> pl.DataFrame:
    """One row per point and set of groups that two rows share: the correlation of their outcomes.

    Columns: the points' (random slopes only), same (factors whose group the two rows share), different (the others;
    null when there is none), correlation, std_error, conf_low, conf_high (on the logit scale), kind.
    """
    import polars as pl

    names, m = parts.names, parts.variance.shape[1]
    shares = [parts.share(s.same) for s in sets]
    columns: dict[str, Any] = {
        "same": [", ".join(names[t] for t in s.same) for s in sets] * m,
        "different": [", ".join(names[t] for t in s.different) or None for s in sets] * m,
    }
    columns |= _shares(shares, "correlation", level) | {"kind": [icc_kind(estimates)] * (len(sets) * m)}
    return _frame(points, len(sets), columns, {"different": pl.String})


def slope_shares_table(found: Sequence[SlopeParts], level: float = 0.95) -> pl.DataFrame:
    """One row per coefficient and factor of a nesting over which it varies, the finest first.

    Columns: term, factor, variance, share (of its variance over these factors), std_error, conf_low, conf_high.
    """
    import polars as pl

    frames = []
    for each in found:
        shares = [each.parts.share([t]) for t in range(len(each.parts.names))]
        columns = {"term": [each.term] * len(shares), "factor": list(each.parts.names)}
        frames.append(_plain(columns | {"variance": each.parts.variance[:, 0]} | _shares(shares, "share", level)))
    return pl.concat(frames)


def level_correlations_table(matrices: Sequence[LevelMatrix]) -> pl.DataFrame:
    """Every entry of one matrix per factor: covariances below the diagonal, correlations above.

    Columns: factor, term1 (row), term2 (column), quantity ("variance", "covariance", "correlation"), value (null for a
    correlation with a coefficient that does not vary).
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("factor", "term1", "term2", "quantity", "value")}
    for matrix in matrices:
        mixed = matrix.mixed
        for a, row in enumerate(matrix.terms):
            for b, column in enumerate(matrix.terms):
                quantity = "variance" if a == b else "covariance" if a > b else "correlation"
                entry = (matrix.factor, row, column, quantity, float(mixed[a, b]))
                for name, value in zip(columns, entry, strict=True):
                    columns[name].append(value)
    return _plain(columns)


def _spread(name: str, spread: Spread) -> dict[str, Any]:
    return {f"{name}_min": spread.minimum, f"{name}_mean": spread.mean, f"{name}_max": spread.maximum}


def _shares(shares: Sequence[Share], name: str, level: float) -> dict[str, Any]:
    """Columns of k shares at m points, point after point."""
    check_level(level)
    z = float(ndtri(0.5 + level / 2.0))
    limits = [s.interval(z) for s in shares]
    every = {
        name: [s.estimate for s in shares],
        "std_error": [s.error for s in shares],
        "conf_low": [low for low, _ in limits],
        "conf_high": [high for _, high in limits],
    }
    return {label: np.array(values).T.ravel() for label, values in every.items()}


def _frame(
    points: Points, repeats: int, columns: Mapping[str, Any], types: Mapping[str, Any] | None = None
) -> pl.DataFrame:
    """A frame that begins with the points; a predictor called like a result is shown as `at_<name>`."""
    shown = [f"at_{v.name}" if v.name in columns else v.name for v in points.variables]
    return _plain({**dict(zip(shown, np.repeat(points.values, repeats, axis=1), strict=True)), **columns}, types)


def _plain(columns: Mapping[str, Any], types: Mapping[str, Any] | None = None) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(columns, schema_overrides=types).with_columns(pl.selectors.float().fill_nan(None))
