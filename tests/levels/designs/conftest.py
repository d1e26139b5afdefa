"""Small random data of every shape that several grouping factors come in, and designs spelled out as SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, ClassVar

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]
Columns = dict[str, Any]


def _sizes(rng: np.random.Generator, n: int, most: int) -> NDArray[np.int64]:
    """1 to `most`, ones among them."""
    sizes = rng.integers(1, most + 1, n)
    sizes[:2] = 1
    return sizes


def _finish(rng: np.random.Generator, columns: Columns, effects: Array, by_x: Any = 0, by_t: Any = 0) -> pl.DataFrame:
    """Row columns that every shape has: x, t (0 to 3), f (text), o (offset), weight; y from them and group effects."""
    N = len(effects)
    x, t = rng.normal(size=N), rng.integers(0, 4, N) * 1.0
    columns = {"row": np.arange(N)} | columns | {"x": x, "t": t}
    columns |= {"f": np.array(["lo", "mid", "hi"])[rng.integers(0, 3, N)], "o": rng.normal(size=N)}
    columns["weight"] = rng.integers(1, 5, N) / 2
    columns["y"] = 4 + (0.5 + by_x) * x + (0.3 + by_t) * t + effects + rng.normal(size=N)
    return pl.DataFrame(columns)


@cache
def nested3(seed: int = 2) -> pl.DataFrame:
    """Twelve schools of 1 to 5 children of 1 to 6 rows; `child` starts at 1 in each school, `pupil` does not.

    c is a child's, s (number) and k (text) a school's.
    """
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(12), _sizes(rng, 12, 5))
    child = np.concatenate([np.arange(n) for n in np.bincount(school)])
    rows = np.repeat(np.arange(len(school)), _sizes(rng, len(school), 6))
    c, s = rng.normal(size=len(school)), rng.normal(size=12)
    u, r = rng.normal(size=(2, 12)), rng.normal(size=(2, len(school)))
    columns = {
        "school": 100 - 7 * school[rows],
        "child": child[rows] + 1,
        "pupil": [f"p{n:02d}" for n in (17 * rows) % 97],
        "c": c[rows],
        "s": s[school[rows]],
        "k": np.array(["p", "q", "r"])[school[rows] % 3],
    }
    slope = 0.8 * u[1, school[rows]] + 0.6 * r[1, rows]
    return _finish(rng, columns, 0.4 * c[rows] + s[school[rows]] + 1.5 * u[0, school[rows]] + r[0, rows], slope, slope)


@cache
def nested4(seed: int = 2) -> pl.DataFrame:
    """Rows in classes in schools in districts, numbered anew in each district and school; d1, s, c are theirs."""
    rng = np.random.default_rng(seed)
    district = np.repeat(np.arange(11), _sizes(rng, 11, 3))
    school = np.concatenate([np.arange(n) for n in np.bincount(district)])
    own = np.repeat(np.arange(len(district)), _sizes(rng, len(district), 3))
    number = np.concatenate([np.arange(n) for n in np.bincount(own)])
    rows = np.repeat(np.arange(len(own)), _sizes(rng, len(own), 5))
    d, s, c = rng.normal(size=11), rng.normal(size=len(district)), rng.normal(size=len(own))
    a, b, e = 1.5 * rng.normal(size=(2, 11)), rng.normal(size=len(district)), rng.normal(size=(2, len(own)))
    at = own[rows]
    columns = {
        "district": np.array(list("kcfbagedhji"))[district[at]],
        "school": school[at] + 1,
        "class": number[rows],
        "d1": d[district[at]],
        "s": s[at],
        "c": c[rows],
    }
    return _finish(rng, columns, a[0, district[at]] + b[at] + e[0, rows], a[1, district[at]] + e[1, rows])


def _crossed(seed: int, levels: Mapping[str, int], cells: NDArray[np.int64], rows: int) -> pl.DataFrame:
    """Rows of 1 to `rows` in given cells; p_<factor> are predictors of the factors."""
    rng = np.random.default_rng(seed)
    at = np.repeat(np.arange(len(cells)), rng.integers(1, rows + 1, len(cells)))
    columns: Columns = {}
    # of pairs of groups, too
    effects, slope = 0.7 * rng.normal(size=len(cells))[at], np.zeros(len(at))
    for i, (name, n) in enumerate(levels.items()):
        codes, own, u = cells[at, i], rng.normal(size=n), rng.normal(size=(2, n))
        columns[name] = codes * 3 if i % 2 else np.array([f"{name}{k:02d}" for k in codes])
        columns[f"p_{name}"] = own[codes]
        effects = effects + u[0, codes] + (0.3 + 0.5 * slope) * own[codes]
        slope = slope + 0.7 * u[1, codes]
    return _finish(rng, columns, effects, slope, slope)


def _every_cell(*levels: int) -> NDArray[np.int64]:
    return np.stack(np.meshgrid(*(np.arange(n) for n in levels), indexing="ij"), axis=-1).reshape(-1, len(levels))


@cache
def crossed2(seed: int = 3) -> pl.DataFrame:
    """Nine rows by six columns, every cell with 1 to 3 observations."""
    return _crossed(seed, {"a": 9, "b": 6}, _every_cell(9, 6), 3)


@cache
def partial2(seed: int = 4) -> pl.DataFrame:
    """Twenty students by eight lecturers, each student with one to four of them."""
    rng = np.random.default_rng(seed)
    cells = [(i, j) for i in range(20) for j in rng.choice(8, 1 + i % 4, replace=False)]
    return _crossed(seed, {"a": 20, "b": 8}, np.array(cells), 2)


@cache
def crossed3(seed: int = 5) -> pl.DataFrame:
    """Three factors, half of the cells with 1 to 2 observations."""
    rng = np.random.default_rng(seed)
    cells = _every_cell(7, 5, 4)
    return _crossed(seed, {"a": 7, "b": 5, "c": 4}, cells[rng.random(len(cells)) < 0.5], 2)


@cache
def over_nested(seed: int = 6) -> pl.DataFrame:
    """Students a crossed with lecturers b (numbered in each) of departments c."""
    rng = np.random.default_rng(seed)
    frame = _crossed(seed, {"a": 14, "lecturer": 12}, _every_cell(14, 12)[rng.random(168) < 0.45], 2)
    code = pl.col("lecturer") // 3
    extra = rng.normal(size=4)[(frame["lecturer"].to_numpy() // 3) % 4]
    name = (code % 4).replace_strict(dict(enumerate("xyzv")), return_dtype=pl.String)
    return frame.with_columns(c=name, b=code // 4, y=pl.col("y") + extra)


@dataclass(frozen=True)
class Case:
    """A formula, and the columns of X and of every factor's Z that it stands for, as SQL over the rows.

    `blocks` gives the sizes of the blocks of T where there are several.
    """

    name: str
    formula: str
    rows: Callable[[], pl.DataFrame]
    X: str
    Z: Mapping[str, str]
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: bool = False
    offset: str = "0"

    # set by a fixture: a conftest cannot import another
    Oracle: ClassVar[Any]
    Part: ClassVar[Any]

    def __str__(self) -> str:
        return self.name

    @cached_property
    def frame(self) -> pl.DataFrame:
        return self.rows()

    def values(self, columns: str) -> Array:
        """SQL columns of the rows, in the order of `row`."""
        con = _connection()
        con.register("d", self.frame.to_arrow())
        return np.array(con.execute(f"SELECT {columns} FROM d ORDER BY row").fetchall(), dtype=np.float64)

    def keys(self, factor: str) -> pl.DataFrame:
        """Groups of a factor, in the order of the oracle's effects."""
        names = factor.split(":")
        return self.frame.select(names).unique().sort(names)

    def codes(self, factor: str) -> NDArray[np.int64]:
        keys = self.keys(factor).with_row_index("code")
        found = self.frame.sort("row").join(keys, on=factor.split(":"), how="left", maintain_order="left")
        return found["code"].to_numpy().astype(np.int64)

    @cached_property
    def nested(self) -> tuple[str, ...]:
        """The factors from the coarsest to the finest when each lies within the one before, else none."""
        chain = sorted(self.Z, key=lambda factor: len(self.keys(factor)))
        both = (sorted({*above.split(":"), *below.split(":")}) for above, below in pairwise(chain))
        lies = [self.frame.select(k).n_unique() == len(self.keys(f)) for k, f in zip(both, chain[1:], strict=True)]
        return tuple(chain) if all(lies) else ()

    @property
    def T(self) -> dict[str, Array]:
        found: dict[str, Array] = self.oracle.some_T()
        return found

    @cached_property
    def oracle(self) -> Any:
        parts = []
        for factor, columns in self.Z.items():
            Z, M = self.values(columns), np.eye(len(self.keys(factor)))[self.codes(factor)]
            parts.append(self.Part(factor, M, Z, self.blocks.get(factor, (Z.shape[1],))))
        y = self.values(f"y - ({self.offset})")[:, 0]
        w = self.values("weight" if self.weights else "1")[:, 0]
        return self.Oracle(self.values(self.X), y, tuple(parts), w, {}, 1.0)

    @property
    def options(self) -> dict[str, Any]:
        return {"weights": "weight"} if self.weights else {}


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


S, SC = "school", "school:child"
D, DS, DSC = "district", "district:school", "district:school:class"
MEAN = "avg(x) OVER (PARTITION BY school)"

CASES = [
    Case(
        "nested intercepts",
        "y ~ x + c + s + (1 | school/child)",
        nested3,
        "1, x, c, s",
        {S: "1", SC: "1"},
    ),
    Case(
        "three-way cross-level",
        "y ~ t*c*s + (t | school/child)",
        nested3,
        "1, t, c, s, t*c, t*s, c*s, t*c*s",
        {S: "1, t", SC: "1, t"},
    ),
    Case(
        "slope at the top only",
        "y ~ t + (t | school) + (1 | school:child)",
        nested3,
        "1, t",
        {S: "1, t", SC: "1"},
    ),
    Case(
        "slope at the bottom only",
        "y ~ t + k + (1 | school) + (t | school:child)",
        nested3,
        "1, t, k = 'q', k = 'r'",
        {S: "1", SC: "1, t"},
    ),
    Case(
        "blocks at the top",
        "y ~ t + x + (t || school) + (x | school:child)",
        nested3,
        "1, t, x",
        {S: "1, t", SC: "1, x"},
        {S: (1, 1)},
    ),
    Case(
        "a child's predictor random over schools",
        "y ~ t + c + (c + t | school) + (1 | school:child)",
        nested3,
        "1, t, c",
        {S: "1, c, t", SC: "1"},
    ),
    Case(
        "two blocks and no intercept",
        "y ~ x + t + (t | school) + (0 + x | school) + (0 + t | school:child)",
        nested3,
        "1, x, t",
        {S: "1, t, x", SC: "t"},
        {S: (2, 1)},
    ),
    Case(
        "nested, weights",
        "y ~ t*c + (t | school) + (1 | school:child)",
        nested3,
        "1, t, c, t*c",
        {S: "1, t", SC: "1"},
        weights=True,
    ),
    Case(
        "nested, offset, factor",
        "y ~ 0 + f + x + offset(o) + (1 | school/child)",
        nested3,
        "f = 'hi', f = 'lo', f = 'mid', x",
        {S: "1", SC: "1"},
        offset="o",
    ),
    Case(
        "nested, centred in schools",
        "y ~ group_center(x, school) + group_mean(x, school) + (1 | school/child)",
        nested3,
        f"1, x - {MEAN}, {MEAN}",
        {S: "1", SC: "1"},
    ),
    Case(
        "nested, unique labels",
        "y ~ x + c + (1 | pupil) + (1 | school)",
        nested3,
        "1, x, c",
        {"pupil": "1", S: "1"},
    ),
    Case(
        "four levels",
        "y ~ x + c + s + d1 + (1 | district/school/class)",
        nested4,
        "1, x, c, s, d1",
        {D: "1", DS: "1", DSC: "1"},
    ),
    Case(
        "four levels, slopes at the ends",
        "y ~ x*s*d1 + (x | district) + (1 | district:school) + (x | district:school:class)",
        nested4,
        "1, x, s, d1, x*s, x*d1, s*d1, x*s*d1",
        {D: "1, x", DS: "1", DSC: "1, x"},
    ),
    Case(
        "crossed intercepts",
        "y ~ x + p_a*p_b + (1 | a) + (1 | b)",
        crossed2,
        "1, x, p_a, p_b, p_a*p_b",
        {"a": "1", "b": "1"},
    ),
    Case(
        "crossed, slopes over rows and columns",
        "y ~ x + t + (x | a) + (t | b)",
        crossed2,
        "1, x, t",
        {"a": "1, x", "b": "1, t"},
    ),
    Case(
        "a column's predictor random over rows",
        "y ~ x + p_b + (p_b | a) + (1 | b)",
        crossed2,
        "1, x, p_b",
        {"a": "1, p_b", "b": "1"},
    ),
    Case(
        "crossed, random cells",
        "y ~ x + (1 | a) + (1 | b) + (1 | a:b)",
        crossed2,
        "1, x",
        {"a": "1", "b": "1", "a:b": "1"},
    ),
    Case(
        "crossed, weights",
        "y ~ x + (x || a) + (1 | b)",
        crossed2,
        "1, x",
        {"a": "1, x", "b": "1"},
        {"a": (1, 1)},
        weights=True,
    ),
    Case(
        "partially crossed",
        "y ~ x + f + (1 | a) + (x | b)",
        partial2,
        "1, x, f = 'lo', f = 'mid'",
        {"a": "1", "b": "1, x"},
    ),
    Case(
        "three crossed",
        "y ~ x + p_a + p_c + (1 | a) + (1 | b) + (x | c)",
        crossed3,
        "1, x, p_a, p_c",
        {"a": "1", "b": "1", "c": "1, x"},
    ),
    Case(
        "crossed over nested",
        "y ~ x + p_a + (x | a) + (1 | c/b)",
        over_nested,
        "1, x, p_a",
        {"a": "1, x", "c": "1", "c:b": "1"},
    ),
    Case(
        "nested in one of two crossed",
        "y ~ x + (1 | c) + (1 | a) + (x | c:b) + (1 | a:b:c)",
        over_nested,
        "1, x",
        {"c": "1", "a": "1", "c:b": "1, x", "a:b:c": "1"},
    ),
]


@pytest.fixture(scope="session", autouse=True)
def _matrices(oracle: Any, part: Any) -> None:
    Case.Oracle, Case.Part = oracle, part


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    return {case.name: case for case in CASES}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """An argument `case` goes through every design, `chain` through nested ones, `crossed` through the others."""
    chosen = {"case": CASES, "chain": [c for c in CASES if c.nested], "crossed": [c for c in CASES if not c.nested]}
    for name, found in chosen.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, found, ids=str, scope="module")
