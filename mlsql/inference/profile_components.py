"""Profile-likelihood intervals of standard deviations and correlations.

T = CC' with C lower triangular once the coefficients in question stand first in their block: a standard deviation is
then an entry of C, a correlation the ratio of two in one column, and holding it leaves C linear in free entries psi.
With lambda = log sigma2 and U the way from internal to user columns, the relative covariance is

    Lambda = U^-1 C C' U^-T exp(-lambda)

and the deviance's derivatives in (Lambda, sigma2) carry over to (psi, lambda) by the chain rule.  With several grouping
factors the second ones are the average information's, and the search takes more steps to the same end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from mlsql._arrays import Array
from mlsql.inference.fixed_effects import check_level
from mlsql.inference.roots import upper_end
from mlsql.likelihood.objective import make_deviance
from mlsql.optimise.newton import minimise
from mlsql.results.components import ComponentErrors, component_errors
from mlsql.results.estimates import Estimates
from mlsql.results.measures import correlation

RIDGE = 1e-4
"""Share of a variance added to the diagonal of a singular T before its factor is a start: zeros are saddles."""


@dataclass(frozen=True, slots=True)
class Component:
    """A standard deviation (a is b) or correlation of random coefficients, or sigma (both None)."""

    a: int | None
    b: int | None


@dataclass(frozen=True, slots=True)
class ComponentInterval:
    """Interval of a component, on the scale of standard deviations and correlations."""

    component: Component
    estimate: float
    low: float
    high: float


def profile_components(estimates: Estimates, level: float = 0.95) -> tuple[ComponentInterval, ...]:
    """Profile intervals: standard deviations, correlations, sigma last.

    The likelihood is the fit's own, restricted or full.  An end is 0 or +-1 where even the boundary's deviance is not
    high enough above the minimum.
    """
    check_level(level)
    z = float(ndtri(0.5 + level / 2.0))
    wanted = [Component(a, a) for a in range(estimates.statistics.q)]
    wanted += [Component(a, b) for s in estimates.covariance.slices for b in range(s.start, s.stop) for a in
               range(b + 1, s.stop)]  # fmt: skip
    errors = component_errors(estimates)
    return tuple(_interval(estimates, errors, component, z) for component in [*wanted, Component(None, None)])


def _interval(estimates: Estimates, errors: ComponentErrors, component: Component, z: float) -> ComponentInterval:
    a, b = component.a, component.b
    bottom = estimates.deviance
    profile = _Profile(estimates, component)

    def rise(value: float) -> float:
        return profile.deviance(value) - bottom

    if a is None or b is None:
        value, error = float(np.sqrt(estimates.sigma2)), errors.sigma2 / (2.0 * np.sqrt(estimates.sigma2))
        step = z * error if np.isfinite(error) else 0.1 * value
        low = upper_end(rise, value, -min(step, 0.5 * value), -np.inf, z)
        return ComponentInterval(component, value, low, upper_end(rise, value, step, np.inf, z))
    if a == b:
        value = float(np.sqrt(estimates.T[a, a]))
        error = errors.T[a, a] / (2.0 * value) if value > 0 else np.nan
        scale = float(np.sqrt(estimates.sigma2 * np.sum(estimates.statistics.u_transform[a] ** 2)))
        step = z * error if np.isfinite(error) else 0.1 * scale
        low = upper_end(rise, value, -min(step, 0.9 * value), 0.0, z) if value > 0 else 0.0
        return ComponentInterval(component, value, low, upper_end(rise, value, step, np.inf, z))
    value = correlation(estimates.T, a, b)
    if not np.isfinite(value):
        return ComponentInterval(component, value, float("nan"), float("nan"))
    # where one of the two does not vary any correlation holds: no rise exceeds that of the cheaper of these
    bound = min(_Profile(estimates, Component(k, k)).deviance(0.0) for k in (a, b)) - bottom

    def bounded(value: float) -> float:
        return min(rise(value), bound)

    low = upper_end(bounded, value, -0.5 * (1.0 + value), -1.0, z) if value > -1.0 else -1.0
    high = upper_end(bounded, value, 0.5 * (1.0 - value), 1.0, z) if value < 1.0 else 1.0
    return ComponentInterval(component, value, low, high)


class _Profile:
    """The minimum of the deviance with one component held; every search starts at the estimates."""

    def __init__(self, estimates: Estimates, component: Component) -> None:
        self.deviance_of = make_deviance(estimates.statistics, estimates.design.spec.method)
        self.back = np.linalg.inv(estimates.statistics.u_transform)
        self.component = component
        q, order = estimates.statistics.q, []
        for s in estimates.covariance.slices:
            first = [i for i in (component.b, component.a) if i is not None and s.start <= i < s.stop]
            order.append(list(dict.fromkeys([*first, *range(s.start, s.stop)])))
        self.entries = [(block[i], block[j]) for block in order for i in range(len(block)) for j in range(i + 1)]
        T = estimates.T
        ridge = RIDGE * np.maximum(np.diag(T), 1e-2 * estimates.sigma2 * np.sum(estimates.statistics.u_transform**2, 1))
        if estimates.singular:
            T = T + np.diag(ridge)
        C = np.zeros((q, q))
        for block in order:
            C[np.ix_(block, block)] = np.linalg.cholesky(T[np.ix_(block, block)])
        self.start = C
        self.lam = float(np.log(estimates.sigma2))

    def _family(self, value: float) -> tuple[Array, Array, Array]:
        """C0 and the (k, q, q) directions of C = C0 + sum psi_i E_i, and psi at the estimates."""
        a, b = self.component.a, self.component.b
        q = len(self.start)
        C0, E, psi = np.zeros((q, q)), [], []
        for row, column in self.entries:
            if a is not None and row == column == b and a == b:
                C0[row, column] = value
                continue
            if a is not None and b is not None and a != b and (row, column) == (a, b):
                # the correlation's row: length m along (value, sqrt(1 - value^2))
                D = np.zeros((q, q))
                D[a, b], D[a, a] = value, np.sqrt(max(1.0 - value * value, 0.0))
                E.append(D)
                psi.append(float(np.hypot(self.start[a, b], self.start[a, a])))
                continue
            if a is not None and a != b and row == column == a:
                continue
            D = np.zeros((q, q))
            D[row, column] = 1.0
            E.append(D)
            psi.append(float(self.start[row, column]))
        return C0, np.array(E).reshape(len(E), q, q), np.array(psi)

    def deviance(self, value: float) -> float:
        """The profile deviance at a value of the component."""
        C0, E, psi = self._family(value)
        fixed = 2.0 * np.log(value) if self.component.a is None else None
        start = psi if fixed is not None else np.append(psi, self.lam)
        found = minimise(lambda x: self._objective(x, C0, E, fixed), start, max_evaluations=200)
        return found.value

    def _flipped(self, x: Array, C0: Array, E: Array) -> bool:
        a, b = self.component.a, self.component.b
        if a is None or b is None or a == b:
            return False
        C = C0 + np.einsum("i,iab->ab", x[: len(E)], E)
        length = x[: len(E)][E[:, a, [a, b]].any(axis=1)]
        return bool(C[b, b] < 0 or np.any(length < 0))

    def _objective(self, x: Array, C0: Array, E: Array, fixed: float | None) -> tuple[float, Array, Array]:
        k = len(E)
        lam = float(x[-1]) if fixed is None else fixed
        s2 = float(np.exp(lam))
        if self._flipped(x, C0, E):
            # the mirror image, with the other sign of the correlation: a step too far
            return np.inf, np.zeros(len(x)), np.zeros((len(x), len(x)))
        C = self.back @ (C0 + np.einsum("i,iab->ab", x[:k], E)) / np.sqrt(s2)
        D = np.einsum("ab,ibc->iac", self.back, E) / np.sqrt(s2)
        evaluation = self.deviance_of.at(C, sigma2=s2)
        slopes = evaluation.slopes
        assert slopes is not None
        g = slopes.logs - slopes.residual / s2
        H = slopes.logs2 + slopes.residual2 / s2
        J = np.einsum("iab,cb->iac", D, C)
        J = J + np.swapaxes(J, 1, 2)
        gradient, hessian = np.empty(k + 1), np.empty((k + 1, k + 1))
        Lambda, own = C @ C.T, evaluation.r2 / s2
        along = float(np.sum(g * Lambda))
        gradient[:k] = np.einsum("ab,iab->i", g, J)
        gradient[k] = self.deviance_of.degrees - own - along
        HJ = np.einsum("abcd,icd->iab", H, J, optimize=True)
        hessian[:k, :k] = np.einsum("iab,jab->ij", HJ, J) + 2.0 * np.einsum("ab,iac,jbc->ij", g, D, D, optimize=True)
        mixed = np.einsum("iab,ab->i", J, slopes.residual) / s2 - np.einsum("iab,ab->i", HJ, Lambda)
        hessian[:k, k] = hessian[k, :k] = mixed - gradient[:k]
        curved = float(np.einsum("ab,abcd,cd->", Lambda, H, Lambda))
        hessian[k, k] = own + curved - 2.0 * float(np.sum(slopes.residual * Lambda)) / s2 + along
        kept = k + 1 if fixed is None else k
        return evaluation.deviance, gradient[:kept], hessian[:kept, :kept]
