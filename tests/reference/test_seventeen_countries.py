"""A null model from a printed table: 17 countries, 21,790 respondents, known only by their sizes and means.

Lecture notes on multilevel models (ISSP 1995, full maximum likelihood in Stata) print each country's size, mean and
empirical-Bayes effect.  Sizes and means are all that the fixed part and the effects need; rows with the implied
variation within countries give the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql

Printed = Callable[[str], Any]

# country | n | mean | EB effect | reliability
COUNTRIES = """
d   | 1829 | -.091 | -.191 | .9968122
gb  | 1027 | -.005 | -.104 | .9943369
a   | 1007 | -.128 | -.227 | .9942251
h   | 992  | .765  | .660  | .9941383
i   | 1091 | .286  | .185  | .9946674
irl | 992  | -.803 | -.898 | .9941383
nl  | 2058 | -.189 | -.289 | .9971659
n   | 1487 | .028  | -.072 | .9960819
s   | 1274 | -.177 | -.276 | .9954299
cz  | 1106 | .466  | .364  | .9947393
slo | 1035 | .367  | .265  | .9943805
pl  | 1568 | .014  | -.086 | .9962836
bg  | 1099 | .448  | .346  | .994706
rus | 1585 | .131  | .031  | .9963233
e   | 1221 | -.354 | -.452 | .9952324
lv  | 1031 | .456  | .354  | .9943588
sk  | 1388 | .491  | .389  | .9958037
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in COUNTRIES.strip().splitlines()]

MODEL = "attitude ~ 1 + (1 | country)"
TAU, SIGMA2 = 0.1390369, 0.8132404

# The printed means are rounded to .0005, with a standard deviation of .0003.  What that does to ...
MEANS = 5e-4  # an effect, at most, beside its own rounding
TAU_ERROR = 1.5e-4  # tau00, the mean of 17 squared deviations near .37: 3 x 2 (.37) .0003 / sqrt(17)
LOG_LIKELIHOOD_ERROR = 0.01  # 17 / 2 log tau00
RATIO_ERROR = 3.5  # between countries, 3 x 2 (1282) (.37) .0003 sqrt(17), over the total variance .95


def table(within: float) -> pl.DataFrame:
    """Rows whose sum of squares within countries is (N - J) x within: pairs at equal distances from the mean."""
    frames = []
    for country, size, mean, *_ in ROWS:
        n = int(size)
        sign = np.resize([1.0, -1.0], n)
        if n % 2:
            sign[-1] = 0.0
        distance = np.sqrt((n - 1) * within / (n - n % 2))
        frames.append(pl.DataFrame({"country": country, "attitude": float(mean) + distance * sign}))
    return pl.concat(frames)


@pytest.fixture(scope="module")
def given() -> mlsql.Fit:
    return mlsql.evaluate(MODEL, table(0.0), T=TAU, sigma2=SIGMA2, method="ML")


@pytest.fixture(scope="module")
def fitted() -> mlsql.Fit:
    return mlsql.fit(MODEL, table(SIGMA2), method="ML")


def test_rows(given: mlsql.Fit) -> None:
    assert (given.n_rows, given.n_groups) == (21790, 17)


def test_grand_mean_at_the_printed_variances(given: mlsql.Fit, printed: Printed) -> None:
    (estimate,), (error,) = given.fixed_effects["estimate"], given.fixed_effects["std_error"]
    assert estimate == pytest.approx(0.1001793, abs=MEANS)
    # the standard error needs no means: all its printed digits
    assert error == printed(".0906525")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_country_at_the_printed_variances(given: mlsql.Fit, row: list[str]) -> None:
    country, n, _, effect, reliability = row
    found = given.group_effects().filter(pl.col("country") == country).row(0, named=True)
    assert found["n"] == int(n)
    # printed from a variable in single precision
    assert found["reliability"] == pytest.approx(float(reliability), abs=1e-7)
    assert found["estimate"] == pytest.approx(float(effect), abs=MEANS + MEANS)
    # shrinkage towards the grand mean by the reliability
    assert found["estimate"] == pytest.approx(found["reliability"] * found["ols_estimate"], rel=1e-10)


def test_mean_reliability_and_icc(given: mlsql.Fit, printed: Printed) -> None:
    assert given.variance_components["reliability"][0] == printed(".995")
    assert given.icc == printed(".1460046")


def test_estimates_from_rows_with_the_implied_variation(fitted: mlsql.Fit) -> None:
    assert fitted.converged
    assert fitted.T[0, 0] == pytest.approx(TAU, abs=TAU_ERROR)
    # pooled within countries: the means play no part
    assert fitted.sigma2 == pytest.approx(SIGMA2, rel=1e-6)
    assert fitted.icc == pytest.approx(0.1460046, abs=TAU_ERROR)
    assert fitted.log_likelihood == pytest.approx(-28711.99, abs=LOG_LIKELIHOOD_ERROR)


def test_standard_errors_and_intervals_of_the_variances(fitted: mlsql.Fit, printed: Printed) -> None:
    tau, residual = fitted.variance_components.iter_rows(named=True)
    assert residual["std_error"] == printed(".0077943")
    # intervals of a logarithm are proportional to the estimate, which the rounded means move in the seventh digit ...
    scale = fitted.sigma2 / SIGMA2
    assert residual["conf_low"] / scale == pytest.approx(0.7981065, rel=2e-7)
    assert residual["conf_high"] / scale == pytest.approx(0.8286612, rel=2e-7)
    # ... and that of tau00 in the third; its standard error is proportional to it too, but for s2 / n
    scale = fitted.T[0, 0] / TAU
    assert tau["std_error"] / scale == pytest.approx(0.0479464, rel=1e-5)
    assert tau["conf_low"] / scale == pytest.approx(0.0707288, rel=1e-5)
    assert tau["conf_high"] / scale == pytest.approx(0.2733153, rel=1e-5)


def test_likelihood_ratio_against_one_level(fitted: mlsql.Fit) -> None:
    total = float(table(SIGMA2)["attitude"].var(ddof=0))  # type: ignore[arg-type]
    one_level = mlsql.evaluate(MODEL, table(SIGMA2), T=0.0, sigma2=total, method="ML")
    assert one_level.deviance - fitted.deviance == pytest.approx(2927.84, abs=RATIO_ERROR)
