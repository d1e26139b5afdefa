"""What is refused in a membership table, what is counted, and predictors of the units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sqlglot import exp

import mlsql
from mlsql.design.membership import Membership, MembershipTable
from mlsql.pipeline.membership import prepare_memberships
from mlsql.pipeline.prepare import make_inputs
from mlsql.sql.plan import Step

FORMULA = "y ~ year + (year | child) + (1 | teacher)"
WITH_SUM = "y ~ year + membership_sum(degree, teacher) + (year | child) + (1 | teacher)"


@dataclass(frozen=True)
class Prepared:
    """What `prepare_memberships` gives, and the rows of its relation."""

    tables: Mapping[str, MembershipTable]
    warnings: tuple[str, ...]
    rows: pl.DataFrame

    def z(self, factor: str = "teacher") -> NDArray[np.float64]:
        """(rows, units) the incidence, row by row."""
        cell, unit, weight = self.tables[factor].entries(self.rows[factor].to_numpy().astype(np.int64))
        z = np.zeros((self.rows.height, self.tables[factor].n_units))
        np.add.at(z, (cell, unit), weight)
        return z


def prepare(formula: str, data: object, memberships: Any) -> Prepared:
    spec, inputs = mlsql.parse_model(formula), make_inputs(data, None, None)
    with inputs.engine() as engine:
        spec, inputs, tables, warnings = prepare_memberships(spec, inputs, memberships, engine)
    with inputs.engine() as engine:
        query = exp.select("*").from_(inputs.tables.rows).order_by(exp.column("i"))
        rows = pl.DataFrame(engine.query(Step("rows", "", query)))
    return Prepared(tables, warnings, rows)


ROWS = [(0, 1, 0, 2.0), (1, 1, 1, 3.0), (2, 2, 0, 1.0), (3, 2, 1, 4.0), (4, 3, 1, 5.0)]
MET = [(1, 0, 7, 1.0), (1, 1, 8, 1.0), (2, 0, 7, 1.0), (2, 1, 9, 2.0), (3, 0, 8, 1.0)]


def small(rows: list[tuple[Any, ...]] | None = None, more: list[tuple[Any, ...]] | None = None) -> tuple[Any, Any]:
    data = pl.DataFrame(rows or ROWS, schema=["i", "child", "year", "y"], orient="row")
    names = ["child", "year", "teacher", "share"]
    return data, pl.DataFrame([*MET, *(more or [])], schema=names, orient="row")


def refused(
    error: type[mlsql.MlsqlError], message: str, data: Any, history: Any, formula: str = FORMULA, **named: Any
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        prepare(formula, data, {"teacher": Membership(history, **({"on": "child", "time": "year"} | named))})
    assert caught.type is error


def test_a_clean_table_says_nothing() -> None:
    data, history = small()
    assert prepare(FORMULA, data, {"teacher": Membership(history, on="child", time="year")}).warnings == ()


def test_rows_without_units_are_counted() -> None:
    # child 4 is unknown, child 5 begins in year 1 and has no teacher in year 0
    data, history = small([*ROWS, (5, 4, 0, 1.0), (6, 4, 1, 1.0), (7, 5, 0, 1.0), (8, 5, 1, 1.0)], [(5, 1, 9, 1.0)])
    found = prepare(FORMULA, data, {"teacher": Membership(history, on="child", time="year")})
    assert found.rows.height == 9
    assert found.warnings == (
        "memberships of teacher: 3 rows of the data without any unit (2 with child that the membership table does not "
        "have); they stay, with no effect of teacher",
        "memberships of teacher: 1 set (child) of the data begin after the membership table's first year; what it does "
        "not record counts as no membership",
    )
    assert found.tables["teacher"].rows_without == 3


def test_entries_without_rows_are_counted() -> None:
    data, history = small(more=[(3, 2, 7, 1.0), (9, 0, 10, 1.0), (9, 0, 11, 1.0), (None, 0, 7, 1.0)])
    found = prepare(FORMULA, data, {"teacher": Membership(history, on="child", time="year")})
    assert found.warnings == (
        "memberships of teacher: 4 of 9 entries refer to no row of the data, at their year or later; they were left "
        "out",
        "memberships of teacher: 2 units of the membership table have no row of the data and were left out",
    )
    assert found.tables["teacher"].unused == 2
    assert found.tables["teacher"].units.to_pydict() == {"teacher": [7, 8, 9]}


def test_rows_whose_key_is_missing_are_incomplete() -> None:
    data, history = small([*ROWS, (5, None, 1, 1.0), (6, 1, None, 1.0)])
    found = prepare(
        WITH_SUM.replace("degree", "share"), data, {"teacher": Membership(history, on="child", time="year")}
    )
    assert found.rows["teacher"].to_list()[5:] == [None, None]
    assert found.rows["sum of share over teacher"].to_list() == [1.0, 2.0, 1.0, 3.0, 1.0, None, None]
    assert found.tables["teacher"].rows_without == 0


@pytest.mark.parametrize(
    ("more", "named", "message"),
    [
        (
            [(2, 1, None, 1.0), (1, 1, None, 1.0)],
            {},
            "2 rows of the membership table with no unit, first child 1, year 1, teacher NULL; each needs a unit and a "
            "time: correct or remove them",
        ),
        (
            [(1, None, 8, 1.0)],
            {},
            "1 row of the membership table with no time, first child 1, year NULL, teacher 8; each needs a unit and",
        ),
        (
            [(2, 1, 8, -0.5), (2, 1, 7, -1.0)],
            {"weight": "share"},
            "2 rows of the membership table with a negative weight, first child 2, year 1, teacher 7 with share = "
            "-1.0; each needs a unit, a time and a finite weight of 0 or more",
        ),
        ([(2, 1, 8, None)], {"weight": "share"}, "with no weight, first child 2, year 1, teacher 8 with share = None"),
        ([(2, 1, 8, float("nan"))], {"weight": "share"}, "1 row of the membership table with a weight that is NaN"),
        ([(2, 1, 8, float("inf"))], {"weight": "share"}, "1 row of the membership table with an infinite weight"),
        ([(2, 1, 8, 0.0)], {"weight": "1 / share"}, "1 row of the membership table with "),
        (
            [(1, 1, 8, 1.0), (2, 0, 7, 2.0)],
            {},
            "2 entries of the membership table in more than one row, first child 1, year 1, teacher 8 (2 rows); it "
            "needs one row for each child, year and teacher: aggregate it, or give weight= (weights of equal entries "
            "are added)",
        ),
        (
            [(1, 2, 8, 1.0)],
            {"time": None},
            "1 entry of the membership table in more than one row, first child 1, teacher 8 (2 rows); it needs one row "
            "for each child and teacher: aggregate it, name time= if effects accumulate, or give weight=",
        ),
    ],
)
def test_entries_that_cannot_be_used(more: list[tuple[Any, ...]], named: dict[str, Any], message: str) -> None:
    data, history = small(more=more)
    refused(mlsql.DataError, message, data, history, **named)


def test_weights_of_equal_entries_are_added() -> None:
    data, history = small(more=[(1, 1, 8, 0.5)])
    found = prepare(FORMULA, data, {"teacher": Membership(history, on="child", time="year", weight="share")})
    assert found.z()[1].tolist() == [1.0, 1.5, 0.0]


def test_weights_that_sum_to_nothing() -> None:
    data, history = small()
    history = history.with_columns(share=pl.when(pl.col("child") == 2).then(0.0).otherwise("share"))
    message = "the weights of 2 sets sum to 0, first child 2, year 0; normalise divides by the sum"
    refused(mlsql.DataError, message, data, history, weight="share", normalise=True)
    # without averaging they are no memberships
    found = prepare(FORMULA, data, {"teacher": Membership(history, on="child", time="year", weight="share")})
    assert found.tables["teacher"].rows_without == 2


def test_weights_that_are_too_large_to_add() -> None:
    data, history = small(more=[(1, 1, 8, 1.7e308), (1, 1, 8, 1.7e308)])
    message = "weights add up to more than a double can hold; rescale them"
    refused(mlsql.DataError, message, data, history, weight="share")


def test_tables_that_have_nothing_in_common() -> None:
    data, history = small()
    message = "no row of the data takes any of the 5 entries of the membership table; they are matched by child, at"
    refused(mlsql.DataError, message, data.with_columns(child=pl.col("child") + 100), history)
    refused(mlsql.DataError, "no row of the data takes any", data.with_columns(year=pl.col("year") - 5), history)
    refused(mlsql.DataError, "memberships of teacher: the membership table has no rows", data, history.head(0))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"on": "pupil"}, "memberships of teacher, data: column 'pupil' is not in the data"),
        ({"on": "i"}, "memberships of teacher, membership table: column 'i' is not in the data; columns are 'child'"),
        ({"time": "yer"}, "memberships of teacher, data: column 'yer' is not in the data; did you mean 'year'?"),
        ({"unit": "teecher"}, "membership table: column 'teecher' is not in the data; did you mean 'teacher'?"),
        ({"weight": "shre"}, "weight shre, membership table: column 'shre' is not in the data; did you mean 'share'?"),
        ({"units": "units"}, "units table: column 'teacher' is not in the data; columns are 'person'"),
    ],
)
def test_missing_columns(named: dict[str, Any], message: str) -> None:
    data, history = small()
    if "units" in named:
        named = {"units": pl.DataFrame({"person": [7]})}
    refused(mlsql.DataError, message, data, history, **named)


def test_columns_of_unlike_types() -> None:
    data, history = small()
    text = history.with_columns(pl.col("child").cast(pl.String))
    message = "column child is BIGINT in the data and VARCHAR in the membership table; convert one of them"
    refused(mlsql.DataError, message, data, text)
    text = history.with_columns(pl.col("year").cast(pl.String))
    refused(mlsql.DataError, "column year is BIGINT in the data and VARCHAR in the membership table", data, text)
    message = "time year has type VARCHAR; a time is a number or a date"
    refused(mlsql.DataError, message, data.with_columns(pl.col("year").cast(pl.String)), text)
    units = pl.DataFrame({"teacher": ["7"]})
    message = "column teacher is BIGINT in the membership table and VARCHAR in the units table"
    refused(mlsql.DataError, message, data, history, units=units)
    refused(
        mlsql.DataError,
        "column child has type BIGINT[]",
        data,
        history.with_columns(pl.concat_list("child").alias("child")),
    )


def test_times_and_weights_that_are_no_numbers() -> None:
    data, history = small()
    times = [f.with_columns(pl.col("year").cast(pl.Datetime)) for f in (data, history)]
    refused(mlsql.DataError, "decay needs a difference of times as a number", times[0], times[1], decay=0.5)
    message = "weight CAST(share AS VARCHAR) has type VARCHAR in the membership table; it must be a number"
    refused(mlsql.DataError, message, data, history, weight="CAST(share AS VARCHAR)")
    refused(mlsql.FormulaError, "is not a SQL scalar expression", data, history, weight="share +")


def test_a_factor_that_is_a_column_of_the_data() -> None:
    data, history = small()
    data = data.with_columns(Teacher=1)
    refused(
        mlsql.DataError, "the data have a column 'teacher', and memberships are given for the factor", data, history
    )
    found = prepare(
        "y ~ Teacher + (1 | met)", data, {"met": Membership(history, on="child", time="year", unit="teacher")}
    )
    assert found.z("met").sum() == 7.0


def test_factors_that_the_model_does_not_have() -> None:
    data, history = small()
    message = "memberships are given for 'teacher', which is no factor of the model; its factors are child"
    refused(mlsql.FormulaError, message, data, history, "y ~ 1 + (1 | child)")
    refused(mlsql.FormulaError, "reads teacher, whose units come from", data, history, FORMULA + " + I(teacher * 2)")


def test_sources_that_are_none() -> None:
    data, _ = small()
    refused(mlsql.DataError, "membership table is a builtins.int; pass a path, a table name", data, 3)
    refused(mlsql.DataError, "the file nowhere.parquet does not exist", data, "nowhere.parquet")


@pytest.fixture
def degrees() -> pl.DataFrame:
    return pl.DataFrame({"teacher": [7, 8, 9], "degree": [0, 1, 1], "title": ["a", "b", "c"]})


def test_predictors_of_a_units_table(degrees: pl.DataFrame) -> None:
    data, history = small()
    given = Membership(history, on="child", time="year", weight="share", units=degrees)
    found = prepare(WITH_SUM, data, {"teacher": given})
    assert found.warnings == ()
    assert found.rows["sum of degree over teacher"].to_list() == [0.0, 1.0, 0.0, 2.0, 1.0]
    assert np.array_equal(found.z() @ degrees["degree"].to_numpy(), found.rows["sum of degree over teacher"].to_numpy())
    # conditions and expressions, over both tables where both have the column
    given = Membership(history.with_columns(degree=5), on="child", time="year", units=degrees)
    formula = WITH_SUM.replace("degree", "title = 'b' AND degree > 0")
    found = prepare(formula, data, {"teacher": given})
    assert found.rows["sum of title = 'b' AND degree > 0 over teacher"].to_list() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert found.warnings == (
        "membership_sum(title = 'b' AND degree > 0, teacher): column degree is in the membership table and in the "
        "units table; the units table's value is used",
    )


def test_predictors_that_are_unknown(degrees: pl.DataFrame) -> None:
    """A sum with an unknown value is unknown, whatever else is in it."""
    data, history = small()
    units = degrees.filter(pl.col("teacher") != 9)
    found = prepare(WITH_SUM, data, {"teacher": Membership(history, on="child", time="year", units=units)})
    assert found.rows["sum of degree over teacher"].to_list() == [0.0, 1.0, 0.0, None, 1.0]
    assert found.warnings == (
        "memberships of teacher: 1 unit of the membership table not in the units table; rows that belong to them have "
        "no membership_sum() and are incomplete",
    )
    # nobody asks for the units table
    assert prepare(FORMULA, data, {"teacher": Membership(history, on="child", time="year", units=units)}).warnings == ()


def test_units_tables_that_cannot_be_used(degrees: pl.DataFrame) -> None:
    data, history = small()
    twice = pl.concat([degrees, degrees.filter(pl.col("teacher") > 7)])
    message = "2 units of the units table with more than one row, first teacher 8; it needs one row per unit"
    refused(mlsql.DataError, message, data, history, WITH_SUM, units=twice)
    message = "membership_sum(title, teacher) has type VARCHAR in the units table; it must be a number"
    refused(mlsql.DataError, message, data, history, WITH_SUM.replace("degree", "title"), units=degrees)
    refused(mlsql.DataError, "column 'degree' is not in the data", data, history, WITH_SUM)
    mixed = WITH_SUM.replace("degree", "degree * share")
    refused(
        mlsql.DesignError,
        "mixes columns of the membership table and of the units table",
        data,
        history,
        mixed,
        units=degrees,
    )


def test_averages_do_not_fade_away() -> None:
    """The share of each unit in an average depends on the time between them, not on how long ago they were."""
    data, history = small([*ROWS, (5, 2, 5000, 1.0)])
    given = Membership(history, on="child", time="year", decay=0.5, normalise=True)
    found = prepare(FORMULA, data, {"teacher": given})
    assert found.z()[3].tolist() == found.z()[5].tolist() == [1 / 3, 0.0, 2 / 3]
    assert found.rows["teacher"][3] == found.rows["teacher"][5]
