"""`Estimates`: an evaluation of the likelihood in the user's own columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.design.columns import Variable
from mlsql.design.design import Design
from mlsql.errors import FitError
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.deviance import Evaluation
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.moments import Moments
from mlsql.moments.scales import Scales
from mlsql.moments.shifts import Shifts
from mlsql.moments.statistics import Statistics
from mlsql.optimise.search import Optimum
from mlsql.status import Status


@dataclass(frozen=True, slots=True)
class Estimates:
    """Estimates and everything needed to derive more.

    Attributes
    ----------
    design : Design
    moments : Moments
    statistics : Scales
    L : (q, q)
        Relative covariance factor in the internal basis.
    evaluation : Evaluation
    status : Status
    converged, singular : bool
    evaluations : int
        Evaluations of the objective.
    promised : float
        Decrease of the deviance that a further Newton step promises.
    """

    design: Design
    moments: Moments
    statistics: Scales
    L: Array
    evaluation: Evaluation
    status: Status
    converged: bool
    singular: bool
    evaluations: int
    promised: float

    @classmethod
    def at_optimum(cls, design: Design, moments: Moments, statistics: Scales, found: Optimum) -> Estimates:
        """The estimates where the search ended."""
        return cls(
            design=design,
            moments=moments,
            statistics=statistics,
            L=Covariance(statistics.blocks).factor(found.theta),
            evaluation=found.evaluation,
            status=found.status,
            converged=found.converged,
            singular=found.singular,
            evaluations=found.evaluations,
            promised=found.promised,
        )

    @property
    def grouped(self) -> Statistics:
        """The statistics of a two-level model.

        Raises
        ------
        FitError
            When the model has several grouping factors.
        """
        if not isinstance(self.statistics, Statistics):
            raise FitError(
                f"this is defined for models with one grouping factor; the model has "
                f"{len(self.design.spec.factors)}: {self.design.spec.group}"
            )
        return self.statistics

    @property
    def levels(self) -> LevelStatistics | None:
        """The statistics of a model with several grouping factors; None for a two-level model."""
        return self.statistics if isinstance(self.statistics, LevelStatistics) else None

    @property
    def fixed_names(self) -> tuple[str, ...]:
        """Terms of the fixed effects."""
        return tuple(c.name for c in self.design.fixed.columns)

    @property
    def random_names(self) -> tuple[str, ...]:
        """Terms of the random coefficients."""
        return tuple(c.name for c in self.design.random)

    @property
    def beta(self) -> Array:
        """(p,) fixed effects."""
        return self.statistics.user_beta(self.evaluation.beta)

    @property
    def vcov(self) -> Array:
        """(p, p) covariance matrix of the fixed effects."""
        transform = self.statistics.beta_transform
        return transform @ self.evaluation.beta_covariance @ transform.T

    @property
    def sigma2(self) -> float:
        """Level-1 variance."""
        return self.evaluation.sigma2

    @property
    def Lambda(self) -> Array:
        """(q, q) relative covariance matrix of the random coefficients, in the internal basis."""
        return np.asarray(self.L @ self.L.T)

    @property
    def T(self) -> Array:
        """(q, q) covariance matrix of the random coefficients."""
        root = self.statistics.u_transform @ self.L
        T: Array = self.sigma2 * root @ root.T
        # covariances between blocks are zero by definition, not by rounding
        return T * self.covariance.mask

    @property
    def covariance(self) -> Covariance:
        """Block structure of T."""
        return Covariance(self.statistics.blocks)

    @property
    def deviance(self) -> float:
        """-2 log (restricted) likelihood with all constants."""
        return self.evaluation.deviance

    @property
    def n_covariance_parameters(self) -> int:
        """Free variances and covariances, sigma2 included."""
        return self.covariance.n_parameters + 1

    @property
    def n_parameters(self) -> int:
        """All parameters, fixed effects included."""
        return self.n_covariance_parameters + self.statistics.p

    def factor_of(self, random: int) -> str:
        """Name of the factor whose groups a random coefficient varies over."""
        factors = self.design.spec.factors
        if self.levels is None:
            return factors[0].name
        return next(f.name for f, c in zip(factors, self.levels.columns, strict=True) if random in c)

    def _members_within(self, levels: LevelStatistics, random: int) -> list[int]:
        place = next(t for t, c in enumerate(levels.columns) if random in c)
        own, shifts = frozenset(self.design.random[random].variables), Shifts(self.design, self.moments)
        incidence = self.moments.incidences[place]

        def belongs(variable: Variable) -> bool:
            if not incidence.ordinary:
                # a predictor of the units, summed with their weights
                return variable.name.startswith("membership_sum(") and incidence.name in variable.name
            return variable.level == 2 and incidence.constant(shifts.pivoted_values(variable)) is not None

        columns = [frozenset(column.variables) for column in self.design.fixed.columns]
        return [f for f, c in enumerate(columns) if own <= c and all(map(belongs, c - own))]

    def equation_of(self, column: int) -> frozenset[Variable]:
        """The level-1 coefficient that a fixed column belongs to."""
        return frozenset(self.design.fixed.columns[column].level1)

    def equation_members(self, random: int) -> list[int]:
        """Fixed columns in the equation of a random coefficient.

        With several factors: those that are the coefficient's column times values that are one per group of its factor.
        """
        column = self.design.random[random]
        if self.levels is not None:
            return self._members_within(self.levels, random)
        if column.level2:
            return []
        own = frozenset(column.level1)
        return [f for f in range(self.statistics.p) if self.equation_of(f) == own]
