"""Fits with several grouping factors in other packages' words: tidy, glance, regression tables; notes and levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

import mlsql

Files = Callable[[str], str]


@pytest.fixture(scope="module")
def nested(data_file: Files) -> mlsql.Fit:
    formula = "math ~ group_center(year, schoolid:childid) + black + size + (year | schoolid) + (1 | schoolid:childid)"
    return mlsql.fit(formula, data_file("egsingle"))


@pytest.fixture(scope="module")
def crossed(data_file: Files) -> mlsql.Fit:
    plates = pl.read_parquet(data_file("penicillin"))
    plates = plates.with_columns(strong=pl.col("sample").is_in(["A", "C"]).cast(pl.Int8), row=pl.int_range(pl.len()))
    return mlsql.fit("diameter ~ strong + row + (1 | plate) + (1 | sample)", plates)


def test_tidy_names_the_factor(nested: mlsql.Fit) -> None:
    found = nested.tidy().filter(effect="ran_pars").select("group", "term")
    assert found.rows() == [
        ("schoolid", "sd__(Intercept)"),
        ("schoolid", "cor__(Intercept).year"),
        ("schoolid", "sd__year"),
        ("schoolid:childid", "sd__(Intercept)"),
        ("Residual", "sd__Observation"),
    ]
    sd = nested.tidy().filter(term="sd__(Intercept)")["estimate"].to_list()
    assert sd == pytest.approx([np.sqrt(nested.T[0, 0]), np.sqrt(nested.T[2, 2])])


def test_glance_counts_independent_groups(nested: mlsql.Fit, crossed: mlsql.Fit) -> None:
    assert nested.glance().select("nobs", "ngrps", "npar", "icc").row(0) == (7230, 60, 9, None)
    assert crossed.glance().select("nobs", "ngrps", "npar", "icc").row(0) == (144, None, 6, None)
    assert crossed.glance().schema["ngrps"] == pl.Int64
    assert crossed.statistics["n_groups"].to_list() == [None]


def test_regression_tables_tell_the_factors_apart(crossed: mlsql.Fit) -> None:
    keys = crossed.__maketables_default_stat_keys__
    assert keys == [
        "N", "Groups plate", "Groups sample", "SD plate: (Intercept)", "SD sample: (Intercept)", "SD Observation",
        "ll", "aic", "bic",
    ]  # fmt: skip
    sd = np.sqrt([crossed.T[0, 0], crossed.T[1, 1], crossed.sigma2])
    expected = [144, 24, 6, *sd, crossed.log_likelihood, crossed.aic, crossed.bic]
    assert [crossed.__maketables_stat__(k) for k in keys] == pytest.approx(expected)
    assert crossed.__maketables_stat__("sd__(Intercept)") is None
    assert crossed.__maketables_stat__("Groups school") is None


def test_centring_names_the_factor(nested: mlsql.Fit) -> None:
    assert nested.fixed_effects["centering"].to_list() == ["", "mean of schoolid:childid", "none", "none"]


def test_level_of_a_predictor(nested: mlsql.Fit, crossed: mlsql.Fit) -> None:
    levels = dict(nested.survey.select("column", "level").iter_rows())
    assert levels == {"math": 1, "schoolid": None, "childid": None, "year": 1, "black": 2, "size": 3}
    levels = dict(crossed.survey.select("column", "level").iter_rows())
    assert levels == {"diameter": 1, "plate": None, "sample": None, "strong": 2, "row": 1}


def test_headings(data_file: Files) -> None:
    def heading(formula: str, data: str) -> str:
        return mlsql.fit(formula, data_file(data)).summary().splitlines()[0]

    chain = "(1 | schoolid/childid)"
    assert heading(f"math ~ 1 + {chain}", "egsingle") == "Three-level model: unconditional"
    assert heading(f"math ~ year + {chain}", "egsingle") == "Three-level model: conditional"
    slopes = "math ~ year + (year | schoolid/childid)"
    assert heading(slopes, "egsingle") == "Three-level model: conditional, random slopes"
    assert heading("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin").endswith("factors: unconditional")
    assert heading("mathach ~ 1 + (1 | school)", "hsb") == "Two-level model: one-way ANOVA with random effects"


def test_advice_names_the_factor(crossed: mlsql.Fit) -> None:
    found = crossed.diagnostics.advice().filter(topic="number of groups").select("term", "value")
    assert found.rows() == [("plate", 24.0), ("sample", 6.0)]


def test_intervals_name_the_factor(crossed: mlsql.Fit) -> None:
    names = ["plate: (Intercept)", "sample: (Intercept)", "Residual"]
    for method in ("wald", "profile"):
        table = crossed.confint(method=method)  # type: ignore[arg-type]
        assert table.filter(effect="variance")["term"].to_list() == names
