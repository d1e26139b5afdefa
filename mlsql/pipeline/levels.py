"""`fit.levels`: the grouping factors of a fit, how they lie to each other, and where the variance is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlsql.errors import FitError
from mlsql.pipeline.derived import At
from mlsql.pipeline.products import Products
from mlsql.report import levels as report
from mlsql.results import partition
from mlsql.results.points import Points, make_points
from mlsql.results.relations import relations

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a fit: nested, crossed, or by membership; a two-level model has one factor.

    Predictors are named as in the formula, on the scale of the model's columns, as for `fit.derived`.  With precision
    weights level-1 variances are those of a row of weight 1.  Of a membership the variance is that of an average row:
    tau times the mean sum of squared weights; rows with the same groups are taken to have them with the same weights.
    Standard errors come from the observed information by the delta method, null on the boundary.

    Attributes
    ----------
    products : Products
    """

    products: Products

    def factors(self) -> pl.DataFrame:
        """The grouping factors: groups, their sizes, what varies over them.

        Returns
        -------
        polars.DataFrame
            factor, groups, rows_min, rows_mean, rows_max (rows of a group), terms, groups_per_row (mean; more than 1 in
            a membership), solution ("absorbed" group by group, or "joint": in one matrix with the groups of all such
            factors), position (in which it is absorbed, the finest first).

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> fit.levels.factors().select("factor", "groups", "rows_min", "rows_max", "terms").row(0)
        ('school', 160, 14, 67, '(Intercept), ses')
        """
        return report.factors_table(self.products.estimates)

    def structure(self) -> pl.DataFrame:
        """How each two factors lie to each other, as the data tell; no row for a single factor.

        Returns
        -------
        polars.DataFrame
            factor1, factor2, relation ("nested", "crossed": every pair of groups has rows, "partially crossed", "same
            groups", "multiple membership"), inner (the factor nested in the other), occupied (pairs of groups with rows
            in common), possible, share, one_row (occupied pairs with a single row), degree1_min, degree1_mean,
            degree1_max (groups of factor2 that a group of factor1 meets), degree2_min, degree2_mean, degree2_max,
            rows_min, rows_mean, rows_max (rows of an occupied pair).
        """
        return report.structure_table(relations(self.products.estimates.moments))

    def variance_partition(self, at: At | None = None, level: float = 0.95) -> pl.DataFrame:
        """Shares of the variance around the fixed part, factor by factor and at level 1 (8.4-8.6).

        Parameters
        ----------
        at : mapping of str to value(s), optional
            Where, in a model with random slopes, whose variance depends on the predictors.
        level : float
            Of the confidence intervals.

        Returns
        -------
        polars.DataFrame
            The points' columns (random slopes only), factor ("Residual" for level 1), variance, share, std_error,
            conf_low, conf_high (on the logit scale), kind: "unconditional", or "conditional" when the model has
            predictors.

        Raises
        ------
        FitError
            When slopes are random and no point is given.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.levels.variance_partition().select("factor", "share").rows()
        [('school', 0.180...), ('Residual', 0.819...)]
        """
        estimates, points = self.products.estimates, self._points(at, "variance_partition")
        parts = partition.row_parts(estimates, points.rows(estimates.design.random))
        return report.partition_table(estimates, parts, points, level)

    def intra_unit_correlations(self, at: At | None = None, level: float = 0.95) -> pl.DataFrame:
        """Correlations of two rows that share the groups of some factors and not of others (12.4-12.6).

        For nested factors: rows of one school, of one child.  For crossed ones: of one row, of one column, of both.  A
        random cell is shared by rows that have the groups of both its factors in common.

        Parameters
        ----------
        at : mapping of str to value(s), optional
            Where both rows are, in a model with random slopes.
        level : float
            Of the confidence intervals.

        Returns
        -------
        polars.DataFrame
            The points' columns (random slopes only), same (factors whose group the two share), different (the others),
            correlation, std_error, conf_low, conf_high (on the logit scale), kind.

        Raises
        ------
        FitError
            When slopes are random and no point is given.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> table = fit.levels.intra_unit_correlations(at={"ses": [-1, 0, 1]})
        >>> table.select("ses", "same", "correlation").row(0)
        (-1.0, 'school', 0.130...)
        """
        estimates, points = self.products.estimates, self._points(at, "intra_unit_correlations")
        parts = partition.row_parts(estimates, points.rows(estimates.design.random))
        return report.intra_unit_correlations_table(estimates, parts, partition.shared_groups(estimates), points, level)

    def between_share(self, level: float = 0.95) -> pl.DataFrame:
        """Where the variance of each random coefficient lies, among the nested factors over which it varies (8.18).

        The share of the coarsest factor is T_b,pp / (T_b,pp + T_pi,pp): that between its groups.

        Parameters
        ----------
        level : float
            Of the confidence intervals.

        Returns
        -------
        polars.DataFrame
            term, factor (the finest first), variance, share, std_error, conf_low, conf_high (on the logit scale).

        Raises
        ------
        FitError
            When no coefficient varies over two nested factors.
        """
        return report.slope_shares_table(partition.slope_parts(self.products.estimates), level)

    def correlations(self) -> pl.DataFrame:
        """Covariances and correlations of the random coefficients, one matrix per factor.

        Returns
        -------
        polars.DataFrame
            factor, term1 (row), term2 (column), quantity ("variance" on the diagonal, "covariance" below it,
            "correlation" above), value.  Zero where the formula says so (`||`); a correlation with a coefficient that
            does not vary is null.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> fit.levels.correlations().select("term1", "term2", "quantity").rows()[1]
        ('(Intercept)', 'ses', 'correlation')
        """
        return report.level_correlations_table(partition.level_matrices(self.products.estimates))

    def _points(self, at: At | None, method: str) -> Points:
        estimates = self.products.estimates
        design = estimates.design
        if at is None and not partition.intercepts_only(estimates):
            variables = list(dict.fromkeys(v.name for c in design.random for v in c.variables))
            raise FitError(
                f"with random slopes the shares of variance depend on {', '.join(variables)}; say where: "
                f"{method}(at={{{variables[0]!r}: [-1, 0, 1]}})"
            )
        return make_points(design, design.random, at, role="random columns' predictors")
