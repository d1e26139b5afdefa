"""`Diagnostics`: how well the model's assumptions hold, at level 1, at level 2 and for predictors left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlsql._arrays import Array
from mlsql.diagnostics.dispersion import dispersion
from mlsql.diagnostics.group_ols import group_least_squares
from mlsql.diagnostics.level2 import distances, outcome_spread
from mlsql.diagnostics.rules import broken_rules
from mlsql.errors import DataError
from mlsql.pipeline.dispersion import group_dispersion
from mlsql.pipeline.influence import MOST_REFITS, changes_table, influence_table
from mlsql.pipeline.products import Products
from mlsql.pipeline.residual_diagnostics import (
    ResidualKind,
    enter_table,
    frame_of,
    key_columns,
    quantile_pairs,
    summarise,
    summarise_bins,
    summarise_groups,
)
from mlsql.results.one_factor import require_one_factor

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Residual diagnostics of a fit with one grouping factor, `advice` of any.  Rows stay in the database.

    Attributes
    ----------
    products : Products
    """

    products: Products

    def level2(self) -> pl.DataFrame:
        """One row per group: how far it lies from the model, and how much its rows spread.

        Effects, their standard errors and reliabilities are in `Fit.group_effects`.

        Returns
        -------
        polars.DataFrame
            Key column(s), n; mahalanobis (squared distance of the EB residuals in their own dispersion; for groups of
            full rank the same as that of the least-squares residuals), mahalanobis_df (random coefficients that
            vary, fewer where the group's rows do not tell them apart), mahalanobis_rank (among groups with the same
            df, 1 for the nearest), expected_mahalanobis (chi-square quantile at (rank - 1/2) / groups with the same
            df: plot one against the other), mahalanobis_p_value; ols_residual_sd and ln_residual_sd (of the group's
            own regression on the level-1 columns; null without one), ln_total_sd (of the outcome in the group).

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> table = fit.diagnostics.level2()
        >>> table.sort("mahalanobis", descending=True)["mahalanobis"].head(2).round(2).to_list()
        [12.1, 11.7]
        """
        estimates = self.products.estimates
        require_one_factor(estimates, "diagnostics.level2() is", "fit.group_effects(factor) has the effects of each")
        design, moments = self.products.complete()
        found, spread = distances(estimates), outcome_spread(design, moments)
        own = dispersion(group_least_squares(design, moments), spread.squares, 1).sd
        columns = {
            "n": moments.n,
            "mahalanobis": found.d2,
            "mahalanobis_df": found.df,
            "mahalanobis_rank": found.rank,
            "expected_mahalanobis": found.expected,
            "mahalanobis_p_value": found.p_value,
            "ols_residual_sd": own,
            "ln_residual_sd": _ln(own),
            "ln_total_sd": _ln(spread.sd),
        }
        return _nulls(frame_of(key_columns(moments), columns))

    def homogeneity(self, min_n: int = 10) -> pl.DataFrame:
        """Test that the level-1 variance is the same in every group (Raudenbush & Bryk 9.5, 9.6).

        The residual variance of each group's own regression on the level-1 columns is compared, on the log scale.  It
        is sensitive to heavy tails; a large value asks first for `extreme_groups`, omitted level-1 predictors and
        slopes wrongly fixed.

        Parameters
        ----------
        min_n : int
            Rows of the smallest group that enters: the chi-square reference needs about 10.

        Returns
        -------
        polars.DataFrame
            One row: chi2 (H), df, p_value, groups_used, groups_small (fewer rows than min_n), groups_deficient (their
            rows do not determine the regression or leave no residual), groups_exact (fitted without residual), min_n.

        Raises
        ------
        FitError
            When fewer than two groups remain.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ group_center(ses) + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.homogeneity()["chi2"].round(3).to_list()
        [246.117]
        """
        import polars as pl

        found = group_dispersion(self.products, min_n)
        return pl.DataFrame(
            {
                "chi2": found.chi2,
                "df": found.groups - 1,
                "p_value": found.p_value,
                "groups_used": found.groups,
                "groups_small": found.small,
                "groups_deficient": found.deficient,
                "groups_exact": found.exact,
                "min_n": min_n,
            }
        )

    def extreme_groups(self, k: int | None = 10, min_n: int = 10) -> pl.DataFrame:
        """The groups whose level-1 variance differs most from the others'.

        Parameters
        ----------
        k : int or None
            How many; None for all that enter the test.
        min_n : int
            As for `homogeneity`.

        Returns
        -------
        polars.DataFrame
            Key column(s), n, df, residual_sd, dispersion (d_j, whose squares sum to H: about standard normal when
            variances are equal), dispersion_corrected (free of the bias of a small group's logarithm), the most
            extreme first.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ group_center(ses) + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.extreme_groups(2)["dispersion"].round(3).to_list()
        [-4.985, -3.716]
        """
        import polars as pl

        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise DataError(f"k is {k!r}; it is a whole number from 1, or None for all groups")
        found, moments = group_dispersion(self.products, min_n), self.products.estimates.moments
        columns = {
            "n": moments.n,
            "df": found.df,
            "residual_sd": found.sd,
            "dispersion": found.index,
            "dispersion_corrected": found.corrected,
        }
        frame = frame_of(key_columns(moments), columns).filter(pl.Series(found.used))
        frame = frame.sort(pl.col("dispersion").abs(), descending=True, maintain_order=True)
        return frame if k is None else frame.head(k)

    def residuals(self, by: str | None = None, kind: ResidualKind = "residual") -> pl.DataFrame:
        """Shape of the level-1 residuals, computed in the database by one statement.

        Parameters
        ----------
        by : str, optional
            Column or SQL expression of the data or of the level2 table: one row for each of its values (null among
            them), a thousand at most.  Pooled shapes mislead when variances differ.
        kind : {"residual", "residual_population", "residual_ols", "residual_standardized"}
            As in `Fit.residuals`: around the EB group effects, around the fixed part, around the least-squares group
            effects, or the first divided by its standard deviation (times the root of the weight).

        Returns
        -------
        polars.DataFrame
            value (with `by`), n, mean, sd, skewness, kurtosis (in excess of the normal's; both as SAS and SPSS define
            them), min, max, q01, q05, q25, median, q75, q95, q99.  Quantiles are exact up to a million rows.

        Raises
        ------
        DataError
            When the data have changed since the fit, or `by` has too many values.
        FormulaError
            When `by` is not an expression of a row.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.residuals()["skewness"].round(2).to_list()
        [-0.13]
        """
        return summarise(self.products, by, kind)

    def qq(self, points: int = 99) -> pl.DataFrame:
        """Quantiles of the standardized level-1 residuals beside the normal's, for a Q-Q plot.

        Parameters
        ----------
        points : int
            Probabilities are i / (points + 1).

        Returns
        -------
        polars.DataFrame
            probability, quantile, normal_quantile.  The line to compare with passes through the quartiles: EB
            residuals are a little less spread than the errors.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.qq(3)["quantile"].round(2).to_list()
        [-0.73, 0.02, 0.76]
        """
        return quantile_pairs(self.products, points)

    def by_group(self, kind: ResidualKind = "residual") -> pl.DataFrame:
        """Shape of the level-1 residuals in every group.

        Parameters
        ----------
        kind
            As for `residuals`.

        Returns
        -------
        polars.DataFrame
            Key column(s), n, mean, sd, skewness, min, max, in key order.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.by_group().height
        160
        """
        return summarise_groups(self.products, kind)

    def against(self, predictor: str, bins: int = 10, kind: ResidualKind = "residual") -> pl.DataFrame:
        """Level-1 residuals by intervals of a predictor, in the model or not: a bent mean, a spread that changes.

        Parameters
        ----------
        predictor : str
            Column or SQL expression of the data or of the level2 table: a number, or true and false.
        bins : int
            Intervals with equally many rows, 2 to 100; equal values stay together, so that a predictor with few values
            has fewer.
        kind
            As for `residuals`.

        Returns
        -------
        polars.DataFrame
            bin, predictor_min, predictor_max, predictor_mean, n, mean, sd, std_error (of the mean, sd / sqrt(n)).  Rows
            without a value come last, as bin null.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.against("minority")["mean"].round(2).to_list()
        [0.47, -1.23]
        """
        return summarise_bins(self.products, predictor, bins, kind)

    def to_enter(self, candidates: Sequence[str]) -> pl.DataFrame:
        """Which level-2 predictor to add next: EB residuals regressed on one candidate at a time, in one scan.

        Coefficients are understated, t is fair, and only for one next predictor in one equation.

        Parameters
        ----------
        candidates : list of str
            Columns or SQL expressions with one value per group, of the data or of the fit's level2 table;
            `group_mean(x)` for a level-1 column.  Text is refused: compare it, `area = 'urban'`, which counts as 0
            and 1.

        Returns
        -------
        polars.DataFrame
            term (the random coefficient), candidate, coefficient, std_error, t, correlation_eb, correlation_ols (with
            EB and least-squares residuals), groups, groups_ols, missing (groups without a value), in_equation (it is
            there already); the largest |t| of each term first.

        Raises
        ------
        DataError
            For an unknown column, text, or a candidate that varies within groups or nowhere.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.to_enter(["size", "pracad"])["candidate"].to_list()
        ['pracad', 'size', 'pracad', 'size']
        """
        return enter_table(self.products, candidates)

    def advice(self) -> pl.DataFrame:
        """Rules of thumb that the fit breaks, and what to do; no rows when it breaks none.

        Returns
        -------
        polars.DataFrame
            topic, term, value (what was found), rule, advice.  With several factors without rules of two levels.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ group_center(ses) + (group_center(ses) | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.advice()["topic"].to_list()
        ['group mean absent']
        """
        import polars as pl

        schema = {"topic": pl.String, "term": pl.String, "value": pl.Float64, "rule": pl.String, "advice": pl.String}
        return pl.DataFrame([asdict(r) for r in broken_rules(self.products.estimates)], schema=schema)

    def influence(self, exact: bool = False, most: int = MOST_REFITS) -> pl.DataFrame:
        """How much the estimates owe to each group, one row per group.

        Parameters
        ----------
        exact : bool
            Fit the model once without each group.  Otherwise one step from the estimates, by subtracting the group's
            moments: exact for the fixed effects at unchanged variance components, and close for the components.
        most : int
            Refits that `exact` may take.

        Returns
        -------
        polars.DataFrame
            Key column(s), n, cooks_distance (squared change of the fixed effects in their covariance matrix, per
            coefficient), covariance_ratio (determinant of that matrix without the group over with it), largest_dfbetas
            (change of the coefficient that moves most, in standard errors without the group; with all groups minus
            without) and largest_term (which it is), cooks_distance_components (the same distance of the variance
            components, one step).

        Raises
        ------
        FitError
            Fewer than 3 groups; more refits than `most`.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ meanses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.diagnostics.influence().sort("cooks_distance", descending=True)["school"].head(2).to_list()
        [2655, 8854]
        """
        return influence_table(self.products, exact, most)

    def deletion(self, exact: bool = False, most: int = MOST_REFITS) -> pl.DataFrame:
        """What each group does to every parameter: DFBETAS and changes of the variance components.

        Parameters
        ----------
        exact, most
            As for `influence`.

        Returns
        -------
        polars.DataFrame
            One row per group and parameter: key column(s), effect (fixed, variance, covariance), term, change (estimate
            with all groups minus without this one; variances on the variance scale), scaled_change (DFBETAS for fixed
            effects; in standard errors for components).  Null for components on the boundary.

        Raises
        ------
        FitError
            As `influence`.
        """
        return changes_table(self.products, exact, most)


def _ln(sd: Array) -> Array:
    """Logarithm, nan for zero."""
    return np.log(np.where(sd > 0, sd, np.nan))


def _nulls(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return frame.with_columns(pl.selectors.float().fill_nan(None))
