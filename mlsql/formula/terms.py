"""Terms of a model: atoms (one column or SQL expression), products of atoms, random blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mlsql._typing import Centering


@dataclass(frozen=True, slots=True)
class Atom:
    """One column or SQL scalar expression, with what the formula wants done to it.

    Attributes
    ----------
    name : str
        As shown to the user: `ses`, `log(income)`, `group_center(ses)`.
    sql : str
        The uncentred scalar expression in DuckDB's dialect, every identifier quoted.
    kind : {"value", "group_mean"}
        The row's own value, or its mean over the group's rows.
    centering : {"none", "group", "grand"}
        What is subtracted before the value enters the model.
    group : str or None
        The group named in `group_center(x, g)`; None when left to the model's only group.
    categorical : bool
        True for `C(x)`: a factor whatever the column's type.
    reference : str or None
        Reference level of a factor, `C(x, ref='b')`; None for the first level.
    """

    name: str
    sql: str
    kind: Literal["value", "group_mean"] = "value"
    centering: Centering = "none"
    group: str | None = None
    categorical: bool = False
    reference: str | None = None

    def plain(self) -> Atom:
        """The same column without centring: what the survey looks at."""
        return replace(self, kind="value", centering="none", group=None)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A product of atoms; the empty product is the intercept.  Equal up to the order of atoms."""

    atoms: tuple[Atom, ...] = ()

    @property
    def name(self) -> str:
        """`(Intercept)`, `ses`, `sector:group_center(ses)`."""
        return ":".join(a.name for a in self.atoms) if self.atoms else "(Intercept)"

    def times(self, other: Term) -> Term:
        """The product; an atom occurs once."""
        return Term(self.atoms + tuple(a for a in other.atoms if a not in self.atoms))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and frozenset(self.atoms) == frozenset(other.atoms)

    def __hash__(self) -> int:
        return hash(frozenset(self.atoms))


INTERCEPT = Term()


@dataclass(frozen=True, slots=True)
class RandomBlock:
    """Random coefficients of one group that share a full covariance matrix.

    `(1 + x | g)` is one block of two terms; `(1 + x || g)` is two blocks of one term each.
    """

    terms: tuple[Term, ...]
    keys: tuple[Atom, ...]

    @property
    def group(self) -> str:
        """Name of the grouping factor: `school`, `country:school`."""
        return ":".join(k.name for k in self.keys)


@dataclass(frozen=True, slots=True)
class Factor:
    """One way of grouping the rows, with the random blocks that vary over its groups.

    Attributes
    ----------
    keys : tuple of Atom
        Columns that identify a group, in the order of the formula.
    blocks : tuple of int
        Positions of its blocks among the random blocks of the model.
    """

    keys: tuple[Atom, ...]
    blocks: tuple[int, ...]

    @property
    def name(self) -> str:
        """`school`, `school:child`."""
        return ":".join(k.name for k in self.keys)

    @property
    def columns(self) -> frozenset[str]:
        """SQL of the keys; two factors are the same when these are."""
        return frozenset(k.sql for k in self.keys)

    def within(self, other: Factor) -> bool:
        """True when the keys alone tell that every group lies in one group of the other: `a:b` within `a`."""
        return other.columns < self.columns
