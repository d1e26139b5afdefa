"""`Interop`: a fit as other packages know models: broom's three tables, marginaleffects, maketables."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from mlsql.pipeline.marginal_effects import marginal_model
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.score import score_rows
from mlsql.report import broom, maketables
from mlsql.results.estimates import Estimates
from mlsql.sql.augment import AUGMENT_COLUMNS, augment_query

if TYPE_CHECKING:
    import duckdb
    import polars as pl


class Interop:
    """The part of `Fit` that speaks the words of other packages; `Fit` brings estimates and inputs."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def estimates(self) -> Estimates:
            """The numbers."""

        @property
        def inputs(self) -> Inputs:
            """Where the data are."""

    def tidy(self, level: float = 0.95) -> pl.DataFrame:
        """One row per parameter, as broom.mixed shows it.

        Parameters
        ----------
        level : float
            Confidence level.

        Returns
        -------
        polars.DataFrame
            effect (fixed, ran_pars), group, term (`sd__(Intercept)`, `cor__(Intercept).ses`, `sd__Observation` for
            random parameters, on the scale of standard deviations), estimate, std_error, statistic, df, p_value,
            conf_low, conf_high.
        """
        return broom.tidy(self.estimates, level)

    def glance(self) -> pl.DataFrame:
        """The fit in one row, as broom.mixed shows it: nobs, ngrps, sigma, log_lik, aic, bic, df_residual, ..."""
        return broom.glance(self.estimates)

    def augment(
        self,
        *,
        into: str | os.PathLike[str] | None = None,
        con: duckdb.DuckDBPyConnection | None = None,
        replace: bool = False,
    ) -> pl.DataFrame | None:
        """Fitted values and residuals of the fit's rows, by one query in the database.

        Parameters
        ----------
        into, con, replace
            As for `predict`.

        Returns
        -------
        polars.DataFrame or None
            The data's columns and fitted (with group effects), fitted_population (fixed effects alone), residual,
            residual_population, residual_standardized.
        """
        chosen = self.inputs if con is None else dataclasses.replace(self.inputs, con=con)
        return score_rows(self.estimates, chosen, augment_query, AUGMENT_COLUMNS, into, "missing", replace)

    def as_marginaleffects(
        self, data: object = None, *, con: duckdb.DuckDBPyConnection | None = None, df: float | None = None
    ) -> Any:
        """The fit as a model of the package marginaleffects: `avg_slopes(fit.as_marginaleffects())`.

        It predicts for the population (fixed effects alone).  A predictor within `group_center(x)` moves with its
        group's mean held fixed; the mean is a column of its own, `group_mean(x)`, which moves when named.

        Parameters
        ----------
        data : like `fit`, optional
            Rows to average over, at most five million: they are brought to memory.  Those of the fit when not given.
        con : DuckDB connection, optional
            The fit's own when not given.
        df : float, optional
            Degrees of freedom of tests and intervals; normal when not given.

        Raises
        ------
        FitError
            When marginaleffects is not installed.
        DataError
            For too many rows, or groups that the fit did not see when their means are needed.
        """
        return marginal_model(self.estimates, self.inputs, data, con=con, df=df)

    # the names by which maketables finds a model class

    @property
    def __maketables_coef_table__(self) -> Any:
        return maketables.coef_table(self.estimates)

    def __maketables_stat__(self, key: str) -> Any:
        return maketables.stat(self.estimates, key)

    @property
    def __maketables_depvar__(self) -> str:
        return self.estimates.design.spec.outcome.name

    @property
    def __maketables_vcov_info__(self) -> dict[str, str | None]:
        return {"vcov_type": "model", "clustervar": None}

    @property
    def __maketables_stat_labels__(self) -> dict[str, str]:
        return maketables.STAT_LABELS

    @property
    def __maketables_default_stat_keys__(self) -> list[str]:
        return maketables.default_stats(self.estimates)
