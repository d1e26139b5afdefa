"""A specification as level-1, level-2 and mixed equations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mlsql.errors import FormulaError
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import INTERCEPT, Atom, Term


@dataclass(frozen=True, slots=True)
class CoefficientEquation:
    """One level-1 coefficient: its predictor, its level-2 predictors, whether it is random."""

    predictor: Term
    level2: tuple[Term, ...]
    random: bool


def coefficient_equations(spec: ModelSpec, level2: Collection[str] = ()) -> tuple[CoefficientEquation, ...]:
    """Split the mixed form into one equation per level-1 coefficient.

    Parameters
    ----------
    spec : ModelSpec
    level2 : collection of str
        Names of predictors that are constant within groups.  Group means always are; without data nothing else
        is known to be, so a predictor not listed counts as level 1.

    Raises
    ------
    FormulaError
        When the model has several grouping factors: which predictors are constant in which groups must be known.
    """
    if len(spec.factors) > 1:
        raise FormulaError(
            f"the model has {len(spec.factors)} grouping factors ({spec.group}), and two-level equations are of one; "
            "fit.equations() prints those of all"
        )
    split: dict[Term, list[Term]] = {}
    for term in spec.fixed:
        lower = Term(tuple(a for a in term.atoms if not _is_level2(a, level2)))
        upper = Term(tuple(a for a in term.atoms if _is_level2(a, level2)))
        split.setdefault(lower, []).append(upper)
    random = [t for b in spec.random for t in b.terms]
    for term in random:
        split.setdefault(term, [])
    ordered = sorted(split, key=lambda term: len(term.atoms))
    return tuple(CoefficientEquation(term, tuple(split[term]), term in random) for term in ordered)


def level_equations(spec: ModelSpec, level2: Collection[str] = ()) -> str:
    """The model level by level and in mixed form, as text.

    Parameters
    ----------
    spec, level2
        As for `coefficient_equations`.

    Examples
    --------
    >>> import mlsql
    >>> print(mlsql.level_equations(mlsql.parse_model("y ~ x + (1 | g)")))
    Level-1 model
        y = b0 + b1*x + r
    Level-2 model (groups: g)
        b0 = g00 + u0
        b1 = g10
    Mixed model
        y = g00 + g10*x + u0 + r
    """
    equations = coefficient_equations(spec, level2)
    level1, upper, fixed, random = [], [], [], []
    for q, equation in enumerate(equations):
        own = "" if equation.predictor == INTERCEPT else f"*{equation.predictor.name}"
        level1.append(f"b{q}{own}")
        parts = []
        numbered = 1
        for term in equation.level2:
            index = 0 if term == INTERCEPT else numbered
            numbered += term != INTERCEPT
            across = "" if term == INTERCEPT else f"*{term.name}"
            parts.append(f"g{q}{index}{across}")
            fixed.append(f"g{q}{index}{across}{own}")
        if equation.random:
            parts.append(f"u{q}")
            random.append(f"u{q}{own}")
        upper.append(f"    b{q} = {' + '.join(parts)}")
    offsets = "".join(f" + offset({a.name})" for a in spec.offset)
    return "\n".join(
        [
            "Level-1 model",
            f"    {spec.outcome.name} = {' + '.join(level1)}{offsets} + r",
            f"Level-2 model (groups: {spec.group})",
            *upper,
            "Mixed model",
            f"    {spec.outcome.name} = {' + '.join([*fixed, *random])}{offsets} + r",
        ]
    )


def _is_level2(atom: Atom, level2: Collection[str]) -> bool:
    return atom.kind == "group_mean" or atom.name in level2
