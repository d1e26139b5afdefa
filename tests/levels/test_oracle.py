"""The n x n matrices that the engine is checked with agree with R's packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPECTED = Path(__file__).parent.parent / "reference" / "expected" / "levels"

DIGITS = 1e-9
"""The reference values are printed with twelve digits; a quantity made of several keeps nine or ten."""


@cache
def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text())
    return found


def numbers(value: Any) -> Array:
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


MODELS = {
    # name: columns of X, and of Z by factor; R's order of factors
    "pastes_nested_reml": (["1"], {"batch:cask": ["1"], "batch": ["1"]}),
    "pastes_nested_ml": (["1"], {"batch:cask": ["1"], "batch": ["1"]}),
    "penicillin_crossed_reml": (["1"], {"plate": ["1"], "sample": ["1"]}),
    "penicillin_crossed_ml": (["1"], {"plate": ["1"], "sample": ["1"]}),
    "egsingle_seventh_reml": (
        ["1", "year", "lowinc", "male", "year*lowinc"],
        {"schoolid:childid": ["1", "year"], "schoolid": ["1", "year"]},
    ),
    "egsingle_seventh_weighted_reml": (
        ["1", "year", "lowinc", "year*lowinc"],
        {"schoolid:childid": ["1"], "schoolid": ["1", "year"]},
    ),
}


class Answer:
    """R's values, and the oracle of the same rows at R's theta (`given`) and at the optimum (`exact`)."""

    def __init__(self, name: str, oracle: Any, part: Any, data_file: Callable[[str], str]) -> None:
        self.expected = read(name)
        frame = pl.read_parquet(data_file(self.expected["data"]))
        if "rows" in self.expected:
            frame = frame.filter(pl.sql_expr(self.expected["rows"]))
        if "female" in frame.columns:
            frame = frame.with_columns(male=(pl.col("female") == "Male").cast(pl.Int64))
        self.frame = frame
        X, Z = MODELS[name]
        self.method = self.expected["method"]
        parts, self.keys = [], {}
        for factor, columns in Z.items():
            names = factor.split(":")
            keys = self.keys[factor] = frame.select(names).unique().sort(names).with_row_index("code")
            codes = frame.join(keys, on=names, how="left", maintain_order="left")["code"].to_numpy()
            parts.append(part(factor, np.eye(len(keys))[codes], self.values(columns), (len(columns),)))
        weights = self.expected.get("weights")
        w = self.values([weights])[:, 0] if weights else np.ones(len(frame))
        y = frame[self.expected["formula"].split("~")[0].strip()].to_numpy() * 1.0
        model = oracle(self.values(X), y, tuple(parts), w, {}, 1.0)
        # R lists the factors in the order of theta, which is that of MODELS
        self.exact = model.moved(numbers(self.expected["exact"]["theta"]))
        varcomp = self.expected["varcomp"]
        values = {
            (frozenset(str(g).split(":")), a, b): v
            for g, a, b, v in zip(*(varcomp[k] for k in ("group", "term1", "term2", "vcov")), strict=True)
        }
        theta = []
        for p, columns in zip(parts, Z.values(), strict=True):
            terms = ["(Intercept)" if c == "1" else c for c in columns]
            for a, b, _ in p.directions:
                own = (frozenset(p.name.split(":")), terms[b], None if a == b else terms[a])
                theta.append(values[own])
        self.given = model.moved(np.array([*theta, self.expected["sigma2"]]))

    def values(self, columns: list[str]) -> Array:
        found = self.frame.select([pl.sql_expr(c).cast(pl.Float64).alias(str(i)) for i, c in enumerate(columns)])
        if found.height == 1:
            found = pl.concat([found] * len(self.frame))
        return np.column_stack([np.broadcast_to(found[c].to_numpy(), len(self.frame)) for c in found.columns])

    def cluster(self) -> NDArray[np.int64]:
        top = self.exact.part(self.expected["clubsandwich"]["cluster"])
        return np.asarray(top.coded())


@pytest.fixture(scope="module")
def answer(oracle: Any, part: Any, data_file: Callable[[str], str]) -> Callable[[str], Answer]:
    found: dict[str, Answer] = {}

    def find(name: str) -> Answer:
        if name not in found:
            found[name] = Answer(name, oracle, part, data_file)
        return found[name]

    return find


def close(ours: Any, theirs: Any, rtol: float = DIGITS) -> None:
    value = np.asarray(theirs, dtype=np.float64)
    np.testing.assert_allclose(ours, value, rtol=rtol, atol=rtol * np.abs(value).max())


@pytest.mark.parametrize("name", MODELS)
def test_likelihood_and_fixed_effects(answer: Callable[[str], Answer], name: str) -> None:
    found = answer(name)
    exact, given = found.expected["exact"], found.given
    close(found.exact.deviance(found.method), exact["deviance"])
    close(given.deviance(found.method), found.expected["deviance"])
    close(found.exact.beta, numbers(exact["estimate"]))
    close(given.beta, numbers(found.expected["fixed"]["estimate"]))
    close(found.exact.vcov, np.atleast_2d(exact["vcov"]))
    close(given.vcov, np.atleast_2d(found.expected["vcov_fixed"]))
    # the optimum: a step of the score and its curvature is below the digits of theta
    score, curvature = found.exact.score(found.method), found.exact.observed(found.method)
    np.testing.assert_allclose(np.linalg.solve(curvature, score) / found.exact.parameters(), 0.0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_group_effects_and_conditional_variances(answer: Callable[[str], Answer], name: str) -> None:
    found = answer(name)
    for factor, effects in found.expected["ranef"].items():
        names = factor.split(":")
        part = next(p for p in found.given.parts if set(p.name.split(":")) == set(names))
        keys = found.keys[part.name].with_columns(level=pl.concat_str([pl.col(n) for n in names], separator=":"))
        code = dict(zip(keys["level"], keys["code"], strict=True))
        at = [code[str(level)] for level in effects["level"]]
        close(found.given.u(part.name)[at], effects["value"])
        close(found.given.conditional(part.name)[at], effects["cond_var"])


@pytest.mark.parametrize("name", MODELS)
def test_degrees_of_freedom(answer: Callable[[str], Answer], name: str) -> None:
    found = answer(name)
    exact, p = found.expected["exact"], found.exact.X.shape[1]
    close(found.exact.satterthwaite_df(found.method, np.eye(p)), numbers(exact["satterthwaite_df"]), 1e-8)
    if found.method == "REML":
        close(found.exact.kenward_roger, np.atleast_2d(exact["kenward_roger_vcov"]))
        df = [found.exact.kenward_roger_df(row) for row in np.eye(p)]
        # a difference of two moments of F loses digits
        close(df, numbers(exact["kenward_roger_df"]), 1e-7)


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR2"])
@pytest.mark.parametrize("name", [n for n in MODELS if "clubsandwich" in read(n)])
def test_robust_matrices(answer: Callable[[str], Answer], name: str, kind: str) -> None:
    found = answer(name)
    close(found.exact.robust(kind, found.cluster()), np.atleast_2d(found.expected["exact"][kind]))
    df = [found.exact.robust_df(kind, found.cluster(), row) for row in np.eye(found.exact.X.shape[1])]
    close(df, numbers(found.expected["exact"][f"{kind}_df"]), 1e-8)
    # the package, at R's optimum
    close(
        found.given.robust(kind, found.cluster()), np.atleast_2d(found.expected["clubsandwich"][f"vcov_{kind}"]), 1e-8
    )


def test_the_search_finds_what_r_finds(answer: Callable[[str], Answer]) -> None:
    for name in ("pastes_nested_ml", "penicillin_crossed_reml"):
        found = answer(name)
        best = found.given.optimum(found.method)
        close(best.deviance(found.method), found.expected["exact"]["deviance"], 1e-10)
        # first order in the error of the search
        close(best.parameters(), found.exact.parameters(), 1e-5)
