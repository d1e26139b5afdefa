"""The SQL functions: complete headers, examples that give the printed number, and a catalogue that lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

UDFS = Path(__file__).parent.parent / "udfs"
FILES = sorted(UDFS.glob("*.sql"))
HEADINGS = ["name", "arguments", "returns", "summary", "example"]


def header(file: Path) -> dict[str, str]:
    """The comment lines at the top, `-- heading: text`, in order."""
    lines = file.read_text(encoding="utf-8").splitlines()
    top = [line for line in lines if line.startswith("--")]
    assert lines[: len(top)] == top, f"{file.name}: comments stand above the statement"
    return dict(line.removeprefix("-- ").split(": ", 1) for line in top)


def parameters(file: Path) -> str:
    """The macro's parameters as its statement gives them."""
    found = re.search(r"CREATE OR REPLACE MACRO (\w+)\(([^)]*)\)", file.read_text(encoding="utf-8"))
    assert found is not None
    assert found[1] == file.stem
    return found[2]


def test_there_are_functions() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_header_is_complete_and_names_the_function(file: Path) -> None:
    found = header(file)
    assert list(found) == HEADINGS
    assert all(found.values())
    assert found["name"] == file.stem
    assert found["name"].startswith("ml_")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_arguments_are_those_of_the_statement(file: Path) -> None:
    listed = re.findall(r"(?:^|, )(\w+) [A-Z]+", re.sub(r"\([^)]*\)", "", header(file)["arguments"]))
    assert ", ".join(listed) == parameters(file)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_example_gives_the_printed_number(file: Path) -> None:
    statement, _, printed = header(file)["example"].partition(" -> ")
    with duckdb.connect() as con:
        con.execute(file.read_text(encoding="utf-8"))
        value = con.execute(statement).fetchall()[0][0]
    decimals = len(printed.partition(".")[2])
    assert f"{value:.{decimals}f}" == printed


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_missing_arguments_give_a_missing_result(file: Path) -> None:
    arguments = ", ".join("NULL::DOUBLE" for _ in parameters(file).split(","))
    with duckdb.connect() as con:
        con.execute(file.read_text(encoding="utf-8"))
        assert con.execute(f"SELECT {file.stem}({arguments})").fetchall() == [(None,)]


def test_functions_stay_in_the_database(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "results.duckdb")) as con:
        for file in FILES:
            con.execute(file.read_text(encoding="utf-8"))
    with duckdb.connect(str(tmp_path / "results.duckdb"), read_only=True) as con:
        found = con.execute("SELECT function_name FROM duckdb_functions() WHERE function_name LIKE 'ml!_%' ESCAPE '!'")
        assert {name for (name,) in found.fetchall()} >= {file.stem for file in FILES}


def test_catalogue_lists_every_function_with_its_summary() -> None:
    rows = re.findall(r"^\| `(\w+\([^`]*\))` \| (.+) \|$", (UDFS / "README.md").read_text(encoding="utf-8"), re.M)
    expected = [(f"{file.stem}({parameters(file)})", header(file)["summary"]) for file in FILES]
    assert sorted(rows) == sorted(expected)
