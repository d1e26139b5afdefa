"""`mlsql fit`: every option, what is printed as text and as JSON, what is stored."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

import mlsql

Command = Callable[..., subprocess.CompletedProcess[str]]
FORMULA = "mathach ~ group_center(ses) + (group_center(ses) | school)"
SMALL = "mathach ~ ses + (1 | school)"
SINGULAR = "yield ~ 1 + (1 | batch)"
EQUATIONS = """
# a slope for every school
mathach = b0 + b1*group_center(ses) + r
b0 = g00 + g01*sector + u0
b1 = g10 + u1
"""
TABLES = [
    *("ml_fits", "ml_fixed_covariances", "ml_fixed_effects", "ml_group_covariances", "ml_group_effects"),
    *("ml_group_means", "ml_terms", "ml_variance_components"),
]


def strict_json(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def stored(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute(statement).fetchall()


@pytest.fixture(scope="session")
def fitted(hsb: str) -> mlsql.Fit:
    return mlsql.fit(SMALL, hsb)


@pytest.fixture
def warehouse(tmp_path: Path, hsb: str) -> Path:
    path = tmp_path / "warehouse.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute(f"CREATE TABLE pupils AS FROM '{hsb}'")
        con.execute("CREATE SCHEMA raw; CREATE TABLE raw.scores AS SELECT school, mathach, ses FROM pupils")
        con.execute("CREATE TABLE schools AS SELECT DISTINCT school, sector FROM pupils")
    return path


def test_prints_the_summary_and_nothing_else(invoke: Any, hsb: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", FORMULA)
    assert found.code == 0
    assert found.stdout == mlsql.fit(FORMULA, hsb).summary() + "\n"
    assert found.stderr == ""


@pytest.mark.parametrize(
    ("option", "method"), [("REML", "restricted"), ("ML", "full"), ("reml", "restricted"), ("ml", "full")]
)
def test_method(invoke: Any, hsb: str, option: str, method: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--method", option)
    assert f"Method     {method} maximum likelihood" in found.stdout


def test_unknown_method_is_a_usage_error(invoke: Any, hsb: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--method", "bayes")
    assert found.code == 2
    assert "--method" in found.stderr
    assert "'bayes' is neither REML nor ML" in found.stderr


@pytest.mark.parametrize("missing", ["--data", "--formula"])
def test_data_and_formula_are_required(invoke: Any, hsb: str, missing: str) -> None:
    given = {"--data": hsb, "--formula": FORMULA}
    del given[missing]
    found = invoke("fit", *[text for pair in given.items() for text in pair])
    assert found.code == 2
    assert missing in found.stderr


def test_into_writes_the_tables_of_the_fit(invoke: Any, hsb: str, tmp_path: Path) -> None:
    results = tmp_path / "results.duckdb"
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--into", str(results))
    fit = mlsql.fit(FORMULA, hsb)
    assert found.code == 0
    assert found.stderr == f"the result tables of fit {fit.fit_id} are in {results}\n"
    assert stored(results, "SELECT table_name FROM duckdb_tables() ORDER BY ALL") == [(t,) for t in TABLES]
    assert stored(results, "SELECT fit_id, deviance, status FROM ml_fits") == [(fit.fit_id, fit.deviance, "converged")]
    estimates = stored(results, "SELECT term, estimate FROM ml_fixed_effects")
    assert estimates == fit.fixed_effects.select("term", "estimate").rows()
    assert stored(results, "SELECT count(*) FROM ml_group_effects") == [(320,)]


def test_into_replaces_the_same_fit_and_keeps_others(invoke: Any, hsb: str, tmp_path: Path) -> None:
    results = tmp_path / "results.duckdb"
    for formula in (FORMULA, "mathach ~ 1 + (1 | school)", FORMULA):
        invoke("fit", "--data", hsb, "--formula", formula, "--into", str(results))
    assert stored(results, "SELECT count(*) FROM ml_fits") == [(2,)]
    assert stored(results, "SELECT count(*) FROM ml_fixed_effects") == [(3,)]


@pytest.mark.parametrize("table", ["pupils", "raw.scores", "SELECT school, mathach, ses FROM pupils"])
def test_tables_of_a_database(invoke: Any, warehouse: Path, table: str) -> None:
    before = warehouse.read_bytes()
    found = invoke("fit", "--database", str(warehouse), "--data", table, "--formula", FORMULA)
    assert found.code == 0
    assert f"Data       {table}" in found.stdout
    assert "Deviance = 46714.234050" in found.stdout
    assert warehouse.read_bytes() == before


def test_level2_table(invoke: Any, warehouse: Path, hsb: str) -> None:
    formula = "mathach ~ sector + (1 | school)"
    found = invoke(
        "fit", "--database", str(warehouse), "--data", "raw.scores", "--level2", "schools", "--formula", formula
    )
    assert found.code == 0
    assert f"Deviance = {mlsql.fit(formula, hsb).deviance:.6f}" in found.stdout


def test_weights(invoke: Any, hsb: str) -> None:
    formula = "mathach ~ ses + (1 | school)"
    found = invoke("fit", "--data", hsb, "--formula", formula, "--weights", "1 + size / 1000")
    assert "Weights    1 + size / 1000 (precision)" in found.stdout
    assert f"Deviance = {mlsql.fit(formula, hsb, weights='1 + size / 1000').deviance:.6f}" in found.stdout


def test_collinear_predictors_are_dropped_only_when_asked(invoke: Any, hsb: str) -> None:
    arguments = ("fit", "--data", hsb, "--formula", "mathach ~ ses + I(2 * ses) + (1 | school)")
    refused = invoke(*arguments)
    assert isinstance(refused.exception, mlsql.DesignError)
    dropped = invoke(*arguments, "--drop-collinear")
    assert dropped.code == 0
    assert "it was left out, as asked" in dropped.stdout


@pytest.mark.parametrize("text", [FORMULA, f"{FORMULA}\n"])
def test_formula_from_a_file(invoke: Any, hsb: str, tmp_path: Path, text: str) -> None:
    file = tmp_path / "model.txt"
    file.write_text(text)
    found = invoke("fit", "--data", hsb, "--formula", str(file))
    assert found.stdout == mlsql.fit(FORMULA, hsb).summary() + "\n"


def test_level_equations_given_and_from_a_file(invoke: Any, hsb: str, tmp_path: Path) -> None:
    file = tmp_path / "model.txt"
    file.write_text(EQUATIONS)
    expected = mlsql.fit(EQUATIONS, hsb, groups="school").summary() + "\n"
    for formula in (EQUATIONS, str(file)):
        assert invoke("fit", "--data", hsb, "--formula", formula, "--groups", "school").stdout == expected


def test_level_equations_need_groups(invoke: Any, hsb: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", EQUATIONS)
    assert found.code == 1
    assert isinstance(found.exception, mlsql.FormulaError)
    assert "groups" in str(found.exception)


def test_a_singular_fit_is_stored_and_told_by_its_code(invoke: Any, level_batches: str, tmp_path: Path) -> None:
    results = tmp_path / "results.duckdb"
    found = invoke("fit", "--data", level_batches, "--formula", "yield ~ 1 + (1 | batch)", "--into", str(results))
    assert found.code == 3
    assert "singular after" in found.stdout
    assert "the variance of (Intercept) is zero" in found.stdout
    assert stored(results, "SELECT converged, singular, status FROM ml_fits") == [(True, True, "singular")]
    assert stored(results, "SELECT estimate FROM ml_variance_components WHERE term1 IS NOT NULL") == [(0.0,)]


@pytest.mark.parametrize(
    ("data", "formula", "error"),
    [
        ("nowhere.parquet", FORMULA, mlsql.DataError),
        ("pupils", FORMULA, mlsql.DataError),
        ("HSB", "mathach ~ ses + (1 | scool)", mlsql.DataError),
        ("HSB", "mathach ~ ses + (1 | school", mlsql.FormulaError),
        ("HSB", "mathach ~ ses", mlsql.FormulaError),
        ("HSB", "no_such_file.txt", mlsql.FormulaError),
        ("HSB", "mathach ~ I(ses / 0 * 0) + (1 | school)", mlsql.DataError),
    ],
)
def test_errors(invoke: Any, hsb: str, data: str, formula: str, error: type[Exception]) -> None:
    found = invoke("fit", "--data", hsb if data == "HSB" else data, "--formula", formula)
    assert found.code == 1
    assert type(found.exception) is error
    assert found.stdout == ""


def test_nothing_is_stored_where_nothing_can_be(invoke: Any, hsb: str, tmp_path: Path) -> None:
    for into in (tmp_path / "no_such_folder" / "results.duckdb", tmp_path):
        found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--into", str(into))
        assert found.code == 1
        assert type(found.exception) is mlsql.StoreError
        assert str(into) in str(found.exception)


def test_a_missing_database_is_not_made(invoke: Any, tmp_path: Path) -> None:
    database = tmp_path / "warehouse.duckdb"
    found = invoke("fit", "--database", str(database), "--data", "pupils", "--formula", FORMULA)
    assert type(found.exception) is mlsql.StoreError
    assert not database.exists()


def test_results_into_the_database_of_the_data(invoke: Any, warehouse: Path) -> None:
    where = str(warehouse)
    found = invoke("fit", "--database", where, "--data", "pupils", "--formula", FORMULA, "--into", where)
    assert found.code == 0
    assert stored(warehouse, "SELECT count(*) FROM ml_fits") == [(1,)]


def test_results_are_not_lost_in_a_file_of_another_format(invoke: Any, hsb: str, tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "results.parquet")
    before = (tmp_path / "results.parquet").read_bytes()
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--into", str(tmp_path / "results.parquet"))
    assert found.code == 1
    assert type(found.exception) is mlsql.StoreError
    assert (tmp_path / "results.parquet").read_bytes() == before


# fit: JSON


def test_json_holds_the_numbers_of_python(invoke: Any, hsb: str, fitted: mlsql.Fit) -> None:
    found = invoke("fit", "--data", hsb, "--formula", SMALL, "--json")
    assert found.code == 0
    assert found.stderr == ""
    document = strict_json(found.stdout)
    assert document["fit_id"] == fitted.fit_id
    assert document["source"] == hsb
    statistics = fitted.statistics.to_dicts()[0]
    assert {name: document[name] for name in statistics} == statistics
    assert document["fixed_effects"] == fitted.inference().to_dicts()
    assert document["variance_components"] == fitted.variance_components.to_dicts()
    assert document["warnings"] == list(fitted.warnings)
    assert document["dropped"] == []


@pytest.mark.parametrize(
    ("df", "vcov"), [("hlm", "model"), ("residual", "CR0"), ("satterthwaite", "CR2"), ("between_within", "CR1")]
)
def test_df_and_vcov(invoke: Any, hsb: str, fitted: mlsql.Fit, df: Any, vcov: Any) -> None:
    arguments = ("fit", "--data", hsb, "--formula", SMALL, "--df", df, "--vcov", vcov)
    document = strict_json(invoke(*arguments, "--json").stdout)
    assert document["fixed_effects"] == fitted.inference(df, vcov).to_dicts()
    assert {row["vcov"] for row in document["fixed_effects"]} == {vcov}
    assert invoke(*arguments).stdout == fitted.summary(df, vcov) + "\n"


def test_infinite_degrees_of_freedom_are_null(invoke: Any, hsb: str) -> None:
    document = strict_json(invoke("fit", "--data", hsb, "--formula", SMALL, "--df", "normal", "--json").stdout)
    assert [row["df"] for row in document["fixed_effects"]] == [None, None]
    assert {row["df_method"] for row in document["fixed_effects"]} == {"normal"}


def test_names_keep_their_letters_in_json(invoke: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("größe,x,klasse\n" + "".join(f"{i * 7 % 11},{i * 5 % 7},k{i // 5}\n" for i in range(40)))
    found = invoke("fit", "--data", str(path), "--formula", "größe ~ x + (1 | klasse)", "--json")
    assert found.code in (0, 3)
    assert "größe" in found.stdout
    assert strict_json(found.stdout)["formula"].startswith("größe ~")


def test_a_singular_fit_is_json_and_code_3(command: Command, level_batches: str) -> None:
    done = command("fit", "--data", level_batches, "--formula", SINGULAR, "--json", "--into", "r.duckdb")
    assert done.returncode == 3
    document = strict_json(done.stdout)
    assert (document["status"], document["singular"], document["converged"]) == ("singular", True, True)
    assert done.stderr == f"the result tables of fit {document['fit_id']} are in r.duckdb\n"


# fit: statements


def test_trace_shows_each_statement_on_stderr(invoke: Any, hsb: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", SMALL, "--json", "--trace")
    assert strict_json(found.stdout)["n_rows"] == 7185
    lines = re.findall(r"^-- (.+): (\d+\.\d{3}) s, ([\d,]+) rows$", found.stderr, re.M)
    answered = {step: count for step, _, count in lines}
    assert answered["survey of data"] == "1"
    assert answered["moments by group"] == "160"
    with duckdb.connect() as con:
        assert len(con.extract_statements(found.stderr)) == len(lines)


def test_trace_shows_what_is_written(invoke: Any, hsb: str, tmp_path: Path) -> None:
    results = tmp_path / "results.duckdb"
    arguments = ("fit", "--data", hsb, "--formula", SMALL, "--into", str(results), "--history", "--trace")
    for _ in range(2):
        found = invoke(*arguments)
    statements = re.findall(r"^-- ([^\n]+): \d+\.\d{3} s, ([\d,]+) rows\n(.*?;)\n", found.stderr, re.M | re.S)
    written = [(step, int(rows), sql.split()[0]) for step, rows, sql in statements if step.startswith("result table")]
    assert ("result table ml_fixed_effects", 2, "INSERT") in written
    assert ("result table ml_fixed_effects", 2, "DELETE") in written
    assert ("result table ml_history_fixed_effects", 2, "INSERT") in written
    assert ("result table ml_group_effects", 160, "INSERT") in written
    tables = {step.removeprefix("result table ") for step, _, _ in written}
    assert {t for t in tables if "history" not in t} == set(TABLES)
    around = [(step, sql) for step, _, sql in statements if not step.startswith("result table")]
    assert around[-2:] == [("transaction", "BEGIN TRANSACTION;"), ("transaction", "COMMIT;")]
    # the message at the end is no statement
    script, message = found.stderr.rstrip("\n").rsplit("\n", 1)
    assert message.startswith("the result tables of fit")
    with duckdb.connect() as con:
        assert len(con.extract_statements(script)) == len(statements)


def test_dry_run_as_json(invoke: Any, hsb: str, tmp_path: Path) -> None:
    arguments = ("--data", hsb, "--formula", SMALL, "--json")
    found = invoke("fit", *arguments, "--dry-run", "--into", str(tmp_path / "results.duckdb"))
    assert (found.code, found.stderr) == (0, "")
    assert found.stdout == invoke("plan", *arguments).stdout
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_evaluations(invoke: Any, hsb: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--max-evaluations", "3")
    assert found.code == 3
    assert "max_evaluations after 3 evaluations" in found.stdout
    assert "raise --max-evaluations" in found.stdout
    refused = invoke("fit", "--data", hsb, "--formula", FORMULA, "--max-evaluations", "1")
    assert refused.code == 2
    assert "--max-evaluations" in refused.stderr


@pytest.mark.parametrize("source", ["file", "table"])
def test_dry_run_prints_the_plan_and_touches_nothing(invoke: Any, hsb: str, tmp_path: Path, source: str) -> None:
    given = ["--data", hsb]
    if source == "table":
        with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as con:
            con.execute(f"CREATE TABLE pupils AS FROM '{hsb}'")
        given = ["--data", "pupils", "--database", str(tmp_path / "warehouse.duckdb")]
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    given += ["--formula", SMALL, "--method", "ML"]
    into, save = str(tmp_path / "results.duckdb"), str(tmp_path / "fit.parquet")
    found = invoke("fit", *given, "--dry-run", "--into", into, "--save", save)
    assert found.code == 0
    assert found.stdout == invoke("plan", *given).stdout
    assert found.stderr == ""
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


# fit: what is kept


def test_history_keeps_the_rows_that_a_rerun_replaces(invoke: Any, hsb: str, tmp_path: Path) -> None:
    results = tmp_path / "results.duckdb"
    arguments = ("fit", "--data", hsb, "--formula", SMALL, "--into", str(results))
    invoke(*arguments)
    (first,) = stored(results, "SELECT epoch_us(written_at) FROM ml_fits")
    for _ in range(2):
        assert invoke(*arguments, "--history").code == 0
    assert stored(results, "SELECT count(*) FROM ml_fits") == [(1,)]
    assert stored(results, "SELECT count(*), count(DISTINCT replaced_at) FROM ml_history_fits") == [(2, 2)]
    assert stored(results, "SELECT min(epoch_us(written_at)) FROM ml_history_fits") == [first]
    assert stored(results, "SELECT count(*) FROM ml_history_fixed_effects") == [(4,)]
    # without the option a rerun replaces, and what is past stays
    invoke(*arguments)
    assert stored(results, "SELECT count(*) FROM ml_history_fits") == [(2,)]


def test_history_without_into_is_a_usage_error(invoke: Any, hsb: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", SMALL, "--history")
    assert found.code == 2
    assert "--history belongs to --into" in found.stderr


def test_a_saved_fit_is_the_fit(invoke: Any, hsb: str, fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = tmp_path / "fit.parquet"
    found = invoke("fit", "--data", hsb, "--formula", SMALL, "--save", str(path))
    assert found.code == 0
    assert found.stderr == f"the fit is saved in {path}\n"
    assert mlsql.load(path).summary() == fitted.summary()
