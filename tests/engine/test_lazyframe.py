"""LazyFrames are streamed: only the model's columns, nothing collected, types kept, errors in their own words."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import polars as pl
import pytest
from polars.io.plugins import register_io_source

import mlsql
from mlsql.engine.lazyframe import LazyDataset, arrow_table

FORMULA = "y ~ x + f + (1 | g)"
Con = duckdb.DuckDBPyConnection
STREAMS = tuple(int(part) for part in pl.__version__.split(".")[:2]) >= (1, 37)


@pytest.fixture
def rows(con: Con) -> pl.DataFrame:
    return con.sql("FROM t").pl()


class Source:
    """A LazyFrame that remembers what was asked of it."""

    def __init__(self, frame: pl.DataFrame, batch: int = 30) -> None:
        self.frame, self.batch = frame, batch
        self.asked: list[list[str] | None] = []

    def lazy(self) -> pl.LazyFrame:
        return register_io_source(self.read, schema=self.frame.schema)

    def read(
        self, columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        self.asked.append(columns)
        frame = self.frame if columns is None else self.frame.select(columns)
        frame = frame if predicate is None else frame.filter(predicate)
        yield from (frame if n_rows is None else frame.head(n_rows)).iter_slices(self.batch)


def same(deviance: float, expected: float) -> None:
    # the same rows; only the order of summation may differ
    assert deviance == pytest.approx(expected, rel=1e-11)


def test_every_scan_is_a_fresh_query_of_the_models_columns(rows: pl.DataFrame) -> None:
    source = Source(rows.with_columns(unused=pl.lit("long text"), other=pl.col("x") * 2))
    fitted = mlsql.fit(FORMULA, source.lazy())
    same(fitted.deviance, mlsql.fit(FORMULA, rows).deviance)
    # survey, levels of the factor, preview, moments
    assert len(source.asked) >= 4
    read = {column for columns in source.asked for column in columns or ["everything"]}
    assert read == {"y", "x", "f", "g"}


@pytest.mark.skipif(not STREAMS, reason="this Polars collects the columns asked for")
def test_nothing_is_collected(rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mlsql.fit(FORMULA, rows)
    lazy = rows.lazy().filter(pl.col("x") > -1).with_columns(pl.col("x") * 2)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("collected")

    with monkeypatch.context() as patch:
        patch.setattr(pl.LazyFrame, "collect", refuse)
        fitted = mlsql.fit(FORMULA, lazy)
    assert fitted.fixed_effects["estimate"][1] == pytest.approx(expected.fixed_effects["estimate"][1] / 2, rel=1e-8)


def test_older_versions_collect_and_find_the_same(rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mlsql.fit(FORMULA, rows.lazy()).deviance
    monkeypatch.setattr(pl, "__version__", "1.36.1")
    same(mlsql.fit(FORMULA, rows.lazy()).deviance, expected)


def test_a_repeated_fit_is_the_same(rows: pl.DataFrame) -> None:
    lazy = rows.lazy().filter(pl.col("i") % 7 > 0)
    assert [mlsql.fit(FORMULA, lazy).deviance for _ in range(3)] == [mlsql.fit(FORMULA, lazy).deviance] * 3


def test_missing_values_leave_with_their_rows(rows: pl.DataFrame) -> None:
    holes = rows.with_columns(
        x=pl.when(pl.col("i") % 11 > 0).then("x"),
        f=pl.when(pl.col("i") % 13 > 0).then("f"),
        y=pl.when(pl.col("i") % 17 == 0).then(float("nan")).otherwise("y"),
    )
    fitted, expected = mlsql.fit(FORMULA, holes.lazy()), mlsql.fit(FORMULA, holes)
    same(fitted.deviance, expected.deviance)
    assert fitted.dropped == expected.dropped


CONDITIONS = (
    "b IS NOT NULL", "b IS NULL", "NOT isnan(b) AND a > 2", "b >= 1 AND b < 3", "c = 'y'", "c IN ('x', 'z') AND a <> 3",
    "d > DATE '2020-01-02'", "e", "NOT e OR a = 1", "k = 'lo'", "a IN (1, 3) AND d IS NOT NULL", "c > 'x' AND a < 4",
    "a BETWEEN 2 AND 3 AND b IS NOT NULL",
)  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_that_the_engine_hands_down_hold(con: Con, condition: str) -> None:
    frame = pl.DataFrame(
        {
            "a": [1, 2, 3, 4, None],
            "b": [1.0, float("nan"), None, 2.5, 3.0],
            "c": ["x", "y", None, "z", "y"],
            "d": [datetime.date(2020, 1, day) for day in range(1, 6)],
            "e": [True, False, None, True, False],
            "k": ["lo", "hi", "lo", None, "hi"],
        },
        schema_overrides={"k": pl.Categorical},
    )
    con.register("lazy", LazyDataset(frame.lazy()))
    con.register("eager", frame.to_arrow())
    for columns in ("a", "c, a", "count(*)"):
        query = f"SELECT {columns} FROM {{}} WHERE {condition} ORDER BY ALL"
        assert con.sql(query.format("lazy")).fetchall() == con.sql(query.format("eager")).fetchall()


DTYPES = [
    pl.Int8, pl.UInt64, pl.Float32, pl.Decimal(9, 2), pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time,
    pl.Datetime("ms"), pl.Datetime("ns", "Europe/Paris"), pl.Duration("us"), pl.Null, pl.Categorical,
    pl.Enum(["b", "a"]), pl.List(pl.Int8), pl.Struct({"x": pl.Int8}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_are_those_of_a_dataframe(con: Con, dtype: Any) -> None:
    frame = pl.DataFrame({"k": [None, None]}, schema={"k": dtype})
    con.register("lazy", LazyDataset(frame.lazy()))
    con.register("eager", arrow_table(frame))
    assert con.sql("DESCRIBE lazy").fetchall() == con.sql("DESCRIBE eager").fetchall()
    assert con.sql("SELECT k, count(*) FROM lazy GROUP BY k").fetchall() == [(None, 2)]
    assert con.sql("SELECT k, count(*) FROM eager GROUP BY k").fetchall() == [(None, 2)]


def bad(_: object) -> pl.Series:
    raise ValueError("no such table of norms")


PLANS: dict[str, tuple[Callable[[pl.LazyFrame], pl.LazyFrame], str]] = {
    "a column that is not there": (lambda lf: lf.with_columns(x=pl.col("nosuch") + 1), "nosuch"),
    "a file that is not there": (lambda lf: pl.scan_parquet("nosuch.parquet"), "nosuch.parquet"),
    "a value that cannot be cast": (
        lambda lf: lf.with_columns(x=(pl.lit("v") + pl.col("f")).cast(pl.Float64)),
        "conversion from `str` to `f64` failed",
    ),
    "a function that fails": (
        lambda lf: lf.with_columns(x=pl.col("x").map_batches(bad, return_dtype=pl.Float64)),
        "no such table of norms",
    ),
    "a function that gives another type": (
        lambda lf: lf.with_columns(x=pl.col("x").map_batches(lambda s: s.cast(pl.Int32), return_dtype=pl.Float64)),
        "Int32",
    ),
    "a frame of another type": (
        lambda lf: lf.map_batches(
            lambda d: d.with_columns(pl.col("x").cast(pl.Int32)),
            schema=lf.collect_schema(),
            validate_output_schema=False,
            projection_pushdown=False,
        ),
        "column 'x' is double by the schema, but the query gives int32",
    ),
    "a type that Arrow lacks": (
        lambda lf: lf.with_columns(hash=pl.col("i").cast(pl.Int128)),
        "column 'hash' of the LazyFrame is Int128",
    ),
}


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("role", ["data", "level2"])
def test_what_is_wrong_with_a_plan_is_told_in_its_words(con: Con, rows: pl.DataFrame, role: str, kind: str) -> None:
    make, words = PLANS[kind]
    lazy = make(rows.lazy())
    data, level2 = (lazy, None) if role == "data" else (rows.drop("x"), lazy)
    with pytest.raises(mlsql.DataError) as caught:
        mlsql.fit("y ~ x + (1 | g)", data, level2=level2, con=con)
    assert words in str(caught.value)
    assert "LazyFrame" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    # nothing stays behind on the user's connection
    assert con.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall() == []
    assert con.sql("SELECT count(*) FROM t").fetchall() == [(120,)]


def test_a_failure_is_forgotten_by_the_next_query(rows: pl.DataFrame) -> None:
    broken = [True]

    def sometimes(values: pl.Series) -> pl.Series:
        if broken[0]:
            raise ValueError("server is down")
        return values

    lazy = rows.lazy().with_columns(pl.col("x").map_batches(sometimes, return_dtype=pl.Float64))
    expected = mlsql.fit("y ~ x + (1 | g)", rows)
    broken[0] = False
    fitted = mlsql.fit("y ~ x + (1 | g)", lazy)
    broken[0] = True
    with pytest.raises(mlsql.DataError, match="server is down"):
        fitted.predict()
    broken[0] = False
    same(mlsql.fit("y ~ x + (1 | g)", lazy).deviance, expected.deviance)
    assert fitted.predict() is not None


def test_functions_in_python_do_not_block_the_scan(rows: pl.DataFrame) -> None:
    lazy = rows.lazy().map_batches(lambda d: d.with_columns(pl.col("x") * 1), projection_pushdown=False)
    lazy = lazy.with_columns(pl.col("y").map_elements(lambda v: float(str(v)), return_dtype=pl.Float64))
    same(mlsql.fit(FORMULA, lazy).deviance, mlsql.fit(FORMULA, rows).deviance)


def test_data_that_change_between_scans_are_noticed(rows: pl.DataFrame) -> None:
    class Growing(Source):
        def read(self, *asked: Any) -> Iterator[pl.DataFrame]:
            yield from super().read(*asked)
            if len(self.asked) == 1:
                yield from super().read(*asked)

    with pytest.raises(mlsql.DataError, match="the data change from scan to scan"):
        mlsql.fit("y ~ x + (1 | g)", Growing(rows).lazy())


def test_no_rows(rows: pl.DataFrame) -> None:
    with pytest.raises(mlsql.DataError, match="no rows"):
        mlsql.fit(FORMULA, rows.lazy().filter(pl.col("x") > 1e6))


@pytest.mark.parametrize("lazy", [False, True])
def test_an_enum_keeps_its_order_as_a_factor(rows: pl.DataFrame, lazy: bool) -> None:
    enum = rows.with_columns(pl.col("f").cast(pl.Enum(["c", "a", "unused", "b"])))
    fitted = mlsql.fit(FORMULA, enum.lazy() if lazy else enum)
    assert fitted.fixed_effects["term"].to_list() == ["(Intercept)", "x", "f[a]", "f[b]"]
    assert any("unused" in warning for warning in fitted.warnings)
    predicted = fitted.predict()
    assert predicted is not None
    assert predicted["f"].cast(pl.String).sort().to_list() == rows["f"].sort().to_list()


@pytest.mark.parametrize("lazy", [False, True])
def test_an_enum_with_many_values_is_a_key(rows: pl.DataFrame, lazy: bool) -> None:
    names = [f"k{i:04}" for i in range(2000)]
    enum = rows.with_columns(g=(pl.lit("k00") + pl.col("g").cast(pl.String).str.zfill(2)).cast(pl.Enum(names)))
    fitted = mlsql.fit(FORMULA, enum.lazy() if lazy else enum)
    same(fitted.deviance, mlsql.fit(FORMULA, rows).deviance)


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum([f"k{i}" for i in range(20)])], ids=str)
def test_keys_of_the_two_tables_may_be_text_of_different_kinds(con: Con, rows: pl.DataFrame, dtype: Any) -> None:
    upper = con.sql("FROM upper").pl()
    expected = mlsql.fit("y ~ x + w + (1 | g)", rows, level2=upper)
    as_text = pl.lit("k") + pl.col("g").cast(pl.String)
    lower = rows.with_columns(g=as_text.cast(pl.Enum([f"k{i}" for i in range(12)])))
    for level2 in (upper.with_columns(g=as_text.cast(dtype)), upper.lazy().with_columns(g=as_text.cast(dtype))):
        fitted = mlsql.fit("y ~ x + w + (1 | g)", lower.lazy(), level2=level2)
        same(fitted.deviance, expected.deviance)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_categorical_without_values_is_read(rows: pl.DataFrame, lazy: bool) -> None:
    empty = rows.with_columns(h=pl.lit(None, dtype=pl.Categorical))
    with pytest.raises(mlsql.DataError, match="h"):
        mlsql.fit("y ~ x + h + (1 | g)", empty.lazy() if lazy else empty)


def test_a_dataframe_with_a_type_that_arrow_lacks(rows: pl.DataFrame) -> None:
    with pytest.raises(mlsql.DataError, match="column 'hash' of the DataFrame is Int128"):
        mlsql.fit(FORMULA, rows.with_columns(hash=pl.col("i").cast(pl.Int128)))
