"""tidy and glance: columns, rows and numbers, as broom.mixed lays them out."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest
from scipy.special import ndtri

import mlsql
from mlsql.report.broom import glance, tidy

COLUMNS = ["effect", "group", "term", "estimate", "std_error", "statistic", "df", "p_value", "conf_low", "conf_high"]
SLOPE = "group_center(ses)"


def test_rows_and_columns_of_tidy(full: mlsql.Fit) -> None:
    found = tidy(full.estimates)
    assert found.columns == COLUMNS
    assert set(found.schema.values()) == {pl.String(), pl.Float64()}
    assert found.select("effect", "group", "term").rows()[6:] == [
        ("ran_pars", "school", "sd__(Intercept)"),
        ("ran_pars", "school", f"cor__(Intercept).{SLOPE}"),
        ("ran_pars", "school", f"sd__{SLOPE}"),
        ("ran_pars", "Residual", "sd__Observation"),
    ]
    assert found["effect"].to_list()[:6] == ["fixed"] * 6
    assert found["group"].null_count() == 6


def test_fixed_effects_are_those_of_the_table(full: mlsql.Fit) -> None:
    table = full.fixed_effects
    for column in COLUMNS[2:]:
        assert tidy(full.estimates)[column].to_list()[:6] == table[column].to_list()
    # a wider interval
    low = tidy(full.estimates, 0.99)["conf_low"].to_list()[:6]
    assert low == full.confint(0.99).filter(effect="fixed")["conf_low"].to_list()


def test_random_parameters_on_the_scale_of_deviations(full: mlsql.Fit) -> None:
    found = {row["term"]: row for row in tidy(full.estimates).filter(effect="ran_pars").to_dicts()}
    table = full.variance_components.to_dicts()
    z = float(ndtri(0.975))
    for row, term in ((table[0], "sd__(Intercept)"), (table[1], f"sd__{SLOPE}"), (table[3], "sd__Observation")):
        deviation = found[term]
        assert deviation["estimate"] == pytest.approx(row["estimate"] ** 0.5)
        # d sqrt(v) = dv / (2 sqrt(v))
        assert deviation["std_error"] == pytest.approx(row["std_error"] / 2 / row["estimate"] ** 0.5)
        assert deviation["conf_low"] ** 2 == pytest.approx(row["conf_low"])
        assert deviation["conf_high"] ** 2 == pytest.approx(row["conf_high"])
        # on the log scale the interval is symmetric
        assert np.log(deviation["conf_high"] / deviation["estimate"]) == pytest.approx(
            z * deviation["std_error"] / deviation["estimate"]
        )
        assert [deviation[c] for c in ("statistic", "df", "p_value")] == [None] * 3
    correlation = found[f"cor__(Intercept).{SLOPE}"]
    assert correlation["estimate"] == pytest.approx(table[2]["sd_or_corr"])
    assert [correlation[c] for c in COLUMNS[4:]] == [None] * 6


def test_terms_kept_apart_have_no_correlation(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses + (ses || school)", "hsb", con=con)
    terms = tidy(fitted.estimates).filter(effect="ran_pars")["term"].to_list()
    assert terms == ["sd__(Intercept)", "sd__ses", "sd__Observation"]


def test_a_variance_of_zero(con: duckdb.DuckDBPyConnection) -> None:
    data = "SELECT b, 5.0 + (b + 1) * (i - 2) AS y FROM range(6) x(b), range(5) z(i)"
    fitted = mlsql.fit("y ~ 1 + (1 | b)", data, con=con)
    row = tidy(fitted.estimates).filter(term="sd__(Intercept)").row(0, named=True)
    assert row["estimate"] == 0.0
    assert [row[c] for c in COLUMNS[4:]] == [None] * 6
    assert glance(fitted.estimates)["singular"].item() is True


def test_glance(full: mlsql.Fit, anova: mlsql.Fit) -> None:
    (row,) = glance(full.estimates).to_dicts()
    assert (row["nobs"], row["ngrps"], row["npar"]) == (7185, 160, 10)
    assert row["df_residual"] == 7175
    assert row["sigma"] == pytest.approx(full.sigma2**0.5)
    assert (row["log_lik"], row["aic"], row["bic"]) == (full.log_likelihood, full.aic, full.bic)
    assert (row["deviance"], row["reml_crit"], row["icc"]) == (None, full.deviance, None)
    assert (row["method"], row["converged"], row["singular"], row["status"]) == ("REML", True, False, "converged")
    assert glance(anova.estimates)["icc"].item() == anova.icc


def test_the_criterion_of_full_maximum_likelihood(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ ses + (1 | school)", "hsb", con=con, method="ML")
    (row,) = glance(fitted.estimates).to_dicts()
    assert (row["deviance"], row["reml_crit"], row["method"]) == (fitted.deviance, None, "ML")


def test_rows_of_several_fits_can_be_stacked(full: mlsql.Fit, anova: mlsql.Fit) -> None:
    assert pl.concat([glance(full.estimates), glance(anova.estimates)]).height == 2
    assert pl.concat([tidy(full.estimates), tidy(anova.estimates)]).height == 10 + 3


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_that_is_none(full: mlsql.Fit, level: float) -> None:
    with pytest.raises(mlsql.FitError, match="a confidence level lies between 0 and 1"):
        tidy(full.estimates, level)
