"""Result tables: columns, types, order of rows, and how the numbers in a row belong together."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest
from scipy.special import ndtri, stdtrit

import mlsql

FLOAT, TEXT, INT, BOOL = pl.Float64(), pl.String(), pl.Int64(), pl.Boolean()

FIXED = {
    "term": TEXT, "estimate": FLOAT, "std_error": FLOAT, "df": FLOAT, "statistic": FLOAT, "p_value": FLOAT,
    "conf_low": FLOAT, "conf_high": FLOAT, "robust_std_error": FLOAT, "robust_ratio": FLOAT, "df_method": TEXT,
    "vcov": TEXT, "centering": TEXT, "note": TEXT,
}  # fmt: skip
COMPONENTS = {
    "group": TEXT, "term1": TEXT, "term2": TEXT, "estimate": FLOAT, "sd_or_corr": FLOAT, "std_error": FLOAT,
    "conf_low": FLOAT, "conf_high": FLOAT, "chi2": FLOAT, "df": INT, "p_value": FLOAT, "groups_used": INT,
    "reliability": FLOAT,
}  # fmt: skip
EFFECTS = {
    "school": INT, "term": TEXT, "estimate": FLOAT, "std_error": FLOAT, "conditional_sd": FLOAT, "coefficient": FLOAT,
    "coefficient_std_error": FLOAT, "ols_estimate": FLOAT, "ols_std_error": FLOAT, "ols_coefficient": FLOAT,
    "reliability": FLOAT, "n": INT,
}  # fmt: skip
STATISTICS = {
    "formula": TEXT, "method": TEXT, "n_rows": INT, "n_groups": INT, "deviance": FLOAT, "log_likelihood": FLOAT,
    "aic": FLOAT, "bic": FLOAT, "n_parameters": INT, "n_covariance_parameters": INT, "sigma2": FLOAT, "icc": FLOAT,
    "converged": BOOL, "singular": BOOL, "status": TEXT, "evaluations": INT, "promised_decrease": FLOAT,
}  # fmt: skip
SURVEY = {
    "column": TEXT, "role": TEXT, "in_table": TEXT, "type": TEXT, "level": INT, "rows": INT, "nulls": INT, "nans": INT,
    "mean": FLOAT, "minimum": FLOAT, "maximum": FLOAT, "levels": TEXT, "pivot": FLOAT,
}  # fmt: skip
CONFINT = {"effect": TEXT, "term": TEXT, "estimate": FLOAT, "conf_low": FLOAT, "conf_high": FLOAT}


@pytest.mark.parametrize("fit", ["full", "anova"])
def test_columns_and_types(request: pytest.FixtureRequest, fit: str) -> None:
    fitted: mlsql.Fit = request.getfixturevalue(fit)
    assert dict(fitted.fixed_effects.schema) == FIXED
    assert dict(fitted.variance_components.schema) == COMPONENTS
    assert dict(fitted.group_effects().schema) == EFFECTS
    assert dict(fitted.statistics.schema) == STATISTICS
    assert dict(fitted.survey.schema) == SURVEY
    assert dict(fitted.confint().schema) == CONFINT


def test_types_do_not_depend_on_the_values() -> None:
    """A singular fit with a group of one row: columns full of nulls keep their type."""
    data = pl.DataFrame({"y": [1.0, 2.0, 1.0, 2.0, 1.5], "g": [1, 1, 2, 2, 3]})
    fitted = mlsql.fit("y ~ 1 + (1 | g)", data)
    assert fitted.singular
    assert dict(fitted.variance_components.schema) == COMPONENTS
    assert dict(fitted.group_effects().rename({"g": "school"}).schema) == EFFECTS
    assert dict(fitted.statistics.schema) == STATISTICS


def test_order_of_rows(full: mlsql.Fit) -> None:
    slope = "group_center(ses)"
    assert full.fixed_effects["term"].to_list() == [
        "(Intercept)", "sector", slope, "meanses", f"sector:{slope}", f"{slope}:meanses"
    ]  # fmt: skip
    parts = full.variance_components.select("group", "term1", "term2").rows()
    assert parts == [
        ("school", "(Intercept)", None),
        ("school", slope, None),
        ("school", "(Intercept)", slope),
        ("Residual", None, None),
    ]
    effects = full.group_effects()
    assert effects.height == 320
    assert effects["term"].to_list() == ["(Intercept)", slope] * 160
    assert effects["school"].is_sorted()


def test_fixed_effects_row_by_row(full: mlsql.Fit) -> None:
    table = full.fixed_effects
    assert table["std_error"].to_numpy() == pytest.approx(np.sqrt(np.diag(full.vcov)), rel=1e-12)
    assert table["statistic"].to_numpy() == pytest.approx((table["estimate"] / table["std_error"]).to_numpy())
    # HLM: J - S - 1 for an equation with a random effect: 160 - 2 - 1
    assert table["df"].to_list() == [157.0] * 6
    half = stdtrit(157.0, 0.975) * table["std_error"].to_numpy()
    assert (table["conf_high"] - table["estimate"]).to_numpy() == pytest.approx(half)
    assert (table["estimate"] - table["conf_low"]).to_numpy() == pytest.approx(half)
    assert table["centering"].to_list() == [
        "",
        "none",
        "group mean",
        "none",
        "sector: none; group_center(ses): group mean",
        "group_center(ses): group mean; meanses: none",
    ]


def test_degrees_of_freedom_without_a_random_effect(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ sector*group_center(ses) + (1 | school)", "hsb", con=con)
    df = dict(fitted.fixed_effects.select("term", "df").rows())
    assert df["(Intercept)"] == df["sector"] == 160 - 1 - 1
    assert df["group_center(ses)"] == df["sector:group_center(ses)"] == 7185 - 4


def test_the_grand_mean_is_noted(con: duckdb.DuckDBPyConnection) -> None:
    fitted = mlsql.fit("mathach ~ grand_center(ses) + grand_center(size) + (1 | school)", "hsb", con=con)
    (ses,) = con.sql("SELECT avg(ses) FROM hsb").fetchall()[0]
    (size,) = con.sql("SELECT avg(size) FROM (SELECT DISTINCT school, size FROM hsb)").fetchall()[0]
    notes = fitted.fixed_effects["centering"].to_list()
    # of the rows for a level-1 predictor, of the groups for a level-2 predictor
    assert [n.split()[:2] for n in notes[1:]] == [["grand", "mean"]] * 2
    assert float(notes[1].split()[-1]) == pytest.approx(ses, rel=1e-5)
    assert float(notes[2].split()[-1]) == pytest.approx(size, rel=1e-5)


def test_variance_components_row_by_row(full: mlsql.Fit) -> None:
    rows = full.variance_components.to_dicts()
    T, s2 = full.T, full.sigma2
    assert [r["estimate"] for r in rows] == [T[0, 0], T[1, 1], T[1, 0], s2]
    assert [r["sd_or_corr"] for r in rows] == pytest.approx(
        [T[0, 0] ** 0.5, T[1, 1] ** 0.5, T[1, 0] / (T[0, 0] * T[1, 1]) ** 0.5, s2**0.5]
    )
    z = float(ndtri(0.975))
    for row in (rows[0], rows[1], rows[3]):
        factor = np.exp(z * row["std_error"] / row["estimate"])
        assert (row["conf_low"], row["conf_high"]) == pytest.approx(
            (row["estimate"] / factor, row["estimate"] * factor)
        )
    half = z * rows[2]["std_error"]
    assert (rows[2]["conf_low"], rows[2]["conf_high"]) == pytest.approx((T[1, 0] - half, T[1, 0] + half))
    assert [r["df"] for r in rows] == [157, 157, None, None]
    assert [r["groups_used"] for r in rows] == [160, 160, None, None]
    assert [r["chi2"] is None for r in rows] == [False, False, True, True]


def test_group_effects_row_by_row(full: mlsql.Fit) -> None:
    effects = full.group_effects()
    fixed = (effects["coefficient"] - effects["estimate"]).to_numpy()
    assert (effects["ols_coefficient"] - effects["ols_estimate"]).to_numpy() == pytest.approx(fixed)
    assert (effects["std_error"] >= effects["conditional_sd"]).all()
    tau = np.tile(np.diag(full.T), 160)
    expected = tau / (tau + effects["ols_std_error"].to_numpy() ** 2)
    assert effects["reliability"].to_numpy() == pytest.approx(expected)
    assert effects.filter(pl.col("term") == "(Intercept)")["n"].sum() == 7185
    mean = effects.group_by("term").agg(pl.col("reliability").mean()).sort("term")["reliability"].to_list()
    reported = full.variance_components["reliability"].drop_nulls().to_list()
    assert mean == pytest.approx(reported)


def test_statistics_are_the_attributes(full: mlsql.Fit, anova: mlsql.Fit) -> None:
    for fitted in (full, anova):
        (row,) = fitted.statistics.to_dicts()
        for name in ("deviance", "log_likelihood", "aic", "bic", "sigma2", "icc", "n_rows", "n_groups", "converged"):
            assert row[name] == getattr(fitted, name)
        assert row["status"] == fitted.status.label == "converged"
        assert row["formula"] == fitted.spec.formula
        assert fitted.log_likelihood == -fitted.deviance / 2
        assert fitted.aic == pytest.approx(fitted.deviance + 2 * row["n_parameters"])
        assert fitted.bic == pytest.approx(fitted.deviance + np.log(7185) * row["n_parameters"])
    assert full.statistics["n_parameters"][0] == 10
    assert full.statistics["n_covariance_parameters"][0] == 4
    assert full.icc is None
    assert anova.icc == pytest.approx(anova.T[0, 0] / (anova.T[0, 0] + anova.sigma2))


def test_the_survey(full: mlsql.Fit) -> None:
    rows = {r["column"]: r for r in full.survey.to_dicts()}
    assert {n: r["role"] for n, r in rows.items()} == {
        "mathach": "outcome", "school": "key", "sector": "numeric", "ses": "numeric", "meanses": "numeric"
    }  # fmt: skip
    assert {n: r["level"] for n, r in rows.items()} == {
        "mathach": 1, "school": None, "sector": 2, "ses": 1, "meanses": 2
    }  # fmt: skip
    assert {r["rows"] for r in rows.values()} == {7185}
    assert (rows["ses"]["minimum"], rows["ses"]["maximum"]) == (-3.758, 2.692)
    assert rows["mathach"]["pivot"] == 13.0


def test_a_group_that_the_model_does_not_have(full: mlsql.Fit) -> None:
    assert full.group_effects("school").equals(full.group_effects())
    with pytest.raises(mlsql.FitError, match="no random effects of 'district'; its groups are school"):
        full.group_effects("district")


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_confidence_levels(full: mlsql.Fit, level: float) -> None:
    table = full.confint(level)
    assert table["effect"].to_list() == ["fixed"] * 6 + ["variance"] * 2 + ["covariance", "variance"]
    assert table["term"].to_list()[6:] == [
        "school: (Intercept)",
        "school: group_center(ses)",
        "school: (Intercept): group_center(ses)",
        "Residual",
    ]
    half = stdtrit(157.0, 0.5 + level / 2) * full.fixed_effects["std_error"].to_numpy()
    found = table.filter(pl.col("effect") == "fixed")
    assert ((found["conf_high"] - found["conf_low"]) / 2).to_numpy() == pytest.approx(half)
    variances = full.variance_components
    factor = np.exp(ndtri(0.5 + level / 2) * variances["std_error"][3] / full.sigma2)
    assert table["conf_high"][9] == pytest.approx(full.sigma2 * factor)
    if level == 0.95:
        assert found["conf_low"].equals(full.fixed_effects["conf_low"])
        assert table.equals(full.confint())


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, float("nan")])
def test_levels_that_are_none(full: mlsql.Fit, level: float) -> None:
    with pytest.raises(mlsql.FitError, match=r"a confidence level lies between 0 and 1, for instance 0\.95"):
        full.confint(level)


def test_tables_are_values(full: mlsql.Fit) -> None:
    """A fit cannot be changed, nor by changing what it returned."""
    with pytest.raises((AttributeError, TypeError)):
        full.dropped = ("x",)  # type: ignore[misc]
    T = full.T
    T[0, 0] = -1.0
    assert full.T[0, 0] > 0
    assert full.fixed_effects.equals(full.fixed_effects)
