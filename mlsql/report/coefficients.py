"""The fixed effects' numbers as the reports print them, whatever the levels."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.inference.fixed_effects import fixed_effects
from mlsql.inference.reference import Reference
from mlsql.report.layout import df_text, fixed_point, number, p_text
from mlsql.results.centering import centering_notes
from mlsql.results.estimates import Estimates

HEADER = (
    "Fixed effect", "Coefficient", "Std. error", "t ratio", "d.f.", "p value", "Robust s.e.", "Ratio", "Centring",
)  # fmt: skip


def coefficient_cells(estimates: Estimates, reference: Reference, robust_covariance: Array | str) -> list[list[str]]:
    """The cells of `HEADER` after the first, for each fixed effect; a dash where there are no robust errors."""
    found, notes = fixed_effects(estimates, reference=reference), centering_notes(estimates)
    known, model = not isinstance(robust_covariance, str), np.sqrt(np.diag(estimates.vcov))
    robust = np.sqrt(np.maximum(np.diag(robust_covariance), 0.0)) if known else np.full(len(notes), np.nan)
    return [
        [
            number(found.estimate[f]),
            number(found.std_error[f]),
            f"{found.statistic[f]:.3f}",
            df_text(found.df[f]),
            p_text(found.p_value[f]),
            number(robust[f]),
            fixed_point(robust[f] / model[f], 2),
            note,
        ]
        for f, note in enumerate(notes)
    ]
