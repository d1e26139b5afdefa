"""Centring in the formula gives what centring by hand in SQL gives, however far from zero the columns lie."""

from __future__ import annotations

import duckdb
import pytest

import mlsql

BY_HAND = """
    SELECT *,
        x - avg(x) OVER (PARTITION BY g) AS x_group, avg(x) OVER (PARTITION BY g) AS x_mean,
        x - avg(x) OVER () AS x_grand,
        z - avg(z) OVER (PARTITION BY g) AS z_group, avg(z) OVER (PARTITION BY g) AS z_mean,
        w - (SELECT avg(w) FROM (SELECT DISTINCT g, w FROM t)) AS w_grand,
        avg(x) OVER (PARTITION BY g) - (SELECT avg(m) FROM (SELECT avg(x) AS m FROM t GROUP BY g)) AS x_mean_grand,
        (k = 'b')::INT - avg((k = 'b')::INT) OVER (PARTITION BY g) AS kb_group
    FROM t
"""

MODELS = [
    ("group_center(x) + (1 | g)", "x_group + (1 | g)"),
    ("group_center(x) + (group_center(x) | g)", "x_group + (x_group | g)"),
    ("group_center(x) + group_mean(x) + (group_center(x) | g)", "x_group + x_mean + (x_group | g)"),
    ("group_center(x)*w + (group_center(x) | g)", "x_group*w + (x_group | g)"),
    ("group_center(x)*group_center(z) + (group_center(x) || g)", "x_group*z_group + (x_group || g)"),
    ("group_center(x) + x + (1 | g)", "x_group + x + (1 | g)"),
    ("group_center(x):z + group_center(x) + z + (1 | g)", "x_group:z + x_group + z + (1 | g)"),
    ("grand_center(x) + (grand_center(x) | g)", "x_grand + (x_grand | g)"),
    ("grand_center(x)*grand_center(w) + (grand_center(x) | g)", "x_grand*w_grand + (x_grand | g)"),
    ("grand_center(group_mean(x)) + z + (1 | g)", "x_mean_grand + z + (1 | g)"),
    ("group_center(I(x * 2)) + (1 | g)", "I(x_group * 2) + (1 | g)"),
    ("group_center(I((k = 'b')::INT)) + (1 | g)", "kb_group + (1 | g)"),
    ("0 + group_center(x) + group_mean(x) + (1 | g)", "0 + x_group + x_mean + (1 | g)"),
    ("x + z + (group_center(x) | g)", "x + z + (x_group | g)"),
]


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute(
        """
        CREATE TABLE t AS SELECT
            i // 9 AS g,
            50 + (i // 9) % 5 + ((i * 7919) % 1009) / 100.0 AS x,
            -3 + ((i * 31) % 127) / 127.0 AS z,
            2000 + (i // 9) * 7 % 13 AS w,
            ['a', 'b'][(i * 5) % 7 // 4 + 1] AS k,
            ((i * 104729) % 997) / 99.7 + (i // 9 * 31 % 17) * (1 + ((i * 7919) % 1009) / 2018.0) AS y
        FROM range(270) r(i) WHERE i % 7 != 3
        """
    )
    return con


@pytest.mark.parametrize("weights", [None, "1 + abs(z)"])
@pytest.mark.parametrize(("formula", "by_hand"), MODELS, ids=[m[0] for m in MODELS])
def test_centred_in_the_formula_or_by_hand(
    con: duckdb.DuckDBPyConnection, formula: str, by_hand: str, weights: str | None
) -> None:
    ours = mlsql.fit(f"y ~ {formula}", "t", con=con, weights=weights)
    hand = mlsql.fit(f"y ~ {by_hand}", BY_HAND, con=con, weights=weights)
    # the project's tolerances: deviance 1e-8, fixed effects and standard errors 1e-5, components 1e-4
    assert ours.deviance == pytest.approx(hand.deviance, rel=1e-8)
    for column in ("estimate", "std_error"):
        assert ours.fixed_effects[column].to_list() == pytest.approx(hand.fixed_effects[column].to_list(), rel=1e-5)
    assert ours.T.tolist() == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in hand.T.tolist()]
    effects, expected = ours.group_effects(), hand.group_effects()
    for column in ("estimate", "coefficient"):
        # 1e-4 relative to the effects' own size
        size = float(expected[column].abs().max())  # type: ignore[arg-type]
        assert effects[column].to_list() == pytest.approx(expected[column].to_list(), abs=1e-4 * size, rel=1e-4)
