"""Refuse grouping factors that identify no variance; warn of those that do so hardly, or are probably not meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import numpy as np

from mlsql._arrays import IntArray
from mlsql.design.columns import Column
from mlsql.design.design import Design
from mlsql.errors import DesignError
from mlsql.formula.terms import Factor
from mlsql.moments.incidence import Incidence
from mlsql.moments.moments import Moments
from mlsql.results.relations import Relation, combination_of, occupancy, relations

MOSTLY = 0.5
"""Share of cells with one row above which a random cell gets a warning; share of pairs with two rows or more from which
labels that start anew in each group look like implicit nesting."""


def check_factors(design: Design, moments: Moments) -> tuple[str, ...]:
    """What is wrong with the grouping factors of a model that has several, or a membership.

    1. Each factor by itself: levels, rows of the largest group, random coefficients.
    2. Pairs: identical groups, labels that start anew in each group.

    Returns
    -------
    tuple of str
        Warnings; none for a two-level model, whose group has its own check.

    Raises
    ------
    DesignError
    """
    if not moments.incidences:
        return ()
    p, N = len(design.fixed.columns), moments.n_rows
    if p >= N:
        raise DesignError(f"{p} fixed effects but {N:,} complete rows; use fewer predictors")
    found = relations(moments)
    cells = combination_of(moments, found)
    warnings: list[str] = []
    # 1
    for factor, incidence in zip(design.spec.factors, moments.incidences, strict=True):
        sizes = incidence.rows(moments.n)
        _check_sizes(design, factor, sizes, N, cells.get(incidence.name))
        if incidence.name in cells:
            warnings += _lonely_rows(incidence, sizes, cells[incidence.name])
        warnings += _few_groups(design, factor, incidence)
    # 2
    for relation in found:
        if relation.kind == "same groups":
            warnings.append(_same_groups(design, relation, moments.incidence(relation.first)))
        else:
            warnings += _implicit_nesting(design, relation, moments)
    return tuple(warnings)


def _check_sizes(design: Design, factor: Factor, sizes: IntArray, rows: int, pair: tuple[str, str] | None) -> None:
    J, largest, columns = len(sizes), int(sizes.max()), _columns(design, factor)
    term = f"random term ({_terms(columns)} | {factor.name})"
    if J < 2:
        raise DesignError(
            f"{term}: {factor.name} has {J} level in {rows:,} rows, at least 2 are needed; check the filter or drop "
            "the term"
        )
    if largest == 1 and pair is not None:
        raise DesignError(
            f"{term}: each of its {J:,} groups, the occupied combinations of {pair[0]} and {pair[1]}, has one row, so "
            "that its variance cannot be told from sigma2; drop the term: sigma2 then contains it"
        )
    if largest == 1:
        raise DesignError(
            f"{term}: {factor.name} has as many values as rows ({rows:,}): every group has one row, so group effects "
            "cannot be told from level-1 errors; choose a column that repeats, or drop the term"
        )
    if len(columns) >= largest:
        raise DesignError(
            f"{len(columns)} random coefficients of {factor.name}, but no group has more than {largest} rows: their "
            "covariance cannot be told from level-1 errors; use fewer random coefficients"
        )


def _lonely_rows(incidence: Incidence, sizes: IntArray, pair: tuple[str, str]) -> Iterator[str]:
    """A random cell whose variance is told from sigma2 by few cells."""
    single, J = int(np.count_nonzero(sizes == 1)), len(sizes)
    if single > MOSTLY * J:
        yield (
            f"{incidence.name}, the combination of {pair[0]} and {pair[1]}: {single:,} of {J:,} cells "
            f"({single / J:.0%}) have one row, and only the other {J - single:,} tell its variance from sigma2; "
            "consider dropping the term: sigma2 then contains it"
        )


def _few_groups(design: Design, factor: Factor, incidence: Incidence) -> Iterator[str]:
    sizes = [len(design.blocks[b].columns) for b in factor.blocks]
    parameters, J = sum(q * (q + 1) // 2 for q in sizes), incidence.n_groups
    if parameters > J - 1:
        yield (
            f"{factor.name} has {J} groups for {parameters} variances and covariances of {sum(sizes)} random "
            f"coefficients ({_terms(_columns(design, factor))}): they are hardly determined, at or near the boundary; "
            f"use fewer random slopes over {factor.name}, or drop covariances by ||"
        )


def _same_groups(design: Design, relation: Relation, incidence: Incidence) -> str:
    named = {f.name: f for f in design.spec.factors}
    first, second = named[relation.first], named[relation.second]
    left, right = _columns(design, first), _columns(design, second)
    names = {frozenset(c.variables): c.name for c in left}
    shared = [names[frozenset(c.variables)] for c in right if frozenset(c.variables) in names]
    what = f"{first.name} and {second.name} have the same {incidence.n_groups:,} groups"
    if shared:
        raise DesignError(
            f"{what}, so that their variances of {', '.join(shared)} cannot be told from each other; keep one of the "
            f"two: ({_terms(left)} | {first.name})"
        )
    return (
        f"{what}, and covariances of {_terms(left)} with {_terms(right)} are zero by the formula; write them as terms "
        f"of one factor, ({_terms(left)} + {_terms(right)} | {first.name}), if they are not meant to be"
    )


def _implicit_nesting(design: Design, relation: Relation, moments: Moments) -> Iterator[str]:
    """Labels that start anew in each group of the other factor: 1, 2, ... within every school."""
    if relation.kind not in ("crossed", "partially crossed") or relation.single > MOSTLY * relation.occupied:
        return
    names = (relation.first, relation.second)
    columns = frozenset[str]().union(*[f.columns for f in design.spec.factors if f.name in names])
    if any(columns <= f.columns for f in design.spec.factors):
        # the formula itself tells the two from their combination
        return
    pair = sorted((moments.incidence(n) for n in names), key=lambda i: i.n_groups)
    for inner, outer in (pair, reversed(pair)):
        if inner.keys.num_columns == 1 and _starts_anew(inner, outer, moments.n, relation.kind == "crossed"):
            factor = next(f for f in design.spec.factors if f.name == outer.name)
            nested = f"{outer.name}:{inner.name}" if len(factor.keys) > 1 else f"{outer.name}/{inner.name}"
            label = inner.keys.column(0)[0].as_py()
            yield (
                f"{inner.name} takes the same values within each {outer.name}: if {inner.name} {label} of one "
                f"{outer.name} is not {inner.name} {label} of another, write (1 | {nested})"
            )
            return


def _starts_anew(inner: Incidence, outer: Incidence, n: IntArray, crossed: bool) -> bool:
    """True when every group of `outer` meets the first k groups of `inner` and no others, whatever its k.

    Where all meet all this says nothing, so that labels must be 1, 2, ... or a, b, ... for suspicion.
    """
    if crossed:
        return _counts(inner.keys.column(0).to_pylist())
    pairs = occupancy(outer, inner, n)
    met = np.diff(pairs.indptr)
    if met.max() < inner.n_groups:
        # the longest list would hold every label
        return False
    return any(
        np.array_equal(np.maximum.reduceat(rank[pairs.indices], pairs.indptr[:-1]), met - 1)
        for rank in _ranks(inner.keys.column(0).to_pylist())
    )


def _counts(labels: list[Any]) -> bool:
    """True for bare numbers from 0 or 1 on, and for letters from a on."""
    if all(isinstance(label, str) for label in labels):
        if labels in (list(ascii_lowercase[: len(labels)]), list(ascii_uppercase[: len(labels)])):
            return True
        labels = [int(label) if label.isdecimal() else label for label in labels]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        return False
    return sorted(labels) in (list(range(len(labels))), list(range(1, len(labels) + 1)))


def _ranks(labels: list[Any]) -> Iterator[IntArray]:
    """Positions of the groups in the order of their labels; for text also with 2 before 10."""
    yield np.arange(len(labels))
    if all(isinstance(label, str) for label in labels):
        rank = np.empty(len(labels), dtype=np.int64)
        rank[sorted(range(len(labels)), key=lambda i: (len(labels[i]), labels[i]))] = np.arange(len(labels))
        yield rank


def _columns(design: Design, factor: Factor) -> list[Column]:
    return [c for b in factor.blocks for c in design.blocks[b].columns]


def _terms(columns: Sequence[Column]) -> str:
    """`1 + x`, as in the formula."""
    return " + ".join("1" if not c.variables else c.name for c in columns)
