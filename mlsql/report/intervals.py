"""Profile and resampling intervals as frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlsql._arrays import Array
from mlsql.inference.profile_components import ComponentInterval
from mlsql.inference.resampling import Replicates
from mlsql.results.estimates import Estimates

if TYPE_CHECKING:
    import polars as pl


def profile_table(
    estimates: Estimates, fixed: tuple[Array, Array, Array], components: Sequence[ComponentInterval]
) -> pl.DataFrame:
    """effect, term, estimate, conf_low, conf_high, likelihood; variances on the variance scale."""
    import polars as pl

    method, rows = estimates.design.spec.method, []
    for name, value, low, high in zip(estimates.fixed_names, *fixed, strict=True):
        rows.append(_row("fixed", name, value, low, high) | {"likelihood": "ML"})
    labels = parameter_labels(estimates)
    for found in components:
        a, b = found.component.a, found.component.b
        effect, term = labels[(a, b)]
        power = 2 if effect == "variance" else 1
        rows.append(_row(effect, term, *(x**power for x in (found.estimate, found.low, found.high))))
        rows[-1]["likelihood"] = method
    return pl.DataFrame(rows).with_columns(pl.selectors.float().fill_nan(None))


def parameter_labels(estimates: Estimates) -> dict[tuple[int | None, int | None], tuple[str, str]]:
    """(effect, term) of each variance, (a, a), of each correlation, (a, b) with a > b, and of sigma2, (None, None)."""
    names = estimates.random_names
    found: dict[tuple[int | None, int | None], tuple[str, str]] = {}
    for a, name in enumerate(names):
        found[(a, a)] = ("variance", f"{estimates.factor_of(a)}: {name}")
    for s in estimates.covariance.slices:
        for b in range(s.start, s.stop):
            for a in range(b + 1, s.stop):
                found[(a, b)] = ("correlation", f"{estimates.factor_of(a)}: {names[b]}: {names[a]}")
    found[(None, None)] = ("variance", "Residual")
    return found


def replicate_values(estimates: Estimates, replicates: Replicates) -> list[tuple[str, str, float, Array]]:
    """(effect, term, estimate, (R,) replicates) of every parameter; correlations are nan where a variance is zero."""
    beta, names = estimates.beta, estimates.fixed_names
    found = [("fixed", n, float(beta[f]), replicates.beta[:, f]) for f, n in enumerate(names)]
    for (a, b), (effect, term) in parameter_labels(estimates).items():
        if a is None or b is None:
            found.append((effect, term, estimates.sigma2, replicates.sigma2))
        elif a == b:
            found.append((effect, term, float(estimates.T[a, a]), replicates.T[:, a, a]))
        else:
            found.append((effect, term, _correlation(estimates.T[None], a, b)[0], _correlation(replicates.T, a, b)))
    return found


def resampling_table(
    estimates: Estimates,
    replicates: Replicates,
    error: Callable[[Array], float],
    interval: Callable[[float, Array], tuple[float, float]],
    bias: Callable[[float, Array], float],
) -> pl.DataFrame:
    """effect, term, estimate, bias, std_error, conf_low, conf_high, replicates, note."""
    import polars as pl

    rows = []
    for effect, term, estimate, values in replicate_values(estimates, replicates):
        used = values[np.isfinite(values)]
        row = _row(effect, term, estimate, float("nan"), float("nan"))
        row |= {"bias": float("nan"), "std_error": float("nan")}
        if len(used) > 1 and np.isfinite(estimate):
            row["conf_low"], row["conf_high"] = interval(estimate, used)
            row["bias"], row["std_error"] = bias(estimate, used), error(used)
        rows.append(row | {"replicates": len(used), "note": _note(estimates, replicates)})
    order = ["effect", "term", "estimate", "bias", "std_error", "conf_low", "conf_high", "replicates", "note"]
    frame = pl.DataFrame(rows, schema_overrides={"note": pl.String})
    return frame.select(order).with_columns(pl.selectors.float().fill_nan(None))


def replicates_frame(estimates: Estimates, replicates: Replicates) -> pl.DataFrame:
    """One row per replicate and parameter: replicate, effect, term, estimate."""
    import polars as pl

    frames = []
    for effect, term, _, values in replicate_values(estimates, replicates):
        number = pl.Series("replicate", np.arange(1, len(values) + 1))
        frames.append(
            pl.DataFrame({"replicate": number, "estimate": values})
            .with_columns(pl.lit(effect).alias("effect"), pl.lit(term).alias("term"))
            .select("replicate", "effect", "term", "estimate")
        )
    return pl.concat(frames).sort("replicate", maintain_order=True).with_columns(pl.col("estimate").fill_nan(None))


def _note(estimates: Estimates, replicates: Replicates) -> str | None:
    found = []
    if estimates.singular:
        found.append("the fit is on the boundary: intervals of its variances are rough")
    singular = int(replicates.singular.sum())
    if singular:
        found.append(f"{singular:,} of {len(replicates.singular):,} replicates are on the boundary")
    unconverged = int(np.sum(~replicates.converged))
    if unconverged:
        found.append(f"{unconverged:,} did not converge")
    if replicates.failed:
        found.append(f"replicates left out because they do not identify the fixed effects: {replicates.failed:,}")
    return "; ".join(found) or None


def _correlation(T: Array, a: int, b: int) -> Array:
    scale = np.sqrt(T[:, a, a] * T[:, b, b])
    safe = np.where(scale > 0, scale, 1.0)
    return np.where(scale > 0, np.clip(T[:, a, b] / safe, -1.0, 1.0), np.nan)


def _row(effect: str, term: str, estimate: Any, low: Any, high: Any) -> dict[str, Any]:
    return {
        "effect": effect,
        "term": term,
        "estimate": float(estimate),
        "conf_low": float(low),
        "conf_high": float(high),
    }
