"""`mlsql` as a process: exit codes, which stream gets what, how quickly help comes, and databases it cannot use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import mlsql
from mlsql.surfaces import cli
from mlsql.surfaces.cli import main
from mlsql.surfaces.database import opened

Command = Callable[..., subprocess.CompletedProcess[str]]
FORMULA = "mathach ~ ses + (1 | school)"
LARGER = "mathach ~ ses + sector + (1 | school)"


def test_code_0_summary_on_stdout_and_messages_on_stderr(command: Command, hsb: str, tmp_path: Path) -> None:
    done = command("fit", "--data", hsb, "--formula", FORMULA, "--into", "results.duckdb")
    assert done.returncode == 0
    assert done.stdout.startswith("Two-level model")
    assert "result tables" not in done.stdout
    assert re.fullmatch(r"the result tables of fit [0-9a-f]{16} are in results\.duckdb\n", done.stderr)
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


# databases that cannot be used


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


ON_DATABASES = {
    "fit": ["fit", "--data", "pupils", "--database", "DATABASE", "--formula", FORMULA],
    "compare": ["compare", "--data", "t", "--database", "DATABASE", "--formula", FORMULA, "--formula", LARGER],
    "predict": ["predict", "--fit", "FIT", "--data", "t", "--database", "DATABASE", "--into", "scores.csv"],
    "plan": ["plan", "--data", "t", "--database", "DATABASE", "--formula", FORMULA],
    "show": ["show", "DATABASE"],
    "register": ["register", "DATABASE"],
    "demo": ["demo", "--into", "DATABASE"],
}


def on(database: Path, saved: Path, name: str) -> list[str]:
    return [{"DATABASE": str(database), "FIT": str(saved)}.get(text, text) for text in ON_DATABASES[name]]


@pytest.mark.parametrize("name", sorted(ON_DATABASES.keys() - {"register", "demo"}))
def test_a_missing_database_is_named_and_not_made(invoke: Any, saved: Path, tmp_path: Path, name: str) -> None:
    database = tmp_path / "gone.duckdb"
    assert said(invoke(*on(database, saved, name))) == f"the database {database} does not exist"
    assert [f.name for f in tmp_path.iterdir()] == ["fit.parquet"]


@pytest.mark.parametrize("name", sorted(ON_DATABASES))
def test_a_file_that_is_no_database(invoke: Any, saved: Path, tmp_path: Path, name: str) -> None:
    database = tmp_path / "text.duckdb"
    database.write_text("no database, but a text that is long enough to have a header" * 100)
    before = database.read_bytes()
    message = said(invoke(*on(database, saved, name)))
    assert message.startswith(f"the database {database} cannot be opened: ")
    assert database.read_bytes() == before


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A database that another process holds for writing, and the number of that process."""
    path = tmp_path_factory.mktemp("locked") / "held.duckdb"
    code = f"import duckdb; con = duckdb.connect({str(path)!r}); print('held', flush=True); input()"
    # the interpreter may start another one: its own number is the one that DuckDB reports
    code = f"import os; print(os.getpid(), flush=True); {code}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert holder.stdout.readline() == "held\n"
        yield path, pid
        holder.communicate("\n", timeout=20)


@pytest.mark.parametrize("name", sorted(ON_DATABASES))
def test_a_locked_database_is_named_with_its_holder(
    command: Command, locked: tuple[Path, int], saved: Path, tmp_path: Path, name: str
) -> None:
    # a process of its own, as a lock is: within one, DuckDB would share the database
    path, pid = locked
    done = command(*on(path, saved, name))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: the database {path} cannot be opened: ")
    assert "lock" in done.stderr
    assert f"PID {pid}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["fit.parquet"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write any file")
@pytest.mark.parametrize("name", ["register", "demo"])
def test_a_database_file_without_permission(invoke: Any, results: Path, saved: Path, name: str) -> None:
    results.chmod(0o444)
    before = results.read_bytes()
    assert str(results) in said(invoke(*on(results, saved, name)))
    assert results.read_bytes() == before


def test_results_into_a_read_only_database(
    invoke: Any, hsb: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "opened", lambda path: opened(path, read_only=True))
    before = results.read_bytes()
    found = invoke("fit", "--data", hsb, "--formula", LARGER, "--into", str(results))
    assert found.code == 1
    assert type(found.exception) is mlsql.StoreError
    assert "read-only" in str(found.exception)
    assert results.read_bytes() == before


def test_result_tables_that_hold_something_else_are_left_alone(invoke: Any, hsb: str, tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE ml_terms AS SELECT 1 AS a")
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--into", str(path))
    assert found.code == 1
    assert "ml_terms has no column fit_id" in str(found.exception)
    with duckdb.connect(str(path), read_only=True) as con:
        assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("ml_terms",)]


@pytest.mark.parametrize("where", ["no_such_folder/fit.parquet", "."])
def test_a_fit_that_cannot_be_saved(invoke: Any, hsb: str, tmp_path: Path, where: str) -> None:
    found = invoke("fit", "--data", hsb, "--formula", FORMULA, "--save", str(tmp_path / where))
    assert found.code == 1
    assert type(found.exception) is mlsql.StoreError
    assert str(tmp_path) in str(found.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--df", "welch", "hlm, between_within, residual"),
        ("--df", "HLM", "hlm, between_within, residual"),
        ("--vcov", "HC3", "model, CR0, CR1, CR2"),
        ("--method", "bayes", "neither REML nor ML"),
    ],
)
def test_names_of_methods(command: Command, hsb: str, tmp_path: Path, option: str, value: str, hint: str) -> None:
    done = command("fit", "--data", hsb, "--formula", FORMULA, option, value, "--into", "r.duckdb")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value for {option}: '{value}'" in done.stderr
    assert hint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_rule_that_does_not_go_with_the_method(invoke: Any, hsb: str) -> None:
    given = ("fit", "--data", hsb, "--formula", FORMULA, "--method", "ML", "--df", "kenward_roger")
    assert "REML" in said(invoke(*given))
