"""A LazyFrame streamed to the engine, beside the same file by its path and beside a collected frame.

    python benchmarks/lazyframe.py          # 20 M rows
    python benchmarks/lazyframe.py 1m 10m   # other cases of run.py

Each fit runs in a process of its own that has done one small fit; seconds are the median of the repeats, with those of
the processors (which a busy machine changes less); the peak is of the whole process.  (The file is not called
polars.py: beside a script of that name, `import polars` finds it.)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from problems import CASES, FORMULA, make_data

HERE = Path(__file__)
SOURCES = {
    "nothing": "no large fit",
    "path": "the file's path",
    "lazy": "pl.scan_parquet(path)",
    "lazy pipeline": "the same .filter(...).with_columns(...)",
    "collected": "pl.scan_parquet(path).collect()",
}


def measure(source: str, path: str, repeats: int) -> dict[str, Any]:
    """Fit and time, in this process."""
    import polars as pl

    import mlsql

    make: dict[str, Callable[[], object]] = {
        "path": lambda: path,
        "lazy": lambda: pl.scan_parquet(path),
        "lazy pipeline": lambda: pl.scan_parquet(path).filter(pl.col("age") > 0).with_columns(pl.col("iq") / 15),
        "collected": lambda: pl.scan_parquet(path).collect(),
    }
    example = mlsql.example_data("hsb")
    mlsql.fit("mathach ~ ses + (ses | school)", example if source == "path" else pl.scan_parquet(example))
    runs, deviance = [], 0.0
    for _ in range(repeats if source in make else 0):
        started, processors = time.perf_counter(), time.process_time()
        deviance = mlsql.fit(FORMULA, make[source]()).deviance
        runs.append((time.perf_counter() - started, time.process_time() - processors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"runs": sorted(runs), "peak_mb": peak, "deviance": deviance}


def row(case: str, words: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    runs, peak = found["runs"], f"{found['peak_mb']:.0f}"
    if not runs:
        return f"| {case} | {words} | - | - | {peak} | - |"
    wall, processors = runs[len(runs) // 2]
    seconds = f"{wall:.2f} ({runs[0][0]:.2f}-{runs[-1][0]:.2f})"
    return f"| {case} | {words} | {seconds} | {processors:.2f} | {peak} | {found['deviance']:.4f} |"


def main() -> None:
    """Measure every source in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["20m"])
    parser.add_argument("--data", type=Path, default=Path("benchmark-data"), help="folder for the Parquet files")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| case | data | seconds (min-max) | processor s | peak MB | deviance |\n|---|---|---|---|---|---|")
    for case in [c for c in CASES if c.name in arguments.cases]:
        path = make_data(case, arguments.data)
        for source, words in SOURCES.items():
            command = [sys.executable, str(HERE), "--measure", source, str(path), str(arguments.repeats)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(row(case.name, words, json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
