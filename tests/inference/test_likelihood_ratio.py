"""Likelihood-ratio tests: printed and R's values, mixtures at the boundary, and what is nested in what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import chdtrc

import mlsql

HSB = mlsql.example_data("hsb")
SES = "group_center(ses)"
EXPECTED = Path(__file__).parent.parent / "reference" / "expected" / "inference"

Fitted = Callable[..., mlsql.Fit]


@pytest.fixture(scope="session")
def hsb() -> Fitted:
    found: dict[tuple[str, str], mlsql.Fit] = {}

    def fit(formula: str, method: str = "ML") -> mlsql.Fit:
        if (formula, method) not in found:
            found[formula, method] = mlsql.fit(f"mathach ~ {formula}", HSB, method=method)  # type: ignore[arg-type]
        return found[formula, method]

    return fit


def row(table: pl.DataFrame) -> dict[str, Any]:
    return table.row(0, named=True)


# ---------------------------------------------------------------------------------------------- published values


def test_slope_variance_of_table_4_4(hsb: Fitted) -> None:
    """Recomputed by an independent maximiser, printed to four decimals."""
    larger, smaller = hsb(f"{SES} + ({SES} | school)", "REML"), hsb(f"{SES} + (1 | school)", "REML")
    found = row(larger.likelihood_ratio(smaller))
    assert found["chi2"] == pytest.approx(9.7617, abs=5e-5)
    assert found["df"] == 2
    assert found["p_value"] == pytest.approx(0.0076, abs=5e-5)
    assert found["mixture"] == "0.5 chi2(1) + 0.5 chi2(2)"
    assert found["mixture_p_value"] == pytest.approx(0.0047, abs=5e-5)
    assert found["note"] is None
    assert found["smaller"] == smaller.spec.formula
    assert found["larger"] == larger.spec.formula


@pytest.mark.parametrize(("method", "chi2"), [("REML", 1.1265), ("ML", 1.0039)])
def test_slope_variance_of_table_4_5(hsb: Fitted, method: str, chi2: float) -> None:
    """Recomputed by an independent maximiser and printed to four decimals; R has twelve digits."""
    fixed = f"meanses*{SES} + sector*{SES}"
    larger, smaller = hsb(f"{fixed} + ({SES} | school)", method), hsb(f"{fixed} + (1 | school)", method)
    found = row(larger.likelihood_ratio(smaller))
    assert found["chi2"] == pytest.approx(chi2, abs=5e-5)
    expected = json.loads((EXPECTED / f"inference_hsb_full_{method.lower()}.json").read_text())["lr_test"]
    # a difference of deviances near 46,500 that R has to 1e-8 at best
    assert found["chi2"] == pytest.approx(expected["chisq"], abs=1e-6)
    assert found["df"] == expected["df"]
    assert found["p_value"] == pytest.approx(expected["p"], abs=1e-6)


def test_sleepstudy_as_in_r(data_file: Callable[[str], str]) -> None:
    expected = json.loads((EXPECTED / "inference_sleepstudy_reml.json").read_text())["lr_test"]
    data = data_file("sleepstudy")
    larger = mlsql.fit("Reaction ~ Days + (Days | Subject)", data)
    found = row(larger.likelihood_ratio(mlsql.fit("Reaction ~ Days + (1 | Subject)", data)))
    assert found["chi2"] == pytest.approx(expected["chisq"], abs=1e-6)
    assert found["p_value"] == pytest.approx(expected["p"], rel=1e-6)


# ---------------------------------------------------------------------------------------------- the numbers


def test_fixed_effects_have_the_plain_chi_square(hsb: Fitted) -> None:
    larger, smaller = hsb("sector*ses + (1 | school)"), hsb("ses + (1 | school)")
    found = row(larger.likelihood_ratio(smaller))
    assert found["chi2"] == smaller.deviance - larger.deviance
    assert found["df"] == 2
    assert found["p_value"] == pytest.approx(float(chdtrc(2, found["chi2"])), rel=1e-12)
    assert (found["mixture"], found["mixture_p_value"], found["note"]) == (None, None, None)


@pytest.mark.parametrize(
    ("smaller", "larger", "df", "mixture"),
    [
        # one variance and no covariance: half a point mass at zero
        ("ses + (1 | school)", "ses + (ses || school)", 1, (0, 1)),
        ("ses + (1 | school)", "ses + (ses | school)", 2, (1, 2)),
        ("ses + (0 + ses | school)", "ses + (ses | school)", 2, (1, 2)),
        # a variance with two covariances
        ("ses + minority + (ses | school)", "ses + minority + (ses + minority | school)", 3, (2, 3)),
        # a fixed effect beside: one df more in both
        ("1 + (1 | school)", "ses + (ses | school)", 3, (2, 3)),
        # a covariance alone lies inside
        ("ses + (ses || school)", "ses + (ses | school)", 1, None),
    ],
)
def test_mixtures(hsb: Fitted, smaller: str, larger: str, df: int, mixture: tuple[int, int] | None) -> None:
    found = row(hsb(larger).likelihood_ratio(hsb(smaller)))
    chi2 = found["chi2"]
    assert chi2 == hsb(smaller).deviance - hsb(larger).deviance > 0
    assert found["df"] == df
    assert found["p_value"] == pytest.approx(float(chdtrc(df, chi2)), rel=1e-12)
    if mixture is None:
        assert found["mixture"] is None
        assert found["mixture_p_value"] is None
        return
    assert found["mixture"] == f"0.5 chi2({mixture[0]}) + 0.5 chi2({mixture[1]})"
    tails = [float(chdtrc(d, chi2)) if d else 0.0 for d in mixture]
    assert found["mixture_p_value"] == pytest.approx(sum(tails) / 2, rel=1e-12)
    assert found["mixture_p_value"] < found["p_value"]


def test_several_variances_have_no_known_mixture(hsb: Fitted) -> None:
    found = row(
        hsb("ses + minority + (ses + minority || school)").likelihood_ratio(hsb("ses + minority + (1 | school)"))
    )
    assert found["df"] == 2
    assert (found["mixture"], found["mixture_p_value"]) == (None, None)
    assert found["note"] == "2 variances are tested at their boundary: the p value is conservative"


@pytest.mark.parametrize("method", ["ML", "REML"])
def test_against_the_single_level_model(hsb: Fitted, method: str) -> None:
    """Least squares: N log(2 pi RSS / N) + N, and its restricted counterpart."""
    fit = hsb("ses + (1 | school)", method)
    data = pl.read_parquet(HSB)
    X = np.column_stack([np.ones(len(data)), data["ses"].to_numpy()])
    y = data["mathach"].to_numpy()
    N, p = X.shape
    rss = float(np.linalg.lstsq(X, y, rcond=None)[1][0])
    degrees = N - p if method == "REML" else N
    alone = degrees * (np.log(2 * np.pi * rss / degrees) + 1)
    if method == "REML":
        alone += float(np.linalg.slogdet(X.T @ X)[1])
    found = row(fit.likelihood_ratio())
    # a difference of numbers near 47,000 in double precision
    assert found["chi2"] == pytest.approx(alone - fit.deviance, abs=1e-7)
    assert found["df"] == 1
    assert found["mixture"] == "0.5 chi2(0) + 0.5 chi2(1)"
    assert found["mixture_p_value"] == pytest.approx(found["p_value"] / 2, rel=1e-12)
    assert found["smaller"] == "the fixed part alone"
    assert found["larger"] == fit.spec.formula


def test_against_the_single_level_model_with_a_random_slope(hsb: Fitted) -> None:
    fit = hsb("ses + (ses | school)")
    found = row(fit.likelihood_ratio())
    one = row(hsb("ses + (1 | school)").likelihood_ratio())
    assert found["df"] == 3
    assert "2 variances" in found["note"]
    assert found["chi2"] == pytest.approx(one["chi2"] + hsb("ses + (1 | school)").deviance - fit.deviance, abs=1e-7)


def test_weights_do_not_shift_the_single_level_test() -> None:
    """Weighted least squares with the same constants of the weights."""
    data = pl.read_parquet(HSB)
    fit = mlsql.fit("mathach ~ ses + (1 | school)", HSB, method="ML", weights="1 + female")
    s = np.sqrt(1.0 + data["female"].to_numpy())
    X = np.column_stack([np.ones(len(data)), data["ses"].to_numpy()]) * s[:, None]
    rss = float(np.linalg.lstsq(X, data["mathach"].to_numpy() * s, rcond=None)[1][0])
    N = len(data)
    alone = N * (np.log(2 * np.pi * rss / N) + 1) - 2 * float(np.log(s).sum())
    assert row(fit.likelihood_ratio())["chi2"] == pytest.approx(alone - fit.deviance, abs=1e-7)


def test_no_variance_between_groups(data_file: Callable[[str], str]) -> None:
    """chi2 is 0, never negative: the p value is 1, that of the point mass at zero too."""
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff2"))
    found = row(fit.likelihood_ratio())
    # the deviances of the same model by two ways
    assert found["chi2"] == pytest.approx(0.0, abs=1e-9)
    assert found["p_value"] > 0.999
    assert found["mixture_p_value"] > 0.499


# ---------------------------------------------------------------------------------------------- what is nested


def test_the_order_of_terms_and_factors_does_not_matter(hsb: Fitted) -> None:
    smaller = hsb("ses + sector + (1 | school)")
    tables = [
        row(hsb(f"{fixed} + (1 | school)").likelihood_ratio(smaller))
        for fixed in ("sector*ses", "ses*sector", "sector + ses + ses:sector", "ses:sector + sector + ses")
    ]
    for found in tables:
        assert found["df"] == 1
        assert found["chi2"] == pytest.approx(tables[0]["chi2"], abs=1e-7)


def test_the_order_of_random_coefficients_does_not_matter(hsb: Fitted) -> None:
    larger = hsb("ses + minority + (minority + ses | school)")
    for inner in (
        "(ses | school)",
        "(minority | school)",
        "(ses + minority || school)",
        "(0 + minority + ses | school)",
    ):
        found = row(larger.likelihood_ratio(hsb(f"ses + minority + {inner}")))
        assert found["chi2"] > 0
        assert found["df"] == 3


def test_a_diagonal_is_nested_in_a_full_matrix_and_not_the_reverse(hsb: Fitted) -> None:
    full, diagonal = hsb("ses + (ses | school)"), hsb("ses + (ses || school)")
    assert row(full.likelihood_ratio(diagonal))["df"] == 1
    with pytest.raises(mlsql.FitError, match="turn the two around"):
        diagonal.likelihood_ratio(full)


def test_the_same_rows_in_another_order_from_another_source(hsb: Fitted) -> None:
    """Sums differ by rounding only."""
    shuffled = pl.read_parquet(HSB).sample(fraction=1.0, shuffle=True, seed=1)
    smaller = mlsql.fit("mathach ~ 1 + (1 | school)", shuffled, method="ML")
    larger = hsb("ses + (1 | school)")
    assert row(larger.likelihood_ratio(smaller))["chi2"] == pytest.approx(smaller.deviance - larger.deviance, abs=1e-9)


def test_missing_values_that_both_models_leave_out(hsb: Fitted) -> None:
    """A predictor with gaps in both: the same rows."""
    data = pl.read_parquet(HSB).with_columns(pl.when(pl.int_range(pl.len()) % 50 > 0).then("ses").alias("ses"))
    larger = mlsql.fit("mathach ~ ses + sector + (1 | school)", data, method="ML")
    found = row(larger.likelihood_ratio(mlsql.fit("mathach ~ ses + (1 | school)", data, method="ML")))
    assert found["df"] == 1
    assert larger.n_rows < 7185


def test_factors_column_by_column(data_file: Callable[[str], str]) -> None:
    exam = data_file("exam")
    larger = mlsql.fit("normexam ~ standLRT*schgend + (1 | school)", exam, method="ML")
    smaller = mlsql.fit("normexam ~ schgend + standLRT + (1 | school)", exam, method="ML")
    assert row(larger.likelihood_ratio(smaller))["df"] == 2
    none = mlsql.fit("normexam ~ 1 + (1 | school)", exam, method="ML")
    assert row(larger.likelihood_ratio(none))["df"] == 5


def test_level_two_table_and_rows_alike() -> None:
    """The same level-2 predictor from the rows or from a table of its own."""
    data = pl.read_parquet(HSB)
    schools = data.select("school", "sector").unique()
    larger = mlsql.fit("mathach ~ ses + sector + (1 | school)", data.drop("sector"), level2=schools, method="ML")
    smaller = mlsql.fit("mathach ~ ses + (1 | school)", data, method="ML")
    assert row(larger.likelihood_ratio(smaller))["df"] == 1
