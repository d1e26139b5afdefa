"""Grouping columns of any type, and several of them: the same model, the keys returned as they came."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import mlsql

FORMULA = "y ~ x + (1 | g)"
Con = duckdb.DuckDBPyConnection

KEYS = {
    "integer": ("g", pl.Int64, 0),
    "small unsigned": ("g::UTINYINT", pl.UInt8, 0),
    "text": ("'k' || printf('%02d', g)", pl.String, "k00"),
    "text of digits": ("printf('%02d', g)", pl.String, "00"),
    "uuid": ("('00000000-0000-4000-8000-' || printf('%012d', g))::UUID", pl.String, None),
    "date": ("DATE '2020-02-27' + g::INT", pl.Date, datetime.date(2020, 2, 27)),
    "timestamp": ("TIMESTAMP '2020-01-01' + INTERVAL 1 HOUR * g", pl.Datetime, datetime.datetime(2020, 1, 1)),
    "decimal": ("(g / 4)::DECIMAL(9, 2)", pl.Decimal, decimal.Decimal("0.00")),
    "double": ("g / 4", pl.Float64, 0.0),
    "hugeint": ("g::HUGEINT", None, 0),
    "time": ("TIME '00:00:00' + INTERVAL 1 MINUTE * g", pl.Time, datetime.time(0, 0)),
    "blob": ("printf('%02d', g)::BLOB", pl.Binary, b"00"),
}


@pytest.fixture(scope="module")
def plain(folder: Path) -> mlsql.Fit:
    """The model with its integer keys."""
    return mlsql.fit(FORMULA, folder / "t.parquet")


def conditional(fitted: mlsql.Fit) -> list[float]:
    frame = fitted.predict()
    assert frame is not None
    return frame.sort("i")["conditional"].to_list()


def rows(key: str) -> str:
    return f"SELECT * REPLACE ({key} AS g) FROM t"


@pytest.mark.parametrize("kind", KEYS)
def test_types(con: Con, plain: mlsql.Fit, kind: str) -> None:
    key, dtype, first = KEYS[kind]
    fitted = mlsql.fit(FORMULA, rows(key), con=con)
    # the keys sort as the integers do, so that everything but the key is the same, to rounding
    assert fitted.deviance == pytest.approx(plain.deviance, rel=1e-11)
    effects = fitted.group_effects()
    assert_frame_equal(effects.drop("g"), plain.group_effects().drop("g"))
    assert effects["g"].n_unique() == 12
    if dtype is not None:
        assert effects.schema["g"] == dtype
    if first is not None:
        assert effects["g"][0] == first
    assert conditional(fitted) == pytest.approx(conditional(plain))
    fitted.to_tables(con)
    assert con.sql("SELECT count(DISTINCT key), count(*) FROM ml_group_effects").fetchall() == [(12, 12)]


@pytest.mark.parametrize("kind", ["[g, g + 1]", "INTERVAL 1 DAY * g", "g::BIGNUM", "{'a': g}"])
def test_types_that_make_odd_keys(con: Con, kind: str) -> None:
    """Either refused with a reason or carried through to every table."""
    try:
        fitted = mlsql.fit(FORMULA, rows(kind), con=con)
    except mlsql.DataError:
        return
    assert fitted.group_effects().height == 12
    fitted.to_tables(con)
    assert con.sql("SELECT count(DISTINCT key) FROM ml_group_effects").fetchall() == [(12,)]


def test_booleans_and_enums_are_keys_too(con: Con) -> None:
    con.execute("CREATE TYPE e AS ENUM ('z', 'y', 'unused', 'x')")
    boolean = mlsql.fit("y ~ x + (1 | g)", rows("g > 5"), con=con)
    assert boolean.group_effects()["g"].to_list() == [False, True]
    enum = mlsql.fit("y ~ x + (1 | g)", rows("(['z', 'y', 'x'][g % 3 + 1])::e"), con=con)
    assert enum.group_effects()["g"].cast(pl.String).to_list() == ["z", "y", "x"]


def test_composite_keys(con: Con, folder: Path) -> None:
    expected = mlsql.fit("y ~ x + (x | g)", folder / "t.parquet")
    data = "SELECT *, g // 3 AS country, 'k' || g % 3 AS school FROM t"
    fitted = mlsql.fit("y ~ x + (x | country:school)", data, con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    assert fitted.spec.group == "country:school"
    effects = fitted.group_effects("country:school")
    assert effects.columns[:3] == ["country", "school", "term"]
    assert effects.row(0)[:3] == (0, "k0", "(Intercept)")
    assert effects.row(23)[:3] == (3, "k2", "x")
    assert_frame_equal(effects.drop("country", "school"), expected.group_effects().drop("g"))
    fitted.to_tables(con)
    (key,) = con.sql("SELECT key FROM ml_group_effects ORDER BY key LIMIT 1").fetchall()[0]
    assert json.loads(key) == ["0", "k0"]
    # the same schools' names in several countries are other groups
    assert mlsql.fit("y ~ x + (1 | school)", data, con=con).n_groups == 3


def test_composite_keys_with_a_level2_table(con: Con) -> None:
    data = "SELECT *, g // 3 AS country, 'k' || g % 3 AS school FROM t"
    upper = "SELECT *, g // 3 AS country, 'k' || g % 3 AS school FROM upper WHERE g <> 4"
    fitted = mlsql.fit("y ~ x*w + (x | country:school)", data, con=con, level2=upper)
    expected = mlsql.fit("y ~ x*w + (x | g)", "SELECT * FROM t JOIN upper USING (g) WHERE g <> 4", con=con)
    # the same rows, only summed in another order
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    assert fitted.n_groups == 11


def test_a_key_may_be_an_expression(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (1 | I(g % 4))", "t", con=con)
    assert fitted.n_groups == 4
    assert fitted.group_effects().columns[0] == "I(g % 4)"
    assert None not in conditional(fitted)


def test_null_keys_leave_with_their_rows(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (1 | g)", rows("CASE WHEN g <> 3 THEN g END"), con=con)
    assert (fitted.n_rows, fitted.n_groups) == (110, 11)
    assert any(d == "g: 10 NULL" for d in fitted.dropped)
    expected = mlsql.fit("y ~ x + (1 | g)", "SELECT * FROM t WHERE g <> 3", con=con)
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)


def test_case_and_spaces_make_different_groups(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (1 | g)", rows("['a', 'A', ' a', 'a ', '', 'ä'][g % 6 + 1]"), con=con)
    assert fitted.n_groups == 6
    assert set(fitted.group_effects()["g"]) == {"a", "A", " a", "a ", "", "ä"}


@pytest.mark.parametrize("name", ["n", "term", "estimate", "std_error", "coefficient", "reliability"])
def test_a_key_called_like_a_column_of_the_result(con: Con, plain: mlsql.Fit, name: str) -> None:
    """School terms are called `term`: the table must keep both, or the name be refused with a reason."""
    data = f'SELECT * RENAME (g AS "{name}") FROM t'
    try:
        fitted = mlsql.fit(f"y ~ x + (1 | {name})", data, con=con)
        effects = fitted.group_effects()
    except mlsql.DataError:
        return
    expected = plain.group_effects()
    assert effects.width == expected.width
    assert effects[effects.columns[0]].to_list() == expected["g"].to_list()
    fitted.to_tables(con)
    found = con.sql("SELECT key, term, estimate FROM ml_group_effects").fetchall()
    assert {k for k, _, _ in found} == {str(k) for k in range(12)}
    assert sorted(e for _, _, e in found) == pytest.approx(expected["estimate"].sort().to_list())


@pytest.mark.parametrize("name", ["n", "rows", "key 0", "k0", "level2", "mlsql weight", "sum of weights", "starts"])
def test_a_key_called_like_a_column_of_a_query(con: Con, name: str) -> None:
    expected = mlsql.fit("y ~ x*w + f + (1 | g)", "t", con=con, level2="upper", weights="x + 1")
    data, upper = f'SELECT * RENAME (g AS "{name}") FROM t', f'SELECT * RENAME (g AS "{name}") FROM upper'
    fitted = mlsql.fit(f'y ~ x*w + f + (1 | "{name}")', data, con=con, level2=upper, weights="x + 1")
    # the same sums
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-11)
    assert conditional(fitted) == pytest.approx(conditional(expected))
