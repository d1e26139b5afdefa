"""Every quantity of every model that R's lme4 or nlme fitted too: one matrix, one tolerance a quantity."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql

Array = NDArray[np.float64]

EXPECTED = Path(__file__).parent / "expected"

TOLERANCE = {  # rtol, why
    "deviance": 1e-8,  # of second order in the error of theta
    "aic": 1e-8,  # deviance and a count
    "bic": 1e-8,
    "fixed_effects": 1e-5,  # of first order in the error of theta, R's optimiser stops at 1e-6
    "std_errors": 1e-5,
    "vcov": 1e-5,  # of the product of the two standard errors: a covariance may be zero
    "variance_components": 1e-4,  # the flattest direction, where optimisers stop differently
    "sigma2": 1e-5,  # well determined by the rows
    "group_effects": 1e-4,  # of the largest effect of the coefficient: they inherit the components' error
    "conditional_variances": 1e-4,
}
NOT_ABOVE = 1e-6
"""A deviance that exceeds the reference's by more than this is not the optimum."""

MOST_EVALUATIONS = 20
"""Newton steps with exact derivatives take about ten; three times the parameters of a quadratic curve take most."""

FACTOR_LEVELS = {
    "sexM": "sex[M]",
    "schgendgirls": "schgend[girls]",
    "schgendmixed": "schgend[mixed]",
    "SexMale": "Sex[Male]",
}


@dataclass(frozen=True)
class Problem:
    name: str

    @property
    def expected(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((EXPECTED / f"{self.name}.json").read_text())
        return found

    @property
    def formula(self) -> str:
        return str(self.expected["formula"] if "formula" in self.expected else self.expected["model"])

    def __str__(self) -> str:
        return self.name


PROBLEMS = [Problem(path.stem) for path in sorted(EXPECTED.glob("*.json"))]
SINGULAR = {"dyestuff2_singular_reml"}


@pytest.fixture(scope="module")
def fitted(data_file: Callable[[str], str]) -> Callable[..., mlsql.Fit]:
    found: dict[tuple[str, bool], mlsql.Fit] = {}

    def fit(problem: Problem, centered_here: bool = False) -> mlsql.Fit:
        if (problem.name, centered_here) not in found:
            expected = problem.expected
            formula = re.sub(r"\bcses\b", "group_center(ses)", problem.formula) if centered_here else problem.formula
            found[problem.name, centered_here] = mlsql.fit(
                formula, data_file(expected["data"]), method=expected["method"]
            )
        return found[problem.name, centered_here]

    return fit


def reference_deviance(expected: dict[str, Any]) -> float:
    return float(expected["deviance"] if "deviance" in expected else -2 * expected["loglik"])


def our_terms(expected: dict[str, Any]) -> list[str]:
    """R's coefficient names as ours: R writes the factor's level straight behind its name."""
    terms = np.atleast_1d(expected["fixed"]["term"]).tolist()
    return [":".join(FACTOR_LEVELS.get(part, part) for part in term.split(":")) for term in terms]


def reference_components(expected: dict[str, Any]) -> list[tuple[str, str | None, str | None, float]]:
    if "varcomp" in expected:
        table = expected["varcomp"]
        # R numbers the blocks of `||`: school, school.1
        groups = [g.split(".")[0] for g in table["group"]]
        return list(zip(groups, table["var1"], table["var2"], table["vcov"], strict=True))
    (intercept, covariance), (_, slope) = expected["random"]
    return [
        ("Subject", "(Intercept)", None, intercept),
        ("Subject", "age", None, slope),
        ("Subject", "(Intercept)", "age", covariance),
        ("Residual", None, None, expected["sigma"] ** 2),
    ]


def group_values(fit: mlsql.Fit, column: str, levels: list[str], terms: list[str]) -> Array:
    """(levels, terms) values of the group table."""
    table = fit.group_effects()
    keyed = table.with_columns(pl.col(table.columns[0]).cast(pl.String).alias("level"))
    values = {(row["level"], row["term"]): row[column] for row in keyed.iter_rows(named=True)}
    return np.array([[values[level, term] for term in terms] for level in levels])


def pair(fit: mlsql.Fit, expected: dict[str, Any], quantity: str) -> tuple[Array, Array, Array]:
    """Ours, the reference's, and the scale against which their difference is measured."""
    if quantity in ("deviance", "aic", "bic", "sigma2"):
        theirs = {"deviance": reference_deviance(expected), "sigma2": expected.get("sigma", np.nan) ** 2} | expected
        value = np.atleast_1d(theirs[quantity])
        return np.atleast_1d(getattr(fit, quantity)), value, np.abs(value)
    if quantity in ("fixed_effects", "std_errors"):
        ours = fit.fixed_effects["estimate" if quantity == "fixed_effects" else "std_error"].to_numpy()
        value = np.atleast_1d(expected["fixed"]["estimate" if quantity == "fixed_effects" else "se"])
        return ours, value, np.abs(value)
    if quantity == "vcov":
        value = np.atleast_2d(expected["vcov_fixed"])
        errors = np.sqrt(np.diag(value))
        return fit.vcov, value, np.outer(errors, errors)
    if quantity == "variance_components":
        value = np.array([row[3] for row in reference_components(expected)])
        # a variance of exactly zero is compared exactly
        return fit.variance_components["estimate"].to_numpy(), value, np.abs(value)
    (effects,) = expected["ranef"].values()
    levels, terms = effects["level"], np.atleast_1d(effects["terms"]).tolist()
    if quantity == "group_effects":
        value = np.array(effects["value"])
        return group_values(fit, "estimate", levels, terms), value, np.abs(value).max(axis=0) + np.zeros_like(value)
    value = np.array([np.diag(np.atleast_2d(v)) for v in effects["cond_var"]])
    return group_values(fit, "conditional_sd", levels, terms) ** 2, value, value


def has(expected: dict[str, Any], quantity: str) -> bool:
    """False for what the reference does not report: nlme's table is short, lme4 has no cond_var for `||`."""
    needs = {
        "aic": "aic",
        "bic": "bic",
        "vcov": "vcov_fixed",
        "group_effects": "ranef",
        "conditional_variances": "ranef",
    }
    if quantity in needs and needs[quantity] not in expected:
        return False
    return quantity != "conditional_variances" or all(e["cond_var"] is not None for e in expected["ranef"].values())


CASES = [
    pytest.param(problem, quantity, id=f"{problem}-{quantity}")
    for problem in PROBLEMS
    for quantity in TOLERANCE
    if has(problem.expected, quantity)
]


@pytest.mark.parametrize(("problem", "quantity"), CASES)
def test_quantity_agrees_with_r(fitted: Callable[..., mlsql.Fit], problem: Problem, quantity: str) -> None:
    fit, expected = fitted(problem), problem.expected
    ours, theirs, scale = pair(fit, expected, quantity)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    gap = fit.deviance - reference_deviance(expected)
    assert np.all(difference <= TOLERANCE[quantity] * scale), (
        f"deviance - reference's = {gap:+.3g}; {quantity}: ours {ours.tolist()}, theirs {theirs.tolist()}, largest "
        f"difference {difference.max():.3g}"
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_optimum_is_no_worse_and_names_and_counts_agree(fitted: Callable[..., mlsql.Fit], problem: Problem) -> None:
    fit, expected = fitted(problem), problem.expected
    assert fit.deviance - reference_deviance(expected) < NOT_ABOVE
    assert fit.fixed_effects["term"].to_list() == our_terms(expected)
    components = fit.variance_components.select("group", "term1", "term2").rows()
    assert components == [row[:3] for row in reference_components(expected)]
    assert fit.n_rows == expected["nobs"]
    assert fit.n_groups == next(iter(expected.get("ngroups", {"Subject": 27}).values()))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_search_is_short_and_says_how_it_ended(fitted: Callable[..., mlsql.Fit], problem: Problem) -> None:
    fit = fitted(problem)
    assert fit.converged
    assert fit.singular == (problem.name in SINGULAR)
    assert fit.status is (mlsql.Status.SINGULAR if problem.name in SINGULAR else mlsql.Status.CONVERGED)
    assert fit.n_evaluations <= MOST_EVALUATIONS


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if "cses" in p.formula], ids=str)
def test_centring_in_the_model_equals_a_centred_column(fitted: Callable[..., mlsql.Fit], problem: Problem) -> None:
    ready, here = fitted(problem), fitted(problem, True)
    terms = [re.sub(r"\bcses\b", "group_center(ses)", t) for t in ready.fixed_effects["term"]]
    assert here.fixed_effects["term"].to_list() == terms
    # the two differ by rounding of the file's 15 digits, which the flat covariance magnifies most
    assert here.deviance == pytest.approx(ready.deviance, rel=1e-12)
    for column in ("estimate", "std_error", "df", "p_value"):
        ours = here.fixed_effects[column].to_numpy()
        np.testing.assert_allclose(ours, ready.fixed_effects[column].to_numpy(), rtol=1e-8)
    np.testing.assert_allclose(here.T, ready.T, rtol=1e-6)
    assert here.sigma2 == pytest.approx(ready.sigma2, rel=1e-9)
    for column in ("estimate", "std_error", "coefficient", "ols_coefficient", "reliability"):
        theirs = ready.group_effects()[column].to_numpy()
        np.testing.assert_allclose(here.group_effects()[column].to_numpy(), theirs, rtol=1e-6, atol=1e-8)
