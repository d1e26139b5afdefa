"""`mlsql compare`, `predict`, `show` and `register`: their output, their files, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import mlsql
from mlsql.surfaces.macros import macros

Command = Callable[..., subprocess.CompletedProcess[str]]
FORMULA = "mathach ~ ses + (1 | school)"
LARGER = "mathach ~ ses + sector + (1 | school)"


def strict_json(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute(statement).fetchall()


def said(found: Any) -> str:
    """The message of a refusal: code 1, nothing on stdout, one line that speaks of no Python."""
    assert found.code == 1
    assert isinstance(found.exception, mlsql.MlsqlError), repr(found.exception)
    assert found.stdout == ""
    message = str(found.exception)
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="session")
def fitted(hsb: str) -> mlsql.Fit:
    return mlsql.fit(FORMULA, hsb)


@pytest.fixture
def saved(fitted: mlsql.Fit, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "fit.parquet")
    return tmp_path / "fit.parquet"


@pytest.fixture
def results(fitted: mlsql.Fit, tmp_path: Path) -> Path:
    with duckdb.connect(str(tmp_path / "results.duckdb")) as con:
        fitted.to_tables(con)
    return tmp_path / "results.duckdb"


# compare


def test_compare_prints_the_table_of_python(invoke: Any, hsb: str) -> None:
    given = ("compare", "--data", hsb, "--formula", FORMULA, "--formula", LARGER)
    table = mlsql.compare(*(mlsql.fit(f, hsb, method="ML") for f in (FORMULA, LARGER)))
    found = invoke(*given, "--json")
    assert (found.code, found.stderr) == (0, "")
    assert strict_json(found.stdout) == table.to_dicts()
    text = invoke(*given)
    assert text.code == 0
    assert text.stdout.startswith("model  n_parameters  deviance")
    for formula in table["formula"]:
        assert formula in text.stdout


def test_compare_by_reml_says_why_there_is_no_test(invoke: Any, hsb: str) -> None:
    given = ("compare", "--data", hsb, "--formula", FORMULA, "--formula", LARGER, "--method", "reml", "--json")
    second = strict_json(invoke(*given).stdout)[1]
    assert (second["method"], second["chi2"]) == ("REML", None)
    assert second["note"]


def test_compare_takes_formulas_from_files(invoke: Any, hsb: str, tmp_path: Path) -> None:
    for name, text in (("small.txt", FORMULA), ("large.txt", LARGER)):
        (tmp_path / name).write_text(text)
    files = ("--formula", str(tmp_path / "small.txt"), "--formula", str(tmp_path / "large.txt"))
    told = invoke("compare", "--data", hsb, *files, "--trace")
    assert told.stdout == invoke("compare", "--data", hsb, "--formula", FORMULA, "--formula", LARGER).stdout
    assert told.stderr.count("-- moments by group: ") == 2


def test_compare_needs_two_formulas(invoke: Any, hsb: str) -> None:
    found = invoke("compare", "--data", hsb, "--formula", FORMULA)
    assert found.code == 2
    assert "give two formulas or more" in found.stderr


# predict


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_predict_writes_the_rows_of_python(
    invoke: Any, hsb: str, fitted: mlsql.Fit, saved: Path, tmp_path: Path, suffix: str
) -> None:
    into = tmp_path / f"scores.{suffix}"
    found = invoke("predict", "--fit", str(saved), "--data", hsb, "--into", str(into), "--trace")
    assert (found.code, found.stdout) == (0, "")
    assert found.stderr.endswith(f"predictions are in {into}\n")
    assert re.search(r"^-- write: \d+\.\d{3} s, ", found.stderr, re.M)
    expected, written = fitted.predict(hsb), (pl.read_csv if suffix == "csv" else pl.read_parquet)(into)
    assert expected is not None
    # sums of doubles in SQL vary in the last digits with the order of threads, in CSV with the printed digits too
    numbers = ["school", "mathach", "population", "conditional", "conditional_std_error"]
    order = ["school", "mathach", "population"]
    assert written.columns == expected.columns
    assert_frame_equal(written.select(numbers).sort(order), expected.select(numbers).sort(order), rel_tol=1e-12)


def test_predict_in_a_database(invoke: Any, hsb: str, saved: Path, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as con:
        con.execute(f"CREATE TABLE new_pupils AS FROM '{hsb}' LIMIT 30")
    into = tmp_path / "scores.parquet"
    found = invoke(
        "predict", "--fit", str(saved), "--database", str(tmp_path / "warehouse.duckdb"), "--data", "new_pupils",
        "--into", str(into),
    )  # fmt: skip
    assert found.code == 0
    assert pl.read_parquet(into).height == 30


NEW = "SELECT 7 AS school, 1.0 AS ses"


def test_unseen_groups_are_refused_unless_asked_for(invoke: Any, saved: Path, tmp_path: Path) -> None:
    into = tmp_path / "scores.csv"
    given = ("predict", "--fit", str(saved), "--data", NEW, "--into", str(into))
    message = said(invoke(*given))
    assert "1 groups that the fit did not see" in message
    assert "population" in message
    assert "missing" in message
    assert [f.name for f in tmp_path.iterdir()] == ["fit.parquet"]
    for unseen, conditional in (("population", [True]), ("missing", [False])):
        assert invoke(*given, "--unseen", unseen, "--replace").code == 0
        assert pl.read_csv(into)["conditional"].is_not_null().to_list() == conditional


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [("--unseen", "guess", "error, population or missing"), ("--into", "scores.xlsx", ".parquet or .csv")],
)
def test_usage_of_predict(invoke: Any, hsb: str, saved: Path, option: str, value: str, hint: str) -> None:
    given = {"--fit": str(saved), "--data": hsb, "--into": "scores.csv"} | {option: value}
    found = invoke("predict", *[text for pair in given.items() for text in pair])
    assert found.code == 2
    assert option in found.stderr
    assert hint in found.stderr


def test_predictions_do_not_overwrite(invoke: Any, hsb: str, saved: Path, tmp_path: Path) -> None:
    into = tmp_path / "scores.csv"
    into.write_text("kept\n")
    given = ("predict", "--fit", str(saved), "--data", hsb, "--into", str(into))
    assert "exists" in said(invoke(*given))
    assert into.read_text() == "kept\n"
    assert invoke(*given, "--replace").code == 0
    assert into.read_text().count("\n") == 7186


def test_predictions_that_fail_leave_no_file(invoke: Any, hsb: str, saved: Path, tmp_path: Path) -> None:
    given = ("predict", "--fit", str(saved), "--into", str(tmp_path / "scores.csv"))
    assert "did you mean 'se'?" in said(invoke(*given, "--data", "SELECT 1 AS school, 2.0 AS se"))
    # the fault is found only while the rows are written, the first of them are out by then
    broken = (
        "SELECT school, CASE WHEN i < 200000 THEN 1.0 ELSE error('bad row') END AS ses "
        f"FROM range(300000) r(i), (SELECT min(school) AS school FROM '{hsb}')"
    )
    assert "bad row" in said(invoke(*given, "--data", broken))
    missing = str(tmp_path / "no_such_folder" / "scores.csv")
    assert "no_such_folder" in said(invoke("predict", "--fit", str(saved), "--data", hsb, "--into", missing))
    assert [f.name for f in tmp_path.iterdir()] == ["fit.parquet"]


def test_a_file_that_is_no_saved_fit(invoke: Any, hsb: str, tmp_path: Path) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("no fit\n")
    for fit, hint in ((hsb, "no saved fit"), (str(text), "cannot be read as a saved fit"), ("gone.parquet", "exist")):
        message = said(invoke("predict", "--fit", fit, "--data", hsb, "--into", str(tmp_path / "scores.csv")))
        assert hint in message
        assert fit in message
    assert [f.name for f in tmp_path.iterdir()] == ["text.parquet"]


# show


def test_show_lists_and_shows(invoke: Any, hsb: str, fitted: mlsql.Fit, results: Path) -> None:
    before = results.read_bytes()
    listed = invoke("show", str(results))
    assert (listed.code, listed.stderr) == (0, "")
    header, line = listed.stdout.splitlines()
    assert header.startswith("fit_id")
    assert line.startswith(fitted.fit_id)
    shown = invoke("show", str(results), fitted.fit_id)
    assert (shown.code, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Stored fit {fitted.fit_id}\n")
    assert f"Deviance = {fitted.deviance:.6f}" in shown.stdout
    for term, estimate in fitted.fixed_effects.select("term", "estimate").iter_rows():
        assert re.search(rf"^ +{re.escape(term)} +{estimate:.5f} ", shown.stdout, re.M)
    assert results.read_bytes() == before


def test_show_suggests_the_fit_that_was_meant(invoke: Any, fitted: mlsql.Fit, results: Path) -> None:
    for typed in (fitted.fit_id[:6], fitted.fit_id[:-1] + "x"):
        assert f"did you mean {fitted.fit_id}?" in said(invoke("show", str(results), typed))
    assert f"stored are {fitted.fit_id}" in said(invoke("show", str(results), "zzz"))


def test_show_of_a_database_without_fits(invoke: Any, tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / "empty.duckdb")).close()
    assert "no fit was stored here" in said(invoke("show", str(tmp_path / "empty.duckdb")))


def test_show_as_json_is_what_fit_prints(invoke: Any, hsb: str, tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    for formula in (FORMULA, LARGER):
        printed = strict_json(invoke("fit", "--data", hsb, "--formula", formula, "--into", path, "--json").stdout)
    found = invoke("show", path, printed["fit_id"], "--json")
    assert (found.code, found.stderr) == (0, "")
    stored = strict_json(found.stdout)
    own = {"group", "mlsql_version", "written_at"}
    assert stored.keys() - printed.keys() == own
    # how many rows were left out for which column is not kept
    assert printed.keys() - stored.keys() == {"dropped"}
    for name in printed.keys() - {"dropped", "fixed_effects"}:
        assert stored[name] == printed[name]
    robust = {"robust_std_error", "robust_ratio"}
    assert [{k: v for k, v in row.items() if k not in robust} for row in stored["fixed_effects"]] == printed[
        "fixed_effects"
    ]
    listed = strict_json(invoke("show", path, "--json").stdout)
    assert [fit["formula"] for fit in listed] == [mlsql.parse_model(f).formula for f in (LARGER, FORMULA)]
    assert listed[0] == {k: v for k, v in stored.items() if k not in ("fixed_effects", "variance_components")}


def test_show_as_json_has_no_number_that_json_has_not(invoke: Any, results: Path) -> None:
    with duckdb.connect(str(results)) as con:
        con.execute("UPDATE ml_fits SET icc = 'nan'; UPDATE ml_fixed_effects SET df = 'infinity', note = NULL")
        (fit_id,) = con.execute("SELECT fit_id FROM ml_fits").fetchone() or ("",)
    document = strict_json(invoke("show", str(results), fit_id, "--json").stdout)
    assert document["icc"] is None
    assert [row["df"] for row in document["fixed_effects"]] == [None, None]


def test_show_as_json_refuses_as_text_does(invoke: Any, fitted: mlsql.Fit, results: Path, tmp_path: Path) -> None:
    assert f"did you mean {fitted.fit_id}?" in said(invoke("show", str(results), fitted.fit_id[:6], "--json"))
    duckdb.connect(str(tmp_path / "empty.duckdb")).close()
    assert "no fit was stored here" in said(invoke("show", str(tmp_path / "empty.duckdb"), "--json"))


# register


def test_register_serves_clients_that_know_nothing_of_mlsql(command: Command, results: Path) -> None:
    done = command("register", str(results))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"{len(macros())} functions are in {results}, {len(macros())} of them new or renewed\n"
    code = (
        f"import duckdb; con = duckdb.connect({str(results)!r}, read_only=True); "
        "print(con.execute('SELECT ml_icc(1, 3)').fetchall())"
    )
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout == "[(0.25,)]\n"
    # a second time there is nothing to do
    again = command("register", str(results))
    assert (again.returncode, again.stdout) == (0, "")


def test_register_leaves_functions_of_others_alone(invoke: Any, results: Path) -> None:
    with duckdb.connect(str(results)) as con:
        con.execute("CREATE MACRO ml_icc(a) AS a")
    message = said(invoke("register", str(results)))
    assert "ml_icc" in message
    assert "nothing was changed" in message
    ours = rows(results, "SELECT function_name FROM duckdb_functions() WHERE function_name LIKE 'ml\\_%' ESCAPE '\\'")
    assert ours == [("ml_icc",)]
