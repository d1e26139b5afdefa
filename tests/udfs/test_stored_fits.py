"""Functions that read a stored fit, in processes that have DuckDB alone, against what the fit itself says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import duckdb
import polars as pl
import pytest
from scipy import stats

import mlsql
from mlsql.surfaces.macros import install_macros

SES = "group_center(ses)"

# the same sums in another order; relative
PREDICTION = 1e-9


class Stored(Protocol):
    """See conftest.py."""

    path: Path
    fit: mlsql.Fit
    fit_id: str
    predicted: pl.DataFrame


@pytest.fixture
def con(stored: Stored) -> Iterator[duckdb.DuckDBPyConnection]:
    """The stored fit's database, and nothing may be written."""
    with duckdb.connect(str(stored.path), read_only=True) as connection:
        yield connection


ALONE = """
import json, sys
import duckdb
with duckdb.connect(sys.argv[1], read_only=True) as con:
    for statement in json.loads(sys.argv[2]):
        answer = con.execute(statement).fetchall()
assert "mlsql" not in sys.modules and "numpy" not in sys.modules
print(json.dumps(answer))
"""


def alone(path: Path, *statements: str) -> Any:
    """The rows of the last statement, from a process that imports nothing but duckdb."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(path), json.dumps(statements)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DIFFERENCES = (
    "count(*), count(DISTINCT s.row_id), bool_and(seen), max(abs(s.population / p.population - 1)), "
    "max(abs(s.population_std_error / p.population_std_error - 1)), max(abs(s.conditional / p.conditional - 1)), "
    "max(abs(s.conditional_std_error / p.conditional_std_error - 1))"
)


def check_differences(row: Any, n: int) -> None:
    assert row[:3] in ((n, n, True), [n, n, True])
    assert max(row[3:]) < PREDICTION


def test_scores_of_another_process_are_those_of_predict(stored: Stored) -> None:
    statement = (
        f"SELECT {DIFFERENCES} FROM ml_score('{stored.fit_id}', 'lines') AS s JOIN predicted AS p USING (row_id)"
    )
    check_differences(alone(stored.path, statement)[0], 7185)


def test_scores_from_the_columns_of_a_table(stored: Stored) -> None:
    (row,) = alone(
        stored.path,
        f"SET VARIABLE scoring = ml_score_sql('{stored.fit_id}', 'predicted', 'row_id')",
        f"SELECT {DIFFERENCES} FROM query(getvariable('scoring')) AS s JOIN predicted AS p USING (row_id)",
    )
    check_differences(row, 7185)


MODELS = {
    "centred in three ways": "mathach ~ grand_center(ses) + sector:group_center(ses) + group_mean(ses) + (1 | school)",
    "uncorrelated slopes": "mathach ~ ses + minority + (ses + minority || school)",
    "slope without a fixed effect": "mathach ~ sector + (ses | school)",
    "no random intercept": "mathach ~ ses + (0 + ses | school)",
    "singular": "mathach ~ ses + meanses:ses + (grand_center(ses) | school)",
    "offset": "mathach ~ sector + offset(2 * ses) + (1 | school)",
    "factor and expression": "mathach ~ C(female, ref='1') * I(ses - 1) + log(size) + (1 | school)",
    "two keys": "mathach ~ ses + (ses | sector:school)",
    "ML": "mathach ~ ses + (ses | school)",
}


@pytest.mark.parametrize("case", MODELS)
def test_scores_of_other_models(case: str) -> None:
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE pupils AS SELECT row_number() OVER () AS id, * FROM '{mlsql.example_data('hsb')}'")
        fit = mlsql.fit(MODELS[case], "pupils", con=con, method="ML" if case == "ML" else "REML")
        fit_id = fit.to_tables(con)
        install_macros(con)
        fit.predict(into="predicted")
        con.execute(f"SET VARIABLE scoring = ml_score_sql('{fit_id}', 'pupils', 'id')")
        query = f"SELECT {DIFFERENCES} FROM query(getvariable('scoring')) AS s JOIN predicted AS p ON p.id = s.row_id"
        check_differences(con.execute(query).fetchall()[0], 7185)


def test_scores_with_a_predictor_far_from_zero() -> None:
    with duckdb.connect() as con:
        con.execute(
            f"CREATE TABLE pupils AS SELECT row_number() OVER () AS id, *, 2012 + 7 * ses AS year "
            f"FROM '{mlsql.example_data('hsb')}'"
        )
        fit = mlsql.fit("mathach ~ year + (year | school)", "pupils", con=con)
        fit_id = fit.to_tables(con)
        install_macros(con)
        fit.predict(into="predicted")
        con.execute(f"SET VARIABLE scoring = ml_score_sql('{fit_id}', 'pupils', 'id')")
        query = f"SELECT {DIFFERENCES} FROM query(getvariable('scoring')) AS s JOIN predicted AS p ON p.id = s.row_id"
        check_differences(con.execute(query).fetchall()[0], 7185)


def test_new_groups_are_scored_as_predict_does(stored: Stored) -> None:
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{stored.path}' AS results (READ_ONLY)")
        fit = mlsql.fit("mathach ~ sector + ses + (ses | school)", mlsql.example_data("hsb"))
        fit_id = fit.to_tables(con)
        install_macros(con)
        new = pl.DataFrame(
            {"id": [1, 2, 3], "school": [9999, None, 1224], "sector": [1, 0, 0], "ses": [0.7, -1.0, 2.0]}
        )
        con.register("new", new)
        con.execute(f"SET VARIABLE scoring = ml_score_sql('{fit_id}', 'new', 'id')")
        found = con.execute("FROM query(getvariable('scoring')) ORDER BY row_id").fetchall()
    assert [(row[0], row[1], row[2]) for row in found] == [(1, "9999", False), (2, None, False), (3, "1224", True)]
    columns = ["population", "population_std_error", "conditional", "conditional_std_error"]
    predicted = fit.predict(new, unseen="population")
    assert predicted is not None
    expected = predicted.sort("id").select(columns).rows()
    for row, theirs in zip(found, expected, strict=True):
        assert row[3:] == pytest.approx(theirs, rel=PREDICTION)


UNUSABLE = {
    "a term is missing": "SELECT * FROM lines WHERE term <> 'sector'",
    "a value is NULL": "SELECT * REPLACE (if(term = 'sector', NULL, value) AS value) FROM lines",
    "a value is NaN": "SELECT * REPLACE (if(term = 'sector', 'nan'::DOUBLE, value) AS value) FROM lines",
    "a term is there twice": "SELECT * FROM lines UNION ALL SELECT * FROM lines WHERE term = 'sector'",
    "twice, with another missing": "SELECT * REPLACE (if(term = 'meanses', 'sector', term) AS term) FROM lines",
    "no term is known": "SELECT * REPLACE ('none' AS term) FROM lines",
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_rows_that_cannot_be_scored_are_null(con: duckdb.DuckDBPyConnection, stored: Stored, case: str) -> None:
    query = f"WITH bad AS ({UNUSABLE[case]}) SELECT * FROM ml_score('{stored.fit_id}', 'bad') WHERE row_id < 3"
    assert [row[2:] for row in con.execute(query).fetchall()] == [(True, None, None, None, None)] * 3


def test_what_a_row_may_have_besides(con: duckdb.DuckDBPyConnection, stored: Stored) -> None:
    extra = (
        "FROM lines WHERE row_id < 2 UNION ALL FROM (VALUES (0, '1224', '(Intercept)', 1), (0, '1224', 'other', 5), "
        "(1, '1224', 'female', NULL))"
    )
    query = "SELECT * FROM ml_score('{}', '{}') WHERE row_id < 2 ORDER BY row_id"
    more = con.execute(f"WITH more AS ({extra}) {query.format(stored.fit_id, 'more')}").fetchall()
    assert more == con.execute(query.format(stored.fit_id, "lines")).fetchall()
    assert con.execute(f"WITH none AS (FROM lines LIMIT 0) FROM ml_score('{stored.fit_id}', 'none')").fetchall() == []


def test_fits_without_group_covariances_have_no_conditional_errors(stored: Stored, tmp_path: Path) -> None:
    path = tmp_path / "copy.duckdb"
    path.write_bytes(stored.path.read_bytes())
    with duckdb.connect(str(path)) as con:
        con.execute("DELETE FROM ml_group_covariances")  # as to_tables leaves it for many groups
        row = con.execute(
            "SELECT count(population_std_error), count(conditional), count(conditional_std_error) "
            f"FROM ml_score('{stored.fit_id}', 'lines')"
        ).fetchall()
        assert row == [(7185, 7185, 0)]
        con.execute("DELETE FROM ml_fixed_covariances WHERE term1 = 'sector'")
        row = con.execute(
            f"SELECT count(population), count(population_std_error) FROM ml_score('{stored.fit_id}', 'lines')"
        ).fetchall()
        assert row == [(7185, 0)]


def test_summary_has_every_parameter(con: duckdb.DuckDBPyConnection, stored: Stored) -> None:
    fit = stored.fit
    answer = con.execute(f"FROM ml_fit_summary('{stored.fit_id}')")
    names = [d[0] for d in answer.description or ()]
    found = pl.DataFrame(answer.fetchall(), schema=names, orient="row", infer_schema_length=None)
    fixed, variances = found.filter(part="fixed"), found.filter(part="variance")
    assert fixed["term1"].to_list() == fit.fixed_effects["term"].to_list()
    for mine, theirs in {"estimate": "estimate", "std_error": "std_error", "df": "df", "conf_low": "conf_low"}.items():
        assert fixed[mine].to_list() == fit.fixed_effects[theirs].to_list()
    assert (
        variances.select("group", "term1", "term2").rows()
        == fit.variance_components.select("group", "term1", "term2").rows()
    )
    assert variances["statistic"].to_list() == fit.variance_components["chi2"].to_list()
    statistics = dict(found.filter(part="statistic").select("term1", "estimate").rows())
    assert statistics == {
        "n_rows": 7185, "n_groups": 160, "n_parameters": 8, "deviance": fit.deviance,
        "log_likelihood": fit.log_likelihood, "aic": fit.aic, "bic": fit.bic, "icc": fit.icc,
    }  # fmt: skip


def test_coefficients_and_their_intervals(stored: Stored) -> None:
    found = alone(stored.path, f"FROM ml_coefficients('{stored.fit_id}', level := 0.9)")
    effects, z = stored.fit.group_effects(), stats.norm.ppf(0.95)
    assert len(found) == effects.height
    expected = {(str(r["school"]), r["term"]): r for r in effects.iter_rows(named=True)}
    for group, key, term, n, fixed, effect, coefficient, error, low, high in found:
        row = expected[key, term]
        assert (group, n, effect, coefficient, error) == (
            "school", row["n"], row["estimate"], row["coefficient"], row["coefficient_std_error"],
        )  # fmt: skip
        assert fixed + effect == pytest.approx(coefficient, rel=1e-12)
        assert (low, high) == pytest.approx((coefficient - z * error, coefficient + z * error), rel=1e-12)


def test_caterpillar_rises(con: duckdb.DuckDBPyConnection, stored: Stored) -> None:
    query = f"FROM ml_caterpillar('{stored.fit_id}', '{SES}', level := 0.834)"
    found = con.execute(query).fetchall()
    effects = stored.fit.group_effects().filter(term=SES).sort("estimate", "school")
    assert [row[0] for row in found] == list(range(1, 161))
    assert [(row[1], row[3]) for row in found] == effects.select(pl.col("school").cast(pl.String), "estimate").rows()
    for row in found:
        assert row[6] - row[5] == pytest.approx(2 * stats.norm.ppf(0.917) * row[4], rel=1e-12)
        assert row[7] == (row[5] > 0 or row[6] < 0)


def test_contrast_of_fixed_effects(con: duckdb.DuckDBPyConnection, stored: Stored) -> None:
    weights = {"(Intercept)": 1.0, "sector": 1.0, SES: -0.5}
    literal = "MAP {" + ", ".join(f"'{k}': {v}" for k, v in weights.items()) + "}"
    found = con.execute(f"FROM ml_contrast('{stored.fit_id}', {literal}, level := 0.99)").fetchall()[0]
    names = stored.fit.fixed_effects["term"].to_list()
    c = [weights.get(name, 0.0) for name in names]
    estimate = sum(a * b for a, b in zip(c, stored.fit.fixed_effects["estimate"], strict=True))
    error = float(c @ stored.fit.vcov @ c) ** 0.5
    z = stats.norm.ppf(0.995)
    expected = (estimate, error, estimate / error, 2 * stats.norm.sf(estimate / error), estimate - z * error,
                estimate + z * error)  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-10)


UNKNOWN = {
    "ml_fit_summary('{}')": "there is no fit {} in ml_fits",
    "ml_coefficients('{}')": "there is no fit {} in ml_fits",
    "ml_caterpillar('{}', 'ses')": "the fit {} has no random coefficient ses",
    "ml_contrast('{}', MAP {{'sector': 1}})": "the fit {} has no fixed effect sector",
    "ml_score('{}', 'lines')": "there is no fit {} in ml_fits",
}


@pytest.mark.parametrize("call", UNKNOWN)
def test_an_unknown_fit_is_an_error(con: duckdb.DuckDBPyConnection, call: str) -> None:
    with pytest.raises(duckdb.InvalidInputException, match=UNKNOWN[call].format("abc")):
        con.execute(f"FROM {call.format('abc')}").fetchall()
    # a query that finds none
    missing = call.replace("'{}'", "(SELECT fit_id FROM ml_fits WHERE formula = 'none')", 1)
    with pytest.raises(duckdb.InvalidInputException, match=UNKNOWN[call].format("NULL")):
        con.execute(f"FROM {missing.replace('{{', '{').replace('}}', '}')}").fetchall()


def test_an_unknown_fit_has_no_scoring_statement(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="there is no fit abc in ml_terms; FROM ml_fits shows"):
        con.execute("SELECT ml_score_sql('abc', 'lines', 'row_id')").fetchall()


def test_unknown_terms_are_named(con: duckdb.DuckDBPyConnection, stored: Stored) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="has no random coefficient ses in ml_group_effects"):
        con.execute(f"FROM ml_caterpillar('{stored.fit_id}', 'ses')").fetchall()
    with pytest.raises(duckdb.InvalidInputException, match="has no fixed effect sectr in ml_fixed_effects"):
        con.execute(f"FROM ml_contrast('{stored.fit_id}', MAP {{'sector': 1, 'sectr': 1}})").fetchall()


WAYS: dict[str, Callable[[duckdb.DuckDBPyConnection, str], Any]] = {
    "text": lambda con, fit: con.execute(f"SELECT count(*) FROM ml_coefficients('{fit}')"),
    "parameter": lambda con, fit: con.execute("SELECT count(*) FROM ml_coefficients(?)", [fit]),
    "query": lambda con, fit: con.execute("SELECT count(*) FROM ml_coefficients((SELECT fit_id FROM ml_fits))"),
    "column": lambda con, fit: con.execute("SELECT count(*) FROM ml_fits AS f, ml_coefficients(f.fit_id)"),
    "name": lambda con, fit: con.execute(f"SELECT count(*) FROM ml_coefficients(fit_id := '{fit}', level := 0.5)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_name_a_fit(con: duckdb.DuckDBPyConnection, stored: Stored, way: str) -> None:
    assert WAYS[way](con, stored.fit_id).fetchall() == [(320,)]


def test_an_attached_file_after_use(stored: Stored) -> None:
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{stored.path}' AS results (READ_ONLY)")
        con.execute("USE results")
        assert con.execute(f"SELECT count(*) FROM ml_score('{stored.fit_id}', 'lines')").fetchall() == [(7185,)]


def test_another_prefix(stored: Stored) -> None:
    with duckdb.connect() as con:
        fit_id = stored.fit.to_tables(con, prefix="study_")
        install_macros(con)
        con.execute("CREATE TABLE hsb AS SELECT * FROM '" + mlsql.example_data("hsb") + "'")
        calls = [
            f"ml_fit_summary('{fit_id}', prefix := 'study_')",
            f"ml_coefficients('{fit_id}', prefix := 'study_')",
            f"ml_caterpillar('{fit_id}', '{SES}', prefix := 'study_')",
            f"ml_contrast('{fit_id}', MAP {{'sector': 1}}, prefix := 'study_')",
        ]
        assert all(con.execute(f"FROM {call}").fetchall() for call in calls)
        con.execute(f"SET VARIABLE scoring = ml_score_sql('{fit_id}', 'hsb', 'rowid', prefix := 'study_')")
        assert con.execute("SELECT count(*) FROM query(getvariable('scoring'))").fetchall() == [(7185,)]


def test_several_fits_in_one_file(stored: Stored, tmp_path: Path) -> None:
    path = tmp_path / "two.duckdb"
    path.write_bytes(stored.path.read_bytes())
    other = mlsql.fit("mathach ~ sector + (1 | school)", mlsql.example_data("hsb"))
    with duckdb.connect(str(path)) as con:
        other.to_tables(con)
    statement = (
        f"SELECT {DIFFERENCES} FROM ml_score('{stored.fit_id}', 'lines') AS s JOIN predicted AS p USING (row_id)"
    )
    check_differences(alone(path, statement)[0], 7185)
    assert alone(path, f"SELECT count(*) FROM ml_fit_summary('{other.fit_id}') WHERE part = 'fixed'") == [[2]]
