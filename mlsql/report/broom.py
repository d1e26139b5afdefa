"""`tidy` and `glance`: a fit as broom.mixed shows it in R, columns in snake_case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from mlsql.inference.fixed_effects import fixed_effects
from mlsql.results.components import component_errors
from mlsql.results.estimates import Estimates
from mlsql.results.measures import aic, bic, correlation, icc

if TYPE_CHECKING:
    import polars as pl


def tidy(estimates: Estimates, level: float = 0.95) -> pl.DataFrame:
    """One row per parameter: fixed effects, then standard deviations and correlations of the random coefficients.

    Parameters
    ----------
    estimates : Estimates
    level : float
        Confidence level.

    Returns
    -------
    polars.DataFrame
        effect (fixed, ran_pars), group (the grouping factor; null for fixed effects), term (`ses`; `sd__ses`,
        `cor__(Intercept).ses`, `sd__Observation`), estimate, std_error, statistic, df, p_value, conf_low, conf_high.
        Standard deviations have an error by the delta method and the interval of their variance (on the log scale), no
        test; correlations have an estimate only.
    """
    import polars as pl

    found = fixed_effects(estimates, level)
    fixed = pl.DataFrame(
        {
            "effect": "fixed",
            "group": pl.Series([None] * len(found.estimate), dtype=pl.String),
            "term": estimates.fixed_names,
            "estimate": found.estimate,
            "std_error": found.std_error,
            "statistic": found.statistic,
            "df": found.df,
            "p_value": found.p_value,
            "conf_low": found.conf_low,
            "conf_high": found.conf_high,
        }
    )
    rows = pl.DataFrame(_random_rows(estimates, level), schema=fixed.schema)
    return pl.concat([fixed, rows]).with_columns(pl.selectors.float().fill_nan(None))


def glance(estimates: Estimates) -> pl.DataFrame:
    """The fit in one row.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    polars.DataFrame
        nobs, ngrps (of the factor in which the others nest; null where factors are crossed), npar, sigma, log_lik,
        aic, bic, deviance (null under REML), reml_crit (null under ML), df_residual (rows minus all parameters), icc
        (null unless the intercept alone is random), method, converged, singular, status.
    """
    import polars as pl

    stats, levels, restricted = estimates.statistics, estimates.levels, estimates.design.spec.method == "REML"
    return pl.DataFrame(
        {
            "nobs": [stats.n_rows],
            "ngrps": [None if levels is not None and levels.top is None else stats.n_groups],
            "npar": [estimates.n_parameters],
            "sigma": [float(np.sqrt(estimates.sigma2))],
            "log_lik": [-estimates.deviance / 2.0],
            "aic": [aic(estimates)],
            "bic": [bic(estimates)],
            "deviance": [None if restricted else estimates.deviance],
            "reml_crit": [estimates.deviance if restricted else None],
            "df_residual": [stats.n_rows - estimates.n_parameters],
            "icc": [icc(estimates)],
            "method": [estimates.design.spec.method],
            "converged": [estimates.converged],
            "singular": [estimates.singular],
            "status": [estimates.status.label],
        },
        schema_overrides=dict.fromkeys(("deviance", "reml_crit", "icc"), pl.Float64) | {"ngrps": pl.Int64},
    )


def _random_rows(estimates: Estimates, level: float) -> list[dict[str, Any]]:
    """Down the columns of each block's lower triangle, as broom.mixed goes; the level-1 deviation last."""
    T, errors, names = estimates.T, component_errors(estimates), estimates.random_names
    z = float(ndtri(0.5 + level / 2.0))
    rows: list[dict[str, Any]] = []
    for s in estimates.covariance.slices:
        group = estimates.factor_of(s.start)
        for b in range(s.start, s.stop):
            rows.append(_deviation(group, names[b], float(T[b, b]), float(errors.T[b, b]), z))
            for a in range(b + 1, s.stop):
                term = f"cor__{names[b]}.{names[a]}"
                rows.append({"effect": "ran_pars", "group": group, "term": term, "estimate": correlation(T, a, b)})
    rows.append(_deviation("Residual", "Observation", estimates.sigma2, errors.sigma2, z))
    return rows


def _deviation(group: str, name: str, variance: float, error: float, z: float) -> dict[str, Any]:
    """A standard deviation with the error and the interval of its variance carried over."""
    root = float(np.sqrt(variance))
    row: dict[str, Any] = {"effect": "ran_pars", "group": group, "term": f"sd__{name}", "estimate": root}
    if not (variance > 0 and np.isfinite(error)):
        return row
    with np.errstate(over="ignore"):
        factor = float(np.exp(z * error / variance / 2.0))
    return row | {"std_error": error / (2.0 * root), "conf_low": root / factor, "conf_high": root * factor}
