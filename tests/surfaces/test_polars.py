"""`import mlsql.polars`: frames and expressions give what `mlsql.fit` and formulas give, lazily, with own types."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

import mlsql
import mlsql.polars
from mlsql.polars.frames import Settings, SharedSettings

NESTED_WINDOWS = tuple(int(part) for part in pl.__version__.split(".")[:2]) >= (1, 37)
MODEL = "y ~ x + (1 | g)"
ADDED = ["population", "population_std_error", "conditional", "conditional_std_error"]


def namespace(frame: pl.DataFrame | pl.LazyFrame) -> Any:
    """The attribute that the package adds, which type checkers do not see."""
    return frame.ml  # type: ignore[union-attr]


def ml(name: str) -> Any:
    return pl.col(name).ml  # type: ignore[attr-defined]


def make_rows(missing: bool = False) -> pl.DataFrame:
    """240 rows of 12 groups of different sizes, in no order; some values missing when asked for."""
    frame = pl.DataFrame({"i": range(240)}).with_columns(
        g=(pl.col("i") * 7 % 31) // 3 + 5,
        t=pl.col("i") % 3,
        x=(pl.col("i") * 7919 % 1009) / 1009.0,
        noise=(pl.col("i") * 15485863 % 1013) / 1013.0,
    )
    frame = frame.with_columns(y=2 + pl.col("x") + pl.col("g") * 31 % 17 / 5 + pl.col("noise"), w=pl.col("g") % 4)
    if not missing:
        return frame
    return frame.with_columns(
        x=pl.when(pl.col("i") % 10 > 0).then("x"),
        y=pl.when(pl.col("i") % 12 == 5).then(float("nan")).otherwise("y"),
        g=pl.when(pl.col("i") % 20 != 7).then("g"),
    )


@pytest.fixture
def rows() -> pl.DataFrame:
    return make_rows()


# frames


def test_fit_forwards(rows: pl.DataFrame) -> None:
    upper = rows.group_by("g").agg(pl.col("w").first())
    settings: list[dict[str, Any]] = [{}, {"method": "ML"}, {"weights": "noise + 1"}, {"level2": upper}]
    for more in settings:
        expected = mlsql.fit(MODEL, rows, **more)
        for frame in (rows, rows.lazy()):
            found = namespace(frame).fit(MODEL, **more)
            # a LazyFrame's rows arrive in other batches: sums differ by rounding
            assert found.deviance == pytest.approx(expected.deviance, rel=1e-11)
            assert found.spec.method == expected.spec.method


def test_settings_are_those_of_the_functions() -> None:
    for own, function in ((Settings, mlsql.fit), (SharedSettings, mlsql.step_up)):
        parameters = inspect.signature(function).parameters.values()
        assert set(own.__annotations__) == {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_step_up_and_compare_forward(rows: pl.DataFrame) -> None:
    formulas = ("y ~ 1 + (1 | g)", MODEL)
    expected = mlsql.compare(*[mlsql.fit(f, rows, method="ML") for f in formulas])
    assert_frame_equal(namespace(rows.lazy()).compare(*formulas, method="ML"), expected)
    steps = namespace(rows).step_up("y ~ group_center(x) + w + (1 | g)")
    assert_frame_equal(steps.table, mlsql.step_up("y ~ group_center(x) + w + (1 | g)", rows).table)


KEYS: dict[str, Callable[[], pl.Expr]] = {
    "Int8": lambda: pl.col("g").cast(pl.Int8),
    "UInt64": lambda: pl.col("g").cast(pl.UInt64),
    "String": lambda: pl.col("g").cast(pl.String),
    "Categorical": lambda: pl.col("g").cast(pl.String).cast(pl.Categorical),
    "Enum": lambda: pl.col("g").cast(pl.String).cast(pl.Enum([str(i) for i in range(30)])),
    "Date": lambda: datetime.date(2020, 2, 27) + pl.duration(days="g"),
    "Datetime": lambda: (datetime.datetime(2020, 1, 1) + pl.duration(hours="g")).cast(pl.Datetime("ms")),
    "Datetime with a zone": lambda: (datetime.datetime(2020, 1, 1) + pl.duration(hours="g")).dt.replace_time_zone(
        "Europe/Paris", non_existent="null"
    ),
    "Time": lambda: pl.time(hour="g", minute=30),
    "Boolean": lambda: pl.col("g") > 9,
    "Decimal": lambda: (pl.col("g") / 4).cast(pl.Decimal(9, 2)),
    "Float64": lambda: pl.col("g") / 4,
    "Binary": lambda: pl.col("g").cast(pl.String).cast(pl.Binary),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("lazy", [False, True])
def test_effects_join_on_the_keys(rows: pl.DataFrame, kind: str, lazy: bool) -> None:
    frame = rows.with_columns(School=KEYS[kind]()).drop("g")
    effects = namespace(frame.lazy() if lazy else frame).group_effects("y ~ x + (1 | School)")
    assert effects.schema["School"] == frame.schema["School"]
    joined = frame.join(effects, on="School", how="left")
    assert joined["coefficient"].null_count() == 0
    counted = frame.group_by("School").len().join(effects, on="School")
    assert counted["len"].to_list() == counted["n"].to_list()


def test_effects_of_composite_keys_and_of_a_fit(rows: pl.DataFrame) -> None:
    frame = rows.with_columns(pl.col("t").cast(pl.Int8), country=pl.col("g").cast(pl.String).cast(pl.Categorical))
    fitted = mlsql.fit("y ~ x + (1 | country:t)", frame)
    effects = namespace(frame).group_effects(fitted)
    assert [effects.schema[k] for k in ("country", "t")] == [frame.schema[k] for k in ("country", "t")]
    assert frame.join(effects, on=["country", "t"]).height == frame.height
    assert_frame_equal(effects.drop("country", "t"), fitted.group_effects().drop("country", "t"))
    # whatever the formula's spelling, the key is called as in the frame; an expression is a key too
    assert namespace(frame).group_effects("y ~ x + (1 | COUNTRY)").columns[0] == "country"
    assert namespace(frame).group_effects("y ~ x + (1 | I(t + 1))").columns[0] == "I(t + 1)"


def test_predictions_stand_beside_the_rows(rows: pl.DataFrame) -> None:
    frame = rows.with_columns(
        f=pl.col("t").cast(pl.String).cast(pl.Enum(["2", "1", "0"])),
        # of types that do not pass through the database
        since=pl.duration(days="i"),
        hash=pl.col("i").cast(pl.Int128),
    ).with_row_index("index")
    fitted = mlsql.fit("y ~ X + f + (1 | g)", frame.drop("hash"))
    predicted = namespace(frame).predict(fitted)
    assert_frame_equal(predicted.drop(ADDED), frame)
    own = fitted.predict(frame.select("i", "y", "x", "f", "g"))
    assert own is not None
    assert_frame_equal(predicted.select(ADDED), own.sort("i").select(ADDED))
    lazy = namespace(frame.lazy()).predict(fitted)
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect_schema() == predicted.schema
    assert_frame_equal(lazy.collect(), predicted)
    assert_frame_equal(lazy.filter(pl.col("i") % 2 == 0).select("i", "conditional").collect(engine="streaming"),
                       predicted.filter(pl.col("i") % 2 == 0).select("i", "conditional"))  # fmt: skip


def test_augment_stands_beside_the_rows() -> None:
    rows = make_rows(missing=True)
    fitted = mlsql.fit("y ~ group_center(x) + (1 | g)", rows)
    augmented = namespace(rows).augment(fitted)
    expected = fitted.augment()
    assert expected is not None
    assert_frame_equal(augmented, expected.sort("i"))
    assert_frame_equal(namespace(rows.lazy()).augment(fitted).collect(), augmented)
    assert augmented["residual"].fill_nan(None).null_count() == rows.height - fitted.n_rows


@pytest.mark.parametrize("lazy", [False, True])
def test_new_groups_and_tables_of_level_2(rows: pl.DataFrame, lazy: bool) -> None:
    upper, lower = rows.group_by("g").agg(pl.col("w").first()), rows.drop("w")
    fitted = mlsql.fit("y ~ x + w + (1 | g)", lower, level2=upper)
    frame: Any = lower.lazy() if lazy else lower
    more: Any = pl.concat([lower, lower.head(1).with_columns(pl.col("g") + 100)])
    more_upper = pl.concat([upper, pl.DataFrame({"g": [105, 110], "w": [1, 2]})])
    found = namespace(frame).predict(fitted, level2=upper).lazy().collect()
    expected = fitted.predict()
    assert expected is not None
    assert_frame_equal(found.select(ADDED), expected.sort("i").select(ADDED))
    assert namespace(frame).augment(fitted, level2=upper).lazy().collect().height == rows.height
    for words, call in {
        "need their level2=": lambda: namespace(frame).predict(fitted).lazy().collect(),
        "pass it as level2=": lambda: namespace(frame).augment(fitted),
        "did not see": lambda: (
            namespace(more.lazy() if lazy else more).predict(fitted, level2=more_upper).lazy().collect()
        ),
        "was fitted without a level2 table": lambda: (
            namespace(frame).augment(mlsql.fit(MODEL, rows), level2=upper).lazy().collect()
        ),
    }.items():
        with pytest.raises(mlsql.DataError, match=words):
            call()
    new = namespace(more.lazy() if lazy else more).predict(fitted, level2=more_upper, unseen="missing")
    assert new.lazy().collect()["conditional"].null_count() == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_columns_in_the_way_and_columns_missing(rows: pl.DataFrame, lazy: bool) -> None:
    fitted = mlsql.fit(MODEL, rows)
    taken, short = rows.with_columns(Conditional=1, fitted=2), rows.drop("x")
    with pytest.raises(mlsql.DataError, match="'Conditional' already"):
        namespace(taken.lazy() if lazy else taken).predict(fitted)
    with pytest.raises(mlsql.DataError, match="'fitted' already"):
        namespace(taken.lazy() if lazy else taken).augment(fitted)
    with pytest.raises(mlsql.DataError, match="to predict, x is needed"):
        namespace(short.lazy() if lazy else short).predict(fitted).lazy().collect()


def test_a_lazy_prediction_is_computed_when_collected(rows: pl.DataFrame) -> None:
    calls = []

    def noted(values: pl.Series) -> pl.Series:
        calls.append(len(values))
        return values

    fitted = mlsql.fit(MODEL, rows)
    lazy = rows.lazy().with_columns(pl.col("x").map_batches(noted, return_dtype=pl.Float64))
    predicted = namespace(lazy).predict(fitted)
    assert calls == []
    assert_series_equal(predicted.collect()["population"], namespace(rows).predict(fitted)["population"])
    assert calls


def test_a_prediction_may_be_fitted_on_the_same_connection(rows: pl.DataFrame) -> None:
    with duckdb.connect() as con:
        fitted = mlsql.fit(MODEL, rows, con=con)
        lazy = namespace(rows.lazy()).augment(fitted)
        again = namespace(lazy).fit("residual_population ~ x + (1 | g)", con=con)
    eager = namespace(rows).augment(mlsql.fit(MODEL, rows))
    expected = mlsql.fit("residual_population ~ x + (1 | g)", eager)
    assert again.deviance == pytest.approx(expected.deviance, rel=1e-11)


# expressions


CENTRED: dict[str, tuple[Callable[..., pl.Expr], str]] = {
    "group_center": (lambda complete: ml("x").group_center("g", complete=complete), "group_center(x)"),
    "group_mean": (lambda complete: ml("x").group_mean("g", complete=complete), "group_mean(x)"),
    "grand_center": (lambda complete: ml("x").grand_center(complete=complete), "grand_center(x)"),
}


@pytest.mark.parametrize("kind", CENTRED)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_centring_is_that_of_a_formula(kind: str, missing: bool, lazy: bool) -> None:
    make, term = CENTRED[kind]
    frame = make_rows(missing).lazy() if lazy else make_rows(missing)
    expected = mlsql.fit(f"y ~ {term} + (1 | g)", frame)
    complete = ["y", "x", "g"] if missing else []
    # a group has a mean in all of its rows, also where x is missing: the model leaves those out
    centred = frame.with_columns(z=make(complete)).filter(pl.col("x").is_not_null())
    found = namespace(centred).fit("y ~ z + (1 | g)")
    assert found.n_rows == expected.n_rows
    assert found.deviance == pytest.approx(expected.deviance, rel=1e-11)
    # means summed in another order
    assert found.fixed_effects["estimate"].to_list() == pytest.approx(
        expected.fixed_effects["estimate"].to_list(), rel=1e-9
    )


def test_missing_values_count_for_no_mean_and_rows_without_a_group_have_none() -> None:
    nan = float("nan")
    frame = pl.DataFrame(
        {
            "g": ["a", "a", "a", "b", "b", None],
            "h": [1.0, 1.0, 1.0, 2.0, nan, 2.0],
            "x": [1.0, None, 3.0, nan, None, 7.0],
            "y": [1.0, 2.0, nan, 4.0, 5.0, 6.0],
        }
    )

    def values(expr: pl.Expr) -> list[float | None]:
        return frame.select(expr).to_series().to_list()

    assert values(ml("x").group_mean("g")) == [2.0, 2.0, 2.0, None, None, None]
    assert values(ml("x").group_center("g")) == [-1.0, None, 1.0, None, None, None]
    assert values(ml("y").group_mean("h")) == [1.5, 1.5, 1.5, 5.0, None, 5.0]
    assert values(ml("x").group_mean("g", complete=["y"])) == [1.0, 1.0, 1.0, None, None, None]
    assert values(ml("x").group_mean("g", complete="y")) == [1.0, 1.0, 1.0, None, None, None]
    assert values(ml("x").grand_center())[0] == pytest.approx(1 - 11 / 3, rel=1e-15)
    assert values(ml("x").grand_center(complete=["y", "g"]))[2] == 2.0
    assert values(ml("x").shrunken_mean("g", tau00=1.0, sigma2=1.0))[3:] == [None, None, None]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Float32, pl.Decimal(9, 2), pl.Boolean], ids=str)
def test_numbers_of_any_type_give_doubles(dtype: Any) -> None:
    frame = pl.DataFrame({"g": [1, 1, 2], "x": [1, 0, 1]}).with_columns(pl.col("x").cast(dtype))
    centred = frame.select(ml("x").group_center("g"))
    assert centred.schema == {"x": pl.Float64}
    assert centred["x"].to_list() == [0.5, -0.5, 0.0]


def test_the_column_keeps_its_name(rows: pl.DataFrame) -> None:
    given = {"tau00": 1.0, "sigma2": 1.0}
    for expr in (
        ml("x").grand_center(), ml("x").group_mean("g"), ml("x").group_center("g", complete=["y"]),
        ml("x").shrunken_mean("g"), ml("x").shrunken_mean("g", **given), ml("x").shrunken_mean("g", complete="y"),
    ):  # fmt: skip
        for frame in (rows, rows.lazy()):
            assert frame.select(expr).lazy().collect().columns == ["x"]


def coefficients(fitted: mlsql.Fit, rows: pl.DataFrame, keys: Sequence[str] = ("g",)) -> list[float]:
    """The coefficient of each row's group, nan where it has none."""
    effects = fitted.group_effects().select(*keys, "coefficient")
    return doubles(rows.join(effects, on=list(keys), how="left", maintain_order="left").select("coefficient"))


def doubles(frame: pl.DataFrame | pl.LazyFrame) -> list[float]:
    return frame.lazy().collect().to_series().fill_null(float("nan")).to_list()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_shrunken_means_are_the_coefficients_of_the_model(missing: bool, method: Any) -> None:
    rows = make_rows(missing)
    expected = coefficients(mlsql.fit("y ~ 1 + (1 | g)", rows, method=method), rows)
    shrunken = ml("y").shrunken_mean("g", method=method)
    # the same sums through the same code; the engine may add them in another order
    assert doubles(rows.select(shrunken)) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert doubles(rows.lazy().select(shrunken)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("tau00", [0.0, 0.3, 100.0])
def test_shrunken_means_at_given_variances_are_those_of_evaluate(missing: bool, tau00: float) -> None:
    rows = make_rows(missing)
    expected = coefficients(mlsql.evaluate("y ~ 1 + (1 | g)", rows, T=tau00, sigma2=0.7), rows)
    for frame in (rows, rows.lazy()):
        # another formula for the same numbers
        found = doubles(frame.select(ml("y").shrunken_mean("g", tau00=tau00, sigma2=0.7)))
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_shrunken_means_of_complete_rows_and_composite_keys() -> None:
    rows = make_rows(missing=True)
    expected = coefficients(mlsql.fit("y ~ 1 + (1 | g)", rows.filter(pl.col("x").is_not_null())), rows)
    found = doubles(rows.select(ml("y").shrunken_mean("g", complete=["x"])))
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    named = rows.with_columns(t=pl.col("t").cast(pl.String).cast(pl.Enum(["1", "0", "2"])))
    both = mlsql.fit("y ~ 1 + (1 | g:t)", rows)
    expected = coefficients(both, rows, ("g", "t"))
    given = {"tau00": float(both.T[0, 0]), "sigma2": both.sigma2}
    for expr in (ml("y").shrunken_mean("g", "t"), ml("y").shrunken_mean(pl.col("g"), "t", **given)):
        # the Enum's order is another order of summation, which moves where the search stops
        assert doubles(named.select(expr)) == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_over_does_all_of_it_within_each_part(rows: pl.DataFrame) -> None:
    expressions = [ml("y").grand_center(), ml("y").shrunken_mean("g")]
    if NESTED_WINDOWS:
        expressions += [ml("y").group_center("g"), ml("y").group_mean("g")]
        expressions += [ml("y").shrunken_mean("g", tau00=1.0, sigma2=2.0)]
    for expr in expressions:
        found = rows.with_columns(z=expr.over("t"))
        lazy = rows.lazy().with_columns(z=expr.over("t")).collect()
        assert_frame_equal(found, lazy)
        for (t,), part in rows.group_by("t"):
            # means summed in another order
            assert doubles(found.filter(pl.col("t") == t).select("z")) == pytest.approx(
                doubles(part.select(expr)), rel=1e-9, abs=1e-12
            )


def test_group_centring_over_a_column_is_centring_in_both(rows: pl.DataFrame) -> None:
    both = rows.select(ml("x").group_center("g", "t"))
    parts = pl.concat([p.select("i", ml("x").group_center("g")) for _, p in rows.group_by("t")]).sort("i")
    assert_series_equal(both["x"], parts["x"])


def test_what_cannot_be_is_refused(rows: pl.DataFrame) -> None:
    for call in (ml("y").group_mean, ml("y").group_center, ml("y").shrunken_mean):
        with pytest.raises(mlsql.DataError, match="name the grouping column"):
            call()
    for given, words in (
        ({"tau00": 1.0}, "both tau00 and sigma2"), ({"sigma2": 1.0}, "both tau00 and sigma2"),
        ({"tau00": -1.0, "sigma2": 1.0}, "tau00 is -1.0"), ({"tau00": 1.0, "sigma2": 0.0}, "sigma2 is 0.0"),
        ({"tau00": float("nan"), "sigma2": 1.0}, "tau00 is nan"), ({"tau00": "1", "sigma2": 1.0}, "tau00 is '1'"),
    ):  # fmt: skip
        with pytest.raises(mlsql.FitError, match=words):
            ml("y").shrunken_mean("g", **given)
    # the model's own words reach through the query
    with pytest.raises(mlsql.DesignError, match="at least 2 are needed"):
        rows.with_columns(one=1).select(ml("y").shrunken_mean("one"))
    with pytest.raises(mlsql.DesignError, match="at least 2 are needed"):
        rows.lazy().with_columns(one=1).select(ml("y").shrunken_mean("one")).collect()
