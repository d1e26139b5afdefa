"""What `Diagnostics` refuses, and how: expressions, candidates, settings, data that have changed, harmful names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import duckdb
import pytest

import mlsql
from mlsql.pipeline.diagnostics import Diagnostics

Con = duckdb.DuckDBPyConnection


def of(fit: mlsql.Fit) -> Diagnostics:
    return Diagnostics(fit.products)


@pytest.fixture
def con() -> Iterator[Con]:
    """t: 120 rows of 12 groups; upper: one row for each group."""
    with duckdb.connect() as con:
        con.execute(
            """
            CREATE TABLE t AS SELECT i, i // 10 AS g, ((i * 7919) % 1009) / 1009.0 AS x,
                ((i * 104729) % 997) / 99.7 AS z, ['a', 'b', 'c'][i % 3 + 1] AS f,
                ((i * 7919) % 1009) / 1009.0 + ((i // 10) * 31 % 17) / 10.0 + ((i * 15485863) % 1013) / 1013.0 AS y
            FROM range(120) r(i);
            CREATE TABLE upper AS SELECT range AS g, 1 + range * 3 % 7 / 2 AS v, 'u' || range AS name FROM range(12);
            """
        )
        yield con


@pytest.fixture
def fitted(con: Con) -> mlsql.Fit:
    return mlsql.fit("y ~ x + f + (x | g)", "t", con=con)


REFUSED: list[tuple[Callable[[Diagnostics], object], type[mlsql.MlsqlError], str]] = [
    (lambda d: d.residuals(by="zz"), mlsql.DataError, "did you mean 'z'"),
    (lambda d: d.residuals(by="sum(z)"), mlsql.FormulaError, "beyond one row"),
    (lambda d: d.residuals(by="(SELECT 1)"), mlsql.FormulaError, "SQL scalar expression"),
    (lambda d: d.residuals(by="x; DROP TABLE t"), mlsql.FormulaError, "SQL scalar expression"),
    (lambda d: d.residuals(by="nofunction(x)"), mlsql.FormulaError, "nofunction"),
    (lambda d: d.residuals(by="group_mean(x)"), mlsql.DataError, r"leave out group_mean\(\)"),
    (lambda d: d.residuals(by=3), mlsql.FormulaError, "as text"),  # type: ignore[arg-type]
    (lambda d: d.residuals(kind="ols"), mlsql.DataError, "'residual_ols'"),  # type: ignore[arg-type]
    (lambda d: d.by_group("eb"), mlsql.DataError, "'residual_population'"),  # type: ignore[arg-type]
    (lambda d: d.against("f"), mlsql.DataError, "f has type VARCHAR; a number is needed"),
    (lambda d: d.against("DATE '2020-01-01'"), mlsql.DataError, "DATE"),
    (lambda d: d.against("x", 1), mlsql.DataError, "bins is 1; it is a whole number from 2 to 100"),
    (lambda d: d.against("x", 2.5), mlsql.DataError, r"bins is 2\.5"),  # type: ignore[arg-type]
    (lambda d: d.qq(0), mlsql.DataError, "points is 0"),
    (lambda d: d.extreme_groups(0), mlsql.DataError, "k is 0"),
    (lambda d: d.homogeneity(0), mlsql.DataError, "min_n is 0"),
    (lambda d: d.homogeneity(11), mlsql.FitError, "only 0 of 12 groups can be compared: 12 have fewer than 11 rows"),
    (lambda d: d.to_enter([]), mlsql.FormulaError, "a list of columns"),
    (lambda d: d.to_enter("g"), mlsql.FormulaError, "a list of columns"),
    (lambda d: d.to_enter(["g", "gg"]), mlsql.DataError, "did you mean 'g'"),
    (lambda d: d.to_enter(["x"]), mlsql.DataError, r"varies within 12 of 12 groups; .* group_mean\(x\)"),
    (lambda d: d.to_enter(["f"]), mlsql.DataError, "f = 'a', which counts as 0 and 1"),
    (lambda d: d.to_enter(["1 + 2"]), mlsql.DataError, "candidate 1 \\+ 2 is 3 in every group"),
    (lambda d: d.to_enter(["CAST(concat('a', g) AS INTEGER)"]), mlsql.QueryError, "candidates"),
    (lambda d: d.to_enter(["g / 0.0"]), mlsql.DataError, "no value in any group"),
    (lambda d: d.to_enter(["max(g)"]), mlsql.FormulaError, "beyond one row"),
]


@pytest.mark.parametrize(("call", "error", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(
    con: Con, fitted: mlsql.Fit, call: Callable[[Diagnostics], object], error: type[mlsql.MlsqlError], problem: str
) -> None:
    before = con.sql("FROM t").fetchall()
    with pytest.raises(error, match=problem):
        call(of(fitted))
    assert con.sql("FROM t").fetchall() == before


def test_candidates_that_mix_the_tables(con: Con) -> None:
    two_tables = mlsql.fit("y ~ x + v + (1 | g)", "t", con=con, level2="upper")
    with pytest.raises(mlsql.DesignError, match="mixes columns"):
        of(two_tables).to_enter(["v + i"])
    with pytest.raises(mlsql.DataError, match="name has type VARCHAR"):
        of(two_tables).to_enter(["name"])
    with pytest.raises(mlsql.DataError, match="'vv' is not in the data; did you mean 'v'"):
        of(two_tables).to_enter(["vv"])


def test_too_many_values() -> None:
    hsb = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
    with pytest.raises(mlsql.DataError, match="more than 1,000 values"):
        of(hsb).residuals(by="ses * 1000 + mathach")


@pytest.mark.parametrize("change", ["DELETE FROM t WHERE i = 7", "INSERT INTO t SELECT * REPLACE (99 AS g) FROM t"])
def test_changed_data_are_noticed(con: Con, fitted: mlsql.Fit, change: str) -> None:
    con.execute(change)
    calls: list[Callable[[Diagnostics], object]] = [
        lambda d: d.residuals(),
        lambda d: d.residuals(by="f"),
        lambda d: d.qq(),
        lambda d: d.by_group(),
        lambda d: d.against("x"),
        lambda d: d.to_enter(["g"]),
    ]
    for call in calls:
        with pytest.raises(mlsql.DataError, match="changed since the fit"):
            call(of(fitted))


@pytest.mark.parametrize("evil", ['x"; DROP TABLE t; --', "'); DROP TABLE t; --", "a\n;DROP TABLE t;\n/* */ $$ */"])
def test_names_that_would_do_harm(con: Con, evil: str) -> None:
    quoted = '"' + evil.replace('"', '""') + '"'
    con.execute(f"CREATE TABLE e AS SELECT *, g % 3 AS {quoted} FROM t")
    fit = mlsql.fit("y ~ x + (1 | g)", "e", con=con)
    assert of(fit).residuals(by=evil)["n"].to_list() == [40, 40, 40]
    assert of(fit).against(evil)["n"].to_list() == [40, 40, 40]
    assert of(fit).to_enter([evil, quoted])["t"].n_unique() == 1
    assert con.sql("SELECT count(*) FROM t").fetchall() == [(120,)]
