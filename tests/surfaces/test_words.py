"""What the command line says is in its own words: options, not Python's arguments."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import mlsql
from mlsql.surfaces.cli import main
from mlsql.surfaces.words import in_options

SMALL = "mathach ~ ses + (1 | school)"
PACKAGE = Path(mlsql.__file__).parent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choose another name or pass replace=True", "choose another name or pass --replace"),
        ("pass drop_collinear=True.", "pass --drop-collinear."),
        ("pass unseen='population' to predict", "pass --unseen population to predict"),
        ("use df='satterthwaite' or 'hlm'", "use --df satterthwaite or hlm"),
        ("use vcov='model' with df='kenward_roger'", "use --vcov model with --df kenward_roger"),
        ("pass groups='my school' as well", "pass --groups 'my school' as well"),
        ("need their level2= too", "need their --level2 too"),
        ("leave level2= out", "leave --level2 out"),
        ("max_evaluations=5 is", "--max-evaluations 5 is"),
        ("pass con= as well", "pass --database as well"),
        ("plan with survey=True", "plan with --survey"),
        # what a user wrote stays
        ("the matrix (vcov='CR2') is singular", "the matrix (--vcov CR2) is singular"),
        ("I(method='ML') is text", "I(method='ML') is text"),
        ("the file my_replace=True.parquet", "the file my_replace=True.parquet"),
        ("SELECT method = 'ML' FROM t", "SELECT method = 'ML' FROM t"),
        ("problem with method='ML'\n  y ~ method='ML'\n    ^", "problem with --method ML\n  y ~ method='ML'\n    ^"),
        ("two\nlines, level2= one", "two\nlines, --level2 one"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert in_options(text) == expected


PYTHON_ONLY = {
    "design/membership.py": "memberships",
    "diagnostics/rules.py": "fit.diagnostics",
    "engine/duckdb.py": "relations and frames",
    "engine/lazyframe.py": "frames",
    "likelihood/covariance.py": "other functions of mlsql",
    "pipeline/contrasts.py": "fit.contrasts",
    "pipeline/derived.py": "fit.derived",
    "pipeline/diagnostics.py": "fit.diagnostics",
    "pipeline/factor_tables.py": "memberships",
    "pipeline/influence.py": "fit.diagnostics",
    "pipeline/intervals.py": "fit.confint",
    "pipeline/membership.py": "memberships",
    "pipeline/membership_checks.py": "memberships",
    "pipeline/residual_diagnostics.py": "fit.diagnostics",
    "pipeline/submodels.py": "mlsql.step_up",
    "polars/frames.py": "the Polars namespace",
    "surfaces/sql_cells.py": "SQL table functions",
    "surfaces/sql_functions.py": "SQL table functions",
    "surfaces/words.py": "the translation itself",
    "__init__.py": "names of modules",
}
"""Modules whose messages the command line cannot meet, and who can."""

NOT_THERE = (
    "compare takes fits",
    "the model has x grouping factors (x), and two-level equations",
    "the fit was loaded without its data",
    "into='x' is a table",
    "the table 'x' exists",
    "<mlsql.",
)
"""Messages of other modules that it cannot meet."""

PYTHON = re.compile(r"(?<![\w.-])(?!ref=)[a-z]\w*=(?=['\"\dTF]|[\s,;.)]|$)|\bmlsql\.[a-z]|\bfit\.\w+\(|another prefix")


def messages(path: Path) -> Iterator[str]:
    """Texts of a module that are neither its documentation nor part of another; what is inserted stands as x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    joined = [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
    inner = {id(part) for whole in joined for part in ast.walk(whole) if part is not whole}
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    bare = {id(statement.value) for body in bodies for statement in body if isinstance(statement, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inner | bare:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(p.value)
                if isinstance(p, ast.Constant)
                else "'x'"
                if getattr(p, "conversion", -1) == ord("r")
                else "x"
                for p in node.values
            )


def test_no_message_is_in_words_of_python() -> None:
    paths = {str(path.relative_to(PACKAGE)).replace("\\", "/"): path for path in PACKAGE.rglob("*.py")}
    found = [(name, text) for name, path in paths.items() if name not in PYTHON_ONLY for text in messages(path)]
    spoken = [(name, text) for name, text in found if PYTHON.search(text) and not text.startswith(NOT_THERE)]
    assert len(spoken) > 20
    left = {name: in_options(text) for name, text in spoken if PYTHON.search(in_options(text))}
    assert not left, "translate these in mlsql/surfaces/words.py, or say above who can meet them"


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, str]:
    """Both streams of a command that ends."""
    monkeypatch.setattr(sys, "argv", ["mlsql", *arguments])
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.fixture
def files(tmp_path: Path, hsb: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A few files by the names that stand for them below; the folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    mlsql.fit(SMALL, hsb).save("fit.parquet")
    with duckdb.connect("others.duckdb") as con:
        con.execute("CREATE TABLE ml_terms AS SELECT 1 AS a; CREATE MACRO ml_icc(a) AS a")
        con.execute(f"CREATE TABLE strangers AS SELECT -school AS school, ses FROM '{hsb}'")
        con.execute(f"COPY (FROM '{hsb}' WHERE school < 1500) TO 'few.parquet'")
        con.execute(f"COPY (SELECT * REPLACE (sector = 1 AS sector) FROM '{hsb}') TO 'factor.parquet'")
        con.execute(f"COPY (SELECT DISTINCT school FROM '{hsb}') TO 'schools.parquet'")
    return {"HSB": hsb}


SAID = {
    "fit --data HSB --formula F --save fit.parquet": "fit.parquet exists; choose another name or pass --replace",
    "predict --fit fit.parquet --data HSB --into few.parquet": "exists; choose another name or pass --replace",
    "predict --fit fit.parquet --database others.duckdb --data strangers --into new.csv": "pass --unseen population to "
    "predict them as new groups, or --unseen missing to leave them NULL",
    "predict --fit fit.parquet --data HSB --level2 schools.parquet --into new.csv": "leave --level2 out",
    "predict --fit few.parquet --data HSB --into new.csv": "no saved fit: mlsql fit --save writes them",
    "fit --data HSB --formula mathach~ses+I(2*ses)+(1|school)": "leave it out, or pass --drop-collinear",
    "fit --data HSB --formula mathach=b0+r": "pass --groups school as well",
    "fit --data HSB --formula F --groups school": "--groups school belongs to level equations",
    "fit --data pupils --formula F": "for a table of a database pass --database as well",
    "fit --data HSB --formula F --method ML --df kenward_roger": "fit with --method REML, or use --df satterthwaite",
    "fit --data HSB --formula F --vcov CR0 --df kenward_roger": "does not exist for --vcov CR0; use --df satterthwaite",
    "fit --data HSB --formula F --into others.duckdb": "nothing was changed; name another file",
    "register others.duckdb": "Remove what is not needed (DROP MACRO ml_icc;)\n",
    "plan --data factor.parquet --formula mathach~sector+(1|school)": "--survey runs the survey and shows them",
    "fit --data few.parquet --formula F --vcov CR0": "groups is too small on average; use --vcov CR2",
    "compare --data HSB --method REML --formula F --formula mathach~1+(1|school)": "fit both with --method ML",
}


@pytest.mark.parametrize("line", SAID)
def test_what_commands_say(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    given: dict[str, Any] = {**files, "F": SMALL}
    output, errors = said(capsys, monkeypatch, *[given.get(word, word) for word in line.split()])
    # a note is with the results, an error is not
    assert SAID[line] in output + errors
    assert not PYTHON.search(output + errors)
