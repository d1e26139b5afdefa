"""Level-1 variances of the groups, checked before they are compared."""

from __future__ import annotations

from mlsql.diagnostics.dispersion import Dispersion, dispersion
from mlsql.diagnostics.group_ols import group_least_squares
from mlsql.diagnostics.level2 import outcome_spread
from mlsql.errors import DataError, FitError
from mlsql.pipeline.products import Products
from mlsql.results.one_factor import require_one_factor


def group_dispersion(products: Products, min_n: int) -> Dispersion:
    """Spread of each group's least-squares residuals, with what is needed to compare them checked."""
    if isinstance(min_n, bool) or not isinstance(min_n, int) or min_n < 1:
        raise DataError(f"min_n is {min_n!r}; it is a whole number from 1")
    require_one_factor(products.estimates, "diagnostics.homogeneity() and extreme_groups() are")
    design, moments = products.complete()
    found = dispersion(group_least_squares(design, moments), outcome_spread(design, moments).squares, min_n)
    if found.groups < 2:
        raise FitError(
            f"only {found.groups} of {moments.n_groups:,} groups can be compared: {found.small:,} have fewer than "
            f"{min_n} rows, in {found.deficient:,} the rows do not determine the level-1 regression, "
            f"{found.exact:,} are fitted without residual; pass a smaller min_n"
        )
    return found
