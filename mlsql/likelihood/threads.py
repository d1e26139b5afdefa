"""How many threads the linear algebra may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

from mlsql.moments.levels import LevelStatistics

THREADED = 6_000
"""Columns of the rest from which a second thread pays.  Below, threads wait more than they work: where the cores are
taken by others, waiting threads made a fit of 1,156 columns fifty times slower and one of 4,000 four times; on a quiet
machine of two cores they save a quarter."""


@contextmanager
def suited(statistics: LevelStatistics) -> Iterator[None]:
    """Keep the linear algebra of small crossed models to one thread."""
    if not 0 < statistics.structure.width < THREADED:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    """The loaded libraries, looked up once: that takes as long as a small evaluation."""
    return ThreadpoolController()
