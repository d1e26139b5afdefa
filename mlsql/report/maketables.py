"""What the `maketables` package asks of a model class, for regression tables of several fits side by side."""

from __future__ import annotations

from typing import Any

from mlsql.inference.fixed_effects import fixed_effects
from mlsql.report.broom import glance, tidy
from mlsql.results.estimates import Estimates

STAT_LABELS = {"ngrps": "Groups", "icc": "ICC", "sigma": "Sigma", "reml_crit": "REML criterion", "method": "Method"}
"""Labels of the statistics that maketables has no own label for."""

_OWN_NAMES = {"N": "nobs", "ll": "log_lik", "df_resid": "df_residual", "n_clusters": "ngrps"}
"""Columns of `glance` by the names that maketables uses for them."""

_DEVIATION, _GROUPS = "SD ", "Groups "


def coef_table(estimates: Estimates) -> Any:
    """The fixed effects as a pandas frame with the columns that maketables reads.

    Returns
    -------
    pandas.DataFrame
        Index term; b, se, t, df, p, ci95l, ci95u.
    """
    import polars as pl

    found = fixed_effects(estimates, 0.95)
    columns = {
        "b": found.estimate,
        "se": found.std_error,
        "t": found.statistic,
        "df": found.df,
        "p": found.p_value,
        "ci95l": found.conf_low,
        "ci95u": found.conf_high,
    }
    # by way of Polars, so that pandas is needed by those alone who make such a table
    return pl.DataFrame({"Coefficient": estimates.fixed_names, **columns}).to_pandas().set_index("Coefficient")


def stat(estimates: Estimates, key: str) -> Any:
    """A statistic for the bottom of the table; None for one that a fit does not have (R squared, F).

    Parameters
    ----------
    estimates : Estimates
    key : str
        maketables' own name (N, ll, aic, bic, df_resid), a column of `glance`, a random parameter of `tidy`:
        `sd__(Intercept)`, also as `SD (Intercept)`; with several factors these are called by their factor,
        `SD school: (Intercept)`, and so is its number of groups, `Groups school`.
    """
    row = glance(estimates).row(0, named=True)
    column = _OWN_NAMES.get(key, key)
    if column in row:
        return row[column]
    sizes = {f"{_GROUPS}{factor}": n for factor, n in _sizes(estimates).items()}
    if key in sizes:
        return sizes[key]
    term = f"sd__{key.removeprefix(_DEVIATION)}" if key.startswith(_DEVIATION) else key
    return _random_parameters(estimates).get(term)


def default_stats(estimates: Estimates) -> list[str]:
    """Statistics shown when the user names none: rows, groups, standard deviations, likelihood."""
    terms = [t for t in _random_parameters(estimates) if t.startswith("sd__")]
    groups = [f"{_GROUPS}{factor}" for factor in _sizes(estimates)] or ["ngrps"]
    return ["N", *groups, *(t.replace("sd__", _DEVIATION, 1) for t in terms), "ll", "aic", "bic"]


def _random_parameters(estimates: Estimates) -> dict[str, float | None]:
    """By term; with several factors after `__` the factor, for each may have an intercept."""
    found = tidy(estimates).filter(effect="ran_pars")
    terms: list[str] = found["term"].to_list()
    if estimates.levels is not None:
        named = zip(terms, found["group"].to_list(), strict=True)
        terms = [t if of == "Residual" else t.replace("__", f"__{of}: ", 1) for t, of in named]
    return dict(zip(terms, found["estimate"], strict=True))


def _sizes(estimates: Estimates) -> dict[str, int]:
    """Groups of each of several factors."""
    return {} if estimates.levels is None else {i.name: i.n_groups for i in estimates.levels.incidences}
