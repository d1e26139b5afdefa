"""The objective of a model: the deviance in the form that its statistics allow."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from mlsql._typing import Method
from mlsql.likelihood.deviance import Deviance
from mlsql.likelihood.gaussian import GroupDeviance
from mlsql.likelihood.levels import LevelDeviance
from mlsql.likelihood.sparse_rest import SparsePattern, study
from mlsql.moments.levels import LevelStatistics
from mlsql.moments.scales import Scales
from mlsql.moments.statistics import Statistics
from mlsql.moments.structure import Structure

_patterns: WeakKeyDictionary[Structure, SparsePattern] = WeakKeyDictionary()


def make_deviance(statistics: Scales, method: Method) -> Deviance:
    """The deviance of a two-level model, or of one with several grouping factors."""
    if isinstance(statistics, LevelStatistics):
        return LevelDeviance(statistics, method, _pattern(statistics.structure))
    assert isinstance(statistics, Statistics)
    return GroupDeviance(statistics, method)


def _pattern(structure: Structure) -> SparsePattern | None:
    """The pattern of a sparse rest, studied once for all that is asked of a fit."""
    if not structure.sparse:
        return None
    if structure not in _patterns:
        _patterns[structure] = study(structure)
    return _patterns[structure]
