"""Exploratory t-to-enter: EB residuals of each random coefficient regressed on one candidate at a time.

Coefficient and standard error are shrunk alike, so that their ratio approximates the t of the candidate if it entered
this one equation next (Raudenbush & Bryk, Tables 9.2 and 9.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array, BoolArray

EQUAL = 1e-12
"""Values whose deviations from their mean are below this share of their size are one value, rounded."""


@dataclass(frozen=True, slots=True)
class Simple:
    """Simple regressions of q outcomes on c predictors over groups; nan where there is nothing to fit.

    Attributes
    ----------
    coefficient, std_error, correlation : (q, c)
    groups : (q, c)
        Groups with both values.
    """

    coefficient: Array
    std_error: Array
    correlation: Array
    groups: Array

    @property
    def t(self) -> Array:
        """Coefficient over standard error."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.coefficient / self.std_error)


def simple_regressions(outcomes: Array, predictors: Array) -> Simple:
    """Regress each of (q, J) outcomes on each of (c, J) predictors with an intercept; nan marks a missing value."""
    shape = (len(outcomes), len(predictors))
    coefficient, error, correlation = (np.full(shape, np.nan) for _ in range(3))
    groups = np.zeros(shape)
    for a, y in enumerate(outcomes):
        for b, x in enumerate(predictors):
            both = np.isfinite(x) & np.isfinite(y)
            groups[a, b] = n = int(both.sum())
            if n < 3:
                continue
            dx, dy = _centred(x, both), _centred(y, both)
            xx, yy, xy = float(dx @ dx), float(dy @ dy), float(dx @ dy)
            if xx == 0.0 or yy == 0.0:
                continue
            coefficient[a, b] = xy / xx
            error[a, b] = np.sqrt(max(yy - xy**2 / xx, 0.0) / (n - 2) / xx)
            correlation[a, b] = np.clip(xy / np.sqrt(xx * yy), -1.0, 1.0)
    return Simple(coefficient, error, correlation, groups)


def _centred(values: Array, chosen: BoolArray) -> Array:
    """Deviations from the mean; all zero when they are rounding of equal values."""
    kept = values[chosen]
    centred = kept - kept.mean()
    return np.asarray(centred if centred @ centred > EQUAL**2 * (kept @ kept) else np.zeros_like(kept))
