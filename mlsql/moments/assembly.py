"""From moments to the statistics of a model: two levels, or several grouping factors."""

from __future__ import annotations

from mlsql.design.design import Design
from mlsql.moments.levels import assemble_levels
from mlsql.moments.moments import Moments
from mlsql.moments.scales import Scales
from mlsql.moments.statistics import assemble


def model_statistics(design: Design, moments: Moments) -> Scales:
    """`Statistics` of a two-level model, `LevelStatistics` of others.

    Raises
    ------
    DesignError
        When a random column is zero or collinear with those before it.
    """
    return assemble_levels(design, moments) if moments.incidences else assemble(design, moments)
