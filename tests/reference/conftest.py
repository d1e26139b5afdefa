"""What the tests against published numbers share: printed digits, cached fits, and quantities by name."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from scipy.special import chdtrc

import mlsql


def _printed(text: str) -> Any:
    """A printed number: equal to whatever rounds to it."""
    half = 0.5 * 10.0 ** int(Decimal(text).as_tuple().exponent)
    return pytest.approx(float(text), abs=half * (1 + 1e-9), rel=0)


def _quantity(fit: mlsql.Fit, name: str) -> float:
    """A number of a fit by a short name.

    `b x`, `se x`, `t x`       fixed effect of term x, its standard error, their ratio
    `low b x`, `high b x`      95 % interval, estimate +- 1.96 standard errors
    `low u i`, `high u i`      range of 95 % of the groups' coefficients i: fixed effect +- 1.96 sqrt(T_ii)
    `T ij`, `corr`             entry of T; correlation of the first two random coefficients
    `chi2 i`, `df i`, `p i`, `reliability i`    test and mean reliability of random coefficient i
    `wald x, y`, `wald p x, y` joint test that terms x and y are zero
    anything else              attribute of the fit
    """
    kind, _, rest = name.partition(" ")
    fixed = {row["term"]: row for row in fit.fixed_effects.iter_rows(named=True)}
    if kind in ("b", "se", "t"):
        return float(fixed[rest][{"b": "estimate", "se": "std_error", "t": "statistic"}[kind]])
    if kind in ("low", "high"):
        which, _, of = rest.partition(" ")
        sign = 1.96 if kind == "high" else -1.96
        if which == "b":
            return float(fixed[of]["estimate"] + sign * fixed[of]["std_error"])
        term = fit.variance_components["term1"][int(of)]
        return float(fixed[term]["estimate"] + sign * np.sqrt(fit.T[int(of), int(of)]))
    if kind == "T":
        return float(fit.T[int(rest[0]), int(rest[1])])
    if kind == "corr":
        return float(fit.T[0, 1] / np.sqrt(fit.T[0, 0] * fit.T[1, 1]))
    if kind in ("chi2", "df", "p", "reliability"):
        return float(fit.variance_components["p_value" if kind == "p" else kind][int(rest)])
    if kind == "wald":
        terms = rest.removeprefix("p ").split(", ")
        at = [list(fixed).index(t) for t in terms]
        b = fit.fixed_effects["estimate"].to_numpy()[at]
        wald = float(b @ np.linalg.solve(fit.vcov[np.ix_(at, at)], b))
        return float(chdtrc(len(at), wald)) if rest.startswith("p ") else wald
    return float(getattr(fit, name))


@pytest.fixture(scope="session")
def printed() -> Callable[[str], Any]:
    return _printed


@pytest.fixture(scope="session")
def quantity() -> Callable[[mlsql.Fit, str], float]:
    return _quantity


@pytest.fixture(scope="session")
def cached_fit() -> Callable[..., mlsql.Fit]:
    """`mlsql.fit`, each model once."""
    found: dict[tuple[str, str, str], mlsql.Fit] = {}

    def fit(formula: str, data: str, method: str = "REML") -> mlsql.Fit:
        key = (formula, data, method)
        if key not in found:
            found[key] = mlsql.fit(formula, data, method=method)  # type: ignore[arg-type]
        return found[key]

    return fit
