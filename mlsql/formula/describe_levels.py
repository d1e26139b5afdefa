"""A specification of several grouping factors as level equations, mixed model and distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlsql.formula.describe import level_equations
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import INTERCEPT, Atom, Factor, Term

# coefficients of level 1, 2, ... of nested models, and random effects of level 2, 3, ...
_COEFFICIENTS = {3: ("p", "b", "g"), 4: ("a", "p", "b", "g")}
_EFFECTS = {3: ("r", "u"), 4: ("r", "u", "v")}
# effects of crossed factors; e is the residual, g the fixed effects, p the level-1 coefficients
_CROSSED = "bcdfhklmnqrstuvwxyz"


def many_level_equations(spec: ModelSpec, constant: Mapping[str, frozenset[str]], chain: tuple[str, ...]) -> str:
    """The model level by level, in mixed form, and its distributions, as text.

    Parameters
    ----------
    spec : ModelSpec
    constant : mapping of str to frozenset of str
        For each factor, by name, the predictors that have one value in each of its groups.  Group means of a
        factor always have.
    chain : tuple of str
        Names of all factors from the finest to the coarsest when each lies within the next; empty when factors
        are crossed.

    Returns
    -------
    str
        One equation for each coefficient of each level when the factors are nested.  Crossed factors have one
        level-2 model, in which every factor adds its own effects: `b_0[plate] + c_0[sample]`.

    Examples
    --------
    >>> import mlsql
    >>> from mlsql.formula.describe_levels import many_level_equations
    >>> spec = mlsql.parse_model("math ~ female + year + (year | school) + (1 | school:child)")
    >>> print(many_level_equations(spec, {"school:child": frozenset({"female"})}, ("school:child", "school")))
    Level-1 model
        math = p0 + p1*year + e
    Level-2 model (groups: school:child)
        p0 = b00 + b01*female + r0
        p1 = b10
    Level-3 model (groups: school)
        b00 = g000 + u00
        b01 = g010
        b10 = g100 + u10
    Mixed model
        math = g000 + g010*female + g100*year + u00 + u10*year + r0 + e
    Distributions
        e ~ N(0, sigma2)
        r0 ~ N(0, T_school:child)
        (u00, u10) ~ N(0, T_school)
    """
    factors = spec.factors
    if len(factors) == 1:
        return level_equations(spec, constant.get(factors[0].name, frozenset()))
    by_name = {f.name: f for f in factors}
    if chain:
        return _nested(spec, constant, tuple(by_name[name] for name in chain))
    return _crossed(spec, constant)


@dataclass(frozen=True, slots=True)
class _Tree:
    """Coefficients by path: the part of a term at level 1, at level 2, and so on.

    `children[path]` are the parts that follow at the next level.
    """

    children: Mapping[tuple[Term, ...], tuple[Term, ...]]
    separator: str

    def symbol(self, letter: str, path: tuple[Term, ...]) -> str:
        """`b01`: the letter and, for each level, 0 for the intercept or the number of the predictor."""
        return letter + self.separator.join(str(i) for i in self.indices(path))

    def indices(self, path: tuple[Term, ...]) -> list[int]:
        return [_index(part, self.children[path[:i]]) for i, part in enumerate(path)]

    def nodes(self, length: int) -> list[tuple[Term, ...]]:
        """All paths of a length, in the order of the equations above them."""
        found: list[tuple[Term, ...]] = [()]
        for _ in range(length):
            found = [(*path, part) for path in found for part in self.children.get(path, ())]
        return found


def _tree(paths: list[tuple[Term, ...]]) -> _Tree:
    children: dict[tuple[Term, ...], list[Term]] = {}
    for path in paths:
        for i, part in enumerate(path):
            known = children.setdefault(path[:i], [])
            if part not in known:
                known.append(part)
    ordered = {path: tuple(sorted(parts, key=lambda t: len(t.atoms))) for path, parts in children.items()}
    # from ten predictors on, digits alone would name two coefficients alike: 1 and 10, 11 and 0
    separator = "_" if any(_index(parts[-1], parts) > 9 for parts in ordered.values()) else ""
    return _Tree(ordered, separator)


def _nested(spec: ModelSpec, constant: Mapping[str, frozenset[str]], chain: tuple[Factor, ...]) -> str:
    levels = len(chain) + 1
    coefficients = _COEFFICIENTS.get(levels, tuple(f"c{i}_" for i in range(1, levels + 1)))
    letters = _EFFECTS.get(levels, tuple(f"u{i}_" for i in range(2, levels + 1)))
    inside = {factor.name: i for i, factor in enumerate(chain, start=2)}

    def level(atom: Atom) -> int:
        return max([1, *(inside[name] for name in _constant_in(atom, spec, constant))])

    def path(term: Term, top: int) -> tuple[Term, ...]:
        """The term's part at each level up to `top`; what is constant above it counts to `top`."""
        return tuple(Term(tuple(a for a in term.atoms if min(level(a), top) == k)) for k in range(1, top + 1))

    fixed = [path(t, levels) for t in spec.fixed]
    # the effects of the groups of level k + 2 belong to coefficients of level k + 1
    random = [[[path(t, k + 1) for t in spec.random[i].terms] for i in f.blocks] for k, f in enumerate(chain)]
    tree = _tree([*fixed, *(p for blocks in random for block in blocks for p in block)])
    varying = {p for blocks in random for block in blocks for p in block}

    lines = ["Level-1 model"]
    level1 = [tree.symbol(coefficients[0], p) + _times(p[-1:]) for p in tree.nodes(1)]
    lines.append(f"    {spec.outcome.name} = {' + '.join(level1)}{_offsets(spec)} + e")
    for k, factor in enumerate(chain):
        lines.append(f"Level-{k + 2} model (groups: {factor.name})")
        for node in tree.nodes(k + 1):
            below = [(*node, part) for part in tree.children.get(node, ())]
            right = [tree.symbol(coefficients[k + 1], p) + _times(p[-1:]) for p in below]
            right += [tree.symbol(letters[k], node)] if node in varying else []
            lines.append(f"    {tree.symbol(coefficients[k], node)} = {' + '.join(right)}")
    mixed = [tree.symbol(coefficients[-1], p) + _times(p) for p in tree.nodes(levels)]
    effects = [[[tree.symbol(letters[k], p) for p in b] for b in blocks] for k, blocks in enumerate(random)]
    for blocks, names in zip(reversed(random), reversed(effects), strict=True):
        mixed += [n + _times(p) for b, own in zip(blocks, names, strict=True) for p, n in zip(b, own, strict=True)]
    return "\n".join([*lines, *_ending(spec, mixed, [(f.name, e) for f, e in zip(chain, effects, strict=True)])])


def _crossed(spec: ModelSpec, constant: Mapping[str, frozenset[str]]) -> str:
    factors = spec.factors

    def path(term: Term) -> tuple[Term, ...]:
        upper = tuple(a for a in term.atoms if _constant_in(a, spec, constant))
        return Term(tuple(a for a in term.atoms if a not in upper)), Term(upper)

    fixed = [path(t) for t in spec.fixed]
    random = [[[path(t) for t in spec.random[i].terms] for i in f.blocks] for f in factors]
    tree = _tree([*fixed, *(p for blocks in random for block in blocks for p in block)])

    def effect(factor: int, p: tuple[Term, ...]) -> str:
        # the effect on the coefficient itself has one index, on the slope of a level-2 predictor two
        letter = _CROSSED[factor % len(_CROSSED)] + "_"
        return f"{tree.symbol(letter, p[:1] if p[1] == INTERCEPT else p)}[{factors[factor].name}]"

    names = [[[effect(i, p) for p in b] for b in blocks] for i, blocks in enumerate(random)]
    effects = [
        (p, name)
        for blocks, own in zip(random, names, strict=True)
        for b, row in zip(blocks, own, strict=True)
        for p, name in zip(b, row, strict=True)
    ]
    level1 = [tree.symbol("p", p) + _times(p) for p in tree.nodes(1)]
    lines = [
        "Level-1 model",
        f"    {spec.outcome.name} = {' + '.join(level1)}{_offsets(spec)} + e",
        f"Level-2 model (groups: {spec.group})",
    ]
    gammas = [p for p in tree.nodes(2) if p in fixed]
    for node in tree.nodes(1):
        right = [tree.symbol("g", p) + _times(p[1:]) for p in gammas if p[:1] == node]
        right += [name + _times(p[1:]) for p, name in effects if p[:1] == node]
        lines.append(f"    {tree.symbol('p', node)} = {' + '.join(right)}")
    mixed = [tree.symbol("g", p) + _times(p) for p in gammas] + [name + _times(p) for p, name in effects]
    return "\n".join([*lines, *_ending(spec, mixed, [(f.name, n) for f, n in zip(factors, names, strict=True)])])


def _ending(spec: ModelSpec, mixed: list[str], effects: list[tuple[str, list[list[str]]]]) -> list[str]:
    """The mixed model and the distributions; `effects` has, for each factor, the names of effects by block."""
    lines = ["Mixed model", f"    {spec.outcome.name} = {' + '.join(mixed)}{_offsets(spec)} + e", "Distributions"]
    variance = "sigma2"
    if spec.weights is not None:
        name = spec.weights.name
        variance = f"sigma2/{name if name.isidentifier() else f'({name})'}"
    lines.append(f"    e ~ N(0, {variance})")
    for factor, blocks in effects:
        each = [_joined(block) for block in blocks]
        independent = f", {' and '.join(each)} independent" if len(each) > 1 else ""
        lines.append(f"    {_joined([n for block in blocks for n in block])} ~ N(0, T_{factor}){independent}")
    return lines


def _constant_in(atom: Atom, spec: ModelSpec, constant: Mapping[str, frozenset[str]]) -> list[str]:
    """Factors in whose groups a predictor has one value."""
    own = spec.factor(atom.group) if atom.kind == "group_mean" and atom.group is not None else None
    return [f.name for f in spec.factors if atom.name in constant.get(f.name, frozenset()) or f == own]


def _index(part: Term, parts: tuple[Term, ...]) -> int:
    """0 for the intercept, otherwise the number of the predictor among its likes."""
    return 0 if part == INTERCEPT else 1 + [p for p in parts if p != INTERCEPT].index(part)


def _times(path: tuple[Term, ...]) -> str:
    return "".join(f"*{part.name}" for part in reversed(path) if part != INTERCEPT)


def _offsets(spec: ModelSpec) -> str:
    return "".join(f" + offset({a.name})" for a in spec.offset)


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
