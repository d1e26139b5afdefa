"""Points: values of predictors at which functions of the random or group-level coefficients are evaluated."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import sqlglot
from sqlglot import exp

from mlsql._arrays import Array
from mlsql.design.columns import Column, Variable
from mlsql.design.design import Design
from mlsql.errors import FitError

Values = Mapping[Variable, Array]


@dataclass(frozen=True, slots=True)
class Points:
    """Values of v variables at m points, on the scale of the user's columns.

    Attributes
    ----------
    variables : tuple of Variable
    values : (v, m)
        0 for a variable that was not given.
    given : frozenset of Variable
    """

    variables: tuple[Variable, ...]
    values: Array
    given: frozenset[Variable]

    def product(self, variables: Iterable[Variable]) -> Array:
        """(m,) product of variables."""
        factors = [self.values[self.variables.index(v)] for v in variables]
        return np.asarray(np.prod(np.array(factors).reshape(len(factors), self.values.shape[1]), axis=0))

    def rows(self, columns: Sequence[Column]) -> Array:
        """(m, k) values of columns that are products of the variables."""
        return np.array([self.product(c.variables) for c in columns]).reshape(len(columns), self.values.shape[1]).T


def make_points(
    design: Design, columns: Iterable[Column], at: Mapping[str, object] | None, *, role: str, together: bool = True
) -> Points:
    """Read the points that a user names.

    Parameters
    ----------
    design : Design
    columns : iterable of Column
        Products of the variables that can be named.
    at : mapping of str to value(s), or None
        A variable by its name in the formula, `ses`, `group_center(ses)`, to a number or a sequence; a factor by its
        name to a level or levels; an indicator, `sex[M]`, to a number.  Sequences are columns of one table: of equal
        length, a single value standing for all of its rows.
    role : str
        What the variables are, for messages.
    together : bool
        Refuse a variable at 0 beside another that is computed from the same column.

    Raises
    ------
    FitError
        For unknown names, for values that are no finite numbers or levels, for unequal lengths, and for variables that
        cannot be left at 0.
    """
    variables = tuple(dict.fromkeys(v for c in columns for v in c.variables))
    given = _read(design, variables, {} if at is None else at, role)
    sizes = {len(values) for values in given.values()} - {1}
    if len(sizes) > 1:
        lengths = ", ".join(f"{len(values)} of {v.name}" for v, values in given.items())
        raise FitError(f"at: the values must be one, or equally many, for every predictor; there are {lengths}")
    m = sizes.pop() if sizes else 1
    points = np.zeros((len(variables), m))
    for i, variable in enumerate(variables):
        if variable in given:
            points[i] = given[variable]
    _refuse_no_level(design, variables, given)
    if together:
        for other, v in relatives(variables, given):
            raise FitError(
                f"at: {other.name} is computed from the same column as {v.name}; give its values too, one for each of "
                f"{v.name}'s"
            )
    return Points(variables, points, frozenset(given))


def relatives(variables: Iterable[Variable], given: Iterable[Variable]) -> list[tuple[Variable, Variable]]:
    """Variables that were not given beside the given one whose column they share; a factor's indicators apart."""
    own = {v: _columns(v) for v in given}
    return [
        (other, v)
        for other in variables
        if other not in own
        for v, names in own.items()
        if other.source != v.source or (_plain(other) and _plain(v))
        if names & _columns(other)
    ]


def is_indicator(variable: Variable) -> bool:
    """True for a column that codes a level of a factor."""
    return variable.sql != variable.source


def random_intercept(design: Design) -> bool:
    """True when the intercept is the only random coefficient."""
    return len(design.random) == 1 and not design.random[0].variables


def did_you_mean(name: object, names: Sequence[str]) -> str:
    """The nearest names, or all of them."""
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    near = near or [n for n in names if str(name).lower() in n.lower()]
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


def _read(
    design: Design, variables: tuple[Variable, ...], at: Mapping[str, object], role: str
) -> dict[Variable, Array]:
    if not isinstance(at, Mapping):
        raise FitError(f"at is {at!r}; give a mapping of names to values, for instance {{'x': [-1, 0, 1]}}")
    numbers = {v.name: v for v in variables}
    factors = _factors(design, variables)
    found: dict[Variable, Array] = {}
    for name, value in at.items():
        if name in numbers:
            read = {numbers[name]: _numbers(name, value)}
        elif name in factors:
            read = _indicators(name, value, factors[name])
        elif not numbers:
            raise FitError(f"at: {name!r} cannot be given: the model has no {role}")
        else:
            names = [*factors, *numbers]
            raise FitError(f"at: {name!r} is not among the {role}; {did_you_mean(name, names)}")
        twice = next((v for v in read if v in found), None)
        if twice is not None:
            raise FitError(f"at: {twice.name} is given twice, by its own name and by its factor's; keep one")
        found |= read
    return found


def _numbers(name: str, value: object) -> Array:
    scalar = isinstance(value, Real)
    if isinstance(value, str | bytes | Mapping) or not (scalar or hasattr(value, "__len__")):
        raise FitError(f"at: {name} is {value!r}; give a number or a sequence of numbers")
    try:
        array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise FitError(f"at: {name} is {value!r}; give a number or a sequence of numbers") from error
    if array.ndim != 1 or not len(array) or not np.all(np.isfinite(array)):
        raise FitError(f"at: {name} is {value!r}; give a finite number or a sequence of them, not empty")
    return array


Levels = dict[str, Variable | None]
"""Levels of a factor with their indicators; None for the reference."""


def _factors(design: Design, variables: tuple[Variable, ...]) -> dict[str, Levels]:
    """Factors that are not centred, by name."""
    found: dict[str, Levels] = {}
    survey = design.survey
    assert survey is not None
    for v in variables:
        if is_indicator(v) and v.centering == "none" and v.origin != "group_mean":
            level = max((x for x in survey.levels[v.source] if v.name.endswith(f"[{x}]")), key=len)
            levels = found.setdefault(v.name.removesuffix(f"[{level}]"), dict.fromkeys(survey.levels[v.source]))
            levels[level] = v
    return found


def _indicators(name: str, value: object, levels: Levels) -> dict[Variable, Array]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        chosen = [value]
    else:
        chosen = list(value)
    texts = [str(x).lower() if isinstance(x, bool | np.bool_) else str(x) for x in chosen]
    unknown = next((x for x in texts if x not in levels), None)
    if unknown is not None or not texts:
        raise FitError(f"at: {name} has no level {unknown!r}; {did_you_mean(unknown, list(levels))}")
    return {v: np.array([float(x == level) for x in texts]) for level, v in levels.items() if v is not None}


def _refuse_no_level(design: Design, variables: tuple[Variable, ...], given: Values) -> None:
    """A factor coded by one column per level has no reference that zeros would stand for."""
    for name, levels in _factors(design, variables).items():
        coded = [v for v in levels.values() if v is not None]
        if len(coded) == len(levels) and not any(v in given for v in coded):
            raise FitError(f"at: give a level of {name}: {', '.join(levels)}; every one of them has its own column")


def _plain(variable: Variable) -> bool:
    return not is_indicator(variable)


def _columns(variable: Variable) -> frozenset[str]:
    tree = sqlglot.parse_one(variable.source, dialect="duckdb")
    return frozenset(c.sql("duckdb").lower() for c in tree.find_all(exp.Column))
