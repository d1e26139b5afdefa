"""Confidence intervals by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlsql._typing import DfMethod, IntervalMethod, Vcov
from mlsql.errors import FitError
from mlsql.inference.fixed_effects import check_level
from mlsql.inference.profile_components import profile_components
from mlsql.inference.profile_fixed import profile_fixed
from mlsql.inference.reference import make_reference
from mlsql.pipeline.products import Products
from mlsql.pipeline.resampling import Resampling
from mlsql.report.intervals import profile_table
from mlsql.report.tables import confidence_table

if TYPE_CHECKING:
    import polars as pl


def confidence_intervals(
    products: Products,
    level: float,
    method: IntervalMethod,
    df: DfMethod | None,
    vcov: Vcov | None,
    replicates: int | None,
    seed: int | None,
) -> pl.DataFrame:
    """See `Fit.confint`."""
    check_level(level)
    given = {"df": df, "vcov": vcov, "replicates": replicates, "seed": seed}
    used = {"wald": ("df", "vcov"), "profile": (), "bootstrap": ("replicates", "seed")}
    if not isinstance(method, str) or method not in used:
        raise FitError(f"method is {method!r}; it is 'wald', 'profile' or 'bootstrap'")
    idle = next((name for name, value in given.items() if value is not None and name not in used[method]), None)
    if idle is not None:
        raise FitError(f"{idle}={given[idle]!r} has no part in method={method!r}; leave it out")
    estimates = products.estimates
    if method == "wald":
        reference = make_reference(estimates, products.by_group, df, "model" if vcov is None else vcov)
        return confidence_table(estimates, reference, level)
    if method == "profile":
        if estimates.status.label == "given":
            raise FitError("variance components that were given are no maximum of the likelihood: there is no profile")
        return profile_table(estimates, profile_fixed(estimates, level), profile_components(estimates, level))
    found = Resampling(products).bootstrap(1000 if replicates is None else replicates, 1 if seed is None else seed)
    return found.table(level).select("effect", "term", "estimate", "conf_low", "conf_high")
