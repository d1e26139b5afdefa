"""Odd but legal names of tables and columns must simply work."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

import mlsql

Con = duckdb.DuckDBPyConnection
SAME = 1e-11  # the same sums; the order of a matrix product's terms may differ from run to run
SAME_EFFECTS = 1e-6  # first order in the error of theta, where the deviance is second order


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def plain() -> Con:
    """t and upper again, for the fits under plain names, made once."""
    con = duckdb.connect()
    con.execute(
        """
        CREATE TABLE t AS SELECT i, i // 10 AS g, ((i * 7919) % 1009) / 1009.0 AS x,
            ((i * 104729) % 997) / 997.0 AS z, ['a', 'b', 'c'][i % 3 + 1] AS f, i % 2 = 0 AS flag,
            2 + ((i * 7919) % 1009) / 1009.0 + ((i // 10) * 31 % 17) / 10.0 + ((i * 15485863) % 1013) / 1013.0 AS y
        FROM range(120) r(i);
        CREATE TABLE upper AS
        SELECT range AS g, range * 3 % 7 / 2 AS w, ['p', 'q'][range % 2 + 1] AS k FROM range(12);
        """
    )
    return con


def predictions(fitted: mlsql.Fit) -> list[float]:
    frame = fitted.predict()
    assert frame is not None
    return frame.sort("i")["conditional"].to_list()


TABLES = [
    'my "table"', "select", "order", "a; b", "it's", "t.csv", "s.t", "a*b", "from t", "select 1", "ä ö", "1st", "--",
    "/* t */", "%s {t} $1 ?", "(t)", " t ", "mlsql_rows", "memory",
]  # fmt: skip


@pytest.fixture(scope="module")
def simple(plain: Con) -> mlsql.Fit:
    return mlsql.fit("y ~ x + f + (1 | g)", "t", con=plain)


@pytest.mark.parametrize("name", TABLES)
def test_tables(con: Con, simple: mlsql.Fit, name: str) -> None:
    con.execute(f"CREATE TABLE {quoted(name)} AS FROM t")
    fitted = mlsql.fit("y ~ x + f + (1 | g)", name, con=con)
    assert fitted.deviance == pytest.approx(simple.deviance, rel=SAME)
    fitted.predict(into=f"{name} predicted")
    assert con.sql(f"SELECT count(*) FROM {quoted(name + ' predicted')}").fetchall() == [(120,)]


# names that statements use, or might use, for their parts; those that begin with mlsql_ are the package's own
OWN = [
    "model_rows", "group_moments", "level2", "level2_keys", "data_groups", "preview", "runs", "by_group", "levels",
    "scored", "data", "groups", "found", "spreads", "a", "b", "d",
]  # fmt: skip
BOTH = "y ~ x*w + f + k + (1 | g)"


@pytest.fixture(scope="module")
def joined(plain: Con) -> mlsql.Fit:
    return mlsql.fit(BOTH, "t", con=plain, level2="upper")


@pytest.mark.parametrize(("rows", "level2"), list(zip(OWN, [*OWN[1:], OWN[0]], strict=True)))
def test_tables_called_like_parts_of_a_query(con: Con, joined: mlsql.Fit, rows: str, level2: str) -> None:
    con.execute(f'CREATE TABLE "{rows}" AS FROM t; CREATE TABLE "{level2}" AS FROM upper')
    fitted = mlsql.fit(BOTH, rows, con=con, level2=f'SELECT * FROM "{level2}"')
    assert fitted.deviance == pytest.approx(joined.deviance, rel=SAME)
    assert predictions(fitted) == pytest.approx(predictions(joined), rel=SAME_EFFECTS)


COLUMNS = [
    "select", "sum", "order", "group", "table", "case", "end", "null", "true", "count", "log", "C", "offset",
    "group_mean", 'a "b" c', "it's", "a+b", "a:b", "(x | g)", "x~y", "1st", "ä ö", "a.b", "[x]", "--", "rows", "n",
    "key 0", "x: mean", "min of x", "(Intercept)", "x * y", "level2",
]  # fmt: skip
PAIRS = list(zip(COLUMNS[::2], [*COLUMNS[1::2], "mixed Case"], strict=True))
EVERYWHERE = "y ~ {x} + group_center({x}):{z} + I({x} * {z}):flag + group_mean({z}) + ({z} || g)"


@pytest.fixture(scope="module")
def everywhere(plain: Con) -> mlsql.Fit:
    return mlsql.fit(EVERYWHERE.format(x="x", z="z"), "t", con=plain)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_columns(con: Con, everywhere: mlsql.Fit, first: str, second: str) -> None:
    """As predictor, random coefficient, centred, inside an expression: the same numbers as under a plain name."""
    x, z = quoted(first), quoted(second)
    fitted = mlsql.fit(EVERYWHERE.format(x=x, z=z), f"SELECT * RENAME (x AS {x}, z AS {z}) FROM t", con=con)
    assert fitted.deviance == pytest.approx(everywhere.deviance, rel=SAME)
    assert predictions(fitted) == pytest.approx(predictions(everywhere), rel=SAME_EFFECTS)


@pytest.mark.parametrize("name", ["order", 'a "b"', "rows", "n"])
def test_outcomes_keys_weights_and_factors(con: Con, name: str) -> None:
    formula, column = "y ~ x + f + (1 | g)", quoted(name)
    expected = pytest.approx(mlsql.fit(formula, "t", con=con, weights="z + 1").deviance, rel=SAME)
    for old, new in (("y ~", f"{column} ~"), ("| g", f"| {column}"), ("+ f", f"+ {column}")):
        data = f"SELECT * RENAME ({old.strip('~|+ ')} AS {column}) FROM t"
        assert mlsql.fit(formula.replace(old, new), data, con=con, weights="z + 1").deviance == expected
    data = f"SELECT * RENAME (z AS {column}) FROM t"
    assert mlsql.fit(formula, data, con=con, weights=f"{column} + 1").deviance == expected


def test_backticks_inside_expressions(con: Con) -> None:
    data = 'SELECT * RENAME (x AS "my x") FROM t'
    assert mlsql.fit("y ~ I(`my x` * 2) + (1 | g)", data, con=con).converged


def test_files_in_odd_folders(con: Con, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s; "odd" -- [x]'
    folder.mkdir()
    file = folder / "my file.parquet"
    con.sql("FROM t").to_arrow_table()
    con.execute(f"COPY t TO '{str(file).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)")
    expected = mlsql.fit("y ~ x + (1 | g)", "t", con=con).deviance
    assert mlsql.fit("y ~ x + (1 | g)", file).deviance == pytest.approx(expected, rel=1e-11)
    assert mlsql.fit("y ~ x + (1 | g)", str(file), con=con).deviance == pytest.approx(expected, rel=1e-11)
