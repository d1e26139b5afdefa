"""Time of what comes after the fit: degrees of freedom, robust errors, influence, bootstrap.

    python benchmarks/inference.py [--data FOLDER]

Each figure is the median of three runs in a warm process, beside the fit's own time in the same process.
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

HSB = "mathach ~ group_center(ses) + (group_center(ses) | school)"
LARGE = 7_000_000
REPEATS = 3


def seconds(action: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def after_the_fit(path: Path) -> None:
    """Every method on a fresh fit, so that what is fetched once is counted once."""
    found: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        started = time.perf_counter()
        fit = mlsql.fit(FORMULA, str(path))
        found.setdefault("fit", []).append(time.perf_counter() - started)
        for label, action in {
            "Satterthwaite df": lambda f=fit: f.inference(df="satterthwaite"),
            "CR0 (with its scan)": lambda f=fit: f.inference(vcov="CR0"),
            "CR2 with its df": lambda f=fit: f.inference(vcov="CR2"),
            "Kenward-Roger": lambda f=fit: f.inference(df="kenward_roger"),
            "influence of all groups": lambda f=fit: f.diagnostics.influence(),
        }.items():
            found.setdefault(label, []).append(seconds(action))
    fitted = statistics.median(found["fit"])
    print("| step | s (min-max) | of the fit |\n|---|---|---|")
    for label, runs in found.items():
        middle = statistics.median(runs)
        print(f"| {label} | {middle:.3f} ({min(runs):.3f}-{max(runs):.3f}) | {middle / fitted:.2f} |")
    three = [sum(r) for r in zip(*(found[k] for k in list(found)[1:4]), strict=True)]
    print(f"| Satterthwaite, CR0 and CR2 together | {statistics.median(three):.3f} "
          f"({min(three):.3f}-{max(three):.3f}) | {statistics.median(three) / fitted:.2f} |")  # fmt: skip


def bootstrap(folder: Path) -> None:
    """2,000 refits of hsb, and a replicate's cost for a thousand times the rows."""
    small = mlsql.fit(HSB, mlsql.example_data("hsb"))
    whole = seconds(lambda: small.resampling.bootstrap(2000))
    print(f"\n2,000 parametric bootstrap refits of hsb: {whole:.1f} s")
    path = folder / "hsb-times-1000.parquet"
    if not path.exists():
        con = duckdb.connect()
        con.execute("SELECT setseed(0.3)")
        con.execute(
            f"""COPY (SELECT school, mathach + random() AS mathach, ses + random() / 10 AS ses
            FROM '{mlsql.example_data("hsb")}', range({LARGE} // 7000)) TO '{path}'"""
        )
    large = mlsql.fit(HSB, str(path))
    print("| rows | groups | ms a replicate |\n|---|---|---|")
    for fit in (small, large):
        runs = [seconds(lambda f=fit: f.resampling.bootstrap(100)) / 100 for _ in range(REPEATS)]
        print(f"| {fit.n_rows:,} | {fit.n_groups} | {1000 * statistics.median(runs):.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("benchmark-data"), help="folder for the Parquet files")
    folder = parser.parse_args().data
    folder.mkdir(parents=True, exist_ok=True)
    print(versions(), "\n")
    mlsql.fit(HSB, mlsql.example_data("hsb")).summary()
    for case in CASES[:2]:
        print(f"\n{case.rows:,} rows, {case.groups:,} groups\n")
        after_the_fit(make_data(case, folder))
    bootstrap(folder)


if __name__ == "__main__":
    main()
