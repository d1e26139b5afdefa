"""`mlsql` as a process: exit codes, which stream gets what, and how quickly help comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlsql
from mlsql.surfaces.cli import main

Command = Callable[..., subprocess.CompletedProcess[str]]
FORMULA = "mathach ~ ses + (1 | school)"


def test_code_0_summary_on_stdout_and_messages_on_stderr(command: Command, hsb: str, tmp_path: Path) -> None:
    done = command("fit", "--data", hsb, "--formula", FORMULA, "--into", "results.duckdb")
    assert done.returncode == 0
    assert done.stdout.startswith("Two-level model")
    assert "result tables" not in done.stdout
    assert done.stderr.startswith("result tables ml_fits")
    assert (tmp_path / "results.duckdb").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.parquet", "--formula", FORMULA], "the file nowhere.parquet does not exist"),
        (["--data", "HSB", "--formula", "mathach ~ ses + (1 | scool)"], "did you mean 'school'?"),
        (["--data", "HSB", "--formula", "mathach ~ ses"], "no random term"),
        (["--data", "t", "--database", "nowhere.duckdb", "--formula", FORMULA], "nowhere.duckdb does not exist"),
    ],
)
def test_code_1_one_paragraph_on_stderr(command: Command, hsb: str, arguments: list[str], said: str) -> None:
    done = command("fit", *[hsb if a == "HSB" else a for a in arguments])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_code_1_shows_where_a_formula_is_wrong(command: Command, hsb: str) -> None:
    done = command("fit", "--data", hsb, "--formula", "mathach ~ ses + (1 | school")
    assert done.returncode == 1
    message, formula, caret = done.stderr.splitlines()
    assert "Traceback" not in message
    assert formula[caret.index("^") - 1 :] == "l"


@pytest.mark.parametrize("arguments", [["fit"], ["fti"], ["fit", "--colour", "red"], ["plan", "--survey"]])
def test_code_2_for_a_wrong_command_line(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_code_3_for_a_singular_fit(command: Command, level_batches: str) -> None:
    done = command("fit", "--data", level_batches, "--formula", "yield ~ 1 + (1 | batch)")
    assert done.returncode == 3
    assert "singular" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "interruption",
    [
        KeyboardInterrupt,
        mlsql.QueryInterrupted,
    ],
)
def test_code_130_when_interrupted(
    interruption: type[BaseException], hsb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise interruption("stopped")

    monkeypatch.setattr(mlsql, "fit", interrupted)
    monkeypatch.setattr(sys, "argv", ["mlsql", "fit", "--data", hsb, "--formula", FORMULA])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_help_needs_no_numerical_library(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from mlsql.surfaces.cli import main\n"
        "sys.argv = ['mlsql', '--help']\n"
        "try:\n    main()\n"
        "finally:\n    print('LOADED', json.dumps(sorted({m.split('.')[0] for m in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    loaded = set(json.loads(done.stdout.split("LOADED ")[1]))
    assert not loaded & {"numpy", "scipy", "polars", "pandas", "pyarrow"}
    assert "demo" in done.stdout


def test_no_arguments_show_the_help(command: Command) -> None:
    done = command()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
