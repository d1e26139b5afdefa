"""From moments to the objective, stopping before memory runs out."""

from __future__ import annotations

import numpy as np

from mlsql._typing import Method
from mlsql.design.design import Design
from mlsql.likelihood.deviance import Deviance
from mlsql.likelihood.levels import LevelDeviance
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.assembly import model_statistics
from mlsql.moments.moments import Moments
from mlsql.moments.structure import DENSE, choose_chain
from mlsql.results.cost import COPIES
from mlsql.results.memory import check_memory
from mlsql.results.relations import occupancy


def make_objective(design: Design, moments: Moments, method: Method) -> Deviance:
    """The deviance of a model.

    Raises
    ------
    DesignError
        When a random column is zero or collinear with those before it.
    FitError
        When the joint matrix of crossed factors would not fit into memory.
    """
    if moments.incidences:
        _check_room(design, moments)
    deviance = make_deviance(model_statistics(design, moments), method)
    if isinstance(deviance, LevelDeviance) and deviance.pattern is not None:
        width = deviance.statistics.structure.width
        check_memory(deviance.pattern.symbolic.memory, f"the sparse factor of the crossed factors' {width:,} columns")
    return deviance


def _check_room(design: Design, moments: Moments) -> None:
    """What the joint matrix takes when dense, or its pattern when sparse: known before either is made."""
    incidences, n = moments.incidences, moments.n
    widths = [sum(len(design.blocks[b].columns) for b in f.blocks) for f in design.spec.factors]
    chain, rest = choose_chain(incidences, widths)
    columns = sum(incidences[t].n_groups * widths[t] for t in rest)
    what = f"the joint matrix of {', '.join(incidences[t].name for t in rest)}, {columns:,} columns"
    if columns <= DENSE:
        check_memory(COPIES * 8 * columns**2, what)
        return
    entries = columns * max(widths[t] for t in rest)
    for t in chain:
        degrees = np.zeros(incidences[t].n_groups)
        for s in rest:
            degrees += np.diff(occupancy(incidences[t], incidences[s], n).indptr) * widths[s]
        entries += int(degrees @ degrees)
    check_memory(24 * min(entries, columns**2), f"the pattern of {what}")
