"""Raudenbush & Bryk (2002), Tables 5.9 to 5.12: centring, contextual effects and slope variances, at the optimum.

Exact optima recomputed by an independent maximiser, to the digits in which it had converged (that of Table 5.9 stopped
1e-7 above the minimum of the deviance); the book's small slope variances in Table 5.12 are unconverged EM iterates and
are not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mlsql

HSB = mlsql.example_data("hsb")

Fitted = Callable[..., mlsql.Fit]
Quantity = Callable[[mlsql.Fit, str], float]
Printed = Callable[[str], Any]

SES = "group_center(ses)"
CGM = "grand_center(ses)"
SECTOR = f"mathach ~ sector*{SES} + ({SES} | school)"
GMC_BOTH = f"mathach ~ sector*{SES} + meanses*{SES} + ({SES} | school)"
CGM_BOTH = f"mathach ~ sector*{CGM} + meanses*{CGM} + ({CGM} | school)"

# title | formula | method | quantity = value, ...
TABLE = {
    "5.9 constant level-1 variance": (
        SECTOR,
        "ML",
        f"""
        b (Intercept) 11.39388, se (Intercept) .29090, b sector 2.80748, se sector .4363, b {SES} 2.80293,
        se {SES} .1539, b sector:{SES} -1.34137, se sector:{SES} .23222, T 00 6.640, T 01 1.037, T 11 .2398,
        sigma2 36.7056, chi2 0 1383.2, chi2 1 175.24, df 0 158, df 1 158, p 1 .165, deviance 46633.88
        """,
    ),
    "5.10 group-mean centred, fixed slope": (
        f"mathach ~ {SES} + (1 | school)",
        "REML",
        f"b {SES} 2.19117, se {SES} .10865",
    ),
    "5.10 grand-mean centred, fixed slope": (
        f"mathach ~ {CGM} + (1 | school)",
        "REML",
        f"b {CGM} 2.39020, se {CGM} .10572, T 00 4.768, sigma2 37.034",
    ),
    "5.10 grand-mean centred, fixed slope, ML": (
        f"mathach ~ {CGM} + (1 | school)",
        "ML",
        f"b {CGM} 2.39150, se {CGM} .10569",
    ),
    "5.10 natural metric, fixed slope": ("mathach ~ ses + (1 | school)", "REML", "b ses 2.39020, se ses .10572"),
    "5.10 group-mean centred, random slope": (f"mathach ~ {SES} + ({SES} | school)", "REML", f"b {SES} 2.19320"),
    "5.11 group-mean centred": (
        f"mathach ~ meanses + {SES} + (1 | school)",
        "REML",
        f"""
        b (Intercept) 12.64812, se (Intercept) .14937, b meanses 5.86618, se meanses .36169, b {SES} 2.19117,
        se {SES} .10867, sigma2 37.0191, T 00 2.6924
        """,
    ),
    "5.11 natural metric": (
        "mathach ~ meanses + ses + (1 | school)",
        "REML",
        "b (Intercept) 12.66126, se (Intercept) .14937, b meanses 3.67504, se meanses .37766, b ses 2.19117",
    ),
    "5.11 grand-mean centred": (
        f"mathach ~ meanses + {CGM} + (1 | school)",
        "REML",
        f"b meanses 3.67504, se meanses .37766, b {CGM} 2.19117, se {CGM} .10867",
    ),
    "5.11 exact sample means": (
        f"mathach ~ group_mean(ses) + {SES} + (1 | school)",
        "REML",
        f"b (Intercept) 12.6833, b group_mean(ses) 5.866, b {SES} 2.19117",
    ),
    "5.12 group-mean centred, unconditional": (
        f"mathach ~ {SES} + ({SES} | school)",
        "REML",
        "T 00 8.6810, T 01 .0468, T 11 .6940, sigma2 36.7002",
    ),
    "5.12 grand-mean centred, unconditional": (
        f"mathach ~ {CGM} + ({CGM} | school)",
        "REML",
        "T 00 4.8286, T 01 -.1542, T 11 .4129, sigma2 36.8302",
    ),
    "5.12 grand-mean centred, unconditional, ML": (
        f"mathach ~ {CGM} + ({CGM} | school)",
        "ML",
        "T 00 4.7851, T 01 -.1558, T 11 .3983",
    ),
    "5.12 natural metric, unconditional": (
        "mathach ~ ses + (ses | school)",
        "REML",
        "b ses 2.3938, se ses .1181, T 00 4.829, T 01 -.154, T 11 .413, sigma2 36.830",
    ),
    "5.12 group-mean centred, both equations": (
        GMC_BOTH,
        "REML",
        "T 00 2.3795, T 01 .1920, T 11 .1013, sigma2 36.7212",
    ),
    "5.12 grand-mean centred, both equations": (
        CGM_BOTH,
        "REML",
        "T 00 2.4077, T 01 .1878, T 11 .0146, sigma2 36.7583, corr 1.0000",
    ),
}


def cases() -> list[Any]:
    found = []
    for title, (formula, method, text) in TABLE.items():
        for item in text.split(","):
            name, _, value = item.strip().rpartition(" ")
            found.append(pytest.param(formula, method, name, value, id=f"{title}: {name}"))
    return found


@pytest.mark.parametrize(("formula", "method", "name", "value"), cases())
def test_tables_5_9_to_5_12(
    cached_fit: Fitted, quantity: Quantity, printed: Printed, formula: str, method: str, name: str, value: str
) -> None:
    found = quantity(cached_fit(formula, HSB, method), name)
    assert found == printed(value), f"{name} is {found:.8g}, expected {value}"


def test_table_5_11_the_between_slope_is_within_plus_contextual(cached_fit: Fitted, printed: Printed) -> None:
    fit = cached_fit("mathach ~ meanses + ses + (1 | school)", HSB)
    assert fit.fixed_effects["estimate"][1:].sum() == printed("5.866")
    assert np.sqrt(fit.vcov[1:, 1:].sum()) == printed(".36169")


def test_table_5_12_grand_mean_centred_with_level_2_predictors_is_on_the_boundary(cached_fit: Fitted) -> None:
    fit = cached_fit(CGM_BOTH, HSB)
    assert fit.converged
    assert fit.singular
    assert fit.status is mlsql.Status.SINGULAR
    assert not cached_fit(GMC_BOTH, HSB).singular
