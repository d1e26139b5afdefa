"""`Fit`: the estimates with their data, and every way to look at them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlsql._arrays import Array
from mlsql._typing import DfMethod, Unseen, Vcov
from mlsql.errors import FitError
from mlsql.formula.describe import level_equations
from mlsql.formula.spec import ModelSpec
from mlsql.pipeline.comparators import Comparators
from mlsql.pipeline.contrasts import Contrasts
from mlsql.pipeline.derived import Derived
from mlsql.pipeline.diagnostics import Diagnostics
from mlsql.pipeline.inferring import Inferring
from mlsql.pipeline.interop import Interop
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.products import Products
from mlsql.pipeline.resampling import Resampling
from mlsql.pipeline.save import save_fit
from mlsql.pipeline.score import score_predictions, score_residuals
from mlsql.pipeline.store import fit_identifier, write_tables
from mlsql.report import fixed, tables
from mlsql.report.summary import summary
from mlsql.results.estimates import Estimates
from mlsql.results.measures import aic, bic, icc
from mlsql.sql.plan import Plan
from mlsql.status import Status

if TYPE_CHECKING:
    import duckdb
    import polars as pl


@dataclass(frozen=True, slots=True, repr=False)
class Fit(Inferring, Interop):
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
            The grouping factor; the model has one.

        Returns
        -------
        polars.DataFrame
            Key column(s), term, estimate (EB residual), std_error (posterior, with the fixed effects' uncertainty),
            conditional_sd (without it), coefficient, coefficient_std_error, ols_estimate, ols_std_error,
            ols_coefficient, reliability, n.  Least-squares columns are null for groups of deficient rank.

        Raises
        ------
        FitError
            When the model has no such group.
        """
        if group is not None and group != self.spec.group:
            raise FitError(f"the model has no random effects of {group!r}; its group is {self.spec.group!r}")
        return tables.group_effects_table(self.estimates)

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
    def n_groups(self) -> int:
        """Groups in the analysis."""
        return self.estimates.statistics.n_groups

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
        return level_equations(self.spec, self.estimates.design.level2_names)

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
        return (
            f"<mlsql.Fit {self.spec.formula}; {self.spec.method}, {self.n_rows:,} rows, {self.n_groups:,} groups, "
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
            For unseen groups with unseen="error".
        """
        return score_predictions(
            self.estimates, self.inputs, data, into=into, con=con, level2=level2, unseen=unseen, replace=replace
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
            deficient rank), residual_standardized (residual / sigma, times the root of the weight).
        """
        return score_residuals(self.estimates, self.inputs, into=into, con=con, replace=replace)

    def to_tables(
        self,
        con: duckdb.DuckDBPyConnection,
        prefix: str = "ml_",
        *,
        history: bool = False,
        covariances: bool | None = None,
        df: DfMethod | None = None,
        vcov: Vcov = "model",
    ) -> str:
        """Write all result tables in one transaction.

        Tables `<prefix>fits`, `fixed_effects`, `fixed_covariances`, `variance_components`, `group_effects`,
        `group_covariances`, `group_means` and `terms`, each keyed by fit_id; rows of the same fit are replaced, other
        fits' are kept.

        Parameters
        ----------
        con : DuckDB connection
        prefix : str
        history : bool
            Move the rows that are replaced to tables `<prefix>history_...`.
        covariances : bool, optional
            Write the covariances of every group's errors, which standard errors of predictions in SQL need: by default
            up to 5,000 groups.
        df, vcov
            Of the table of fixed effects, as for `inference`.

        Returns
        -------
        str
            The fit_id.

        Raises
        ------
        StoreError
            When the database cannot be written; nothing is changed then.
        """
        return write_tables(
            self.estimates,
            self.inputs.rows.label,
            self.warnings,
            con,
            prefix,
            fixed.fixed_effects_table(self.estimates, self.robust_or_reason(), self.reference(df, vcov)),
            history=history,
            covariances=covariances,
        )

    def save(self, path: str | os.PathLike[str], *, replace: bool = False, complete: bool = False) -> None:
        """Keep the fit in a Parquet file, without the data; `mlsql.load` reads it.

        Parameters
        ----------
        path : str or path
        replace : bool
            Overwrite the file if it exists.
        complete : bool
            Fetch the products by group of a large fit first, so that robust errors, influence and other models can be
            had from the file.

        Raises
        ------
        StoreError
            When the file cannot be written; nothing is changed then.
        """
        save_fit(self, path, replace=replace, complete=complete)
