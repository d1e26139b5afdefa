"""The benchmark's cases and the data they run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

FORMULA = "y ~ ses*sector + female + iq + motiv + age + size + (1 + ses | school)"
"""Six level-1 columns, two level-2 columns, a cross-level interaction, a random intercept and slope."""


@dataclass(frozen=True, slots=True)
class Case:
    """Synthetic pupils in schools.

    Attributes
    ----------
    name : str
    rows, groups : int
    ordered : bool
        The file is sorted by group; otherwise its rows are in random order.
    peer : bool
        Small enough to run the in-memory peer by default.
    """

    name: str
    rows: int
    groups: int
    ordered: bool = False
    peer: bool = True


CASES = (
    Case("1m", 1_000_000, 10_000),
    Case("10m", 10_000_000, 50_000),
    Case("20m", 20_000_000, 100_000),
    Case("20m-ordered", 20_000_000, 100_000, ordered=True, peer=False),
    Case("500k-small-groups", 500_000, 125_000),
)


def make_data(case: Case, folder: Path) -> Path:
    """Write the case's Parquet file unless it is there."""
    path = folder / f"{case.name}.parquet"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect()
    con.execute("SELECT setseed(0.42)")
    con.execute("CREATE MACRO normal() AS sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())")
    con.execute(
        """CREATE TABLE schools AS SELECT j AS school, (random() < 0.4)::INTEGER AS sector,
        (100 + 2000 * random())::INTEGER AS size, 1.5 * normal() AS u0, 0.5 * normal() AS u1 FROM range(?) t(j)""",
        [case.groups],
    )
    order = "ORDER BY school" if case.ordered else ""
    con.execute(
        f"""COPY (
        WITH pupils AS (
            SELECT (random() * {case.groups})::BIGINT % {case.groups} AS school, normal() AS ses,
            (random() < 0.5)::INTEGER AS female, 100 + 15 * normal() AS iq, normal() AS motiv,
            10 + (random() * 8)::INTEGER AS age, normal() AS e FROM range({case.rows}))
        SELECT school, 2 + 0.5 * ses + 0.8 * sector - 0.3 * ses * sector + 0.2 * female + 0.05 * iq + 0.3 * motiv
            - 0.05 * age + 0.0002 * size + u0 + u1 * ses + 1.5 * e AS y, ses, female, iq, motiv, age, sector, size
        FROM pupils JOIN schools USING (school) {order}) TO '{path}' (FORMAT PARQUET)"""
    )
    con.close()
    return path
