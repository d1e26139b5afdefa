"""Errors of mlsql: one tree, ordered by the phase in which a problem shows.

Every message says what was found (name, value, count), the rule that it breaks, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MlsqlError(Exception):
    """Base of all errors that mlsql raises on purpose."""


class FormulaError(MlsqlError):
    """The model's text cannot be understood, or asks for something that is not supported."""

    @classmethod
    def at(cls, text: str, position: int, problem: str) -> FormulaError:
        """An error with the text and a caret under the offending position."""
        line_start = text.rfind("\n", 0, position) + 1
        line_end = text.find("\n", position)
        line = text[line_start : line_end if line_end >= 0 else len(text)]
        caret = " " * (position - line_start) + "^"
        return cls(f"{problem} (position {position + 1})\n  {line}\n  {caret}")


class DataError(MlsqlError):
    """The data cannot be read, or hold values that the model cannot use."""

    @classmethod
    def unknown_column(cls, name: str, available: Iterable[str], where: str) -> DataError:
        """A column that the data do not have, with the nearest names that they do."""
        names = list(available)
        folded = {n.lower(): n for n in names}
        near = [folded[m] for m in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"columns are {_some(names)}"
        return cls(f"{where}: column {name!r} is not in the data; {hint}")


class DesignError(MlsqlError):
    """Formula and data together do not make an estimable model."""


class QueryError(MlsqlError):
    """A generated statement failed in the engine.

    Attributes
    ----------
    step : str
        Name of the plan's step.
    sql : str
        The statement as it was sent.
    """

    def __init__(self, step: str, sql: str, cause: str) -> None:
        self.step = step
        self.sql = sql
        super().__init__(f"the query of step {step!r} failed: {cause}")


class QueryInterrupted(MlsqlError):
    """The running query was stopped by the user; nothing was written."""


class FitError(MlsqlError):
    """The estimates asked for do not exist for this fit."""


class StoreError(MlsqlError):
    """Results cannot be written where the user wants them; nothing was written."""


def _some(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(repr(n) for n in names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")
