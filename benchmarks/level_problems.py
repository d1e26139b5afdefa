"""Cases with several grouping factors and the data they run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

TEST_DATA = Path(__file__).parent.parent / "tests" / "data"

NUMBERS = """
CREATE MACRO uniform(a, b) AS (hash(concat(a, ' ', b)) >> 11) / 9007199254740992.0;
CREATE MACRO normal(a, b) AS sqrt(-2 * ln(1 - uniform(a, b))) * cos(2 * pi() * uniform(a, b || ' angle'));
"""
"""Random numbers from what they belong to: the same whatever the number of threads.  `hash(a, b)` would not
do: its values for two texts b are correlated."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its data.

    Attributes
    ----------
    name : str
    formula : str
        Read alike by mlsql, mixedlm and lme4.
    make : callable
        Path of the Parquet file, from a folder and a divisor of its size.
    peers : tuple of str
        Programs beside which it runs.
    repeats : int
    """

    name: str
    formula: str
    make: Callable[[Path, int], Path]
    peers: tuple[str, ...] = ()
    repeats: int = 3


def made(folder: Path, name: str, divisor: int, query: str) -> Path:
    """Write a query's rows to a Parquet file unless it is there."""
    path = folder / (f"{name}.parquet" if divisor == 1 else f"{name}-{divisor}.parquet")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with duckdb.connect() as con:
            con.execute(NUMBERS)
            con.execute(f"COPY ({query}) TO '{path}' (FORMAT PARQUET)")
    return path


def shipped(name: str) -> Callable[[Path, int], Path]:
    """A file of the tests."""
    return lambda _folder, _divisor: TEST_DATA / f"{name}.parquet"


def growth_curves(folder: Path, divisor: int) -> Path:
    """Ten occasions of 1 M children in 10 k schools, rows in random order."""
    children, schools = 1_000_000 // divisor, 10_000 // divisor
    query = f"""
        WITH child AS (
            SELECT i AS child, floor(uniform(i, 'school') * {schools})::BIGINT AS school,
                uniform(i, 'ses') AS ses, normal(i, 'start') AS r0, 0.4 * normal(i, 'growth') AS r1
            FROM range({children}) t(i)
        ), school AS (
            SELECT i AS school, uniform(i, 'size') AS size, normal(i, 'mean') AS u0, 0.3 * normal(i, 'slope') AS u1
            FROM range({schools}) t(i)
        )
        SELECT child, school, occasion / 3.0 AS year, ses, size, 3 + 0.2 * ses + r0 + u0
            + (0.5 + 0.1 * size + r1 + u1) * occasion / 3.0 + 1.5 * normal(child * 10 + occasion, 'row') AS y
        FROM child JOIN school USING (school), range(10) o(occasion) ORDER BY hash(child * 10 + occasion)"""
    return made(folder, "three10m", divisor, query)


def ratings(folder: Path, divisor: int) -> Path:
    """1 M ratings, at most one of an item by a user; some users rate much and some items are rated often."""
    root = int(divisor**0.5)
    users, items = 6_000 // root, 3_700 // root
    query = f"""
        WITH pair AS (
            SELECT DISTINCT floor({users} * pow(uniform(i, 'user'), 1.8))::BIGINT AS "user",
                floor({items} * pow(uniform(i, 'item'), 2.2))::BIGINT AS item FROM range({1_750_000 // divisor}) t(i)
        )
        SELECT "user", item, round(greatest(1, least(5, 3.5 + 0.6 * normal("user", 'user') + 0.5 * normal(item, 'item')
            + 0.9 * normal("user" * 100000 + item, 'row'))))::INTEGER AS rating
        FROM pair ORDER BY hash("user" * 100000 + item) LIMIT {1_000_000 // divisor}"""
    return made(folder, "ratings1m", divisor, query)


def two_factors(levels: int) -> Callable[[Path, int], Path]:
    """400,000 rows of 40,000 groups of one factor, ten each, with groups of the other drawn at random."""

    def make(folder: Path, divisor: int) -> Path:
        rows, smaller = 400_000 // divisor, levels // divisor
        query = f"""
            WITH row AS (SELECT i, i // 10 AS a, floor(uniform(i, 'b') * {smaller})::BIGINT AS b
                         FROM range({rows}) t(i))
            SELECT a, b, normal(i, 'x') AS x, 1 + 0.5 * normal(i, 'x') + 0.7 * normal(a, 'a') + 0.5 * normal(b, 'b')
                + normal(i, 'row') AS y FROM row"""
        return made(folder, f"crossed{levels}", divisor, query)

    return make


CASES = (
    Case(
        "InstEval", "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)", shipped("insteval"), ("mixedlm", "lme4"), 5
    ),
    Case("egsingle", "math ~ year + (year | schoolid/childid)", shipped("egsingle"), ("mixedlm", "lme4"), 15),
    Case("three10m", "y ~ year*size + ses + (year | school/child)", growth_curves),
    Case("ratings1m", "rating ~ 1 + (1 | user) + (1 | item)", ratings, ("mixedlm",), 1),
)

GROWTH = tuple(
    Case(str(levels), "y ~ x + (1 | a) + (1 | b)", two_factors(levels), repeats=1)
    for levels in (500, 1_000, 2_000, 4_000, 6_000, 8_000, 12_000)
)
"""The smaller of two crossed factors grows; from more than 6,000 columns on its matrix is sparse."""
