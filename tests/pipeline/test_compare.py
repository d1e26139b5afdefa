"""`compare` and `step_up`: columns and numbers against separate fits, textbook values, and which steps there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import chdtrc

import mlsql
from mlsql.engine.duckdb import DuckDBEngine

HSB = mlsql.example_data("hsb")
SES = "group_center(ses)"
FULL = f"mathach ~ meanses*{SES} + sector*{SES} + ({SES} | school)"

COLUMNS = [
    *("model", "n_parameters", "deviance", "aic", "bic", "against", "chi2", "df", "p_value", "mixture"),
    *("mixture_p_value", "sigma2", "intercept_variance", "explained_level1", "explained_intercept", "baseline"),
    *("method", "formula", "note"),
]

SAME = 1e-8
"""Relative, of deviances: searches for the same optimum from the same moments, assembled anew."""

PARAMETER = 1e-6
"""Relative, of estimates: of first order in where the search stops."""


def fit(formula: str, method: Any = "ML", data: Any = HSB, **options: Any) -> mlsql.Fit:
    return mlsql.fit(formula, data, method=method, **options)


def rows(table: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in table.iter_rows(named=True)}


# ---------------------------------------------------------------------------------------------- compare


def test_numbers_are_those_of_the_fits() -> None:
    fits = [fit("mathach ~ 1 + (1 | school)"), fit("mathach ~ meanses + (1 | school)"), fit(FULL)]
    table = mlsql.compare(*fits)
    assert table.columns == COLUMNS
    assert table["model"].to_list() == ["1", "2", "3"]
    assert table["against"].to_list() == [None, "1", "2"]
    assert table["baseline"].to_list() == [None, "1", "1"]
    assert table["formula"].to_list() == [f.spec.formula for f in fits]
    assert table["method"].to_list() == ["ML"] * 3
    assert table["n_parameters"].to_list() == [3, 4, 10]
    for name in ("deviance", "aic", "bic", "sigma2"):
        assert table[name].to_list() == [getattr(f, name) for f in fits]
    assert table["intercept_variance"].to_list() == [f.T[0, 0] for f in fits]
    for i in (1, 2):
        row, ratio = table.row(i, named=True), fits[i].likelihood_ratio(fits[i - 1]).row(0, named=True)
        for name in ("chi2", "df", "p_value", "mixture", "mixture_p_value"):
            assert row[name] == ratio[name]
    np.testing.assert_allclose(
        table["explained_level1"][1:], [1 - f.sigma2 / fits[0].sigma2 for f in fits[1:]], atol=1e-12
    )
    assert table["explained_intercept"][1] == pytest.approx(1 - fits[1].T[0, 0] / fits[0].T[0, 0], rel=1e-12)
    # other level-1 predictors: tau00 is of another quantity
    assert table["explained_intercept"][2] is None


def test_explained_variance_of_tables_4_3_and_4_4() -> None:
    """Recomputed by an independent maximiser, REML."""
    null = fit("mathach ~ 1 + (1 | school)", "REML")
    means = fit("mathach ~ meanses + (1 | school)", "REML")
    slopes = fit(f"mathach ~ {SES} + ({SES} | school)", "REML")
    found = rows(mlsql.compare(null, means, slopes, names=["ANOVA", "means", "slopes"]))
    assert found["means"]["explained_intercept"] == pytest.approx(0.69367, abs=5e-6)
    assert found["slopes"]["explained_level1"] == pytest.approx(0.06253, abs=5e-6)
    assert found["slopes"]["explained_intercept"] is None
    assert found["means"]["baseline"] == "ANOVA"
    # no deviance test of different fixed parts by REML, and why
    for name, term in (("means", "meanses"), ("slopes", SES)):
        assert found[name]["chi2"] is None
        assert found[name]["p_value"] is None
        assert "REML deviances of different fixed parts" in found[name]["note"]
        assert term in found[name]["note"]
    assert found["slopes"]["against"] == "means"


def test_either_order_of_two_models_gives_the_same_test() -> None:
    small, large = fit("mathach ~ ses + (1 | school)"), fit("mathach ~ ses + (ses | school)")
    up, down = mlsql.compare(small, large), mlsql.compare(large, small)
    for name in ("chi2", "df", "p_value", "mixture", "mixture_p_value"):
        assert up[name][1] == down[name][1]
    assert up["chi2"][1] == small.deviance - large.deviance
    assert up["mixture"][1] == "0.5 chi2(1) + 0.5 chi2(2)"


def test_models_that_are_not_nested() -> None:
    table = mlsql.compare(fit("mathach ~ ses + (1 | school)"), fit("mathach ~ meanses + sector + (1 | school)"))
    row = table.row(1, named=True)
    assert row["chi2"] is None
    assert "not nested" in row["note"]
    assert "AIC or BIC" in row["note"]
    assert table["aic"].null_count() == 0


def test_different_methods_are_shown_and_not_tested() -> None:
    table = mlsql.compare(fit("mathach ~ ses + (1 | school)"), fit("mathach ~ ses + (ses | school)", "REML"))
    row = table.row(1, named=True)
    assert (row["chi2"], row["explained_level1"]) == (None, None)
    assert "one model was fitted by" in row["note"]


def test_a_model_without_random_intercept() -> None:
    table = mlsql.compare(fit("mathach ~ ses + (ses | school)"), fit("mathach ~ ses + (0 + ses | school)"))
    assert table["intercept_variance"][1] is None
    assert table["df"][1] == 2
    assert table["explained_intercept"][1] is None


# ---------------------------------------------------------------------------------------------- step_up

NAMES = [
    "one-way ANOVA",
    "means as outcomes",
    "one-way ANCOVA",
    "random coefficients",
    "nonrandomly varying slopes",
    "intercepts and slopes as outcomes",
]
FORMULAS = [
    "mathach ~ 1 + (1 | school)",
    "mathach ~ meanses + sector + (1 | school)",
    "mathach ~ grand_center(ses) + (1 | school)",
    f"mathach ~ {SES} + ({SES} | school)",
    f"mathach ~ meanses*{SES} + sector*{SES} + (1 | school)",
    FULL,
]
AGAINST = [None, NAMES[0], NAMES[0], NAMES[0], NAMES[5], NAMES[3]]
BASELINES = [None, NAMES[0], NAMES[0], NAMES[0], NAMES[3], NAMES[3]]


@pytest.mark.parametrize("method", ["ML", "REML"])
def test_the_whole_sequence_equals_separate_fits(method: Any) -> None:
    steps = mlsql.step_up(FULL, HSB, method=method)
    assert list(steps.fits) == NAMES
    assert steps.table.columns == COLUMNS
    assert steps.table["model"].to_list() == NAMES
    assert steps.table["against"].to_list() == AGAINST
    assert steps.table["baseline"].to_list() == BASELINES
    for name, formula in zip(NAMES, FORMULAS, strict=True):
        found, direct = steps.fits[name], fit(formula, method)
        row = rows(steps.table)[name]
        assert row["deviance"] == found.deviance == pytest.approx(direct.deviance, rel=SAME)
        assert row["method"] == method
        order = [found.estimates.fixed_names.index(t) for t in direct.estimates.fixed_names]
        np.testing.assert_allclose(found.estimates.beta[order], direct.estimates.beta, rtol=PARAMETER)
        np.testing.assert_allclose(found.T, direct.T, rtol=PARAMETER, atol=PARAMETER)
        assert found.sigma2 == pytest.approx(direct.sigma2, rel=PARAMETER)
        assert found.converged


def test_tests_and_explained_variance_of_the_sequence() -> None:
    steps = mlsql.step_up(FULL, HSB)
    found, fits = rows(steps.table), steps.fits
    assert set(steps.table["method"]) == {"ML"}
    for name, against in zip(NAMES[1:], AGAINST[1:], strict=True):
        row, larger, smaller = found[name], fits[name], fits[str(against)]
        if name == "nonrandomly varying slopes":
            larger, smaller = smaller, larger
        assert row["chi2"] == pytest.approx(smaller.deviance - larger.deviance, abs=1e-9)
        assert row["df"] == larger.estimates.n_parameters - smaller.estimates.n_parameters
        assert row["p_value"] == pytest.approx(float(chdtrc(row["df"], row["chi2"])), rel=1e-12)
    assert found[NAMES[4]]["chi2"] == pytest.approx(1.0039, abs=5e-5)
    assert found[NAMES[4]]["mixture"] == "0.5 chi2(1) + 0.5 chi2(2)"
    for name, base in zip(NAMES[1:], BASELINES[1:], strict=True):
        expected = 1 - fits[name].sigma2 / fits[str(base)].sigma2
        assert found[name]["explained_level1"] == pytest.approx(expected, abs=1e-12)
    last = found[NAMES[5]]
    assert last["explained_intercept"] == pytest.approx(1 - fits[NAMES[5]].T[0, 0] / fits[NAMES[3]].T[0, 0], rel=1e-9)


@pytest.mark.parametrize("method", ["REML"])
def test_explained_variance_by_reml(method: Any) -> None:
    found = rows(mlsql.step_up("mathach ~ meanses + (1 | school)", HSB, method=method).table)
    assert found["means as outcomes"]["explained_intercept"] == pytest.approx(0.69367, abs=5e-6)


ANCOVA = "one-way ANCOVA with random effects and level-2 predictors"


@pytest.mark.parametrize(
    ("formula", "names"),
    [
        ("mathach ~ 1 + (1 | school)", NAMES[:1]),
        ("mathach ~ meanses + (1 | school)", NAMES[:2]),
        ("mathach ~ sector*meanses + (1 | school)", NAMES[:2]),
        ("mathach ~ grand_center(ses) + (1 | school)", [NAMES[0], NAMES[2]]),
        (f"mathach ~ {SES} + (1 | school)", [NAMES[0], NAMES[2], "one-way ANCOVA, centred within groups"]),
        (f"mathach ~ {SES} + ({SES} | school)", [NAMES[0], NAMES[2], NAMES[3]]),
        ("mathach ~ grand_center(ses) + meanses + (1 | school)", [*NAMES[:3], ANCOVA]),
        (
            f"mathach ~ meanses + {SES} + (1 | school)",
            [*NAMES[:3], "one-way ANCOVA, centred within groups", ANCOVA],
        ),
        (f"mathach ~ meanses + {SES} + ({SES} | school)", [*NAMES[:4], NAMES[5]]),
        ("mathach ~ sector*grand_center(ses) + (1 | school)", [*NAMES[:3], NAMES[4]]),
        (f"mathach ~ sector*{SES} + ({SES} || school)", NAMES),
    ],
)
def test_simpler_models_have_fewer_steps(formula: str, names: list[str]) -> None:
    steps = mlsql.step_up(formula, HSB)
    assert list(steps.fits) == names
    last = steps.fits[names[-1]]
    assert last.spec == fit(formula).spec
    assert steps.table.height == len(names)
    # a name in `against` or `baseline` is one of the models
    for column in ("against", "baseline"):
        assert set(steps.table[column].drop_nulls()) <= set(names)


def test_blocks_of_the_final_model_are_kept() -> None:
    steps = mlsql.step_up(f"mathach ~ sector*{SES} + ({SES} || school)", HSB)
    assert steps.fits["random coefficients"].T[0, 1] == 0.0
    assert rows(steps.table)["random coefficients"]["n_parameters"] == 5


def test_a_level_2_table_and_factors(external: pl.DataFrame) -> None:
    """Predictors of the groups from a table of their own; a factor at either level."""
    schools = external.select("school", "kind", "meanses").unique()
    students = external.drop("kind", "meanses")
    formula = "mathach ~ kind*group_center(ses) + meanses + female + (group_center(ses) | school)"
    steps = mlsql.step_up(formula, students, level2=schools)
    joined = mlsql.step_up(formula, external)
    assert list(steps.fits) == list(joined.fits) == NAMES
    means = steps.fits["means as outcomes"]
    assert means.estimates.fixed_names == ("(Intercept)", "kind[public]", "meanses")
    ancova = steps.fits["one-way ANCOVA"]
    # factors are not centred
    assert ancova.estimates.fixed_names == ("(Intercept)", "grand_center(ses)", "female[yes]")
    np.testing.assert_allclose(steps.table["deviance"], joined.table["deviance"], rtol=SAME)
    for name, found in steps.fits.items():
        direct = mlsql.fit(found.spec, students, level2=schools)
        assert found.deviance == pytest.approx(direct.deviance, rel=SAME), name


@pytest.fixture(scope="module")
def external() -> pl.DataFrame:
    """HSB with its indicators as words."""
    return pl.read_parquet(HSB).select(
        "school",
        "mathach",
        "ses",
        "meanses",
        pl.when(pl.col("female") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("female"),
        pl.when(pl.col("sector") == 1).then(pl.lit("catholic")).otherwise(pl.lit("public")).alias("kind"),
    )


def test_weights_and_offsets_are_those_of_the_final_model() -> None:
    formula = f"mathach ~ sector*{SES} + offset(minority) + ({SES} | school)"
    steps = mlsql.step_up(formula, HSB, weights="1 + female")
    assert list(steps.fits) == NAMES
    for name, formula in (
        ("one-way ANOVA", "mathach ~ offset(minority) + (1 | school)"),
        ("random coefficients", f"mathach ~ {SES} + offset(minority) + ({SES} | school)"),
    ):
        direct = fit(formula, weights="1 + female")
        assert steps.fits[name].deviance == pytest.approx(direct.deviance, rel=SAME)
        assert steps.fits[name].spec.weights is not None


def test_rows_that_the_final_model_leaves_out_stay_out() -> None:
    """All models on the rows that are complete for the last: the means of the rows are theirs too."""
    data = pl.read_parquet(HSB).with_columns(
        pl.when(pl.int_range(pl.len()) % 40 > 0).then("minority").alias("minority")
    )
    steps = mlsql.step_up(f"mathach ~ {SES} + minority + ({SES} | school)", data)
    complete = data.drop_nulls("minority")
    assert {f.n_rows for f in steps.fits.values()} == {complete.height}
    for name, formula in (
        ("one-way ANOVA", "mathach ~ 1 + (1 | school)"),
        ("random coefficients", f"mathach ~ {SES} + minority + ({SES} | school)"),
    ):
        assert steps.fits[name].deviance == pytest.approx(fit(formula, data=complete).deviance, rel=SAME)


def test_the_sequence_reads_the_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Survey and moments of the final model; in the lean layout one more scan for the products by group."""
    seen: list[str] = []
    whole = DuckDBEngine.query

    def spy(self: DuckDBEngine, step: Any) -> Any:
        seen.append(step.name)
        return whole(self, step)

    monkeypatch.setattr(DuckDBEngine, "query", spy)
    # out of order, so that a small limit makes the layout lean
    data = pl.read_parquet(HSB).sample(fraction=1.0, shuffle=True, seed=3)
    mlsql.fit(FULL, data)
    final = list(seen)
    seen.clear()
    mlsql.step_up(FULL, data)
    assert seen == final
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    seen.clear()
    mlsql.fit(FULL, data)
    final = list(seen)
    seen.clear()
    steps = mlsql.step_up(FULL, data)
    assert seen == [*final, "products by group"]
    assert steps.fits[NAMES[5]].estimates.design.layout == "lean"
    for name, formula in zip(NAMES, FORMULAS, strict=True):
        assert steps.fits[name].deviance == pytest.approx(fit(formula).deviance, rel=SAME)


def test_fits_of_the_sequence_are_whole() -> None:
    """Robust errors, group effects and a test against the next model, from a fit that never scanned."""
    steps = mlsql.step_up(FULL, HSB)
    found, direct = steps.fits["means as outcomes"], fit("mathach ~ meanses + sector + (1 | school)")
    np.testing.assert_allclose(
        found.fixed_effects["robust_std_error"], direct.fixed_effects["robust_std_error"], rtol=PARAMETER
    )
    np.testing.assert_allclose(
        found.group_effects()["estimate"], direct.group_effects()["estimate"], rtol=1e-5, atol=1e-6
    )
    assert found.summary().splitlines()[0] == direct.summary().splitlines()[0]
    larger = steps.fits["intercepts and slopes as outcomes"]
    assert larger.likelihood_ratio(found)["df"].item() == 5


def test_printing_shows_the_table() -> None:
    steps = mlsql.step_up("mathach ~ meanses + (1 | school)", HSB)
    text = str(steps)
    assert [line.split(":")[0] for line in text.splitlines()[-2:]] == list(steps.fits)
    assert "156.702" in text
    assert repr(steps) == "<mlsql.StepUp one-way ANOVA, means as outcomes>"
