"""The README's blocks run, and what they show is what is printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest
from typer.testing import CliRunner

import mlsql
from mlsql.surfaces.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_model_is_shown_three_ways_within_sixty_lines() -> None:
    top = "\n".join(README.splitlines()[:60])
    assert all(f"```{language}\n" in top for language in ("python", "sql", "console", "text"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the example's file."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(mlsql.example_data("hsb"), "hsb.parquet")
    return tmp_path


def test_python_blocks_run_and_print_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    (shown,) = blocks("text")
    assert [line for line in shown.splitlines() if line.rstrip() not in [p.rstrip() for p in printed]] == []
    schools = names["schools"]
    assert isinstance(schools, pl.DataFrame)
    assert schools.height == 320


def test_the_sql_block_runs_on_a_connection_that_knows_the_functions() -> None:
    (statement,) = blocks("sql")
    with mlsql.connect() as con:
        assert [row[0] for row in con.execute(statement).fetchall()][:2] == ["(Intercept)", "sector"]


def test_the_command_line_blocks_run() -> None:
    (block,) = [b for b in blocks("console") if b.startswith("$ mlsql fit")]
    fit, query = block.splitlines()
    done = CliRunner().invoke(app, shlex.split(fit.removeprefix("$ mlsql")))
    assert done.exit_code == 0, done.output
    program, database, statement = shlex.split(query.removeprefix("$ "))
    assert program == "duckdb"
    with duckdb.connect(database) as con:
        assert len(con.execute(statement).fetchall()) == 160
