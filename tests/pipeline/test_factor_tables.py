"""Level-2 tables of several grouping factors: the numbers of joined data, and everything that is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.pipeline.factor_tables import level2_tables
from mlsql.pipeline.model_frame import model_frame

FORMULA = "math ~ year*lowinc + size + female + black + (year | school/child)"
SHORT = "math ~ year + lowinc + black + (1 | school/child)"

# sums in another order of the rows: deviances of 16,000 agree to rounding and to where the search stops
DEVIANCE = 1e-10
# estimates move with the square root of what the deviance does
ESTIMATE = 1e-6
# numbers made at one point from the same group effects
PREDICTION = 1e-9


@dataclass(frozen=True)
class Egsingle:
    """Whole data, and the same in three tables: occasions, children, schools."""

    whole: pl.DataFrame
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
    return Egsingle(whole, rows, children, schools)


@pytest.fixture(scope="module")
def whole(data: Egsingle) -> mlsql.Fit:
    return mlsql.fit(FORMULA, data.whole)


@pytest.fixture(scope="module")
def fitted(data: Egsingle) -> mlsql.Fit:
    return mlsql.fit(FORMULA, data.rows, level2=data.tables)


@pytest.fixture
def con(data: Egsingle) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        for name in ("whole", "rows", "children", "schools"):
            frame = getattr(data, name)
            con.register("frame", frame)
            con.execute(f"CREATE TABLE {name} AS FROM frame")
            con.unregister("frame")
        yield con


def same(one: mlsql.Fit, other: mlsql.Fit) -> None:
    assert one.deviance == pytest.approx(other.deviance, rel=DEVIANCE)
    assert one.n_rows == other.n_rows
    assert one.fixed_effects["term"].to_list() == other.fixed_effects["term"].to_list()
    estimates, expected = (f.fixed_effects["estimate"].to_numpy() for f in (one, other))
    np.testing.assert_allclose(estimates, expected, rtol=ESTIMATE)


def close(one: pl.DataFrame | None, other: pl.DataFrame | None, by: list[str]) -> None:
    """Frames with the same rows, in any order; of `other` the columns of `one`."""
    assert one is not None
    assert other is not None
    one, other = one.sort(by), other.sort(by).select(one.columns)
    for name in one.columns:
        if one[name].dtype.is_float():
            a, b = one[name].to_numpy(), other[name].to_numpy()
            np.testing.assert_allclose(a, b, rtol=PREDICTION, atol=PREDICTION)
        else:
            assert one[name].equals(other[name])


def test_the_numbers_are_those_of_joined_data(whole: mlsql.Fit, fitted: mlsql.Fit) -> None:
    same(fitted, whole)
    assert fitted.warnings == whole.warnings
    assert fitted.dropped == ()
    components, expected = (f.variance_components["estimate"].to_numpy() for f in (fitted, whole))
    np.testing.assert_allclose(components, expected, rtol=ESTIMATE)
    assert fitted.estimates.design.level2_names == whole.estimates.design.level2_names


def test_evaluate(data: Egsingle) -> None:
    given: dict[str, Any] = {"T": {"school": 0.1, "school:child": 0.6}, "sigma2": 0.3}
    one, other = (
        mlsql.evaluate(SHORT, rows, level2=level2, **given)
        for rows, level2 in ((data.rows, data.tables), (data.whole, None))
    )
    same(one, other)


def test_predictions_and_residuals_of_the_fit_s_rows(data: Egsingle, whole: mlsql.Fit, fitted: mlsql.Fit) -> None:
    by = ["child", "year"]
    predicted, residuals = fitted.predict(), fitted.residuals()
    close(predicted, whole.predict(), by)
    close(residuals, whole.residuals(), by)
    assert predicted is not None
    # the data's own columns, and what was asked for: none of the tables'
    assert predicted.columns[:4] == data.rows.columns
    assert not {"size", "lowinc", "female", "black"} & set(predicted.columns)
    close(fitted.predict(terms="school"), whole.predict(terms="school"), by)


def test_predictions_of_new_data(data: Egsingle, whole: mlsql.Fit, fitted: mlsql.Fit) -> None:
    by, some = ["child", "year"], data.rows.filter(pl.col("school") < 2200).with_columns(year=pl.col("year") + 0.25)
    wide = data.whole.filter(pl.col("school") < 2200).with_columns(year=pl.col("year") + 0.25)
    predicted = fitted.predict(some, level2=data.tables)
    close(predicted, whole.predict(wide), by)
    assert predicted is not None
    assert predicted.columns[:4] == some.columns
    # where the columns come from is each call's own affair
    close(fitted.predict(wide), whole.predict(wide), by)
    close(whole.predict(some, level2=data.tables), predicted, by)


def test_new_data_whose_group_a_table_lacks(data: Egsingle, fitted: mlsql.Fit) -> None:
    tables = {**data.tables, "school": data.schools.filter(pl.col("school") != 2020)}
    predicted = fitted.predict(data.rows, level2=tables)
    assert predicted is not None
    assert (predicted["population"].is_null() == (predicted["school"] == 2020)).all()
    none = data.schools.with_columns(school=pl.col("school") + 100_000)
    with pytest.raises(
        mlsql.DataError, match="none of the 7,230 rows belongs to a group of the level2 table of school"
    ):
        fitted.predict(data.rows, level2={**data.tables, "school": none})


def test_new_data_without_their_tables(data: Egsingle, fitted: mlsql.Fit) -> None:
    with pytest.raises(mlsql.DataError, match="to predict, lowinc is needed: column 'lowinc' is not in the data"):
        fitted.predict(data.rows)
    with pytest.raises(mlsql.DataError, match="to predict, female is needed"):
        fitted.predict(data.rows, level2={"school": data.schools})
    with pytest.raises(mlsql.DesignError, match="level2 is one table"):
        fitted.predict(data.rows, level2=data.schools)
    with pytest.raises(mlsql.DataError, match="level2 belongs to new data"):
        fitted.predict(level2=data.tables)


def test_into_a_table(data: Egsingle, con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit(SHORT, "rows", con=con, level2={"school": "schools", "school:child": "FROM children"})
    fit.predict(into="predicted")
    columns = con.table("predicted").columns
    assert columns == [*data.rows.columns, "population", "population_std_error", "conditional", "conditional_std_error"]
    assert con.execute("SELECT count(population) FROM predicted").fetchone() == (7230,)


def test_after_the_fit_the_columns_are_there(fitted: mlsql.Fit, whole: mlsql.Fit) -> None:
    """What reads the rows once more reads the tables with them."""
    np.testing.assert_allclose(fitted.products.by_group(), whole.products.by_group(), rtol=1e-9, atol=1e-6)
    frames = [model_frame(f.estimates, f.inputs) for f in (fitted, whole)]
    close(frames[0], frames[1], ["child", "year"])
    assert {"size", "lowinc", "female", "black"} < set(frames[0].columns)
    # means are summed in another order
    close(fitted.survey, whole.survey, ["column", "role"])


def test_an_expression_may_mix_the_tables(data: Egsingle) -> None:
    formula = "math ~ year + I(lowinc / 100 * black) + grand_center(size) + C(female) + (1 | school/child)"
    same(mlsql.fit(formula, data.rows, level2=data.tables), mlsql.fit(formula, data.whole))


def test_group_means_over_a_coarser_factor(data: Egsingle) -> None:
    """The mean over a school's rows of what the children's table holds."""
    formula = "math ~ year + black + group_mean(black, school) + (1 | school/child)"
    same(mlsql.fit(formula, data.rows, level2={"school:child": data.children}), mlsql.fit(formula, data.whole))


def test_crossed_factors_and_weights(data: Egsingle) -> None:
    formula = "math ~ year + lowinc + black + (1 | school) + (1 | child)"
    children = data.children.drop("school")
    one = mlsql.fit(formula, data.rows, level2={"school": data.schools, "child": children}, weights="1 + year * year")
    same(one, mlsql.fit(formula, data.whole, weights="1 + year * year"))


def test_beside_memberships(data: Egsingle) -> None:
    rng = np.random.default_rng(3)
    met = pl.DataFrame({"child": data.children["child"], "teacher": rng.integers(0, 40, data.children.height)})
    formula = "math ~ year + lowinc + (1 | school) + (1 | teacher)"
    given: dict[str, Any] = {"memberships": {"teacher": mlsql.Membership(met, on="child")}}
    fit = mlsql.fit(formula, data.rows, level2={"school": data.schools}, **given)
    same(fit, mlsql.fit(formula, data.whole, **given))
    assert fit.predict() is not None
    # new data have no memberships: tables beside them do not change that
    with pytest.raises(mlsql.DataError, match="the units of teacher come from a membership table"):
        fit.predict(data.rows, level2={"school": data.schools})
    with pytest.raises(mlsql.DesignError, match=r"level2 has a table for teacher.*Membership\(units=\.\.\.\)"):
        mlsql.fit(formula, data.rows, level2={"teacher": met}, **given)
    with pytest.raises(mlsql.DesignError, match="level2 has a table for teacher"):
        mlsql.fit("math ~ year + (1 | teacher)", data.rows, level2=met, **given)


@pytest.mark.parametrize("kind", ["file", "table", "SQL", "relation", "lazy", "arrow", "pandas"])
def test_every_kind_of_source(
    data: Egsingle, whole: mlsql.Fit, con: duckdb.DuckDBPyConnection, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "schools.parquet"
    data.schools.write_parquet(file)
    sources: dict[str, Callable[[], object]] = {
        "file": lambda: file,
        "table": lambda: "schools",
        "SQL": lambda: "SELECT * FROM schools",
        "relation": lambda: con.table("schools"),
        "lazy": data.schools.lazy,
        "arrow": data.schools.to_arrow,
        "pandas": data.schools.to_pandas,
    }
    tables = {"school": sources[kind](), "school:child": con.table("children")}
    same(mlsql.fit(FORMULA, "rows", con=con, level2=tables), whole)


def test_a_relation_as_data(con: duckdb.DuckDBPyConnection, data: Egsingle, whole: mlsql.Fit) -> None:
    same(mlsql.fit(FORMULA, con.table("rows"), level2=data.tables, con=con), whole)
    with pytest.raises(mlsql.DataError, match="needs con="):
        mlsql.fit(FORMULA, con.table("rows"), level2=data.tables)


def test_one_frame_for_two_factors(data: Egsingle) -> None:
    """The same object twice is two tables; here one of them is not read."""
    schools = data.schools.with_columns(child=pl.lit(1))
    formula = "math ~ year + (1 | school/child)"
    assert mlsql.fit(formula, data.rows, level2={"school": schools, "school:child": schools}).n_rows == 7230
    with pytest.raises(mlsql.DesignError, match="in the level2 tables of school and school:child"):
        mlsql.fit(SHORT, data.rows, level2={"school": schools, "school:child": schools})


def test_names_in_other_cases_and_odd_ones(data: Egsingle) -> None:
    schools = data.schools.rename({"school": "SCHOOL", "lowinc": "LowInc"})
    same(
        mlsql.fit(SHORT, data.rows, level2={**data.tables, "school": schools}),
        mlsql.fit(SHORT, data.whole),
    )
    # a name of ours as the data's key
    odd = {"school": "mlsql 0 key 0", "lowinc": 'low "inc"'}
    formula = 'math ~ year + "low ""inc""" + black + (1 | "mlsql 0 key 0"/child)'
    tables = {
        "mlsql 0 key 0": data.schools.rename(odd),
        "mlsql 0 key 0:child": data.children.rename({"school": odd["school"]}),
    }
    fit = mlsql.fit(formula, data.rows.rename({"school": odd["school"]}), level2=tables)
    assert fit.deviance == pytest.approx(mlsql.fit(SHORT, data.whole).deviance, rel=DEVIANCE)


def test_the_only_factor_may_be_named(data: Egsingle) -> None:
    formula = "math ~ year*lowinc + (year | school)"
    plain = mlsql.fit(formula, data.rows, level2=data.schools)
    named = mlsql.fit(formula, data.rows, level2={"school": data.schools})
    assert named.deviance == plain.deviance
    assert named.plan.steps[0].name == plain.plan.steps[0].name
    close(named.predict(data.rows, level2={"school": data.schools}), plain.predict(), ["child", "year"])
    same(mlsql.fit(formula, data.whole, level2={}), plain)


def test_rows_whose_group_a_table_lacks_are_counted(data: Egsingle) -> None:
    schools, children = data.schools.filter(pl.col("school") > 2100), data.children.head(1500)
    fit = mlsql.fit(SHORT, data.rows, level2={"school": schools, "school:child": children})
    joined = data.rows.join(schools, on="school", how="left").join(children, on=["school", "child"], how="left")
    no_school, no_child = joined["size"].null_count(), joined["female"].null_count()
    said = "rows belong to groups that the level2 table of {} does not have, and without a value of {}"
    assert [w for w in fit.warnings if "level2" in w] == [
        f"{no_school:,} {said.format('school', 'lowinc')}",
        f"{no_child:,} {said.format('school:child', 'black')}",
    ]
    complete = joined.drop_nulls()
    assert fit.dropped == (
        f"{7230 - complete.height:,} of 7,230 rows are incomplete in the model's columns",
        f"lowinc: {no_school:,} NULL",
        f"black: {no_child:,} NULL",
    )
    same(fit, mlsql.fit(SHORT, complete))
    predicted = fit.predict(unseen="missing")
    assert predicted is not None
    assert predicted.height == 7230
    assert predicted["population"].null_count() == 7230 - complete.height


def test_missing_values_and_missing_keys(data: Egsingle) -> None:
    schools = data.schools.with_columns(
        lowinc=pl.when(pl.col("school") == 2020)
        .then(None)
        .when(pl.col("school") == 2040)
        .then(float("nan"))
        .otherwise("lowinc")
    )
    # keys that are missing belong to no group, however many there are
    schools = pl.concat([schools, schools.head(2).with_columns(school=pl.lit(None, pl.Int64))])
    fit = mlsql.fit(SHORT, data.rows, level2={**data.tables, "school": schools})
    expected = mlsql.fit(SHORT, data.whole.filter(~pl.col("school").is_in([2020, 2040])))
    same(fit, expected)
    counts = [data.rows.filter(pl.col("school") == s).height for s in (2020, 2040)]
    assert fit.dropped[1:] == (f"lowinc: {counts[0]:,} NULL, {counts[1]:,} NaN",)
    assert not [w for w in fit.warnings if "level2" in w]


def test_a_table_that_the_model_does_not_read(data: Egsingle) -> None:
    fit = mlsql.fit("math ~ year + lowinc + (1 | school/child)", data.rows, level2=data.tables)
    assert "the model reads no column of the level2 table of school:child; it was not used" in fit.warnings
    same(fit, mlsql.fit("math ~ year + lowinc + (1 | school/child)", data.whole))
    # all of them
    assert mlsql.fit("math ~ year + (1 | school/child)", data.rows, level2=data.tables).n_rows == 7230


def test_a_column_in_the_data_and_in_a_table(data: Egsingle) -> None:
    rows = data.rows.with_columns(Lowinc=pl.lit(-99.0))
    fit = mlsql.fit(SHORT, rows, level2=data.tables)
    warning = "column lowinc is in the data and in the level2 table of school; the level2 table's value is used"
    assert [w for w in fit.warnings if "level2" in w] == [warning]
    same(fit, mlsql.fit(SHORT, data.whole))
    predicted = fit.predict()
    assert predicted is not None
    assert predicted.columns[:5] == rows.columns


def test_other_columns_of_a_table_stay_out(data: Egsingle) -> None:
    """A table may hold whatever else: of the outcome, the weights and the keys the data's are read."""
    schools = data.schools.with_columns(math=pl.lit(0.0), w=pl.lit(-1.0), child=pl.lit(1), year=pl.lit(None))
    rows, whole = (frame.with_columns(w=pl.lit(2.0)) for frame in (data.rows, data.whole))
    with pytest.raises(mlsql.DataError, match="year"):
        mlsql.fit(SHORT, rows, level2={**data.tables, "school": schools})
    schools = schools.drop("year")
    same(
        mlsql.fit(SHORT, rows, level2={**data.tables, "school": schools}, weights="w"),
        mlsql.fit(SHORT, whole, weights="w"),
    )


def test_keys_of_types_that_compare(data: Egsingle) -> None:
    for dtype in (pl.Int16, pl.Float64, pl.UInt32):
        schools = data.schools.with_columns(pl.col("school").cast(dtype))
        same(mlsql.fit(SHORT, data.rows, level2={**data.tables, "school": schools}), mlsql.fit(SHORT, data.whole))


def test_keys_that_are_expressions(data: Egsingle) -> None:
    formula = "math ~ year + mean_size + (1 | I(school // 100)) + (1 | school)"
    regions = data.schools.group_by(pl.col("school") // 100 * 100).agg(mean_size=pl.col("size").mean())
    fit = mlsql.fit(formula, data.rows, level2={mlsql.parse_model(formula).factors[0].name: regions})
    wide = data.rows.with_columns(region=pl.col("school") // 100 * 100).join(
        regions, left_on="region", right_on="school"
    )
    same(fit, mlsql.fit(formula, wide))


def test_the_plan_reads_no_row_and_shows_the_checks(con: duckdb.DuckDBPyConnection, data: Egsingle) -> None:
    tables = {"school": "schools", "school:child": "children"}
    formula = "math ~ year + lowinc + black + (1 | school/child)"
    plan = mlsql.plan(formula, "rows", con=con, level2=tables)
    names = ["survey of the level2 table of school", "survey of the level2 table of school:child", "survey of data"]
    assert [step.name for step in plan.steps][:3] == names
    for step in plan.steps:
        con.execute(step.sql).fetchall()
    # a group twice is found by the survey, not before
    con.execute("INSERT INTO schools SELECT * FROM schools LIMIT 1")
    mlsql.plan(formula, "rows", con=con, level2=tables)
    with pytest.raises(mlsql.DataError, match="more than one row for 1 group"):
        mlsql.plan(formula, "rows", con=con, level2=tables, survey=True)


def test_what_level2_holds() -> None:
    one, two = mlsql.parse_model("y ~ x + (1 | g)"), mlsql.parse_model("y ~ x + (1 | g) + (1 | h)")
    assert level2_tables(one, None) == (None, {})
    assert level2_tables(one, "a table") == ("a table", {})
    assert level2_tables(one, {"g": "a table"}) == ("a table", {})
    assert level2_tables(two, {}) == (None, {})
    assert level2_tables(two, {"h": "a table"}) == (None, {"h": "a table"})
