"""Speed and memory with several grouping factors: nested levels, crossed factors, and how time grows with their size.

    pip install '.[bench]'
    python benchmarks/levels.py                     # all; lme4 runs where Rscript finds it
    python benchmarks/levels.py InstEval egsingle   # some cases, without the table of growth
    python benchmarks/levels.py growth
    python benchmarks/levels.py --no-peers
    python benchmarks/levels.py --divisor 100       # generated data of a hundredth: does the script work?

Each program runs in a process of its own; seconds of mlsql are the median of the repeats in a warm process, from the
file to the finished fit.  The floor is what DuckDB takes for the fit's own moments statements, in the same process.
Peers start from a frame in memory.  Peak memory is that of the whole process, sampled by psutil from outside.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import duckdb
import psutil

sys.path.insert(0, str(Path(__file__).parent))

from level_problems import CASES, GROWTH, Case

SAMPLE = 0.01
"""Seconds between two looks at a process."""

R_PROGRAM = """
suppressMessages(library(lme4))
a <- commandArgs(TRUE)
d <- read.csv(a[1])
seconds <- system.time(m <- lmer(as.formula(a[2]), d))[["elapsed"]]
cat(sprintf('{"seconds": %f, "deviance": %.6f, "version": "lme4 %s, R %s"}\\n', seconds, REMLcrit(m),
            packageVersion("lme4"), getRversion()))
"""


# ------------------------------------------------------------------------------------- in a process of their own


def measure_mlsql(path: str, formula: str, repeats: int) -> dict[str, Any]:
    """File to finished fit in a warm process, and the floor."""
    import mlsql

    mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        fitted = mlsql.fit(formula, path)
        runs.append((time.perf_counter() - started, dict(fitted.seconds)))
    runs.sort(key=lambda r: r[0])
    seconds, stages = runs[len(runs) // 2]
    levels = fitted.estimates.levels
    return {
        "seconds": seconds,
        "low": runs[0][0],
        "high": runs[-1][0],
        "stages": stages,
        "evaluations": fitted.n_evaluations,
        "deviance": fitted.deviance,
        "rows": fitted.n_rows,
        "groups": fitted.levels.factors()["groups"].to_list(),
        "solution": "-" if levels is None or not levels.structure.rest else _solution(levels.structure),
        "floor": statistics.median(_moments_alone(fitted) for _ in range(repeats)),
    }


def _solution(structure: Any) -> str:
    return f"{'sparse' if structure.sparse else 'dense'}, {structure.width:,}"


def _moments_alone(fitted: Any) -> float:
    """Seconds of the moments statements on a connection of their own."""
    with duckdb.connect() as con:
        started = time.perf_counter()
        for step in fitted.plan.steps:
            con.sql(step.sql).to_arrow_table()
        return time.perf_counter() - started


def measure_mixedlm(path: str, formula: str, repeats: int) -> dict[str, Any]:
    """The mixedlm package on a pandas frame that is in memory already."""
    import mixedlm
    import pyarrow.parquet as pq

    frame = pq.read_table(path).to_pandas()
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        fitted = mixedlm.lmer(formula, frame)
        runs.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(runs),
        "deviance": float(mixedlm.REMLcrit(fitted)),
        "version": f"mixedlm {version('mixedlm')}",
    }


# ----------------------------------------------------------------------------------------------- from outside


def watched(command: list[str]) -> dict[str, Any]:
    """What a program prints as JSON in its last line, with the peak of its memory."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        seen, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            try:
                peak = max(peak, seen.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(SAMPLE)
        process.wait()
        for stream in (out, err):
            stream.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command[:4]} ended with code {process.returncode}:\n{err.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(out.read().splitlines()[-1])
    return answer | {"peak_mb": peak / 2**20}


def run(program: str, path: Path, formula: str, repeats: int) -> dict[str, Any] | None:
    """Measure; None where the program is not installed."""
    if program == "lme4":
        return _run_lme4(path, formula)
    if program == "mixedlm" and not _installed("mixedlm"):
        return None
    return watched([sys.executable, __file__, "--measure", program, str(path), formula, str(repeats)])


def _run_lme4(path: Path, formula: str) -> dict[str, Any] | None:
    program = shutil.which("Rscript")
    known = (
        program is not None
        and not subprocess.run(
            [program, "-e", "stopifnot(requireNamespace('lme4', quietly = TRUE))"], capture_output=True, check=False
        ).returncode
    )
    if program is None or not known:
        return None
    with tempfile.TemporaryDirectory() as folder:
        duckdb.sql(f"COPY (FROM '{path}') TO '{folder}/data.csv'")
        (Path(folder) / "run.R").write_text(R_PROGRAM)
        return watched([program, f"{folder}/run.R", f"{folder}/data.csv", formula])


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def versions() -> str:
    """Machine and versions, one line."""
    found = [f"{name} {version(name)}" for name in ("mlsql", "duckdb", "numpy", "scipy") if _installed(name)]
    return f"{psutil.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(found)


# ---------------------------------------------------------------------------------------------------- tables


def case_table(cases: list[Case], folder: Path, divisor: int, peers: bool) -> None:
    """Cases beside their floor and their peers; then the stages."""
    print("| case | rows | groups | mlsql s (min-max) | peak MB | evaluations | floor s | of the floor "
          "| mixedlm s | its peak MB | ratio | lme4 s | its peak MB | ratio |")  # fmt: skip
    print("|---" * 14 + "|")
    stages, notes = [], []
    for case in cases:
        path = case.make(folder, divisor)
        own = run("mlsql", path, case.formula, case.repeats)
        assert own is not None
        stages.append((case.name, own["stages"]))
        cells = [
            case.name, f"{own['rows']:,}", " x ".join(f"{g:,}" for g in own["groups"]), _seconds(own),
            f"{own['peak_mb']:.0f}", str(own["evaluations"]), f"{own['floor']:.3g}",
            f"{own['seconds'] / own['floor']:.1f}",
        ]  # fmt: skip
        for program in ("mixedlm", "lme4"):
            other = run(program, path, case.formula, 1) if peers and program in case.peers else None
            if other is None:
                cells += ["-", "-", "-"]
                continue
            ratio = own["seconds"] / other["seconds"]
            cells += [f"{other['seconds']:.3g}", f"{other['peak_mb']:.0f}", f"{ratio:.2g}"]
            notes.append(f"{case.name}: deviance {own['deviance']:.4f}, {other['version']} {other['deviance']:.4f}")
        print("| " + " | ".join(cells) + " |", flush=True)
    names = ("survey", "scan", "pack", "optimise")
    print("\n| case | " + " | ".join(f"{n} s" for n in names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for name, parts in stages:
        print(f"| {name} | " + " | ".join(f"{parts[n]:.3f}" for n in names) + " |")
    print("".join(f"\n- {note}" for note in notes))


def growth_table(cases: tuple[Case, ...], folder: Path, divisor: int) -> None:
    """How time and memory grow with the smaller of two crossed factors."""
    print("| smaller factor | rows | matrix, columns | mlsql s | s an evaluation | evaluations | peak MB |")
    print("|---" * 7 + "|")
    for case in cases:
        own = run("mlsql", case.make(folder, divisor), case.formula, case.repeats)
        assert own is not None
        each = own["stages"]["optimise"] / own["evaluations"]
        print(f"| {min(own['groups']):,} | {own['rows']:,} | {own['solution']} | {own['seconds']:.3g} | {each:.3g} "
              f"| {own['evaluations']} | {own['peak_mb']:.0f} |", flush=True)  # fmt: skip


def _seconds(own: dict[str, Any]) -> str:
    if own["low"] == own["high"]:
        return f"{own['seconds']:.3g}"
    return f"{own['seconds']:.3g} ({own['low']:.3g}-{own['high']:.3g})"


def main() -> None:
    """Run the chosen cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases, or `growth`; all when none is given")
    parser.add_argument("--data", type=Path, default=Path("benchmark-data"), help="folder for the Parquet files")
    parser.add_argument("--divisor", type=int, default=1, help="make generated data smaller, for a trial")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="run mixedlm and lme4 too")
    arguments = parser.parse_args()
    known = [c.name for c in CASES] + ["growth"]
    unknown = [name for name in arguments.cases if name not in known]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(known)}")
    print(versions(), "\n")
    chosen = [c for c in CASES if not arguments.cases or c.name in arguments.cases]
    if chosen:
        case_table(chosen, arguments.data, arguments.divisor, arguments.peers)
    if not arguments.cases or "growth" in arguments.cases:
        print()
        growth_table(GROWTH, arguments.data, arguments.divisor)


MEASURES = {"mlsql": measure_mlsql, "mixedlm": measure_mixedlm}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(MEASURES[sys.argv[2]](sys.argv[3], sys.argv[4], int(sys.argv[5]))))
    else:
        main()
