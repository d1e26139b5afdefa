"""Profile-likelihood limits: R's, those found with dense matrices, at the boundary, and on other scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import mlsql
from mlsql.inference.profile_components import profile_components
from mlsql.inference.roots import upper_end

Array = NDArray[np.float64]
Limits = dict[tuple[str, str], tuple[float, float]]
"""(effect, term) to both limits: standard deviations and correlations, as R has them."""

EXPECTED = Path(__file__).parent.parent / "reference" / "expected"
CUT = 3.841458820694124
"""The 95 % quantile of chi-square with 1 df."""

EXACT = 1e-6
"""Of an interval's width: ends are where the root of the rise is within 1e-6 of its quantile, 5e-7 of the width."""

INTERPOLATED = 1e-3
"""Of an interval's width: lme4 interpolates its profiles by splines."""

RISE = 2e-5
"""Of the deviance at a limit, 3.84 above the minimum: twice its root's 2, times 1e-6 of that, is 8e-6; the rest is left
to the searches that find it again."""


@pytest.fixture(scope="session")
def fitted(data_file: Callable[[str], str]) -> Callable[..., mlsql.Fit]:
    found: dict[tuple[str, str, str], mlsql.Fit] = {}

    def fit(formula: str, data: str, method: str = "ML") -> mlsql.Fit:
        key = (formula, data, method)
        if key not in found:
            found[key] = mlsql.fit(formula, data_file(data), method=method)  # type: ignore[arg-type]
        return found[key]

    return fit


@pytest.fixture(scope="session")
def profile(fitted: Callable[..., mlsql.Fit]) -> Callable[..., pl.DataFrame]:
    found: dict[tuple[str, str, str], pl.DataFrame] = {}

    def table(formula: str, data: str, method: str = "ML") -> pl.DataFrame:
        key = (formula, data, method)
        if key not in found:
            found[key] = fitted(formula, data, method).confint(method="profile")
        return found[key]

    return table


def limits(table: pl.DataFrame) -> Limits:
    found: Limits = {}
    for row in table.iter_rows(named=True):
        power = 0.5 if row["effect"] == "variance" else 1.0
        ends = [np.nan if row[c] is None else np.sign(row[c]) * abs(row[c]) ** power for c in ("conf_low", "conf_high")]
        found[row["effect"], row["term"]] = (float(ends[0]), float(ends[1]))
    return found


def close(ours: tuple[float, float], theirs: tuple[float, float], share: float) -> bool:
    """Whether two intervals agree to a share of their width."""
    return bool(np.all(np.abs(np.subtract(ours, theirs)) <= share * (theirs[1] - theirs[0])))


# ---------------------------------------------------------------------------------------------- R

TERMS = {
    "sleepstudy_ml": {
        "sd_(Intercept)": ("variance", "Subject: (Intercept)"),
        "sd_Days": ("variance", "Subject: Days"),
        "cor_Days.(Intercept)": ("correlation", "Subject: (Intercept): Days"),
    },
    "sleepstudy_diag_ml": {
        "sd_(Intercept)": ("variance", "Subject: (Intercept)"),
        "sd_Days": ("variance", "Subject: Days"),
    },
    "hsb_means_ml": {"sd_(Intercept)": ("variance", "school: (Intercept)")},
    "dyestuff2_ml": {"sd_(Intercept)": ("variance", "Batch: (Intercept)")},
}


@pytest.mark.parametrize("name", TERMS)
def test_exact_limits(profile: Callable[..., pl.DataFrame], name: str) -> None:
    """Those of a separate implementation of the same definition, by general-purpose optimisers."""
    expected = json.loads((EXPECTED / "inference" / f"inference_{name}.json").read_text())
    ours, theirs = limits(profile(expected["formula"], expected["data"])), expected["exact_profile"]
    assert len(ours) == len(theirs["parm"])
    for parameter, low, high in zip(theirs["parm"], theirs["lower"], theirs["upper"], strict=True):
        key = TERMS[name].get(parameter, ("variance", "Residual") if parameter == "sigma" else ("fixed", parameter))
        assert close(ours[key], (low, high), EXACT), (key, ours[key], low, high)


@pytest.mark.parametrize("name", ["hsb_slopes_ml", "hsb_anova_ml", "sleepstudy_ml", "dyestuff_ml"])
def test_limits_of_lme4(profile: Callable[..., pl.DataFrame], name: str) -> None:
    expected = json.loads((EXPECTED / f"{name}.json").read_text())
    table = profile(expected["formula"], expected["data"])
    ours, theirs = limits(table), expected["profile_ci"]
    # lme4's order: the first variance, correlation, second variance, sigma, fixed effects
    random = [k for k in ours if k[0] != "fixed" and k[1] != "Residual"]
    if len(random) == 3:
        random = [random[0], random[2], random[1]]
    order = [*random, ("variance", "Residual"), *(k for k in ours if k[0] == "fixed")]
    for key, low, high in zip(order, theirs["lower"], theirs["upper"], strict=True):
        assert close(ours[key], (low, high), INTERPOLATED), (key, ours[key], low, high)


# ---------------------------------------------------------------------------------------------- dense matrices


class ByGroups:
    """The deviance of data with group-wise covariance matrices, minimised over everything but what is held."""

    def __init__(self, X: Array, Z: Array, y: Array, groups: NDArray[np.int64], method: str) -> None:
        self.A, self.Z, self.method = np.column_stack([X, y]), Z, method
        self.rows = [np.flatnonzero(groups == j) for j in range(groups.max() + 1)]

    def deviance(self, T: Array, s2: float, held: tuple[int, float] | None = None) -> float:
        """With beta at its best, one of its entries held if wanted."""
        A, p = self.A, self.A.shape[1] - 1
        if held is not None:
            y = A[:, p] - A[:, held[0]] * held[1]
            A, p = np.column_stack([np.delete(A[:, :p], held[0], axis=1), y]), p - 1
        S, total = np.zeros((p + 1, p + 1)), len(A) * np.log(2 * np.pi)
        for i in self.rows:
            L = np.linalg.cholesky(self.Z[i] @ T @ self.Z[i].T + s2 * np.eye(len(i)))
            half = np.linalg.solve(L, A[i])
            S += half.T @ half
            total += 2 * np.log(np.diag(L)).sum()
        total += S[p, p] - S[:p, p] @ np.linalg.solve(S[:p, :p], S[:p, p])
        if self.method == "REML":
            total += np.linalg.slogdet(S[:p, :p])[1] - p * np.log(2 * np.pi)
        return float(total)

    def lowest(self, build: Callable[[Array], tuple[Array, float]], starts: list[list[float]], **held: Any) -> float:
        """The least deviance over free parameters that `build` turns into T and sigma2, from several starts."""
        searches = (
            minimize(lambda x: self.deviance(*build(x), **held), start, method="BFGS", options={"gtol": 1e-6})
            for start in starts
        )
        return float(min(found.fun for found in searches))


def test_limits_of_dyestuff2(profile: Callable[..., pl.DataFrame], data_file: Callable[[str], str]) -> None:
    """The between-batch variance is 0 at the estimates, but not where the mean or sigma are held far from theirs.

    Holding it at 0 would give 4.31535 .. 7.01585 for the mean, which is too narrow.
    """
    data = pl.read_parquet(data_file("dyestuff2"))
    groups = np.unique(data["Batch"].cast(pl.String).to_numpy(), return_inverse=True)[1]
    one, y = np.ones((len(data), 1)), data["Yield"].to_numpy()
    dense = ByGroups(one, one, y, groups, "ML")
    least = dense.deviance(np.zeros((1, 1)), float(y.var()))
    ours = limits(profile("Yield ~ 1 + (1 | Batch)", "dyestuff2"))
    starts = [[1.0, 2.0], [0.01, 2.5]]
    for mean in ours["fixed", "(Intercept)"]:
        rise = dense.lowest(lambda x: (np.array([[x[0] ** 2]]), np.exp(x[1])), starts, held=(0, mean)) - least
        assert rise == pytest.approx(CUT, abs=RISE)
    for mean in (4.31534537253, 7.01585462747):
        assert dense.deviance(np.zeros((1, 1)), float(np.mean((y - mean) ** 2)), (0, mean)) - least == pytest.approx(
            CUT, abs=RISE
        )
        rise = dense.lowest(lambda x: (np.array([[x[0] ** 2]]), np.exp(x[1])), starts, held=(0, mean)) - least
        assert rise < CUT - 0.005
    for sigma in ours["variance", "Residual"]:
        rise = dense.lowest(lambda x, s2=sigma**2: (np.array([[x[0] ** 2]]), s2), [[1.0], [0.01]]) - least
        assert rise == pytest.approx(CUT, abs=RISE)
    low, high = ours["variance", "Batch: (Intercept)"]
    assert low == 0.0
    rise = dense.lowest(lambda x: (np.array([[high**2]]), np.exp(x[0])), [[2.5]]) - least
    assert rise == pytest.approx(CUT, abs=RISE)


def held_component(effect: str, term: str, value: float) -> tuple[Callable[[Array], tuple[Array, float]], list[Any]]:
    """T (2 x 2) and sigma2 as functions of what stays free when a component is held; starts of the search."""

    def variance(x: Array, first: bool) -> tuple[Array, float]:
        # the coefficient in question first: its standard deviation is an entry of the triangular root
        C = np.array([[value, 0.0], [x[0], x[1]]])
        T = C @ C.T
        return (T if first else T[::-1, ::-1]), float(np.exp(x[2]))

    def correlation(x: Array) -> tuple[Array, float]:
        a, b = np.exp(x[:2])
        return np.array([[a * a, value * a * b], [value * a * b, b * b]]), float(np.exp(x[2]))

    def residual(x: Array) -> tuple[Array, float]:
        C = np.array([[x[0], 0.0], [x[1], x[2]]])
        return C @ C.T, value**2

    if term == "Residual":
        return residual, [[1.8, -0.5, 0.8]]
    if effect == "correlation":
        return correlation, [[0.5, -0.1, 0.4]]
    first = term.endswith("(Intercept)")
    return (lambda x: variance(x, first)), [[-0.3, 0.8, 0.4]]


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_deviance_at_the_limits(rows: Callable[..., pl.DataFrame], method: Any) -> None:
    """Dense matrices, everything else minimised: 3.84 above the minimum, in unequal groups, some of deficient rank."""
    data = rows()
    fit = mlsql.fit("y ~ w*x + (x | g)", data, method=method)
    assert not fit.singular
    one, x, w = np.ones(len(data)), data["x"].to_numpy(), data["w"].to_numpy()
    X, Z = np.column_stack([one, w, x, w * x]), np.column_stack([one, x])
    groups = np.unique(data["g"].to_numpy(), return_inverse=True)[1]
    dense = ByGroups(X, Z, data["y"].to_numpy(), groups, method)
    assert dense.deviance(fit.T, fit.sigma2) == pytest.approx(fit.deviance, abs=1e-8)
    found = limits(fit.confint(method="profile"))
    for (effect, term), ends in found.items():
        if effect == "fixed":
            continue
        for end in ends:
            build, starts = held_component(effect, term, end)
            assert dense.lowest(build, starts) - fit.deviance == pytest.approx(CUT, abs=RISE), (effect, term)
    ml = ByGroups(X, Z, data["y"].to_numpy(), groups, "ML")

    def free(x: Array) -> tuple[Array, float]:
        C = np.array([[x[0], 0.0], [x[1], x[2]]])
        return C @ C.T, float(np.exp(x[3]))

    best = ml.lowest(free, [[1.8, -0.5, 0.8, 0.4]])
    # a slope and the cross-level interaction
    for position, term in ((2, "x"), (3, "w:x")):
        for end in found["fixed", term]:
            rise = ml.lowest(free, [[1.8, -0.5, 0.8, 0.4]], held=(position, end)) - best
            assert rise == pytest.approx(CUT, abs=RISE), term


# ---------------------------------------------------------------------------------------------- boundary


def correlated(seed: int, slope: float) -> pl.DataFrame:
    """15 small groups whose slopes are proportional to their intercepts."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(15), rng.integers(3, 9, 15))
    x = rng.normal(size=len(g)) + 1
    u = rng.normal(size=(15, 2))[:, 0]
    return pl.DataFrame({"g": g, "x": x, "y": 1 + x + u[g] * (1 + slope * x) + rng.normal(size=len(g))})


def test_a_correlation_at_the_boundary() -> None:
    fit = mlsql.fit("y ~ x + (x | g)", correlated(2, 0.6))
    row = fit.confint(method="profile").filter(pl.col("effect") == "correlation").row(0, named=True)
    assert fit.singular
    # 1 up to the rounding of a product of roots
    assert row["estimate"] == pytest.approx(1.0, abs=1e-12)
    assert row["conf_high"] == 1.0
    assert 0.2 < row["conf_low"] < 0.9


def test_a_correlation_that_the_data_hardly_know() -> None:
    """Without random slopes the deviance rises by 3.75 only: then every correlation is within the interval."""
    data = correlated(8, 0.6)
    fit = mlsql.fit("y ~ x + (x | g)", data)
    assert mlsql.fit("y ~ x + (1 | g)", data).deviance - fit.deviance < CUT
    table = fit.confint(method="profile")
    assert table.filter(pl.col("term") == "g: x")["conf_low"].to_list() == [0.0]
    row = table.filter(pl.col("effect") == "correlation").row(0, named=True)
    assert (row["conf_low"], row["conf_high"]) == (-1.0, 1.0)


def test_all_variances_zero() -> None:
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(15), rng.integers(3, 9, 15))
    x = rng.normal(size=len(g)) + 1
    fit = mlsql.fit("y ~ x + (x | g)", pl.DataFrame({"g": g, "x": x, "y": 1 + x + rng.normal(size=len(g))}))
    assert not fit.T.any()
    table = fit.confint(method="profile").filter(pl.col("effect") != "fixed")
    variances = table.filter(pl.col("term").str.starts_with("g: ") & (pl.col("effect") == "variance"))
    assert variances["conf_low"].to_list() == [0.0, 0.0]
    assert (variances["conf_high"] > 0.1).all()
    # a correlation of coefficients that do not vary is not defined
    assert table.filter(pl.col("effect") == "correlation").select("estimate", "conf_low", "conf_high").row(0) == (
        None,
        None,
        None,
    )
    low, high = table.filter(pl.col("term") == "Residual").select("conf_low", "conf_high").row(0)
    assert low < fit.sigma2 < high


def test_a_limit_within_the_range_is_where_the_root_of_the_rise_is_z() -> None:
    """`upper_end` on a parabola, on one that is cut by the range, and on a rise that never gets there."""
    z = float(np.sqrt(CUT))
    assert upper_end(lambda v: (v - 3.0) ** 2 / 4.0, 3.0, 0.1, np.inf, z) == pytest.approx(3 + 2 * z, rel=1e-6)
    assert upper_end(lambda v: (v - 3.0) ** 2 / 4.0, 3.0, -50.0, -np.inf, z) == pytest.approx(3 - 2 * z, rel=1e-6)
    assert upper_end(lambda v: (v - 3.0) ** 2 / 4.0, 3.0, -50.0, 1.0, z) == 1.0
    assert upper_end(lambda v: (v - 3.0) ** 2 / 4.0, 3.0, -0.1, -4.0, z) == pytest.approx(3 - 2 * z, rel=1e-6)
    assert np.isnan(upper_end(lambda v: 1.0 - 1.0 / (1.0 + v * v), 0.0, 1.0, np.inf, z))


# ---------------------------------------------------------------------------------------------- the table


SLEEP = ("Reaction ~ Days + (Days | Subject)", "sleepstudy")


def test_reml_profiles_its_components_and_the_full_likelihood_of_its_fixed_effects(
    profile: Callable[..., pl.DataFrame], fitted: Callable[..., mlsql.Fit]
) -> None:
    ml, reml = profile(*SLEEP), profile(*SLEEP, "REML")
    assert ml["likelihood"].unique().to_list() == ["ML"]
    assert reml["likelihood"].to_list() == ["ML", "ML", *["REML"] * 4]
    for key in (("fixed", "(Intercept)"), ("fixed", "Days")):
        assert close(limits(reml)[key], limits(ml)[key], EXACT)
    # the estimate that the limits belong to
    np.testing.assert_allclose(reml["estimate"][:2], ml["estimate"][:2], rtol=1e-6)
    fit = fitted(*SLEEP, "REML")
    assert reml["estimate"][2:].to_list() == pytest.approx(
        [fit.T[0, 0], fit.T[1, 1], fit.T[0, 1] / np.sqrt(fit.T[0, 0] * fit.T[1, 1]), fit.sigma2], rel=1e-12
    )
    # restricted likelihood: larger variances
    for key in (("variance", "Subject: (Intercept)"), ("variance", "Subject: Days")):
        assert limits(reml)[key][0] > limits(ml)[key][0]
        assert limits(reml)[key][1] > limits(ml)[key][1]


def test_columns_and_order(profile: Callable[..., pl.DataFrame]) -> None:
    table = profile(*SLEEP)
    assert table.columns == ["effect", "term", "estimate", "conf_low", "conf_high", "likelihood"]
    assert table["effect"].to_list() == ["fixed", "fixed", "variance", "variance", "correlation", "variance"]
    assert table["term"].to_list()[2:] == [
        "Subject: (Intercept)",
        "Subject: Days",
        "Subject: (Intercept): Days",
        "Residual",
    ]
    assert (table["conf_low"] < table["estimate"]).all()
    assert (table["estimate"] < table["conf_high"]).all()


def test_blocks_have_no_correlation_and_levels_are_nested(
    profile: Callable[..., pl.DataFrame], fitted: Callable[..., mlsql.Fit]
) -> None:
    model = ("Reaction ~ Days + (Days || Subject)", "sleepstudy")
    wide, narrow = profile(*model), fitted(*model).confint(0.5, "profile")
    assert "correlation" not in wide["effect"].to_list()
    assert (wide["conf_low"] < narrow["conf_low"]).all()
    assert (narrow["conf_high"] < wide["conf_high"]).all()


def test_other_units_and_origins(rows: Callable[..., pl.DataFrame]) -> None:
    """x -> 40 + x / 7 and y -> 1000 - 5 y: limits of what does not depend on the origins change with the units."""
    data = rows()
    formula = "y ~ w + x + (x | g)"
    plain = mlsql.fit(formula, data).confint(method="profile")
    moved = mlsql.fit(formula, data.with_columns(pl.col("x") / 7 + 40, pl.col("y") * -5 + 1000))
    ours, theirs = limits(moved.confint(method="profile")), limits(plain)
    for key, unit in (
        (("fixed", "w"), -5.0),
        (("fixed", "x"), -35.0),
        (("variance", "g: x"), 35.0),
        (("variance", "Residual"), 5.0),
    ):
        low, high = sorted(unit * end for end in theirs[key])
        assert close(ours[key], (low, high), 2 * EXACT), key


def test_units_leave_correlations_alone(rows: Callable[..., pl.DataFrame]) -> None:
    data = rows()
    tables = []
    for x, y in ((1.0, 1.0), (1 / 7, 5.0)):
        fit = mlsql.fit("y ~ w + x + (x | g)", data.with_columns(pl.col("x") * x, pl.col("y") * y))
        found = profile_components(fit.estimates)
        assert [(c.component.a, c.component.b) for c in found] == [(0, 0), (1, 1), (1, 0), (None, None)]
        tables.append([(c.low, c.high) for c in found])
    for ours, theirs, unit in zip(tables[1], tables[0], (5.0, 35.0, 1.0, 5.0), strict=True):
        assert close(ours, (unit * theirs[0], unit * theirs[1]), 2 * EXACT)
