"""What the command-line tests share: the example data, a singular data set, and two ways to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

import mlsql
from mlsql.surfaces.cli import app

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def hsb() -> str:
    return mlsql.example_data("hsb")


@pytest.fixture(scope="session")
def level_batches(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six batches of five yields with one and the same mean: the variance between batches is exactly zero."""
    path = tmp_path_factory.mktemp("data") / "level_batches.parquet"
    duckdb.execute(
        f"COPY (SELECT b AS batch, 5.0 + (b + 1) * (i - 2) AS yield FROM range(6) x(b), range(5) y(i)) "
        f"TO '{path}' (FORMAT parquet)"
    )
    return str(path)


class Invoked:
    """Outcome of a command run inside the test's own process."""

    def __init__(self, *arguments: str) -> None:
        found = CliRunner().invoke(app, list(arguments))
        self.code, self.exception = found.exit_code, found.exception
        self.stdout, self.stderr = found.stdout, found.stderr


@pytest.fixture
def invoke() -> type[Invoked]:
    return Invoked


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `mlsql` as a process of its own, in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "COLUMNS": "100",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }
        code = "from mlsql.surfaces.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environment,
            check=False,
        )

    return run
