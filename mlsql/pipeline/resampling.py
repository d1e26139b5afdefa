"""`fit.resampling`: bootstrap and jackknife in the space of moments."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlsql.errors import FitError
from mlsql.inference.fixed_effects import check_level
from mlsql.inference.resampling import (
    Replicates,
    basic_interval,
    check_seed,
    cluster_bootstrap,
    jackknife,
    jackknife_error,
    normal_quantile,
    parametric_bootstrap,
    percentile_interval,
)
from mlsql.pipeline.products import Products
from mlsql.report.intervals import replicates_frame, resampling_table
from mlsql.results.estimates import Estimates
from mlsql.results.one_factor import require_one_factor

if TYPE_CHECKING:
    import polars as pl

Interval = Literal["percentile", "basic"]


@dataclass(frozen=True, slots=True, repr=False)
class Bootstrap:
    """Replicates of a fit.

    Attributes
    ----------
    estimates : Estimates
    found : Replicates
        Arrays of estimates; whether each converged, on the boundary or not.
    """

    estimates: Estimates
    found: Replicates

    def __repr__(self) -> str:
        return f"<mlsql.Bootstrap {len(self.found.sigma2):,} replicates of {self.estimates.design.spec.formula}>"

    def table(self, level: float = 0.95, interval: Interval = "percentile") -> pl.DataFrame:
        """Bias, standard error and interval of every parameter.

        Parameters
        ----------
        level : float
            Confidence level.
        interval : {"percentile", "basic"}
            Quantiles of the replicates, or those turned around the estimate.

        Returns
        -------
        polars.DataFrame
            effect (fixed, variance, correlation), term, estimate, bias (mean of the replicates minus estimate),
            std_error, conf_low, conf_high, replicates (used), note (how many are on the boundary, ...).
        """
        check_level(level)
        if interval not in ("percentile", "basic"):
            raise FitError(f"interval is {interval!r}; it is 'percentile' or 'basic'")

        def ends(estimate: float, values: np.ndarray) -> tuple[float, float]:
            found = (
                percentile_interval(values, level)
                if interval == "percentile"
                else basic_interval(np.asarray(estimate), values, level)
            )
            return float(found[0]), float(found[1])

        return resampling_table(
            self.estimates,
            self.found,
            lambda values: float(values.std(ddof=1)),
            ends,
            lambda estimate, values: float(values.mean()) - estimate,
        )

    @property
    def replicates(self) -> pl.DataFrame:
        """One row per replicate and parameter: replicate, effect, term, estimate."""
        return replicates_frame(self.estimates, self.found)


@dataclass(frozen=True, slots=True)
class Resampling:
    """Refits of simulated, resampled or reduced data; no row is read again.

    Attributes
    ----------
    products : Products
    """

    products: Products

    def bootstrap(self, replicates: int = 1000, seed: int = 1) -> Bootstrap:
        """Parametric bootstrap: outcomes simulated from the fit, each fitted anew.

        The moments of a simulated outcome are drawn from their exact joint distribution, so that a replicate costs the
        same for any number of rows; with several factors as much as a sum over the combinations of their groups, and a
        fit.  A fit on the boundary is simulated as it is, and the table says so.

        Parameters
        ----------
        replicates : int
        seed : int
            The same seed gives the same replicates.

        Returns
        -------
        Bootstrap

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.resampling.bootstrap(20).table()["effect"].to_list()
        ['fixed', 'variance', 'variance']
        """
        return Bootstrap(self._estimates, parametric_bootstrap(self._estimates, replicates, seed))

    def cluster_bootstrap(self, replicates: int = 1000, seed: int = 1) -> Bootstrap:
        """Cluster bootstrap: groups drawn with replacement, by re-weighting their moments.

        For models with one grouping factor.  Pivots, and the grand means that centre predictors, stay those of the fit.

        Parameters
        ----------
        replicates, seed
            As for `bootstrap`.

        Returns
        -------
        Bootstrap
        """
        estimates = self._estimates
        require_one_factor(estimates, "resampling.cluster_bootstrap() is", "bootstrap() simulates any model")
        return Bootstrap(estimates, cluster_bootstrap(estimates, self.products.by_group(), replicates, seed))

    def jackknife(self, blocks: int | None = None, seed: int = 1, level: float = 0.95) -> pl.DataFrame:
        """Group jackknife: refits without one group, or one random block of groups, at a time.

        For models with one grouping factor.

        Parameters
        ----------
        blocks : int, optional
            Number of blocks that the groups are dealt into; one for each group when not given, 200 at most.
        seed : int
            For dealing.
        level : float
            Of the intervals, estimate -+ z standard errors.

        Returns
        -------
        polars.DataFrame
            As `Bootstrap.table`; bias is the jackknife's estimate of it, replicates the number of blocks.
        """
        check_level(level)
        require_one_factor(self._estimates, "resampling.jackknife() is", "bootstrap() simulates any model")
        J = self._estimates.statistics.n_groups
        if J < 3:
            raise FitError(f"the jackknife needs at least 3 groups and there are {J}: without one, T has no estimate")
        check_seed(seed)
        chosen = min(J, 200) if blocks is None else blocks
        if not (isinstance(chosen, Integral) and 2 <= int(chosen) <= J):
            raise FitError(f"blocks is {blocks!r}; it lies between 2 and the number of groups, {J:,}")
        found = jackknife(self._estimates, self.products.by_group(), int(chosen), seed)
        z = normal_quantile(level)

        def ends(estimate: float, values: np.ndarray) -> tuple[float, float]:
            half = z * float(jackknife_error(values))
            return estimate - half, estimate + half

        return resampling_table(
            self._estimates,
            found,
            lambda values: float(jackknife_error(values)),
            ends,
            lambda estimate, values: (len(values) - 1.0) * (float(values.mean()) - estimate),
        )

    @property
    def _estimates(self) -> Estimates:
        return self.products.estimates
