"""Messages in the words of the command line: its options in place of Python's arguments."""

from __future__ import annotations

import re
import shlex

_ARGUMENTS = (
    *("data", "database", "df", "drop_collinear", "groups", "history", "into", "level2", "max_evaluations", "method"),
    *("replace", "save", "survey", "unseen", "vcov", "weights"),
)
"""Arguments that are options of the same name."""

OPTIONS = {argument: "--" + argument.replace("_", "-") for argument in _ARGUMENTS} | {"con": "--database"}

PHRASES = {
    "raise max_evaluations": "raise --max-evaluations",
    "inference(vcov='CR0')": "--vcov CR0",
    "fit.save(path)": "mlsql fit --save",
    "choose another prefix": "name another file",
    " under the prefix 'ml_'": "",
    ", or choose another schema": "",
    "predict the rows of the fit (no data=), or leave": "predict from Python, where you can leave",
    " out: terms= the other factors, or () for none": " out",
}
"""What else only Python can do, and what does it here."""

_ARGUMENT = re.compile(
    # in the parentheses of a call it is no argument of ours: I(method='REML') compares a column
    rf"(?<![\w.-])(?<!\w\()({'|'.join(OPTIONS)})="
    r"(?:(?P<flag>True\b(?!\.\w))|'(?P<text>[^']*)'(?: or '(?P<other>[^']*)')?|(?P<number>\d+\b)|(?=[\s,;.)]|$))"
)


def in_options(text: str) -> str:
    """A message as the command line says it; the formula above a caret stays as it is."""
    lines = text.split("\n")
    shown = 2 if len(lines) > 1 and lines[-1].strip() == "^" else 0
    return "\n".join([*map(_line, lines[: len(lines) - shown]), *lines[len(lines) - shown :]])


def _line(text: str) -> str:
    for phrase, words in PHRASES.items():
        text = text.replace(phrase, words)
    return _ARGUMENT.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    values = [found[kind] for kind in ("text", "other", "number") if found[kind] is not None]
    return " or ".join([" ".join([OPTIONS[found[1]], *map(shlex.quote, values[:1])]), *map(shlex.quote, values[1:])])
