"""Models with several grouping factors, as R's packages fit them: nested, crossed, crossed over nested, weighted."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql

Array = NDArray[np.float64]
Found = tuple[mlsql.Fit, dict[str, Any]]
Fitted = Callable[[str], Found]

EXPECTED = Path(__file__).parent / "expected" / "levels"

TOLERANCE = {  # rtol, why
    "deviance": 1e-8,  # of second order in the error of theta
    "aic": 1e-8,  # deviance and a count
    "bic": 1e-8,
    "fixed_effects": 1e-5,  # of first order in the error of theta, R's optimiser stops at 1e-6
    "std_errors": 1e-5,
    "vcov": 1e-5,  # of the product of the two standard errors: a covariance may be zero
    "variance_components": 1e-4,  # the flattest direction; covariances of the product of two standard deviations
    "sigma2": 1e-5,  # well determined by the rows
}
EFFECTS = 1e-4
"""Group effects, of the largest of the coefficient, and conditional variances: they inherit the components' error."""

NOT_ABOVE = 1e-6
"""A deviance that exceeds the reference's by more than this is not the optimum."""

GAP = 1e-9
"""Deviance above the exact minimum: our search stops where a step promises less than 1e-10."""

STANDARD_ERRORS = 1e-4
"""Of the components' own standard errors: a gap of the deviance is the square of such a distance (3e-5)."""

DF = 1e-3
"""The packages differentiate numerically at an optimum that they find to 1e-6; agreement is 1e-5 and better."""

DF_EXACT = 1e-5
"""The formulas with analytic derivatives at a score of zero; ours is of first order in the error of the variances."""

COVARIANCE = 2e-6
"""Of the product of the two standard errors."""

PROFILE = 1e-6
"""Of an interval's width: ends are where the root of the rise is within 1e-6 of its quantile, 5e-7 of the width."""

INTERPOLATED = 1e-3
"""Of an interval's width: lme4 interpolates its profiles by splines."""

FACTOR_LEVELS = {"femaleMale": "female[Male]", "sexM": "sex[M]"}

SINGULAR = {"scotssec_slopes_reml"}

MODELS = [p.stem for p in sorted(EXPECTED.glob("*.json")) if not p.stem.startswith("profile_")]
PROFILES = [p.stem for p in sorted(EXPECTED.glob("profile_*.json"))]


@cache
def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text())
    return found


def having(key: str) -> list[str]:
    return [name for name in MODELS if key in read(name)]


def numbers(value: Any) -> Array:
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


def exact(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read(name)["exact"]
    return found


@pytest.fixture(scope="module")
def fitted(data_file: Callable[[str], str]) -> Fitted:
    found: dict[str, mlsql.Fit] = {}

    def fit(name: str) -> Found:
        expected = read(name)
        if name not in found:
            data: Any = data_file(expected["data"])
            if "rows" in expected:
                data = pl.read_parquet(data).filter(pl.sql_expr(expected["rows"]))
            options: dict[str, Any] = {"method": expected["method"], "weights": expected.get("weights")}
            found[name] = mlsql.fit(expected["formula"], data, **options)
        return found[name], expected

    return fit


def parts(term: str) -> frozenset[str]:
    return frozenset(FACTOR_LEVELS.get(p, p) for p in term.split(":"))


def order(fit: mlsql.Fit, terms: list[str]) -> list[int]:
    """Our position of each of R's fixed effects."""
    ours = [frozenset(t.split(":")) for t in fit.fixed_effects["term"]]
    assert len(ours) == len(terms)
    return [ours.index(parts(t)) for t in terms]


def ours_by_term(fit: mlsql.Fit, expected: dict[str, Any], values: Any) -> Array:
    at = order(fit, expected["fixed"]["term"])
    found = np.asarray(values, dtype=np.float64)
    return np.asarray(found[at] if found.ndim == 1 else found[np.ix_(at, at)])


def component(group: str, first: str | None, second: str | None) -> tuple[frozenset[str], frozenset[str | None]]:
    """A variance or covariance, whatever the order of keys and terms."""
    own = frozenset(FACTOR_LEVELS.get(t, t) for t in (first, second) if t is not None)
    return frozenset(group.split(":")), own


def components(fit: mlsql.Fit, keys: list[tuple[Any, Any]]) -> Array:
    rows = fit.variance_components.select("group", "term1", "term2", "estimate").rows()
    values = {component(g, a, b): v for g, a, b, v in rows}
    assert len(values) == len(keys)
    return np.array([values[key] for key in keys])


def scales(keys: list[tuple[Any, Any]], values: Array) -> Array:
    """A variance itself, a covariance's two standard deviations."""
    variances = {(g, next(iter(t))): v for (g, t), v in zip(keys, values, strict=True) if len(t) == 1}
    return np.array(
        [
            np.sqrt(np.prod([variances[g, t] for t in terms])) if len(terms) == 2 else v
            for (g, terms), v in zip(keys, values, strict=True)
        ]
    )


@pytest.mark.parametrize("quantity", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_quantity_agrees_with_r(fitted: Fitted, name: str, quantity: str) -> None:
    fit, expected = fitted(name)
    if quantity in ("deviance", "aic", "bic", "sigma2"):
        ours, theirs = numbers(getattr(fit, quantity)), numbers(expected[quantity])
        scale = np.abs(theirs)
    elif quantity == "vcov":
        ours, theirs = ours_by_term(fit, expected, fit.vcov), np.atleast_2d(expected["vcov_fixed"])
        errors = np.sqrt(np.diag(theirs))
        scale = np.outer(errors, errors)
    elif quantity == "variance_components":
        table = expected["varcomp"]
        keys = [component(*row) for row in zip(table["group"], table["term1"], table["term2"], strict=True)]
        theirs = np.array(table["vcov"])
        ours, scale = components(fit, keys), scales(keys, theirs)
    else:
        column, key = {"fixed_effects": ("estimate", "estimate"), "std_errors": ("std_error", "se")}[quantity]
        ours, theirs = ours_by_term(fit, expected, fit.fixed_effects[column]), numbers(expected["fixed"][key])
        scale = np.abs(theirs)
    difference = np.abs(ours - theirs)
    gap = fit.deviance - expected["deviance"]
    assert np.all(difference <= TOLERANCE[quantity] * scale), (
        f"deviance - reference's = {gap:+.3g}; {quantity}: ours {ours.tolist()}, theirs {theirs.tolist()}"
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_optimum_is_no_worse(fitted: Fitted, name: str) -> None:
    fit, expected = fitted(name)
    assert fit.deviance - expected["deviance"] < NOT_ABOVE
    assert fit.converged
    assert fit.singular == (name in SINGULAR)
    assert fit.n_rows == expected["nobs"]


@pytest.mark.parametrize("name", having("exact"))
def test_the_optimum_to_rounding(fitted: Fitted, name: str) -> None:
    fit, expected = fitted(name)
    table = exact(name)["theta_names"]
    keys = [component(*row) for row in zip(table["group"], table["term1"], table["term2"], strict=True)]
    theirs = np.array(exact(name)["theta"])
    # deviances have sixteen digits
    assert fit.deviance == pytest.approx(exact(name)["deviance"], abs=GAP, rel=1e-13)
    assert np.all(np.abs(components(fit, keys) - theirs) <= STANDARD_ERRORS * np.array(exact(name)["theta_se"]))
    ours = ours_by_term(fit, expected, fit.fixed_effects["estimate"])
    errors = np.sqrt(np.diag(np.atleast_2d(exact(name)["vcov"])))
    assert np.all(np.abs(ours - numbers(exact(name)["estimate"])) <= STANDARD_ERRORS / 10 * errors)


@pytest.mark.parametrize("name", having("ranef"))
def test_every_group_effect_and_conditional_variance(fitted: Fitted, name: str) -> None:
    fit, expected = fitted(name)
    for factor, effects in expected["ranef"].items():
        keys = factor.split(":")
        table = fit.group_effects(factor).with_columns(
            level=pl.concat_str([pl.col(k).cast(pl.String) for k in keys], separator=":")
        )
        reference = pl.DataFrame({"level": [str(v) for v in effects["level"]]})
        assert len(table) == len(reference) * len(effects["terms"])
        for i, term in enumerate(effects["terms"]):
            own = table.filter(pl.col("term") == FACTOR_LEVELS.get(term, term))
            own = reference.join(own, on="level", how="left", maintain_order="left")
            theirs = np.array(effects["value"])[:, i]
            difference = np.abs(own["estimate"].to_numpy() - theirs)
            assert difference.max() <= EFFECTS * np.abs(theirs).max(), (factor, term)
            variances = np.array(effects["cond_var"])[:, i]
            np.testing.assert_allclose(own["conditional_sd"].to_numpy() ** 2, variances, rtol=EFFECTS)


# ---------------------------------------------------------------------------------------------- inference


def close_matrices(ours: Array, theirs: Any) -> None:
    value = np.atleast_2d(np.asarray(theirs, dtype=np.float64))
    errors = np.sqrt(np.diag(value))
    assert np.all(np.abs(ours - value) <= COVARIANCE * np.outer(errors, errors))


@pytest.mark.parametrize("name", having("satterthwaite_df"))
def test_satterthwaite(fitted: Fitted, name: str) -> None:
    fit, expected = fitted(name)
    if name in SINGULAR:
        pytest.skip("lmerTest differentiates across the boundary")
    ours = ours_by_term(fit, expected, fit.inference("satterthwaite")["df"])
    np.testing.assert_allclose(ours, numbers(expected["satterthwaite_df"]), rtol=DF)
    if "exact" in expected:
        np.testing.assert_allclose(ours, numbers(exact(name)["satterthwaite_df"]), rtol=DF_EXACT)


@pytest.mark.parametrize("name", [n for n in having("exact") if "kenward_roger_df" in exact(n)])
def test_kenward_roger(fitted: Fitted, name: str) -> None:
    fit, expected = fitted(name)
    covariance = ours_by_term(fit, expected, fit.reference("kenward_roger").covariance)
    close_matrices(covariance, exact(name)["kenward_roger_vcov"])
    ours = ours_by_term(fit, expected, fit.inference("kenward_roger")["df"])
    np.testing.assert_allclose(ours, numbers(exact(name)["kenward_roger_df"]), rtol=DF_EXACT)
    if "kenward_roger_df" in expected:
        np.testing.assert_allclose(ours, numbers(expected["kenward_roger_df"]), rtol=DF)
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), numbers(expected["kenward_roger_se"]), rtol=1e-5)


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR2"])
@pytest.mark.parametrize("name", [n for n in having("exact") if "CR2" in exact(n)])
def test_robust_matrices_by_the_highest_factor(fitted: Fitted, name: str, kind: Any) -> None:
    fit, expected = fitted(name)
    weighted = "weights" in expected and expected["weights"] is not None
    if weighted and kind == "CR2":
        pytest.skip("CR2 of weighted rows is that of rows times the root of the weight; the reference's is not")
    covariance = ours_by_term(fit, expected, fit.reference("satterthwaite", kind).covariance)
    close_matrices(covariance, exact(name)[kind])
    df = ours_by_term(fit, expected, fit.inference("satterthwaite", kind)["df"])
    np.testing.assert_allclose(df, numbers(exact(name)[f"{kind}_df"]), rtol=DF_EXACT)
    if "clubsandwich" in expected:
        package = expected["clubsandwich"]
        # at the optimum of R's search
        value = np.atleast_2d(np.asarray(package[f"vcov_{kind}"]))
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), np.sqrt(np.diag(value)), rtol=1e-5)
        if kind != "CR0":
            np.testing.assert_allclose(df, numbers(package[f"coef_test_{kind}"]["df"]), rtol=DF)


@pytest.mark.parametrize("name", having("clubsandwich_says"))
def test_robust_matrices_of_crossed_factors_are_refused(fitted: Fitted, name: str) -> None:
    assert "Non-nested" in read(name)["clubsandwich_says"]
    with pytest.raises(mlsql.MlsqlError, match="no grouping factor contains the others"):
        fitted(name)[0].inference(vcov="CR0")


# ---------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", PROFILES)
def test_profile_limits(data_file: Callable[[str], str], name: str) -> None:
    expected = read(name)
    fit = mlsql.fit(expected["formula"], data_file(expected["data"]), method=expected["method"])
    table = fit.confint(method="profile")
    ours = {}
    for row in table.iter_rows(named=True):
        if row["effect"] == "fixed":
            ours["fixed"] = row["conf_low"], row["conf_high"]
        else:
            ours[row["term"].rsplit(": ", 1)[0]] = np.sqrt(row["conf_low"]), np.sqrt(row["conf_high"])
    limits = expected["exact_profile"]
    theirs = dict(zip(limits["group"], zip(limits["lower"], limits["upper"], strict=True), strict=True))
    assert {frozenset(k.split(":")) for k in ours} == {frozenset(k.split(":")) for k in theirs}
    found = {frozenset(k.split(":")): v for k, v in ours.items()}
    for group, (low, high) in theirs.items():
        own = found[frozenset(group.split(":"))]
        assert own == pytest.approx((low, high), abs=PROFILE * (high - low)), group
    if "lme4_profile" in expected:
        package = expected["lme4_profile"]
        for parm, low, high in zip(package["parm"], package["lower"], package["upper"], strict=True):
            group = {"sigma": "Residual", "(Intercept)": "fixed"}.get(parm) or parm.split("|")[1]
            own = found[frozenset(group.split(":"))]
            assert own == pytest.approx((low, high), abs=INTERPOLATED * (high - low)), parm
