"""Every design, in both layouts of the moments query, equals the same model by dense matrices at given T and sigma2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
import mlsql.design.design

Array = NDArray[np.float64]

SIGMA2 = 1.3
RTOL, ATOL = 1e-8, 1e-9
"""Both sides solve well-conditioned systems of size 100 in double precision; agreement is 1e-12 and better."""

FIXED = ("deviance REML", "deviance ML", "fixed effects", "vcov")
EFFECTS = ("effects", "conditional_sd", "std_error", "least squares")
SCORES = ("population", "population_std_error", "conditional", "conditional_std_error")
RESIDUALS = ("residual_population", "residual", "residual_standardized")


class Answer:
    """What the package says, beside the dense model; rows in the order of `row`.  Made when asked for."""

    def __init__(self, case: Any, layout: str, data: pl.DataFrame, dense: Any) -> None:
        self.case, self.layout = case, layout
        # out of order, so that a small limit makes the layout lean
        self.data = data.sample(fraction=1.0, shuffle=True, seed=3)
        self.dense = case.dense(dense, data, SIGMA2)
        self.fit = self.evaluate("REML")

    def evaluate(self, method: str) -> mlsql.Fit:
        given, options = self.case.inputs(self.data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlsql.design.design, "SMALL", 10**9 if self.layout == "full" else 0)
            fit = mlsql.evaluate(self.case.formula, given, T=self.case.T, sigma2=SIGMA2, method=method, **options)
        assert fit.estimates.design.layout == self.layout
        return fit

    @cached_property
    def groups(self) -> pl.DataFrame:
        return self.fit.group_effects()

    @cached_property
    def scores(self) -> pl.DataFrame:
        found = self.fit.predict()
        assert found is not None
        return found.sort("row")

    @cached_property
    def residuals(self) -> pl.DataFrame:
        found = self.fit.residuals()
        assert found is not None
        return found.sort("row")

    @cached_property
    def offset(self) -> Array:
        return self.case.columns(self.data, [self.case.offset])[:, 0]

    def by_group(self, column: str) -> Array:
        """Values group after group, as the dense model stacks them; null becomes nan."""
        return self.groups[column].cast(pl.Float64).to_numpy()


@pytest.fixture(scope="module")
def answer(rows: Callable[..., pl.DataFrame], dense: Any) -> Callable[[Any, str], Answer]:
    found: dict[tuple[str, str], Answer] = {}

    def find(case: Any, layout: str) -> Answer:
        if (case.name, layout) not in found:
            found[case.name, layout] = Answer(case, layout, rows(), dense)
        return found[case.name, layout]

    return find


def close(ours: object, theirs: object) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("layout", ["full", "lean"])
@pytest.mark.parametrize("quantity", FIXED)
def test_fixed_part(answer: Callable[[Any, str], Answer], case: Any, layout: str, quantity: str) -> None:
    found = answer(case, layout)
    if quantity == "deviance REML":
        close(found.fit.deviance, found.dense.deviance("REML"))
    elif quantity == "deviance ML":
        close(found.evaluate("ML").deviance, found.dense.deviance("ML"))
    elif quantity == "fixed effects":
        close(found.fit.fixed_effects["estimate"], found.dense.beta)
    else:
        close(found.fit.vcov, found.dense.vcov)


@pytest.mark.parametrize("layout", ["full", "lean"])
@pytest.mark.parametrize("quantity", EFFECTS)
def test_group_effects(answer: Callable[[Any, str], Answer], case: Any, layout: str, quantity: str) -> None:
    found = answer(case, layout)
    model = found.dense
    p = model.X.shape[1]
    if quantity == "effects":
        close(found.by_group("estimate"), model.u.ravel())
    elif quantity == "conditional_sd":
        close(found.by_group("conditional_sd"), np.sqrt(np.diag(model.conditional)))
    elif quantity == "std_error":
        close(found.by_group("std_error"), np.sqrt(np.diag(model.joint)[p:]))
        # two formulas for one variance: the check of the check
        close(np.diag(model.joint)[p:], np.diag(model.posterior))
    else:
        estimate, error, reliability = least_squares(model)
        close(found.by_group("ols_estimate"), estimate)
        close(found.by_group("ols_std_error"), error)
        close(found.by_group("reliability"), reliability)


def least_squares(model: Any) -> tuple[Array, Array, Array]:
    """Residuals' own regression in every group whose Z has full rank; nan in the others."""
    q = model.Z.shape[1]
    estimate, error = np.full((model.n_groups, q), np.nan), np.full((model.n_groups, q), np.nan)
    for j in range(model.n_groups):
        own = model.groups == j
        Z, w = model.Z[own], model.w[own]
        if np.linalg.matrix_rank(Z) == q:
            inverse = np.linalg.inv((Z.T * w) @ Z)
            estimate[j] = inverse @ (Z.T * w) @ model.residual[own]
            error[j] = np.sqrt(model.sigma2 * np.diag(inverse))
    tau = np.diag(model.T)
    return estimate.ravel(), error.ravel(), (tau / (tau + error**2)).ravel()


@pytest.mark.parametrize("layout", ["full", "lean"])
def test_coefficients(answer: Callable[[Any, str], Answer], rows: Any, spelled: Any, layout: str) -> None:
    found = answer(spelled, layout)
    model = found.dense
    p, q = model.X.shape[1], model.Z.shape[1]
    first = [int(np.flatnonzero(model.groups == j)[0]) for j in range(model.n_groups)]
    W = np.array([spelled.columns(rows(), parts)[first] for parts in spelled.W])  # (q, J, p)
    values, errors = np.empty((model.n_groups, q)), np.empty((model.n_groups, q))
    for j in range(model.n_groups):
        # b_j = W_j beta + u_j
        combination = np.zeros((q, p + model.n_groups * q))
        combination[:, :p] = W[:, j]
        combination[np.arange(q), p + model.group_columns(j)] = 1.0
        values[j] = W[:, j] @ model.beta + model.u[j]
        errors[j] = np.sqrt(np.diag(combination @ model.joint @ combination.T))
    close(found.by_group("coefficient"), values.ravel())
    close(found.by_group("coefficient_std_error"), errors.ravel())
    ols = found.by_group("ols_coefficient") - found.by_group("ols_estimate")
    fixed = found.by_group("coefficient") - found.by_group("estimate")
    close(ols[~np.isnan(ols)], fixed[~np.isnan(ols)])


@pytest.mark.parametrize("layout", ["full", "lean"])
@pytest.mark.parametrize("quantity", SCORES)
def test_predictions(answer: Callable[[Any, str], Answer], case: Any, layout: str, quantity: str) -> None:
    found = answer(case, layout)
    model = found.dense
    population = model.X @ model.beta + found.offset
    joined = np.hstack([model.X, model.wide])
    expected = {
        "population": lambda: population,
        "population_std_error": lambda: np.sqrt(np.einsum("if,fg,ig->i", model.X, model.vcov, model.X)),
        "conditional": lambda: population + model.wide @ model.u.ravel(),
        "conditional_std_error": lambda: np.sqrt(np.einsum("if,fg,ig->i", joined, model.joint, joined)),
    }
    close(found.scores[quantity], expected[quantity]())


@pytest.mark.parametrize("quantity", RESIDUALS)
def test_residuals(answer: Callable[[Any, str], Answer], case: Any, quantity: str) -> None:
    found = answer(case, "full")
    residual = found.scores["y"].to_numpy() - found.scores["conditional"].to_numpy()
    expected = {
        "residual_population": found.scores["y"].to_numpy() - found.scores["population"].to_numpy(),
        "residual": residual,
        "residual_standardized": residual * np.sqrt(found.dense.w / SIGMA2),
    }
    close(found.residuals[quantity], expected[quantity])


def test_least_squares_residuals(answer: Callable[[Any, str], Answer], case: Any) -> None:
    found = answer(case, "full")
    model = found.dense
    estimate = least_squares(model)[0].reshape(model.n_groups, -1)
    own = model.residual - np.einsum("iq,iq->i", model.Z, estimate[model.groups])
    close(found.residuals["residual_ols"].cast(pl.Float64).to_numpy(), own)
