"""Models from the moments of another fit: the same numbers as from the rows, without reading them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import duckdb
import numpy as np
import pytest

import mlsql
from mlsql.design.design import build_design
from mlsql.errors import DesignError, FitError, FormulaError
from mlsql.moments.select import select, varying_inputs
from mlsql.pipeline.submodels import predictor, submodel

EXACT = 1e-10
"""The same sums enter the same arithmetic: only the last digits may differ, by the order of the query's threads."""

HSB = "mathach ~ (meanses + sector)*group_center(ses) + minority + female + (group_center(ses) + minority | school)"
SMALLER = [
    "mathach ~ 1 + (1 | school)",
    "mathach ~ ses + (1 | school)",
    "mathach ~ ses + (ses | school)",
    "mathach ~ grand_center(ses) + group_mean(ses) + (grand_center(ses) || school)",
    "mathach ~ meanses*sector*group_center(ses) + (group_center(ses) | school)",
    "mathach ~ 0 + ses + minority + (0 + ses | school)",
    "mathach ~ minority*group_mean(minority) + (minority | school)",
    "mathach ~ grand_center(meanses) + ses:sector + (1 | school)",
]

TABLES = """
CREATE TABLE t AS SELECT i, i // 10 AS g, ((i * 7919) % 1009) / 1009.0 AS x, 40 + ((i * 104729) % 997) / 99.7 AS z,
    ['a', 'b', 'c'][i % 3 + 1] AS f, 1 + i % 4 AS wt, (i // 10) % 3 AS o, CASE WHEN i % 17 > 0 THEN i % 5 END AS m,
    2 + ((i * 7919) % 1009) / 1009.0 * (1 + (i // 10) % 5 / 4) + ((i // 10) * 31 % 17) / 10.0
      + ((i * 15485863) % 1013) / 1013.0 AS y
FROM range(120) r(i);
CREATE TABLE upper AS SELECT range AS g, 1 + range * 3 % 7 / 2 AS w, ['p', 'q'][range % 2 + 1] AS k FROM range(12);
"""
WHOLE = "y ~ f*x + group_center(z)*k + w + o + group_mean(x) + (x | g)"
PARTS = [
    "y ~ f + (1 | g)",
    "y ~ f*group_center(x) + (group_center(x) | g)",
    "y ~ x*k + grand_center(w) + (x || g)",
    "y ~ z + (z | g)",
    "y ~ group_mean(z)*x + (1 | g)",
    "y ~ f*k + o + (1 | g)",
    "y ~ f + (f | g)",
    "y ~ 0 + x + z + (0 + z | g)",
]


@pytest.fixture(scope="module")
def hsb() -> mlsql.Fit:
    return mlsql.fit(HSB, mlsql.example_data("hsb"))


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute(TABLES)
        yield con


def assert_same(found: mlsql.Fit, direct: mlsql.Fit) -> None:
    assert found.estimates.fixed_names == direct.estimates.fixed_names
    np.testing.assert_allclose(found.estimates.beta, direct.estimates.beta, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(found.vcov, direct.vcov, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(found.T, direct.T, rtol=EXACT, atol=EXACT)
    assert found.sigma2 == pytest.approx(direct.sigma2, rel=EXACT)
    assert found.deviance == pytest.approx(direct.deviance, rel=EXACT)
    robust = [f.inference(vcov="CR2")["std_error"].to_numpy() for f in (found, direct)]
    np.testing.assert_allclose(*robust, rtol=EXACT)
    assert found.fit_id == direct.fit_id
    assert (found.dropped, found.warnings) == (direct.dropped, direct.warnings)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("formula", SMALLER)
def test_a_model_from_moments_is_the_model_from_rows(hsb: mlsql.Fit, formula: str, method: str) -> None:
    found = submodel(hsb.products, formula, method)  # type: ignore[arg-type]
    assert_same(found, mlsql.fit(formula, mlsql.example_data("hsb"), method=method))  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [None, "wt"])
@pytest.mark.parametrize("formula", PARTS)
def test_with_factors_a_level2_table_and_weights(
    con: duckdb.DuckDBPyConnection, formula: str, weights: str | None
) -> None:
    whole = mlsql.fit(WHOLE, "t", con=con, level2="upper", weights=weights)
    assert_same(submodel(whole.products, formula), mlsql.fit(formula, "t", con=con, level2="upper", weights=weights))


def test_nothing_is_read_when_the_moments_are_complete(con: duckdb.DuckDBPyConnection) -> None:
    whole = mlsql.fit(WHOLE, "t", con=con, level2="upper")
    con.execute("DROP TABLE t; DROP TABLE upper")
    found = submodel(whole.products, "y ~ x*k + (x | g)")
    assert found.fixed_effects["robust_std_error"].null_count() == 0
    assert submodel(found.products, "y ~ x + (1 | g)").converged
    assert str(found.plan) == ""


def test_the_lean_layout_is_completed_by_one_scan(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    con.execute("CREATE TABLE mixed AS FROM t ORDER BY (i * 7919) % 1009")
    whole = mlsql.fit("y ~ x + z + f + o + (1 | g)", "mixed", con=con)
    assert whole.estimates.design.layout == "lean"
    formula = "y ~ f + group_center(z)*o + (group_center(z) | g)"
    found = submodel(whole.products, formula)
    assert found.estimates.design.layout == "full"
    direct = mlsql.fit(formula, "t", con=con)
    assert found.deviance == pytest.approx(direct.deviance, rel=EXACT)
    np.testing.assert_allclose(found.T, direct.T, rtol=EXACT)


def test_the_rows_stay_those_of_the_fit(con: duckdb.DuckDBPyConnection) -> None:
    whole = mlsql.fit("y ~ m + x + (1 | g)", "t", con=con)
    found = submodel(whole.products, "y ~ x + (1 | g)")
    direct = mlsql.fit("y ~ x + (1 | g)", con.sql("FROM t WHERE m IS NOT NULL"))
    assert found.n_rows == direct.n_rows == 112
    assert found.deviance == pytest.approx(direct.deviance, rel=EXACT)
    assert found.dropped == whole.dropped


def test_a_spec_and_level_equations_do_as_well(hsb: mlsql.Fit) -> None:
    spec = mlsql.parse_model("mathach ~ ses + (ses | school)", method="ML")
    assert submodel(hsb.products, spec).deviance == submodel(hsb.products, spec.formula, "ML").deviance
    assert submodel(hsb.products, spec, "REML").spec.method == "REML"
    equations = "mathach = b0 + b1*ses + r\nb0 = g00 + u0\nb1 = g10 + u1"
    assert submodel(hsb.products, equations, "ML").deviance == submodel(hsb.products, spec).deviance


def test_which_inputs_vary_is_seen_in_the_moments(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit(
        "y ~ group_center(x) + group_mean(z) + group_mean(o) + w + f + (1 | g)", "t", con=con, level2="upper"
    )
    assert varying_inputs(*fit.products.complete()) == {'"x"', '"z"', '"f"'}


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("mathach ~ ses*minority + (1 | school)", "do not have minority:ses; read the rows again"),
        (
            "mathach ~ size + (1 | school)",
            "size: the fit has not read this predictor.*it has read meanses, sector, ses,",
        ),
        ("mathach ~ C(minority) + (1 | school)", "has not read this predictor as categories"),
        ("ses ~ 1 + (1 | school)", "the outcome or its offset differs"),
        ("mathach ~ ses + offset(meanses) + (1 | school)", "the outcome or its offset differs"),
        ("mathach ~ ses + (1 | sector)", "the groups are sector, those of the fit school"),
    ],
)
def test_what_the_moments_do_not_have_is_named(hsb: mlsql.Fit, formula: str, message: str) -> None:
    with pytest.raises(FitError, match=message):
        submodel(hsb.products, formula)


def test_other_refusals(hsb: mlsql.Fit, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(FitError, match="weights size, those of the fit none"):
        submodel(hsb.products, mlsql.parse_model("mathach ~ ses + (1 | school)", weights="size"))
    with pytest.raises(FitError, match="method is 'MLE'"):
        submodel(hsb.products, mlsql.parse_model("mathach ~ ses + (1 | school)"), "MLE")  # type: ignore[arg-type]
    with pytest.raises(FormulaError):
        submodel(hsb.products, "mathach ~ ses + (1 | school")
    with pytest.raises(DesignError, match=r"group_mean\(ses\) is a linear combination of ses, group_center"):
        submodel(hsb.products, "mathach ~ ses + group_center(ses) + group_mean(ses) + (1 | school)")
    weighted = mlsql.fit("y ~ x + w + (1 | g)", "t", con=con, level2="upper", weights="wt")
    with pytest.raises(FitError, match="do not have the mean of x by group"):
        submodel(weighted.products, "y ~ group_center(x) + (1 | g)")
    with pytest.raises(DesignError, match="comes from the level2 table"):
        submodel(weighted.products, "y ~ group_center(w) + (1 | g)")
    factor = mlsql.fit("y ~ C(o) + (1 | g)", "t", con=con)
    with pytest.raises(FitError, match="o: the fit has not read this predictor"):
        submodel(factor.products, "y ~ o + (1 | g)")


def test_select_refuses_moments_of_something_else(hsb: mlsql.Fit, con: duckdb.DuckDBPyConnection) -> None:
    design, moments = hsb.products.complete()
    other = mlsql.fit("y ~ x + (1 | g)", "t", con=con).products.complete()[0]
    with pytest.raises(DesignError, match="the outcome, the groups or the weights are not those"):
        select(design, moments, other)
    with pytest.raises(DesignError, match="complete them first"):
        select(replace(design, per_group=design.per_group[:2]), moments, design)
    spec = mlsql.parse_model("mathach ~ ses + (1 | school)")
    assert design.survey is not None
    moved = tuple(replace(c, mean=c.mean + 5) if c.input.name == "ses" else c for c in design.survey.columns)
    wanted = build_design(spec, design.schema, replace(design.survey, columns=moved), varying=frozenset({'"ses"'}))
    with pytest.raises(DesignError, match="ses has another pivot"):
        select(design, moments, wanted)
    constant = build_design(spec, design.schema, replace(design.survey, preview=mlsql.design.survey.Preview(0, 0, 0)))
    with pytest.raises(DesignError, match=r"ses \(one value per group\)"):
        select(design, moments, constant)


def test_predictors_by_name(hsb: mlsql.Fit, con: duckdb.DuckDBPyConnection) -> None:
    assert predictor(hsb.products, "ses") == predictor(hsb.products, "group_center(ses)")
    with pytest.raises(FitError, match=r"'sector' is not a level-1 predictor.*: ses, minority, female"):
        predictor(hsb.products, "sector")
    factor = mlsql.fit("y ~ f + (1 | g)", "t", con=con)
    with pytest.raises(FitError, match=r"f\[b\]: the factor f has 3 levels"):
        predictor(factor.products, "f[b]")
