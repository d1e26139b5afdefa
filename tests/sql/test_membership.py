"""Statements of multiple membership: histories, patterns, and what is counted before, on small tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import duckdb
import pytest
import sqlglot
from sqlglot import exp

from mlsql.design.schema import Input, Role
from mlsql.sql.membership import (
    Lookup,
    MembershipQuery,
    Sum,
    histories_step,
    patterns_step,
    travels,
    units_step,
    with_patterns,
)
from mlsql.sql.membership_checks import (
    any_repeated_step,
    problems_step,
    reach_step,
    repeated_step,
    units_table_step,
)
from mlsql.sql.plan import Step
from mlsql.sql.syntax import column


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """rows: five children, years 0-2, with gaps; met: their teachers; teachers: one row each."""
    with duckdb.connect() as con:
        con.execute(
            """
            CREATE TABLE "the rows" AS SELECT * FROM (VALUES
                (1, 0, 5.0), (1, 1, 6.0), (1, 2, 7.0), (2, 0, 4.0), (2, 2, 5.0), (3, 1, 3.0), (4, 0, 2.0),
                (4, NULL, 1.0), (NULL, 1, 8.0), (5, 1, 9.0)) t("child's id", year, y);
            CREATE TABLE met AS SELECT * FROM (VALUES
                (1, 0, 'ann', 1.0), (1, 1, 'bob', 0.5), (1, 2, 'ann', 2.0), (2, 0, 'ann', 1.0), (2, 1, 'bob', 0.5),
                (4, 1, 'cyd', 1.0), (5, 1, 'bob', 0.0), (9, 0, 'eve', 1.0), (NULL, 0, 'fay', 1.0)
                ) t("child's id", year, "who", share);
            CREATE TABLE teachers AS SELECT * FROM (VALUES ('ann', 1), ('bob', NULL), ('cyd', 3)) t("who", degree);
            """
        )
        yield con


def table(name: str) -> exp.Table:
    return exp.Table(this=exp.to_identifier(name, quoted=True))


def item(name: str, dtype: str, role: Role = "key") -> Input:
    return Input(name, column(name).sql("duckdb"), role, "rows", dtype)


CHILD, YEAR = item("child's id", "INTEGER"), item("year", "INTEGER")
QUERY = MembershipQuery(
    rows=table("the rows"),
    members=table("met"),
    units=None,
    on=((CHILD, CHILD),),
    time=(YEAR, YEAR),
    unit=item("who", "VARCHAR"),
    unit_key=None,
    weight=None,
    normalise=False,
    decay=None,
    sums=(),
)
WEIGHTED = replace(QUERY, weight=item("share", "DECIMAL(2,1)", "numeric"))
DEGREE = Sum(item("degree", "INTEGER", "numeric"), in_units=True)
SHARE = Sum(item("share", "DECIMAL(2,1)", "numeric"), in_units=False)
WITH_UNITS = replace(WEIGHTED, units=table("teachers"), unit_key=item("who", "VARCHAR"))


def run(con: duckdb.DuckDBPyConnection, step: Step) -> list[dict[str, Any]]:
    (tree,) = sqlglot.parse(step.sql, dialect="duckdb")
    assert isinstance(tree, exp.Query)
    return con.sql(step.sql).to_arrow_table().to_pylist()


def data_of(con: duckdb.DuckDBPyConnection, query: MembershipQuery) -> list[tuple[Any, ...]]:
    """All statements, as the pipeline runs them; the data with units' names for patterns, in order of their rows."""
    units = [r["unit"] for r in run(con, units_step(query, "unit"))]
    con.register("histories", con.sql(histories_step(query).sql).to_arrow_table())
    con.register("patterns", con.sql(patterns_step(query, table("histories")).sql).to_arrow_table())
    sets = {
        r["pattern"]: {units[m["u"]]: m["w"] for m in r["members"]}
        for r in con.sql("FROM patterns").to_arrow_table().to_pylist()
        if r["members"] is not None
    }
    assert sorted(sets) == list(range(1, len(sets) + 1))
    sums = tuple(f"sum {i}" for i in range(len(query.sums)))
    lookup = Lookup(query, table("histories"), table("patterns"), "who", sums)
    made = with_patterns(query.rows, [lookup])
    answer = con.sql(exp.select("*").from_(made).sql("duckdb")).fetchall()
    assert len(answer) == 10
    found = []
    for child, year, _, pattern, *values in answer:
        found.append((child, year, sets.get(pattern, {}) if pattern is not None else None, *values))
    return sorted(found, key=str)


def test_cumulative_sets(con: duckdb.DuckDBPyConnection) -> None:
    ann, both = {"ann": 1.0}, {"ann": 1.0, "bob": 1.0}
    assert data_of(con, QUERY) == [
        (1, 0, ann),
        (1, 1, both),
        (1, 2, {"ann": 2.0, "bob": 1.0}),
        (2, 0, ann),
        # met while there was no score
        (2, 2, both),
        # not in the membership table; in it, but later
        (3, 1, {}),
        (4, 0, {}),
        # unknown, which is not empty
        (4, None, None),
        (5, 1, {"bob": 1.0}),
        (None, 1, None),
    ]


def test_equal_sets_have_one_pattern(con: duckdb.DuckDBPyConnection) -> None:
    con.register("histories", con.sql(histories_step(QUERY).sql).to_arrow_table())
    answer = run(con, patterns_step(QUERY, table("histories")))
    # three of child 1; child 2 adds none, though the teachers of year 2 differ; child 5 one
    assert len({r["pattern"] for r in answer} - {0}) == 4
    assert sum(r["members"] is not None for r in answer) == 4
    assert sum(r["n"] for r in answer) == 7


def test_equal_histories_are_kept_once(con: duckdb.DuckDBPyConnection) -> None:
    con.execute('INSERT INTO met SELECT 7, year, who, share FROM met WHERE "child\'s id" = 1')
    answer = run(con, histories_step(QUERY))
    number = {r["k0"]: r["history"] for r in answer}
    assert sorted(number) == [1, 2, 4, 5, 7, 9]
    assert number[1] == number[7]
    assert len(set(number.values())) == 5
    assert sum(r["members"] is not None for r in answer) == 5


def test_weights_and_their_decay(con: duckdb.DuckDBPyConnection) -> None:
    found = {(c, y): s for c, y, s in data_of(con, replace(WEIGHTED, decay=0.25))}
    assert found[1, 2] == {"ann": 2.0 + 0.25**2, "bob": 0.5 * 0.25}
    assert found[2, 2] == {"ann": 0.25**2, "bob": 0.5 * 0.25}
    # no weight, no member
    assert found[5, 1] == {}


def test_averages(con: duckdb.DuckDBPyConnection) -> None:
    found = {(c, y): s for c, y, s in data_of(con, replace(WEIGHTED, normalise=True))}
    assert found[1, 1] == {"ann": 1 / 1.5, "bob": 0.5 / 1.5}
    assert found[1, 2] == {"ann": 3 / 3.5, "bob": 0.5 / 3.5}
    assert found[2, 2] == found[1, 1]


def test_sets_without_time(con: duckdb.DuckDBPyConnection) -> None:
    found = data_of(con, replace(WEIGHTED, time=None))
    expected = {1: {"ann": 3.0, "bob": 0.5}, 2: {"ann": 1.0, "bob": 0.5}, 3: {}, 4: {"cyd": 1.0}, 5: {}, None: None}
    assert [s for _, _, s in found] == [expected[c] for c, _, _ in found]


def test_sets_by_several_columns(con: duckdb.DuckDBPyConnection) -> None:
    found = {(c, y): s for c, y, s in data_of(con, replace(QUERY, on=((CHILD, CHILD), (YEAR, YEAR)), time=None))}
    assert found[1, 2] == {"ann": 1.0}
    assert found[2, 2] == {}
    assert found[4, None] is None


def test_sums_of_the_units_table(con: duckdb.DuckDBPyConnection) -> None:
    found = {(c, y): x for c, y, _, x in data_of(con, replace(WITH_UNITS, sums=(DEGREE,)))}
    assert found[1, 0] == 1.0
    # bob's degree is not known; an empty set adds up to 0; bob without weight does no harm
    assert found[1, 1] is None
    assert found[3, 1] == 0.0
    assert found[5, 1] == 0.0
    assert found[None, 1] is None


def test_sums_of_the_membership_table(con: duckdb.DuckDBPyConnection) -> None:
    found = {(c, y): x for c, y, _, x in data_of(con, replace(WEIGHTED, sums=(SHARE,)))}
    assert found[1, 2] == 1.0 + 0.25 + 4.0
    averaged = {(c, y): x for c, y, _, x in data_of(con, replace(WEIGHTED, sums=(SHARE,), normalise=True))}
    assert averaged[1, 2] == 5.25 / 3.5


def test_several_sums_and_factors(con: duckdb.DuckDBPyConnection) -> None:
    query = replace(WITH_UNITS, sums=(SHARE, DEGREE))
    assert {(c, y): (a, b) for c, y, _, a, b in data_of(con, query)}[1, 0] == (1.0, 1.0)
    lookups = [Lookup(query, table("histories"), table("patterns"), f, (f"{f} a", f"{f} b")) for f in ("one", "two")]
    answer = con.sql(exp.select("*").from_(with_patterns(query.rows, lookups)).sql("duckdb"))
    assert answer.columns == ["child's id", "year", "y", "one", "one a", "one b", "two", "two a", "two b"]
    assert all(r[3:6] == r[6:] for r in answer.fetchall())


@pytest.mark.parametrize("time", ["TIMESTAMP", "DATE", "DECIMAL(6,2)", "UTINYINT", "DOUBLE", "HUGEINT"])
def test_types_of_time(con: duckdb.DuckDBPyConnection, time: str) -> None:
    """A time is compared as it is, and comes back from the answer as it was."""
    value = "DATE '2020-01-01' + year" if time in ("TIMESTAMP", "DATE") else "year"
    for name in ("the rows", "met"):
        con.execute(f'ALTER TABLE "{name}" ALTER year TYPE {time} USING CAST({value} AS {time})')
    year = item("year", time)
    decay = None if time == "TIMESTAMP" else 0.5
    found = data_of(con, replace(QUERY, time=(year, year), decay=decay))
    kept = decay or 1.0
    assert [s for c, _, s in found if c == 2] == [{"ann": 1.0}, {"ann": kept**2, "bob": kept}]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("UUID", "CAST(md5(CAST({} AS VARCHAR)) AS UUID)"),
        ("HUGEINT", "CAST({} AS HUGEINT) * 10000000000000000000000000000000000000"),
        ("VARCHAR", "'child ' || {}"),
        ("ENUM('c1', 'c2', 'c3', 'c4', 'c5', 'c9')", "'c' || {}"),
        ("DATE", "DATE '2020-01-01' + {}"),
        ("DOUBLE", "{} / 3"),
        ("TIME", "TIME '10:00:00' + INTERVAL ({}) MINUTE"),
    ],
)
def test_types_of_keys(con: duckdb.DuckDBPyConnection, dtype: str, value: str) -> None:
    """Keys meet their sets whatever becomes of their type on the way."""
    expected = [s for _, _, s in data_of(con, QUERY)]
    changed = value.format('"child\'s id"')
    for name in ("the rows", "met"):
        con.execute(f'ALTER TABLE "{name}" ALTER "child\'s id" TYPE {dtype} USING CAST({changed} AS {dtype})')
    child = item("child's id", dtype)
    found = data_of(con, replace(QUERY, on=((child, child),)))
    assert sorted(map(str, (s for _, _, s in found))) == sorted(map(str, expected))


def test_types_that_travel() -> None:
    assert all(map(travels, ["INTEGER", "DECIMAL(18,3)", "TIMESTAMP WITH TIME ZONE", "VARCHAR", "DATE"]))
    assert not any(map(travels, ["HUGEINT", "UUID", "ENUM('a')", "TIME", "INTERVAL"]))


def test_nan_is_no_key(con: duckdb.DuckDBPyConnection) -> None:
    for name in ("the rows", "met"):
        con.execute(f'ALTER TABLE "{name}" ALTER "child\'s id" TYPE DOUBLE')
    con.execute('UPDATE "the rows" SET "child\'s id" = \'NaN\' WHERE "child\'s id" = 5')
    con.execute("UPDATE met SET \"child's id\" = 'NaN' WHERE \"child's id\" = 5")
    child = item("child's id", "DOUBLE")
    found = data_of(con, replace(QUERY, on=((child, child),)))
    assert [s for c, _, s in found if c is not None and c != c] == [None]


def test_no_problems(con: duckdb.DuckDBPyConnection) -> None:
    assert run(con, problems_step(QUERY)) == []
    assert run(con, problems_step(WEIGHTED)) == []


def test_problems_are_counted_and_the_first_is_named(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("INSERT INTO met VALUES (8, 1, NULL, 1), (3, 2, NULL, 1), (8, NULL, 'ann', 1), (8, 1, 'ann', -1)")
    answer = {r["problem"]: r for r in run(con, problems_step(WEIGHTED))}
    assert {k: r["found"] for k, r in answer.items()} == {"no unit": 2, "no time": 1, "a negative weight": 1}
    assert (answer["no unit"]["k0"], answer["no unit"]["t"], answer["no unit"]["unit"]) == ("3", "2", None)
    assert answer["a negative weight"]["w"] == -1.0
    # without weights and time nobody asks for them
    assert [r["problem"] for r in run(con, problems_step(replace(QUERY, time=None)))] == ["no unit"]


def test_weights_that_are_no_numbers(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("ALTER TABLE met ALTER share TYPE DOUBLE")
    con.execute(
        "INSERT INTO met VALUES (6, 1, 'ann', 'NaN'), (6, 2, 'ann', 'inf'), (6, 3, 'ann', NULL), (7, 1, 'b', '-inf')"
    )
    query = replace(QUERY, weight=item("share", "DOUBLE", "numeric"))
    assert {r["problem"]: (r["found"], r["t"]) for r in run(con, problems_step(query))} == {
        "a weight that is NaN": (1, "1"),
        "an infinite weight": (2, "2"),
        "no weight": (1, "3"),
    }


def test_repeated_entries(con: duckdb.DuckDBPyConnection) -> None:
    con.register("histories", con.sql(histories_step(QUERY).sql).to_arrow_table())
    assert run(con, any_repeated_step(QUERY, table("histories"))) == [{"found": 0}]
    assert run(con, repeated_step(QUERY)) == []
    con.execute("INSERT INTO met VALUES (2, 1, 'bob', 3), (2, 1, 'bob', 4), (1, 2, 'ann', 3), (NULL, 0, 'fay', 1)")
    con.register("histories", con.sql(histories_step(QUERY).sql).to_arrow_table())
    assert run(con, any_repeated_step(QUERY, table("histories"))) == [{"found": 2}]
    assert run(con, repeated_step(QUERY)) == [{"found": 2, "times": 2, "k0": "1", "t": "2", "unit": "ann"}]


def test_reach(con: duckdb.DuckDBPyConnection) -> None:
    # lost: child 4 is seen before its only teacher, 9 never, NULL is no child; unknown: child 3; late: 4 and 5
    assert run(con, reach_step(QUERY)) == [{"entries": 9, "lost": 3, "unknown": 1, "late": 2}]
    # without time the row without year counts as well
    assert run(con, reach_step(replace(QUERY, time=None))) == [{"entries": 9, "lost": 2, "unknown": 1, "late": 0}]


def test_units_table(con: duckdb.DuckDBPyConnection) -> None:
    assert run(con, units_table_step(WITH_UNITS)) == [{"repeated": 0, "first": None, "absent": 2}]
    con.execute("INSERT INTO teachers VALUES ('cyd', 2), ('bob', 1), ('bob', 1), (NULL, 4), (NULL, 5)")
    assert run(con, units_table_step(WITH_UNITS)) == [{"repeated": 2, "first": "bob", "absent": 2}]


def test_units_in_order(con: duckdb.DuckDBPyConnection) -> None:
    assert [r["who"] for r in run(con, units_step(QUERY, "who"))] == ["ann", "bob", "cyd", "eve", "fay"]
