"""mlsql fits in tables of the package maketables."""

from __future__ import annotations

from typing import Any

import pytest

import mlsql

pytest.importorskip("maketables")

from maketables import ETable, get_extractor


@pytest.fixture(scope="module")
def plain() -> mlsql.Fit:
    return mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))


@pytest.fixture(scope="module")
def crossed() -> mlsql.Fit:
    return mlsql.fit("mathach ~ ses*sector + (ses | school)", mlsql.example_data("hsb"))


def test_coefficients(crossed: mlsql.Fit) -> None:
    found: Any = get_extractor(crossed).coef_table(crossed)
    table = crossed.fixed_effects
    assert list(found.index) == table["term"].to_list()
    assert found.index.name == "Coefficient"
    columns = {"b": "estimate", "se": "std_error", "t": "statistic", "df": "df", "p": "p_value"}
    for theirs, ours in (columns | {"ci95l": "conf_low", "ci95u": "conf_high"}).items():
        assert found[theirs].to_list() == table[ours].to_list()


def test_statistics(plain: mlsql.Fit, crossed: mlsql.Fit) -> None:
    def stat(fitted: mlsql.Fit, key: str) -> Any:
        return get_extractor(fitted).stat(fitted, key)

    assert (stat(plain, "N"), stat(plain, "ngrps"), stat(plain, "method")) == (7185, 160, "REML")
    assert (stat(plain, "ll"), stat(plain, "aic"), stat(plain, "bic")) == (
        plain.log_likelihood,
        plain.aic,
        plain.bic,
    )
    assert stat(plain, "icc") == plain.icc
    assert stat(plain, "df_resid") == 7185 - 4
    assert stat(crossed, "sd__ses") == stat(crossed, "SD ses") == pytest.approx(crossed.T[1, 1] ** 0.5)
    assert stat(plain, "sd__ses") is None
    # what a mixed model does not have is left out of the table, not refused
    assert stat(plain, "r2") is None
    assert stat(plain, "se_type") is None
    assert get_extractor(plain).vcov_info(plain) == {"vcov_type": "model", "clustervar": None}
    assert get_extractor(plain).fixef_string(plain) is None


def test_a_table_of_two_fits(plain: mlsql.Fit, crossed: mlsql.Fit) -> None:
    text = ETable([plain, crossed]).make(type="tex")
    b, se = crossed.fixed_effects.filter(term="ses").select("estimate", "std_error").row(0)
    for shown in (f"{b:.3f}", f"({se:.3f})", "mathach", "Groups", "Observations", "SD (Intercept)", "SD ses"):
        assert shown in text
    assert r"ses $\times$ sector" in text or "ses × sector" in text


def test_statistics_at_the_bottom_stand_in_their_order(plain: mlsql.Fit, crossed: mlsql.Fit) -> None:
    frame = ETable([plain, crossed]).df
    labels = [str(index[-1]) if isinstance(index, tuple) else str(index) for index in frame.index]
    assert labels[-8:-1] == [
        "Observations",
        "Groups",
        "SD (Intercept)",
        "SD Observation",
        "Log-likelihood",
        "AIC",
        "BIC",
    ]
    # the second fit's own, after the first fit's
    assert labels[-1] == "SD ses"


def test_chosen_statistics(crossed: mlsql.Fit) -> None:
    text = ETable([crossed], model_stats=["N", "icc", "reml_crit", "se_type"]).make(type="tex")
    for shown in ("ICC", "REML criterion", "model"):
        assert shown in text


@pytest.mark.parametrize("target", ["gt", "tex", "typst"])
def test_every_output(plain: mlsql.Fit, target: str) -> None:
    assert ETable(plain).make(type=target) is not None
