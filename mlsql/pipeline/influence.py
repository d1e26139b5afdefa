"""Influence of groups: frames for `fit.diagnostics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mlsql._arrays import Array
from mlsql.diagnostics.influence import Influence, one_step_influence
from mlsql.errors import FitError
from mlsql.inference.resampling import jackknife
from mlsql.pipeline.products import Products
from mlsql.report.intervals import parameter_labels
from mlsql.results.components import component_errors
from mlsql.results.estimates import Estimates
from mlsql.results.one_factor import require_one_factor

if TYPE_CHECKING:
    import polars as pl

    from mlsql.inference.resampling import Replicates

MOST_REFITS = 2000
"""Groups that `exact=True` refits without a word; more take minutes and have to be asked for by `most`."""


def influence_table(products: Products, exact: bool, most: int) -> pl.DataFrame:
    """See `Diagnostics.influence`."""
    import polars as pl

    estimates = products.estimates
    found = _influence(products, exact, most)
    largest = np.argmax(np.nan_to_num(np.abs(found.dfbetas), nan=-1.0), axis=0)
    known = np.isfinite(found.cooks_distance)
    J = np.arange(estimates.statistics.n_groups)
    frame = _keys(estimates).with_columns(
        pl.Series("n", estimates.moments.n),
        pl.Series("cooks_distance", found.cooks_distance),
        pl.Series("covariance_ratio", found.covariance_ratio),
        pl.Series("largest_dfbetas", found.dfbetas[largest, J]),
        pl.Series(
            "largest_term", [estimates.fixed_names[f] if k else None for f, k in zip(largest, known, strict=True)]
        ),
        pl.Series("cooks_distance_components", found.cooks_distance_components),
    )
    return frame.with_columns(pl.selectors.float().fill_nan(None))


def changes_table(products: Products, exact: bool, most: int) -> pl.DataFrame:
    """See `Diagnostics.deletion`."""
    import polars as pl

    estimates = products.estimates
    found, errors = _influence(products, exact, most), component_errors(estimates)
    rows: list[tuple[str, str, Array, Array]] = []
    for f, name in enumerate(estimates.fixed_names):
        rows.append(("fixed", name, found.beta[f], found.dfbetas[f]))
    for (a, b), (effect, term) in parameter_labels(estimates).items():
        if a is None or b is None:
            rows.append((effect, term, found.sigma2, found.sigma2 / errors.sigma2))
        else:
            label = "covariance" if effect == "correlation" else effect
            rows.append((label, term, found.T[a, b], found.T[a, b] / errors.T[a, b]))
    keys = _keys(estimates)
    frames = [
        keys.with_columns(
            pl.lit(effect).alias("effect"),
            pl.lit(term).alias("term"),
            pl.Series("change", change),
            pl.Series("scaled_change", scaled),
        )
        for effect, term, change, scaled in rows
    ]
    order = np.arange(len(rows) * keys.height).reshape(len(rows), -1).T.ravel()
    return pl.concat(frames)[order].with_columns(pl.selectors.float().fill_nan(None))


def _influence(products: Products, exact: bool, most: int) -> Influence:
    estimates = products.estimates
    require_one_factor(estimates, "diagnostics.influence() and deletion() are")
    if estimates.statistics.n_groups < 3:
        raise FitError("influence needs at least 3 groups: without one of 2 no variance between groups is left")
    if not exact:
        return one_step_influence(estimates, products.by_group())
    J = estimates.statistics.n_groups
    if most < J:
        raise FitError(
            f"exact=True fits the model {J:,} times, once without each group, and most is {most:,}; pass most={J}, or "
            "exact=False for one step from the estimates"
        )
    found = jackknife(estimates, products.by_group(), J, 0)
    if found.failed:
        raise FitError(
            f"without one of {found.failed:,} groups the fixed effects are not identified: those groups alone "
            "determine a coefficient; use exact=False"
        )
    return _exact(estimates, found, one_step_influence(estimates, products.by_group()))


def _exact(estimates: Estimates, found: Replicates, step: Influence) -> Influence:
    """Changes from refits; standard errors without the group and the covariance ratio stay those of one step."""
    beta = (estimates.beta - found.beta).T
    with np.errstate(invalid="ignore", divide="ignore"):
        dfbetas = np.where(step.beta == 0.0, 0.0, beta * (step.dfbetas / step.beta))
    cooks = np.einsum("fj,fj->j", beta, cho_solve(cho_factor(estimates.vcov), beta)) / len(beta)
    return Influence(
        beta=beta,
        dfbetas=dfbetas,
        cooks_distance=cooks,
        covariance_ratio=step.covariance_ratio,
        T=np.moveaxis(estimates.T - found.T, 0, 2),
        sigma2=estimates.sigma2 - found.sigma2,
        cooks_distance_components=step.cooks_distance_components,
    )


def _keys(estimates: Estimates) -> pl.DataFrame:
    import polars as pl

    keys = pl.from_arrow(estimates.moments.keys)
    assert isinstance(keys, pl.DataFrame)
    taken = {"n", "cooks_distance", "covariance_ratio", "largest_dfbetas", "largest_term"}
    taken |= {"cooks_distance_components", "effect", "term", "change", "scaled_change"}
    return keys.rename({k: f"group_{k}" for k in keys.columns if k in taken})
