"""Text that would do harm if it were pasted into a statement: it neither breaks nor executes anything."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

import mlsql

Con = duckdb.DuckDBPyConnection
EVIL = [
    'x"; DROP TABLE t; --',
    "'); DROP TABLE t; --",
    "\\'\"; DELETE FROM t; SELECT '\" OR 1=1 --",
    "a\n;DROP TABLE t;\n/* */ $$ */",
    "${x}{x}%(x)s%s:x?$1",
]
FORMULA = "y ~ x + f + (1 | g)"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.fixture
def expected(con: Con) -> Iterator[mlsql.Fit]:
    """The fit under harmless names; afterwards the table is as it was."""
    before = con.sql("FROM t").fetchall()
    yield mlsql.fit(FORMULA, "t", con=con)
    assert con.sql("FROM t").fetchall() == before


def everything(con: Con, fitted: mlsql.Fit) -> None:
    """All that makes statements of a fit."""
    assert fitted.predict(unseen="population").height == 120  # type: ignore[union-attr]
    assert fitted.residuals().height == 120  # type: ignore[union-attr]
    fitted.to_tables(con, prefix="r_")
    assert isinstance(fitted.summary(), str)


@pytest.mark.parametrize("evil", EVIL)
def test_column_names(con: Con, expected: mlsql.Fit, evil: str) -> None:
    x, y, f, g = (quoted(evil + " " + name) for name in "xyfg")
    data = f"SELECT * RENAME (x AS {x}, y AS {y}, f AS {f}, g AS {g}) FROM t"
    fitted = mlsql.fit(f"{y} ~ {x} + {f} + (1 | {g})", data, con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    everything(con, fitted)


@pytest.mark.parametrize("evil", EVIL)
def test_columns_in_calls(con: Con, expected: mlsql.Fit, evil: str) -> None:
    column = quoted(evil)
    data = f"SELECT * RENAME (x AS {column}) FROM t"
    formula = "y ~ group_center({0}) + group_mean({0}) + I({0} * {0}) + (1 | g)"
    fitted = mlsql.fit(formula.replace("{0}", column), data, con=con, weights=f"{column} + 1")
    plain = mlsql.fit(formula.replace("{0}", "x"), "t", con=con, weights="x + 1")
    assert fitted.deviance == pytest.approx(plain.deviance, rel=1e-11)
    everything(con, fitted)


@pytest.mark.parametrize("evil", EVIL)
def test_table_names(con: Con, expected: mlsql.Fit, evil: str) -> None:
    con.execute(f"CREATE TABLE {quoted(evil)} AS FROM t")
    fitted = mlsql.fit(FORMULA, evil, con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    everything(con, fitted)
    fitted.predict(into=evil + " out")
    assert con.sql(f"SELECT count(*) FROM {quoted(evil + ' out')}").fetchall() == [(120,)]
    fitted.to_tables(con, prefix=evil)
    assert con.sql(f"SELECT count(*) FROM {quoted(evil + 'fits')}").fetchall() == [(1,)]


@pytest.mark.parametrize("evil", EVIL)
def test_names_of_tables_that_do_not_exist(con: Con, expected: mlsql.Fit, evil: str) -> None:
    for arguments in ({"data": evil}, {"data": "t", "level2": evil}):
        with pytest.raises(mlsql.DataError):
            mlsql.fit("y ~ x + (1 | g)", con=con, **arguments)


@pytest.mark.parametrize("evil", EVIL)
def test_factor_levels(con: Con, expected: mlsql.Fit, evil: str) -> None:
    data = f"SELECT * REPLACE (CASE WHEN f = 'b' THEN {literal(evil)} ELSE f END AS f) FROM t"
    ours = mlsql.fit("y ~ x + C(f, ref='a') + (1 | g)", data, con=con)
    # the same model, its columns perhaps in another order
    assert ours.deviance == pytest.approx(expected.deviance, rel=1e-10)
    assert f"f[{evil}]" in ours.fixed_effects["term"].to_list()
    estimates = dict(ours.fixed_effects.select("term", "estimate").rows())
    plain = dict(expected.fixed_effects.select("term", "estimate").rows())
    assert estimates[f"f[{evil}]"] == pytest.approx(plain["f[b]"], rel=1e-6, abs=1e-9)
    everything(con, ours)
    as_reference = mlsql.fit(f"y ~ x + C(f, ref={literal(evil)}) + (1 | g)", data, con=con)
    assert as_reference.fixed_effects["term"].to_list()[2:] == ["f[a]", "f[c]"]


@pytest.mark.parametrize("evil", EVIL)
def test_enum_levels(con: Con, expected: mlsql.Fit, evil: str) -> None:
    con.execute(f"CREATE TYPE e AS ENUM ('a', {literal(evil)}, 'c', {literal(evil + ' empty')})")
    data = f"SELECT * REPLACE ((CASE WHEN f = 'b' THEN {literal(evil)} ELSE f END)::e AS f) FROM t"
    fitted = mlsql.fit(FORMULA, data, con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    assert any(evil + " empty" in w for w in fitted.warnings)
    everything(con, fitted)


@pytest.mark.parametrize("evil", EVIL)
def test_group_keys(con: Con, expected: mlsql.Fit, evil: str) -> None:
    data = f"SELECT * REPLACE (CASE WHEN g = 0 THEN {literal(evil)} ELSE 'school ' || g END AS g) FROM t"
    fitted = mlsql.fit(FORMULA, data, con=con)
    # the same groups in another order
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-10)
    assert evil in fitted.group_effects()["g"].to_list()
    everything(con, fitted)
    found = con.execute("SELECT count(*) FROM r_group_effects WHERE key = ?", [evil]).fetchall()
    assert found == [(1,)]


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ I(x); DROP TABLE t; -- + (1 | g)",
        "y ~ I(x; DROP TABLE t) + (1 | g)",
        "y ~ I((SELECT count(*) FROM t)) + (1 | g)",
        "y ~ I(x) FROM t; DROP TABLE t + (1 | g)",
        "I(y); DROP TABLE t ~ x + (1 | g)",
        "y ~ x + offset(z; DROP TABLE t) + (1 | g)",
        "y ~ x + (1 | I(g); DROP TABLE t)",
    ],
)
def test_statements_in_formulas(con: Con, expected: mlsql.Fit, formula: str) -> None:
    with pytest.raises(mlsql.FormulaError):
        mlsql.fit(formula, "t", con=con)


@pytest.mark.parametrize(
    "data",
    [
        "SELECT * FROM t; DROP TABLE t",
        "DROP TABLE t",
        "DELETE FROM t",
        "DELETE FROM t RETURNING *",
        "INSERT INTO t FROM t",
        "CREATE TABLE q AS FROM t",
        "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d",
        "COPY t TO 'q.parquet'",
        "FROM t) AS a; DROP TABLE t; SELECT * FROM (SELECT 1",
    ],
)
def test_data_is_one_select(con: Con, expected: mlsql.Fit, data: str) -> None:
    for arguments in ({"data": data}, {"data": "t", "level2": data}):
        with pytest.raises(mlsql.DataError):
            mlsql.fit("y ~ x + (1 | g)", con=con, **arguments)
    assert con.sql("SHOW TABLES").fetchall() == [("t",), ("upper",)]
