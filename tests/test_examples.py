"""The examples: each runs by itself, prints what it promises and ends within a minute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment in which `mlsql` and `python` are those of the tests."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mlsql").write_text(f"#!{sys.executable}\nfrom mlsql.surfaces.cli import main\n\nmain()\n")
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    paths = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]
    return os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "error",
    }


def run(command: list[str], folder: Path, environment: dict[str, str], code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_python(tmp_path: Path, environment: dict[str, str]) -> None:
    printed = run(["python", str(EXAMPLES / "python.py")], tmp_path, environment)
    # deviances of R's nlme for the same models by full maximum likelihood, as printed here
    for deviance in ("47115.81", "46959.11", "46710.98", "46496.43"):
        assert deviance in printed
    assert printed.count("  school ") == 5


def test_polars(tmp_path: Path, environment: dict[str, str]) -> None:
    printed = run(["python", str(EXAMPLES / "polars_frames.py")], tmp_path, environment)
    assert re.search(r"of 2,400 rows are incomplete", printed)
    rows = re.findall(r"│ (\S+) +┆ ([\d.]+) +┆ ([\d.]+) +┆ ([\d.]+) +┆ ([\d.]+) +│", printed.split("Growth")[0])
    assert [row[0] for row in rows] == ["(Intercept)", "years", "urban", "years:urban"]
    for _, true, _, low, high in rows:
        assert float(low) < float(true) < float(high)


def test_sql(tmp_path: Path, environment: dict[str, str]) -> None:
    script = (EXAMPLES / "sql.sql").read_text(encoding="utf-8")
    assert "mlsql demo --into demo.duckdb" in script
    run(["mlsql", "demo", "--into", "demo.duckdb"], tmp_path, environment)
    with duckdb.connect(str(tmp_path / "demo.duckdb"), read_only=True) as con:
        answers = [con.execute(statement).fetchall() for statement in con.extract_statements(script)]
    models, explained, effects, slopes, unusual = answers
    assert [row[-1] for row in models] == ["converged"] * 4
    assert explained == [(0.694,)]
    assert ("meanses", "5.33 (0.37)", "***") in effects
    assert all(own > eb for *_, own, eb in slopes)
    assert unusual


def test_nightly(tmp_path: Path, environment: dict[str, str]) -> None:
    # one of its models names a column that does not exist: a scheduler must hear of it
    printed = run(["bash", str(EXAMPLES / "nightly.sh")], tmp_path, environment, code=1)
    assert re.findall(r"exit code (\d)", printed) == ["0", "3", "1"]
    assert "column 'income' is not in the data" in printed
    assert printed.count("deviance") == 2
    assert "1 of 3 models failed" in printed


def test_every_example_has_a_test() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    files = [f.name for f in EXAMPLES.iterdir() if f.is_file()]
    assert files
    assert [name for name in files if f'"{name}"' not in tested] == []
