"""`ModelSpec`: the model as one frozen value, made from a formula or from level equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlsql._typing import Method
from mlsql.errors import FormulaError
from mlsql.formula.atoms import column_atom, sql_atom
from mlsql.formula.equations import parse_equations
from mlsql.formula.parser import ParsedFormula, parse_formula, parse_groups
from mlsql.formula.terms import Atom, Factor, RandomBlock, Term


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is to be estimated, independent of any data.  Hashable.

    Attributes
    ----------
    outcome : Atom
    fixed : tuple of Term
        The intercept, if any, first; then main effects; then products by degree.
    random : tuple of RandomBlock
        One block per full covariance matrix.
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
    def factors(self) -> tuple[Factor, ...]:
        """The grouping factors in order of appearance, each with the positions of its blocks in `random`."""
        blocks: dict[frozenset[str], list[int]] = {}
        for position, block in enumerate(self.random):
            blocks.setdefault(frozenset(k.sql for k in block.keys), []).append(position)
        return tuple(Factor(self.random[found[0]].keys, tuple(found)) for found in blocks.values())

    @property
    def keys(self) -> tuple[Atom, ...]:
        """Distinct columns that identify the groups of all factors; those of a coarser factor first."""
        factors = self.factors
        found: dict[str, Atom] = {}
        for factor in factors:
            coarser = sorted((f for f in factors if factor.within(f)), key=lambda f: len(f.keys))
            for key in (k for f in (*coarser, factor) for k in f.keys):
                found.setdefault(key.sql, key)
        return tuple(found.values())

    @property
    def group(self) -> str:
        """Name of the only grouping factor, or the names of all, joined by a comma."""
        return ", ".join(f.name for f in self.factors)

    def factor(self, name: str) -> Factor | None:
        """The factor of a name, whatever the order of its keys (`child:school`); None when there is none."""
        exact = next((f for f in self.factors if f.name == name), None)
        if exact is not None:
            return exact
        try:
            named = parse_groups(name)
        except FormulaError:
            return None
        columns = frozenset(k.sql for k in named[0])
        return next((f for f in self.factors if f.columns == columns), None) if len(named) == 1 else None

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
        Grouping column or columns (`"school"`, `"country:school"`) of level equations, which do not name it;
        from coarse to fine for three levels and more (`"school/child"`).

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
    if not parsed.fixed:
        raise FormulaError("the fixed part is empty; keep at least the intercept or one predictor")
    spec = ModelSpec(parsed.outcome, parsed.fixed, _unified(parsed.random), parsed.offsets, weights, method)
    keys: dict[str, Atom] = {}
    for key in spec.keys:
        other = keys.setdefault(key.sql.lower(), key)
        if other is not key:
            raise FormulaError(
                f"the grouping columns {other.name} and {key.name} differ only in case: SQL takes them for one column; "
                "write it one way"
            )
    for factor in spec.factors:
        named = [t for position in factor.blocks for t in spec.random[position].terms]
        twice = next((t for i, t in enumerate(named) if t in named[:i]), None)
        if twice is not None:
            raise FormulaError(f"the random coefficient {twice.name} of {factor.name} is given twice; keep one")
    for atom in spec.atoms:
        _check_group(atom, spec)
    if parsed.outcome.sql in {a.sql for a in spec.atoms}:
        raise FormulaError(f"the outcome {parsed.outcome.name} is also a predictor")
    return spec


def _unified(blocks: Sequence[RandomBlock]) -> tuple[RandomBlock, ...]:
    """Blocks of one factor carry its keys in one order, that of the first."""
    keys: dict[frozenset[str], tuple[Atom, ...]] = {}
    return tuple(RandomBlock(b.terms, keys.setdefault(frozenset(k.sql for k in b.keys), b.keys)) for b in blocks)


def _check_group(atom: Atom, spec: ModelSpec) -> None:
    """The group that a predictor names is one of the model's, and the predictor is not the group itself."""
    factors = spec.factors
    names = ", ".join(f.name for f in factors)
    if atom.group is not None and spec.factor(atom.group) is None:
        if len(factors) == 1:
            raise FormulaError(f"{atom.name}: the group {atom.group!r} is not the model's group {spec.group!r}")
        raise FormulaError(f"{atom.name}: the group {atom.group!r} is none of the model's groups; they are {names}")
    if atom.group is None and (atom.kind == "group_mean" or atom.centering == "group") and len(factors) > 1:
        raise FormulaError(
            f"{atom.name}: the model has {len(factors)} grouping factors ({names}); name the one that is meant, "
            f"for instance {atom.name.removesuffix(')')}, {factors[0].name})"
        )
    # one key of a finer factor may be a predictor beside the cells that it helps to form: service in dept:service
    alone = factors if len(factors) == 1 else [f for f in factors if len(f.keys) == 1]
    if atom.kind == "value" and any(atom.sql in f.columns for f in alone):
        raise FormulaError(f"{atom.name} is a grouping column and cannot also be a predictor")


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
