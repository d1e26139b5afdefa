"""Models with several grouping factors equal those by n x n matrices: at given variances, and at the optimum."""

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
"""Both sides solve well-conditioned systems of size 150 in double precision."""

NOT_ABOVE = 1e-6
"""A deviance that exceeds that of the independent search by more is not the optimum."""

AT_OPTIMUM = 1e-4
"""Variances where two searches end, each with a deviance within 1e-9 of the least: the square root of that, and more
where the likelihood is flat."""

DF = 1e-6
"""Degrees of freedom divide by small differences; see the inference tests of two levels."""

LAYOUTS = ("full", "lean")
METHODS = ("REML", "ML")


def close(ours: object, theirs: object, rtol: float = RTOL) -> None:
    value = np.asarray(theirs, dtype=np.float64)
    np.testing.assert_allclose(
        np.asarray(ours, dtype=np.float64), value, rtol=rtol, atol=rtol * np.nanmax(np.abs(value))
    )


def covariances(fit: mlsql.Fit, case: Any) -> dict[str, Array]:
    """T of every factor from the table of variance components."""
    found = {}
    for part in case.oracle.parts:
        q = part.Z.shape[1]
        T = np.zeros((q, q))
        table = fit.variance_components.filter(pl.col("group") == part.name)
        terms = table.filter(pl.col("term2").is_null())["term1"].to_list()
        assert len(terms) == q
        for row in table.iter_rows(named=True):
            a = terms.index(row["term1"])
            b = a if row["term2"] is None else terms.index(row["term2"])
            T[a, b] = T[b, a] = row["estimate"]
        found[part.name] = T
    return found


class Answer:
    """What the package says, beside the oracle; rows in another order than the oracle's.  Made when asked for."""

    def __init__(self, case: Any, layout: str) -> None:
        self.case, self.layout = case, layout
        # out of order, so that a small limit makes the layout lean
        self.data = case.frame.sample(fraction=1.0, shuffle=True, seed=3)
        self.oracle = case.oracle.at(case.T, SIGMA2)

    def _patched(self, make: Callable[[], mlsql.Fit]) -> mlsql.Fit:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlsql.design.design, "SMALL", 10**9 if self.layout == "full" else 0)
            return make()

    def evaluate(self, method: Any) -> mlsql.Fit:
        options = self.case.options | {"T": self.case.T, "sigma2": SIGMA2, "method": method}
        return self._patched(lambda: mlsql.evaluate(self.case.formula, self.data, **options))

    @cached_property
    def given(self) -> mlsql.Fit:
        return self.evaluate("REML")

    @cached_property
    def optima(self) -> dict[str, tuple[mlsql.Fit, Any]]:
        """Method to the fit and the oracle at the fit's own estimates."""
        found = {}
        for method in METHODS:
            fit = self._patched(lambda m=method: mlsql.fit(self.case.formula, self.data, method=m, **self.case.options))
            found[method] = fit, self.case.oracle.at(covariances(fit, self.case), fit.sigma2)
        return found

    def effects(self, factor: str, column: str, fit: mlsql.Fit | None = None) -> Array:
        """(J, q) values in the oracle's order of groups; null becomes nan."""
        keys = self.case.keys(factor)
        table = (fit or self.given).group_effects(factor)
        q = self.oracle.part(factor).Z.shape[1]
        assert len(table) == q * len(keys)
        terms = table["term"].unique(maintain_order=True).to_list()
        wide = [
            keys.join(table.filter(pl.col("term") == term), on=keys.columns, how="left", maintain_order="left")
            for term in terms
        ]
        return np.column_stack([w[column].cast(pl.Float64).to_numpy() for w in wide])


@pytest.fixture(scope="module")
def answer() -> Callable[..., Answer]:
    found: dict[tuple[str, str], Answer] = {}

    def find(case: Any, layout: str = "full") -> Answer:
        if (case.name, layout) not in found:
            found[case.name, layout] = Answer(case, layout)
        return found[case.name, layout]

    return find


# ---------------------------------------------------------------------------------------------- at given variances


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantity", ["deviance REML", "deviance ML", "fixed effects", "vcov", "T"])
def test_fixed_part(answer: Callable[..., Answer], case: Any, layout: str, quantity: str) -> None:
    found = answer(case, layout)
    if quantity == "deviance REML":
        close(found.given.deviance, found.oracle.deviance("REML"))
    elif quantity == "deviance ML":
        close(found.evaluate("ML").deviance, found.oracle.deviance("ML"))
    elif quantity == "fixed effects":
        close(found.given.fixed_effects["estimate"], found.oracle.beta)
        close(found.given.fixed_effects["std_error"], np.sqrt(np.diag(found.oracle.vcov)))
    elif quantity == "vcov":
        close(found.given.vcov, found.oracle.vcov)
    else:
        own = covariances(found.given, case)
        for name, T in case.T.items():
            close(own[name], T)
        close(found.given.sigma2, SIGMA2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantity", ["estimate", "conditional_sd", "std_error", "n"])
def test_group_effects(answer: Callable[..., Answer], case: Any, layout: str, quantity: str) -> None:
    found = answer(case, layout)
    for part in found.oracle.parts:
        ours = found.effects(part.name, quantity)
        if quantity == "estimate":
            close(ours, found.oracle.u(part.name))
        elif quantity == "conditional_sd":
            close(ours, np.sqrt(found.oracle.conditional(part.name)))
        elif quantity == "std_error":
            close(ours, np.sqrt(found.oracle.posterior(part.name)))
        else:
            close(ours, np.broadcast_to(part.M.sum(axis=0)[:, None], ours.shape))


def test_reliabilities_of_nested_factors(answer: Callable[..., Answer], chain: Any) -> None:
    """Raudenbush & Bryk (2002), 8.7 and 8.8, for any random coefficient; null where a group's rows do not suffice."""
    found = answer(chain)
    for at, name in enumerate(chain.nested):
        close(found.effects(name, "reliability"), found.oracle.reliability(name, chain.nested[at + 1 :]))


# ---------------------------------------------------------------------------------------------- at the optimum


@pytest.mark.parametrize("method", METHODS)
def test_the_optimum_is_no_worse_than_another_search_s(answer: Callable[..., Answer], case: Any, method: Any) -> None:
    fit, own = answer(case).optima[method]
    # the deviance is that of the estimates
    close(fit.deviance, own.deviance(method))
    best = case.oracle.optimum(method)
    assert fit.deviance <= best.deviance(method) + NOT_ABOVE
    assert fit.converged
    # not far below either: then the other search, hence this comparison, would be worth little
    if abs(fit.deviance - best.deviance(method)) < NOT_ABOVE:
        scale = max(best.parameters())
        np.testing.assert_allclose(own.parameters(), best.parameters(), rtol=AT_OPTIMUM, atol=AT_OPTIMUM * scale)


@pytest.mark.parametrize("method", METHODS)
def test_fixed_effects_and_group_effects_at_the_optimum(answer: Callable[..., Answer], case: Any, method: Any) -> None:
    found = answer(case)
    fit, own = found.optima[method]
    # singular T and all
    close(fit.fixed_effects["estimate"], own.beta, 1e-7)
    close(fit.vcov, own.vcov, 1e-7)
    for part in own.parts:
        close(found.effects(part.name, "estimate", fit), own.u(part.name), 1e-6)
        # the root of a variance that may be rounding's zero
        close(found.effects(part.name, "std_error", fit) ** 2, own.posterior(part.name), 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_singular_says_what_the_covariances_are(answer: Callable[..., Answer], case: Any, method: Any) -> None:
    fit, own = answer(case).optima[method]
    least = min(np.linalg.eigvalsh(T)[0] for T in own.T.values())
    assert fit.singular == (least < 1e-9 * own.sigma2)


# ---------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize("method", METHODS)
def test_satterthwaite(answer: Callable[..., Answer], case: Any, method: str) -> None:
    fit, own = answer(case).optima[method]
    df = fit.inference("satterthwaite")["df"]
    if fit.singular:
        # the parameters are fewer there
        assert df.is_finite().all()
        assert (df > 0).all()
    else:
        close(df, own.satterthwaite_df(method, np.eye(own.X.shape[1])), DF)


def test_kenward_roger(answer: Callable[..., Answer], case: Any) -> None:
    fit, own = answer(case).optima["REML"]
    df = fit.inference("kenward_roger")["df"]
    if fit.singular:
        assert df.is_finite().all()
        assert (df > 0).all()
    else:
        close(fit.reference("kenward_roger").covariance, own.kenward_roger, 1e-7)
        close(df, [own.kenward_roger_df(row) for row in np.eye(own.X.shape[1])], DF)


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR2"])
def test_robust_matrices_by_the_highest_nested_factor(answer: Callable[..., Answer], chain: Any, kind: Any) -> None:
    found = answer(chain)
    cluster = found.oracle.part(chain.nested[0]).coded()
    reference = found.given.reference("satterthwaite", kind)
    close(reference.covariance, found.oracle.robust(kind, cluster))
    df = [found.oracle.robust_df(kind, cluster, row) for row in np.eye(found.oracle.X.shape[1])]
    close(found.given.inference("satterthwaite", kind)["df"], df, DF)


def test_robust_matrices_of_crossed_factors_are_refused(answer: Callable[..., Answer], crossed: Any) -> None:
    with pytest.raises(mlsql.MlsqlError, match="no grouping factor contains the others"):
        answer(crossed).given.inference(vcov="CR2")


# ---------------------------------------------------------------------------------------------- predictions


def test_predictions(answer: Callable[..., Answer], case: Any) -> None:
    found = answer(case)
    scores = found.given.predict()
    assert scores is not None
    scores = scores.sort("row")
    o = case.values(case.offset)[:, 0]
    own = found.oracle
    close(scores["population"], own.X @ own.beta + o)
    close(scores["population_std_error"], np.sqrt(np.einsum("np,pf,nf->n", own.X, own.vcov, own.X)))
    close(scores["conditional"], own.fitted() + o)
    H = np.hstack([own.X, *(part.wide for part in own.parts)])
    close(scores["conditional_std_error"], np.sqrt(np.einsum("na,ab,nb->n", H, own.joint(), H, optimize=True)))


def test_residuals(answer: Callable[..., Answer], case: Any) -> None:
    found = answer(case)
    table = found.given.residuals()
    assert table is not None
    table = table.sort("row")
    own = found.oracle
    close(table["residual"], own.y - own.fitted())
    close(table["residual_population"], own.y - own.X @ own.beta)
    close(table["residual_standardized"], (own.y - own.fitted()) * np.sqrt(own.w / SIGMA2))
