"""Reliabilities of the groups' own coefficients, and their means."""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array
from mlsql.results.effects import least_squares
from mlsql.results.estimates import Estimates
from mlsql.results.level_effects import level_effects

COLUMNS = ("term", "reliability", "groups_used", "groups")


def reliabilities(estimates: Estimates) -> Array:
    """(q, J) tau_qq / (tau_qq + v_qqj) (3.58) of a two-level model; nan for groups without a least-squares estimate."""
    tau = np.diag(estimates.T)[:, None]
    return np.asarray(tau / (tau + least_squares(estimates).variance))


def mean_reliabilities(estimates: Estimates) -> dict[str, list[object]]:
    """Mean reliability of each random coefficient (3.59, 8.7, 8.8) over the groups that have one.

    With several factors those of `level_effects`.  Columns: group (with several factors), term, reliability,
    groups_used, groups.
    """
    rows: list[tuple[object, ...]] = []
    names: tuple[str, ...]
    if estimates.levels is None:
        pairs = zip(estimates.random_names, reliabilities(estimates), strict=True)
        rows, names = [_mean(name, values) for name, values in pairs], COLUMNS
    else:
        names = ("group", *COLUMNS)
        for found in level_effects(estimates):
            each = zip(found.names, found.reliability, strict=True)
            rows += [(found.incidence.name, *_mean(name, values)) for name, values in each]
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _mean(name: str, values: Array) -> tuple[object, ...]:
    known = values[np.isfinite(values)]
    return name, float(known.mean()) if len(known) else float("nan"), len(known), len(values)
