"""`mlsql plan` and `mlsql demo` inside the test's process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

import mlsql

FORMULA = "mathach ~ sector + ses + (ses | school)"


def test_plan_prints_the_script(invoke: Any, hsb: str) -> None:
    found = invoke("plan", "--data", hsb, "--formula", FORMULA)
    assert found.code == 0
    assert found.stdout == f"{mlsql.plan(FORMULA, hsb)}\n"
    assert found.stderr == ""


@pytest.mark.parametrize("survey", [False, True])
def test_plan_as_json(invoke: Any, hsb: str, survey: bool) -> None:
    found = invoke("plan", "--data", hsb, "--formula", FORMULA, "--json", *(["--survey"] if survey else []))
    assert (found.code, found.stderr) == (0, "")
    script, document = mlsql.plan(FORMULA, hsb, survey=survey), json.loads(found.stdout)
    assert document["notes"] == list(script.notes)
    steps = [{"name": s.name, "purpose": s.purpose, "sql": s.sql} for s in script.steps]
    assert document["steps"] == steps


def test_a_note_of_a_plan_names_the_option(invoke: Any, hsb: str) -> None:
    arguments = ("plan", "--data", f"SELECT *, sector = 1 AS catholic FROM '{hsb}'", "--formula")
    found = invoke(*arguments, "mathach ~ catholic + (1 | school)", "--json")
    assert json.loads(found.stdout)["notes"] == [
        "the moments statements depend on the levels of catholic: --survey runs the survey and shows them"
    ]


@pytest.mark.parametrize("option", [(), ("--survey",)])
def test_the_script_runs_in_any_duckdb(invoke: Any, hsb: str, option: tuple[str, ...]) -> None:
    script = invoke("plan", "--data", hsb, "--formula", FORMULA, *option).stdout
    with duckdb.connect() as con:
        answers = [con.execute(statement).fetchall() for statement in con.extract_statements(script)]
    assert all(answers)
    # one row per school from the query by group
    assert 160 in [len(answer) for answer in answers]


def test_survey_shows_the_moments_as_they_run(invoke: Any, hsb: str) -> None:
    script = invoke("plan", "--data", hsb, "--formula", FORMULA, "--survey").stdout
    assert script.rstrip().endswith(mlsql.fit(FORMULA, hsb).plan.sql)


def test_plan_of_level_equations_on_tables(invoke: Any, hsb: str, tmp_path: Path) -> None:
    database = tmp_path / "warehouse.duckdb"
    with duckdb.connect(str(database)) as con:
        con.execute(f"CREATE TABLE pupils AS SELECT school, mathach, ses FROM '{hsb}'")
        con.execute(f"CREATE TABLE schools AS SELECT DISTINCT school, sector FROM '{hsb}'")
    found = invoke(
        "plan", "--database", str(database), "--data", "pupils", "--level2", "schools", "--groups", "school",
        "--formula", "mathach = b0 + b1*ses + r\nb0 = g00 + g01*sector + u0\nb1 = g10",
    )  # fmt: skip
    assert found.code == 0
    assert '"pupils"' in found.stdout
    assert '"schools"' in found.stdout


def test_demo_prints_four_models_and_stores_them(invoke: Any, tmp_path: Path) -> None:
    database = tmp_path / "demo.duckdb"
    found = invoke("demo", "--into", str(database))
    assert found.code == 0
    # deviances of R's lme4
    for deviance in ("47116.793", "46961.284", "46714.234", "46503.664"):
        assert f"Deviance = {deviance}" in found.stdout
    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute("SELECT status, count(*) FROM ml_fits GROUP BY status").fetchall()
    assert rows == [("converged", 4)]


def test_demo_writes_where_the_user_is(invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("demo").code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["mlsql_demo.duckdb"]


def test_demo_twice_is_the_same_as_once(invoke: Any, tmp_path: Path) -> None:
    database = tmp_path / "demo.duckdb"
    first, second = (invoke("demo", "--into", str(database)) for _ in range(2))
    assert first.stdout == second.stdout


def test_demo_that_cannot_be_stored(invoke: Any, tmp_path: Path) -> None:
    found = invoke("demo", "--into", str(tmp_path / "no_such_folder" / "demo.duckdb"))
    assert found.code == 1
    assert type(found.exception) is mlsql.StoreError
    assert found.stdout == ""
