"""Fixed effects, their hypotheses and their intervals as frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlsql._arrays import Array
from mlsql.inference.fixed_effects import LinearEstimates, fixed_effects, linear_estimates
from mlsql.inference.hypotheses import Hypothesis
from mlsql.inference.reference import Reference, caution, few_groups
from mlsql.inference.wald import wald_test
from mlsql.results.centering import centering_notes
from mlsql.results.estimates import Estimates

if TYPE_CHECKING:
    import polars as pl


def inference_table(estimates: Estimates, reference: Reference, level: float = 0.95) -> pl.DataFrame:
    """One row per fixed effect.

    Columns: term, estimate, std_error, df, statistic, p_value, conf_low, conf_high, df_method, vcov, centering, note.
    """
    import polars as pl

    found = fixed_effects(estimates, level, reference)
    return pl.DataFrame(
        {"term": estimates.fixed_names}
        | numbers(found)
        | named(reference, len(found.df))
        | {
            "centering": centering_notes(estimates),
            "note": pl.Series(
                [caution(reference, estimates, found.df[i : i + 1]) for i in range(len(found.df))],
                dtype=pl.String,
            ),
        }
    )


def fixed_effects_table(
    estimates: Estimates, robust_covariance: Array | str, reference: Reference | None = None, level: float = 0.95
) -> pl.DataFrame:
    """Inference, by default model-based, with robust standard errors (CR0) and their ratio beside it.

    Text in place of the robust matrix says why there is none; it becomes the note.
    """
    import polars as pl

    table = inference_table(estimates, Reference.counted(estimates) if reference is None else reference, level)
    position = table.columns.index("conf_high") + 1
    if isinstance(robust_covariance, str):
        missing = pl.Series("robust_std_error", [None] * table.height, dtype=pl.Float64)
        table = table.with_columns(pl.lit(robust_covariance).alias("note"))
        return table.insert_column(position, missing).insert_column(position + 1, missing.alias("robust_ratio"))
    error = pl.Series("robust_std_error", np.sqrt(np.maximum(np.diag(robust_covariance), 0.0)))
    note = few_groups("CR0", estimates.statistics.n_groups)
    table = table.with_columns(pl.coalesce("note", pl.lit(note, dtype=pl.String)).alias("note"))
    ratio = (error / np.sqrt(np.diag(estimates.vcov))).alias("robust_ratio")
    return table.insert_column(position, error).insert_column(position + 1, ratio)


def contrasts_table(
    estimates: Estimates,
    reference: Reference,
    columns: dict[str, Any],
    contrasts: Array,
    level: float = 0.95,
    null: Array | float = 0.0,
) -> pl.DataFrame:
    """Linear combinations of the fixed effects: `columns` say what each row of (r, p) contrasts is."""
    import polars as pl

    found = linear_estimates(estimates.beta, reference, contrasts, level, null)
    return pl.DataFrame(columns | numbers(found) | named(reference, len(contrasts)))


def test_table(estimates: Estimates, reference: Reference, hypothesis: Hypothesis) -> pl.DataFrame:
    """One row: hypothesis, chi2, chi2_df, chi2_p_value, statistic (F), df1, df2, p_value, df_method, vcov, note."""
    import polars as pl

    found = wald_test(estimates.beta, reference, hypothesis)
    note = caution(reference, estimates, np.array([found.df2]))
    return pl.DataFrame(
        {
            "hypothesis": ["; ".join(hypothesis.labels)],
            "chi2": [found.chi2],
            "chi2_df": [found.chi2_df],
            "chi2_p_value": [found.chi2_p_value],
            "statistic": [found.F],
            "df1": [found.df1],
            "df2": [found.df2],
            "p_value": [found.p_value],
        }
        | named(reference, 1)
        | {"note": pl.Series([note], dtype=pl.String)}
    )


def numbers(found: LinearEstimates) -> dict[str, Any]:
    """Columns of estimates with their tests and intervals."""
    return {
        "estimate": found.estimate,
        "std_error": found.std_error,
        "df": found.df,
        "statistic": found.statistic,
        "p_value": found.p_value,
        "conf_low": found.conf_low,
        "conf_high": found.conf_high,
    }


def named(reference: Reference, rows: int) -> dict[str, Any]:
    """Columns that name the method."""
    return {"df_method": [reference.df_method] * rows, "vcov": [reference.vcov] * rows}
