"""Predicted memory and time: against counts of fits, against memory that was measured, and the refusal of a model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from mlsql.design.membership import MembershipTable
from mlsql.errors import FitError
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.assembly import model_statistics
from mlsql.optimise.search import optimise
from mlsql.pipeline.analysis import Analysis, analyse
from mlsql.pipeline.prepare import make_inputs, make_spec
from mlsql.results.cost import (
    Counts,
    FactorCount,
    PairCount,
    check_cost,
    cost_notes,
    counts_of,
    predict_cost,
    read_counts,
)
from mlsql.sql.level_counts import counts_step

DataFile = Callable[[str], str]

FACTOR = 2.0
"""A prediction from counts is good to this factor: copies are counted, not every workspace."""


def counted(formula: str, data: object, con: Any = None) -> tuple[Analysis, Counts]:
    spec, inputs = make_spec(formula, "REML", None, None), make_inputs(data, None, con)
    analysis = analyse(spec, inputs)
    with inputs.engine() as engine:
        answer = engine.query(counts_step(analysis.design, inputs.tables))
    return analysis, read_counts(analysis.design, [column[0].as_py() for column in answer.columns])


@pytest.mark.parametrize(
    ("formula", "data"),
    [
        ("y ~ 1 + (1 | s) + (1 | d) + (1 | dept:service)", "insteval"),
        ("attain ~ verbal + (1 | primary) + (verbal | second) + (1 | primary:second)", "scotssec"),
        ("math ~ year + (year | schoolid/childid)", "egsingle"),
        ("score ~ 1 + (1 | school) + (1 | lea)", "chem97"),
    ],
)
def test_the_split_is_that_of_the_fit(data_file: DataFile, formula: str, data: str) -> None:
    analysis, counts = counted(formula, data_file(data))
    statistics: Any = model_statistics(analysis.design, analysis.moments)
    cost, structure = predict_cost(counts), statistics.structure
    assert (cost.chain, cost.joint, cost.width) == (structure.chain, structure.rest, structure.width)
    assert cost.sparse == structure.sparse
    assert counts == counts_of(analysis.design, analysis.moments)
    assert [f.groups for f in counts.factors] == [i.n_groups for i in statistics.incidences]


def synthetic(columns: str, rows: int) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute(
        f"CREATE TABLE t AS SELECT (i * 7919) % 1009 / 1009.0 AS y, (i * 104729) % 997 / 997.0 AS x, {columns} "
        f"FROM range({rows}) r(i)"
    )
    return con


@pytest.mark.parametrize(
    ("formula", "columns"),
    [
        ("y ~ x + (1 | school/child)", "i // 400 AS school, i // 4 AS child"),
        ("y ~ x + (x | school/child)", "i // 400 AS school, i // 4 AS child"),
        ("y ~ x + (1 | a) + (1 | b)", "(i * 6151) % 1200 AS a, (i * 12289) % 701 AS b"),
        ("y ~ x + (x | a) + (x | b)", "(i * 6151) % 1200 AS a, (i * 12289) % 401 AS b"),
    ],
    ids=["nested", "nested slopes", "crossed", "crossed slopes"],
)
def test_memory_against_a_measurement(formula: str, columns: str) -> None:
    analysis, counts = counted(formula, "t", synthetic(columns, 80_000))
    cost = predict_cost(counts)
    held = sum(a.nbytes for a in (analysis.moments.sums, analysis.moments.products, analysis.moments.n))
    assert cost.moments / FACTOR < 2 * held < FACTOR * cost.moments  # the answer and what is unpacked from it
    tracemalloc.start()
    try:
        optimise(make_deviance(model_statistics(analysis.design, analysis.moments), "REML"), max_evaluations=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (cost.couplings + cost.matrix) / FACTOR < peak < FACTOR * (cost.couplings + cost.matrix)


def crossed(first: int, second: int, occupied: int) -> Counts:
    """Pairs spread evenly."""
    pair = PairCount(occupied, occupied**2 // first, occupied**2 // second)
    factors = (FactorCount("user", first, 1), FactorCount("item", second, 1))
    return Counts(occupied, occupied, factors, {(0, 1): pair}, 1, 12)


def test_a_dense_matrix_is_counted_in_copies_and_time_grows_with_its_cube() -> None:
    small, large = predict_cost(crossed(9_000, 2_000, 400_000)), predict_cost(crossed(9_000, 4_000, 400_000))
    assert (small.sparse, small.joint, small.width) == (False, (1,), 2_000)
    assert large.matrix == 4 * small.matrix == large.most
    assert small.seconds is not None
    assert large.seconds is not None
    assert 3 < large.seconds / small.seconds < 8


def test_a_sparse_matrix_has_bounds() -> None:
    cost = predict_cost(crossed(20_000, 10_000, 60_000))
    assert (cost.sparse, cost.width, cost.seconds) == (True, 10_000, None)
    assert cost.matrix < cost.most == 16 * 10_000**2
    (note,) = [n for n in cost_notes(crossed(20_000, 10_000, 60_000), cost) if n.startswith("memory")]
    assert "up to 1.6 GB if the sparse factor fills in" in note


def test_notes_name_the_structure(data_file: DataFile) -> None:
    _, counts = counted("y ~ 1 + (1 | s) + (1 | d) + (1 | dept:service)", data_file("insteval"))
    notes = cost_notes(counts, predict_cost(counts))
    assert notes[:5] == (
        "groups: s 2,972, d 1,128, dept:service 28; 73,421 cells of 73,421 rows",
        "s partially crossed with d (73,421 of 3,352,416 pairs have rows)",
        "s partially crossed with dept:service (16,255 of 83,216 pairs have rows)",
        "d partially crossed with dept:service (1,790 of 31,584 pairs have rows)",
        "s absorbed group by group; d, dept:service solved jointly in a dense matrix of 1,156 columns",
    )
    _, counts = counted("math ~ year + (year | schoolid/childid)", data_file("egsingle"))
    notes = cost_notes(counts, predict_cost(counts))
    assert notes[1:3] == (
        "schoolid:childid nested in schoolid",
        "schoolid:childid, then schoolid absorbed group by group",
    )
    _, counts = counted("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    assert cost_notes(counts, predict_cost(counts))[1] == "plate crossed with sample (144 of 144 pairs have rows)"


def test_a_two_level_model_is_absorbed(data_file: DataFile) -> None:
    analysis, counts = counted("Yield ~ 1 + (1 | Batch)", data_file("dyestuff"))
    assert counts == counts_of(analysis.design, analysis.moments)
    cost = predict_cost(counts)
    assert (cost.chain, cost.joint, cost.width, cost.matrix) == ((0,), (), 0, 0)
    assert cost_notes(counts, cost)[1] == "Batch absorbed group by group"


def test_memberships_are_solved_jointly() -> None:
    design = analyse(
        make_spec("y ~ x + (1 | child) + (1 | teacher)", "REML", None, None),
        make_inputs("t", None, synthetic("i // 4 AS child, i % 12 AS teacher", 480)),
    ).design
    # 12 patterns of 2 or 3 among 5 units
    pattern = np.repeat(np.arange(1, 13), 2)
    table = MembershipTable(pa.table({"teacher": range(5)}), pattern, np.arange(24) % 5, np.ones(24))
    counts = read_counts(design, [480, 480, 120, 12, 480, 1920, 19_200], {"teacher": table})
    assert counts.factors[1] == FactorCount("teacher", 5, 1, ordinary=False)
    assert counts.pairs == {(0, 1): PairCount(600, 3000, 19_200)}  # no more than all pairs
    cost = predict_cost(counts)
    assert (cost.chain, cost.joint, cost.width) == ((0,), (1,), 5)
    assert cost_notes(counts, cost)[1] == "child and teacher: multiple membership"
    alone = Counts(480, 12, (FactorCount("teacher", 5, 2, ordinary=False),), {}, 2, 12)
    assert predict_cost(alone).joint == (0,)
    assert cost_notes(alone, predict_cost(alone))[1] == "teacher solved jointly in a dense matrix of 10 columns"


def test_a_model_is_refused_before_its_matrix_is_made() -> None:
    counts = crossed(9_000, 4_000, 400_000)
    cost = predict_cost(counts)
    check_cost(counts, cost, available=2 * cost.memory)
    expected = (
        r"^item solved jointly in a dense matrix of 4,000 columns: this needs about 1.1 GB of memory, and 500 MB are"
    )
    with pytest.raises(FitError, match=expected):
        check_cost(counts, cost, available=500_000_000)
    nested = Counts(
        10**9,
        10**9,
        (FactorCount("a", 10**6, 1), FactorCount("b", 10**9, 1)),
        {(0, 1): PairCount(10**9, 10**12, 10**9)},
        2,
        12,
    )
    with pytest.raises(FitError, match=r"^1,000,000,000 cells of 2 factors: this needs about 144 GB"):
        check_cost(nested, predict_cost(nested), available=10**9)
