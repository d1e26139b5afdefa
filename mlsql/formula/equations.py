"""Level equations, as HLM users write them, to the same terms that a formula gives.

    mathach = b0 + b1*group_center(ses) + r          level 1: coefficients times predictors, and the residual
    b0 = g00 + g01*sector + g02*meanses + u0         level 2: one equation for each coefficient
    b1 = g10 + u1

A coefficient is *random* when its equation ends in a random effect (a name that starts with u), *nonrandomly
varying* when it has predictors but no random effect, *fixed* when it has neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlsql.errors import FormulaError
from mlsql.formula.atoms import column_atom
from mlsql.formula.parser import ParsedFormula, parse_formula
from mlsql.formula.terms import INTERCEPT, Atom, RandomBlock, Term

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_RESIDUAL = re.compile(r"(r|e|eps|epsilon)(_?(ij|it|ti))?", re.IGNORECASE)
_RANDOM_EFFECT = re.compile(r"u\w*", re.IGNORECASE)


@dataclass(slots=True)
class _Equation:
    left: str
    constant: str | None = None
    slopes: dict[str, Term] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)


def parse_equations(text: str, groups: str | None) -> ParsedFormula:
    """Parse level equations.

    Parameters
    ----------
    text : str
        One equation a line; empty lines and lines that start with `#` are skipped.
    groups : str or None
        The grouping columns, `"school"` or `"country:school"`.

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
    level1, equations = _read(lines[0]), [_read(line) for line in lines[1:]]
    level2 = {e.left: e for e in equations}
    if len(level2) < len(equations):
        names = [e.left for e in equations]
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise FormulaError(f"{twice} has two equations; keep one")
    intercepts = [s for s in level1.loose if s in level2]
    residuals = [s for s in level1.loose if s not in level2]
    if len(intercepts) > 1 or len(residuals) > 1 or not all(_RESIDUAL.fullmatch(s) for s in residuals):
        unknown = [s for s in residuals if not _RESIDUAL.fullmatch(s)]
        raise FormulaError(
            f"{lines[0]!r}: beside coefficient*predictor there may be one coefficient with an equation of its own and "
            f"one residual called r or e; found {', '.join(unknown or level1.loose)}"
        )
    coefficients = {**dict.fromkeys(intercepts, INTERCEPT), **level1.slopes}
    missing = [c for c in coefficients if c not in level2]
    if missing:
        raise FormulaError(f"no equation for {', '.join(missing)}; write for instance '{missing[0]} = g10 + u1'")
    unused = [c for c in level2 if c not in coefficients]
    if unused:
        raise FormulaError(f"the equation of {', '.join(unused)} belongs to no coefficient of {lines[0]!r}")
    return _assemble(level1.left, groups, coefficients, level2)


def _assemble(outcome: str, groups: str, coefficients: dict[str, Term], level2: dict[str, _Equation]) -> ParsedFormula:
    symbols = [s for e in level2.values() for s in (*e.loose, *e.slopes)]
    twice = next((s for i, s in enumerate(symbols) if s in symbols[:i]), None)
    if twice is not None:
        raise FormulaError(f"the symbol {twice} stands in two places; every coefficient and random effect is its own")
    fixed: list[Term] = []
    random: list[Term] = []
    for symbol, term in coefficients.items():
        equation = level2[symbol]
        effects = [s for s in equation.loose if _RANDOM_EFFECT.fullmatch(s)]
        constants = [s for s in equation.loose if not _RANDOM_EFFECT.fullmatch(s)]
        if len(effects) > 1 or len(constants) > 1:
            raise FormulaError(f"the equation of {symbol} has {', '.join(equation.loose)}: one constant, one u at most")
        fixed.extend([term] if constants else [])
        fixed.extend(predictor.times(term) for predictor in equation.slopes.values())
        random.extend([term] if effects else [])
    seen: dict[Atom, int] = {}
    for t in sorted(fixed, key=lambda t: len(t.atoms)):
        for atom in t.atoms:
            seen.setdefault(atom, len(seen))
    ordered = sorted((Term(tuple(sorted(t.atoms, key=seen.__getitem__))) for t in fixed), key=lambda t: len(t.atoms))
    # the group's and the outcome's text go through the formula parser, which knows quoting and a:b
    frame = parse_formula(f"{outcome} ~ 1 + (1 | {groups})")
    if len(frame.random) != 1 or frame.fixed != (INTERCEPT,):
        raise FormulaError(f"groups={groups!r} is not a grouping column; write 'school', or 'country:school'")
    blocks = (RandomBlock(tuple(random), frame.random[0].keys),) if random else ()
    return ParsedFormula(frame.outcome, tuple(ordered), blocks)


def _read(line: str) -> _Equation:
    left, _, right = line.partition("=")
    equation = _Equation(left.strip())
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
