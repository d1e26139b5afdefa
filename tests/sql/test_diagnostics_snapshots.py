"""The SQL of residual summaries and of candidates, as files that a reviewer can read.

Numbers of a fit would differ in their last digits from machine to machine, so round ones stand in their place.
MLSQL_UPDATE_SNAPSHOTS=1 rewrites the files.
"""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest
import sqlglot
from sqlglot import exp

import mlsql
from mlsql.design.design import Design
from mlsql.sql.candidates import GroupCandidate, candidates_step
from mlsql.sql.plan import Step
from mlsql.sql.residual_summaries import Residuals, Value, analysis_rows, bins_step, free_labels, summary_step
from mlsql.sql.scoring import ScoreModel, ScoreQuery, effect_name, key_name
from mlsql.sql.survey import Tables
from mlsql.sql.syntax import scalar

SNAPSHOTS = Path(__file__).parent / "diagnostics_snapshots"
NAMES = ("summary", "summary_by_level2_value", "summary_by_key", "bins", "quantiles_by_digest", "candidates")


@pytest.fixture(scope="module")
def design(con: duckdb.DuckDBPyConnection) -> Design:
    return mlsql.fit("math ~ ses*size + (ses | school)", "pupils", con=con, level2="schools").estimates.design


def tables() -> Tables:
    return Tables(exp.to_table("pupils"), exp.to_table("schools"))


def residuals(design: Design, values: list[Value], exact: bool = True) -> Residuals:
    p = len(design.fixed.columns)
    model = ScoreModel(
        design=design,
        fixed_shifts={},
        random_shifts=({}, {}),
        beta=(1.0, 2.0, 3.0, 4.0),
        constant=10.0,
        root=tuple(tuple(float(a == b) for b in range(p)) for a in range(p)),
        T=((1.0, 0.5), (0.5, 2.0)),
        sigma=4.0,
        means=design.means,
    )
    groups, upper = exp.to_table("groups_of_the_fit"), tables()
    data = analysis_rows(design, upper, values)
    query = ScoreQuery(model, data, groups, upper.level2, tuple(v.label for v in values), False)
    return Residuals(query, "residual", 4.0, exact)


def step(design: Design, name: str) -> Step:
    label = free_labels("mlsql by", 1, ["school"])[0]
    if name == "summary":
        return summary_step(residuals(design, []), (0.25, 0.5, 0.75))
    if name == "summary_by_level2_value":
        values = [Value(label, scalar('"area"'), True)]
        return summary_step(residuals(design, values), (0.5,), [label], 1001)
    if name == "summary_by_key":
        return summary_step(residuals(design, [Value(label, scalar('"school"'))]), (), [label])
    if name == "bins":
        return bins_step(residuals(design, [Value(label, scalar('"income" / 1000'))]), label, 4)
    if name == "quantiles_by_digest":
        return summary_step(residuals(design, [], exact=False), (0.5,))
    chosen = [
        GroupCandidate("sector", '"sector"', "rows", False),
        GroupCandidate("group_mean(income)", '"income"', "rows", True),
        GroupCandidate("ln(size)", 'LN("size")', "level2", False),
    ]
    return candidates_step(design, tables(), chosen)


@pytest.mark.parametrize("name", NAMES)
def test_snapshot(design: Design, name: str) -> None:
    file, made = SNAPSHOTS / f"{name}.sql", step(design, name)
    text = f"-- {made.name}: {made.purpose}\n{made.sql};\n"
    if os.environ.get("MLSQL_UPDATE_SNAPSHOTS") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_no_snapshot_is_left_over() -> None:
    assert {f.stem for f in SNAPSHOTS.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_statement_parses_and_runs(con: duckdb.DuckDBPyConnection, design: Design, name: str) -> None:
    made = step(design, name)
    (tree,) = sqlglot.parse(made.sql, dialect="duckdb")
    assert isinstance(tree, exp.Query)
    effects = [effect_name(kind, a) for kind in ("u", "ols") for a in range(2)]
    columns = ", ".join(f'0.5 AS "{e}"' for e in effects)
    con.execute(
        f'CREATE OR REPLACE TABLE groups_of_the_fit AS SELECT range AS "{key_name(0)}", {columns} FROM range(14)'
    )
    assert con.sql(made.sql).fetchall()


def test_added_columns_get_names_that_nobody_has() -> None:
    assert free_labels("mlsql by", 2, ["MLSQL BY 0"]) == ["mlsql by 0 2", "mlsql by 1"]
