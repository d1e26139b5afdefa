"""Formula functions: links and p values against SciPy, effect sizes against simulations, shrinkage against fits."""

from __future__ import annotations

import math
from collections.abc import Callable

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

import mlsql

Array = NDArray[np.float64]

# series, continued fractions and lgamma lose some digits of sixteen; what is left is asked for
P_VALUE = 1e-10
MANY_DF = 1e-8  # lgamma of half a million has an absolute error of 1e-9, which is the relative one of the p value
CLOSED = 1e-13  # a few operations


def asked(con: duckdb.DuckDBPyConnection, expression: str, columns: dict[str, Array]) -> Array:
    """The expression for every combination of the columns' values, last column fastest, and the combinations."""
    grid = np.meshgrid(*columns.values(), indexing="ij")
    rows = np.column_stack([g.ravel() for g in grid])
    names = ", ".join(columns)
    con.execute(f"CREATE OR REPLACE TEMP TABLE given({', '.join(f'{c} DOUBLE' for c in columns)}, line INTEGER)")
    con.register("values_given", {f"c{i}": rows[:, i] for i in range(rows.shape[1])} | {"line": np.arange(len(rows))})
    con.execute("INSERT INTO given FROM values_given")
    con.unregister("values_given")
    answer = con.execute(f"SELECT {names}, {expression} FROM given ORDER BY line").fetchall()
    return np.array(answer, dtype=np.float64).T


def test_chi_square_tail(con: duckdb.DuckDBPyConnection) -> None:
    df = np.array([0.5, 1, 2, 3, 4, 5, 7, 10, 30, 59, 100, 159, 501, 2000, 10_000.0])
    share = np.array([1e-8, 0.001, 0.1, 0.3, 0.8, 0.95, 0.999, 1, 1.001, 1.02, 1.1, 1.5, 3, 8, 25])
    df, share, p = asked(con, "ml_chi_square_p(share * (df + 2), df)", {"df": df, "share": share})
    expected = stats.chi2.sf(share * (df + 2), df)
    # below 1e-290 doubles lose digits of their own
    np.testing.assert_allclose(p, expected, rtol=P_VALUE, atol=1e-290)


def test_chi_square_edges(con: duckdb.DuckDBPyConnection) -> None:
    cases = {
        "0, 3": 1.0,
        "-0.001, 3": 1.0,
        "'inf'::DOUBLE, 3": 0.0,
        "5, 0": 0.0,
        "0, 0": 1.0,
        "5, -1": None,
        "-1, -1": None,
        "1e6, 2": 0.0,
    }
    for arguments, expected in cases.items():
        assert con.execute(f"SELECT ml_chi_square_p({arguments})").fetchall() == [(expected,)], arguments


@pytest.mark.parametrize(
    ("df2", "tolerance"),
    [([1, 2, 3, 7, 30, 159, 1000, 10_000], P_VALUE), ([100_000, 1_000_000], MANY_DF)],
    ids=["up to 10,000", "a million"],
)
def test_f_tail(con: duckdb.DuckDBPyConnection, df2: list[int], tolerance: float) -> None:
    f = np.array([1e-6, 0.01, 0.3, 0.9, 1.0, 1.1, 2, 4, 12, 80])
    df1 = np.array([0.5, 1, 2, 3, 12, 59, 158])
    df1, below, f, p = asked(con, "ml_f_p(f, a, b)", {"a": df1, "b": np.array(df2, dtype=np.float64), "f": f})
    np.testing.assert_allclose(p, stats.f.sf(f, df1, below), rtol=tolerance, atol=1e-290)


def test_t_is_two_sided(con: duckdb.DuckDBPyConnection) -> None:
    t, df = np.array([-8.0, -1.96, -0.01, 0.0, 0.3, 2, 5, 40]), np.array([1, 2.5, 30, 157, 7023.0])
    t, df, p = asked(con, "ml_t_p(t, df)", {"t": t, "df": df})
    np.testing.assert_allclose(p, 2 * stats.t.sf(np.abs(t), df), rtol=P_VALUE, atol=1e-290)


@pytest.mark.parametrize("call", ["ml_f_p(2, 0, 5)", "ml_f_p(2, 3, -1)", "ml_t_p(2, 0)", "ml_f_p(-1, 0, 5)"])
def test_no_degrees_of_freedom_give_no_p_value(con: duckdb.DuckDBPyConnection, call: str) -> None:
    assert con.execute(f"SELECT {call}").fetchall() == [(None,)]


def test_deviance_tests_are_those_of_compare(con: duckdb.DuckDBPyConnection) -> None:
    hsb = mlsql.example_data("hsb")
    smaller = mlsql.fit("mathach ~ ses + (1 | school)", hsb)
    larger = mlsql.fit("mathach ~ ses + (ses | school)", hsb)
    found = larger.likelihood_ratio(smaller).row(0, named=True)
    answer = con.execute(
        "SELECT ml_deviance_p($small, $large, 2), ml_deviance_mixture_p($small, $large, 2)",
        {"small": smaller.deviance, "large": larger.deviance},
    ).fetchall()
    assert answer[0] == pytest.approx((found["p_value"], found["mixture_p_value"]), rel=P_VALUE)


def test_mixture_without_covariances(con: duckdb.DuckDBPyConnection) -> None:
    # df 1: half of the weight is a point at 0
    answer = con.execute("SELECT ml_deviance_mixture_p(10, 7, 1), ml_deviance_mixture_p(7, 7, 1)").fetchall()
    assert answer[0] == pytest.approx((0.5 * stats.chi2.sf(3, 1), 1.0), rel=P_VALUE)


LINKS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "logit": (special.logit, special.expit),
    "probit": (special.ndtri, special.ndtr),
    "cloglog": (lambda p: np.log(-np.log1p(-p)), lambda eta: -np.expm1(-np.exp(eta))),
}


@pytest.mark.parametrize("link", LINKS)
def test_links_and_their_inverses(con: duckdb.DuckDBPyConnection, link: str) -> None:
    forward, back = LINKS[link]
    p = np.array([1e-300, 1e-20, 1e-11, 1e-5, 0.01, 0.0749, 0.0751, 0.3, 0.49, 0.51, 0.7, 0.93, 0.99, 1 - 1e-9])
    p, eta = asked(con, f"ml_{link}(p)", {"p": p})
    np.testing.assert_allclose(eta, forward(p), rtol=CLOSED)
    given = np.array([-36, -8.3, -2, -0.5, -1e-9, 0, 1e-9, 0.5, 2, 5.0])
    given, found = asked(con, f"ml_inverse_{link}(eta)", {"eta": given})
    np.testing.assert_allclose(found, back(given), rtol=1e-12)
    eta, again = asked(con, f"ml_{link}(ml_inverse_{link}(eta))", {"eta": np.array([-5.0, -1.5, 0.25, 1.2])})
    np.testing.assert_allclose(again, eta, rtol=1e-12)


@pytest.mark.parametrize("link", LINKS)
def test_links_far_out(con: duckdb.DuckDBPyConnection, link: str) -> None:
    call = f"SELECT ml_{link}(0), ml_{link}(1), ml_{link}(-0.1), ml_{link}(1.1), ml_{link}('nan'::DOUBLE)"
    assert con.execute(call).fetchall() == [(None,) * 5]
    assert con.execute(f"SELECT ml_inverse_{link}(-800), ml_inverse_{link}(800)").fetchall()[0] == (
        pytest.approx(0.0, abs=1e-300),
        1.0,
    )


def test_fisher_z(con: duckdb.DuckDBPyConnection) -> None:
    r, z = asked(con, "ml_fisher_z(r)", {"r": np.array([-0.99, -0.2, 0, 1e-9, 0.5, 0.999999])})
    np.testing.assert_allclose(z, np.arctanh(r), rtol=CLOSED)
    _, again = asked(con, "ml_inverse_fisher_z(ml_fisher_z(r))", {"r": r})
    np.testing.assert_allclose(again, r, rtol=1e-12)
    assert con.execute("SELECT ml_fisher_z(1), ml_fisher_z(-1), ml_fisher_z_variance(3)").fetchall() == [(None,) * 3]


def test_sampling_variances_are_those_of_simulated_studies(con: duckdb.DuckDBPyConnection) -> None:
    random, studies, n1, n2, delta = np.random.default_rng(5), 40_000, 25, 35, 0.4
    # two outcomes that correlate 0.6
    shape = np.linalg.cholesky(np.array([[1.0, 0.6], [0.6, 1.0]]))
    first = random.standard_normal((studies, n1, 2)) @ shape.T + delta
    second = random.standard_normal((studies, n2, 2)) @ shape.T
    rows = [
        {"m1": first[..., q].mean(1), "m2": second[..., q].mean(1), "s1": first[..., q].std(1, ddof=1),
         "s2": second[..., q].std(1, ddof=1)}
        for q in (0, 1)
    ]  # fmt: skip
    con.register("studies", {f"{k}_{q}": v for q, row in enumerate(rows) for k, v in row.items()})
    d = [f"ml_effect_size_d(m1_{q}, m2_{q}, ml_pooled_sd(s1_{q}, {n1}, s2_{q}, {n2}))" for q in (0, 1)]
    found = con.execute(
        f"SELECT var_samp({d[0]}), covar_samp({d[0]}, {d[1]}), avg(ml_hedges_g({d[0]}, {n1}, {n2})), "
        f"var_samp(ml_log_sd(s1_0, {n1 - 1})), avg(ml_log_sd(s1_0, {n1 - 1})) FROM studies"
    ).fetchall()[0]
    con.unregister("studies")
    variance, covariance, log_variance = con.execute(
        f"SELECT ml_effect_size_d_variance({delta}, {n1}, {n2}), "
        f"ml_effect_size_d_covariance({delta}, {delta}, {n1}, {n2}, 0.6), ml_log_sd_variance({n1 - 1})"
    ).fetchall()[0]
    # the formulas are large-sample ones: 5 % off in studies of this size
    assert found[0] == pytest.approx(variance, rel=0.06)
    assert found[1] == pytest.approx(covariance, rel=0.06)
    assert found[3] == pytest.approx(log_variance, rel=0.06)
    # the means are bias corrected; their error in 40,000 studies is 0.0014 and 0.0007
    assert found[2] == pytest.approx(delta, abs=0.006)
    assert found[4] == pytest.approx(0.0, abs=0.003)


def test_covariance_of_one_effect_with_itself_is_its_variance(con: duckdb.DuckDBPyConnection) -> None:
    call = "SELECT ml_effect_size_d_covariance(0.4, 0.4, 25, 35, 1), ml_effect_size_d_variance(0.4, 25, 35)"
    one, other = con.execute(call).fetchall()[0]
    assert one == pytest.approx(other, rel=CLOSED)


def test_logit_variance_is_the_delta_method(con: duckdb.DuckDBPyConnection) -> None:
    (found,) = con.execute("SELECT ml_logit_variance(0.3, 80)").fetchall()[0]
    assert found == pytest.approx(0.3 * 0.7 / 80 / (0.3 * 0.7) ** 2, rel=CLOSED)


def test_counts_of_a_small_type_do_not_overflow(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE OR REPLACE TEMP TABLE counts AS SELECT 100000::INTEGER AS n, 30000::SMALLINT AS m")
    found = con.execute(
        "SELECT ml_effect_size_d_variance(0.0, n, n), ml_log_sd_variance(m), ml_effect_size_d_variance(0.0, m, m), "
        "ml_hedges_g(1.0, m, m), ml_pooled_sd(2.0, m, 2.0, m), ml_f_p(1.0, m, m) FROM counts"
    ).fetchall()[0]
    assert found == pytest.approx((2e-5, 1 / 60_000, 2 / 30_000, 1 - 3 / (4 * 59_998 - 1), 2.0, 0.5), rel=P_VALUE)


def test_shrinkage_is_that_of_a_fit(con: duckdb.DuckDBPyConnection) -> None:
    fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
    tau, overall = float(fit.T[0, 0]), fit.fixed_effects.row(0, named=True)
    con.register("effects", fit.group_effects())
    con.execute("CREATE OR REPLACE TEMP TABLE effects_found AS FROM effects")
    con.unregister("effects")
    worst = con.execute(
        "SELECT max(abs(ml_shrunken_mean(ols_coefficient, n, $g, $t, $s) - coefficient)), "
        "max(abs(ml_shrunken_std_error(n, $t, $s, $e) - coefficient_std_error)), "
        "max(abs(ml_reliability(n, $t, $s) - reliability)) FROM effects_found",
        {"g": overall["estimate"], "e": overall["std_error"], "t": tau, "s": fit.sigma2},
    ).fetchall()[0]
    assert max(worst) < 1e-10


def test_a_group_without_rows_has_the_overall_mean(con: duckdb.DuckDBPyConnection) -> None:
    call = "SELECT ml_shrunken_mean(99, 0, 12.5, 8, 39), ml_shrunken_std_error(0, 9, 39, 0)"
    assert con.execute(call).fetchall() == [(12.5, 3.0)]


def test_plausible_range(con: duckdb.DuckDBPyConnection) -> None:
    call = (
        "SELECT ml_plausible_range(10, 4).low, ml_plausible_range(10, 4).high, "
        "ml_plausible_range(10, 4, level := 0.9).high"
    )
    expected = tuple(10 + 2 * float(stats.norm.ppf(p)) for p in (0.025, 0.975, 0.95))
    assert con.execute(call).fetchall()[0] == pytest.approx(expected, rel=CLOSED)


def test_design_effect_and_back(con: duckdb.DuckDBPyConnection) -> None:
    call = (
        "SELECT ml_icc_from_design_effect(45, ml_design_effect(45, 0.18)), "
        "ml_effective_sample_size(900, ml_design_effect(45, 0))"
    )
    assert con.execute(call).fetchall()[0] == pytest.approx((0.18, 900), rel=CLOSED)


def test_explained_variance_and_icc(con: duckdb.DuckDBPyConnection) -> None:
    call = "SELECT ml_explained_variance(8, 2), ml_explained_variance(8, 10), ml_icc(1, 3)"
    assert con.execute(call).fetchall() == [(0.75, -0.25, 0.25)]


def test_log_sd_of_no_spread(con: duckdb.DuckDBPyConnection) -> None:
    call = "SELECT ml_log_sd(0, 10), ml_log_sd(2, 0), ml_log_sd_variance(0), ml_log_sd(2, 10)"
    assert con.execute(call).fetchall()[0] == (None, None, None, pytest.approx(math.log(2) + 0.05, rel=CLOSED))
