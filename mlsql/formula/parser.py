"""lme4's grammar: `y ~ a*b + I(x^2) + (1 + x | g)` to terms.

formula     := expression "~" sum
sum         := ["-"] product (("+" | "-") product)*
product     := interaction (("*" | "/") interaction)*
interaction := power (":" power)*
power       := primary ("^" number)*
primary     := 0 | 1 | name | name "(" anything ")" | "(" sum [("|" | "||") groups] ")"
groups      := factor ("/" factor)*
factor      := key (":" key)*
key         := name | name "(" anything ")"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

from mlsql.errors import FormulaError
from mlsql.formula.atoms import call_atom, column_atom, offset_atom, split_arguments, sql_atom
from mlsql.formula.terms import INTERCEPT, Atom, RandomBlock, Term
from mlsql.formula.tokens import Token, double_quotes, tokenize

_JOIN = (
    "join the columns of one factor by ':', factors within factors by '/', without parentheses, and give each "
    "further factor a random term of its own, (1 | a) + (1 | b)"
)


@dataclass(slots=True)
class ParsedFormula:
    """What a formula's text says, before it is checked as a model."""

    outcome: Atom
    fixed: tuple[Term, ...] = ()
    random: tuple[RandomBlock, ...] = ()
    offsets: tuple[Atom, ...] = ()


@dataclass(slots=True)
class _Sum:
    """Terms of one sum in order; the intercept is kept apart because it is implied."""

    terms: list[Term] = field(default_factory=list)
    intercept: bool | None = None

    def add(self, term: Term) -> None:
        if term == INTERCEPT:
            self.intercept = True
        elif term not in self.terms:
            self.terms.append(term)

    def remove(self, term: Term) -> None:
        if term == INTERCEPT:
            self.intercept = False
        self.terms = [t for t in self.terms if t != term]

    def ordered(self, seen: dict[Atom, int], implied_intercept: bool = True) -> tuple[Term, ...]:
        """Main effects first, then products by degree; atoms in the order in which the formula names them (R's)."""
        terms = [Term(tuple(sorted(t.atoms, key=seen.__getitem__))) for t in self.terms]
        terms.sort(key=lambda t: len(t.atoms))
        intercept = implied_intercept if self.intercept is None else self.intercept
        return ((INTERCEPT,) if intercept else ()) + tuple(terms)


def parse_formula(text: str) -> ParsedFormula:
    """Parse a formula.

    Raises
    ------
    FormulaError
        With the position, when the text does not follow the grammar.
    """
    return _Parser(text).formula()


def parse_groups(text: str) -> tuple[tuple[Atom, ...], ...]:
    """Parse what stands behind the bar of a random term: the keys of each factor, coarse to fine.

    `school` is one factor of one key, `a:b` one factor of two keys, `a/b` the two factors `a` and `a:b`.

    Raises
    ------
    FormulaError
        With the position, when the text does not follow the grammar.
    """
    parser = _Parser(text)
    factors = parser.groups()
    if parser.next.kind != "end":
        raise parser.fail(f"unexpected {parser.next.text!r} after the groups")
    return factors


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = double_quotes(text)
        self.tokens = tokenize(self.text)
        self.position = 0
        self.random: list[RandomBlock] = []
        self.offsets: list[Atom] = []
        self.depth = 0
        self.seen: dict[Atom, int] = {}

    @property
    def next(self) -> Token:
        return self.tokens[self.position]

    def take(self) -> Token:
        token = self.tokens[self.position]
        self.position += 1
        return token

    def fail(self, problem: str, token: Token | None = None) -> FormulaError:
        return FormulaError.at(self.text, (token or self.next).start, problem)

    def expect(self, kind: str, reason: str) -> Token:
        if self.next.kind != kind:
            found = "the end of the formula" if self.next.kind == "end" else repr(self.next.text)
            raise self.fail(f"expected {kind!r} {reason}, found {found}")
        return self.take()

    def formula(self) -> ParsedFormula:
        tilde = next((i for i, t in enumerate(self.tokens) if t.kind == "~"), None)
        if tilde is None:
            raise self.fail("a formula needs '~' between outcome and predictors: y ~ x + (1 | g)", self.tokens[-1])
        if tilde == 0:
            raise self.fail("the outcome before '~' is missing", self.tokens[0])
        outcome = self.outcome(tilde)
        self.position = tilde + 1
        fixed = self.sum()
        if self.next.kind != "end":
            raise self.fail(f"unexpected {self.next.text!r}")
        return ParsedFormula(outcome, fixed.ordered(self.seen), tuple(self.random), tuple(self.offsets))

    def outcome(self, tilde: int) -> Atom:
        tokens = self.tokens[:tilde]
        if len(tokens) == 1 and tokens[0].kind in {"name", "quoted"}:
            return column_atom(tokens[0].text)
        text = self.text[: self.tokens[tilde].start].strip()
        if tokens[0].text == "I" and tokens[-1].kind == ")":
            return sql_atom(text[text.index("(") + 1 : -1], text)
        return sql_atom(text)

    def sum(self) -> _Sum:
        total = _Sum()
        sign = self.take().kind if self.next.kind in {"+", "-"} else "+"
        while True:
            start = self.next
            zero = start.kind == "number" and start.text == "0"
            apart = len(self.random) + len(self.offsets)
            if zero:
                self.take()
                total.intercept = sign == "-"
            else:
                for term in self.product():
                    if sign == "+":
                        total.add(term)
                    else:
                        total.remove(term)
            if sign == "-" and len(self.random) + len(self.offsets) > apart:
                raise self.fail("a random term or an offset cannot be taken away; leave it out", start)
            if self.next.kind not in {"+", "-"}:
                return total
            sign = self.take().kind

    def product(self) -> list[Term]:
        left = self.interaction()
        while self.next.kind in {"*", "/"}:
            operator = self.take()
            right = self.interaction()
            self.check_factors(left, right, operator)
            if operator.kind == "*":
                crossed = [a.times(b) for a in left for b in right]
                left = [*left, *right, *crossed]
            else:
                whole = Term()
                for term in left:
                    whole = whole.times(term)
                left = [*left, *(whole.times(b) for b in right)]
        return left

    def interaction(self) -> list[Term]:
        left = self.power()
        while self.next.kind == ":":
            operator = self.take()
            right = self.power()
            self.check_factors(left, right, operator)
            left = [a.times(b) for a in left for b in right]
        return left

    def check_factors(self, left: list[Term], right: list[Term], operator: Token) -> None:
        if not left or not right:
            raise self.fail("a random term or an offset cannot be multiplied", operator)

    def power(self) -> list[Term]:
        base = self.primary()
        while self.next.kind == "^":
            self.take()
            token = self.take()
            if token.kind != "number" or not token.text.isdigit() or int(token.text) < 1:
                raise self.fail("'^' in a formula needs a whole number; powers of a value are I(x^2)", token)
            chosen: list[Term] = []
            for degree in range(1, int(token.text) + 1):
                for subset in combinations(base, degree):
                    term = Term()
                    for factor in subset:
                        term = term.times(factor)
                    chosen.append(term)
            base = chosen
        return base

    def primary(self) -> list[Term]:
        token = self.take()
        if token.kind == "number":
            if token.text == "1":
                return [INTERCEPT]
            raise self.fail(f"the number {token.text} is not a term; only 0 and 1 are", token)
        if token.kind == "(":
            return self.parenthesis(token)
        if token.kind == "name" and self.next.kind == "(":
            return self.call(token)
        if token.kind in {"name", "quoted"}:
            return [self.term(column_atom(token.text))]
        if token.kind == "end":
            raise self.fail("the formula ends where a term is expected", token)
        raise self.fail(f"expected a term, found {token.text!r}", token)

    def parenthesis(self, opening: Token) -> list[Term]:
        self.depth += 1
        inside = self.sum()
        self.depth -= 1
        if self.next.kind in {"|", "||"}:
            if self.depth:
                raise self.fail("a random term cannot stand inside another parenthesis")
            correlated = self.take().kind == "|"
            factors = self.groups()
            self.expect(")", "after the group of a random term")
            terms = inside.ordered(self.seen)
            if not terms:
                raise self.fail("a random term needs at least one coefficient", opening)
            blocks = [terms] if correlated else [(t,) for t in terms]
            self.random.extend(RandomBlock(tuple(b), keys) for keys in factors for b in blocks)
            return []
        self.expect(")", "to close the parenthesis")
        return list(inside.ordered(self.seen, implied_intercept=False))

    def groups(self) -> tuple[tuple[Atom, ...], ...]:
        """The factors of `a/b/c`, coarse to fine; as in R, ':' binds closer than '/'."""
        factors = [self.factor(())]
        while self.next.kind == "/":
            self.take()
            factors.append(self.factor(factors[-1]))
        return tuple(factors)

    def factor(self, within: tuple[Atom, ...]) -> tuple[Atom, ...]:
        keys = list(within)
        while True:
            token = self.next
            key = self.group_atom()
            if any(key.sql == other.sql for other in keys):
                raise self.fail(f"the grouping column {key.name} stands twice in one factor; name it once", token)
            keys.append(key)
            if self.next.kind != ":":
                return tuple(keys)
            self.take()

    def group_atom(self) -> Atom:
        token = self.take()
        if token.kind == "name" and self.next.kind == "(":
            found = self.call(token)
            if not found or found[0].atoms[0].kind != "value" or found[0].atoms[0].centering != "none":
                raise self.fail(f"{token.text}() cannot name groups; give a column", token)
            return found[0].atoms[0]
        if token.kind == "(":
            raise self.fail(f"{self.bracketed(token)!r} is no grouping factor: {_JOIN}", token)
        if token.kind not in {"name", "quoted"}:
            raise self.fail("expected the name of the grouping column", token)
        return column_atom(token.text)

    def bracketed(self, opening: Token) -> str:
        """The text from a parenthesis to the one that closes it."""
        depth, last = 1, opening
        while depth and self.next.kind != "end":
            last = self.take()
            depth += (last.kind == "(") - (last.kind == ")")
        return self.text[opening.start : last.end + 1]

    def call(self, name: Token) -> list[Term]:
        start = self.position
        depth = 0
        while True:
            token = self.take()
            if token.kind == "end":
                raise self.fail(f"the parenthesis of {name.text}( is not closed", name)
            depth += (token.kind == "(") - (token.kind == ")")
            if depth == 0:
                break
        inner = self.tokens[start + 1 : self.position - 1]
        if not inner:
            raise self.fail(f"{name.text}() needs an argument", name)
        if any(t.kind == "|" for t in inner):
            raise self.fail(
                f"{name.text}( ... | ... ) is no function call; is a '+' missing before the random term?", name
            )
        whole = self.text[name.start : token.end + 1]
        inside = self.text[inner[0].start : inner[-1].end + 1]
        try:
            if name.text == "offset":
                self.offsets.append(offset_atom(inner, self.text))
                return []
            return [self.term(call_atom(name.text, whole, inside, split_arguments(inner), self.text))]
        except FormulaError as error:
            if "\n" in str(error):
                raise
            raise self.fail(str(error), name) from error

    def term(self, atom: Atom) -> Term:
        self.seen.setdefault(atom, len(self.seen))
        return Term((atom,))
