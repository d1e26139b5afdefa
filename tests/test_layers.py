"""The architecture as tests: layers, import bans, file sizes, docstrings, quick import, nothing of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlsql"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    "errors": 0,
    "status": 0,
    "_typing": 0,
    "version": 0,
    "_arrays": 0,
    "example": 1,
    "formula": 1,
    "design": 2,
    "sql": 3,
    "moments": 3,
    "likelihood": 4,
    "optimise": 5,
    "results": 6,
    "inference": 7,
    "diagnostics": 8,
    "report": 9,
    "engine": 10,
    "pipeline": 11,
    "surfaces": 12,
    "polars": 12,
}
MAX_LINES = 400
TEXT_FILES = {".py", ".md", ".toml", ".sql", ".yml", ".yaml", ".sh", ".txt", ".cfg", ".json", ".R", ""}
NOT_OURS = {
    ".git",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".venv",
    "dist",
    "build",
}


@dataclass(frozen=True)
class Import:
    """One imported module: where, which, and whether it runs when the importing module is loaded."""

    path: Path
    target: str
    typing_only: bool
    inside_function: bool

    @property
    def at_load(self) -> bool:
        return not (self.typing_only or self.inside_function)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, typing_only: bool, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(path, alias.name, typing_only, inside)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative imports hide the layer"
                assert child.module is not None
                yield Import(path, child.module, typing_only, inside)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, typing_only or _is_type_checking(child), inside or function)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def _unit(path: Path) -> str:
    """The layer's name: the sub-package, or the module in the package's root."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


ALL_IMPORTS = [found for path in MODULES for found in _imports(path)]
OWN_IMPORTS = [i for i in ALL_IMPORTS if i.target.split(".")[0] == "mlsql" and _unit(i.path) != "__init__"]


def _where(found: Import) -> str:
    return f"{found.path.relative_to(ROOT)} imports {found.target}"


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {_unit(p) for p in MODULES} - {"__init__"} == set(LAYERS)


def test_a_module_imports_only_from_earlier_layers() -> None:
    wrong = []
    for found in OWN_IMPORTS:
        unit, parts = _unit(found.path), found.target.split(".")
        if len(parts) == 1:
            wrong += [] if unit == "surfaces" else [_where(found)]
            continue
        if unit != parts[1] and LAYERS[parts[1]] >= LAYERS[unit]:
            wrong.append(_where(found))
    assert wrong == []


def test_sql_and_arrays_never_meet_before_the_pipeline() -> None:
    banks = {"sql": {"moments", "likelihood", "optimise", "results"}, "moments": {"sql"}, "likelihood": {"sql"}}
    banks |= {unit: {"sql"} for unit in ("optimise", "results", "inference", "diagnostics", "report")}
    assert [
        _where(i)
        for i in OWN_IMPORTS
        if i.target.split(".")[1:2] and i.target.split(".")[1] in banks.get(_unit(i.path), set())
    ] == []


def test_the_engine_knows_only_sql_design_and_errors() -> None:
    allowed = {"sql", "design", "errors", "engine", "_typing", "status"}
    assert [_where(i) for i in OWN_IMPORTS if _unit(i.path) == "engine" and i.target.split(".")[1] not in allowed] == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES}
    edges: dict[str, set[str]] = {n: set() for n in names}
    for found in OWN_IMPORTS:
        source = ".".join(found.path.relative_to(ROOT).with_suffix("").parts)
        if found.at_load and found.target in names:
            edges[source].add(found.target)
    left = dict(edges)
    while free := [n for n, targets in left.items() if not targets & set(left)]:
        left = {n: t for n, t in left.items() if n not in free}
    assert sorted(left) == []


def test_duckdb_is_imported_only_where_sql_is_executed() -> None:
    def allowed(path: Path) -> bool:
        return _unit(path) in {"engine", "surfaces"} or path == PACKAGE / "pipeline" / "store.py"

    found = [i for i in ALL_IMPORTS if i.target.split(".")[0] == "duckdb" and not i.typing_only]
    assert [_where(i) for i in found if not allowed(i.path)] == []


def test_polars_is_imported_only_inside_functions() -> None:
    found = [i for i in ALL_IMPORTS if i.target.split(".")[0] == "polars" and _unit(i.path) != "polars"]
    assert [_where(i) for i in found if i.at_load] == []


def test_pyarrow_is_imported_only_where_tables_cross() -> None:
    found = [i for i in ALL_IMPORTS if i.target.split(".")[0] == "pyarrow" and not i.typing_only]
    assert [_where(i) for i in found if _unit(i.path) not in {"engine", "pipeline", "surfaces"}] == []


@pytest.mark.parametrize("library", ["numpy", "scipy", "mlsql._arrays"])
def test_formula_and_sql_compute_nothing(library: str) -> None:
    found = [i for i in ALL_IMPORTS if i.target == library or i.target.startswith(library + ".")]
    assert [_where(i) for i in found if _unit(i.path) in {"formula", "sql"}] == []


@pytest.mark.parametrize("library", ["pandas", "scipy.stats", "statsmodels", "sklearn"])
def test_libraries_that_the_package_does_without(library: str) -> None:
    assert [_where(i) for i in ALL_IMPORTS if i.target == library or i.target.startswith(library + ".")] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_every_module_and_public_name_has_a_docstring() -> None:
    missing = []

    def look(node: ast.AST, label: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                if ast.get_docstring(child) is None:
                    missing.append(f"{label}:{child.name}")
                if isinstance(child, ast.ClassDef):
                    look(child, f"{label}:{child.name}")

    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        label = str(path.relative_to(ROOT))
        if ast.get_docstring(tree) is None:
            missing.append(label)
        # private classes may keep their methods to themselves
        look(tree, label)
    assert missing == []


def test_import_is_quick() -> None:
    heavy = ["scipy.stats", "scipy", "pandas", "polars", "duckdb", "pyarrow", "numpy", "sqlglot"]
    program = f"import sys, mlsql; mlsql.__all__; print([m for m in {heavy!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_a_fit_does_without_scipy_stats() -> None:
    program = (
        "import sys, mlsql\n"
        "mlsql.fit('mathach ~ ses + (1 | school)', mlsql.example_data('hsb')).summary()\n"
        "print('scipy.stats' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "False"


def test_public_names_exist_and_are_listed() -> None:
    import mlsql

    assert set(mlsql.__all__) <= set(dir(mlsql))
    assert [n for n in mlsql.__all__ if getattr(mlsql, n, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'fti'"):
        _ = mlsql.fti


def test_no_file_speaks_of_a_machine() -> None:
    # written in pieces, so that this file does not find itself
    machine = re.compile("|".join(["/" + "work/", "/" + r"tmp/w\b", "/" + "home/[a-z]", "/" + "Users/[a-z]"]))
    found = []
    for path in ROOT.rglob("*"):
        if NOT_OURS & set(path.relative_to(ROOT).parts) or not path.is_file() or path.suffix not in TEXT_FILES:
            continue
        if machine.search(path.read_text(encoding="utf-8", errors="replace")):
            found.append(str(path.relative_to(ROOT)))
    assert found == []
