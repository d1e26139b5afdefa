"""Level equations, as HLM users write them, to the same terms that a formula gives.

    mathach = b0 + b1*group_center(ses) + r          level 1: coefficients times predictors, and the residual
    b0 = g00 + g01*sector + g02*meanses + u0         level 2: one equation for each coefficient
    b1 = g10 + u1

A coefficient is *random* when its equation ends in a random effect (a name that starts with u), *nonrandomly
varying* when it has predictors but no random effect, *fixed* when it has neither.  With three levels the random
effects of level 2 start with r and those of level 3 with u, and a coefficient of level 2 may have an equation too;
without one it is fixed.  Each coefficient stands in one place and has one equation, so the equations are a tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlsql.errors import FormulaError
from mlsql.formula.atoms import column_atom
from mlsql.formula.parser import ParsedFormula, parse_formula, parse_groups
from mlsql.formula.terms import INTERCEPT, Atom, RandomBlock, Term

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_RESIDUAL = re.compile(r"(r|e|eps|epsilon)(_?(ij|it|ti|ijk|tij|ijkl|tijk))?", re.IGNORECASE)
# first letters of the random effects, from level 2 up
_LETTERS = {2: "u", 3: "ru", 4: "ruv"}


@dataclass(slots=True)
class _Equation:
    line: str
    left: str
    slopes: dict[str, Term] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)

    @property
    def symbols(self) -> list[str]:
        return [*self.loose, *self.slopes]


def parse_equations(text: str, groups: str | None) -> ParsedFormula:
    """Parse level equations.

    Parameters
    ----------
    text : str
        One equation a line; empty lines and lines that start with `#` are skipped.
    groups : str or None
        The grouping columns, `"school"` or `"country:school"`; for three levels the groups from coarse to fine,
        `"school/child"`.

    Raises
    ------
    FormulaError
        When an equation cannot be read or a coefficient has no equation.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines:
        raise FormulaError("the model's text is empty; write y ~ x + (1 | g) or level equations")
    if "=" not in lines[0]:
        raise FormulaError(f"{lines[0]!r} is neither a formula (it has no '~') nor an equation (it has no '=')")
    if groups is None:
        raise FormulaError("level equations do not name their groups; pass groups='school' as well")
    level1, upper = _read(lines[0]), [_read(line) for line in lines[1:]]
    equations = {e.left: e for e in upper}
    if len(equations) < len(upper):
        names = [e.left for e in upper]
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise FormulaError(f"{twice} has two equations; keep one")
    return _Tree(level1, equations, _factors(groups), groups).model()


def _factors(groups: str) -> tuple[tuple[Atom, ...], ...]:
    """Keys of the groups of level 2, 3, ..."""
    try:
        factors = parse_groups(groups)
    except FormulaError as error:
        raise FormulaError(
            f"groups={groups!r} is no grouping column; write 'school', 'country:school', or 'school/child' for three "
            f"levels: {error}"
        ) from error
    if len(factors) + 1 not in _LETTERS:
        raise FormulaError(
            f"groups={groups!r} makes {len(factors) + 1} levels; level equations have at most {max(_LETTERS)}, "
            "write a formula instead: y ~ x + (1 | a/b/c/d)"
        )
    return factors[::-1]


class _Tree:
    """The equations as a tree: from the level-1 line to the constants and random effects of the highest level."""

    def __init__(
        self,
        level1: _Equation,
        equations: dict[str, _Equation],
        factors: tuple[tuple[Atom, ...], ...],
        groups: str,
    ) -> None:
        self.level1 = level1
        self.equations = equations
        self.factors = factors
        self.groups = groups
        self.letters = _LETTERS[len(factors) + 1]
        self.fixed: dict[Term, str] = {}
        self.random: list[list[Term]] = [[] for _ in factors]
        self.reached: set[str] = set()

    def model(self) -> ParsedFormula:
        coefficients = self.level1_coefficients()
        symbols = [s for e in (self.level1, *self.equations.values()) for s in e.symbols]
        twice = next((s for i, s in enumerate(symbols) if s in symbols[:i]), None)
        if twice is not None:
            raise FormulaError(
                f"the symbol {twice} stands in two places; every coefficient and random effect is its own"
            )
        for symbol, term in coefficients.items():
            self.enter(symbol, term, 0)
        unused = [c for c in self.equations if c not in self.reached]
        if unused:
            where = repr(self.level1.line) + ("" if len(self.factors) == 1 else " nor of the equations below it")
            raise FormulaError(f"the equation of {', '.join(unused)} belongs to no coefficient of {where}")
        return self.assemble()

    def level1_coefficients(self) -> dict[str, Term]:
        line, loose = self.level1.line, self.level1.loose
        intercepts = [s for s in loose if s in self.equations]
        residuals = [s for s in loose if s not in self.equations]
        if len(intercepts) > 1 or len(residuals) > 1 or not all(_RESIDUAL.fullmatch(s) for s in residuals):
            unknown = [s for s in residuals if not _RESIDUAL.fullmatch(s)]
            raise FormulaError(
                f"{line!r}: beside coefficient*predictor there may be one coefficient with an equation of its own and "
                f"one residual called r or e; found {', '.join(unknown or loose)}"
            )
        coefficients = {**dict.fromkeys(intercepts, INTERCEPT), **self.level1.slopes}
        missing = [c for c in coefficients if c not in self.equations]
        if missing:
            effect = self.letters[0]
            raise FormulaError(
                f"no equation for {', '.join(missing)}; write for instance '{missing[0]} = g10 + {effect}1'"
            )
        return coefficients

    def enter(self, symbol: str, term: Term, depth: int) -> None:
        """Follow a coefficient of `term` into its equation, which belongs to the groups of `factors[depth]`."""
        self.reached.add(symbol)
        equation = self.equations[symbol]
        deeper = next((s for s in equation.symbols if s in self.equations), None)
        if deeper is not None and depth + 1 == len(self.factors):
            raise FormulaError(
                f"{equation.line!r}: {deeper} has an equation of its own, which makes {depth + 3} levels, but "
                f"groups={self.groups!r} names the groups of {depth + 2}; name them from coarse to fine, as in "
                "groups='school/child'"
            )
        effects = [s for s in equation.loose if s not in self.equations and self.is_effect(s, depth, equation)]
        constants = [s for s in equation.loose if s not in effects]
        if len(effects) > 1 or len(constants) > 1:
            raise FormulaError(
                f"{equation.line!r}: the equation of {symbol} has {', '.join(equation.loose)}: one constant, one "
                f"{self.letters[depth]} at most"
            )
        if effects:
            self.random[depth].append(term)
        for inner, product in [
            *((c, term) for c in constants),
            *((s, predictor.times(term)) for s, predictor in equation.slopes.items()),
        ]:
            if inner in self.equations:
                self.enter(inner, product, depth + 1)
                continue
            if product in self.fixed:
                raise FormulaError(
                    f"{equation.line!r}: {inner} and {self.fixed[product]} are both the coefficient of "
                    f"{product.name}; keep one"
                )
            self.fixed[product] = inner

    def is_effect(self, symbol: str, depth: int, equation: _Equation) -> bool:
        letter = symbol[0].lower()
        if letter in self.letters and letter != self.letters[depth]:
            raise FormulaError(
                f"{equation.line!r} is an equation of level {depth + 2}, whose random effects start with "
                f"{self.letters[depth]}; {symbol} starts with {letter}, the letter of level "
                f"{self.letters.index(letter) + 2}"
            )
        return letter == self.letters[depth]

    def assemble(self) -> ParsedFormula:
        without = [keys for keys, terms in zip(self.factors, self.random, strict=True) if not terms]
        if without and len(self.factors) > 1:
            letter = self.letters[self.factors.index(without[0])]
            name = ":".join(k.name for k in without[0])
            raise FormulaError(
                f"groups={self.groups!r} names the groups {name}, but no equation has a random effect of theirs, such "
                f"as {letter}0; write one, or leave the groups out"
            )
        # main effects first, then products by degree; atoms in the order in which main effects name them
        seen: dict[Atom, int] = {}
        for t in sorted(self.fixed, key=lambda t: len(t.atoms)):
            for atom in t.atoms:
                seen.setdefault(atom, len(seen))
        fixed = (Term(tuple(sorted(t.atoms, key=seen.__getitem__))) for t in self.fixed)
        # the outcome's text goes through the formula parser, which knows quoting and expressions
        outcome = parse_formula(f"{self.level1.left} ~ 1").outcome
        blocks = [RandomBlock(tuple(t), keys) for keys, t in zip(self.factors, self.random, strict=True) if t]
        return ParsedFormula(outcome, tuple(sorted(fixed, key=lambda t: len(t.atoms))), tuple(blocks[::-1]))


def _read(line: str) -> _Equation:
    left, _, right = line.partition("=")
    equation = _Equation(line, left.strip())
    if not equation.left or not right.strip():
        raise FormulaError(f"{line!r} is not an equation 'name = sum'")
    for part in _addends(right):
        symbol, star, rest = part.partition("*")
        symbol, rest = symbol.strip(), rest.strip()
        if not _SYMBOL.fullmatch(symbol):
            raise FormulaError(f"{line!r}: expected a coefficient or coefficient*predictor, found {part!r}")
        if not star:
            equation.loose.append(symbol)
            continue
        if symbol in equation.slopes:
            raise FormulaError(f"{line!r}: the coefficient {symbol} is used twice")
        predictor = _predictor(rest, line)
        if predictor in equation.slopes.values():
            raise FormulaError(f"{line!r}: the predictor {predictor.name} has two coefficients; keep one")
        equation.slopes[symbol] = predictor
    return equation


def _predictor(text: str, line: str) -> Term:
    """A predictor: a column, a call, or a product of those with ':' or '*'."""
    if _SYMBOL.fullmatch(text):
        return Term((column_atom(text),))
    terms = parse_formula(f"y ~ 0 + {_products(text)}").fixed if text else ()
    if len(terms) != 1:
        raise FormulaError(f"{line!r}: {text!r} is not one predictor; write one coefficient for each")
    return terms[0]


def _products(text: str) -> str:
    return ":".join(part.strip() for part in _split(text, "*"))


def _addends(text: str) -> list[str]:
    parts = [p.strip() for p in _split(text, "+")]
    if any(not p for p in parts):
        raise FormulaError(f"{text.strip()!r}: a '+' has nothing on one side")
    return parts


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator outside parentheses and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"`":
            quote = char
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]
