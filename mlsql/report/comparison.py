"""Several fits of the same data as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlsql.diagnostics.explained import raudenbush_bryk
from mlsql.errors import FitError
from mlsql.inference.likelihood_ratio import LikelihoodRatio, likelihood_ratio
from mlsql.report.text import frame_text
from mlsql.results.estimates import Estimates
from mlsql.results.measures import aic, bic
from mlsql.results.same_data import same_factors, same_grouping, same_groups, same_rows

if TYPE_CHECKING:
    import polars as pl


def comparison_table(
    models: Sequence[tuple[str, Estimates]], against: Sequence[int | None], baselines: Sequence[int | None]
) -> pl.DataFrame:
    """One row per model; see `mlsql.compare`.

    Parameters
    ----------
    models : sequence of (name, Estimates)
    against : sequence of int or None
        For each model the position of the one that it is tested against.
    baselines : sequence of int or None
        For each model the position of the one whose variances it explains.
    """
    import polars as pl

    first = models[0][1]
    for _, estimates in models[1:]:
        same_rows(first, estimates)
        if same_grouping(first, estimates):
            same_groups(estimates, first)
    rows = [_row(models, i, against[i], baselines[i]) for i in range(len(models))]
    numbers = ("chi2", "p_value", "mixture_p_value", "explained_level1", "explained_intercept")
    texts = ("against", "mixture", "baseline", "note")
    types = dict.fromkeys(numbers, pl.Float64) | dict.fromkeys(texts, pl.String) | {"df": pl.Int64}
    return pl.DataFrame(rows, schema_overrides=types).with_columns(pl.selectors.float().fill_nan(None)).select(COLUMNS)


COLUMNS = (
    *("model", "n_parameters", "deviance", "aic", "bic", "against", "chi2", "df", "p_value", "mixture"),
    *("mixture_p_value", "sigma2", "intercept_variance", "explained_level1", "explained_intercept", "baseline"),
    *("method", "formula", "note"),
)


def comparison_text(table: pl.DataFrame) -> str:
    """A comparison for reading: the numbers, then the formulas, then the notes."""
    shown = ["model", "n_parameters", "deviance", "aic", "bic", "against", "chi2", "df", "p_value"]
    lines = [frame_text(table.select(*shown, "explained_level1", "explained_intercept")), ""]
    lines += [f"{name}: {formula}" for name, formula in table.select("model", "formula").iter_rows()]
    notes = [(name, note) for name, note in table.select("model", "note").iter_rows() if note is not None]
    return "\n".join([*lines, *([""] if notes else []), *(f"{name}: {note}" for name, note in notes)])


def _row(models: Sequence[tuple[str, Estimates]], i: int, other: int | None, base: int | None) -> dict[str, Any]:
    name, estimates = models[i]
    row: dict[str, Any] = {
        "model": name,
        "formula": estimates.design.spec.formula,
        "method": estimates.design.spec.method,
        "n_parameters": estimates.n_parameters,
        "deviance": estimates.deviance,
        "aic": aic(estimates),
        "bic": bic(estimates),
        "sigma2": estimates.sigma2,
        "intercept_variance": intercept_variance(estimates),
    }
    row |= {"against": None if other is None else models[other][0]} | _tested(models, i, other)
    note = row.pop("note")
    explained: dict[str, Any] = {"explained_level1": None, "explained_intercept": None, "baseline": None}
    if base is not None and base != i and same_factors(estimates, models[base][1]):
        found = raudenbush_bryk(estimates, models[base][1])
        explained["baseline"] = models[base][0]
        explained["explained_level1"] = found[0].proportion
        intercept = [x.proportion for x in found if x.term == "(Intercept)"]
        # with several factors there is no one intercept variance
        explained["explained_intercept"] = intercept[0] if len(intercept) == 1 else None
        reason = next((x.note for x in found if x.term == "(Intercept)" and x.note is not None), None)
        note = "; ".join(n for n in (note, reason and f"intercept variance not compared: {reason}") if n) or None
    return row | explained | {"note": note}


def _tested(models: Sequence[tuple[str, Estimates]], i: int, other: int | None) -> dict[str, Any]:
    empty = {"chi2": None, "df": None, "p_value": None, "mixture": None, "mixture_p_value": None, "note": None}
    if other is None:
        return empty
    found, note = _nested(models[other][1], models[i][1])
    if found is None:
        return empty | {"note": note}
    return {
        "chi2": found.chi2,
        "df": found.df,
        "p_value": found.p_value,
        "mixture": found.mixture,
        "mixture_p_value": found.mixture_p_value,
        "note": found.note,
    }


def _nested(first: Estimates, second: Estimates) -> tuple[LikelihoodRatio | None, str | None]:
    """The test of the smaller in the larger, whichever that is, or why there is none."""
    smaller, larger = sorted((first, second), key=lambda e: e.n_parameters)
    try:
        return likelihood_ratio(smaller, larger), None
    except FitError as error:
        return None, str(error)


def intercept_variance(estimates: Estimates) -> float | None:
    """tau_00, None without a random intercept and with those of several factors."""
    if estimates.levels is not None:
        return None
    for i, column in enumerate(estimates.design.random):
        if not column.variables:
            return float(estimates.T[i, i])
    return None


def ratio_table(found: LikelihoodRatio, smaller: str, larger: str) -> pl.DataFrame:
    """One row: smaller, larger, chi2, df, p_value, mixture, mixture_p_value, note."""
    import polars as pl

    return pl.DataFrame(
        {
            "smaller": [smaller],
            "larger": [larger],
            "chi2": [found.chi2],
            "df": [found.df],
            "p_value": [found.p_value],
            "mixture": pl.Series([found.mixture], dtype=pl.String),
            "mixture_p_value": [found.mixture_p_value if np.isfinite(found.mixture_p_value) else None],
            "note": pl.Series([found.note], dtype=pl.String),
        },
        schema_overrides={"mixture_p_value": pl.Float64},
    )
