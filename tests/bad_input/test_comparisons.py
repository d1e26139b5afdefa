"""Fits that cannot be compared, contrasts of what is not there, resampling by halves: each is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pytest

import mlsql


def expect(parts: list[str], call: Callable[..., Any], *args: Any, error: Any = mlsql.FitError, **named: Any) -> None:
    """This error, with all these parts in its message."""
    with pytest.raises(error) as caught:
        call(*args, **named)
    # the error itself, not a relative
    assert caught.type is error
    assert [p for p in parts if p not in str(caught.value)] == [], str(caught.value)


@pytest.fixture
def fit(con: duckdb.DuckDBPyConnection) -> Callable[..., mlsql.Fit]:
    def make(formula: str, data: str = "t", **named: Any) -> mlsql.Fit:
        return mlsql.fit(formula, data, con=con, **({"method": "ML"} | named))

    return make


# ---------------------------------------------------------------------------------------------- likelihood ratio


def refused(parts: list[str], larger: mlsql.Fit, smaller: mlsql.Fit) -> None:
    """By the test, and in a table of both either as an error or as a note."""
    expect(parts, larger.likelihood_ratio, smaller)
    try:
        note = mlsql.compare(smaller, larger)["note"][1]
    except mlsql.FitError as error:
        note = str(error)
    assert [p for p in parts if p not in note] == []


def test_reml_and_different_fixed_parts(fit: Callable[..., mlsql.Fit]) -> None:
    small, large = fit("y ~ x + (1 | g)", method="REML"), fit("y ~ x + z + (1 | g)", method="REML")
    parts = ["REML deviances of different fixed parts (z)", "cannot be compared", "fit both with method='ML'"]
    refused(parts, large, small)
    # the same fixed part in another order is no difference
    again = fit("y ~ z + x + (x | g)", method="REML")
    assert again.likelihood_ratio(large)["df"].item() == 2


def test_different_methods(fit: Callable[..., mlsql.Fit]) -> None:
    large, small = fit("y ~ x + (x | g)"), fit("y ~ x + (1 | g)", method="REML")
    refused(["fitted by REML", "ML", "nothing in common"], large, small)


def test_different_outcomes(fit: Callable[..., mlsql.Fit]) -> None:
    large = fit("y ~ x + (1 | g)")
    refused(["outcomes differ", "z and y", "one outcome"], large, fit("z ~ 1 + (1 | g)"))
    refused(["outcomes differ", "log(y)"], large, fit("log(y) ~ 1 + (1 | g)"))
    # an offset is a different outcome
    refused(["outcomes differ"], large, fit("y ~ 1 + offset(z) + (1 | g)"))


def test_rows_that_a_missing_predictor_leaves_out(
    con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]
) -> None:
    con.execute("CREATE TABLE gaps AS SELECT * REPLACE (CASE WHEN i % 20 = 3 THEN NULL ELSE x END AS x) FROM t")
    large, small = fit("y ~ x + (1 | g)", "gaps"), fit("y ~ 1 + (1 | g)", "gaps")
    refused(["different rows (120 and 114)", "missing values", "complete in all columns"], large, small)


def test_as_many_rows_but_others(con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]) -> None:
    """Two predictors with as many gaps in different rows."""
    con.execute(
        """CREATE TABLE gaps AS SELECT * REPLACE (CASE WHEN i % 20 = 3 THEN NULL ELSE x END AS x,
        CASE WHEN i % 20 = 7 THEN NULL ELSE z END AS z) FROM t"""
    )
    refused(["different rows", "114"], fit("y ~ x + (1 | g)", "gaps"), fit("y ~ z + (1 | g)", "gaps"))


def test_the_same_values_in_other_rows(con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]) -> None:
    """The outcome dealt anew has the same sums."""
    con.execute("CREATE TABLE dealt AS SELECT u.* REPLACE (v.y AS y) FROM t u JOIN t v ON v.i = (u.i * 7) % 120")
    with pytest.raises(mlsql.FitError):
        fit("y ~ x + (1 | g)").likelihood_ratio(fit("y ~ 1 + (1 | g)", "dealt"))


def test_different_groups(con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]) -> None:
    """Random intercepts of other groups are not nested in these, however alike their formulas."""
    con.execute("CREATE TABLE crossed AS SELECT *, i % 10 AS h FROM t")
    large, small = fit("y ~ x + (1 | g)", "crossed"), fit("y ~ 1 + (1 | h)", "crossed")
    expect(["g", "h"], large.likelihood_ratio, small)
    note = mlsql.compare(small, large)["note"][1]
    assert note is not None
    assert "random effects of h, the other of g" in note


def test_different_weights(fit: Callable[..., mlsql.Fit]) -> None:
    large = fit("y ~ x + (1 | g)", weights="1 + i % 3")
    refused(["weights differ", "1 + i % 3", "none"], large, fit("y ~ 1 + (1 | g)"))
    other = fit("y ~ 1 + (1 | g)", weights="2 + i % 3")
    expect([], large.likelihood_ratio, other)


def test_models_that_are_not_nested(fit: Callable[..., mlsql.Fit]) -> None:
    parts = ["not nested", "AIC or BIC", "fit one that contains both"]
    refused([*parts, "z against x, f[b], f[c]"], fit("y ~ x + f + (1 | g)"), fit("y ~ z + (1 | g)"))
    refused(parts, fit("y ~ x + z + (0 + x | g)"), fit("y ~ x + (1 | g)"))
    # the other way round
    expect(["turn the two around"], fit("y ~ x + (1 | g)").likelihood_ratio, fit("y ~ x + z + (1 | g)"))


def test_the_same_model_twice(fit: Callable[..., mlsql.Fit]) -> None:
    refused(["same parameters", "nothing to test"], fit("y ~ x + f + (1 | g)"), fit("y ~ f + x + (1 | g)"))


def test_variances_that_were_given(con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]) -> None:
    given = mlsql.evaluate("y ~ 1 + (1 | g)", "t", T=0.2, sigma2=0.3, con=con, method="ML")
    refused(["given, not estimated", "no minimum"], fit("y ~ x + (1 | g)"), given)
    expect(["given"], given.confint, method="profile")


def test_given_variances_against_the_single_level_model(con: duckdb.DuckDBPyConnection) -> None:
    given = mlsql.evaluate("y ~ 1 + (1 | g)", "t", T=0.2, sigma2=0.3, con=con, method="ML")
    expect(["given, not estimated"], given.likelihood_ratio)


@pytest.mark.parametrize("smaller", [3, "y ~ 1 + (1 | g)", object(), ["fit"]])
def test_what_is_no_fit(fit: Callable[..., mlsql.Fit], smaller: Any) -> None:
    one = fit("y ~ x + (1 | g)")
    expect([type(smaller).__name__, "a fit of a nested model"], one.likelihood_ratio, smaller)
    expect([type(smaller).__name__, "takes fits", "call mlsql.fit first"], mlsql.compare, one, smaller)


# ---------------------------------------------------------------------------------------------- compare, step_up


def test_compare_needs_two_fits_and_as_many_names(fit: Callable[..., mlsql.Fit]) -> None:
    one = fit("y ~ x + (1 | g)")
    expect(["two or more fits, not 0"], mlsql.compare)
    expect(["two or more fits, not 1"], mlsql.compare, one)
    expect(["two or more fits, not 1"], mlsql.compare, [one, one])
    expect(["1 different names for 2 fits"], mlsql.compare, one, one, names=["a"])
    expect(["3 different names for 2 fits"], mlsql.compare, one, one, names=["a", "b", "c"])


@pytest.mark.parametrize("names", [["a", "a"], "ab", 3])
def test_names_that_do_not_tell_models_apart(fit: Callable[..., mlsql.Fit], names: Any) -> None:
    """`against` and `baseline` speak of models by name."""
    with pytest.raises(mlsql.FitError):
        mlsql.compare(fit("y ~ 1 + (1 | g)"), fit("y ~ x + (1 | g)"), names=names)


def test_compare_refuses_other_rows_even_without_a_test(
    con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]
) -> None:
    """AIC and explained variance of other rows mean nothing either; the third fit is looked at too."""
    con.execute("CREATE TABLE part AS SELECT * FROM t WHERE i % 10 < 9")
    first, second = fit("y ~ 1 + (1 | g)"), fit("y ~ x + (1 | g)")
    expect(["different rows (120 and 108)"], mlsql.compare, first, second, fit("y ~ x + z + (1 | g)", "part"))


def test_step_up_needs_an_intercept_and_groups(con: duckdb.DuckDBPyConnection) -> None:
    named = {"con": con, "error": mlsql.FormulaError}
    expect(["intercept", "leave out the 0"], mlsql.step_up, "y ~ 0 + x + (1 | g)", "t", **named)
    expect(["no random term"], mlsql.step_up, "y ~ x", "t", **named)
    expect(["method is 'ml'", "'REML' or 'ML'"], mlsql.step_up, "y ~ x + (1 | g)", "t", method="ml", **named)


# ---------------------------------------------------------------------------------------------- contrasts


@pytest.fixture
def crossed(fit: Callable[..., mlsql.Fit]) -> mlsql.Fit:
    return fit("y ~ f*x + z + (1 | g)")


@pytest.mark.parametrize(
    ("predictor", "parts"),
    [
        ("xx", ["'xx' is not a predictor of the fixed part", "did you mean"]),
        ("w", ["'w'", "there are f[b], f[c], x, z"]),
        ("f", ["'f' is not a predictor", "f[b]", "f[c]"]),
        ("(Intercept)", ["'(Intercept)'"]),
        ("f[b]:x", ["'f[b]:x'"]),
    ],
)
def test_unknown_predictors(crossed: mlsql.Fit, predictor: str, parts: list[str]) -> None:
    expect(parts, crossed.contrasts.simple_slopes, predictor)
    expect(parts, crossed.contrasts.johnson_neyman, predictor, "x")
    expect(parts, crossed.contrasts.johnson_neyman, "x", predictor)
    expect(parts, crossed.contrasts.contextual_effect, predictor)


def test_a_model_without_predictors(fit: Callable[..., mlsql.Fit]) -> None:
    expect(["'x' is not in the model, which has no predictors"], fit("y ~ 1 + (1 | g)").contrasts.simple_slopes, "x")


@pytest.mark.parametrize(
    ("at", "parts"),
    [
        ({"z": 1}, ["'z' is not among the moderators of x"]),
        ({"g": "b"}, ["'g' is not among the moderators of x", "f"]),
        ({"f": "d"}, ["f has no level 'd'"]),
        ({"f": ["a", "bb"]}, ["f has no level 'bb'"]),
        ({"f[b]": "yes"}, ["f[b] is 'yes'", "a number or a sequence"]),
        ({"f[b]": [0, 1], "f[c]": [0, 1, 2]}, ["equally many", "2 of f[b], 3 of f[c]"]),
        ({"f[b]": float("nan")}, ["f[b]", "finite"]),
        ({"f[b]": []}, ["f[b]", "not empty"]),
        ({"f": "b", "f[b]": 1}, ["f[b] is given twice"]),
        ([1, 2], ["at is [1, 2]", "a mapping"]),
    ],
)
def test_moderators(crossed: mlsql.Fit, at: Any, parts: list[str]) -> None:
    expect(parts, crossed.contrasts.simple_slopes, "x", at=at)


def test_a_predictor_without_moderators(crossed: mlsql.Fit) -> None:
    expect(["'x' cannot be given", "no moderators of z"], crossed.contrasts.simple_slopes, "z", at={"x": 1})


def test_johnson_neyman_needs_a_product(crossed: mlsql.Fit, fit: Callable[..., mlsql.Fit]) -> None:
    neyman = crossed.contrasts.johnson_neyman
    expect(["slope of x does not depend on z", "no fixed effect of their product", "add x:z"], neyman, "x", "z")
    expect(["x is both predictor and moderator"], neyman, "x", "x")
    three = fit("y ~ x*z*i + (1 | g)").contrasts.johnson_neyman
    expect(["one value of each other moderator"], three, "x", "z", at={"i": [0, 1]})
    for level in (0, 95, None):
        expect([f"level is {level}", "between 0 and 1"], neyman, "x", "f[b]", level=level)


def test_contextual_effects_of_what_is_not_there(con: duckdb.DuckDBPyConnection, fit: Callable[..., mlsql.Fit]) -> None:
    con.execute("CREATE TABLE joined AS SELECT t.*, w FROM t JOIN upper USING (g)")
    effect = fit("y ~ x + w + f:z + (1 | g)", "joined").contrasts.contextual_effect
    expect(["group mean of x is not among the fixed effects", "group_mean(", "mean="], effect, "x")
    expect(["w is constant within groups", "level-1 predictor"], effect, "w")
    expect(["z varies within groups"], effect, "x", "z")
    expect(["z has no fixed effect of its own, only in products"], effect, "z", "w")
    expect(["'ww'", "did you mean w"], effect, "x", "ww")


def test_methods_of_contrasts(crossed: mlsql.Fit) -> None:
    for call, args in (
        (crossed.contrasts.simple_slopes, ("x",)),
        (crossed.contrasts.johnson_neyman, ("x", "f[b]")),
        (crossed.contrasts.estimate, ("x",)),
    ):
        expect(["df is 'kr'"], call, *args, df="kr")
        expect(["vcov is 'HC1'"], call, *args, vcov="HC1")
        expect(["level is 2"], call, *args, level=2)
        expect(["REML", "this fit is by ML"], call, *args, df="kenward_roger")


@pytest.mark.parametrize(
    ("combinations", "parts"),
    [
        ("foo", ["'foo' is not a fixed effect", "(Intercept)"]),
        (np.eye(5), ["shape (5, 5)", "needs 7 finite columns"]),
        (["x", "2*x = 1"], ["rank 1"]),
        (3, ["shape (1, 1)"]),
    ],
)
def test_combinations(crossed: mlsql.Fit, combinations: Any, parts: list[str]) -> None:
    expect(parts, crossed.contrasts.estimate, combinations)


# ---------------------------------------------------------------------------------------------- intervals, resampling


@pytest.fixture
def simple(fit: Callable[..., mlsql.Fit]) -> mlsql.Fit:
    return fit("y ~ x + (1 | g)")


@pytest.mark.parametrize("method", ["Wald", "boot", "", None, 3])
def test_methods_of_intervals(simple: mlsql.Fit, method: Any) -> None:
    expect([f"method is {method!r}", "'wald', 'profile' or 'bootstrap'"], simple.confint, method=method)


def test_a_method_that_cannot_be_looked_up(simple: mlsql.Fit) -> None:
    expect(["method is ['wald']"], simple.confint, method=["wald"])


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("profile", {"df": "hlm"}),
        ("profile", {"vcov": "model"}),
        ("profile", {"replicates": 10}),
        ("profile", {"seed": 0}),
        ("bootstrap", {"df": "normal"}),
        ("bootstrap", {"vcov": "CR0"}),
        ("wald", {"replicates": 10}),
        ("wald", {"seed": 1}),
    ],
)
def test_arguments_of_another_method(simple: mlsql.Fit, method: Any, named: dict[str, Any]) -> None:
    (name, value), *_ = named.items()
    expect(
        [f"{name}={value!r} has no part in method={method!r}", "leave it out"], simple.confint, method=method, **named
    )


@pytest.mark.parametrize("level", [0, 1, 95, float("nan"), None, "0.95"])
def test_levels(simple: mlsql.Fit, level: Any) -> None:
    parts = [f"level is {level}", "between 0 and 1"]
    for method in ("profile", "bootstrap"):
        expect(parts, simple.confint, level, method)
    expect(parts, simple.resampling.jackknife, level=level)
    expect(parts, simple.resampling.bootstrap(2).table, level)


@pytest.mark.parametrize("replicates", [0, -1, 1.5, True, "10", None, [3]])
def test_numbers_of_replicates(simple: mlsql.Fit, replicates: Any) -> None:
    parts = [f"replicates is {replicates!r}", "a whole number", "1,000 or more"]
    expect(parts, simple.resampling.bootstrap, replicates)
    expect(parts, simple.resampling.cluster_bootstrap, replicates)
    if replicates is not None:
        expect(parts, simple.confint, method="bootstrap", replicates=replicates)


@pytest.mark.parametrize("blocks", [0, 1, 13, -3, True, 2.0, "a"])
def test_numbers_of_blocks(simple: mlsql.Fit, blocks: Any) -> None:
    expect([f"blocks is {blocks!r}", "between 2 and the number of groups, 12"], simple.resampling.jackknife, blocks)


def test_whole_numbers_of_numpy(simple: mlsql.Fit) -> None:
    assert simple.resampling.bootstrap(np.int64(2)).table()["replicates"][0] == 2  # type: ignore[arg-type]
    assert simple.resampling.jackknife(np.int64(3))["replicates"][0] == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, "a", 1.5])
def test_seeds(simple: mlsql.Fit, seed: Any) -> None:
    for call in (simple.resampling.bootstrap, simple.resampling.cluster_bootstrap):
        expect(["seed is"], call, 2, seed=seed)


@pytest.mark.parametrize("interval", ["BCa", "", None, 1])
def test_kinds_of_intervals(simple: mlsql.Fit, interval: Any) -> None:
    found = simple.resampling.bootstrap(2)
    expect([f"interval is {interval!r}", "'percentile' or 'basic'"], found.table, interval=interval)


def test_resampling_a_lean_fit_whose_table_is_gone(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster bootstrap needs the products by group; the parametric one and the profile need no data."""
    monkeypatch.setattr("mlsql.design.design.SMALL", 0)
    con.execute("CREATE TEMP TABLE temporary AS SELECT * FROM t ORDER BY hash(i)")
    lean = mlsql.fit("y ~ x + (1 | g)", "temporary", con=con)
    con.execute("DROP TABLE temporary")
    for call in (lean.resampling.cluster_bootstrap, lean.resampling.jackknife):
        expect(["products by group", "temporary"], call, error=mlsql.QueryError)
    assert lean.confint(method="profile").height == 4
    assert lean.resampling.bootstrap(2).table().height == 4
    assert lean.likelihood_ratio().height == 1
