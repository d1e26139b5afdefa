"""From moments to the objective, stopping before memory runs out."""

from __future__ import annotations

from mlsql._typing import Method
from mlsql.design.design import Design
from mlsql.likelihood.deviance import Deviance
from mlsql.likelihood.levels import LevelDeviance
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.assembly import model_statistics
from mlsql.moments.moments import Moments
from mlsql.results.cost import check_cost, counts_of, predict_cost
from mlsql.results.memory import check_memory


def make_objective(design: Design, moments: Moments, method: Method) -> Deviance:
    """The deviance of a model.

    Raises
    ------
    DesignError
        When a random column is zero or collinear with those before it.
    FitError
        When products by group or the joint matrix of crossed factors would not fit into memory.
    """
    if moments.incidences:
        counts = counts_of(design, moments)
        check_cost(counts, predict_cost(counts))
    deviance = make_deviance(model_statistics(design, moments), method)
    if isinstance(deviance, LevelDeviance) and deviance.pattern is not None:
        width = deviance.statistics.structure.width
        check_memory(deviance.pattern.symbolic.memory, f"the sparse factor of the crossed factors' {width:,} columns")
    return deviance
