"""The README's blocks run, and what they show is what is printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import duckdb
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


def test_python_blocks_run_and_print_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    (shown,) = blocks("text")
    assert [line for line in shown.splitlines() if line.rstrip() not in [p.rstrip() for p in printed]] == []


def test_the_command_line_and_sql_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(mlsql.example_data("hsb"), "hsb.parquet")
    (command,) = [b for b in blocks("console") if b.startswith("$ mlsql fit")]
    done = CliRunner().invoke(app, shlex.split(command.removeprefix("$ mlsql")))
    assert done.exit_code == 0, done.output
    (questions,) = blocks("sql")
    with duckdb.connect("results.duckdb") as con:
        answers = [con.execute(q).fetchall() for q in questions.split(";") if q.strip()]
    assert [len(a) for a in answers] == [4, 160]
