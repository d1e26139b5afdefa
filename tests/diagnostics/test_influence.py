"""One-step influence of groups: exact for fixed effects at the fit's variances, close to refits for the variances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.diagnostics import influence as module
from mlsql.diagnostics.influence import Influence, one_step_influence

Array = NDArray[np.float64]

EXPECTED = Path(__file__).parent.parent / "reference" / "expected" / "inference"

RTOL = 1e-8
"""Both sides solve well-conditioned systems of size 100 in double precision; agreement is 1e-11 and better."""

SIZES = [1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 4, 5, 6, 7]
"""Single rows and groups of deficient rank among them."""


def influence(fit: mlsql.Fit) -> Influence:
    return one_step_influence(fit.estimates, fit.products.by_group())


def small(seed: int = 5) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    g, N = np.repeat(np.arange(18), SIZES), sum(SIZES)
    u, w = rng.normal(size=(18, 2)) * [1.5, 1.1], rng.normal(size=18)
    x, weight = rng.normal(size=N) + w[g], rng.integers(1, 5, N) / 2
    k = np.where(g == 12, np.arange(N) % 2, 0)
    y = 5 + x + 0.5 * w[g] + u[g, 0] + u[g, 1] * x + rng.normal(size=N)
    return pl.DataFrame({"g": g, "x": x, "w": w[g], "k": k, "weight": weight, "y": y})


class Case:
    """A fit of the small data, and its design as arrays."""

    def __init__(self, formula: str, method: Any, weights: bool, dense: Any) -> None:
        data, self.formula = small(), formula
        self.fit = mlsql.fit(formula, data, method=method, weights="weight" if weights else None)
        assert not self.fit.singular
        one, x, w = np.ones(len(data)), data["x"].to_numpy(), data["w"].to_numpy()
        self.X = np.column_stack([one, w, x, w * x] if "*" in formula else [one, x])
        self.Z = np.column_stack([one, x]) if "(x" in formula else one[:, None]
        self.y, self.g = data["y"].to_numpy(), data["g"].to_numpy()
        self.w = data["weight"].to_numpy() if weights else one
        self.dense = dense

    @property
    def entries(self) -> list[tuple[int, int]]:
        """Free entries of T."""
        q = self.Z.shape[1]
        return [(a, b) for a in range(q) for b in range(a + 1) if a == b or "||" not in self.formula]

    def direction(self, a: int, b: int) -> Array:
        """How T moves with an entry."""
        D = np.zeros_like(self.fit.T)
        D[a, b] = D[b, a] = 1.0
        return D

    def model(self, without: int | None = None) -> Any:
        """The dense model at the fit's variances, one group left out."""
        kept = self.g != without
        groups = np.unique(self.g[kept], return_inverse=True)[1]
        fit = self.fit
        return self.dense(self.X[kept], self.Z[kept], self.y[kept], groups, fit.T, fit.sigma2, self.w[kept])


CASES = {
    "intercept": ("y ~ x + (1 | g)", "REML", False),
    "intercept, ML": ("y ~ x + (1 | g)", "ML", False),
    "cross-level": ("y ~ w*x + (x | g)", "REML", False),
    "blocks": ("y ~ w*x + (x || g)", "REML", False),
    "weights": ("y ~ w*x + (x | g)", "ML", True),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, dense: Any) -> Case:
    return Case(*CASES[request.param], dense)


def test_fixed_effects_are_those_without_the_group(case: Case) -> None:
    """Estimates with all groups minus those without one, at unchanged variances; dense matrices."""
    found, all_groups = influence(case.fit), case.model()
    p = case.X.shape[1]
    assert found.beta.shape == found.dfbetas.shape == (p, 18)
    inverse, determinant = np.linalg.inv(all_groups.vcov), np.linalg.det(all_groups.vcov)
    for j in range(18):
        rest = case.model(j)
        change = all_groups.beta - rest.beta
        scale = np.sqrt(np.diag(all_groups.vcov))
        np.testing.assert_allclose(found.beta[:, j], change, rtol=RTOL, atol=RTOL * scale.min())
        np.testing.assert_allclose(found.dfbetas[:, j], change / np.sqrt(np.diag(rest.vcov)), rtol=RTOL, atol=RTOL)
        assert found.cooks_distance[j] == pytest.approx(change @ inverse @ change / p, rel=RTOL, abs=RTOL)
        assert found.covariance_ratio[j] == pytest.approx(np.linalg.det(rest.vcov) / determinant, rel=RTOL)


def test_one_step_is_newtons(case: Case) -> None:
    """The gradient of the deviance without the group, by differences, through the inverse Hessian of J - 1 groups."""
    method = case.fit.spec.method
    entries = case.entries
    steps = [*((case.direction(a, b), 0.0) for a, b in entries), (np.zeros_like(case.fit.T), 1.0)]
    T, s2, h = case.fit.T, case.fit.sigma2, 2e-4

    def deviance(model: Any, *moves: tuple[tuple[Array, float], float]) -> float:
        own, level1 = T.copy(), s2
        for (D, d), size in moves:
            own, level1 = own + size * D, level1 + size * d
        return float(type(model)(model.X, model.Z, model.y, model.groups, own, level1, model.w).deviance(method))

    def gradient(model: Any) -> Array:
        return np.array([(deviance(model, (m, h)) - deviance(model, (m, -h))) / (2 * h) for m in steps])

    whole = case.model()
    e = 1e-3
    H = np.array(
        [
            [
                deviance(whole, (m, e), (n, e))
                - deviance(whole, (m, e), (n, -e))
                - deviance(whole, (m, -e), (n, e))
                + deviance(whole, (m, -e), (n, -e))
                for n in steps
            ]
            for m in steps
        ]
    ) / (4 * e * e)
    found = influence(case.fit)
    ours = np.column_stack([*(found.T[a, b] for a, b in entries), found.sigma2])
    for j in (0, 5, 12, 17):
        own = gradient(case.model(j))
        step = np.linalg.solve(H, own) * 18 / 17
        # differences of the deviance have six digits
        np.testing.assert_allclose(ours[j], step, rtol=1e-4, atol=1e-4 * np.abs(step).max())
        # in the sampling covariance of the components, 2 H^-1, with one group less
        distance = 0.5 * own @ step * 18 / 17 / len(step)
        assert found.cooks_distance_components[j] == pytest.approx(distance, rel=1e-3)


def test_the_fixed_effects_sum_to_nearly_nothing_in_a_balanced_design() -> None:
    """The mean of means: leaving group j out moves it by (mean_j - mean) / (J - 1), whatever the variances."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(9), 4)
    y = 3 + 2 * rng.normal(size=9)[g] + rng.normal(size=36)
    fit = mlsql.fit("y ~ 1 + (1 | g)", pl.DataFrame({"g": g, "y": y}))
    found, means = influence(fit), y.reshape(9, 4).mean(axis=1)
    expected = (means - means.mean()) / 8
    np.testing.assert_allclose(found.beta[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance_ratio, 9 / 8, rtol=1e-9)
    np.testing.assert_allclose(found.dfbetas[0], expected / np.sqrt(fit.vcov.item() * 9 / 8), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.cooks_distance, expected**2 / fit.vcov.item(), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------- R's refits


class Deleted:
    """Refits without every group, by R, and our one step, in R's order of groups."""

    def __init__(self, name: str, data_file: Callable[[str], str]) -> None:
        expected = json.loads((EXPECTED / f"inference_{name}.json").read_text())
        self.exact = {k: np.array(v) for k, v in expected["influence"]["exact"].items()}
        self.fit = mlsql.fit(expected["formula"], data_file(expected["data"]))
        found = influence(self.fit)
        keys = [str(k) for k in self.fit.estimates.moments.keys.column(0).to_pylist()]
        order = [keys.index(level) for level in expected["influence"]["level"]]
        q = len(self.fit.T)
        lower = [(a, b) for b in range(q) for a in range(b, q)]
        self.components = np.column_stack([*(found.T[a, b] for a, b in lower), found.sigma2])[order]
        full = np.array([*(self.fit.T[a, b] for a, b in lower), self.fit.sigma2])
        self.refits = full - self.exact["theta"]
        self.beta, self.dfbetas = found.beta.T[order], found.dfbetas.T[order]
        self.cooks, self.ratio = found.cooks_distance[order], found.covariance_ratio[order]


@pytest.fixture(scope="module", params=["sleepstudy_reml", "hsb_means_reml"])
def deleted(request: pytest.FixtureRequest, data_file: Callable[[str], str]) -> Deleted:
    return Deleted(request.param, data_file)


def largest(values: Array, share: float = 0.25) -> NDArray[np.bool_]:
    """The groups that matter: their changes exceed a share of the largest."""
    return np.asarray(np.abs(values) > share * np.abs(values).max())


def test_variance_components_of_refits(deleted: Deleted) -> None:
    for k in range(deleted.refits.shape[1]):
        ours, theirs = deleted.components[:, k], deleted.refits[:, k]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99
        big = largest(theirs)
        np.testing.assert_allclose(ours[big], theirs[big], rtol=0.2)
        # the same group matters most
        assert np.argmax(np.abs(ours)) == np.argmax(np.abs(theirs))


def test_fixed_effects_of_refits(deleted: Deleted) -> None:
    """R's refits move the variances too, which in a balanced design changes nothing; its sign is the other one."""
    for k in range(deleted.beta.shape[1]):
        ours, theirs = deleted.beta[:, k], -deleted.exact["dfbeta"][:, k]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.999
        np.testing.assert_allclose(ours[largest(theirs)], theirs[largest(theirs)], rtol=0.1)
        ours, theirs = deleted.dfbetas[:, k], -deleted.exact["dfbetas"][:, k]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99
        np.testing.assert_allclose(ours[largest(theirs)], theirs[largest(theirs)], rtol=0.2)
    theirs = deleted.exact["cooks"]
    assert np.corrcoef(deleted.cooks, theirs)[0, 1] > 0.999
    np.testing.assert_allclose(deleted.cooks[largest(theirs)], theirs[largest(theirs)], rtol=0.1)


def test_a_balanced_design_is_exact(data_file: Callable[[str], str]) -> None:
    """Every subject has the same days: generalised least squares is least squares, whatever T and sigma2."""
    deleted = Deleted("sleepstudy_reml", data_file)
    np.testing.assert_allclose(deleted.beta, -deleted.exact["dfbeta"], rtol=RTOL, atol=1e-9)
    # twelve digits, and distances near zero
    np.testing.assert_allclose(deleted.cooks, deleted.exact["cooks"], rtol=1e-6)
    np.testing.assert_allclose(deleted.ratio, (18 / 17) ** 2, rtol=1e-9)


# ---------------------------------------------------------------------------------------------- awkward fits


def test_groups_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = mlsql.fit("y ~ w*x + (x | g)", small())
    whole = influence(fit)
    monkeypatch.setattr(module, "CHUNK", 5)
    parts = influence(fit)
    for name in ("beta", "dfbetas", "cooks_distance", "covariance_ratio", "T", "sigma2", "cooks_distance_components"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12, err_msg=name)


def test_units_of_the_data_carry_over() -> None:
    data = small()
    plain = influence(mlsql.fit("y ~ x + (x | g)", data))
    moved = influence(mlsql.fit("y ~ x + (x | g)", data.with_columns(pl.col("x") / 7, pl.col("y") * 5 + 1000)))
    # separate searches for the variances
    np.testing.assert_allclose(moved.beta[1], 35 * plain.beta[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved.cooks_distance, plain.cooks_distance, rtol=1e-4)
    np.testing.assert_allclose(moved.covariance_ratio, plain.covariance_ratio, rtol=1e-4)
    np.testing.assert_allclose(moved.T[1, 1], 35**2 * plain.T[1, 1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(moved.sigma2, 25 * plain.sigma2, rtol=1e-3, atol=1e-4)


def test_on_the_boundary_variances_are_held(data_file: Callable[[str], str]) -> None:
    """What does not move has no derivative; sigma2 and the fixed effects do move."""
    fit = mlsql.fit("Yield ~ 1 + (1 | Batch)", data_file("dyestuff2"))
    found = influence(fit)
    assert np.isnan(found.T).all()
    y = pl.read_parquet(data_file("dyestuff2")).sort("Batch")["Yield"].to_numpy().reshape(6, 5)
    means = y.mean(axis=1)
    np.testing.assert_allclose(found.beta[0], (means - means.mean()) / 5, rtol=1e-9, atol=1e-12)
    # the gradient at all groups' sigma2: (N - n - 1) / s2 - RSS without / s2^2, its Hessian (N - 1) / s2^2
    s2 = fit.sigma2
    for j in range(6):
        rest = np.delete(y, j, axis=0)
        slope = 24 / s2 - float(((rest - rest.mean()) ** 2).sum()) / s2**2
        assert found.sigma2[j] == pytest.approx(slope * s2**2 / 29 * 6 / 5, rel=1e-9)


def test_a_group_that_alone_identifies_an_effect() -> None:
    """Without group 12 the effect of k does not exist: nothing is estimated there; the other groups are as ever."""
    fit = mlsql.fit("y ~ x + k + (1 | g)", small())
    found = influence(fit)
    others = np.arange(18) != 12
    assert np.isnan(found.beta[:, 12]).all()
    assert np.isnan(found.dfbetas[:, 12]).all()
    assert np.isnan(found.cooks_distance[12])
    assert np.isfinite(found.beta[:, others]).all()
    assert np.isfinite(found.sigma2[others]).all()
    assert np.abs(found.dfbetas[:, others]).max() < 10
