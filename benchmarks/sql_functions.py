"""SQL table functions beside the Python calls that give the same: what fitting within a statement costs.

    python benchmarks/sql_functions.py          # 1 M rows
    python benchmarks/sql_functions.py 10m      # other cases of run.py

All calls take turns in one warm process, so that a busy machine slows all alike; seconds are the best of the rounds and
their median, ratios those of the best.  The first statement that meets a table's predictors sums all their products;
later ones know which of them are needed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

sys.path.insert(0, str(Path(__file__).parent))

from problems import CASES, FORMULA, make_data
from run import versions

import mlsql
from mlsql.surfaces import sql_known

FUNCTIONS = ("ml_fixed_effects", "ml_fit", "ml_fit_statistics")


def calls(con: duckdb.DuckDBPyConnection, source: str, level2: str | None) -> dict[str, Callable[[], object]]:
    """The ways to fit; the first is what the others are compared with."""
    settings = "" if level2 is None else f", level2 := '{level2}'"

    def table_function(name: str) -> Callable[[], object]:
        return lambda: con.execute(f"FROM {name}($1, $2{settings})", [FORMULA, source]).fetchall()

    def first() -> object:
        sql_known.forget()
        return table_function("ml_fixed_effects")()

    return {
        "mlsql.fit": lambda: mlsql.fit(FORMULA, source, con=con, level2=level2),
        "mlsql.fit(...).fixed_effects": lambda: mlsql.fit(FORMULA, source, con=con, level2=level2).fixed_effects,
        **{name: table_function(name) for name in FUNCTIONS},
        "ml_fixed_effects, the first of a table": first,
    }


def measure(title: str, actions: dict[str, Callable[[], object]], rounds: int) -> None:
    """Let the calls take turns, and print a table."""
    runs: dict[str, list[float]] = {label: [] for label in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for label, action in actions.items():
            started = time.perf_counter()
            action()
            runs[label].append(time.perf_counter() - started)
    bare, like = (min(found) for found in list(runs.values())[:2])
    print(f"\n{title}\n\n| call | best s | median s | of the fit | of the fit with its table |\n|---|---|---|---|---|")
    for label, found in runs.items():
        best = min(found)
        print(f"| {label} | {best:.3f} | {statistics.median(found):.3f} | {best / bare:.2f} | {best / like:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["1m"], help="names of cases")
    parser.add_argument("--data", type=Path, default=Path("benchmark-data"), help="folder for the Parquet files")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(versions())
    for case in CASES:
        if case.name not in arguments.cases:
            continue
        path, rows = make_data(case, arguments.data), f"{case.rows:,} rows, {case.groups:,} groups"
        with mlsql.connect() as con:
            con.execute("CREATE TABLE pupils AS FROM read_parquet($1)", [str(path)])
            con.execute("CREATE TABLE lower AS SELECT * EXCLUDE (sector, size) FROM pupils")
            con.execute("CREATE TABLE schools AS SELECT DISTINCT school, sector, size FROM pupils")
            measure(f"{rows}, a table", calls(con, "pupils", None), arguments.rounds)
            measure(f"{rows}, a Parquet file", calls(con, str(path), None), arguments.rounds)
            measure(f"{rows}, a table and its level-2 table", calls(con, "lower", "schools"), arguments.rounds)


if __name__ == "__main__":
    main()
