"""Result tables as Polars frames: tidy, scalar columns, snake_case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from mlsql._arrays import Array
from mlsql.inference.fixed_effects import check_level
from mlsql.inference.reference import Reference
from mlsql.report.fixed import inference_table
from mlsql.results.components import component_errors, homogeneity_tests
from mlsql.results.constancy import predictor_levels
from mlsql.results.effects import group_effects
from mlsql.results.estimates import Estimates
from mlsql.results.level_effects import LevelEffects, level_effects
from mlsql.results.measures import aic, bic, correlation, icc

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


EFFECT_COLUMNS = (
    "term",
    "estimate",
    "std_error",
    "conditional_sd",
    "coefficient",
    "coefficient_std_error",
    "ols_estimate",
    "ols_std_error",
    "ols_coefficient",
    "reliability",
    "n",
)


def variance_components_table(estimates: Estimates, level: float = 0.95) -> pl.DataFrame:
    """One row per variance and covariance, the level-1 variance last (group "Residual").

    Columns: group, term1, term2 (null for a variance), estimate (variance scale), sd_or_corr, std_error, conf_low,
    conf_high (variances on the log scale, covariances symmetric), chi2, df, p_value, groups_used, reliability.
    """
    import polars as pl

    check_level(level)
    T, errors, tests = estimates.T, component_errors(estimates), homogeneity_tests(estimates)
    names = estimates.random_names
    groups = [estimates.factor_of(q) for q in range(len(names))]
    z = float(ndtri(0.5 + level / 2.0))
    rows: list[dict[str, Any]] = []
    for q, test in enumerate(tests):
        low, high = _log_interval(T[q, q], errors.T[q, q], z)
        rows.append(
            _row(groups[q], names[q], None, T[q, q], np.sqrt(T[q, q]), errors.T[q, q], low, high)
            | {
                "chi2": test.chi2,
                "df": test.df if np.isfinite(test.chi2) else None,
                "p_value": test.p_value,
                "groups_used": test.groups,
                "reliability": test.reliability,
            }
        )
    for s in estimates.covariance.slices:
        for b in range(s.start, s.stop):
            for a in range(b + 1, s.stop):
                corr = correlation(T, a, b)
                half = z * errors.T[a, b]
                rows.append(
                    _row(groups[a], names[b], names[a], T[a, b], corr, errors.T[a, b], T[a, b] - half, T[a, b] + half)
                )
    s2 = estimates.sigma2
    low, high = _log_interval(s2, errors.sigma2, z)
    rows.append(_row("Residual", None, None, s2, np.sqrt(s2), errors.sigma2, low, high))
    types = {"group": pl.String, "term1": pl.String, "term2": pl.String}
    numbers = ("estimate", "sd_or_corr", "std_error", "conf_low", "conf_high", "chi2")
    schema = types | dict.fromkeys(numbers, pl.Float64) | {"df": pl.Int64, "p_value": pl.Float64}
    schema |= {"groups_used": pl.Int64, "reliability": pl.Float64}
    return pl.DataFrame(rows, schema=schema).with_columns(pl.selectors.float().fill_nan(None))


def group_effects_tables(estimates: Estimates) -> tuple[pl.DataFrame, ...]:
    """For each grouping factor one row per group and random coefficient, in key order.

    Columns: the key column(s), term, estimate (EB residual), std_error (posterior, with the fixed effects'
    uncertainty), conditional_sd (with the fixed effects known), coefficient (fixed part + EB residual),
    coefficient_std_error, ols_estimate, ols_std_error, ols_coefficient (null for groups of deficient rank),
    reliability, n (rows).  A key called like one of the others is shown as `group_<key>`.  With several factors the
    columns are key(s), term, estimate, std_error, conditional_sd, reliability, n.
    """
    import polars as pl

    if estimates.levels is not None:
        return tuple(level_effects_table(found) for found in level_effects(estimates))
    found = group_effects(estimates)
    keys = _key_frame(estimates.moments.keys)
    frames = []
    for q, name in enumerate(estimates.random_names):
        frames.append(
            keys.with_columns(
                pl.lit(name).alias("term"),
                _column("estimate", found.u[q]),
                _column("std_error", _sd(found.posterior[q, q])),
                _column("conditional_sd", _sd(found.conditional[q, q])),
                _column("coefficient", found.fixed_part[q] + found.u[q]),
                _column("coefficient_std_error", _sd(found.coefficient[q, q])),
                _column("ols_estimate", found.ols_u[q]),
                _column("ols_std_error", np.sqrt(found.ols_variance[q])),
                _column("ols_coefficient", found.fixed_part[q] + found.ols_u[q]),
                _column("reliability", found.reliability[q]),
                pl.Series("n", estimates.moments.n),
            )
        )
    return (_by_group(frames),)


def level_effects_table(found: LevelEffects) -> pl.DataFrame:
    """One row per group and random coefficient of one of several factors."""
    import polars as pl

    keys = _key_frame(found.incidence.keys)
    frames = [
        keys.with_columns(
            pl.lit(name).alias("term"),
            _column("estimate", found.u[q]),
            _column("std_error", _sd(found.posterior[q, q])),
            _column("conditional_sd", _sd(found.conditional[q, q])),
            _column("reliability", found.reliability[q]),
            pl.Series("n", found.n),
        )
        for q, name in enumerate(found.names)
    ]
    return _by_group(frames)


def _by_group(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Frames of one row per group as one frame, a group's rows together."""
    import polars as pl

    return pl.concat(frames)[np.arange(len(frames) * frames[0].height).reshape(len(frames), -1).T.ravel()]


def _key_frame(keys: pa.Table) -> pl.DataFrame:
    import polars as pl

    frame = pl.from_arrow(keys)
    assert isinstance(frame, pl.DataFrame)
    return frame.rename({k: f"group_{k}" for k in frame.columns if k in EFFECT_COLUMNS})


def fit_statistics_table(estimates: Estimates) -> pl.DataFrame:
    """One row: what `glance` shows."""
    import polars as pl

    stats, levels = estimates.statistics, estimates.levels
    return pl.DataFrame(
        {
            "formula": [estimates.design.spec.formula],
            "method": [estimates.design.spec.method],
            "n_rows": [stats.n_rows],
            # of the factor in which the others nest; there is none where they are crossed
            "n_groups": [None if levels is not None and levels.top is None else stats.n_groups],
            "deviance": [estimates.deviance],
            "log_likelihood": [-estimates.deviance / 2.0],
            "aic": [aic(estimates)],
            "bic": [bic(estimates)],
            "n_parameters": [estimates.n_parameters],
            "n_covariance_parameters": [estimates.n_covariance_parameters],
            "sigma2": [estimates.sigma2],
            "icc": [icc(estimates)],
            "converged": [estimates.converged],
            "singular": [estimates.singular],
            "status": [estimates.status.label],
            "evaluations": [estimates.evaluations],
            "promised_decrease": [estimates.promised],
        },
        schema_overrides={"icc": pl.Float64, "n_groups": pl.Int64},
    )


def survey_table(estimates: Estimates) -> pl.DataFrame:
    """One row per input of the model: what the survey found.

    Columns: column, role, in_table, type, level (2: one value per group; null for keys and weights; see
    `predictor_levels`), rows, nulls, nans, mean, minimum, maximum (numbers, of the finite values), levels (factors),
    pivot (subtracted in the query).
    """
    import polars as pl

    survey = estimates.design.survey
    assert survey is not None
    above, rows = predictor_levels(estimates), []
    for found in survey.columns:
        item, numeric = found.input, found.input.numeric
        predictor = item.role in ("numeric", "factor")
        rows.append(
            {
                "column": item.name,
                "role": item.role,
                "in_table": "data" if item.table == "rows" else "level2",
                "type": item.dtype,
                "level": above.get(item.sql, 1) if predictor or item.role == "outcome" else None,
                "rows": found.rows,
                "nulls": found.nulls,
                "nans": found.nans,
                "mean": found.mean if numeric else None,
                "minimum": found.minimum if numeric else None,
                "maximum": found.maximum if numeric else None,
                "levels": ", ".join(survey.levels[item.sql]) if item.role == "factor" else None,
                "pivot": survey.pivot(item.sql) if numeric and item.role != "weight" else None,
            }
        )
    numbers = dict.fromkeys(("mean", "minimum", "maximum", "pivot"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=numbers | {"level": pl.Int64, "levels": pl.String})


def _row(
    group: str,
    term1: str | None,
    term2: str | None,
    estimate: float,
    scaled: float,
    error: float,
    low: float,
    high: float,
) -> dict[str, Any]:
    return {
        "group": group,
        "term1": term1,
        "term2": term2,
        "estimate": float(estimate),
        "sd_or_corr": float(scaled),
        "std_error": float(error),
        "conf_low": float(low),
        "conf_high": float(high),
    }


def _log_interval(variance: float, error: float, z: float) -> tuple[float, float]:
    """Wald interval of the logarithm, carried back: stays positive."""
    if not (variance > 0 and np.isfinite(error)):
        return float("nan"), float("nan")
    with np.errstate(over="ignore"):
        factor = float(np.exp(z * error / variance))
    return variance / factor, variance * factor


def _sd(variance: Array) -> Array:
    """Root of a variance that a singular T may leave at minus rounding."""
    return np.sqrt(np.maximum(variance, 0.0))


def _column(name: str, values: Array) -> Any:
    import polars as pl

    return pl.Series(name, values).fill_nan(None)


def confidence_table(estimates: Estimates, reference: Reference, level: float) -> pl.DataFrame:
    """effect, term, estimate, conf_low, conf_high of all parameters."""
    import polars as pl

    columns = ["effect", "term", "estimate", "conf_low", "conf_high"]
    fixed = inference_table(estimates, reference, level).with_columns(pl.lit("fixed").alias("effect")).select(columns)
    components = variance_components_table(estimates, level)
    name = pl.concat_str(["group", "term1", "term2"], separator=": ", ignore_nulls=True)
    effect = pl.when(pl.col("term2").is_null()).then(pl.lit("variance")).otherwise(pl.lit("covariance")).alias("effect")
    variance = components.with_columns(effect, name.alias("term")).select(columns)
    return pl.concat([fixed, variance])
