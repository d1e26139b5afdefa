"""The SQL functions: complete headers, examples that give the printed number, and a catalogue that lists them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import mlsql
from mlsql.surfaces.macros import MARK, Macro, folder, install_macros, macros, read_macro

UDFS = Path(__file__).parent.parent / "udfs"
FILES = sorted(UDFS.glob("*.sql"))
MACROS = [read_macro(file) for file in FILES]
BY_NAME = {m.name: m for m in MACROS}
HEADINGS = ["name", "arguments", "returns", "summary", "example"]

every = pytest.mark.parametrize("macro", MACROS, ids=lambda m: m.name)
formulas = [m for m in MACROS if not m.is_table and "fit_id" not in m.parameters]


def create(con: duckdb.DuckDBPyConnection, macro: Macro) -> None:
    """What a user runs: the files that it needs, then its own."""
    for need in macro.needs:
        create(con, BY_NAME[need])
    con.execute((UDFS / f"{macro.name}.sql").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with a stored fit, the tables of the examples and the functions."""
    with duckdb.connect() as connection:
        connection.from_parquet(mlsql.example_data("hsb")).create_view("hsb")
        formula = "mathach ~ sector + meanses + group_center(ses) + (group_center(ses) | school)"
        mlsql.fit(formula, "hsb", con=connection).to_tables(connection)
        connection.execute(
            "CREATE TABLE new_rows AS SELECT 1 AS row_id, '1224' AS key, unnest([{'term': 'sector', 'value': 1.0}, "
            "{'term': 'meanses', 'value': 0.5}, {'term': 'group_center(ses)', 'value': 0.0}], recursive := true)"
        )
        install_macros(connection)
        yield connection


def test_there_are_functions() -> None:
    assert [m.name for m in MACROS] == [file.stem for file in FILES]
    assert len(MACROS) > 30


def test_the_package_finds_its_files() -> None:
    assert sorted(file.name for file in folder().glob("*.sql")) == [file.name for file in FILES]


@every
def test_header_is_complete_and_names_the_function(macro: Macro) -> None:
    lines = (UDFS / f"{macro.name}.sql").read_text(encoding="utf-8").splitlines()
    top = [line for line in lines if line.startswith("--")]
    assert lines[: len(top)] == top, "comments at the margin stand above the statement"
    assert [h for h in macro.header if h != "needs"] == HEADINGS
    assert len(top) == len(macro.header)
    assert all(macro.header.values())
    assert macro.header["name"] == macro.name
    assert macro.name.startswith("ml_")


@every
def test_arguments_are_those_of_the_statement(macro: Macro) -> None:
    listed = re.sub(r" \([^)]*\)", "", macro.header["arguments"]).split(", ")
    assert ", ".join(re.sub(r" [A-Z]+", "", argument, count=1) for argument in listed) == macro.parameters


@every
def test_needs_are_the_functions_that_it_calls(macro: Macro) -> None:
    assert set(re.findall(r"\b(ml_\w+)\(", macro.statement)) - {macro.name} == set(macro.needs)


@every
def test_a_file_ends_with_its_summary_as_a_comment(macro: Macro) -> None:
    text = (UDFS / f"{macro.name}.sql").read_text(encoding="utf-8")
    summary = macro.header["summary"].replace("'", "''")
    assert text.endswith(f";\nCOMMENT ON {macro.kind} {macro.name} IS '{summary} {MARK}]';\n")


@every
def test_a_file_runs_after_those_that_it_needs(macro: Macro) -> None:
    with duckdb.connect() as empty:
        create(empty, macro)


def test_each_function_is_installed_after_those_that_it_needs() -> None:
    order = [m.name for m in macros()]
    assert sorted(order) == sorted(BY_NAME)
    assert all(order.index(need) < order.index(m.name) for m in MACROS for need in m.needs)


@every
def test_example_gives_the_printed_number(macro: Macro, con: duckdb.DuckDBPyConnection) -> None:
    statement, _, printed = macro.header["example"].partition(" -> ")
    assert f"{macro.name}(" in statement
    value = con.execute(statement).fetchall()[0][0]
    decimals = len(printed.partition(".")[2])
    shown = str(value) if isinstance(value, bool) else f"{value:.{decimals}f}"
    assert shown == printed


@pytest.mark.parametrize("macro", formulas, ids=lambda m: m.name)
def test_missing_arguments_give_a_missing_result(macro: Macro, con: duckdb.DuckDBPyConnection) -> None:
    arguments = ", ".join("NULL::DOUBLE" for p in macro.parameters.split(", ") if ":=" not in p)
    (row,) = con.execute(f"SELECT {macro.name}({arguments})").fetchall()
    assert row[0] is None or set(row[0].values()) == {None}


def test_catalogue_lists_every_function_with_its_summary() -> None:
    rows = re.findall(r"^\| `(\w+\([^`]*\))` \| (.+) \|$", (UDFS / "README.md").read_text(encoding="utf-8"), re.M)
    expected = [(f"{m.name}({m.parameters})", m.header["summary"]) for m in MACROS]
    assert sorted(rows) == sorted(expected)
