"""Explained variance: printed proportions, Nakagawa's shares by R and from the rows, comparisons that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.diagnostics.explained import explained_variance, fixed_variance, random_variance
from mlsql.errors import FitError

EXPECTED = Path(__file__).parent.parent / "reference" / "expected" / "inference"
HSB = mlsql.example_data("hsb")
SES = "group_center(ses)"
DataFile = Callable[[str], str]
Fitted = Callable[..., mlsql.Fit]

OPTIMISER = 1e-6  # lme4 stops within about 1e-6 of the optimum (see the generator), so do its shares
ROUNDING = 1e-10  # sums of pivoted squares against sums over rows

NULL = "mathach ~ 1 + (1 | school)"
MEANS = "mathach ~ meanses + (1 | school)"
SLOPES = f"mathach ~ {SES} + ({SES} | school)"
FULL = f"mathach ~ meanses*{SES} + sector*{SES} + ({SES} | school)"


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    found: dict[tuple[str, str], mlsql.Fit] = {}

    def fit(formula: str, method: Any = "REML") -> mlsql.Fit:
        if (formula, method) not in found:
            found[formula, method] = mlsql.fit(formula, HSB, method=method)
        return found[formula, method]

    return fit


def proportions(fit: mlsql.Fit, baseline: mlsql.Fit | None) -> dict[tuple[str, int | None, str | None], float]:
    rows = explained_variance(fit.estimates, None if baseline is None else baseline.estimates)
    return {(r.measure, r.level, r.term): r.proportion for r in rows}


@pytest.mark.parametrize(
    ("model", "baseline", "level", "term", "expected", "half"),
    [
        (MEANS, NULL, 2, "(Intercept)", 0.69367, 5e-6),
        (SLOPES, NULL, 1, None, 0.06253, 5e-6),
        (FULL, SLOPES, 2, "(Intercept)", 0.7259, 5e-5),
        (FULL, SLOPES, 2, SES, 0.854, 5e-4),
    ],
)
def test_printed_reductions(
    fitted: Fitted, model: str, baseline: str, level: int, term: str | None, expected: float, half: float
) -> None:
    found = proportions(fitted(model), fitted(baseline))
    assert found["raudenbush_bryk", level, term] == pytest.approx(expected, abs=half)


def test_snijders_bosker_from_its_definition(fitted: Fitted) -> None:
    model, null = fitted(MEANS), fitted(NULL)
    n = 7185 / 160
    before, after = (np.array([f.T[0, 0], f.sigma2]) for f in (null, model))
    found = proportions(model, null)
    assert found["snijders_bosker", 1, None] == pytest.approx(1 - after.sum() / before.sum(), rel=1e-12)
    expected = 1 - (after[0] + after[1] / n) / (before[0] + before[1] / n)
    assert found["snijders_bosker", 2, None] == pytest.approx(expected, rel=1e-12)
    note = explained_variance(model.estimates, null.estimates)[3].note
    assert note == "for groups of the mean size, 44.9062"


def test_snijders_bosker_needs_random_intercepts(fitted: Fitted) -> None:
    rows = [r for r in explained_variance(fitted(SLOPES).estimates, fitted(NULL).estimates) if "snijders" in r.measure]
    assert all(np.isnan(r.proportion) and np.isnan(r.model_value) for r in rows)
    assert {r.note for r in rows} == {
        "defined for random intercepts: fit both models with (1 | group) alone to have it"
    }


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("exam_reml", "exam"),
        ("hsb_means_reml", "hsb"),
        ("hsb_full_reml", "hsb"),
        ("hsb_full_ml", "hsb"),
        ("sleepstudy_reml", "sleepstudy"),
    ],
)
def test_nakagawa_as_r_has_it(data_file: DataFile, name: str, data: str) -> None:
    reference = json.loads((EXPECTED / f"inference_{name}.json").read_text())
    fit = mlsql.fit(reference["formula"], data_file(data), method=reference["method"])
    expected = reference["r_squared"]["n_minus_1"]
    assert fixed_variance(fit.estimates) == pytest.approx(expected["fixed"], rel=OPTIMISER)
    assert random_variance(fit.estimates) == pytest.approx(expected["random"], rel=OPTIMISER)
    found = proportions(fit, None)
    assert list(found) == [("nakagawa_marginal", None, None), ("nakagawa_conditional", None, None)]
    assert found["nakagawa_marginal", None, None] == pytest.approx(expected["marginal"], rel=OPTIMISER)
    assert found["nakagawa_conditional", None, None] == pytest.approx(expected["conditional"], rel=OPTIMISER)


def rows_of_data() -> pl.DataFrame:
    """Groups of unequal size, not lying together, with a predictor far from zero and one on a small scale."""
    rng = np.random.default_rng(11)
    g = rng.permutation(np.repeat(np.arange(30), np.arange(5, 35)))
    N = len(g)
    w = rng.normal(size=30)[g]
    x, z = 1e4 + rng.normal(size=N), 1e-3 * rng.normal(size=N)
    u = rng.normal(size=(30, 2))[g]
    y = 500 + 0.8 * (x - 1e4) + 900 * z + w + u[:, 0] + 0.5 * u[:, 1] * (x - 1e4) + rng.normal(size=N)
    return pl.DataFrame({"g": g, "w": w, "x": x, "z": z, "f": np.resize(["a", "b", "c"], N), "o": 0.1 * w, "y": y})


def _centred(values: pl.Series) -> Any:
    return values.to_numpy() - values.mean()


# formula | random columns from the rows
MODELS: dict[str, Callable[[pl.DataFrame], list[Any]]] = {
    "y ~ x + z + (x | g)": lambda d: [np.ones(len(d)), d["x"].to_numpy()],
    "y ~ x*z + f + (1 | g)": lambda d: [np.ones(len(d))],
    "y ~ 0 + x + z + (1 | g)": lambda d: [np.ones(len(d))],
    "y ~ 0 + f + x:w + (0 + z | g)": lambda d: [d["z"].to_numpy()],
    "y ~ grand_center(x)*w + offset(o) + (grand_center(x) || g)": lambda d: [np.ones(len(d)), _centred(d["x"])],
    "y ~ group_center(x)*w + group_mean(x) + (group_center(x) | g)": lambda d: [
        np.ones(len(d)),
        (d["x"] - d.select(pl.col("x").mean().over("g"))["x"]).to_numpy(),
    ],
}


@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
@pytest.mark.parametrize("formula", MODELS)
def test_variances_over_rows(formula: str, lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if lean:
        monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    data = rows_of_data()
    fit = mlsql.fit(formula, data)
    assert fit.estimates.design.layout == ("lean" if lean else "full")
    predicted = fit.predict()
    assert predicted is not None
    population = predicted["population"]
    if "offset" in formula:
        population = population - predicted["o"]
    # values near 500 or 1e4, squared
    assert fixed_variance(fit.estimates) == pytest.approx(population.var(), rel=1e-8)
    Z = np.array(MODELS[formula](data))
    assert random_variance(fit.estimates) == pytest.approx(np.einsum("an,ab,bn->", Z, fit.T, Z) / len(data), rel=1e-6)


def test_a_model_without_predictors_explains_nothing_by_its_fixed_part(fitted: Fitted) -> None:
    found = proportions(fitted(NULL), None)
    assert found["nakagawa_marginal", None, None] == pytest.approx(0.0, abs=1e-14)
    assert found["nakagawa_conditional", None, None] == pytest.approx(fitted(NULL).icc, rel=ROUNDING)


def test_weights_leave_the_variance_of_a_row_open() -> None:
    data = pl.read_parquet(HSB).with_columns(w=1 + pl.col("minority"))
    null, fit = (mlsql.fit(f, data, weights="w") for f in (NULL, MEANS))
    rows = explained_variance(fit.estimates, null.estimates)
    assert [np.isfinite(r.proportion) for r in rows] == [True, True, False, False, False, False]
    assert all("precision weights" in (r.note or "") for r in rows[2:])


@pytest.mark.parametrize(
    ("model", "baseline", "note"),
    [
        (SLOPES, NULL, f"the level-1 predictors differ ({SES} only in the model)"),
        (MEANS, f"mathach ~ {SES} + (1 | school)", f"the level-1 predictors differ ({SES} only in the baseline)"),
        (
            "mathach ~ ses + (1 | school)",
            f"mathach ~ {SES} + (1 | school)",
            f"the level-1 predictors differ (ses only in the model; {SES} only in the baseline)",
        ),
        (
            f"mathach ~ sector*{SES} + (1 | school)",
            SLOPES,
            f"the random coefficients differ ({SES} only in the baseline): the variances are of different",
        ),
        (f"mathach ~ sector*{SES} + ({SES} || school)", SLOPES, "correlated in one model and not in the other"),
    ],
)
def test_variances_of_different_quantities_are_not_compared(
    fitted: Fitted, model: str, baseline: str, note: str
) -> None:
    rows = [r for r in explained_variance(fitted(model).estimates, fitted(baseline).estimates) if r.level == 2]
    found = [r for r in rows if r.measure == "raudenbush_bryk"]
    assert found
    for row in found:
        assert np.isnan(row.proportion)
        assert np.isfinite(row.model_value)
        assert note in str(row.note)


def test_one_method_for_both(fitted: Fitted) -> None:
    rows = explained_variance(fitted(MEANS, "ML").estimates, fitted(NULL).estimates)
    assert all(np.isnan(r.proportion) for r in rows[:4])
    assert {r.note for r in rows[:4]} == {"the model is fitted by ML, the baseline by REML: use one method for both"}
    assert np.isfinite(rows[4].proportion)


def test_nothing_is_left_to_explain(data_file: DataFile) -> None:
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff2"))
    row = explained_variance(fit.estimates, fit.estimates)[1]
    assert np.isnan(row.proportion)
    assert row.note == "the baseline's variance is zero: nothing is left to explain"


def test_the_same_rows_from_another_source(fitted: Fitted) -> None:
    frame = mlsql.fit(NULL, pl.read_parquet(HSB).with_columns(pl.col("school").cast(pl.Int32)))
    found = proportions(fitted(MEANS), frame)
    assert found["raudenbush_bryk", 2, "(Intercept)"] == pytest.approx(0.69367, abs=5e-6)


HSB_ROWS = pl.read_parquet(HSB)
OTHERS: dict[str, tuple[str, pl.DataFrame, dict[str, Any], str]] = {
    "outcome": ("ses ~ 1 + (1 | school)", HSB_ROWS, {}, "baseline's outcome is ses, this model's mathach"),
    "offset": (
        "mathach ~ offset(ses) + (1 | school)",
        HSB_ROWS,
        {},
        "baseline's outcome is mathach - ses, this model's mathach",
    ),
    "weights": (NULL, HSB_ROWS, {"weights": "size"}, "weights are none, the baseline's size"),
    "rows": (NULL, HSB_ROWS[1:], {}, r"7,185 rows in 160 groups of school, the baseline to 7,184 rows in 160 groups"),
    "groups": ("mathach ~ 1 + (1 | sector)", HSB_ROWS, {}, "the baseline to 7,185 rows in 2 groups of sector"),
    "keys": (NULL, HSB_ROWS.with_columns(pl.col("school") + 1), {}, "they are not the same rows"),
    "values": (
        NULL,
        HSB_ROWS.with_columns(pl.col("mathach").shift(1).fill_null(0)),
        {},
        "values of mathach .* are not those that the baseline was fitted to",
    ),
    "spread": (
        NULL,
        # the same sum in every school
        HSB_ROWS.with_columns(pl.col("mathach") + 0.01 * (pl.col("ses") - pl.col("ses").mean().over("school"))),
        {},
        "values of mathach .* are not those",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_data_are_refused(fitted: Fitted, what: str) -> None:
    formula, data, options, message = OTHERS[what]
    other = mlsql.fit(formula, data, **options)
    with pytest.raises(FitError, match=message):
        explained_variance(fitted(MEANS).estimates, other.estimates)
