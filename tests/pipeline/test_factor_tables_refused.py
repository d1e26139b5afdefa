"""Level-2 tables of several grouping factors that are refused, by `fit` and by `plan` in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl
import pytest

import mlsql

SHORT = "math ~ year + lowinc + black + (1 | school/child)"


@dataclass(frozen=True)
class Egsingle:
    """Occasions, children and schools, a table each."""

    rows: pl.DataFrame
    children: pl.DataFrame
    schools: pl.DataFrame

    @property
    def tables(self) -> dict[str, object]:
        return {"school": self.schools, "school:child": self.children}


@pytest.fixture(scope="module")
def data(data_file: Callable[[str], str]) -> Egsingle:
    whole = pl.read_parquet(data_file("egsingle")).rename({"schoolid": "school", "childid": "child"})
    rows = whole.select("school", "child", "year", "math")
    children = whole.select("school", "child", "female", "black").unique().sort("child")
    schools = whole.select("school", "size", "lowinc").unique().sort("school")
    return Egsingle(rows, children, schools)


@pytest.fixture
def con(data: Egsingle) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        for name in ("rows", "children", "schools"):
            frame = getattr(data, name)
            con.register("frame", frame)
            con.execute(f"CREATE TABLE {name} AS FROM frame")
            con.unregister("frame")
        yield con


def refused(data: Egsingle, tables: object, formula: str = SHORT, rows: object = None, **rest: Any) -> str:
    rows = data.rows if rows is None else rows
    with pytest.raises((mlsql.DataError, mlsql.DesignError)) as caught:
        mlsql.fit(formula, rows, level2=tables, **rest)
    message = str(caught.value)
    # a plan of it is refused in the same words
    with pytest.raises(type(caught.value)) as planned:
        mlsql.plan(formula, rows, level2=tables, survey=True, **rest)
    assert str(planned.value) == message
    return message


def test_one_table_for_several_factors(data: Egsingle) -> None:
    assert refused(data, data.schools) == (
        "the model has 2 grouping factors, school and school:child, and level2 is one table: say whose groups it "
        "describes, with a table for each factor that has one, level2={'school': ..., 'school:child': ...}"
    )


def test_tables_of_no_factor(data: Egsingle) -> None:
    message = refused(data, {"child": data.children})
    assert message.startswith("level2 has a table for 'child', which is no grouping factor of the model; its grouping")
    assert "factors are school and school:child" in message
    assert "level2 has a table for 1, which" in refused(data, {1: data.children})
    assert "its grouping factor is school" in refused(data, {"child": data.children}, "math ~ year + (1 | school)")
    twice = {"school:child": data.children, "child:school": data.children}
    assert refused(data, twice) == "level2 has two tables for the grouping factor school:child; give one"


def test_a_group_twice(data: Egsingle) -> None:
    schools = pl.concat([data.schools, data.schools.head(3), data.schools.head(2)])
    assert refused(data, {**data.tables, "school": schools}) == (
        "the level2 table of school has more than one row for 3 groups, first school 2020 (3 rows); it needs one row "
        "per group: aggregate it first"
    )
    children = pl.concat([data.children, data.children.tail(1)])
    last = data.children.row(-1, named=True)
    assert refused(data, {**data.tables, "school:child": children}).startswith(
        "the level2 table of school:child has more than one row for 1 group, first "
        f"school {last['school']}, child {last['child']} (2 rows); "
    )


def test_tables_without_their_keys(data: Egsingle) -> None:
    assert refused(data, {**data.tables, "school:child": data.children.drop("school")}) == (
        "the level2 table of school:child has no column 'school' among child, female and black; its rows are found by "
        "school and child: add it, or rename a column"
    )
    # also when the model would not read it
    formula = "math ~ year + black + (1 | school/child)"
    assert "school has no column 'school' among female" in refused(
        data, {**data.tables, "school": data.children.select("female")}, formula
    )


def test_keys_that_cannot_be_compared(data: Egsingle) -> None:
    text = data.schools.with_columns(pl.col("school").cast(pl.String))
    assert refused(data, {**data.tables, "school": text}) == (
        "the grouping column school is BIGINT in the data and VARCHAR in the level2 table of school; convert one of "
        "them, so that groups can be matched"
    )


def test_no_group_in_common_and_no_rows(data: Egsingle) -> None:
    other = data.schools.with_columns(school=pl.col("school") + 100_000)
    assert refused(data, {**data.tables, "school": other}) == (
        "none of the 7,230 rows belongs to a group of the level2 table of school; compare their keys, school"
    )
    message = "the level2 table of school:child has no rows with a value of school and child"
    assert refused(data, {**data.tables, "school:child": data.children.clear()}) == message
    keyless = data.children.with_columns(child=pl.lit(None, pl.Int64))
    assert refused(data, {**data.tables, "school:child": keyless}) == message


def test_a_column_in_two_tables(data: Egsingle) -> None:
    children = data.children.with_columns(LOWINC=pl.lit(1.0))
    assert refused(data, {**data.tables, "school:child": children}) == (
        "column lowinc is in the level2 tables of school and school:child; leave it out of all but one, or rename it: "
        "a predictor comes from one table"
    )


def test_a_column_of_two_meanings(data: Egsingle) -> None:
    rows = data.rows.with_columns(lowinc=pl.lit(1.0))
    message = refused(data, data.tables, rows=rows, weights="lowinc + 1")
    assert message == (
        "column lowinc is in the data, where the outcome, an offset or the weights read it, and in the level2 table of "
        "school, where a predictor would; rename one of them"
    )


def test_unknown_columns_are_sought_in_all_tables(data: Egsingle) -> None:
    message = refused(data, data.tables, "math ~ year + lowincome + (1 | school/child)")
    assert message == "lowincome: column 'lowincome' is not in the data; did you mean 'lowinc'?"
    # outcome, offsets and weights belong to the rows
    assert "column 'size' is not in the data" in refused(data, data.tables, "size ~ year + lowinc + (1 | school/child)")
    assert "column 'size' is not in the data" in refused(data, data.tables, SHORT, weights="size")


def test_means_of_what_is_constant(data: Egsingle) -> None:
    for term in ("group_center(lowinc, school)", "group_mean(lowinc, school)", "group_center(lowinc, school:child)"):
        message = refused(data, data.tables, f"math ~ year + {term} + (1 | school/child)")
        assert "the column comes from the level2 table of school, so that it has one value per group of" in message
        assert "grand_center()" in message


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (3, "level2 table of school is a builtins.int; pass a path"),
        (None, "level2 table of school is a builtins.NoneType"),
        ("nosuch", "level2 table of school 'nosuch' is not a table or view of the connection"),
        ("SELECT * FROM nosuch", "level2 table of school SELECT * FROM nosuch cannot be read"),
        ("nosuch.parquet", "the file nosuch.parquet does not exist"),
        ("SELECT school, DATE '2020-01-01' AS lowinc FROM schools", "predictor lowinc has type DATE"),
        ("SELECT school, 1 AS lowinc FROM schools", "predictor lowinc is 1 in every row"),
        ("SELECT school, NULL::DOUBLE AS lowinc FROM schools", "column lowinc has no value in any of 7,230 rows"),
        ("SELECT [school] AS school, lowinc FROM schools", "BIGINT[] in the level2 table of school"),
    ],
)
def test_tables_that_cannot_serve(con: duckdb.DuckDBPyConnection, table: object, problem: str) -> None:
    with pytest.raises((mlsql.DataError, mlsql.DesignError)) as caught:
        mlsql.fit(SHORT, "rows", con=con, level2={"school": table, "school:child": "children"})
    assert problem in str(caught.value)


def test_a_key_that_the_data_lack(data: Egsingle) -> None:
    with pytest.raises(mlsql.DataError, match="level2 table of school, key school: column 'school' is not in the data"):
        mlsql.fit(SHORT, data.rows.drop("school"), level2=data.tables)
