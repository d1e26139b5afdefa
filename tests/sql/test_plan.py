"""`plan`: the script of a fit; without survey=True no row is read."""

from __future__ import annotations

import inspect
from pathlib import Path

import duckdb
import polars as pl
import pytest
import sqlglot

import mlsql
from mlsql.engine import duckdb as engine_module


@pytest.fixture
def trap() -> duckdb.DuckDBPyConnection:
    """A view that can be described, and that fails as soon as a row of it is made."""
    con = duckdb.connect()
    con.execute(
        """
        CREATE VIEW trap AS SELECT range // 10 AS g, range AS x, 'a' AS f, 1.0 AS w,
            CASE WHEN range >= 0 THEN error('boom')::DOUBLE END AS y
        FROM range(300000000);
        CREATE VIEW trap2 AS SELECT range AS g, CASE WHEN range >= 0 THEN error('boom')::DOUBLE END AS v
        FROM range(300000000);
        """
    )
    with pytest.raises(duckdb.Error, match="boom"):
        con.sql("SELECT sum(y) FROM trap").fetchall()
    return con


FORMULAS = [
    "y ~ x + (x | g)",
    "y ~ f*x + (1 | g)",
    "y ~ group_center(x) + group_mean(x) + (1 | g)",
    "I(y * 2) ~ 1 + (1 | g)",
]


@pytest.mark.parametrize("data", ["trap", "SELECT * FROM trap WHERE x > 3"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_no_row_is_read(trap: duckdb.DuckDBPyConnection, formula: str, data: str) -> None:
    plan = mlsql.plan(formula, data, con=trap)
    assert plan.steps[0].name == "survey of data"
    with pytest.raises(mlsql.QueryError, match="boom"):
        mlsql.plan(formula, data, con=trap, survey=True)


def test_no_row_is_read_with_weights_and_level2(trap: duckdb.DuckDBPyConnection) -> None:
    plan = mlsql.plan("y ~ x*v + (x | g)", "trap", con=trap, level2="trap2", weights="w * 2")
    assert {"survey of level2", "survey of keys"} <= {s.name for s in plan.steps}


def test_only_describe_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    runner = engine_module._runner

    def spy(*arguments: object) -> object:
        run = runner(*arguments)  # type: ignore[arg-type]

        def wrapped(sql: str) -> object:
            sent.append(sql)
            return run(sql)

        return wrapped

    monkeypatch.setattr(engine_module, "_runner", spy)
    mlsql.plan("mathach ~ ses*sector + (ses | school)", mlsql.example_data("hsb"))
    assert sent
    assert [s for s in sent if not s.startswith("DESCRIBE")] == []
    sent.clear()
    mlsql.plan("mathach ~ ses*sector + (ses | school)", mlsql.example_data("hsb"), survey=True)
    assert [s for s in sent if not s.startswith("DESCRIBE")] != []


def test_a_plan_without_survey_says_what_it_does_not_know() -> None:
    hsb = mlsql.example_data("hsb")
    plain = mlsql.plan("mathach ~ ses + (1 | school)", hsb)
    assert "made without looking at the data" in plain.notes[0]
    assert str(plain).startswith("-- note: made without looking at the data")
    factors = mlsql.plan("mathach ~ C(size) + (1 | school)", hsb)
    assert "depend on the levels of size" in factors.notes[0]
    assert "survey=True" in factors.notes[0]
    assert "moments by group" not in [s.name for s in factors.steps]
    assert mlsql.plan("mathach ~ ses + (1 | school)", hsb, survey=True).notes == ()


@pytest.mark.parametrize("survey", [False, True])
def test_the_printed_plan_is_a_script_that_runs(survey: bool) -> None:
    con = duckdb.connect()
    con.execute(f"CREATE TABLE hsb AS FROM '{mlsql.example_data('hsb')}'")
    plan = mlsql.plan("mathach ~ sector*group_center(ses) + (ses | school)", "hsb", con=con, survey=survey)
    assert str(plan) == plan.sql
    parts = [s for s in sqlglot.parse(str(plan), dialect="duckdb") if s is not None]
    assert len(parts) == len(plan.steps)
    con.execute(str(plan)).fetchall()


def test_a_plan_for_a_frame_does_not_keep_it() -> None:
    frame = pl.DataFrame({"y": [1.0, 2.0, 4.0, 5.0], "g": [1, 1, 2, 2]})
    con = duckdb.connect()
    mlsql.plan("y ~ 1 + (1 | g)", frame, con=con)
    assert con.sql("SELECT * FROM duckdb_views() WHERE NOT internal").fetchall() == []


@pytest.mark.parametrize(
    ("formula", "error", "problem"),
    [
        ("y ~ xx + (1 | g)", mlsql.DataError, "did you mean 'x'"),
        ("y ~ foo(x) + (1 | g)", mlsql.FormulaError, "foo"),
        ("f ~ x + (1 | g)", mlsql.DataError, "must be numeric"),
        ("y ~ x", mlsql.FormulaError, "no random term"),
    ],
)
def test_errors_show_without_reading_a_row(
    trap: duckdb.DuckDBPyConnection, formula: str, error: type[mlsql.MlsqlError], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        mlsql.plan(formula, "trap", con=trap)


def test_plan_takes_the_arguments_of_fit() -> None:
    ours, of_fit = inspect.signature(mlsql.plan).parameters, inspect.signature(mlsql.fit).parameters
    about_running = {"drop_collinear", "max_evaluations", "progress"}
    assert set(of_fit) - about_running == set(ours) - {"survey"}


def test_paths_are_literals(tmp_path: Path) -> None:
    folder = tmp_path / "it's; here"
    folder.mkdir()
    file = folder / "t.parquet"
    duckdb.sql("SELECT range // 5 AS g, range * range % 7 AS y FROM range(20)").write_parquet(str(file))
    plan = mlsql.plan("y ~ 1 + (1 | g)", file)
    assert f"'{str(file).replace(chr(39), chr(39) * 2)}'" in str(plan)
    assert mlsql.fit("y ~ 1 + (1 | g)", file).n_rows == 20
