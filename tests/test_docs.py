"""The documentation: every block runs and prints what the page shows, references match the code, docstrings hold.

A fenced block of a page is `python` (run in one namespace per page), `bash` (run in a shell where `mlsql` is this
package) or `sql` (run on the page's `con`).  A `text` block carries a comment on the line above: `<!-- output -->` is
what the block before it printed, with `...` for what differs between machines; `<!-- from mlsql.fit -->` is a signature
and `<!-- from udfs/ml_icc.sql -->` a header, copied from the code; `<!-- not code -->` is a formula or a grammar.
`MLSQL_UPDATE_DOCS=1 pytest tests/test_docs.py` writes outputs and copies instead of comparing them.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

import mlsql

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
UPDATE = bool(os.environ.get("MLSQL_UPDATE_DOCS"))
# benchmarks run for minutes and have a record of their own
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.name != "benchmarks.md")
FENCE = re.compile(r"(?:^<!-- (?P<mark>[^\n]+) -->\n)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    code: str
    start: int
    end: int


def blocks(text: str) -> list[Block]:
    return [
        Block(m["mark"] or "", m["language"], m["code"], m.start("code"), m.end("code")) for m in FENCE.finditer(text)
    ]


class Page:
    """Runs the blocks of one page in order."""

    def __init__(self, folder: Path) -> None:
        self.names: dict[str, Any] = {"__name__": "page"}
        self.folder = folder

    def run(self, block: Block) -> str:
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, "<page>", "exec"), self.names)
            return printed.getvalue()
        if block.language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"exit code {done.returncode} of\n{block.code}\n{done.stdout}"
            return done.stdout
        assert block.language == "sql", f"a block in {block.language!r} is not known to this test:\n{block.code}"
        con = self.names.setdefault("con", duckdb.connect())
        answer = con.sql(block.code)
        return "" if answer is None else f"{answer.pl()}\n"


def tidy(text: str) -> str:
    """Without spaces at line ends and empty lines around; this machine's folder of example data becomes `...`."""
    text = text.replace(str(Path(mlsql.example_data("hsb")).parent), "...")
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with `mlsql` on the path and output of a fixed width."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mlsql").write_text(f"#!{sys.executable}\nfrom mlsql.surfaces.cli import main\n\nmain()\n")
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(ROOT / "udfs", work / "udfs")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    for name, value in {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "POLARS_TABLE_WIDTH": "100"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(work)
    with pl.Config():
        yield work


def shown_and_printed(text: str, page: Page) -> list[tuple[Block, str]]:
    """Run a page; each output block with what was printed.  Whatever prints must be shown."""
    found, printed = [], ""
    assert not re.search(r"^ +```(?!text$|$)", text, re.M), "an indented block would not be run"
    for block in blocks(text):
        if block.language == "text":
            assert block.mark in ("output", "not code") or block.mark.startswith("from "), (
                f"no mark above\n{block.code}"
            )
            if block.mark == "output":
                found.append((block, printed))
                printed = ""
        else:
            assert not printed.strip(), f"the page does not show what is printed before\n{block.code}\n{printed}"
            printed = tidy(page.run(block))
    assert not printed.strip(), f"the page does not show what its last block prints:\n{printed}"
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_blocks_of_a_page_run_and_print_what_it_shows(path: Path, folder: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block, printed in reversed(shown_and_printed(text, Page(folder))):
        same = doctest.OutputChecker().check_output(tidy(block.code), printed, doctest.ELLIPSIS)
        if UPDATE and not same:
            text = text[: block.start] + printed + text[block.end :]
        else:
            assert same, f"{path.name} shows\n{block.code}\nbut its block prints\n{printed}"
    if UPDATE:
        path.write_text(text, encoding="utf-8")


def signature(name: str) -> str:
    """A signature with one parameter a line, as in the code."""
    member: Any = mlsql
    for part in name.split(".")[1:]:
        member = getattr(member, part)
    lines = [f"{name}("]
    previous = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [p for p in inspect.signature(member).parameters.values() if p.name != "self"]
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and previous is not parameter.kind:
            lines.append("    *,")
        previous = parameter.kind
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
    return "\n".join([*lines, f") -> {inspect.signature(member).return_annotation}"]) + "\n"


def copied(origin: str) -> str:
    """The text of the code that a page repeats."""
    if origin.startswith("mlsql."):
        return signature(origin)
    lines = (ROOT / origin).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("-- ") for line in lines if line.startswith("--")) + "\n"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_copies_from_the_code_are_its_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block in reversed([b for b in blocks(text) if b.mark.startswith("from ")]):
        origin = block.mark.removeprefix("from ")
        if UPDATE:
            text = text[: block.start] + copied(origin) + text[block.end :]
        else:
            assert block.code == copied(origin), f"{path.name} and {origin} differ"
    if UPDATE:
        path.write_text(text, encoding="utf-8")


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")


def test_every_public_name_is_on_the_python_page() -> None:
    page = reference("python")
    missing = [name for name in mlsql.__all__ if f"`mlsql.{name}`" not in page]
    assert not missing
    for name in re.findall(r"`mlsql\.(\w+)`", page):
        assert name in mlsql.__all__, f"mlsql.{name} is on the page and not public"


def test_functions_and_methods_show_their_signatures() -> None:
    shown = {
        b.mark.removeprefix("from mlsql.") for b in blocks(reference("python")) if b.mark.startswith("from mlsql.")
    }
    functions = {n for n in mlsql.__all__ if inspect.isfunction(getattr(mlsql, n))}
    members = inspect.getmembers(mlsql.Fit, inspect.isfunction)
    with_arguments = {f"Fit.{n}" for n, f in members if n[0] != "_" and len(inspect.signature(f).parameters) > 1}
    assert shown == functions | with_arguments


def test_every_member_of_a_fit_is_on_the_python_page() -> None:
    page = reference("python")
    public = [n for n in dir(mlsql.Fit) if not n.startswith("_")]
    assert [n for n in public if f"`{n}`" not in page and f"`Fit.{n}`" not in page] == []


FACETS = ("contrasts", "derived", "comparators", "diagnostics", "resampling", "levels")


def facet_table(facet: str) -> str:
    """The methods of a facet of a fit: call and first sentence of the docstring."""
    annotation = inspect.signature(getattr(mlsql.Fit, facet).fget).return_annotation
    owner = getattr(importlib.import_module(f"mlsql.pipeline.{facet}"), annotation)
    lines = ["| method | gives |", "|---|---|"]
    for name, member in inspect.getmembers(owner, inspect.isfunction):
        if name.startswith("_"):
            continue
        parameters = [p for p in inspect.signature(member).parameters.values() if p.name != "self"]
        shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
        summary = (inspect.getdoc(member) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
        lines.append(f"| `fit.{facet}.{name}({shown})` | {summary} |".replace("|'", "\\|'"))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("facet", FACETS)
def test_methods_of_a_facet_are_on_the_page_of_facets(facet: str) -> None:
    path = DOCS / "reference" / "facets.md"
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"(?<=<!-- methods of fit.{facet} -->\n)(?:\|[^\n]*\n)*", text)
    assert found is not None, f"facets.md has no table of fit.{facet}"
    if UPDATE:
        path.write_text(text[: found.start()] + facet_table(facet) + text[found.end() :], encoding="utf-8")
    else:
        assert found.group() == facet_table(facet)


def test_every_facet_of_a_fit_has_its_table() -> None:
    properties = dict(inspect.getmembers(mlsql.Fit, lambda m: isinstance(m, property)))
    own = {n for n in properties if (ROOT / "mlsql" / "pipeline" / f"{n}.py").exists()}
    assert own - {"products", "survey"} == set(FACETS)


def test_every_sql_function_is_on_its_page() -> None:
    shown = [b.mark for b in blocks(reference("sql_functions")) if b.mark.startswith("from udfs/")]
    assert shown == [f"from udfs/{file.name}" for file in sorted((ROOT / "udfs").glob("*.sql"))]


def test_every_command_is_on_its_page() -> None:
    from mlsql.surfaces.cli import app

    shown = re.findall(r"^mlsql (\w+) --help$", reference("cli"), re.M)
    assert sorted(shown) == sorted(str(command.name) for command in app.registered_commands)


def columns_of(heading: str, *where: str) -> list[tuple[str, str]]:
    """(name, type) of the rows under a heading of the tables page whose `where` is one of those given."""
    section = reference("tables").split(f"\n## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([A-Z ]+) \|", section, re.M)
    return [(name, dtype) for name, place, dtype in rows if place in where]


@pytest.fixture(scope="module")
def fitted() -> mlsql.Fit:
    return mlsql.fit("mathach ~ sector + (1 | school)", mlsql.example_data("hsb"))


FRAMES: dict[str, Callable[[mlsql.Fit], pl.DataFrame | None]] = {
    "`Fit.statistics`": lambda fit: fit.statistics,
    "`Fit.fixed_effects`": lambda fit: fit.fixed_effects,
    "`Fit.variance_components`": lambda fit: fit.variance_components,
    "`Fit.group_effects()`": lambda fit: fit.group_effects(),
    "`Fit.survey`": lambda fit: fit.survey,
    "`Fit.confint()`": lambda fit: fit.confint(),
}


def described(frame: pl.DataFrame | None) -> list[tuple[str, str]]:
    assert frame is not None
    rows = duckdb.from_arrow(frame.to_arrow())
    return [(name, str(dtype)) for name, dtype in zip(rows.columns, rows.types, strict=True)]


@pytest.mark.parametrize("heading", FRAMES)
def test_columns_of_a_frame_are_those_of_its_section(heading: str, fitted: mlsql.Fit) -> None:
    assert described(FRAMES[heading](fitted)) == columns_of(heading, "both", "frame")


@pytest.mark.parametrize("heading", ["`Fit.predict()`", "`Fit.residuals()`"])
def test_columns_added_to_the_data_are_those_of_their_section(heading: str, fitted: mlsql.Fit) -> None:
    frame = fitted.predict() if "predict" in heading else fitted.residuals()
    own = pl.read_parquet_schema(mlsql.example_data("hsb"))
    assert described(frame)[len(own) :] == columns_of(heading, "both")


@pytest.mark.parametrize("table", ["fits", "fixed_effects", "variance_components", "group_effects"])
def test_columns_of_a_stored_table_are_those_of_its_section(table: str, fitted: mlsql.Fit) -> None:
    heading = "`Fit.statistics`" if table == "fits" else next(h for h in FRAMES if f"Fit.{table}" in h)
    with duckdb.connect() as con:
        fitted.to_tables(con)
        rows = con.execute(f"DESCRIBE ml_{table}").fetchall()
    assert [(r[0], r[1]) for r in rows] == columns_of(heading, "both", "database")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_lead_somewhere(path: Path) -> None:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{path.name} links to {target}"
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
        slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert not anchor or anchor in slugs, f"{path.name} links to {target}"


def test_every_page_is_reached_from_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index)}
    assert [p for p in PAGES if p.resolve() not in linked and p.name != "README.md"] == []


MODULES = sorted(m.name for m in pkgutil.walk_packages(mlsql.__path__, "mlsql."))


@pytest.mark.parametrize("name", ["mlsql", *MODULES])
def test_examples_of_docstrings_print_what_they_show(name: str) -> None:
    tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried.failed == 0
