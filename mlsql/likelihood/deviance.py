"""`Deviance`: the objective of every model, whatever the structure of its random terms; and one evaluation of it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from mlsql._arrays import Array
from mlsql._typing import Method
from mlsql.errors import FitError
from mlsql.moments.scales import Scales


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The likelihood at one Lambda.

    Attributes
    ----------
    deviance : float
        -2 log (restricted) likelihood of the user's columns, all constants included.
    sigma2 : float
        Level-1 variance: profiled, or as given.
    beta : (p,)  internal coefficients
    root : (p, p)
        Lower Cholesky factor of S_XX; Var(beta) = sigma2 (root root')^-1.
    r2 : float
        Generalised residual sum of squares.
    state : Any
        What the model's structure left behind: K (q, q, J) of a two-level model, `Absorbed` of others.
    slopes : Slopes or None
        First and second derivatives, when asked for.
    """

    deviance: float
    sigma2: float
    beta: Array
    root: Array
    r2: float
    state: Any
    slopes: Slopes | None

    @property
    def K(self) -> Array:
        """(q, q, J) of a two-level model."""
        if not isinstance(self.state, np.ndarray):
            raise FitError("this is defined for models with one grouping factor; the model has several")
        return self.state

    @property
    def beta_covariance(self) -> Array:
        """(p, p) covariance matrix of the internal coefficients."""
        W = self.whitener
        return self.sigma2 * W.T @ W

    @property
    def whitener(self) -> Array:
        """(p, p) W = root^-1: the coefficients W'^-1 beta have covariance matrix sigma2 I."""
        return _inverse_of(self.root)


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives with respect to the entries of Lambda, as if all q x q entries were free.

    Attributes
    ----------
    logs : (q, q)        gradient of log|V| + [REML] log|S_XX|
    residual : (q, q)    minus the gradient of r2: sum r r'
    logs2 : (q, q, q, q)      second derivatives of the logarithms
    residual2 : (q, q, q, q)  second derivatives of r2
    exact : bool
        False when the second derivatives are the average information's: half of `residual2`, whose expectation is
        that of the sum, and no `logs2` (Gilmour, Thompson & Cullis 1995, Biometrics 51, 1440).
    """

    logs: Array
    residual: Array
    logs2: Array
    residual2: Array
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Deviance:
    """The deviance as a function of the relative covariance factor L.

    Attributes
    ----------
    statistics : Scales
    method : {"REML", "ML"}
    """

    statistics: Scales
    method: Method

    @property
    def degrees(self) -> int:
        """Divisor of sigma2: N for ML, N - p for REML."""
        return self.statistics.n_rows - (self.statistics.p if self.method == "REML" else 0)

    @abstractmethod
    def accumulate(self, L: Array) -> tuple[float, Any, Array]:
        """log|V| up to n log s2 and weights, the structure's state, and S = s2 [X y]'V^-1[X y]."""

    @abstractmethod
    def overlaps(self) -> tuple[Array, Array]:
        """Sums for Lambda's start: products of Z'Z by pairs of groups, and Z'Z by group.

        Returns
        -------
        products : (q, q, q, q)
            [b, c, d, a]: sum over pairs of groups of (z_b'z_c)(z_a'z_d), columns b and a of the one group, c and d of
            the other.
        sums : (q, q)
            Sum over groups of z_a'z_b for columns of one factor.
        """

    @abstractmethod
    def slopes(self, L: Array, state: Any, beta: Array, whitener: Array) -> Slopes:
        """Derivatives in the entries of Lambda."""

    def at(self, L: Array, *, sigma2: float | None = None, slopes: bool = True) -> Evaluation:
        """Evaluate at a relative covariance factor.

        Parameters
        ----------
        L : (q, q)
            Block diagonal, Lambda = L L', may be singular.
        sigma2 : float, optional
            Level-1 variance; profiled out when not given.
        slopes : bool
            Compute derivatives too.

        Raises
        ------
        FitError
            When no residual variation is left.
        """
        stats = self.statistics
        # 1. the random terms absorbed: log|V| and S
        log_det, state, S = self.accumulate(L)
        # 2. generalised least squares from S
        p = stats.p
        root = np.zeros((0, 0)) if p == 0 else cholesky(S[:p, :p], lower=True)
        w = solve_triangular(root, S[:p, p], lower=True)
        beta = solve_triangular(root, w, lower=True, trans="T")
        r2 = float(S[p, p] - w @ w)
        if not r2 > 1e-14 * float(stats.XytXy[p, p]):
            raise FitError(
                "the model reproduces the outcome exactly: no level-1 variation is left, so sigma2 and all tests are "
                "undefined; is the outcome also among the predictors?"
            )
        # 3. deviance
        log_xx = 2.0 * float(np.log(np.diag(root)).sum())
        used = r2 / self.degrees if sigma2 is None else sigma2
        deviance = self.degrees * np.log(2.0 * np.pi * used) + r2 / used + log_det - stats.log_weights
        if self.method == "REML":
            deviance += log_xx + stats.log_det_x
        found = None
        if slopes:
            found = self.slopes(L, state, beta, _inverse_of(root))
        return Evaluation(float(deviance), used, beta, root, r2, state, found)


def _inverse_of(root: Array) -> Array:
    """root^-1 (p, p)."""
    return np.asarray(solve_triangular(root, np.eye(len(root)), lower=True))


def symmetrised(H: Array) -> Array:
    """Average over the orders (ab)(cd), (ba)(cd), ...: derivatives along symmetric directions."""
    H = (H + H.transpose(1, 0, 2, 3)) / 2.0
    return (H + H.transpose(0, 1, 3, 2)) / 2.0
