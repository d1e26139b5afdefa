"""`Fit`: the estimates with their data, and every way to look at them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlsql._arrays import Array
from mlsql._typing import DfMethod, Unseen, Vcov
from mlsql.errors import FitError
from mlsql.formula.spec import ModelSpec
from mlsql.pipeline.comparators import Comparators
from mlsql.pipeline.contrasts import Contrasts
from mlsql.pipeline.derived import Derived
from mlsql.pipeline.diagnostics import Diagnostics
from mlsql.pipeline.inferring import Inferring
from mlsql.pipeline.interop import Interop
from mlsql.pipeline.keeping import Keeping
from mlsql.pipeline.levels import Levels
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.products import Products
from mlsql.pipeline.resampling import Resampling
from mlsql.pipeline.score import score_predictions, score_residuals
from mlsql.pipeline.store import fit_identifier
from mlsql.report import tables
from mlsql.report.summary import equations_text, summary
from mlsql.results.estimates import Estimates
from mlsql.results.measures import aic, bic, icc
from mlsql.sql.plan import Plan
from mlsql.status import Status

if TYPE_CHECKING:
    import duckdb
    import polars as pl


@dataclass(frozen=True, slots=True, repr=False)
class Fit(Inferring, Interop, Keeping):
    """A fitted (or evaluated) model.  Immutable; tables are made when asked for.

    Attributes
    ----------
    estimates : Estimates
        The numbers behind every accessor.
    inputs : Inputs
        Where the data are.
    plan : Plan
        The moments statements that ran.
    dropped : tuple of str
        Rows left out for missing values, counted per column.
    warnings : tuple of str
        What to know before reading the numbers.
    seconds : mapping of str to float
        Time by stage: survey, scan, pack, optimise.
    products : Products
        Sums by group that robust errors need; fetched by one more scan when a large fit first needs them.
    """

    estimates: Estimates
    inputs: Inputs
    plan: Plan
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    products: Products

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.estimates.design.spec

    @property
    def fit_id(self) -> str:
        """Identifier in result tables: the same for the same model on the same data."""
        return fit_identifier(self.estimates, self.inputs.rows.label)

    @property
    def variance_components(self) -> pl.DataFrame:
        """group, term1, term2, estimate (variance scale), sd_or_corr, std_error, conf_low, conf_high, chi2, df, ..."""
        return tables.variance_components_table(self.estimates)

    @property
    def statistics(self) -> pl.DataFrame:
        """One row: rows, groups, deviance, information criteria, status."""
        return tables.fit_statistics_table(self.estimates)

    @property
    def survey(self) -> pl.DataFrame:
        """One row per column of the model: type, level, missing values, range, factor levels, pivot."""
        return tables.survey_table(self.estimates)

    def group_effects(self, group: str | None = None) -> pl.DataFrame:
        """Effects of every group.

        Parameters
        ----------
        group : str, optional
            The grouping factor, `"school"` or `"school:child"`; needed when the model has several.

        Returns
        -------
        polars.DataFrame
            Key column(s), term, estimate (EB residual), std_error (posterior, with the fixed effects' uncertainty),
            conditional_sd (without it), reliability, n.  With one factor also coefficient, coefficient_std_error,
            ols_estimate, ols_std_error, ols_coefficient; least-squares columns are null for groups of deficient rank.

        Raises
        ------
        FitError
            When the model has no such group, or several and none is named.
        """
        factors = self.spec.factors
        if group is None and len(factors) > 1:
            raise FitError(
                f"the model has {len(factors)} grouping factors, {self.spec.group}; name one: "
                f"group_effects({factors[0].name!r})"
            )
        factor = factors[0] if group is None else self.spec.factor(group)
        if factor is None:
            raise FitError(f"the model has no random effects of {group!r}; its groups are {self.spec.group}")
        return tables.group_effects_tables(self.estimates)[factors.index(factor)]

    @property
    def levels(self) -> Levels:
        """How the grouping factors meet, shares of variance by level, intra-unit correlations."""
        return Levels(self.products)

    @property
    def contrasts(self) -> Contrasts:
        """Linear combinations of the fixed effects: simple slopes, Johnson-Neyman regions, contextual effects."""
        return Contrasts(self.products)

    @property
    def derived(self) -> Derived:
        """ICC, reliabilities, plausible values, variance functions, explained variance."""
        return Derived(self.products)

    @property
    def diagnostics(self) -> Diagnostics:
        """Residuals at both levels, influence of groups, candidates for level 2, advice."""
        return Diagnostics(self.products)

    @property
    def comparators(self) -> Comparators:
        """OLS, between, within and group-by-group regressions from the same moments."""
        return Comparators(self.products)

    @property
    def resampling(self) -> Resampling:
        """Parametric and cluster bootstrap, group jackknife."""
        return Resampling(self.products)

    @property
    def T(self) -> Array:
        """(q, q) covariance matrix of the random coefficients."""
        return self.estimates.T

    @property
    def vcov(self) -> Array:
        """(p, p) covariance matrix of the fixed effects."""
        return self.estimates.vcov

    @property
    def sigma2(self) -> float:
        """Level-1 variance."""
        return self.estimates.sigma2

    @property
    def deviance(self) -> float:
        """-2 log likelihood (ML) or restricted log likelihood (REML), all constants included."""
        return self.estimates.deviance

    @property
    def log_likelihood(self) -> float:
        """Half of minus the deviance."""
        return -self.deviance / 2.0

    @property
    def aic(self) -> float:
        """Deviance + 2 x parameters."""
        return aic(self.estimates)

    @property
    def bic(self) -> float:
        """Deviance + log(rows) x parameters."""
        return bic(self.estimates)

    @property
    def icc(self) -> float | None:
        """Intraclass correlation; None unless the intercept alone is random."""
        return icc(self.estimates)

    @property
    def n_rows(self) -> int:
        """Rows in the analysis."""
        return self.estimates.statistics.n_rows

    @property
    def n_groups(self) -> int | None:
        """Groups in the analysis, of the factor in which the others nest; None where there is none."""
        levels = self.estimates.levels
        return None if levels is not None and levels.top is None else self.estimates.statistics.n_groups

    @property
    def converged(self) -> bool:
        """The optimum was reached, on the boundary or not."""
        return self.estimates.converged

    @property
    def singular(self) -> bool:
        """A variance is exactly zero or a correlation +-1."""
        return self.estimates.singular

    @property
    def status(self) -> Status:
        """How the search ended; `.value` is advice."""
        return self.estimates.status

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the objective."""
        return self.estimates.evaluations

    def equations(self) -> str:
        """The model level by level and in mixed form."""
        return equations_text(self.estimates)

    def summary(self, df: DfMethod | None = None, vcov: Vcov = "model") -> str:
        """The whole report, in the layout HLM users know; `df` and `vcov` are those of `inference`."""
        return summary(
            self.estimates,
            self.inputs.rows.label,
            self.warnings,
            self.dropped,
            self.reference(df, vcov),
            self.robust_or_reason(),
        )

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        groups = "crossed groups" if self.n_groups is None else f"{self.n_groups:,} groups"
        return (
            f"<mlsql.Fit {self.spec.formula}; {self.spec.method}, {self.n_rows:,} rows, {groups}, "
            f"deviance {self.deviance:.3f}, {self.status.label}>"
        )

    def predict(
        self,
        data: object = None,
        *,
        into: str | os.PathLike[str] | None = None,
        con: duckdb.DuckDBPyConnection | None = None,
        level2: object = None,
        unseen: Unseen = "error",
        terms: str | Sequence[str] | None = None,
        replace: bool = False,
    ) -> pl.DataFrame | None:
        """Fitted values for every row, computed in the database.

        Parameters
        ----------
        data, level2 : like `fit`, optional
            Rows to predict; those of the fit when not given.
        into : str or path, optional
            Name of a table to make on the connection, or a path ending in `.parquet` or `.csv`.  Without it the rows
            come back as a frame.
        con : DuckDB connection, optional
            Needed for a table; the fit's own connection when not given.
        unseen : {"error", "population", "missing"}
            Rows whose group the fit did not see: refuse, predict their group effect as zero with the variance of a new
            group, or leave the conditional columns NULL.
        terms : str or sequence of str, optional
            Grouping factors whose effects `conditional` holds: `"school"`, `["school", "school:child"]`; all when not
            given, none for `()` or `"none"`.  The data need no keys of other factors, and their groups may be unseen.
        replace : bool
            Overwrite the table or file if it exists.

        Returns
        -------
        polars.DataFrame or None
            The data's columns and population, population_std_error (fixed effects alone), conditional,
            conditional_std_error (with group effects); None when written.  Rows with missing predictors give NULL.

        Raises
        ------
        DataError
            For unseen groups with unseen="error"; for new data when a factor takes its units from a membership table.

        Notes
        -----
        conditional_std_error holds the covariances between the effects of different factors.  It is NULL where they
        are not to be had: crossed factors with so many groups that they are solved sparse, or more combinations of
        groups than memory should hold (0.4 GB).  A set of units that the fit did not see is never predicted.
        """
        return score_predictions(
            self.estimates,
            self.inputs,
            data,
            into=into,
            con=con,
            level2=level2,
            unseen=unseen,
            replace=replace,
            terms=terms,
        )

    def residuals(
        self,
        *,
        into: str | os.PathLike[str] | None = None,
        con: duckdb.DuckDBPyConnection | None = None,
        replace: bool = False,
    ) -> pl.DataFrame | None:
        """Level-1 residuals of the fit's rows, computed in the database.

        Parameters
        ----------
        into, con, replace
            As for `predict`.

        Returns
        -------
        polars.DataFrame or None
            The data's columns and residual_population (outcome minus fixed part), residual (minus the EB group effects
            too; Raudenbush & Bryk 3.63), residual_ols (minus least-squares group effects, 3.62; NULL in groups of
            deficient rank; none with several factors), residual_standardized (residual / sigma x root of the weight).
        """
        return score_residuals(self.estimates, self.inputs, into=into, con=con, replace=replace)
