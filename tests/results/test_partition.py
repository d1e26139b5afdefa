"""Shares of variance and intra-unit correlations: printed tables recomputed, dense matrices, the delta method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import mlsql
from mlsql.errors import FitError
from mlsql.results import partition
from mlsql.results.partition import LevelMatrix, Parts, Shared
from mlsql.results.relations import Relation, Spread
from mlsql.results.variance import component_covariance

DataFile = Callable[[str], str]

EXACT = 1e-12
"""The same numbers added in another order."""

ONCE = Spread(1, 1.0, 1)


def pair(first: str, second: str, inner: str | None = None, kind: Any = "partially crossed") -> Relation:
    return Relation(first, second, "nested" if inner else kind, inner, 1, 1, 0, ONCE, ONCE, ONCE)


def sets(names: list[str], found: list[Relation], cells: dict[str, tuple[str, str]] | None = None) -> list[list[str]]:
    """Names that two rows can share."""
    keys = [frozenset(name.split(":")) for name in names]
    return [[names[t] for t in s.same] for s in partition.possible_sets(names, found, keys, cells or {})]


# ------------------------------------------------------------- Raudenbush & Bryk (2002), printed digits


def test_table_8_1_shares_of_classes_teachers_and_schools() -> None:
    parts = Parts(("school", "teacher", "Residual"), np.array([[0.01], [3.11], [5.85]]))
    shares = [100 * parts.share([t]).estimate[0] for t in (2, 1, 0)]
    assert [f"{share:.1f}" for share in shares] == ["65.2", "34.7", "0.1"]


def test_table_8_2_share_of_slope_variance_between_schools() -> None:
    for child, school, percent in ((1127.633, 98.546, "8.0"), (48.970, 68.568, "58.3")):
        parts = Parts(("school:child", "school"), np.array([[child], [school]]))
        assert f"{100 * parts.share([1]).estimate[0]:.1f}" == percent


def test_table_8_2_correlations_of_status_and_rate() -> None:
    for T, printed in (
        ([[1127.633, 55.478], [55.478, 48.970]], 0.236),
        ([[98.546, 29.697], [29.697, 68.568]], 0.361),
    ):
        mixed = LevelMatrix("", ("status", "rate"), np.array(T), np.ones((2, 2))).mixed
        assert f"{mixed[0, 1]:.3f}" == f"{printed:.3f}"
        assert mixed[1, 0] == T[0][1]


CLIMATE = {
    # variances and covariances below the diagonal, correlations above it, row by row
    "teacher": (
        [[6052], [3436, 5156], [2324, 1413, 2660], [2964, 2498, 1909, 4351], [4241, 3709, 2347, 6285, 9447]],
        [[0.615, 0.579, 0.578, 0.561], [0.382, 0.527, 0.531], [0.561, 0.468], [0.980]],
    ),
    # the first variance is printed as 2957, with which none of its correlations agrees
    "school": (
        [[2657], [1584, 1694], [1000, 862, 1198], [694, 621, 478, 453], [1077, 915, 607, 579, 916]],
        [[0.746, 0.560, 0.633, 0.690], [0.605, 0.709, 0.734], [0.648, 0.579], [0.898]],
    ),
}


@pytest.mark.parametrize("factor", CLIMATE)
def test_tables_8_5_and_8_6_school_climate(factor: str) -> None:
    lower, correlations = CLIMATE[factor]
    T = np.zeros((5, 5))
    for a, row in enumerate(lower):
        T[a, : a + 1] = T[: a + 1, a] = row
    mixed = LevelMatrix(factor, tuple("C12345"[1:]), T, np.ones((5, 5))).mixed
    np.testing.assert_array_equal(np.tril(mixed), np.tril(T))
    for a, row in enumerate(correlations):
        # covariances are printed without decimals: the third of a correlation moves by one
        np.testing.assert_allclose(mixed[a, a + 1 :], row, atol=1e-3)


def test_table_12_6_intra_unit_correlations_of_neighbourhoods_and_schools() -> None:
    parts = Parts(("neighbourhood", "school", "Residual"), np.array([[0.141], [0.075], [0.799]]))
    same = sets(["neighbourhood", "school"], [pair("neighbourhood", "school")])
    assert same == [["neighbourhood"], ["school"], ["neighbourhood", "school"]]
    found = [parts.share(chosen).estimate[0] for chosen in ([0], [1], [0, 1])]
    assert [f"{r:.3f}" for r in found] == ["0.139", "0.074", "0.213"]


# ----------------------------------------------------------------------------- what two rows can share


def test_nested_factors_bring_theirs_along() -> None:
    names = ["school", "school:child", "district"]
    found = [pair("school", "school:child", "school:child"), pair("school", "district", "school")]
    found.append(pair("school:child", "district", "school:child"))
    assert sets(names, found) == [["district"], ["school", "district"], ["school", "school:child", "district"]]


def test_rows_and_columns_bring_their_cell() -> None:
    names = ["a", "b", "a:b"]
    found = [pair("a", "b"), pair("a", "a:b", "a:b"), pair("b", "a:b", "a:b")]
    assert sets(names, found) == [["a"], ["b"], ["a", "b", "a:b"]]
    # known by the data, not by the keys
    named = ["a", "b", "c"]
    found = [pair("a", "b"), pair("a", "c", "c"), pair("b", "c", "c")]
    assert sets(named, found, {"c": ("a", "b")}) == [["a"], ["b"], ["a", "b", "c"]]


def test_a_cell_of_three_is_implied_by_all_three() -> None:
    names = ["a", "b", "c", "a:b:c"]
    found = [pair(x, y) for x, y in (("a", "b"), ("a", "c"), ("b", "c"))]
    found += [pair(x, "a:b:c", "a:b:c") for x in "abc"]
    assert sets(names, found)[-2:] == [["b", "c"], ["a", "b", "c", "a:b:c"]]


def test_two_names_of_the_same_groups_go_together() -> None:
    assert sets(["a", "b"], [pair("a", "b", kind="same groups")]) == [["a", "b"]]


def test_chains_of_nested_factors() -> None:
    chains = partition.nested_chains
    district = {("class", "school"), ("class", "district"), ("school", "district")}
    assert chains(["district", "school", "class"], set(district)) == [("class", "school", "district")]
    # a factor crossed with them stays outside; cells lie in two factors that are no chain
    assert chains(["person", "school", "class"], set(district)) == [("class", "school")]
    assert chains(["a", "b", "a:b"], {("a:b", "a"), ("a:b", "b")}) == []
    # two kinds of classes in the same schools
    assert chains(["school", "c", "d"], {("c", "school"), ("d", "school")}) == [("c", "school"), ("d", "school")]


# ------------------------------------------------------------------------------------------- estimates


def frame(seed: int = 4) -> pl.DataFrame:
    """60 rows of 6 x 4 incomplete pairs, and a predictor."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 60), rng.integers(0, 4, 60)
    return pl.DataFrame({"a": a, "b": b, "x": rng.normal(size=60).round(1), "y": rng.normal(size=60)})


def test_correlations_are_those_of_the_rows() -> None:
    data = frame()
    Ta, Tb, Tc, s2 = np.array([[1.0, 0.3], [0.3, 0.8]]), np.array([[0.7]]), np.array([[0.4]]), 0.9
    fit = mlsql.evaluate("y ~ x + (x | a) + (1 | b) + (1 | a:b)", data, T={"a": Ta, "b": Tb, "a:b": Tc}, sigma2=s2)
    a, b = data["a"].to_numpy(), data["b"].to_numpy()
    for x in (-0.5, 2.0):
        z = np.array([1.0, x])
        same_a, same_b = a[:, None] == a, b[:, None] == b
        V = z @ Ta @ z * same_a + Tb * same_b + Tc * (same_a & same_b) + s2 * np.eye(60)
        R = V / V[0, 0]
        parts = partition.row_parts(fit.estimates, np.array([[1.0, x, 1.0, 1.0]]))
        assert parts.names == ("a", "b", "a:b", "Residual")
        assert parts.total[0] == pytest.approx(V[0, 0], rel=EXACT)
        expected = {
            (0,): same_a & ~same_b,
            (1,): same_b & ~same_a,
            (0, 1, 2): same_a & same_b & ~np.eye(60, dtype=bool),
        }
        shared = partition.shared_groups(fit.estimates)
        assert [s.same for s in shared] == list(expected)
        assert shared[0] == Shared((0,), (1, 2))
        for s in shared:
            np.testing.assert_allclose(R[expected[s.same]], parts.share(s.same).estimate[0], rtol=EXACT)


def test_errors_of_shares_against_differences(data_file: DataFile) -> None:
    estimates = mlsql.fit("math ~ year + (year | schoolid/childid)", data_file("egsingle")).estimates
    z = np.array([[1.0, 0.7, 1.0, 0.7]])
    parts, sampling = partition.row_parts(estimates, z), component_covariance(estimates)
    start = np.array([*(estimates.T[e] for e in sampling.entries), estimates.sigma2])

    def shares(components: Any) -> Any:
        M = np.zeros((4, 4))
        for value, (a, b) in zip(components[:-1], sampling.entries, strict=True):
            M[a, b] = M[b, a] = value
        v = np.array([z[0, s] @ M[s, s] @ z[0, s] for s in (slice(0, 2), slice(2, 4))] + [components[-1]])
        return np.array([v[0], v[0] + v[1], v[2]]) / v.sum()

    step = 1e-4  # of each component: central differences of smooth functions are good to its square
    steps = step * np.diag(np.abs(start))
    gradient = np.array([(shares(start + h) - shares(start - h)) / (2 * h.max()) for h in steps]).T
    expected = np.sqrt(np.diag(gradient @ sampling.covariance @ gradient.T))
    found = [parts.share(chosen) for chosen in ([0], [0, 1], [2])]
    np.testing.assert_allclose([s.estimate[0] for s in found], shares(start), rtol=1e-9)  # T of user columns
    np.testing.assert_allclose([s.error[0] for s in found], expected, rtol=1e-6)
    low, high = found[0].interval(1.5)
    logit = np.log(found[0].estimate / (1 - found[0].estimate))
    np.testing.assert_allclose(np.log(high / (1 - high)) - logit, 1.5 * found[0].logit_error, rtol=1e-9)
    np.testing.assert_allclose(logit - np.log(low / (1 - low)), 1.5 * found[0].logit_error, rtol=1e-9)


def test_errors_of_slope_shares_against_differences(data_file: DataFile) -> None:
    estimates = mlsql.fit("math ~ year + (year | schoolid/childid)", data_file("egsingle")).estimates
    found = partition.slope_parts(estimates)
    assert [(s.term, s.parts.names) for s in found] == [
        ("(Intercept)", ("schoolid:childid", "schoolid")),
        ("year", ("schoolid:childid", "schoolid")),
    ]
    T, sampling = estimates.T, component_covariance(estimates)
    for s, (school, child) in zip(found, ((0, 2), (1, 3)), strict=True):
        at = [sampling.entries.index((i, i)) for i in (school, child)]
        C, (b, w) = sampling.covariance[np.ix_(at, at)], (T[school, school], T[child, child])
        gradient = np.array([w, -b]) / (b + w) ** 2
        share = s.parts.share([1])
        assert share.estimate[0] == pytest.approx(b / (b + w), rel=EXACT)
        assert share.error[0] == pytest.approx(np.sqrt(gradient @ C @ gradient), rel=1e-9)  # sums of squares


def test_a_factor_that_does_not_vary_has_no_error(data_file: DataFile) -> None:
    data = pl.read_parquet(data_file("dyestuff2")).with_columns(half=pl.int_range(pl.len()) % 2)
    estimates = mlsql.fit("Yield ~ 1 + (1 | Batch) + (1 | half)", data).estimates
    parts = partition.row_parts(estimates, np.ones((1, 2)))
    share = parts.share([0])
    assert share.estimate[0] == 0.0
    assert np.isnan(share.error[0])


def test_two_levels_are_one_factor(data_file: DataFile) -> None:
    estimates = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff")).estimates
    parts = partition.row_parts(estimates, np.ones((1, 1)))
    share = parts.share([0])
    assert parts.names == ("Batch", "Residual")
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff"))
    icc = fit.derived.icc()
    assert share.estimate[0] == pytest.approx(icc["estimate"][0], rel=EXACT)
    assert share.error[0] == pytest.approx(icc["std_error"][0], rel=1e-9)  # another order of operations
    assert partition.shared_groups(estimates) == (Shared((0,), ()),)
    with pytest.raises(FitError, match=r"no coefficient varies over two factors .* the factors are Batch"):
        partition.slope_parts(estimates)


def test_covariances_that_the_formula_leaves_out_are_zero(data_file: DataFile) -> None:
    fit = mlsql.fit("math ~ year + (year || schoolid) + (year | schoolid:childid)", data_file("egsingle"))
    top, low = partition.level_matrices(fit.estimates)
    assert (top.factor, top.terms, low.factor) == ("schoolid", ("(Intercept)", "year"), "schoolid:childid")
    assert top.mixed[0, 1] == top.mixed[1, 0] == 0.0
    assert low.mixed[0, 1] == pytest.approx(low.T[0, 1] / np.sqrt(low.T[0, 0] * low.T[1, 1]), rel=EXACT)
