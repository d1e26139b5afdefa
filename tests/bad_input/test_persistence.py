"""Files that are no saved fits, targets that cannot be written, writers in each other's way: a reason, no traces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mlsql
from mlsql.pipeline.save import load, save_fit
from mlsql.pipeline.store import show_stored, write_tables

Con = duckdb.DuckDBPyConnection
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def fitted(con: Con) -> mlsql.Fit:
    return mlsql.fit("y ~ x + f + group_center(z) + (x | g)", "t", con=con)


@pytest.fixture
def file(fitted: mlsql.Fit, tmp_path: Path) -> Path:
    path = tmp_path / "fit.parquet"
    save_fit(fitted, path)
    return path


def rewrite(path: Path, table: pa.Table, document: object) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    pq.write_table(table.replace_schema_metadata({"mlsql": text}), path)


def refused(path: object, *parts: str) -> str:
    with pytest.raises(mlsql.StoreError) as caught:
        load(path)  # type: ignore[arg-type]
    message = str(caught.value)
    assert [p for p in parts if p not in message] == [], message
    assert "\n" not in message
    return message


# files


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "fit.parquet", "fit.parquet does not exist")


@pytest.mark.parametrize("path", [None, 3, "", b""])
def test_a_path_that_is_none(path: object, fitted: mlsql.Fit) -> None:
    refused(path, "name of a file")
    with pytest.raises(mlsql.StoreError, match="name of a file"):
        save_fit(fitted, path)  # type: ignore[arg-type]


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read as a saved fit")


@pytest.mark.parametrize("content", [b"", b"mathach,ses\n1,2\n", b"PAR1", b"PAR1" * 40])
def test_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fit.parquet").write_bytes(content)
    refused(tmp_path / "fit.parquet", "cannot be read as a saved fit")


def test_a_parquet_file_that_is_no_fit(tmp_path: Path) -> None:
    refused(mlsql.example_data("hsb"), "is a Parquet file, but no saved fit: fit.save(path) writes them")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "no saved fit")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(file, "cannot be read as a saved fit")


def test_bytes_that_changed_on_the_way(file: Path) -> None:
    """Wherever a byte is flipped, loading refuses or gives the fit that was saved: never another one."""
    content, fit_id, deviance = file.read_bytes(), load(file).fit_id, load(file).deviance
    caught = 0
    for position in range(10, len(content) - 8, len(content) // 60):
        spoilt = bytearray(content)
        spoilt[position] ^= 0x10
        file.write_bytes(bytes(spoilt))
        try:
            again = load(file)
        except mlsql.StoreError:
            caught += 1
        else:
            assert (again.fit_id, again.deviance) == (fit_id, deviance)
    assert caught > 20


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_version_of_the_format(file: Path, version: object) -> None:
    table, document = pq.read_table(file), stored_document(file)
    rewrite(file, table, document | {"version": version, "mlsql_version": "9.9"})
    parts = [f"format version {version}", "written by mlsql 9.9", "reads versions 1 and 2", "fit again"]
    refused(file, *parts)


@pytest.mark.parametrize("document", ["", "{", "[]", "3", "{}", '{"format": "mlsql moments", "version": 1}'])
def test_a_document_that_is_none(file: Path, document: str) -> None:
    rewrite(file, pq.read_table(file), document)
    refused(file, "fit.parquet")


def stored_document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"mlsql"])
    return found


def set_estimate(name: str, value: object) -> Edit:
    return lambda document: document["estimates"].update({name: value})


EDITS: dict[str, tuple[Edit, list[str]]] = {
    "deviance": (set_estimate("deviance", 100.0), ["have deviance 9", "stored with them is 100.0"]),
    "sigma2": (set_estimate("sigma2", 0.2), ["have deviance", "edited or damaged"]),
    "L": (lambda d: d["estimates"]["L"][0].__setitem__(0, 1.0), ["have deviance", "edited or damaged"]),
    "L of another size": (set_estimate("L", [[1.0]]), ["variance components have shape (1, 1)"]),
    "negative sigma2": (set_estimate("sigma2", -1.0), ["variance components are no numbers"]),
    "sigma2 is nan": (set_estimate("sigma2", "nan"), ["variance components are no numbers"]),
    "a word for a number": (set_estimate("sigma2", "many"), ["'many' stands where a number should"]),
    "status": (set_estimate("status", "excellent"), ["'excellent' is no status"]),
    "pooled": (lambda d: d["pooled"][1].__setitem__(1, 1e3), ["sums by group of", "not those over all rows"]),
    "pooled of another size": (lambda d: d["pooled"].pop(), ["have shape"]),
    "method": (lambda d: d["spec"].update(method="ML"), ["have deviance"]),
    "no method": (lambda d: d["spec"].update(method="MCMC"), ["'MCMC' is not one of REML, ML"]),
    "formula": (lambda d: d["spec"].update(formula="y ~ 1 + (1 | g)"), ["formula and its specification"]),
    "a term less": (lambda d: d["spec"]["fixed"].pop(), ["formula and its specification"]),
    "source": (lambda d: d.update(source="elsewhere"), ["not the fit"]),
    "a key less": (lambda d: d.pop("survey"), ["'survey' is missing"]),
    "a field more": (lambda d: d["spec"]["outcome"].update(color="red"), ["color"]),
    "levels": (lambda d: d["survey"]["levels"].clear(), ["damaged or was edited"]),
    "rows as text": (lambda d: d["survey"].update(rows="many"), ["damaged or was edited"]),
    "sources": (lambda d: d["sources"].reverse(), ["sums other columns for the model"]),
    "layout": (lambda d: d.update(layout="dense"), ["layout"]),
    "positions": (lambda d: d.update(per_group=[0, 99]), ["layout"]),
    "another query in a column": (
        lambda d: d["spec"]["outcome"].update(sql="(SELECT max(y) FROM t)"),
        ["damaged or was edited", "scalar expression"],
    ),
    "a table function in an input": (
        lambda d: d["schema"]["inputs"][0].update(sql="y) FROM t; DROP TABLE t; --"),
        ["damaged or was edited", "not a SQL scalar expression"],
    ),
    "a list for the whole": (lambda d: d.update(estimates=[]), ["damaged or was edited"]),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_document(file: Path, what: str) -> None:
    edit, parts = EDITS[what]
    document = stored_document(file)
    edit(document)
    rewrite(file, pq.read_table(file), document)
    refused(file, "fit.parquet", *parts)


def replaced(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values))


TABLES: dict[str, tuple[Callable[[pa.Table], pa.Table], list[str]]] = {
    "a group less": (lambda t: t.slice(1), ["sums by group", "not those over all rows"]),
    "no groups": (lambda t: t.slice(0, 0), ["two or more groups"]),
    "a column less": (lambda t: t.drop_columns(["sum(x * y)"]), ["lacks 'sum(x * y)'"]),
    "a column more": (lambda t: t.append_column("more", t.column("n")), ["has others"]),
    "columns in another order": (lambda t: t.select(t.column_names[::-1]), ["model needs the columns"]),
    "a column as text": (lambda t: replaced(t, "sum(x)", ["1"] * 12), ["'sum(x)' is string"]),
    "a missing sum": (lambda t: replaced(t, "sum(x)", [None, *[1.0] * 11]), ["1 NULL"]),
    "another sum": (lambda t: replaced(t, "sum(x * y)", [1e6] * 12), ["x * y", "not those over all rows"]),
    "sums exchanged between groups": (
        lambda t: replaced(t, "sum(x)", t.column("sum(x)").to_pylist()[::-1]),
        ["have deviance", "edited or damaged"],
    ),
    "other means": (lambda t: replaced(t, "mean(z)", [0.5] * 12), ["have deviance", "edited or damaged"]),
    "a group without rows": (lambda t: replaced(t, "n", [0, *[10] * 11]), ["numbers of rows"]),
}


@pytest.mark.parametrize("what", TABLES)
def test_an_edited_table(file: Path, what: str) -> None:
    edit, parts = TABLES[what]
    document = stored_document(file)
    rewrite(file, edit(pq.read_table(file)), document)
    refused(file, "fit.parquet", *parts)


# targets


def test_a_file_that_exists(fitted: mlsql.Fit, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(mlsql.StoreError, match=r"exists; choose another name or pass replace=True"):
        save_fit(fitted, file)
    assert file.read_bytes() == before


def test_a_target_that_is_a_folder(fitted: mlsql.Fit, tmp_path: Path) -> None:
    with pytest.raises(mlsql.StoreError, match="is a folder"):
        save_fit(fitted, tmp_path, replace=True)


def test_a_folder_that_is_not_there(fitted: mlsql.Fit, tmp_path: Path) -> None:
    with pytest.raises(mlsql.StoreError, match="does not exist; make it first"):
        save_fit(fitted, tmp_path / "no" / "fit.parquet")


def test_a_target_below_a_file(fitted: mlsql.Fit, file: Path) -> None:
    with pytest.raises(mlsql.StoreError, match="does not exist"):
        save_fit(fitted, file / "fit.parquet")


def test_a_name_that_is_too_long(fitted: mlsql.Fit, tmp_path: Path) -> None:
    with pytest.raises(mlsql.StoreError, match="nothing was written"):
        save_fit(fitted, tmp_path / ("a" * 300 + ".parquet"))
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
    import os, resource, signal, sys
    import duckdb, mlsql
    from mlsql.pipeline.save import save_fit
    from mlsql.pipeline.store import write_tables
    fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    fit.fixed_effects
    con = duckdb.connect(sys.argv[2])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for write in (
        lambda: save_fit(fit, sys.argv[1], replace=True),
        lambda: write_tables(fit.estimates, "hsb", (), con, "ml_", fit.fixed_effects),
    ):
        try:
            write()
        except mlsql.StoreError as error:
            print("refused:", str(error).replace(chr(10), " "))
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX systems can")
def test_a_full_disk(file: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the old file and the old tables stay."""
    before, database = file.read_bytes(), tmp_path / "results.duckdb"
    with duckdb.connect(str(database)) as con:
        con.execute("CREATE TABLE kept AS SELECT 1 AS a")
    program = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(file), str(database)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()
    assert len(found) == 2, done.stdout + done.stderr
    assert re.search(r"refused: the fit cannot be saved to .*fit.parquet, nothing was written", found[0])
    assert re.search(r"refused: the result tables cannot be written, nothing was changed: .*(large|write)", found[1])
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")] == []
    with duckdb.connect(str(database)) as con:
        assert con.sql("SELECT table_name FROM duckdb_tables()").fetchall() == [("kept",)]


# stored fits


def write(fit: mlsql.Fit, con: Con, **named: Any) -> str:
    return write_tables(fit.estimates, fit.inputs.rows.label, fit.warnings, con, "ml_", fit.fixed_effects, **named)


def test_showing_where_nothing_is_stored() -> None:
    with duckdb.connect() as con, pytest.raises(mlsql.StoreError, match="no table ml_fits: no fit was stored here"):
        show_stored(con)


def test_showing_a_fit_that_is_not_stored(con: Con, fitted: mlsql.Fit) -> None:
    other = mlsql.fit("y ~ x + (1 | g)", "t", con=con)
    with duckdb.connect() as store:
        write(fitted, store)
        write(other, store)
        nearly = fitted.fit_id[:-1] + ("0" if fitted.fit_id[-1] != "0" else "1")
        with pytest.raises(mlsql.StoreError, match=rf"no fit '{nearly}'.*did you mean {fitted.fit_id}"):
            show_stored(store, nearly)
        with pytest.raises(mlsql.StoreError, match=f"did you mean {other.fit_id}"):
            show_stored(store, other.fit_id[:6])
        with pytest.raises(mlsql.StoreError, match="stored are"):
            show_stored(store, "'; DROP TABLE ml_fits; --")
        assert store.sql("SELECT count(*) FROM ml_fits").fetchall() == [(2,)]


def test_showing_a_table_of_something_else() -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE ml_fits AS SELECT 42 AS mine")
        with pytest.raises(mlsql.StoreError, match="no column fit_id"):
            show_stored(con)


@pytest.mark.parametrize("con_like", ["results.duckdb", None])
def test_showing_on_something_that_is_no_connection(con_like: Any) -> None:
    with pytest.raises(mlsql.StoreError, match="pass an open DuckDB connection"):
        show_stored(con_like)


def test_showing_on_a_closed_connection() -> None:
    con = duckdb.connect()
    con.close()
    with pytest.raises(mlsql.StoreError, match="closed"):
        show_stored(con)
