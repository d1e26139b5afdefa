"""How two factors lie to each other, counted by hand; factors that are refused or warned of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mlsql.errors import DesignError
from mlsql.moments.incidence import Incidence
from mlsql.pipeline.analysis import Analysis, analyse
from mlsql.pipeline.prepare import make_inputs, make_spec
from mlsql.results.factor_checks import check_factors
from mlsql.results.relations import Relation, combination_of, relation, relations

DataFile = Callable[[str], str]


def analysed(formula: str, data: object) -> Analysis:
    return analyse(make_spec(formula, "REML", None, None), make_inputs(data, None, None))


def found(formula: str, data: object) -> tuple[Relation, ...]:
    return relations(analysed(formula, data).moments)


def said(formula: str, data: object) -> tuple[str, ...]:
    """Warnings; an error whether the checks are part of the analysis or not."""
    analysis = analysed(formula, data)
    return check_factors(analysis.design, analysis.moments)


def rows(**columns: Any) -> pl.DataFrame:
    """Columns with an outcome and a predictor that follow no pattern of the groups."""
    frame = pl.DataFrame(columns)
    rng = np.random.default_rng(5)
    return frame.with_columns(y=pl.Series(rng.normal(size=len(frame))), x=pl.Series(rng.normal(size=len(frame))))


def grid(a: int, b: int, times: int) -> pl.DataFrame:
    """Every pair of a rows and b columns, the same number of times, with labels that do not count."""
    i = np.arange(a * b * times)
    return rows(a=np.array([f"r{7 * k % 101}" for k in range(a)])[i % a], b=np.array(list("qwertyuiop"))[i // a % b])


# ---------------------------------------------------------------------------------------- relations


def test_nested_factors(data_file: DataFile) -> None:
    (pair,) = found("strength ~ 1 + (1 | batch/cask)", data_file("pastes"))
    assert (pair.kind, pair.inner, pair.outer) == ("nested", "batch:cask", "batch")
    assert (pair.occupied, pair.possible, pair.single) == (30, 300, 0)
    assert (pair.first_degrees.minimum, pair.first_degrees.maximum) == (3, 3)
    assert pair.second_degrees.mean == 1.0
    assert pair.text == "batch:cask nested in batch"


def test_labels_that_are_unique_nest_without_the_formula_saying_so(data_file: DataFile) -> None:
    (pair,) = found("strength ~ 1 + (1 | sample) + (1 | batch)", data_file("pastes"))
    assert pair.text == "sample nested in batch"


def test_crossed_factors(data_file: DataFile) -> None:
    (pair,) = found("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    assert pair.text == "plate crossed with sample"
    assert (pair.occupied, pair.possible, pair.single, pair.inner) == (144, 144, 144, None)


def test_partially_crossed_factors_against_the_rows(data_file: DataFile) -> None:
    frame = pl.read_parquet(data_file("insteval"))
    pairs = found("y ~ 1 + (1 | s) + (1 | d) + (1 | dept:service)", data_file("insteval"))
    assert [(p.first, p.second) for p in pairs] == [("s", "d"), ("s", "dept:service"), ("d", "dept:service")]
    for pair in pairs:
        left, right = pair.first.split(":"), pair.second.split(":")
        counts = frame.group_by([*left, *right]).len()
        degrees = [counts.group_by(keys).len()["len"] for keys in (left, right)]
        assert pair.kind == "partially crossed"
        assert (pair.occupied, pair.single) == (len(counts), int((counts["len"] == 1).sum()))
        assert pair.possible == len(degrees[0]) * len(degrees[1])
        for spread, numbers in zip(
            (pair.first_degrees, pair.second_degrees, pair.rows), (*degrees, counts["len"]), strict=True
        ):
            assert (spread.minimum, spread.maximum) == (numbers.min(), numbers.max())
            assert spread.mean == pytest.approx(numbers.mean(), rel=1e-12)  # sums of integers


def test_identical_groups_under_two_names() -> None:
    frame = rows(a=np.arange(40) // 4, b=np.array(list("zyxwvutsrq"))[np.arange(40) // 4])
    (pair,) = found("y ~ 1 + (1 | a) + (0 + x | b)", frame)
    assert (pair.kind, pair.inner, pair.occupied) == ("same groups", None, 10)


def test_a_two_level_model_has_no_pairs(data_file: DataFile) -> None:
    assert found("Yield ~ 1 + (1 | Batch)", data_file("dyestuff")) == ()


def member(name: str, entries: Sequence[tuple[int, int, float]], groups: int) -> Incidence:
    cell, group, weight = zip(*entries, strict=True)
    keys = pa.table({name: list(range(groups))})
    return Incidence(name, keys, np.array(cell), np.array(group), np.array(weight))


def test_a_membership_counts_every_pair_that_a_row_has() -> None:
    # children 0, 1 in cells 0, 1 | 2; teachers 0, 1 together in cell 0, then each alone
    child = Incidence("child", pa.table({"child": [0, 1]}), np.arange(3), np.array([0, 0, 1]))
    teacher = member("teacher", [(0, 0, 0.5), (0, 1, 0.5), (1, 1, 1.0), (2, 2, 1.0)], 3)
    pair = relation(child, teacher, np.array([5, 2, 4]))
    assert (pair.kind, pair.inner, pair.outer) == ("multiple membership", None, None)
    # child 0 with teacher 0 (5 rows) and 1 (5 + 2), child 1 with teacher 2 (4)
    assert (pair.occupied, pair.possible, pair.rows.minimum, pair.rows.maximum) == (3, 6, 4, 7)
    assert (pair.first_degrees.maximum, pair.second_degrees.maximum) == (2, 1)
    assert pair.text == "child and teacher: multiple membership"


@pytest.mark.parametrize(
    ("entries", "same"),
    [
        ([(0, 1, 1.0), (0, 0, 0.5), (1, 0, 1.0), (2, 2, 3.0)], True),  # groups renamed, one scaled
        ([(0, 0, 0.5), (0, 1, 0.5), (1, 1, 0.5), (2, 2, 1.0)], False),  # another ratio within group 1
        ([(0, 0, 0.5), (1, 0, 0.5), (1, 1, 1.0), (2, 2, 1.0)], False),  # other cells
    ],
)
def test_memberships_with_proportional_weights_are_one_factor(
    entries: list[tuple[int, int, float]], same: bool
) -> None:
    one = member("one", [(0, 0, 0.5), (0, 1, 0.5), (1, 1, 1.0), (2, 2, 1.0)], 3)
    pair = relation(one, member("other", entries, 3), np.array([2, 2, 2]))
    assert pair.kind == ("same groups" if same else "multiple membership")


def test_random_cells_are_known_by_keys_and_by_their_groups(data_file: DataFile) -> None:
    moments = analysed(
        "attain ~ 1 + (1 | primary) + (1 | second) + (1 | primary:second)", data_file("scotssec")
    ).moments
    assert combination_of(moments, relations(moments)) == {"primary:second": ("primary", "second")}
    frame = pl.read_parquet(data_file("scotssec")).with_columns(cell=1000 * pl.col("primary") + pl.col("second"))
    moments = analysed("attain ~ 1 + (1 | primary) + (1 | second) + (1 | cell)", frame).moments
    assert combination_of(moments, relations(moments)) == {"cell": ("primary", "second")}
    # a factor nested in one that is nested in another is no cell of the two
    moments = analysed("attain ~ 1 + (1 | primary/second) + (1 | primary:second:sex)", frame).moments
    assert combination_of(moments, relations(moments)) == {}


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("formula", "data", "message"),
    [
        (
            "y ~ 1 + (1 | a) + (1 | b)",
            grid(8, 1, 5),
            r"random term \(1 \| b\): b has 1 level in 40 rows, at least 2 are needed; check the filter or drop",
        ),
        (
            "y ~ 1 + (1 | a) + (1 | i)",
            grid(8, 2, 5).with_row_index("i"),
            r"random term \(1 \| i\): i has as many values as rows \(80\): every group has one row.* drop the term",
        ),
        (
            "y ~ 1 + (1 | a) + (1 | b) + (1 | a:b)",
            grid(8, 5, 1),
            r"random term \(1 \| a:b\): each of its 40 groups, the occupied combinations of a and b, has one row, so "
            "that its variance cannot be told from sigma2; drop the term",
        ),
        (
            "y ~ x + (1 | b) + (x | a:b)",
            grid(8, 5, 2),
            "2 random coefficients of a:b, but no group has more than 2 rows: their covariance cannot be told",
        ),
        (
            "y ~ 1 + (1 | a) + (x | b) + (x | c)",
            grid(8, 5, 3).with_columns(c=pl.col("b").replace_strict(dict(zip("qwert", range(5), strict=True)))),
            r"b and c have the same 5 groups, so that their variances of \(Intercept\), x cannot be told from each "
            r"other; keep one of the two: \(1 \+ x \| b\)",
        ),
    ],
    ids=["one level", "each row its own", "cells of one row", "more coefficients than rows", "same groups"],
)
def test_factors_that_identify_no_variance(formula: str, data: pl.DataFrame, message: str) -> None:
    with pytest.raises(DesignError, match=message):
        said(formula, data)


def test_more_predictors_than_rows() -> None:
    frame = grid(3, 2, 2).with_columns(f=pl.Series([f"level {i}" for i in range(12)]))
    with pytest.raises(DesignError, match="12 fixed effects but 12 complete rows; use fewer predictors"):
        said("y ~ f + (1 | a) + (1 | b)", frame)


# ------------------------------------------------------------------------------------------ warnings


def test_same_groups_with_different_terms_are_one_factor_without_covariance() -> None:
    frame = grid(8, 5, 3).with_columns(c=pl.col("a").str.slice(1).cast(pl.Int64))
    (warning,) = said("y ~ x + (1 | a) + (1 | b) + (0 + x | c)", frame)
    assert warning.startswith("a and c have the same 8 groups, and covariances of 1 with x are zero by the formula; ")
    assert "(1 + x | a)" in warning


def test_cells_of_mostly_one_row(data_file: DataFile) -> None:
    formula = "y ~ 1 + (1 | a) + (1 | b) + (1 | a:b)"
    frame = pl.concat([grid(8, 5, 1), grid(8, 5, 1).head(13)])
    (warning,) = said(formula, frame)
    assert warning.startswith(
        "a:b, the combination of a and b: 27 of 40 cells (68%) have one row, and only the other 13 "
    )
    assert said(formula, pl.concat([frame, grid(8, 5, 1).tail(7)])) == ()  # half of them
    scots = "attain ~ 1 + (1 | primary) + (1 | second) + (1 | primary:second)"
    assert said(scots, data_file("scotssec")) == ()


@pytest.mark.parametrize(
    ("term", "b", "parameters"),
    [("x | b", 3, 3), ("x | b", 4, None), ("x || b", 3, None), ("x || b", 2, 2), ("x + I(x * x) | b", 6, 6)],
)
def test_few_groups_for_random_slopes(term: str, b: int, parameters: int | None) -> None:
    warnings = said(f"y ~ x + I(x * x) + (1 | a) + ({term})", grid(9, b, 4))
    if parameters is None:
        assert warnings == ()
    else:
        (warning,) = warnings
        assert warning.startswith(f"b has {b} groups for {parameters} variances and covariances of ")


def anew(labels: Callable[[int], object], sizes: Sequence[int], times: int) -> pl.DataFrame:
    """Children counted from 1 within every school, with some rows each."""
    pairs = [(f"s{j}", labels(k)) for j, size in enumerate(sizes) for k in range(1, size + 1) for _ in range(times)]
    return rows(school=[school for school, _ in pairs], child=[child for _, child in pairs])


@pytest.mark.parametrize(
    "labels", [int, str, lambda k: f"{k:03d}", lambda k: f"child {k}"], ids=["numbers", "text", "zeros", "words"]
)
def test_labels_that_start_anew_in_each_group(labels: Callable[[int], object]) -> None:
    frame = anew(labels, [12, 3, 5, 11, 4], 3)
    first = labels(1)
    expected = (
        f"child takes the same values within each school: if child {first} of one school is not child {first} of "
        "another, write (1 | school/child)",
    )
    assert said("y ~ 1 + (1 | school) + (1 | child)", frame) == expected
    assert said("y ~ 1 + (1 | child) + (1 | school)", frame) == expected
    # the formula tells the two apart
    assert said("y ~ 1 + (1 | school/child)", frame) == ()
    assert said("y ~ 1 + (1 | school) + (1 | child) + (1 | school:child)", frame) == ()


def test_every_cask_of_every_batch(data_file: DataFile) -> None:
    (warning,) = said("strength ~ 1 + (1 | batch) + (1 | cask)", data_file("pastes"))
    assert warning.endswith("if cask a of one batch is not cask a of another, write (1 | batch/cask)")


def test_labels_that_start_anew_in_groups_of_two_keys() -> None:
    frame = anew(int, [12, 3, 5, 11, 4], 3).with_columns(district=pl.col("school").str.slice(1).cast(pl.Int64) % 2)
    warnings = said("y ~ 1 + (1 | district:school) + (1 | child)", frame)
    assert [w.rsplit(" ", 1)[-1] for w in warnings] == ["district:school:child)"]


def test_crossed_factors_with_one_row_a_pair_are_not_suspected(data_file: DataFile) -> None:
    assert said("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin")) == ()
    assert said("y ~ 1 + (1 | school) + (1 | child)", anew(int, [12, 3, 5, 11, 4], 1)) == ()


@pytest.mark.parametrize(
    ("labels", "suspected"),
    [
        ([1, 2, 3, 4], True),
        ([0, 1, 2, 3], True),
        (["1", "2", "3", "4"], True),
        (["01", "02", "03", "04"], True),
        (["A", "B", "C", "D"], True),
        ([10, 20, 30, 40], False),
        (["e", "f", "g", "h"], False),
        (["anna", "ben", "cleo", "dan"], False),
        ([0.5, 1.5, 2.5, 3.5], False),
    ],
)
def test_where_all_meet_all_labels_must_be_bare_counters(labels: list[Any], suspected: bool) -> None:
    i = np.arange(7 * 4 * 2)
    frame = rows(machine=pl.Series(labels)[i % 4], worker=np.array(list("qwertyu"))[i // 8])
    assert len(said("y ~ 1 + (1 | worker) + (1 | machine)", frame)) == suspected


@pytest.mark.parametrize("lost", [("s0", 2), ("s1", 1)])
def test_one_group_that_skips_a_label_clears_the_suspicion(lost: tuple[str, int]) -> None:
    frame = anew(int, [12, 3, 5, 11, 4], 3)
    frame = frame.filter(~((pl.col("school") == lost[0]) & (pl.col("child") == lost[1])))
    assert said("y ~ 1 + (1 | school) + (1 | child)", frame) == ()


def test_public_data_give_no_warning(data_file: DataFile) -> None:
    assert said("y ~ 1 + (1 | s) + (1 | d) + (1 | dept:service)", data_file("insteval")) == ()
    assert said("math ~ year + (year | schoolid/childid)", data_file("egsingle")) == ()
    assert said("score ~ 1 + (1 | lea) + (1 | school)", data_file("chem97")) == ()
    assert said("Yield ~ 1 + (1 | Batch)", data_file("dyestuff")) == ()
