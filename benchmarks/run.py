"""Speed and memory of mlsql, from Parquet to finished fit, beside the fastest in-memory peer.

    pip install '.[bench]'
    python benchmarks/run.py                  # all cases
    python benchmarks/run.py 1m 20m-ordered   # some
    python benchmarks/run.py --no-peer        # without mixedlm-rs

Each program runs in a process of its own; seconds are the median of the repeats in a warm process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from problems import CASES, make_data

HERE = Path(__file__).parent


def run(program: str, source: str, repeats: int) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, str(HERE / "measure.py"), program, source, str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def versions() -> str:
    """Machine and versions, one line."""
    names = ["mlsql", "duckdb", "numpy", "mixedlm-rs"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(found)


def main() -> None:
    """Run the chosen cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases; all when none is given")
    parser.add_argument("--data", type=Path, default=Path("benchmark-data"), help="folder for the Parquet files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="run mixedlm-rs too")
    arguments = parser.parse_args()
    chosen = [c for c in CASES if not arguments.cases or c.name in arguments.cases]
    print(versions(), "\n")
    print("| case | rows | groups | mlsql s (min-max) | peak MB | evaluations | mixedlm-rs s | its peak MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    stages = []
    for case in chosen:
        path = make_data(case, arguments.data)
        own = run("mlsql", str(path), arguments.repeats)
        stages.append((case.name, own["stages"]))
        peer = run("peer", str(path), 1) if arguments.peer and case.peer else None
        right = "| - | - | - |"
        if peer is not None:
            right = f"| {peer['seconds']:.2f} | {peer['peak_mb']:.0f} | {own['seconds'] / peer['seconds']:.2f} |"
        print(
            f"| {case.name} | {case.rows:,} | {case.groups:,} | {own['seconds']:.2f} "
            f"({own['low']:.2f}-{own['high']:.2f}) | {own['peak_mb']:.0f} | {own['evaluations']} {right}",
            flush=True,
        )
    if not arguments.cases:
        small = run("small", "-", 20)
        stages.append(("hsb", small["stages"]))
        print(
            f"| hsb, to summary() | 7,185 | 160 | {small['seconds']:.3f} ({small['low']:.3f}-{small['high']:.3f}) "
            f"| {small['peak_mb']:.0f} | {small['evaluations']} | - | - | - |"
        )
    print("\n| case | survey s | scan s | pack s | optimise s | results s |\n|---|---|---|---|---|---|")
    for name, parts in stages:
        cells = [f"{parts[k]:.3f}" if k in parts else "-" for k in ("survey", "scan", "pack", "optimise", "results")]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
