"""The minimum over covariance matrices: interior, boundary, false zeros, and what the status says."""

from __future__ import annotations

from itertools import product

import duckdb
import numpy as np
import pytest

import mlsql
from mlsql._typing import Method
from mlsql.likelihood.gaussian import GroupDeviance

Con = duckdb.DuckDBPyConnection


@pytest.fixture(scope="module")
def con() -> Con:
    return duckdb.connect()


def rows(seed: int, slope: str = "0.5 * u", groups: int = 20) -> str:
    """Eight rows a group; u varies between groups, e within; the slope's deviation as given."""
    return f"""
        SELECT g, x, 2 + x + u + ({slope}) * x + e AS y FROM (
            SELECT i // 8 AS g, ((i * 7919 + {seed} * 31) % 1009) / 1009.0 AS x,
                sin((i // 8 + 1) * ({seed} + 1) * 1.37) AS u, cos((i // 8 + 1) * ({seed} + 2) * 2.11) AS v,
                2 * sin(i * (12.9898 + {seed})) AS e
            FROM range({8 * groups}) r(i)
        )
    """


def grid_minimum(fitted: mlsql.Fit) -> float:
    """The lowest deviance over covariance matrices around the fit's own, singular ones included."""
    estimates = fitted.estimates
    deviance = GroupDeviance(estimates.statistics, estimates.design.spec.method)
    Lambda = estimates.L @ estimates.L.T
    scales = np.sqrt(np.diag(Lambda) + 1e-3)
    lowest = np.inf
    for a, b in product((0.0, 0.5, 0.9, 1.0, 1.1, 1.5, 3.0), repeat=2):
        for r in np.linspace(-1.0, 1.0, 9):
            u, v = a * scales[0], b * scales[1]
            trial = np.array([[u * u, r * u * v], [r * u * v, v * v]])
            theta = estimates.covariance.theta_of(trial)
            lowest = min(lowest, deviance.at(estimates.covariance.factor(theta), slopes=False).deviance)
    return lowest


@pytest.mark.parametrize("method", ["ML", "REML"])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_around_is_lower(con: Con, seed: int, method: Method) -> None:
    for slope in ("v", "0.5 * u"):
        fitted = mlsql.fit("y ~ x + (x | g)", rows(seed, slope), con=con, method=method)
        assert fitted.converged
        # the change of a deviance that no reader would see
        assert fitted.deviance <= grid_minimum(fitted) + 1e-6


def test_the_fit_is_the_evaluation_at_its_own_components(con: Con) -> None:
    for seed in (1, 3, 6):
        fitted = mlsql.fit("y ~ x + (x | g)", rows(seed), con=con)
        given = mlsql.evaluate("y ~ x + (x | g)", rows(seed), con=con, T=fitted.T, sigma2=fitted.sigma2)
        # the same function at the same point
        assert given.deviance == pytest.approx(fitted.deviance, rel=1e-10)
        assert given.fixed_effects["estimate"].to_list() == pytest.approx(fitted.fixed_effects["estimate"].to_list())
        assert given.status is mlsql.Status.GIVEN


@pytest.mark.parametrize("seed", range(24))
def test_singular_is_told_exactly_when_it_is_so(con: Con, seed: int) -> None:
    """A correlation of +-1 or a variance of zero, and the flag, come together; both are proper optima."""
    fitted = mlsql.fit("y ~ x + (x | g)", rows(seed), con=con)
    T = fitted.T
    degenerate = bool(np.linalg.eigvalsh(T)[0] <= 1e-9 * max(np.trace(T), 1e-9))
    assert fitted.converged
    assert fitted.singular == degenerate
    assert fitted.status is (mlsql.Status.SINGULAR if degenerate else mlsql.Status.CONVERGED)
    # and no table stumbles over it
    components = fitted.variance_components
    corr = components["sd_or_corr"][2]
    assert corr is None or -1.0 <= corr <= 1.0
    if degenerate:
        assert components["std_error"][:3].null_count() == 3
    assert fitted.confint().height == 6
    assert fitted.group_effects()["estimate"].null_count() == 0
    assert isinstance(fitted.summary(), str)


@pytest.mark.parametrize("seed", range(12))
def test_a_singular_t_that_was_given_is_singular(con: Con, seed: int) -> None:
    v = np.random.default_rng(seed).normal(size=2)
    given = mlsql.evaluate("y ~ x + (x | g)", rows(1), con=con, T=np.outer(v, v), sigma2=1.0)
    assert given.singular
    # what was given comes back, to rounding
    assert given.T.tolist() == [pytest.approx(row, rel=1e-6, abs=1e-7) for row in np.outer(v, v).tolist()]


def test_no_variance_between_groups(con: Con) -> None:
    con.execute("CREATE OR REPLACE TABLE flat AS SELECT i // 6 AS g, i * 37 % 6 + i // 6 % 1 AS y FROM range(90) r(i)")
    fitted = mlsql.fit("y ~ 1 + (1 | g)", "flat", con=con)
    assert fitted.T.tolist() == [[0.0]]
    assert fitted.singular
    assert fitted.converged
    assert any("the variance of (Intercept) is zero" in w for w in fitted.warnings)
    # at zero the model is ordinary regression
    (mean, variance) = con.sql("SELECT avg(y), var_samp(y) FROM flat").fetchall()[0]
    assert fitted.fixed_effects["estimate"][0] == pytest.approx(mean)
    assert fitted.sigma2 == pytest.approx(variance)
    assert fitted.group_effects()["estimate"].abs().max() == 0.0


def test_blocks_stay_apart(con: Con) -> None:
    fitted = mlsql.fit("y ~ x + (x || g)", rows(2, "v"), con=con)
    assert fitted.T[0, 1] == fitted.T[1, 0] == 0.0
    assert fitted.variance_components.select("term1", "term2").rows() == [
        ("(Intercept)", None),
        ("x", None),
        (None, None),
    ]
    full = mlsql.fit("y ~ x + (x | g)", rows(2, "v"), con=con)
    assert full.deviance <= fitted.deviance + 1e-8


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_units_do_not_matter(con: Con, factor: float) -> None:
    """Scaling the outcome scales the components, and the path of the search stays the same."""
    plain = mlsql.fit("y ~ x + (x | g)", rows(3, "v"), con=con, method="ML")
    scaled = mlsql.fit(f"I(y * {factor}) ~ x + (x | g)", rows(3, "v"), con=con, method="ML")
    assert scaled.status is plain.status
    assert scaled.deviance == pytest.approx(plain.deviance + 2 * 160 * np.log(factor), rel=1e-8)
    # components agree to 1e-4, as the project asks
    assert (scaled.T / factor**2).tolist() == [pytest.approx(row, rel=1e-4) for row in plain.T.tolist()]


def test_the_limit_of_evaluations(con: Con) -> None:
    stopped = mlsql.fit("y ~ x + (x | g)", rows(3, "v"), con=con, max_evaluations=3)
    assert stopped.status is mlsql.Status.MAX_EVALUATIONS
    assert not stopped.converged
    assert any("estimates are not final" in w for w in stopped.warnings)
    assert mlsql.fit("y ~ x + (x | g)", rows(3, "v"), con=con).deviance <= stopped.deviance


def test_few_evaluations_are_enough(con: Con) -> None:
    assert mlsql.fit("y ~ x + (x | g)", rows(3, "v"), con=con).n_evaluations <= 20
    hsb = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    assert hsb.n_evaluations <= 12
