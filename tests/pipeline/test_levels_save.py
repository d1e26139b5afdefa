"""Fits with several grouping factors saved and loaded: the same moments bit by bit, groups found again."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

import mlsql
from mlsql.design import design as design_module
from mlsql.pipeline import save as save_module

# the same arrays through the same arithmetic
SAME = 1e-12


def rows() -> pl.DataFrame:
    rng = np.random.default_rng(7)
    n = 90
    school, child, rater = rng.integers(0, 6, n), rng.integers(0, 4, n), rng.integers(0, 5, n)
    effect = rng.normal(0, 1, 6)[school] + rng.normal(0, 1, 5)[rater]
    return pl.DataFrame(
        {
            "school": pl.Series([f"s{i}" for i in school]),
            "child": child,
            "rater": pl.Series(rater).cast(pl.Int32),
            "day": pl.Series(rater).cast(pl.Date),
            "x": rng.normal(2012, 3, n),
            "f": pl.Series(["a", "b", "c"]).gather(rng.integers(0, 3, n)),
            "w": rng.uniform(0.5, 2, n),
            "y": 5 + effect + rng.normal(0, 1, n),
        }
    )


def history(unit: Callable[[int], Any]) -> pl.DataFrame:
    pairs = [(c, t) for c in range(4) for t in range(7) if (c + t) % 3]
    share = [1.0 + (3 * c + t) % 4 for c, t in pairs]
    return pl.DataFrame({"child": [c for c, _ in pairs], "teacher": [unit(t) for _, t in pairs], "share": share})


def member(unit: Callable[[int], Any] = str) -> dict[str, Any]:
    return {"memberships": {"teacher": mlsql.Membership(history(unit), on="child", weight="share", normalise=True)}}


CASES: dict[str, tuple[str, Callable[[], Mapping[str, Any]]]] = {
    "nested": ("y ~ x + (1 | school/child)", dict),
    "slopes": ("y ~ x*f + (x || school) + (1 | school:child)", dict),
    "crossed": ("y ~ f + (1 | school) + (1 | rater) + (1 | school:rater)", dict),
    "centred": ("y ~ group_center(x, school) + group_mean(x, school) + (1 | school/child)", dict),
    "weights": ("y ~ grand_center(x) + (1 | school) + (1 | day)", lambda: {"weights": "w", "method": "ML"}),
    "expressions": ("ln(y + 20) ~ I(x - 2000) + offset(w) + (1 | I(rater % 2)) + (1 | school)", dict),
    "membership": ("y ~ x + (1 | school) + (1 | teacher)", member),
    "dates": ("y ~ (1 | teacher)", lambda: member(lambda t: datetime.date(2020, 1, 1 + t))),
    "sums": ("y ~ membership_sum(share, teacher) + (x | teacher) + (1 | school)", member),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_round_trip(tmp_path: Path, case: str) -> None:
    formula, named = CASES[case]
    fit = mlsql.fit(formula, rows(), **named())
    path = tmp_path / "fit.parquet"
    fit.save(path)
    again = mlsql.load(path)
    assert again.fit_id == fit.fit_id
    assert again.deviance == fit.deviance
    assert again.spec == fit.spec
    a, b = fit.estimates.moments, again.estimates.moments
    for name in ("n", "sums", "products", "pooled", "means", "values"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert b.keys.equals(a.keys)
    assert [i.name for i in b.incidences] == [i.name for i in a.incidences]
    for one, other in zip(a.incidences, b.incidences, strict=True):
        assert other.keys.equals(one.keys)
        assert np.array_equal(other.cell, one.cell)
        assert np.array_equal(other.group, one.group)
        assert (one.weight is None) == (other.weight is None)
        assert one.weight is None or np.array_equal(one.weight, other.weight)
    for table in ("fixed_effects", "variance_components", "statistics", "survey"):
        assert_frame_equal(getattr(again, table), getattr(fit, table), rel_tol=SAME)
    for factor in fit.spec.factors:
        assert_frame_equal(again.group_effects(factor.name), fit.group_effects(factor.name), rel_tol=SAME)
    assert again.summary() == fit.summary()
    assert document_of(path)["version"] == 2


def document_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"mlsql"])
    return found


def test_tests_of_a_loaded_fit(tmp_path: Path, data_file: Callable[[str], str]) -> None:
    """What needs products by cell has them in the file; what needs the rows says so."""
    fit = mlsql.fit("math ~ year + (year | schoolid/childid)", data_file("egsingle"))
    fit.save(tmp_path / "fit.parquet")
    again = mlsql.load(tmp_path / "fit.parquet")
    assert np.allclose(again.robust_covariance(), fit.robust_covariance(), rtol=SAME)
    assert_frame_equal(again.inference("satterthwaite"), fit.inference("satterthwaite"), rel_tol=SAME)
    assert again.resampling.bootstrap(2).table().height == fit.confint().height
    assert mlsql.compare(fit, again)["note"][1] is not None
    with pytest.raises(mlsql.DataError, match="loaded without its data"):
        again.residuals()


def test_a_large_fit(tmp_path: Path, data_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved in the lean layout, with a level-2 table of one factor; products by cell on request."""
    monkeypatch.setattr(design_module, "SMALL", 10)
    frame = pl.read_parquet(data_file("egsingle")).sample(fraction=1.0, shuffle=True, seed=1)
    schools = frame.group_by("schoolid").agg(pl.col("lowinc").first())
    formula = "math ~ year*lowinc + black + (year | schoolid/childid)"
    fit = mlsql.fit(formula, frame.drop("lowinc"), level2={"schoolid": schools})
    assert fit.estimates.design.layout == "lean"
    fit.save(tmp_path / "lean.parquet")
    fit.save(tmp_path / "whole.parquet", complete=True)
    lean, whole = (mlsql.load(tmp_path / f"{name}.parquet") for name in ("lean", "whole"))
    assert lean.deviance == whole.deviance == fit.deviance
    assert np.allclose(whole.robust_covariance(), fit.robust_covariance(), rtol=SAME)
    with pytest.raises(mlsql.DataError, match="save it with complete=True"):
        lean.robust_covariance()


def test_a_sparse_rest(tmp_path: Path, data_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same way of solving is chosen again."""
    from mlsql.moments import structure

    monkeypatch.setattr(structure, "DENSE", 3)
    fit = mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    assert fit.estimates.levels is not None
    assert fit.estimates.levels.structure.sparse
    fit.save(tmp_path / "fit.parquet")
    assert mlsql.load(tmp_path / "fit.parquet").deviance == fit.deviance


def test_the_file_is_read_by_sql(tmp_path: Path) -> None:
    """Cells, with the units of memberships beside them."""
    fit = mlsql.fit("y ~ 1 + (1 | school) + (1 | teacher)", rows(), **member())
    fit.save(tmp_path / "fit.parquet")
    query = (
        "SELECT unit, sum(n) FROM (SELECT n, unnest(\"units(teacher)\") AS unit "
        f"FROM '{tmp_path / 'fit.parquet'}') GROUP BY unit ORDER BY unit"
    )  # fmt: skip
    expected = fit.group_effects("teacher").select(pl.col("teacher").cast(pl.String), "n").rows()
    assert [(u, int(n)) for u, n in duckdb.sql(query).fetchall()] == expected


# what is refused


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    # at variances that let every part of the file matter
    T = {"school": 1.0, "teacher": 1.0}
    fit = mlsql.evaluate("y ~ 1 + (1 | school) + (1 | teacher)", rows(), T=T, sigma2=1.0, **member())
    fit.save(tmp_path / "fit.parquet")
    return tmp_path / "fit.parquet"


def rewritten(path: Path, table: Callable[[pa.Table], pa.Table] | None = None, **changes: Any) -> Path:
    found = pq.read_table(path)
    document = document_of(path) | changes
    found = (found if table is None else table(found)).replace_schema_metadata({"mlsql": json.dumps(document)})
    pq.write_table(found, path)
    return path


def test_older_releases_refuse_the_version(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "VERSIONS", (1,))
    with pytest.raises(mlsql.StoreError, match=r"has format version 2, .*which reads versions 1: load it with that"):
        mlsql.load(saved)


def test_two_levels_keep_their_version(tmp_path: Path, data_file: Callable[[str], str]) -> None:
    fit = mlsql.fit("mathach ~ 1 + (1 | school)", data_file("hsb"))
    fit.save(tmp_path / "fit.parquet")
    found = document_of(tmp_path / "fit.parquet")
    assert found["version"] == 1
    assert "memberships" not in found
    with pytest.raises(mlsql.StoreError, match="its version is not that of its grouping factors"):
        mlsql.load(rewritten(tmp_path / "fit.parquet", version=2))


def test_a_version_that_the_factors_do_not_have(saved: Path) -> None:
    with pytest.raises(mlsql.StoreError, match="its version is not that of its grouping factors"):
        mlsql.load(rewritten(saved, version=1))


def with_column(table: pa.Table, name: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, name, pa.array(change(table.column(name).to_pylist()), type=kind))


LISTS = pa.list_(pa.float64())
DAMAGED: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "no list": (
        lambda t: with_column(t, "weights(teacher)", lambda v: [1.0] * len(v), pa.float64()),
        "are no lists of units and weights",
    ),
    "NULL": (
        lambda t: with_column(t, "weights(teacher)", lambda v: [None, *v[1:]], LISTS),
        "are no lists of units and weights",
    ),
    "too few": (
        lambda t: with_column(t, "weights(teacher)", lambda v: [v[0][1:], *v[1:]], LISTS),
        "one finite number for each unit",
    ),
    "nan": (
        lambda t: with_column(t, "weights(teacher)", lambda v: [[float("nan")] * len(x) for x in v], LISTS),
        "one finite number for each unit",
    ),
    "a unit is NULL": (
        lambda t: with_column(t, "units(teacher)", lambda v: [[None] * len(v[0]), *v[1:]], pa.list_(pa.string())),
        "a unit of teacher is NULL",
    ),
    "other weights": (
        lambda t: with_column(t, "weights(teacher)", lambda v: [[2 * w for w in x] for x in v], LISTS),
        "do not add up to what was saved",
    ),
    "exchanged": (
        lambda t: with_column(t, "weights(teacher)", lambda v: [x[1:] + x[:1] for x in v], LISTS),
        "have deviance",
    ),
    "gone": (lambda t: t.drop_columns(["units(teacher)"]), "lacks 'units\\(teacher\\)'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_memberships(saved: Path, case: str) -> None:
    change, message = DAMAGED[case]
    with pytest.raises(mlsql.StoreError, match=message):
        mlsql.load(rewritten(saved, change))


def test_memberships_forgotten(saved: Path) -> None:
    with pytest.raises(mlsql.StoreError, match="has others or another order"):
        mlsql.load(rewritten(saved, memberships={}))


def test_too_large_to_be_solved_here(
    tmp_path: Path, data_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))
    fit.save(tmp_path / "fit.parquet")

    def refuse(*_: object) -> None:
        raise mlsql.FitError("the joint matrix needs 3 TB")

    monkeypatch.setattr(save_module, "make_objective", refuse)
    with pytest.raises(mlsql.StoreError, match="cannot be loaded here: the joint matrix needs 3 TB"):
        mlsql.load(tmp_path / "fit.parquet")
