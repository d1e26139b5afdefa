"""The reference distribution of the fixed effects: a covariance matrix with degrees of freedom, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mlsql._arrays import Array
from mlsql._typing import DfMethod, Vcov
from mlsql.errors import FitError
from mlsql.inference.counted_df import between_within_df, hlm_df, normal_df, residual_df
from mlsql.inference.kenward_roger import KenwardRoger, kenward_roger
from mlsql.inference.level_robust import clusters_of, level_robust
from mlsql.inference.robust import Robust, robust
from mlsql.inference.satterthwaite import Satterthwaite, joint_df, satterthwaite
from mlsql.results.estimates import Estimates

COUNTED = {"hlm": hlm_df, "between_within": between_within_df, "residual": residual_df, "normal": normal_df}

FEW_GROUPS = 40
"""Below this many groups CR0 and CR1 are biased downward enough to matter (Cameron & Miller 2015, J. Hum. Res. 50)."""

SINGULAR = 1e-12
"""Smallest eigenvalue of the correlation matrix of contrasts below which they cannot be tested jointly."""

UNRELIABLE = 4.0
"""p values of tests with fewer Satterthwaite df are not to be relied upon (Tipton 2015, Psychol. Methods 20)."""

Products = Callable[[], Array]
"""Gives [X y]'W[X y] by group, by cell where there are several factors; called only for robust matrices, since it may
cost a scan."""


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint test's statistic: F with df1 and df2 (inf: chi-square)."""

    F: float
    df1: int
    df2: float


@dataclass(frozen=True, slots=True)
class Reference:
    """How estimates are compared with zero.

    Attributes
    ----------
    df_method : str
    vcov : str
    covariance : (p, p)
        User columns.
    per_term : (p,) or None
        Degrees of freedom that belong to coefficients; None where they belong to contrasts.
    per_contrast : Satterthwaite, KenwardRoger, Robust or None
    transform : (p, p)
        user beta = transform @ internal beta.
    """

    df_method: DfMethod
    vcov: Vcov
    covariance: Array
    per_term: Array | None
    per_contrast: Satterthwaite | KenwardRoger | Robust | None
    transform: Array

    @classmethod
    def counted(cls, estimates: Estimates, df: DfMethod = "hlm") -> Reference:
        """The model's covariance matrix with degrees of freedom that are counted."""
        return cls(df, "model", estimates.vcov, COUNTED[df](estimates), None, estimates.statistics.beta_transform)

    def df(self, contrasts: Array) -> Array:
        """(r,) degrees of freedom of each row of (r, p) contrasts of user columns.

        Counted df belong to coefficients: a contrast of several takes the smallest of theirs.
        """
        found = self.per_contrast
        if self.per_term is not None:
            return np.array([self.per_term[row != 0.0].min(initial=np.inf) for row in contrasts])
        if isinstance(found, KenwardRoger):
            return np.array([found.scale_and_df(row[None])[1] for row in contrasts])
        if isinstance(found, Robust):
            return found.df(contrasts @ self.transform)
        assert found is not None
        return found.df(contrasts)

    def wald(self, contrasts: Array, difference: Array) -> float:
        """d'V^-1 d with V the covariance matrix of (r, p) contrasts and d their (r,) differences.

        Raises
        ------
        FitError
            When V is singular, as a robust matrix of few groups is.
        """
        V = contrasts @ self.covariance @ contrasts.T
        scale = np.sqrt(np.diag(V))
        if not np.all(scale > 0) or np.linalg.eigvalsh(V / np.outer(scale, scale))[0] < SINGULAR:
            raise FitError(
                f"the covariance matrix (vcov={self.vcov!r}) of these {len(contrasts)} contrasts is singular: "
                "there are too few groups to test so many at once; test fewer, or use vcov='model'"
            )
        return float(difference @ cho_solve(cho_factor(V), difference))

    def joint(self, contrasts: Array, difference: Array) -> Joint:
        """Test (r, p) independent contrasts against zero differences (r,).

        Model covariance with counted df: F with the smallest df; satterthwaite: Fai & Cornelius (1996); kenward_roger:
        scaled F; robust covariance with satterthwaite: the approximate Hotelling test (HTZ).
        """
        r = len(contrasts)
        V = contrasts @ self.covariance @ contrasts.T
        wald = self.wald(contrasts, difference)
        found = self.per_contrast
        if isinstance(found, KenwardRoger):
            scale, df = found.scale_and_df(contrasts)
            return Joint(scale * wald / r, r, df)
        if isinstance(found, Robust):
            eta = found.joint_df(contrasts @ self.transform)
            if eta - r + 1 <= 0:
                raise FitError(
                    f"too few groups for a robust test of {r} coefficients at once: its df is {eta - r + 1:.2g}; "
                    "test fewer coefficients, or use vcov='model'"
                )
            return Joint((eta - r + 1) / (eta * r) * wald, r, eta - r + 1)
        if isinstance(found, Satterthwaite):
            # the orthogonal contrasts behind the F statistic
            _, vectors = np.linalg.eigh(V)
            return Joint(wald / r, r, joint_df(found.df(vectors.T @ contrasts)))
        return Joint(wald / r, r, float(self.df(contrasts).min()))


def make_reference(
    estimates: Estimates, products: Products, df: DfMethod | None = None, vcov: Vcov = "model"
) -> Reference:
    """Choose covariance matrix and degrees of freedom.

    Parameters
    ----------
    estimates : Estimates
    products : callable
        Gives the products by group; by cell of a model with several factors, whose clusters are the groups of the
        factor in which the others nest.
    df : str, optional
        hlm, between_within, residual, satterthwaite, kenward_roger or normal; hlm when not given, satterthwaite beside
        CR2.
    vcov : {"model", "CR0", "CR1", "CR2"}

    Raises
    ------
    FitError
        For names that are none, and for what does not exist: Kenward-Roger for ML or beside a robust matrix,
        Satterthwaite where the components are not told apart, CR2 with fewer groups than fixed effects; for crossed
        factors a robust matrix and between_within, and Kenward-Roger where these are large.
    """
    chosen: DfMethod = df if df is not None else "satterthwaite" if vcov == "CR2" else "hlm"
    check_names(chosen, vcov)
    stats, transform = estimates.statistics, estimates.statistics.beta_transform
    covariance, matrix = estimates.vcov, None
    if vcov != "model":
        levels = estimates.levels
        of = "" if levels is None else f" of {levels.incidences[clusters_of(levels)].name}"
        if stats.n_groups <= stats.p and vcov == "CR2":
            raise FitError(
                f"vcov='CR2' needs more groups{of} than fixed effects, not {stats.n_groups} for {stats.p}: "
                "the residuals of so few groups determine no covariance matrix; use vcov='model' with "
                "df='kenward_roger'"
            )
        with_df, L, evaluation = chosen == "satterthwaite", estimates.L, estimates.evaluation
        if levels is None:
            matrix = robust(estimates.grouped, L, evaluation, products(), vcov, with_df=with_df)
        else:
            matrix = level_robust(levels, L, evaluation, products(), vcov, with_df=with_df)
        covariance = matrix.covariance(transform)
    if chosen in COUNTED:
        return Reference(chosen, vcov, covariance, COUNTED[chosen](estimates), None, transform)
    if chosen == "kenward_roger":
        if vcov != "model":
            raise FitError(
                f"df='kenward_roger' adjusts the model's covariance matrix and does not exist for vcov={vcov!r}; "
                "use df='satterthwaite' with it"
            )
        found = kenward_roger(estimates)
        return Reference(chosen, vcov, found.covariance, None, found, transform)
    if matrix is not None:
        return Reference(chosen, vcov, covariance, None, matrix, transform)
    satter = satterthwaite(estimates)
    if satter is None:
        raise FitError(
            "df='satterthwaite' is not defined here: the data do not tell the variance components apart, so their "
            "information is singular; use df='hlm' or simplify the random part"
        )
    return Reference(chosen, vcov, covariance, None, satter, transform)


def check_names(df: object, vcov: object) -> None:
    """Refuse names of methods that are none.

    Raises
    ------
    FitError
    """
    if df not in get_args(DfMethod):
        raise FitError(f"df is {df!r}; it is one of {', '.join(get_args(DfMethod))}")
    if vcov not in get_args(Vcov):
        raise FitError(f"vcov is {vcov!r}; it is one of {', '.join(get_args(Vcov))}")


def caution(reference: Reference, estimates: Estimates, df: Array) -> str | None:
    """What to know before using the p values, or None."""
    few = few_groups(reference.vcov, estimates.statistics.n_groups)
    if few is not None:
        return few
    if reference.df_method in ("satterthwaite", "kenward_roger") and np.any(df < UNRELIABLE):
        return f"p values with fewer than {UNRELIABLE:g} df are not reliable: too few groups determine the estimate"
    if estimates.singular and isinstance(reference.per_contrast, Satterthwaite):
        return "T is on its boundary and df take it to stay there, which makes them large; see df='kenward_roger'"
    return None


def few_groups(vcov: Vcov, n_groups: int) -> str | None:
    """A caution against CR0 and CR1 with few groups."""
    if vcov in ("CR0", "CR1") and n_groups < FEW_GROUPS:
        return f"{vcov} with {n_groups} groups is too small on average; use vcov='CR2'"
    return None
