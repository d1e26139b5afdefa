"""Variables and model columns: terms become products of numeric variables, factors become indicators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import sqlglot
from sqlglot import exp

from mlsql._typing import Centering
from mlsql.design.schema import Input, Schema
from mlsql.errors import DesignError
from mlsql.formula.terms import INTERCEPT, Atom, Term


@dataclass(frozen=True, slots=True)
class Variable:
    """One numeric factor of a product.

    Attributes
    ----------
    name : str
        `ses`, `sex[M]`, `group_center(ses)`.
    sql : str
        The uncentred value as a scalar expression.
    dtype : str
        The engine's type of that expression.
    source : str
        SQL of the input behind it: the factor's column for an indicator, `sql` itself for a number.
    level : {1, 2}
        2 when the value is one per group.
    origin : {"rows", "level2", "group_mean"}
        Read from the rows, from the level-2 table, or averaged over the group's rows.
    centering : {"none", "group", "grand"}
    pivot : float
        Subtracted in the query.
    group : str or None
        The factor whose means are meant, in a model with several; None otherwise.
    """

    name: str
    sql: str
    dtype: str
    source: str
    level: int
    origin: Literal["rows", "level2", "group_mean"]
    centering: Centering
    pivot: float
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of X or Z: a product of variables; the empty product is the intercept."""

    variables: tuple[Variable, ...] = ()

    @property
    def name(self) -> str:
        """The term's name in result tables."""
        return ":".join(v.name for v in self.variables) or "(Intercept)"

    @property
    def level1(self) -> tuple[Variable, ...]:
        """Its level-1 part: the coefficient's equation."""
        return tuple(v for v in self.variables if v.level == 1)

    @property
    def level2(self) -> tuple[Variable, ...]:
        """Its level-2 part: the predictor within that equation."""
        return tuple(v for v in self.variables if v.level == 2)

    def without(self, variable: Variable) -> frozenset[Variable]:
        """The variables that remain when one is left out."""
        return frozenset(self.variables) - {variable}


def code_terms(terms: tuple[Term, ...], variables: Mapping[Atom, tuple[Variable, ...]]) -> tuple[Column, ...]:
    """Expand terms to columns.

    A factor is coded by treatment contrasts (no column for its reference, which stands first in `variables`) when the
    term without it is also in the model, and by one column per level otherwise: R's rule.

    Parameters
    ----------
    terms : tuple of Term
        All terms of one part of the model: the fixed part, or one random block.
    variables : mapping of Atom to tuple of Variable
        One variable for a number; one per level, reference first, for a factor.
    """
    present = set(terms)
    columns: list[Column] = []
    for term in terms:
        choices = []
        for atom in term.atoms:
            coded = variables[atom]
            reduced = len(coded) > 1 and Term(tuple(a for a in term.atoms if a != atom)) in present
            choices.append(coded[1:] if reduced else coded)
            if len(coded) > 1 and not reduced and len(term.atoms) == 1:
                # a full set of indicators sums to the intercept: the next factor is coded beside it
                present.add(INTERCEPT)
        # the first atom's levels run fastest, as in R
        columns.extend(Column(tuple(reversed(combination))) for combination in product(*reversed(choices)))
    return tuple(columns)


def atom_variables(atom: Atom, schema: Schema, facts: VariableFacts) -> tuple[Variable, ...]:
    """The variables of an atom: itself, or one indicator per level with the reference first."""
    source = schema.find(atom)
    if source.role != "factor":
        return (_variable(atom, source, atom.name, source.sql, source.dtype, facts.pivot(source.sql), facts),)
    levels = list(facts.levels[source.sql])
    if len(levels) < 2:
        raise DesignError(
            f"factor {atom.name} has {len(levels)} level in the complete rows ({', '.join(levels)}), "
            "at least 2 are needed; leave it out or check the filter"
        )
    if atom.reference is not None:
        if atom.reference not in levels:
            raise DesignError(f"{atom.name}: reference level {atom.reference!r} is not among {', '.join(levels)}")
        levels.remove(atom.reference)
        levels.insert(0, atom.reference)
    plain = source.name if atom.centering == "none" and atom.kind == "value" else atom.name
    return tuple(
        _variable(atom, source, f"{plain}[{level}]", indicator_sql(source, level), "INTEGER", 0.0, facts)
        for level in levels
    )


@dataclass(frozen=True, slots=True)
class VariableFacts:
    """What the survey contributes to variables: factor levels, pivots, and which SQL varies within groups."""

    levels: Mapping[str, tuple[str, ...]]
    pivots: Mapping[str, float]
    varying: frozenset[str]

    def pivot(self, sql: str) -> float:
        """The pivot of an expression, 0 when none was chosen."""
        return self.pivots.get(sql, 0.0)


def indicator_sql(source: Input, level: str) -> str:
    """1 where the factor has the level, else 0; the level is a literal of the tree."""
    column = sqlglot.parse_one(source.sql, dialect="duckdb")
    text = column if source.dtype.upper() == "VARCHAR" else exp.cast(column, "VARCHAR", dialect="duckdb")
    return exp.cast(exp.EQ(this=text, expression=exp.Literal.string(level)), "INTEGER", dialect="duckdb").sql("duckdb")


def _variable(
    atom: Atom, source: Input, name: str, sql: str, dtype: str, pivot: float, facts: VariableFacts
) -> Variable:
    if atom.kind == "group_mean":
        return Variable(name, sql, dtype, source.sql, 2, "group_mean", atom.centering, pivot)
    if source.table == "level2":
        return Variable(name, sql, dtype, source.sql, 2, "level2", atom.centering, pivot)
    level = 1 if atom.centering == "group" or source.sql in facts.varying else 2
    return Variable(name, sql, dtype, source.sql, level, "rows", atom.centering, pivot)
