"""Predictions for other rows: unseen groups, unseen levels, missing values, other sources, wrong sources."""

from __future__ import annotations

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import mlsql

Con = duckdb.DuckDBPyConnection
NEW_GROUPS = "SELECT * REPLACE (g + 6 AS g) FROM t"
ALL = ["population", "population_std_error", "conditional", "conditional_std_error"]


def predicted(fitted: mlsql.Fit, *arguments: object, **named: object) -> pl.DataFrame:
    frame = fitted.predict(*arguments, **named)  # type: ignore[arg-type]
    assert frame is not None
    return frame.sort("i")


@pytest.fixture
def plain(con: Con) -> mlsql.Fit:
    return mlsql.fit("y ~ x + f + (x | g)", "t", con=con)


def test_the_same_rows_from_elsewhere(con: Con, plain: mlsql.Fit) -> None:
    expected = predicted(plain)
    frame = con.sql("FROM t").pl()
    for data in ("t", "SELECT * FROM t", frame, frame.lazy(), frame.to_arrow(), con.sql("FROM t")):
        assert_frame_equal(predicted(plain, data).select(ALL), expected.select(ALL))
    other = duckdb.connect()
    assert_frame_equal(predicted(plain, frame, con=other).select(ALL), expected.select(ALL))


def test_only_what_the_model_needs(con: Con, plain: mlsql.Fit) -> None:
    frame = predicted(plain, "SELECT i, g, x, f FROM t")
    assert frame.columns == ["i", "g", "x", "f", *ALL]
    assert_frame_equal(frame.select(ALL), predicted(plain).select(ALL))


@pytest.mark.parametrize("missing", ["x", "f", "g"])
def test_a_column_that_is_missing(plain: mlsql.Fit, missing: str) -> None:
    with pytest.raises(mlsql.DataError, match=f"column '{missing}' is not in the data"):
        plain.predict(f"SELECT * EXCLUDE ({missing}) FROM t")


def test_no_rows(plain: mlsql.Fit) -> None:
    assert predicted(plain, "SELECT * FROM t WHERE false").height == 0


def test_unseen_groups_are_refused(plain: mlsql.Fit) -> None:
    with pytest.raises(mlsql.DataError, match=r"60 rows belong to 6 groups that the fit did not see") as caught:
        plain.predict(NEW_GROUPS)
    assert "unseen='population'" in str(caught.value)
    assert "unseen='missing'" in str(caught.value)


def test_unseen_groups_left_missing(plain: mlsql.Fit) -> None:
    frame = predicted(plain, NEW_GROUPS, unseen="missing")
    new = frame["g"] > 11
    assert frame["conditional"].is_null().equals(new)
    assert frame["conditional_std_error"].is_null().equals(new)
    assert frame["population"].null_count() == 0


def test_unseen_groups_by_the_population(plain: mlsql.Fit) -> None:
    frame = predicted(plain, NEW_GROUPS, unseen="population")
    assert frame.select(pl.col(ALL).null_count().sum()).row(0) == (0, 0, 0, 0)
    new = frame.filter(pl.col("g") > 11)
    assert new["conditional"].to_numpy() == pytest.approx(new["population"].to_numpy(), rel=1e-12)
    # the variance of a new group: that of the fixed part and z'Tz
    spread = plain.T[0, 0] + 2 * plain.T[0, 1] * new["x"] + plain.T[1, 1] * new["x"] ** 2
    expected = (new["population_std_error"] ** 2 + spread).sqrt()
    assert new["conditional_std_error"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-9)


def test_unseen_groups_of_a_centred_model(fitted: mlsql.Fit) -> None:
    """A new group is centred at its own mean in the data at hand."""
    frame = predicted(fitted, NEW_GROUPS, unseen="population")
    assert frame["population"].null_count() == 0
    # groups 6 to 11 were shifted by 6, so that z has another group's mean; new groups have their own
    own = predicted(fitted).filter(pl.col("g") > 5)["population"]
    new = frame.filter(pl.col("g") > 11)["population"]
    assert new.to_numpy() == pytest.approx(own.to_numpy(), rel=1e-12)


def test_another_word_for_unseen(plain: mlsql.Fit) -> None:
    with pytest.raises(mlsql.DataError, match="unseen is 'skip'; it is 'error', 'population' or 'missing'"):
        plain.predict(unseen="skip")  # type: ignore[arg-type]


def test_an_unseen_level_gives_null(plain: mlsql.Fit) -> None:
    frame = predicted(plain, "SELECT * REPLACE (CASE WHEN i < 5 THEN 'new' ELSE f END AS f) FROM t")
    for column in ALL:
        assert frame[column].is_null().equals(frame["i"] < 5)


@pytest.mark.parametrize("column", ["x", "f"])
def test_missing_predictors_give_null(plain: mlsql.Fit, column: str) -> None:
    frame = predicted(plain, f"SELECT * REPLACE (CASE WHEN i >= 5 THEN {column} END AS {column}) FROM t")
    for name in ALL:
        assert frame[name].is_null().equals(frame["i"] < 5)


def test_nan_counts_as_missing(plain: mlsql.Fit) -> None:
    """As in the fit, where NaN is counted and left out like NULL."""
    frame = predicted(plain, "SELECT * REPLACE (CASE WHEN i < 5 THEN 'nan'::DOUBLE ELSE x END AS x) FROM t")
    for name in ALL:
        assert frame[name].is_null().equals(frame["i"] < 5)


def test_rows_without_a_group(plain: mlsql.Fit) -> None:
    frame = predicted(plain, "SELECT * REPLACE (CASE WHEN i >= 5 THEN g END AS g) FROM t")
    assert frame["conditional"].is_null().equals(frame["i"] < 5)
    assert frame["population"].null_count() == 0


def test_a_predictor_of_another_type(con: Con, plain: mlsql.Fit) -> None:
    """Numbers of any type will do; text is refused by the predictor's name."""
    frame = con.sql("SELECT * REPLACE (x::FLOAT AS x) FROM t").pl()
    assert predicted(plain, frame)["conditional"].null_count() == 0
    with pytest.raises(mlsql.DataError, match="x"):
        plain.predict("SELECT * REPLACE ('a' AS x) FROM t")


def test_a_key_of_another_type(plain: mlsql.Fit) -> None:
    with pytest.raises(mlsql.DataError, match="g"):
        plain.predict("SELECT * REPLACE ('school ' || g AS g) FROM t")


class TestLevel2:
    """New rows come with their level-2 table."""

    @pytest.fixture
    def apart(self, con: Con) -> mlsql.Fit:
        return mlsql.fit("y ~ x*w + k + (x | g)", "t", con=con, level2="upper")

    def test_the_same_tables(self, con: Con, apart: mlsql.Fit) -> None:
        expected = predicted(apart).select(ALL)
        for upper in ("upper", con.sql("FROM upper").pl()):
            assert_frame_equal(predicted(apart, "t", level2=upper).select(ALL), expected)

    def test_the_table_is_needed(self, apart: mlsql.Fit) -> None:
        with pytest.raises(mlsql.DataError, match="the model uses a level2 table; new data need their level2="):
            apart.predict("t")
        with pytest.raises(mlsql.DataError, match="level2 belongs to new data; pass data as well"):
            apart.predict(level2="upper")

    def test_groups_that_it_does_not_have(self, apart: mlsql.Fit) -> None:
        frame = predicted(apart, "t", level2="SELECT * FROM upper WHERE g <> 4")
        assert frame["population"].is_null().equals(frame["g"] == 4)

    def test_levels_that_are_new(self, apart: mlsql.Fit) -> None:
        frame = predicted(apart, "t", level2="SELECT * REPLACE (CASE WHEN g = 4 THEN 'new' ELSE k END AS k) FROM upper")
        assert frame["population"].is_null().equals(frame["g"] == 4)

    def test_duplicate_keys_must_not_multiply_rows(self, apart: mlsql.Fit) -> None:
        with pytest.raises(mlsql.DataError, match="one row per group"):
            apart.predict("t", level2="SELECT * FROM upper UNION ALL SELECT * FROM upper WHERE g < 3")

    def test_a_table_without_the_key(self, apart: mlsql.Fit) -> None:
        with pytest.raises(mlsql.DataError, match="'g' is not in the data"):
            apart.predict("t", level2="SELECT w, k FROM upper")

    def test_a_table_without_a_predictor(self, apart: mlsql.Fit) -> None:
        with pytest.raises(mlsql.DataError, match="'w' is not in the data"):
            apart.predict("t", level2="SELECT g, k FROM upper")

    def test_a_table_that_the_model_does_not_use(self, plain: mlsql.Fit) -> None:
        """Refused or ignored; its duplicates must not multiply rows."""
        try:
            frame = predicted(plain, "t", level2="SELECT * FROM upper UNION ALL SELECT * FROM upper")
        except mlsql.DataError:
            return
        assert frame.height == 120
