"""Memory that the system says is left, and the refusal of what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlsql.errors import FitError
from mlsql.results.memory import available_memory, check_memory, size_text


def test_too_large_a_matrix_is_refused_with_its_size() -> None:
    check_memory(8_000_000_000, "the joint matrix of d, 31,623 columns", available=9_000_000_000)
    with pytest.raises(
        FitError, match=r"the joint matrix of d, 31,623 columns: this needs about 8 GB of memory, and 7.9 GB are "
    ):
        check_memory(8_000_000_000, "the joint matrix of d, 31,623 columns", available=7_900_000_000)
    with pytest.raises(FitError, match=r"are available; use fewer random coefficients or groups of crossed factors"):
        check_memory(10**18, "everything")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 9_216_000),
        ({"memory.max": "max\n", "memory.current": "5000000\n"}, 9_216_000),
        (
            {"memory.max": "8000000\n", "memory.current": "5000000\n", "memory.stat": "anon 1\ninactive_file 600000\n"},
            3_600_000,
        ),
        ({"memory.max": "8000000\n", "memory.current": "9000000\n", "memory.stat": "anon 1\n"}, 0),
        ({"memory.max": "80000000\n", "memory.current": "5000000\n"}, 9_216_000),
        (
            {
                "memory/memory.limit_in_bytes": "8000000\n",
                "memory/memory.usage_in_bytes": "5000000\n",
                "memory/memory.stat": "total_inactive_file 1000\n",
            },
            3_001_000,
        ),
    ],
    ids=["machine", "no limit", "limit", "over the limit", "limit above the machine", "older limit"],
)
def test_memory_of_the_container_and_of_the_machine(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    proc, cgroup = write(tmp_path / "proc", {"meminfo": MEMINFO}), write(tmp_path / "cgroup", files)
    assert available_memory(proc, cgroup) == expected


def test_memory_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = available_memory(tmp_path, tmp_path)
    assert whole is None or whole > 100_000_000

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert available_memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(831_000, "831 kB"), (9.2e9, "9.2 GB"), (5.2e7, "52 MB"), (8.5e8, "850 MB"), (1.234e12, "1,234 GB")],
)
def test_sizes_in_words(size: float, text: str) -> None:
    assert size_text(size) == text
