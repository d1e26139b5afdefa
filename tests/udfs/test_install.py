"""Installing the SQL functions: once, all or none, beside what the user has; comments; files without Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from mlsql.errors import StoreError
from mlsql.surfaces.macros import MARK, folder, install_macros, macros

NAMES = [m.name for m in macros()]


def present(con: duckdb.DuckDBPyConnection) -> dict[str, str | None]:
    """Name and comment of the database's own macros."""
    found = con.execute(
        "SELECT schema_name, function_name, comment FROM duckdb_functions() "
        "WHERE NOT internal AND function_type IN ('macro', 'table_macro')"
    ).fetchall()
    return {name if schema == "main" else f"{schema}.{name}": comment for schema, name, comment in found}


def create(con: duckdb.DuckDBPyConnection) -> None:
    """What a user without Python does: run the files."""
    for macro in macros():
        con.execute((folder() / f"{macro.name}.sql").read_text(encoding="utf-8"))


def test_all_are_installed_with_their_summaries() -> None:
    with duckdb.connect() as con:
        assert install_macros(con) == tuple(NAMES)
        comments = present(con)
    assert sorted(comments) == sorted(NAMES)
    for macro in macros():
        assert re.fullmatch(
            re.escape(f"{macro.header['summary']} {MARK} ") + "[0-9a-f]{8}]", comments[macro.name] or ""
        )


def test_the_second_time_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    with duckdb.connect(str(path)) as con:
        install_macros(con)
        assert install_macros(con) == ()
    with duckdb.connect(str(path)) as con:
        assert install_macros(con) == ()
    before = path.read_bytes()
    with duckdb.connect(str(path), read_only=True) as con:
        assert install_macros(con) == ()
    assert path.read_bytes() == before


def test_only_what_is_missing_is_made() -> None:
    with duckdb.connect() as con:
        install_macros(con)
        con.execute("DROP MACRO ml_icc")
        con.execute(f"COMMENT ON MACRO TABLE ml_anova IS 'other {MARK} 0123abcd]'")
        assert set(install_macros(con)) == {"ml_icc", "ml_anova"}


def test_a_function_of_an_older_version_is_replaced() -> None:
    with duckdb.connect() as con:
        con.execute("CREATE MACRO ml_icc(a, b) AS a / b")
        con.execute(f"COMMENT ON MACRO ml_icc IS 'as it once was {MARK} 0123abcd]'")
        install_macros(con)
        assert con.execute("SELECT ml_icc(1, 3)").fetchall() == [(0.25,)]


def test_functions_that_a_user_made_from_the_files_are_known_again(tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as con:
        create(con)
        assert present(con) == {m.name: f"{m.header['summary']} {MARK}]" for m in macros()}
    with duckdb.connect(path) as con:
        assert install_macros(con) == tuple(NAMES)
        assert install_macros(con) == ()


def test_a_replacement_of_the_users_is_kept() -> None:
    with duckdb.connect() as con:
        install_macros(con)
        con.execute("CREATE OR REPLACE MACRO ml_icc(a, b) AS 42")
        with pytest.raises(StoreError, match="a macro of its own called ml_icc"):
            install_macros(con)
        assert con.execute("SELECT ml_icc(1, 1)").fetchall() == [(42,)]


OWN = {
    "a formula": ("CREATE MACRO ml_icc(a, b) AS a * b", "ml_icc"),
    "in capitals": ("CREATE MACRO ML_ICC(a, b) AS a * b", "ml_icc"),
    "with a comment": ("CREATE MACRO ml_icc(a, b) AS a * b; COMMENT ON MACRO ml_icc IS 'mine'", "ml_icc"),
    "a table": ("CREATE MACRO ml_anova(a) AS TABLE SELECT 1 AS a", "ml_anova"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_macro_of_the_users_is_kept(case: str) -> None:
    statement, name = OWN[case]
    with duckdb.connect() as con:
        con.execute(statement)
        before = present(con)
        with pytest.raises(StoreError, match=rf"a macro of its own called {name}; nothing was changed") as caught:
            install_macros(con)
        assert f"{name};" in str(caught.value)
        assert present(con) == before
        # what the message says to run
        con.execute(str(caught.value).split("(")[1].split(";")[0])
        assert install_macros(con) == tuple(NAMES)


def test_several_of_them_are_named() -> None:
    with duckdb.connect() as con:
        con.execute("CREATE MACRO ml_icc(a) AS a; CREATE MACRO ml_slopes(a) AS TABLE SELECT a")
        with pytest.raises(StoreError, match=r"macros of its own called .*DROP MACRO ml_icc; .*MACRO TABLE ml_slopes;"):
            install_macros(con)


def test_another_schema() -> None:
    with duckdb.connect() as con:
        con.execute("CREATE MACRO ml_icc(a, b) AS a * b")
        con.execute('CREATE SCHEMA "my stats"')
        assert install_macros(con, "my stats") == tuple(NAMES)
        assert install_macros(con, "My Stats") == ()
        assert set(present(con)) == {"ml_icc", *(f"my stats.{name}" for name in NAMES)}
        # those that call others find them there
        con.execute("CREATE TABLE t AS SELECT i AS y, i % 3 AS x, i % 4 AS g FROM range(40) AS r(i)")
        assert con.execute('SELECT "my stats".ml_inverse_probit(0), ml_icc(2, 3)').fetchall() == [(0.5, 6)]
        assert len(con.execute("FROM \"my stats\".ml_slopes('t', y, x, g)").fetchall()) == 4


def test_a_schema_that_is_not_there() -> None:
    with duckdb.connect() as con, pytest.raises(StoreError, match=r"nothing was changed: .*none"):
        install_macros(con, "none")


def test_a_database_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    duckdb.connect(str(path)).close()
    with duckdb.connect(str(path), read_only=True) as con:
        with pytest.raises(StoreError, match=r"cannot be installed, nothing was changed: .*read-only"):
            install_macros(con)
        assert present(con) == {}


def test_what_is_not_a_connection() -> None:
    with pytest.raises(StoreError, match=r"con is a str; pass an open DuckDB connection"):
        install_macros("results.duckdb")  # type: ignore[arg-type]


def test_an_open_transaction_is_joined() -> None:
    with duckdb.connect() as con:
        con.execute("BEGIN TRANSACTION")
        install_macros(con)
        con.execute("ROLLBACK")
        assert present(con) == {}
        con.execute("BEGIN TRANSACTION")
        install_macros(con)
        con.execute("COMMIT")
        assert sorted(present(con)) == sorted(NAMES)


def test_two_writers_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as first, duckdb.connect(path) as second:
        first.execute("BEGIN TRANSACTION")
        install_macros(first)
        with pytest.raises(StoreError, match="nothing was changed"):
            install_macros(second)
        first.execute("COMMIT")
        assert install_macros(second) == ()


def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlsql.surfaces.macros as module

    made = module._comment
    calls = iter(range(1000))
    monkeypatch.setattr(module, "_comment", lambda m, s: made(m, s) if next(calls) < 5 else "COMMENT ON MACRO no IS ''")
    with duckdb.connect() as con:
        with pytest.raises(StoreError, match="nothing was changed"):
            install_macros(con)
        assert present(con) == {}
        assert con.execute("SELECT 1").fetchall() == [(1,)]


def test_the_functions_stay_for_a_process_without_mlsql(tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    with duckdb.connect(str(path)) as con:
        install_macros(con)
    script = (
        "import sys, duckdb\n"
        "con = duckdb.connect(sys.argv[1], read_only=True)\n"
        "print(con.execute('SELECT ml_icc(1, 3), ml_inverse_probit(ml_probit(0.3))').fetchall())\n"
        "assert 'mlsql' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    icc, p = done.stdout.strip("[()]\n").split(", ")
    assert (float(icc), float(p)) == pytest.approx((0.25, 0.3), rel=1e-13)


def test_installing_is_quick() -> None:
    import time

    with duckdb.connect() as con:
        started = time.perf_counter()
        install_macros(con)
        # 0.1 s on an idle machine; it runs when a connection is opened
        assert time.perf_counter() - started < 3.0
