"""What the survey decides: pivots, the layout of the moments queries, level-1 or level-2, names in use."""

from __future__ import annotations

import math

import duckdb
import pytest

import mlsql
from mlsql.design.basis import pivotable
from mlsql.design.columns import Column, Variable
from mlsql.design.design import SMALL, build_design
from mlsql.design.layout import moment_columns
from mlsql.design.schema import Input, Schema
from mlsql.design.survey import ColumnSurvey, Preview, Survey

X = Input("x", '"x"', "numeric", "rows", "DOUBLE")
Z = Input("z", '"z"', "numeric", "rows", "DOUBLE")
W = Input("w", '"w"', "numeric", "rows", "DOUBLE")
SCHEMA = Schema(
    (Input("y", '"y"', "outcome", "rows", "DOUBLE"), Input("g", '"g"', "key", "rows", "BIGINT"), X, Z, W),
)


def survey(rows: int = 1000, *, runs: int = 900, varying: frozenset[str] = frozenset({'"x"', '"z"'})) -> Survey:
    columns = tuple(
        ColumnSurvey(i, rows, mean=3.2, minimum=-4.0, maximum=11.0) if i.numeric else ColumnSurvey(i, rows)
        for i in SCHEMA.inputs
    )
    spread = {i.sql: 2.5 for i in SCHEMA.inputs if i.numeric}
    return Survey(rows, columns, preview=Preview(1000, 50, runs, varying, spread))


def pivot(mean: float, low: float, high: float, spread: float | None) -> float:
    found = ColumnSurvey(X, 100, mean=mean, minimum=low, maximum=high)
    return Survey(100, (found,), preview=Preview(1, 1, 1, spread={} if spread is None else {X.sql: spread})).pivot(
        X.sql
    )


@pytest.mark.parametrize(
    ("mean", "low", "high", "spread", "expected"),
    [
        (12.7479, -2.8, 24.9, 6.88, 13.0),
        (0.000143, -3.758, 2.692, 0.779, 0.0),
        (2024.37, 2015, 2033, 5.2, 2024.0),
        (54321.9, 0, 1e6, 21000.0, 50000.0),
        (0.0301234, 0.02, 0.04, 0.004, 0.03),
        (-7.26, -9, -5, 0.5, -7.3),
        (1e9 + 0.123, 1e9, 1e9 + 1, 0.3, 1e9 + 0.1),
        # no preview: a quarter of the range serves
        (12.7479, -2.8, 24.9, None, 13.0),
        (5.0, 5.0, 5.0, 0.0, 5.0),
        (math.nan, math.nan, math.nan, None, 0.0),
    ],
)
def test_pivots_are_round_numbers_near_the_mean(
    mean: float, low: float, high: float, spread: float | None, expected: float
) -> None:
    assert pivot(mean, low, high, spread) == expected


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 0.7, 1.0, 9.99, 12345.0, 1e12])
@pytest.mark.parametrize("center", [0.0, 0.123456789, -3.3, 17.7, 1e6 + 1 / 3])
def test_a_pivot_is_within_a_standard_deviation_of_the_mean(scale: float, center: float) -> None:
    mean = center * scale
    assert abs(pivot(mean, mean - 3 * scale, mean + 3 * scale, scale) - mean) <= scale


def test_a_pivot_of_zero_has_no_sign() -> None:
    assert math.copysign(1.0, pivot(-0.001, -3.0, 3.0, 1.0)) == 1.0


def variable(name: str, level: int = 1) -> Variable:
    return Variable(name, f'"{name}"', "DOUBLE", f'"{name}"', level, "rows", "none", 1.0)


def test_what_may_keep_its_pivot() -> None:
    x, z = variable("x"), variable("z")
    one, only_x, both = Column(), Column((x,)), Column((x, z))
    assert pivotable([(one, only_x)]) == {x}
    # without the intercept x cannot move
    assert pivotable([(only_x,)]) == set()
    # in a product each needs the column without it
    assert pivotable([(one, only_x, Column((z,)), both)]) == {x, z}
    assert pivotable([(one, only_x, both)]) == {z}
    assert pivotable([(one, both)]) == set()
    # every part must agree
    assert pivotable([(one, only_x), (only_x,)]) == set()


def design(formula: str, found: Survey | None):  # type: ignore[no-untyped-def]
    return build_design(mlsql.parse_model(formula), SCHEMA, found)


@pytest.mark.parametrize(
    ("rows", "runs", "layout"),
    [(1000, 900, "full"), (SMALL, 900, "full"), (SMALL + 1, 900, "lean"), (10**9, 900, "lean"), (10**9, 50, "full")],
)
def test_the_layout_follows_rows_and_order(rows: int, runs: int, layout: str) -> None:
    """One scan when the data are few or lie group by group, else two."""
    assert design("y ~ x + z + (x | g)", survey(rows, runs=runs)).layout == layout


def test_without_a_survey_the_plan_is_lean_and_nothing_is_pivoted() -> None:
    made = design("y ~ x + z + (x | g)", None)
    assert made.layout == "lean"
    assert {b.pivot for b in made.bases} == {0.0}
    assert {v.level for c in made.fixed.columns for v in c.variables} == {1}


def test_every_product_is_delivered_once() -> None:
    """Whatever the layout: pairs by group and pooled pairs make up all pairs, the random ones always by group."""
    for rows in (1000, 10**7):
        made = design("y ~ x*w + z + (x | g)", survey(rows))
        columns = moment_columns(made)
        last = len(made.sources)
        pairs = [(a, b) for a in range(1, last) for b in range(a, last)]
        assert sorted([*columns.products, *columns.pooled]) == pairs
        random = made.sources.index(('"x"',))
        assert all(pair in columns.products for pair in pairs if random in pair)
        assert made.sources[0] == ()
        assert made.sources[-1] == ('"y"',)


def test_level_2_columns_need_no_sums() -> None:
    made = design("y ~ x*w + (x | g)", survey())
    assert made.sources == ((), ('"x"',), ('"y"',))
    assert [v.name for v in made.group_values] == ["w"]
    assert made.level2_names == {"w"}
    seen_to_vary = design("y ~ x*w + (x | g)", survey(varying=frozenset({'"x"', '"z"', '"w"'})))
    assert ('"w"', '"x"') in seen_to_vary.sources
    assert seen_to_vary.level2_names == frozenset()


def test_a_column_is_summed_once_however_it_is_centred() -> None:
    made = design("y ~ group_center(x) + group_mean(x) + (group_center(x) | g)", survey())
    assert made.sources == ((), ('"x"',), ('"y"',))
    assert made.means == ('"x"',)


def test_columns_constant_beyond_the_preview_are_found_out() -> None:
    """w is constant within groups in the first rows, and varies in one group far behind."""
    con = duckdb.connect()
    con.execute(
        """
        CREATE TABLE t AS SELECT i // 100 AS g, (i * 7919 % 1009) / 1009.0 AS x,
            i // 100 % 5 + CASE WHEN i = 29999 THEN 1 ELSE 0 END AS w, (i * 104729 % 997) / 997.0 + i // 100 % 7 AS y
        FROM range(30000) r(i)
        """
    )
    fitted = mlsql.fit("y ~ x + w + (1 | g)", "t", con=con)
    assert fitted.estimates.design.level2_names == frozenset()
    first = mlsql.fit("y ~ x + w + (1 | g)", "SELECT * FROM t ORDER BY g DESC", con=con)
    # the preview saw it now; the same numbers, summed in another order
    assert first.deviance == pytest.approx(fitted.deviance, rel=1e-10)
