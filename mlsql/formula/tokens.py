"""Formula text to tokens with positions.  sqlglot's tokenizer knows SQL's strings and quoted names; we reuse it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import Dialect
from sqlglot.errors import TokenError

from mlsql.errors import FormulaError

OPERATORS = frozenset({"~", "+", "-", "*", "/", ":", "^", "|", "||", "(", ")", ",", "="})


@dataclass(frozen=True, slots=True)
class Token:
    """A token: `kind` is the operator itself, or one of name, quoted, number, string, other, end."""

    kind: str
    text: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Split formula text into tokens, the last of kind `end`.

    Names may be quoted as in SQL (`"my column"`); for R's backticks pass the text through `double_quotes` first.

    Raises
    ------
    FormulaError
        When a quotation mark is left open.
    """
    try:
        raw = Dialect.get_or_raise("duckdb").tokenize(text)
    except TokenError as error:
        raise FormulaError(f"the formula cannot be split into tokens, is a quote left open? {text!r}") from error
    tokens = [_token(t.token_type.name, t.text, t.start, t.end) for t in raw]
    return [*tokens, Token("end", "", len(text), len(text))]


def _token(kind: str, text: str, start: int, end: int) -> Token:
    if text in OPERATORS and kind not in {"STRING", "IDENTIFIER"}:
        return Token(text, text, start, end)
    if kind == "IDENTIFIER":
        return Token("quoted", text, start, end)
    if kind in {"NUMBER", "STRING"}:
        return Token(kind.lower(), text, start, end)
    # SQL keywords (order, group, in) are ordinary names inside a formula
    if text and (text[0].isalpha() or text[0] == "_"):
        return Token("name", text, start, end)
    return Token("other", text, start, end)


def double_quotes(text: str) -> str:
    """Backtick-quoted names become double-quoted ones of the same length, so that positions stay true."""
    parts = text.split("`")
    if len(parts) == 1:
        return text
    if len(parts) % 2 == 0:
        raise FormulaError.at(text, text.rfind("`"), "a backtick is left open")
    if any('"' in quoted for quoted in parts[1::2]):
        raise FormulaError('a name in backticks holds a double quote; write it SQL\'s way: "a ""b"" c"')
    return "".join(f'"{part}"' if i % 2 else part for i, part in enumerate(parts))
