"""`Keeping`: a fit written to a database's tables, or to a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from mlsql._arrays import Array
from mlsql._typing import DfMethod, Vcov
from mlsql.inference.reference import Reference
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.save import save_fit
from mlsql.pipeline.store import write_tables
from mlsql.report import fixed
from mlsql.results.estimates import Estimates

if TYPE_CHECKING:
    import duckdb

    from mlsql.pipeline.fitted import Fit


class Keeping:
    """The part of `Fit` that writes it down; `Fit` brings the numbers."""

    __slots__ = ()

    if TYPE_CHECKING:
        warnings: tuple[str, ...]

        @property
        def estimates(self) -> Estimates:
            """The numbers."""

        @property
        def inputs(self) -> Inputs:
            """Where the data are."""

        def reference(self, df: DfMethod | None = None, vcov: Vcov = "model") -> Reference:
            """Covariance matrix and degrees of freedom by name."""

        def robust_or_reason(self) -> Array | str:
            """The CR0 covariance matrix, or why there is none."""

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
        save_fit(cast("Fit", self), path, replace=replace, complete=complete)
