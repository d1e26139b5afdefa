"""The printed report of one model, against a file; and the sections that depend on the model.

MLSQL_UPDATE_SNAPSHOTS=1 rewrites the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import duckdb
import pytest

import mlsql

GOLDEN = Path(__file__).parent / "hsb_summary.txt"
NUMBER = re.compile(r"\d[\d,]*\.\d+")


def test_the_report_of_the_hsb_model(full: mlsql.Fit) -> None:
    text = full.summary() + "\n"
    if os.environ.get("MLSQL_UPDATE_SNAPSHOTS") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    golden = GOLDEN.read_text(encoding="utf-8")
    masked = [re.sub(r"after \d+ evaluations", "after N evaluations", t) for t in (text, golden)]
    # words and layout exactly
    ours, theirs = (NUMBER.sub("#", m) for m in masked)
    assert ours == theirs
    # numbers to 1e-4 or half a unit of the last digit shown: other machines sum in another order
    for found, expected in zip(*(NUMBER.findall(m) for m in masked), strict=True):
        unit = 10.0 ** -len(expected.split(".")[1])
        assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=unit)


def test_str_is_the_summary(full: mlsql.Fit) -> None:
    assert str(full) == full.summary()
    assert repr(full).startswith("<mlsql.Fit mathach ~ ")
    assert "\n" not in repr(full)


def test_no_predictors(anova: mlsql.Fit) -> None:
    text = anova.summary()
    assert "Two-level model: one-way ANOVA with random effects" in text
    assert re.search(r"Intraclass correlation = 0\.\d{5}$", text, flags=re.MULTILINE)
    assert "Tau as correlations" not in text


def test_a_conditional_icc_says_so(con: duckdb.DuckDBPyConnection) -> None:
    text = mlsql.fit("mathach ~ meanses + (1 | school)", "hsb", con=con, method="ML").summary()
    assert "(conditional on the predictors)" in text
    assert "full maximum likelihood" in text
    assert "fixed effects, variances, covariances" in text


def test_missing_rows_weights_and_notes(con: duckdb.DuckDBPyConnection) -> None:
    rows = "SELECT * REPLACE (CASE WHEN row_number() OVER () % 50 > 0 THEN ses END AS ses), 1 + female AS w FROM hsb"
    con.execute(f"CREATE OR REPLACE TEMP TABLE gaps AS {rows}")
    fitted = mlsql.fit("mathach ~ ses + size + (1 | school)", "gaps", con=con, weights="w")
    text = fitted.summary()
    (missing,) = con.sql("SELECT count(*) FROM gaps WHERE ses IS NULL").fetchall()[0]
    assert f"Rows left out\n    {missing:,} of 7,185 rows are incomplete in the model's columns" in text
    assert f"    ses: {missing:,} NULL" in text
    assert "Weights    w (precision)" in text
    for note in fitted.warnings:
        assert note in text
    assert "Notes" in text


def test_a_singular_fit_says_so() -> None:
    con = duckdb.connect()
    con.execute("CREATE TABLE t AS SELECT i // 5 AS g, i % 5 * 1.0 AS x, i * 37 % 5 + i % 3 AS y FROM range(60) r(i)")
    fitted = mlsql.fit("y ~ x + (x | g)", "t", con=con)
    assert fitted.singular
    assert fitted.converged
    assert fitted.status is mlsql.Status.SINGULAR
    text = fitted.summary()
    assert "singular after" in text
    assert "Notes" in text
    assert "zero" in text or "+-1" in text


def test_an_evaluation_says_so(con: duckdb.DuckDBPyConnection) -> None:
    given = mlsql.evaluate("mathach ~ 1 + (1 | school)", "hsb", con=con, T=8.61, sigma2=39.15)
    assert given.status is mlsql.Status.GIVEN
    assert "variance components given, not estimated" in given.summary()
    assert given.warnings == ()


def test_a_search_that_was_stopped_says_so(con: duckdb.DuckDBPyConnection) -> None:
    stopped = mlsql.fit("mathach ~ ses + (ses | school)", "hsb", con=con, max_evaluations=2)
    assert stopped.status is mlsql.Status.MAX_EVALUATIONS
    assert not stopped.converged
    assert "raise max_evaluations" in stopped.summary()
    with pytest.raises(mlsql.FitError, match="max_evaluations is 1; at least 2 are needed"):
        mlsql.fit("mathach ~ 1 + (1 | school)", "hsb", con=con, max_evaluations=1)
