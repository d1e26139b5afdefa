"""`ModelSpec`: the model as one frozen value, made from a formula or from level equations."""

from __future__ import annotations

from dataclasses import dataclass

from mlsql._typing import Method
from mlsql.errors import FormulaError
from mlsql.formula.atoms import column_atom, sql_atom
from mlsql.formula.equations import parse_equations
from mlsql.formula.parser import ParsedFormula, parse_formula
from mlsql.formula.terms import Atom, RandomBlock, Term


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is to be estimated, independent of any data.  Hashable.

    Attributes
    ----------
    outcome : Atom
    fixed : tuple of Term
        The intercept, if any, first; then main effects; then products by degree.
    random : tuple of RandomBlock
        One block per full covariance matrix, all of the same group.
    offset : tuple of Atom
        Columns subtracted from the outcome.
    weights : Atom or None
        Precision weights: Var(e_i) = sigma2 / w_i.
    method : {"REML", "ML"}
    """

    outcome: Atom
    fixed: tuple[Term, ...]
    random: tuple[RandomBlock, ...]
    offset: tuple[Atom, ...] = ()
    weights: Atom | None = None
    method: Method = "REML"

    @property
    def keys(self) -> tuple[Atom, ...]:
        """Columns that identify a group."""
        return self.random[0].keys

    @property
    def group(self) -> str:
        """Name of the grouping factor."""
        return self.random[0].group

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """Distinct predictors, fixed and random, in order of appearance."""
        terms = [*self.fixed, *(t for b in self.random for t in b.terms)]
        return tuple(dict.fromkeys(a for t in terms for a in t.atoms))

    @property
    def formula(self) -> str:
        """The model as an lme4 formula; parsing it gives an equal spec (method and weights apart)."""
        fixed = [_text(t) for t in self.fixed if t.atoms]
        intercept = "1" if any(not t.atoms for t in self.fixed) else "0"
        offsets = [f"offset({_quoted(a)})" for a in self.offset]
        return f"{_quoted(self.outcome)} ~ " + " + ".join([intercept, *fixed, *offsets, *map(_bar, self.random)])


def parse_model(
    text: str, *, method: Method = "REML", weights: str | None = None, groups: str | None = None
) -> ModelSpec:
    """Make the specification of a model from its text.

    Parameters
    ----------
    text : str
        An lme4 formula, `mathach ~ ses + (ses | school)`, or level equations, one a line:
        `mathach = b0 + b1*group_center(ses) + r`, `b0 = g00 + g01*sector + u0`, `b1 = g10 + u1`.
    method : {"REML", "ML"}
        Restricted or full maximum likelihood.
    weights : str, optional
        Column or SQL expression of precision weights.
    groups : str, optional
        Grouping column or columns (`"school"`, `"country:school"`) of level equations, which do not name it.

    Raises
    ------
    FormulaError
        When the text cannot be read, or the model is not of a supported kind.

    Examples
    --------
    >>> import mlsql
    >>> spec = mlsql.parse_model("mathach ~ sector * group_center(ses) + (group_center(ses) | school)")
    >>> [term.name for term in spec.fixed]
    ['(Intercept)', 'sector', 'group_center(ses)', 'sector:group_center(ses)']
    """
    if not isinstance(text, str):
        raise FormulaError(f"the model is a {type(text).__name__}; write it as text: 'y ~ x + (1 | g)'")
    if method not in ("REML", "ML"):
        raise FormulaError(f"method is {method!r}; it is 'REML' or 'ML'")
    if "~" in text:
        if groups is not None:
            raise FormulaError(f"groups={groups!r} belongs to level equations; a formula names its group: (1 | g)")
        parsed = parse_formula(text)
    else:
        parsed = parse_equations(text, groups)
    return _checked(parsed, method, None if weights is None else sql_atom(weights))


def _checked(parsed: ParsedFormula, method: Method, weights: Atom | None) -> ModelSpec:
    if not parsed.random:
        raise FormulaError(
            "the model has no random term; add the groups as (1 | group), or use a regression program for one level"
        )
    groups = list(dict.fromkeys(b.group for b in parsed.random))
    if len(groups) > 1:
        raise FormulaError(
            f"random terms of {len(groups)} grouping factors ({', '.join(groups)}): models with more than two levels "
            "or crossed factors are not supported yet; keep the terms of one factor"
        )
    if not parsed.fixed:
        raise FormulaError("the fixed part is empty; keep at least the intercept or one predictor")
    spec = ModelSpec(parsed.outcome, parsed.fixed, parsed.random, parsed.offsets, weights, method)
    named = [t for b in parsed.random for t in b.terms]
    twice = next((t for i, t in enumerate(named) if t in named[:i]), None)
    if twice is not None:
        raise FormulaError(f"the random coefficient {twice.name} of {spec.group} is given twice; keep one")
    for atom in spec.atoms:
        if atom.group is not None and atom.group.replace(" ", "") != spec.group:
            raise FormulaError(f"{atom.name}: the group {atom.group!r} is not the model's group {spec.group!r}")
        if any(atom.sql == key.sql for key in spec.keys) and atom.kind == "value":
            raise FormulaError(f"{atom.name} is a grouping column and cannot also be a predictor")
    if parsed.outcome.sql in {a.sql for a in spec.atoms}:
        raise FormulaError(f"the outcome {parsed.outcome.name} is also a predictor")
    return spec


def _bar(block: RandomBlock) -> str:
    names = [_text(t) for t in block.terms if t.atoms]
    intercept = "1" if any(not t.atoms for t in block.terms) else "0"
    return f"({' + '.join([intercept, *names])} | {':'.join(map(_quoted, block.keys))})"


def _text(term: Term) -> str:
    return ":".join(map(_quoted, term.atoms))


def _quoted(atom: Atom) -> str:
    """The atom as formula text: names that are not plain words are quoted, factors say so."""
    if atom.kind == "value" and atom.centering == "none" and atom.reference is None:
        column = atom.sql if atom.sql == column_atom(atom.name).sql and not atom.name.isidentifier() else atom.name
        return f"C({column})" if atom.categorical else column
    return atom.name
