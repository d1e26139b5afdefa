"""Linear hypotheses on named coefficients: text or matrix to contrasts and values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlsql._arrays import Array
from mlsql.errors import FitError

NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """contrasts @ beta = values.

    Attributes
    ----------
    labels : tuple of str
    contrasts : (r, p)
    values : (r,)
    """

    labels: tuple[str, ...]
    contrasts: Array
    values: Array


def make_hypothesis(given: object, names: Sequence[str]) -> Hypothesis:
    """Read a hypothesis.

    Parameters
    ----------
    given : str, sequence of str, or (r, p) array
        Linear equations in the names of terms, `"sector = 0"`, `"ses + ses:sector = 2"`, `"a = b"`; a name alone stands
        for `= 0`; several as a list, or in one text with commas between them.  Or a matrix whose rows are compared
        with 0.
    names : sequence of str

    Raises
    ------
    FitError
        For unknown terms, for text that is no linear equation, for a matrix of the wrong width, and for rows that
        depend linearly on each other.
    """
    if isinstance(given, str):
        found = _from_text(_split(given, names), names)
    elif isinstance(given, Sequence) and given and all(isinstance(g, str) for g in given):
        found = _from_text([part for g in given for part in _split(str(g), names)], names)
    else:
        found = _from_matrix(given, names)
    sizes = np.linalg.norm(found.contrasts, axis=1, keepdims=True)
    rank = int(np.linalg.matrix_rank(found.contrasts / np.where(sizes > 0, sizes, 1.0)))
    if rank < len(found.contrasts):
        raise FitError(
            f"the hypothesis has {len(found.contrasts)} rows of rank {rank}: "
            + ("a row is zero, or " if not found.contrasts.any(axis=1).all() else "")
            + "some follow from the others; leave those out"
        )
    return found


def _from_matrix(given: object, names: Sequence[str]) -> Hypothesis:
    try:
        matrix = np.atleast_2d(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise FitError(f"a hypothesis is text or a matrix of numbers, not {given!r}") from error
    if matrix.ndim != 2 or matrix.shape[1] != len(names) or not np.all(np.isfinite(matrix)):
        raise FitError(
            f"the hypothesis matrix has shape {matrix.shape}; it needs {len(names)} finite columns, one for each fixed "
            f"effect: {', '.join(names)}"
        )
    labels = tuple(describe(row, 0.0, names) for row in matrix)
    return Hypothesis(labels, matrix, np.zeros(len(matrix)))


def _from_text(texts: Sequence[str], names: Sequence[str]) -> Hypothesis:
    rows, values, labels = [], [], []
    for text in texts:
        sides = _sides(text, names)
        left, constant = _linear(sides[0], text, names)
        if len(sides) == 2:
            other, moved = _linear(sides[1], text, names)
            left, constant = left - other, constant - moved
        rows.append(left)
        values.append(0.0 - constant)
        labels.append(text.strip() if len(sides) == 2 else f"{text.strip()} = 0")
    return Hypothesis(tuple(labels), np.array(rows), np.array(values))


def describe(row: Array, value: float, names: Sequence[str]) -> str:
    """A row of contrasts as text."""
    terms: list[str] = []
    for weight, name in zip(row, names, strict=True):
        if weight:
            sign = "-" if weight < 0 else "+" if terms else ""
            size = "" if abs(weight) == 1.0 else f"{abs(weight):g}*"
            terms.append(f"{sign} {size}{name}" if terms else f"{sign}{size}{name}")
    return f"{' '.join(terms) or '0'} = {value:g}"


def _split(text: str, names: Sequence[str]) -> list[str]:
    """Equations separated by commas that are not part of a name."""
    return [p for p in _pieces(text, ",", names) if p.strip()] or [text]


def _sides(text: str, names: Sequence[str]) -> list[str]:
    sides = _pieces(text, "=", names)
    if len(sides) > 2 or not all(s.strip() for s in sides):
        raise FitError(f"{text.strip()!r} is no linear equation; write it as 'a - b = 0'")
    return sides


def _pieces(text: str, separator: str, names: Sequence[str]) -> list[str]:
    pieces, start, position = [], 0, 0
    while position < len(text):
        name = _name_at(text, position, names)
        if name is not None:
            position += len(name)
            continue
        if text[position] == separator:
            pieces.append(text[start:position])
            start = position + 1
        position += 1
    return [*pieces, text[start:]]


def _name_at(text: str, position: int, names: Sequence[str]) -> str | None:
    """The longest name that stands at a position as a whole word."""
    if position and _wordy(text[position - 1]) and _wordy(text[position]):
        return None
    found = [n for n in names if text.startswith(n, position)]
    for name in sorted(found, key=len, reverse=True):
        end = position + len(name)
        after = text[end : end + 1]
        if not (after and _wordy(after) and _wordy(name[-1])) and after not in (":", "["):
            return name
    return None


def _wordy(character: str) -> bool:
    return character.isalnum() or character == "_"


def _linear(side: str, whole: str, names: Sequence[str]) -> tuple[Array, float]:
    """Coefficients and constant of  [sign] [number [*]] name [/ number]  sums."""
    row, constant = np.zeros(len(names)), 0.0
    position, first = 0, True
    while True:
        position = _space(side, position)
        if position >= len(side):
            break
        sign = 1.0
        if side[position] in "+-":
            sign = -1.0 if side[position] == "-" else 1.0
            position = _space(side, position + 1)
        elif not first:
            raise FitError(f"{whole.strip()!r}: a + or - is missing before {side[position:].strip()!r}")
        if position >= len(side):
            raise FitError(f"{whole.strip()!r} ends with a sign; write it as 'a - b = 0'")
        weight = sign
        if NUMBER.match(side, position) is not None and _name_at(side, position, names) is None:
            number, position = _number(side, position, whole)
            weight *= number
            if position < len(side) and side[position] == "*":
                position = _space(side, position + 1)
            elif position >= len(side) or side[position] in "+-":
                constant += weight
                first = False
                continue
            elif _name_at(side, position, names) is None:
                raise FitError(f"{whole.strip()!r}: a * is missing before {side[position:].strip()!r}")
        name = _name_at(side, position, names)
        if name is None:
            raise _unknown(side[position:], whole, names)
        position = _space(side, position + len(name))
        if position < len(side) and side[position] == "/":
            divisor = NUMBER.match(side, _space(side, position + 1))
            if divisor is None or not 0.0 < float(divisor.group()) < np.inf:
                raise FitError(f"{whole.strip()!r}: {name} is divided by something that is no number, or by 0")
            weight, position = weight / float(divisor.group()), divisor.end()
        row[names.index(name)] += weight
        first = False
    return row, constant


def _number(side: str, position: int, whole: str) -> tuple[float, int]:
    """A number or a fraction of two, and the position after it."""
    found = NUMBER.match(side, position)
    assert found is not None
    value, after = float(found.group()), _space(side, found.end())
    if after < len(side) and side[after] == "/":
        below = NUMBER.match(side, _space(side, after + 1))
        if below is None or float(below.group()) == 0.0:
            raise FitError(f"{whole.strip()!r}: {found.group()} is divided by something that is no number, or by 0")
        value, after = value / float(below.group()), _space(side, below.end())
    if not np.isfinite(value):
        raise FitError(f"{whole.strip()!r}: {found.group()} is too large a number")
    return value, after


def _space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _unknown(rest: str, whole: str, names: Sequence[str]) -> FitError:
    word = re.split(r"\s*[-+=,*]\s*|\s", rest.strip(), maxsplit=1)[0] or rest.strip()
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"fixed effects are {', '.join(names)}"
    where = "" if whole.strip() == word else f"{whole.strip()!r}: "
    return FitError(f"{where}{word!r} is not a fixed effect of this fit; {hint}")
