"""`Step` and `Plan`: named statements, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from mlsql.sql.syntax import render


@dataclass(frozen=True, slots=True)
class Step:
    """One statement.

    Attributes
    ----------
    name : str
        `survey`, `preview`, `moments by group`, ...
    purpose : str
        What it is for, one line.
    tree : sqlglot expression
    """

    name: str
    purpose: str
    tree: exp.Expr

    @property
    def sql(self) -> str:
        """The statement as text."""
        return render(self.tree)


@dataclass(frozen=True, slots=True)
class Plan:
    """All statements of a fit; `print(plan)` is a script that can be run.

    Attributes
    ----------
    steps : tuple of Step
    notes : tuple of str
        What could not be settled without looking at the data.
    """

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    @property
    def sql(self) -> str:
        """The script."""
        parts = [f"-- {step.name}: {step.purpose}\n{step.sql};" for step in self.steps]
        return "\n\n".join([*(f"-- note: {n}" for n in self.notes), *parts])

    def __str__(self) -> str:
        return self.sql
