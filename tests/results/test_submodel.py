"""Textbook names of two-level models."""

from __future__ import annotations

import pytest

import mlsql
from mlsql.results.submodel import submodel_name

NAMES = {
    "mathach ~ 1 + (1 | school)": "one-way ANOVA with random effects",
    "mathach ~ meanses + (1 | school)": "means as outcomes",
    "mathach ~ sector*meanses + (1 | school)": "means as outcomes",
    "mathach ~ group_mean(ses) + (1 | school)": "means as outcomes",
    "mathach ~ ses + (1 | school)": "one-way ANCOVA with random effects",
    "mathach ~ ses + meanses + (1 | school)": "one-way ANCOVA with random effects and level-2 predictors",
    "mathach ~ group_center(ses) + (group_center(ses) | school)": "random coefficients",
    "mathach ~ ses + (0 + ses | school)": "random coefficients",
    "mathach ~ ses + (ses || school)": "random coefficients",
    "mathach ~ ses + meanses + (ses | school)": "intercepts and slopes as outcomes",
    "mathach ~ ses*sector + (ses | school)": "intercepts and slopes as outcomes",
    "mathach ~ ses*sector + (1 | school)": "nonrandomly varying slopes",
}


@pytest.mark.parametrize("formula", NAMES)
def test_names(formula: str) -> None:
    fitted = mlsql.fit(formula, mlsql.example_data("hsb"))
    assert submodel_name(fitted.estimates.design) == NAMES[formula]
    assert fitted.summary().splitlines()[0] == f"Two-level model: {NAMES[formula]}"
