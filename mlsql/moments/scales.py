"""`Scales`: what the statistics of all models share: pooled products, covariance blocks, the way to user columns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from mlsql._arrays import Array


@dataclass(frozen=True, slots=True)
class Scales:
    """Pooled products and transforms of a model with p fixed and q random columns.

    X and Z are internal columns: pivoted, X scaled to unit mean square, each block of Z orthonormal on average.  The
    deviance and everything reported are those of the user's columns; the transforms lead back.

    Attributes
    ----------
    XytXy : (p+1, p+1)
    log_weights : float
        Sum of log weights.
    blocks : tuple of int
        Sizes of the covariance blocks of Z, in order.
    x_scale : (p,)
        What X was divided by.
    beta_transform : (p, p)
        user beta = beta_transform @ internal beta, plus `y_shift` in the intercept.
    u_transform : (q, q)
        user u = u_transform @ internal u.
    log_det_x : float
        log|X_user' M X_user| - log|X' M X| for any M.
    y_shift : float
    intercept : int or None
        Position of the intercept among the fixed columns.
    """

    XytXy: Array
    log_weights: float
    blocks: tuple[int, ...]
    x_scale: Array
    beta_transform: Array
    u_transform: Array
    log_det_x: float
    y_shift: float
    intercept: int | None

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Rows."""

    @property
    @abstractmethod
    def n_groups(self) -> int:
        """Groups that are independent of each other."""

    @property
    @abstractmethod
    def block_groups(self) -> tuple[int, ...]:
        """Groups behind each covariance block."""

    @property
    @abstractmethod
    def p(self) -> int:
        """Fixed columns."""

    @property
    def q(self) -> int:
        """Random columns."""
        return sum(self.blocks)

    def user_beta(self, beta: Array) -> Array:
        """Coefficients of the user's columns."""
        result: Array = self.beta_transform @ beta
        if self.intercept is not None:
            result[self.intercept] += self.y_shift
        return result
