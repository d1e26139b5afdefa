"""Small random data with everything a design can meet, and designs spelled out as SQL for dense matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]


LEVEL2 = ("w", "v", "s")

MEANS = {
    "m": "avg({}) OVER (PARTITION BY g)",
    "mm": "avg({}) OVER ()",
    "gm": "avg({}) FILTER (first) OVER ()",
}


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


def small_rows(seed: int = 1) -> pl.DataFrame:
    """Fourteen groups of 1 to 8 rows: single rows and rank-deficient groups among them.

    row; keys g, and a with b for the same groups; level 1: x, z, f (text), t (boolean), o (offset), weight; level 2:
    w, v, s (text); y.
    """
    rng = np.random.default_rng(seed)
    sizes = [1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8]
    J, N = len(sizes), sum(sizes)
    j = np.repeat(np.arange(J), sizes)
    u = rng.normal(size=(J, 2)) * [1.5, 0.7]
    w, v = rng.normal(size=J), 3 + rng.integers(0, 4, J)
    x, z = rng.normal(size=N) + w[j], 2 + 0.5 * rng.normal(size=N)
    y = 5 + x + 0.5 * w[j] + u[j, 0] + u[j, 1] * x + rng.normal(size=N)
    return pl.DataFrame(
        {
            "row": np.arange(N),
            "g": 10 + 3 * j,
            "a": np.array(["north", "south"])[j // 8],
            "b": j % 8,
            "x": x,
            "z": z,
            "f": np.array(["lo", "mid", "hi"])[rng.integers(0, 3, N)],
            "t": rng.random(N) < 0.4,
            "o": rng.normal(size=N),
            "weight": rng.integers(1, 5, N) / 2,
            "w": w[j],
            "v": v[j],
            "s": np.array(["p", "q", "r"])[np.arange(J) % 3][j],
            "y": y,
        }
    )


@dataclass(frozen=True)
class Case:
    """A formula and the columns of X and Z that it stands for, as SQL over the rows.

    `m(x)` in the SQL is the group's mean of x, `mm(x)` the mean over rows, `gm(w)` the mean over groups of a level-2
    value, `mx` a column that holds m(x).  `W` gives, per random coefficient, the level-2 parts of the fixed columns in
    its equation.
    """

    name: str
    formula: str
    X: Sequence[str]
    Z: Sequence[str]
    blocks: Sequence[int] = ()
    weights: bool = False
    offset: str = "0"
    level2: bool = False
    groups: str | None = None
    W: Sequence[Sequence[str]] = field(default=())

    def __str__(self) -> str:
        return self.name

    @property
    def T(self) -> Array:
        """A covariance matrix of the blocks' shape, neither small nor near singular."""
        q = len(self.Z)
        T = 0.6 * np.eye(q) + 0.3 + np.diag(np.arange(q) * 0.2)
        mask = np.zeros((q, q))
        start = 0
        for size in self.blocks or (q,):
            mask[start : start + size, start : start + size] = 1
            start += size
        return T * mask

    def columns(self, data: pl.DataFrame, expressions: Sequence[str]) -> Array:
        """SQL columns of the rows, in the order of `row`."""
        con = _connection()
        con.register("d", data.to_arrow())
        # `first` marks one row of each group
        extra = "avg(x) OVER (PARTITION BY g) AS mx, row_number() OVER (PARTITION BY g ORDER BY row) = 1 AS first"
        spelled = [
            re.sub(r"\b(mm|gm|m)\((.*?)\)", lambda found: MEANS[found[1]].format(found[2]), e) for e in expressions
        ]
        listed = ", ".join(f"CAST({e} AS DOUBLE)" for e in spelled)
        found = con.execute(f"SELECT {listed} FROM (SELECT *, {extra} FROM d) ORDER BY row").fetchall()
        return np.array(found, dtype=np.float64)

    def inputs(self, data: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Data and keyword arguments for `mlsql.fit` and `mlsql.evaluate`."""
        options: dict[str, Any] = {"weights": "weight"} if self.weights else {}
        if self.groups is not None:
            options["groups"] = self.groups
        if not self.level2:
            return data, options
        return data.drop(LEVEL2), options | {"level2": data.select("g", *LEVEL2).unique(maintain_order=True)}

    def dense(self, model: Any, data: pl.DataFrame, sigma2: float, T: Array | None = None) -> Any:
        """The dense model of the same rows."""
        N = len(data)
        y = data.sort("row")["y"].to_numpy() - self.columns(data, [self.offset])[:, 0]
        groups = np.unique(data.sort("row")["g"].to_numpy(), return_inverse=True)[1]
        w = data.sort("row")["weight"].to_numpy() if self.weights else np.ones(N)
        X, Z = self.columns(data, self.X), self.columns(data, self.Z)
        return model(X, Z, y, groups, self.T if T is None else T, sigma2, w)


INTERCEPT_W = [["1", "w", "0"]]

CASES = [
    Case("random intercept", "y ~ w + x + (1 | g)", ["1", "w", "x"], ["1"], W=INTERCEPT_W),
    Case("random slope", "y ~ x + (x | g)", ["1", "x"], ["1", "x"], W=[["1", "0"], ["0", "1"]]),
    Case("three random", "y ~ x + z + (x + z | g)", ["1", "x", "z"], ["1", "x", "z"]),
    Case("blocks", "y ~ x + z + (x + z || g)", ["1", "x", "z"], ["1", "x", "z"], (1, 1, 1)),
    Case("two blocks", "y ~ x + z + (x | g) + (0 + z | g)", ["1", "x", "z"], ["1", "x", "z"], (2, 1)),
    Case("no intercept", "y ~ 0 + x + z + (0 + x + z | g)", ["x", "z"], ["x", "z"], W=[["1", "0"], ["0", "1"]]),
    Case("no fixed intercept", "y ~ 0 + x + (x | g)", ["x"], ["1", "x"]),
    Case("no random intercept", "y ~ x + (0 + x | g)", ["1", "x"], ["x"]),
    Case("random slope only", "y ~ w + (x | g)", ["1", "w"], ["1", "x"], W=[["1", "w"], ["0", "0"]]),
    Case(
        "cross-level",
        "y ~ w*x + v + (x | g)",
        ["1", "w", "x", "v", "w*x"],
        ["1", "x"],
        W=[["1", "w", "0", "v", "0"], ["0", "0", "1", "0", "w"]],
    ),
    Case(
        "cross-level, group-centred",
        "y ~ w*group_center(x) + (group_center(x) | g)",
        ["1", "w", "x - m(x)", "w*(x - m(x))"],
        ["1", "x - m(x)"],
        W=[["1", "w", "0", "0"], ["0", "0", "1", "w"]],
    ),
    Case(
        "within and between",
        "y ~ group_center(x) + group_mean(x) + (1 | g)",
        ["1", "x - m(x)", "m(x)"],
        ["1"],
        W=[["1", "0", "m(x)"]],
    ),
    Case(
        "group mean in the slope",
        "y ~ group_mean(x)*group_center(z) + (group_center(z) | g)",
        ["1", "m(x)", "z - m(z)", "m(x)*(z - m(z))"],
        ["1", "z - m(z)"],
    ),
    Case(
        "grand-centred",
        "y ~ grand_center(x)*grand_center(w) + (grand_center(x) | g)",
        ["1", "x - mm(x)", "w - gm(w)", "(x - mm(x))*(w - gm(w))"],
        ["1", "x - mm(x)"],
        W=[["1", "0", "w - gm(w)", "0"], ["0", "1", "0", "w - gm(w)"]],
    ),
    Case(
        "grand-centred group mean",
        "y ~ x + grand_center(group_mean(x)) + (1 | g)",
        ["1", "x", "m(x) - gm(mx)"],
        ["1"],
    ),
    Case(
        "two centred, interacting",
        "y ~ group_center(x)*group_center(z) + (group_center(x) | g)",
        ["1", "x - m(x)", "z - m(z)", "(x - m(x))*(z - m(z))"],
        ["1", "x - m(x)"],
    ),
    Case(
        "random interaction",
        "y ~ group_center(x)*z + (group_center(x):z | g)",
        ["1", "x - m(x)", "z", "(x - m(x))*z"],
        ["1", "(x - m(x))*z"],
    ),
    Case("interaction alone", "y ~ x:z + (1 | g)", ["1", "x*z"], ["1"]),
    Case("both centrings", "y ~ x + (group_center(x) | g)", ["1", "x"], ["1", "x - m(x)"]),
    Case("text factor", "y ~ f + x + (1 | g)", ["1", "f = 'lo'", "f = 'mid'", "x"], ["1"]),
    Case(
        "factor by number",
        "y ~ f*x + (1 | g)",
        ["1", "f = 'lo'", "f = 'mid'", "x", "(f = 'lo')::INT*x", "(f = 'mid')::INT*x"],
        ["1"],
    ),
    Case("factor of level 2", "y ~ s + x + (x | g)", ["1", "s = 'q'", "s = 'r'", "x"], ["1", "x"]),
    Case(
        "reference level",
        "y ~ C(f, ref='mid') + C(v, ref='4') + (1 | g)",
        ["1", "f = 'hi'", "f = 'lo'", "v = 3", "v = 5", "v = 6"],
        ["1"],
    ),
    Case("boolean, random", "y ~ t + (t | g)", ["1", "t"], ["1", "t"]),
    Case("random factor", "y ~ f + (0 + f | g)", ["1", "f = 'lo'", "f = 'mid'"], ["f = 'hi'", "f = 'lo'", "f = 'mid'"]),
    Case("centred indicator", "y ~ group_center(t) + (1 | g)", ["1", "t::INT - m(t::INT)"], ["1"]),
    Case("means of levels", "y ~ 0 + f + (1 | g)", ["f = 'hi'", "f = 'lo'", "f = 'mid'"], ["1"]),
    Case("expressions", "y ~ I(x^2) + ln(z) + (I(x^2) | g)", ["1", "x*x", "ln(z)"], ["1", "x*x"]),
    Case("weights", "y ~ w*x + (x | g)", ["1", "w", "x", "w*x"], ["1", "x"], weights=True),
    Case(
        "weights, centred",
        "y ~ group_center(x) + group_mean(x) + grand_center(z) + (group_center(x) | g)",
        ["1", "x - m(x)", "m(x)", "z - mm(z)"],
        ["1", "x - m(x)"],
        weights=True,
    ),
    Case("offset", "y ~ x + offset(o) + (x | g)", ["1", "x"], ["1", "x"], offset="o"),
    Case("two offsets", "y ~ 0 + x + offset(2*o) + offset(z) + (1 | g)", ["x"], ["1"], offset="2*o + z"),
    Case(
        "level-2 table",
        "y ~ w*x + s + grand_center(v) + (x | g)",
        ["1", "w", "x", "s = 'q'", "s = 'r'", "v - gm(v)", "w*x"],
        ["1", "x"],
        level2=True,
    ),
    Case("composite key", "y ~ w + x + (x | a:b)", ["1", "w", "x"], ["1", "x"]),
    Case(
        "level equations",
        "y = b0 + b1*group_center(x) + r\nb0 = g00 + g01*w + u0\nb1 = g10 + g11*w + u1",
        ["1", "w", "x - m(x)", "w*(x - m(x))"],
        ["1", "x - m(x)"],
        groups="g",
    ),
]


@pytest.fixture(scope="session")
def rows() -> Callable[..., pl.DataFrame]:
    return small_rows


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    return {case.name: case for case in CASES}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `case` runs for every design, one with `spelled` for those that give their W."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str, scope="module")
    if "spelled" in metafunc.fixturenames:
        metafunc.parametrize("spelled", [c for c in CASES if c.W], ids=str, scope="module")
