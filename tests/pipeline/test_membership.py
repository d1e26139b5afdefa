"""Membership tables from end to end: matrices made by hand, sources, counts, and everything that is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sqlglot import exp

import mlsql
from mlsql.design.membership import Membership, MembershipTable
from mlsql.pipeline.membership import membership_incidences, prepare_memberships
from mlsql.pipeline.prepare import Inputs, make_inputs
from mlsql.sql.plan import Step

FORMULA = "y ~ year + (year | child) + (1 | teacher)"
WITH_SUM = "y ~ year + membership_sum(degree, teacher) + (year | child) + (1 | teacher)"
YEARS = 4


@dataclass(frozen=True)
class Prepared:
    """What `prepare_memberships` gives, and the rows of its relation."""

    spec: mlsql.ModelSpec
    inputs: Inputs
    tables: Mapping[str, MembershipTable]
    warnings: tuple[str, ...]
    rows: pl.DataFrame

    def z(self, factor: str = "teacher") -> NDArray[np.float64]:
        """(rows, units) the incidence, row by row; rows of unknown sets must have been left out."""
        table = self.tables[factor]
        cell, unit, weight = table.entries(self.rows[factor].to_numpy().astype(np.int64))
        z = np.zeros((self.rows.height, table.n_units))
        np.add.at(z, (cell, unit), weight)
        return z


def prepare(
    formula: str, data: object, memberships: Any, con: duckdb.DuckDBPyConnection | None = None, order: str = "i"
) -> Prepared:
    spec, inputs = mlsql.parse_model(formula), make_inputs(data, None, con)
    with inputs.engine() as engine:
        spec, inputs, tables, warnings = prepare_memberships(spec, inputs, memberships, engine)
    with inputs.engine() as engine:
        query = exp.select("*").from_(inputs.tables.rows).order_by(exp.column(order))
        rows = pl.DataFrame(engine.query(Step("rows", "", query)))
    return Prepared(spec, inputs, tables, warnings, rows)


@pytest.fixture(scope="module")
def scores() -> pl.DataFrame:
    """Up to four years of 40 children, a quarter of the years without a score."""
    rng = np.random.default_rng(12)
    rows = [(c, t) for c in range(40) for t in range(YEARS) if rng.random() < 0.75]
    child, year = (np.array(x) for x in zip(*rows, strict=True))
    return pl.DataFrame({"i": np.arange(len(rows)), "child": child, "year": year, "y": rng.normal(size=len(rows))})


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    """The teachers of 38 of them in most years, some years with two, which have shares."""
    rng = np.random.default_rng(13)
    rows = []
    for c in range(38):
        for t in range(YEARS):
            for k in rng.choice(9, size=rng.integers(0, 3), replace=False):
                # sums of these shares are exact, so that equal sets are equal in any order
                rows.append((c, t, f"t{k}", rng.choice([0.25, 0.5, 1.0]), int(k) % 2, t * 0.5))
    names = ["child", "year", "teacher", "share", "degree", "training"]
    return pl.DataFrame(rows, schema=names, orient="row").sample(fraction=1.0, shuffle=True, seed=1)


def by_hand(
    scores: pl.DataFrame,
    history: pl.DataFrame,
    units: list[str],
    *,
    weighted: bool,
    cumulative: bool,
    decay: float,
    normalise: bool,
    value: Callable[[dict[str, Any]], float] = lambda entry: 1.0,
) -> NDArray[np.float64]:
    """(rows, units) weights times a value of the entry, in plain loops over all pairs of rows and entries."""
    z = np.zeros((scores.height, len(units)))
    for i, row in enumerate(scores.iter_rows(named=True)):
        entries = [
            e
            for e in history.iter_rows(named=True)
            if e["child"] == row["child"] and (e["year"] <= row["year"] if cumulative else e["year"] == row["year"])
        ]
        weights = [(e["share"] if weighted else 1.0) * decay ** (row["year"] - e["year"]) for e in entries]
        total = sum(weights) if normalise and weights else 1.0
        for e, w in zip(entries, weights, strict=True):
            z[i, units.index(e["teacher"])] += w / total * value(e)
    return z


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("cumulative", "decay"), [(False, 1.0), (True, 1.0), (True, 0.5), (True, 0.83)])
def test_the_matrix_is_the_one_made_by_hand(
    scores: pl.DataFrame, history: pl.DataFrame, weighted: bool, cumulative: bool, decay: float, normalise: bool
) -> None:
    given = Membership(
        history,
        on="child" if cumulative else ["child", "year"],
        time="year" if cumulative else None,
        weight="share" if weighted else None,
        decay=decay if cumulative else None,
        normalise=normalise,
    )
    formula = WITH_SUM.replace("degree", "degree * training + CAST(teacher = 't3' AS INT)")
    found = prepare(formula, scores, {"teacher": given})
    units = found.tables["teacher"].units["teacher"].to_pylist()
    assert units == sorted(units)
    kind: Any = {"weighted": weighted, "cumulative": cumulative, "decay": decay, "normalise": normalise}
    z = by_hand(scores, history, units, **kind)
    # weights are sums of a few products of powers of the decay
    np.testing.assert_allclose(found.z(), z, rtol=1e-14, atol=0)
    assert np.all(z.any(axis=0))
    assert found.tables["teacher"].rows_without == np.sum(~z.any(axis=1))
    # a predictor of the units is accumulated with the same weights
    degree = by_hand(
        scores, history, units, **kind, value=lambda e: e["degree"] * e["training"] + (e["teacher"] == "t3")
    )
    sums = found.rows["sum of degree * training + CAST(teacher = 't3' AS INT) over teacher"].to_numpy()
    np.testing.assert_allclose(sums, degree.sum(axis=1), rtol=1e-14, atol=1e-14)
    # the rows themselves, and in their places
    assert found.rows.select(scores.columns).equals(scores)
    # equal sets have one pattern: as many as there are different rows of the matrix
    patterns = found.rows["teacher"].to_numpy()
    different = len(np.unique(np.round(z, 12), axis=0))
    assert len(np.unique(patterns)) == different
    entries = set(zip(found.tables["teacher"].pattern.tolist(), found.tables["teacher"].unit.tolist(), strict=True))
    assert len(entries) == len(found.tables["teacher"].pattern)


def test_products_through_patterns(scores: pl.DataFrame, history: pl.DataFrame) -> None:
    """Z'Z and Z'x of the rows, from sums by cell (child and pattern) and the incidence of the cells."""
    found = prepare(FORMULA, scores, {"teacher": Membership(history, on="child", time="year", decay=0.5)})
    z, x = found.z(), np.column_stack([np.ones(scores.height), scores["year"], scores["y"]])
    cells = found.rows.group_by("child", "teacher").agg(pl.len().alias("n"), pl.col("year").sum(), pl.col("y").sum())
    incidences, warnings = membership_incidences(found.tables, cells.select("child", "teacher").to_arrow())
    assert warnings == ()
    taken = incidences["teacher"]
    W = np.zeros((cells.height, taken.n_groups))
    assert taken.weight is not None
    np.add.at(W, (taken.cell, taken.group), taken.weight)
    n = cells["n"].to_numpy()
    # the same sums in another order
    np.testing.assert_allclose((W.T * n) @ W, z.T @ z, rtol=1e-12)
    sums = cells.select("n", "year", "y").to_numpy()
    np.testing.assert_allclose(W.T @ sums, z.T @ x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(taken.total(sums.T), (z.T @ x).T, rtol=1e-11, atol=1e-12)


def test_units_that_no_complete_row_has(scores: pl.DataFrame, history: pl.DataFrame) -> None:
    found = prepare(FORMULA, scores, {"teacher": Membership(history, on="child", time="year")})
    patterns = found.rows["teacher"].to_numpy().astype(np.int64)
    some = patterns[found.z()[:, 3] == 0]
    incidences, warnings = membership_incidences(found.tables, pl.DataFrame({"teacher": some}).to_arrow())
    assert incidences["teacher"].n_groups == found.tables["teacher"].n_units - 1
    assert warnings == (
        "memberships of teacher: 1 unit of the membership table has no complete row of the data and was left out",
    )


@pytest.fixture
def con(scores: pl.DataFrame, history: pl.DataFrame) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        for name, frame in (("scores", scores), ("history", history)):
            con.register("frame", frame.to_arrow())
            con.execute(f"CREATE TABLE {name} AS FROM frame")
            con.unregister("frame")
        yield con


@pytest.fixture
def expected(scores: pl.DataFrame, history: pl.DataFrame) -> NDArray[np.float64]:
    return prepare(FORMULA, scores, {"teacher": Membership(history, on="child", time="year")}).z()


@pytest.mark.parametrize("kind", ["table", "sql", "frame", "lazy", "relation", "csv", "pandas"])
def test_tables_of_every_kind(
    con: duckdb.DuckDBPyConnection, history: pl.DataFrame, expected: NDArray[np.float64], kind: str, tmp_path: Path
) -> None:
    sources: dict[str, Callable[[], object]] = {
        "table": lambda: "history",
        "sql": lambda: "SELECT * FROM history WHERE child >= 0",
        "frame": lambda: history,
        "lazy": history.lazy,
        "relation": lambda: con.sql("FROM history"),
        "csv": lambda: tmp_path / "history.csv",
        "pandas": lambda: con.sql("FROM history").df(),
    }
    history.write_csv(tmp_path / "history.csv")
    before = con.sql("SHOW ALL TABLES").fetchall()
    given = {"teacher": Membership(sources[kind](), on="child", time="year")}
    assert np.array_equal(prepare(FORMULA, "scores", given, con).z(), expected)
    assert con.sql("SHOW ALL TABLES").fetchall() == before


@pytest.mark.parametrize("kind", ["frame", "lazy", "csv", "relation"])
def test_data_of_every_kind(
    con: duckdb.DuckDBPyConnection,
    scores: pl.DataFrame,
    history: pl.DataFrame,
    expected: NDArray[np.float64],
    kind: str,
    tmp_path: Path,
) -> None:
    scores.write_csv(tmp_path / "scores.csv")
    data = {
        "frame": scores,
        "lazy": scores.lazy(),
        "csv": str(tmp_path / "scores.csv"),
        "relation": con.table("scores"),
    }
    given = {"teacher": Membership(history, on="child", time="year")}
    found = prepare(FORMULA, data[kind], given, con if kind == "relation" else None)
    assert np.array_equal(found.z(), expected)


def test_a_relation_as_data_needs_its_connection(con: duckdb.DuckDBPyConnection, history: pl.DataFrame) -> None:
    with pytest.raises(mlsql.DataError, match="memberships of a DuckDB relation need con="):
        prepare(FORMULA, con.table("scores"), {"teacher": Membership(history, on="child", time="year")})


def test_one_frame_as_data_and_as_memberships(scores: pl.DataFrame) -> None:
    """Each row belongs to its child alone."""
    given = {"one": Membership(scores, on=["child", "year"], unit="child", units=scores.unique("child"))}
    found = prepare("y ~ membership_sum(year, one) + (1 | one)", scores, given)
    assert np.array_equal(found.z("one").argmax(axis=1), found.rows["child"].rank("dense").to_numpy() - 1)


def test_two_factors(con: duckdb.DuckDBPyConnection, expected: NDArray[np.float64]) -> None:
    formula = "y ~ membership_sum(degree, now) + (1 | child) + (1 | teacher) + (1 | now)"
    given = {
        "teacher": Membership("history", on="child", time="year"),
        "now": Membership("history", on=["year", "child"], unit="teacher", normalise=True),
    }
    found = prepare(formula, "scores", given, con)
    assert np.array_equal(found.z(), expected)
    assert found.tables["now"].units.column_names == ["now"]
    assert set(found.z("now").sum(axis=1)) == {0.0, 1.0}
    assert found.rows.columns == ["i", "child", "year", "y", "teacher", "now", "sum of degree over now"]


def test_the_fixed_part_is_that_of_the_same_rows(con: duckdb.DuckDBPyConnection) -> None:
    """The data with patterns give an ordinary model the very same estimates, rows of no set included."""
    found = prepare(FORMULA, "scores", {"teacher": Membership("history", on="child", time="year")}, con)
    plain = mlsql.fit("y ~ year + (year | child)", "scores", con=con)
    same = mlsql.fit("y ~ year + (year | child)", found.rows)
    assert same.n_rows == plain.n_rows
    # the same sums in another order
    assert same.deviance == pytest.approx(plain.deviance, rel=1e-10)


def test_without_memberships_nothing_changes(scores: pl.DataFrame) -> None:
    spec, inputs = mlsql.parse_model("y ~ year + (year | child)"), make_inputs(scores, None, None)
    with inputs.engine() as engine:
        assert prepare_memberships(spec, inputs, {}, engine) == (spec, inputs, {}, ())
        with pytest.raises(mlsql.FormulaError, match="no memberships are given"):
            prepare_memberships(mlsql.parse_model("y ~ membership_sum(x, t) + (1 | child)"), inputs, {}, engine)


def test_names_are_quoted(scores: pl.DataFrame, history: pl.DataFrame, expected: NDArray[np.float64]) -> None:
    odd = {"child": 'the "child"', "year": "t", "teacher": "u"}
    formula = 'y ~ t + membership_sum("k0", "my teachers") + (1 | "my teachers")'
    given = Membership(history.rename(odd).with_columns(k0=1), on='the "child"', time="t", unit="u", units=None)
    found = prepare(formula, scores.rename({k: v for k, v in odd.items() if k != "teacher"}), {"my teachers": given})
    assert np.array_equal(found.z("my teachers"), expected)
    assert np.array_equal(found.rows["sum of k0 over my teachers"].to_numpy(), expected.sum(axis=1))


def test_case_of_names(scores: pl.DataFrame, history: pl.DataFrame, expected: NDArray[np.float64]) -> None:
    given = Membership(history.rename({"child": "CHILD", "teacher": "Teacher"}), on="Child", time="YEAR")
    assert np.array_equal(prepare(FORMULA, scores, {"teacher": given}).z(), expected)
