"""Degrees of freedom, robust and adjusted covariance matrices and tests, as R's packages and textbooks give them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql

Array = NDArray[np.float64]

EXPECTED = Path(__file__).parent / "expected"

HSB = mlsql.example_data("hsb")

FULL = "mathach ~ meanses*cses + sector*cses + (cses | school)"

DF = 1e-3
"""The packages differentiate numerically at an optimum that they find to 1e-6; agreement is 1e-5 and better."""

DF_EXACT = 1e-5
"""The formulas with analytic derivatives at a score of zero; ours is of first order in the error of the variances."""

ERROR = 1e-6
"""Standard errors: the variances behind them agree to 1e-6, and enter by their roots."""

COVARIANCE = 2e-6
"""Relative to the product of the two standard errors, since a covariance may be zero."""

STATISTIC = 1e-5
"""Squares of estimates over variances."""

METHODS = {"satterthwaite_df": "satterthwaite", "kenward_roger_df": "kenward_roger"}
ROBUST = ("CR0", "CR1", "CR2")

Fitted = Callable[..., mlsql.Fit]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def fitted(data_file: Callable[[str], str]) -> Callable[[dict[str, Any]], mlsql.Fit]:
    found: dict[tuple[str, str, str], mlsql.Fit] = {}

    def fit(expected: dict[str, Any]) -> mlsql.Fit:
        key = (expected["data"], expected["formula"], expected["method"])
        if key not in found:
            found[key] = mlsql.fit(expected["formula"], data_file(expected["data"]), method=expected["method"])
        return found[key]

    return fit


# ---------------------------------------------------------------------------------------------- every model of lme4

MODELS = [path.stem for path in sorted(EXPECTED.glob("*.json"))]
DF_CASES = [(name, key) for name in MODELS for key in METHODS if key in read(name)]
ERROR_CASES = [(name, kind) for name in MODELS for kind in ROBUST if f"robust_se_{kind}" in read(name)]
ADJUSTED = [name for name in MODELS if "kenward_roger_se" in read(name)]


@pytest.mark.parametrize(("name", "key"), DF_CASES)
def test_df(fitted: Callable[..., mlsql.Fit], name: str, key: str) -> None:
    expected = read(name)
    ours = fitted(expected).inference(METHODS[key])["df"]  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, np.atleast_1d(expected[key]), rtol=DF)


@pytest.mark.parametrize(("name", "kind"), ERROR_CASES)
def test_robust_errors(fitted: Callable[..., mlsql.Fit], name: str, kind: Any) -> None:
    expected = read(name)
    ours = fitted(expected).inference(vcov=kind)["std_error"]
    np.testing.assert_allclose(ours, np.atleast_1d(expected[f"robust_se_{kind}"]), rtol=ERROR)


@pytest.mark.parametrize("name", ADJUSTED)
def test_adjusted_errors(fitted: Callable[..., mlsql.Fit], name: str) -> None:
    expected = read(name)
    ours = fitted(expected).inference("kenward_roger")["std_error"]
    np.testing.assert_allclose(ours, np.atleast_1d(expected["kenward_roger_se"]), rtol=ERROR)


# ---------------------------------------------------------------------------------------------- tests and matrices

TESTED = [p.stem for p in sorted((EXPECTED / "inference").glob("*.json")) if "hypothesis" in json.loads(p.read_text())]
WEIGHTED = "inference_hsb_weighted_reml"
WEIGHT = "1 + minority + 0.5*female"


class Answer:
    """A fit with the reference's values, `exact` (from formulas at the optimum) unless another part is named."""

    def __init__(self, name: str, data_file: Callable[[str], str]) -> None:
        self.all = read(f"inference/{name}")
        # the packages' robust matrices of a weighted model are those of its rows times the root of the weight
        self.rescaled = self.all["rows_times_sqrt_w"] if name == WEIGHTED else self.all
        self.exact = self.all["exact"]
        self.fit = mlsql.fit(
            self.all["formula"],
            data_file(self.all["data"]),
            method=self.all["method"],
            weights=WEIGHT if name == WEIGHTED else None,
        )
        self.joint = np.array(self.all["hypothesis"]["joint"], dtype=np.float64)
        self.contrast = np.array(self.all["hypothesis"]["contrast"], dtype=np.float64)


@pytest.fixture(scope="module")
def answer(data_file: Callable[[str], str]) -> Callable[[str], Answer]:
    found: dict[str, Answer] = {}

    def find(name: str) -> Answer:
        if name not in found:
            found[name] = Answer(name, data_file)
        return found[name]

    return find


def close_matrices(ours: Array, theirs: Any) -> None:
    value = np.atleast_2d(np.asarray(theirs, dtype=np.float64))
    errors = np.sqrt(np.diag(value))
    assert np.abs(ours - value).max() == pytest.approx(0.0, abs=COVARIANCE * errors.max() ** 2)
    assert np.all(np.abs(ours - value) <= COVARIANCE * np.outer(errors, errors))


def check_test(found: Answer, expected: dict[str, Any], df: Any, vcov: Any = "model", rtol: float = DF_EXACT) -> None:
    row = found.fit.test(found.joint, df, vcov).row(0, named=True)
    names = {"df1": ("NumDF", "df_num"), "df2": ("DenDF", "df_denom"), "statistic": ("F", "F")}
    for ours, theirs in names.items():
        value = expected[next(n for n in theirs if n in expected)]
        assert row[ours] == pytest.approx(value, rel=rtol if ours == "df2" else STATISTIC), ours
    # the log of a p value as small as 1e-40 moves with the statistic
    assert np.log(row["p_value"]) == pytest.approx(np.log(expected["p"]), rel=1e-4)


def check_contrast(found: Answer, expected: dict[str, Any], df: Any, vcov: Any = "model") -> None:
    reference = found.fit.reference(df, vcov)
    contrast = found.contrast
    assert contrast @ found.fit.inference()["estimate"].to_numpy() == pytest.approx(expected["estimate"], rel=ERROR)
    assert np.sqrt(contrast @ reference.covariance @ contrast) == pytest.approx(expected["se"], rel=ERROR)
    assert reference.df(contrast[None])[0] == pytest.approx(expected["df"], rel=DF_EXACT)
    row = found.fit.test(contrast, df, vcov).row(0, named=True)
    assert row["statistic"] == pytest.approx(expected["statistic"] ** 2, rel=STATISTIC)
    assert row["df2"] == pytest.approx(expected["df"], rel=DF_EXACT)


@pytest.mark.parametrize("name", TESTED)
def test_satterthwaite(answer: Callable[[str], Answer], name: str) -> None:
    found = answer(name)
    df = found.fit.inference("satterthwaite")["df"]
    np.testing.assert_allclose(df, found.exact["satterthwaite_df"], rtol=DF_EXACT)
    np.testing.assert_allclose(df, found.all["satterthwaite_df"], rtol=DF)
    check_contrast(found, found.exact["satterthwaite_contrast"], "satterthwaite")
    check_test(found, found.exact["satterthwaite_joint"], "satterthwaite")
    check_test(found, found.all["lmertest_satterthwaite"]["joint"], "satterthwaite", rtol=DF)


@pytest.mark.parametrize("name", [n for n in TESTED if n.endswith("reml")])
def test_kenward_roger(answer: Callable[[str], Answer], name: str) -> None:
    found = answer(name)
    reference = found.fit.reference("kenward_roger")
    close_matrices(reference.covariance, found.exact["kenward_roger_vcov"])
    close_matrices(reference.covariance, found.rescaled["pbkrtest_vcovadj"])
    df = found.fit.inference("kenward_roger")["df"]
    np.testing.assert_allclose(df, found.exact["kenward_roger_df"], rtol=DF_EXACT)
    np.testing.assert_allclose(df, found.rescaled["kenward_roger_df"], rtol=DF)
    check_contrast(found, found.exact["kenward_roger_contrast"], "kenward_roger")
    check_test(found, found.exact["kenward_roger_joint"], "kenward_roger")
    check_test(found, found.rescaled["lmertest_kenward_roger"]["joint"], "kenward_roger", rtol=DF)


@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize("name", TESTED)
def test_robust(answer: Callable[[str], Answer], name: str, kind: Any) -> None:
    found = answer(name)
    exact, packaged = found.rescaled["exact"], found.rescaled["clubsandwich"]
    reference = found.fit.reference("satterthwaite", kind)
    close_matrices(reference.covariance, exact[kind])
    close_matrices(reference.covariance, packaged[f"vcov_{kind}"])
    table = found.fit.inference("satterthwaite", kind)
    np.testing.assert_allclose(table["df"], exact[f"{kind}_df"], rtol=DF_EXACT)
    if kind != "CR0":
        printed = packaged[f"coef_test_{kind}"]
        np.testing.assert_allclose(table["std_error"], printed["se"], rtol=ERROR)
        np.testing.assert_allclose(table["statistic"], printed["t"], rtol=STATISTIC)
        np.testing.assert_allclose(table["df"], printed["df"], rtol=DF)
        limits = packaged[f"conf_int_{kind}"]
        half = table["conf_high"] - table["estimate"]
        np.testing.assert_allclose(half, (np.array(limits["upper"]) - np.array(limits["lower"])) / 2, rtol=1e-5)
    if kind == "CR2":
        check_contrast(found, exact["CR2_contrast"], "satterthwaite", "CR2")


@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize("name", TESTED)
def test_approximate_hotelling_test(answer: Callable[[str], Answer], name: str, kind: Any) -> None:
    found = answer(name)
    check_test(found, found.rescaled["exact"][f"{kind}_HTZ"], "satterthwaite", kind)
    if kind != "CR0":
        check_test(found, found.rescaled["clubsandwich"][f"HTZ_{kind}"], "satterthwaite", kind, rtol=DF)


def test_weights_of_robust_matrices_without_adjustment(answer: Callable[[str], Answer]) -> None:
    """CR0 and CR1 are the same for a row with weight w and a row times its root; CR2 is another, unbiased too."""
    found = answer(WEIGHTED)
    for kind in ("CR0", "CR1"):
        close_matrices(found.fit.reference(vcov=kind).covariance, found.exact[kind])  # type: ignore[arg-type]
    ours = np.sqrt(np.diag(found.fit.reference(vcov="CR2").covariance))
    # the two differ by 1e-4 here
    np.testing.assert_allclose(ours, np.sqrt(np.diag(found.exact["CR2"])), rtol=1e-3)


# ---------------------------------------------------------------------------------------------- textbook


def test_table_9_5_robust_errors_of_hlm(fitted: Callable[..., mlsql.Fit], printed: Callable[[str], Any]) -> None:
    """Raudenbush & Bryk (2002), Table 9.5, recomputed at the optimum: CR0."""
    table = mlsql.fit(FULL, HSB).fixed_effects
    values = dict(zip(table["term"], table["robust_std_error"], strict=True))
    ratios = dict(zip(table["term"], table["robust_ratio"], strict=True))
    rows = {
        "(Intercept)": (".173695", ".198733"),
        "meanses": (".334600", ".369157"),
        "sector": (".308478", ".306268"),
        "cses": (".147482", ".155090"),
        "meanses:cses": (".332795", ".298896"),
        "cses:sector": (".237413", ".239787"),
    }
    for term, (robust, model) in rows.items():
        assert values[term] == printed(robust)
        assert ratios[term] == pytest.approx(float(robust) / float(model), rel=1e-5)


@pytest.mark.parametrize(("method", "chi2"), [("REML", "67.604"), ("ML", "69.063")])
def test_wald_test_of_sector(cached_fit: Fitted, printed: Callable[[str], Any], method: Any, chi2: str) -> None:
    """(3.91) for gamma_02 = gamma_12 = 0, at the optimum."""
    test = cached_fit(FULL, HSB, method).test(["sector", "cses:sector"])
    assert test["chi2"].item() == printed(chi2)
    assert test["chi2_df"].item() == 2
    assert test["chi2_p_value"].item() < 0.001


def test_wald_test_of_sector_at_the_program_s_variances(printed: Callable[[str], Any]) -> None:
    """The iterate of the program's run: T and sigma2 given."""
    run = mlsql.evaluate(FULL, HSB, T=[[2.37996, 0.19058], [0.19058, 0.14892]], sigma2=36.70313)
    assert run.test("sector = 0, cses:sector = 0")["chi2"].item() == printed("66.15")


def test_the_default_df_of_the_textbook(cached_fit: Fitted) -> None:
    """J - S_q - 1 = 157 for both equations of Table 4.5."""
    assert cached_fit(FULL, HSB).inference()["df"].to_list() == [157.0] * 6


def test_frames_name_their_method(cached_fit: Fitted) -> None:
    table = cached_fit(FULL, HSB).inference("kenward_roger")
    assert table.select(pl.col("df_method", "vcov").unique()).row(0) == ("kenward_roger", "model")
