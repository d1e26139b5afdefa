"""One program, one case, one process: prints seconds and peak memory as JSON.  Called by run.py."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from problems import FORMULA


def measure_mlsql(path: str, repeats: int) -> dict[str, Any]:
    """Parquet to finished fit in a warm process; stages of the median run."""
    import mlsql

    mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        fitted = mlsql.fit(FORMULA, path)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        fitted.summary()
        stages = {**fitted.seconds, "results": time.perf_counter() - started}
        runs.append((seconds, stages, fitted.n_evaluations, fitted.deviance))
    seconds, stages, evaluations, deviance = sorted(runs, key=lambda r: r[0])[len(runs) // 2]
    return {
        "seconds": seconds,
        "low": min(r[0] for r in runs),
        "high": max(r[0] for r in runs),
        "stages": stages,
        "evaluations": evaluations,
        "deviance": deviance,
    }


def measure_small(repeats: int) -> dict[str, Any]:
    """High School & Beyond, full model, warm process, Parquet to summary."""
    import mlsql

    formula = "mathach ~ meanses*group_center(ses) + sector*group_center(ses) + (group_center(ses) | school)"
    data = mlsql.example_data("hsb")
    mlsql.fit(formula, data).summary()
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        fitted = mlsql.fit(formula, data)
        fitted.summary()
        runs.append(time.perf_counter() - started)
    return {
        "seconds": sorted(runs)[len(runs) // 2],
        "low": min(runs),
        "high": max(runs),
        "stages": dict(fitted.seconds),
        "evaluations": fitted.n_evaluations,
        "deviance": fitted.deviance,
    }


def measure_peer(path: str, repeats: int) -> dict[str, Any]:
    """mixedlm-rs on a pandas frame that is in memory already; reading the file is not timed."""
    import mixedlm_rs
    import pyarrow.parquet as pq

    frame = pq.read_table(path).to_pandas()
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        model = mixedlm_rs.mixedlm(
            "y ~ ses*sector + female + iq + motiv + age + size", frame, groups="school", re_formula="~ses"
        )
        result = model.fit()
        runs.append(time.perf_counter() - started)
    return {
        "seconds": sorted(runs)[len(runs) // 2],
        "low": min(runs),
        "high": max(runs),
        "deviance": -2.0 * float(result.llf),
    }


if __name__ == "__main__":
    program, source, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if program == "mlsql":
        answer = measure_mlsql(source, count)
    elif program == "small":
        answer = measure_small(count)
    else:
        answer = measure_peer(source, count)
    answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(answer))
