"""Mahalanobis distances in both forms, by dense matrices and at boundaries; spread of the outcome; rules of thumb."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import chdtri

import mlsql
from mlsql.diagnostics.level2 import distances, outcome_spread
from mlsql.diagnostics.rules import broken_rules
from mlsql.results.effects import group_effects, level2_design

Array = NDArray[np.float64]

HSB = mlsql.example_data("hsb")
TWO_LEVEL = "mathach ~ meanses*group_center(ses) + sector*group_center(ses) + (group_center(ses) | school)"
# both sides are small linear systems of well-scaled numbers
TOLERANCE = 1e-8


def by_eb_residuals(fit: mlsql.Fit) -> tuple[Array, Array]:
    """u*' (T - Var(u* - u))^+ u* of every group, and the ranks."""
    effects = group_effects(fit.estimates)
    distance, rank = [], []
    for j in range(fit.n_groups):
        V, u = fit.T - effects.posterior[:, :, j], effects.u[:, j]
        distance.append(u @ np.linalg.pinv(V, rcond=1e-9, hermitian=True) @ u)
        rank.append(np.linalg.matrix_rank(V, tol=1e-9 * np.abs(V).max(), hermitian=True))
    return np.array(distance), np.array(rank)


@pytest.mark.parametrize(
    "formula",
    [
        TWO_LEVEL,
        "mathach ~ ses + female + (ses | school)",
        "mathach ~ ses + (1 | school)",
        "mathach ~ ses + minority + (ses + minority + female | school)",
        "mathach ~ ses + minority + (ses || school)",
    ],
)
def test_eb_residuals_in_their_own_dispersion(formula: str) -> None:
    fit = mlsql.fit(formula, HSB)
    assert not fit.singular
    found = distances(fit.estimates)
    distance, rank = by_eb_residuals(fit)
    assert found.df.tolist() == rank.tolist()
    assert found.d2 == pytest.approx(distance, rel=TOLERANCE)


def test_least_squares_residuals_in_their_own_dispersion() -> None:
    """Raudenbush & Bryk's form: s2 (Z'Z)^-1 + T - Var(W gamma), where the level-1 columns are all random."""
    fit = mlsql.fit(TWO_LEVEL, HSB)
    effects, W = group_effects(fit.estimates), level2_design(fit.estimates)
    frame = pl.read_parquet(HSB).sort("school")
    found = distances(fit.estimates).d2
    for j, (_, school) in enumerate(frame.group_by("school", maintain_order=True)):
        Z = np.column_stack([np.ones(school.height), school["ses"] - school["ses"].mean()])
        V = fit.sigma2 * np.linalg.inv(Z.T @ Z) + fit.T - W[:, :, j] @ fit.vcov @ W[:, :, j].T
        u = effects.ols_u[:, j]
        assert found[j] == pytest.approx(u @ np.linalg.solve(V, u), rel=TOLERANCE)


def test_expected_order_statistics() -> None:
    fit = mlsql.fit(TWO_LEVEL, HSB)
    found = distances(fit.estimates)
    order = np.argsort(found.d2)
    assert found.rank[order].tolist() == list(range(1, 161))
    assert found.expected[order] == pytest.approx(chdtri(2, 1 - (np.arange(160) + 0.5) / 160), rel=1e-12)
    assert found.p_value == pytest.approx(np.exp(-found.d2 / 2), rel=1e-9)


def test_ranks_are_among_groups_with_the_same_df() -> None:
    fit = mlsql.fit("mathach ~ ses + minority + (ses + minority + female | school)", HSB)
    found = distances(fit.estimates)
    assert set(found.df.tolist()) == {2, 3, 4}
    for df in (2, 3, 4):
        members = found.df == df
        assert sorted(found.rank[members]) == list(range(1, int(members.sum()) + 1))
        assert found.expected[members & (found.rank == 1)] == pytest.approx(chdtri(df, 1 - 0.5 / members.sum()))


def small(seed: int = 3) -> pl.DataFrame:
    """Thirty groups of 1 to 8 rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 30)
    g = np.repeat(np.arange(30), sizes)
    x = rng.normal(size=len(g)) + 3
    u = rng.normal(size=(30, 2))
    y = 50 + x + u[g, 0] + u[g, 1] * x + rng.normal(size=len(g))
    return pl.DataFrame({"g": g, "x": x, "y": y, "w": rng.uniform(0.5, 2, len(g)), "c": rng.normal(size=len(g))})


@pytest.mark.parametrize("weights", [None, "w"])
def test_small_groups_by_dense_matrices(dense: Any, weights: str | None) -> None:
    """One-row groups have one df; weights enter."""
    frame = small()
    fit = mlsql.fit("y ~ x + c + (x | g)", frame, weights=weights)
    N = frame.height
    X = np.column_stack([np.ones(N), frame["x"], frame["c"]])
    w = np.ones(N) if weights is None else frame["w"].to_numpy()
    model = dense(X, X[:, :2], frame["y"].to_numpy(), frame["g"].to_numpy(), fit.T, fit.sigma2, w)
    found = distances(fit.estimates)
    for j in range(30):
        own = model.group_columns(j)
        V, u = fit.T - model.posterior[np.ix_(own, own)], model.u[j]
        # the dense inverse of the whole data's covariance matrix loses digits
        assert found.d2[j] == pytest.approx(u @ np.linalg.pinv(V, rcond=1e-7, hermitian=True) @ u, rel=1e-5)
        assert found.df[j] == min(2, int((frame["g"] == j).sum()))


def test_a_flat_direction_takes_a_degree_of_freedom() -> None:
    fit = mlsql.fit("mathach ~ sector*ses + (ses | school)", HSB)
    assert fit.singular
    found = distances(fit.estimates)
    assert set(found.df.tolist()) == {1}
    # correlation +-1: both residuals say the same, and the intercept's alone gives the distance
    effects = group_effects(fit.estimates)
    alone = effects.u[0] ** 2 / (fit.T[0, 0] - effects.posterior[0, 0])
    assert found.d2 == pytest.approx(alone, rel=1e-6)


def test_no_variance_no_distance() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"g": np.repeat(np.arange(8), 5), "y": rng.normal(size=40)})
    frame = frame.with_columns(y=pl.col("y") - pl.col("y").mean().over("g"))
    fit = mlsql.fit("y ~ 1 + (1 | g)", frame)
    assert fit.T[0, 0] == 0
    found = distances(fit.estimates)
    assert np.isnan(found.d2).all()
    assert np.isnan(found.expected).all()
    assert np.isnan(found.p_value).all()
    assert not found.df.any()
    assert not found.rank.any()


def test_units_and_origins_do_not_matter() -> None:
    frame = small()
    one = distances(mlsql.fit("y ~ x + (x | g)", frame).estimates)
    moved = frame.with_columns(x=1e4 * pl.col("x") - 7e5, y=pl.col("y") / 1e3)
    other = distances(mlsql.fit("y ~ x + (x | g)", moved).estimates)
    assert one.df.tolist() == other.df.tolist()
    # both optima are found to about 1e-6
    assert one.d2 == pytest.approx(other.d2, rel=1e-4)


@pytest.mark.parametrize("weights", [None, "w"])
def test_spread_of_the_outcome(weights: str | None) -> None:
    frame = small().with_columns(y=pl.when(pl.col("g") == 4).then(7.0).otherwise(pl.col("y")))
    found = outcome_spread(*mlsql.fit("y ~ x + (1 | g)", frame, weights=weights).products.complete())
    for j, (_, group) in enumerate(frame.group_by("g", maintain_order=True)):
        y, w = group["y"].to_numpy(), group["w"].to_numpy() if weights else np.ones(group.height)
        if len(y) == 1:
            assert np.isnan(found.sd[j])
            continue
        squares = np.sum(w * (y - np.average(y, weights=w)) ** 2)
        assert found.sd[j] == pytest.approx(np.sqrt(squares / (len(y) - 1)), rel=1e-9, abs=1e-12)
    assert found.sd[4] == 0.0


def topics(fit: mlsql.Fit) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for rule in broken_rules(fit.estimates):
        found.setdefault(rule.topic, []).append(rule.term)
    return found


def test_nothing_to_advise() -> None:
    assert topics(mlsql.fit(TWO_LEVEL, HSB)) == {}


def test_boundary_reliability_and_correlation() -> None:
    found = topics(mlsql.fit("mathach ~ sector*ses + (ses | school)", HSB))
    assert found["reliability"] == ["ses"]
    assert found["correlation of random coefficients"] == ["(Intercept), ses"]
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"g": np.repeat(np.arange(8), 5), "y": rng.normal(size=40)})
    flat = topics(mlsql.fit("y ~ 1 + (1 | g)", frame.with_columns(y=pl.col("y") - pl.col("y").mean().over("g"))))
    assert flat["variance on the boundary"] == ["(Intercept)"]
    assert flat["number of groups"] == ["g"]


@pytest.mark.parametrize(
    ("fixed", "absent"),
    [
        ("group_center(ses)", ["group_center(ses)"]),
        ("group_center(ses) + sector", ["group_center(ses)"]),
        ("ses", ["ses"]),
        ("grand_center(ses)", ["grand_center(ses)"]),
        ("group_center(ses) + group_mean(ses)", []),
        ("ses + group_mean(ses)", []),
        # the school's own figure stands for the mean of its sampled pupils
        ("group_center(ses) + meanses", []),
    ],
)
def test_group_means_absent_from_the_intercept(fixed: str, absent: list[str]) -> None:
    assert topics(mlsql.fit(f"mathach ~ {fixed} + (1 | school)", HSB)).get("group mean absent", []) == absent


def test_the_advised_mean_is_a_term() -> None:
    """Of a number, an expression and a factor's level: adding what is advised silences the rule."""
    data = f"SELECT *, CASE WHEN minority = 1 THEN 'yes' ELSE 'no' END AS m FROM '{HSB}'"
    formula = "mathach ~ group_center(ses) + I(ses * ses) + m"
    fit = mlsql.fit(f"{formula} + (1 | school)", data)
    found = [r for r in broken_rules(fit.estimates) if r.topic == "group mean absent"]
    assert len(found) == 3
    means = [re.sub(r".*(group_mean\(.*\)).*", r"\1", r.advice) for r in found]
    more = mlsql.fit(f"{formula} + {' + '.join(means)} + (1 | school)", data)
    assert "group mean absent" not in topics(more)


def test_a_predictor_balanced_over_groups_needs_no_group_mean() -> None:
    frame = pl.DataFrame({"g": np.repeat(np.arange(40), 4), "t": list(range(4)) * 40})
    y = np.random.default_rng(1).normal(size=160) + np.repeat(np.random.default_rng(2).normal(size=40), 4)
    found = topics(mlsql.fit("y ~ t + (t | g)", frame.with_columns(y=y + frame["t"].to_numpy())))
    assert "group mean absent" not in found
    assert "random slope not centred within groups" not in found


def test_the_share_between_groups_is_the_intraclass_correlation() -> None:
    """ANOVA's estimator, weighted and unweighted by the same formula."""
    fit = mlsql.fit("mathach ~ ses + (ses | school)", HSB)
    (rule,) = [r for r in broken_rules(fit.estimates) if r.topic == "random slope not centred within groups"]
    groups = pl.read_parquet(HSB).group_by("school").agg(n=pl.len(), m=pl.col("ses").mean(), v=pl.col("ses").var())
    n, m, v = (groups[c].to_numpy().astype(float) for c in "nmv")
    N, J = n.sum(), len(n)
    between = np.sum(n * (m - n @ m / N) ** 2) / (J - 1)
    within = np.sum((n - 1) * v) / (N - J)
    size = (N - n @ n / N) / (J - 1)
    assert rule.value == pytest.approx((between - within) / (between + (size - 1) * within), rel=1e-9)


def test_fixed_slopes_and_unequal_equations() -> None:
    found = topics(mlsql.fit("mathach ~ sector*ses + minority + size + (ses | school)", HSB))
    assert found["slopes without a random term"] == ["minority"]
    assert found["predictors of other equations"] == ["ses: size"]
    found = topics(mlsql.fit("mathach ~ ses + sector:ses + (ses | school)", HSB))
    assert found["predictors of other equations"] == ["(Intercept): sector"]


def test_too_much_for_the_data() -> None:
    frame = small().with_columns(a=pl.col("g") % 3, b=pl.col("g") % 4, d=pl.col("g") % 5, e=pl.col("g") * pl.col("g"))
    found = topics(mlsql.fit("y ~ x + a + b + d + e + (1 | g)", frame))
    assert found["groups per level-2 predictor"] == ["(Intercept)"]
    found = topics(mlsql.fit("y ~ x + (x | g)", frame))
    assert found["groups with estimates of their own"] == ["g"]
    found = topics(mlsql.fit("mathach ~ ses + (ses + minority + female + I(ses * minority) || school)", HSB))
    assert len(found["number of random coefficients"]) == 1


def test_collinear_fixed_effects() -> None:
    found = topics(mlsql.fit("y ~ x + I(x * x) + (1 | g)", small()))
    assert "x, I(x * x)" in found["collinear fixed effects"]


def test_the_lean_layout_gives_the_same_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = "mathach ~ ses + female + (ses | school)"
    full = mlsql.fit(formula, HSB)
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    lean = mlsql.fit(formula, f"SELECT * FROM '{HSB}' ORDER BY hash(ses, mathach)")
    assert [full.estimates.design.layout, lean.estimates.design.layout] == ["full", "lean"]
    # sums in another order
    assert distances(lean.estimates).d2 == pytest.approx(distances(full.estimates).d2, rel=1e-5)
    one, other = broken_rules(full.estimates), broken_rules(lean.estimates)
    assert [(r.topic, r.term) for r in one] == [(r.topic, r.term) for r in other]
    values = [[r.value for r in rules if r.value is not None] for rules in (one, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
