"""Memory that is left, and the refusal to need more."""

from __future__ import annotations

import os
from pathlib import Path

from mlsql.errors import FitError


def check_memory(needed: int, what: str, available: int | None = None) -> None:
    """Stop before memory runs out.

    Parameters
    ----------
    needed : int
        Bytes.
    what : str
        What needs them, with its size: "the joint matrix of d, 12,000 columns".
    available : int, optional
        Bytes; what the system says if not given.

    Raises
    ------
    FitError
    """
    left = available_memory() if available is None else available
    if left is not None and needed > left:
        raise FitError(
            f"{what}: this needs about {size_text(needed)} of memory, and {size_text(left)} are available; use fewer "
            "random coefficients or groups of crossed factors, or a machine with more memory"
        )


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can still be had, of the machine and of the container; None where neither tells.

    Parameters
    ----------
    proc, cgroup : Path
        Where Linux tells; elsewhere the machine's whole memory counts.
    """
    found = [_machine(proc)]
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, used = _number(cgroup / limit), _number(cgroup / usage)
        if most is not None and used is not None:
            # file pages that no one uses are given back when needed
            kept = _field((cgroup / limit).parent / "memory.stat", cached) or 0
            found.append(max(most - used + kept, 0))
    known = [f for f in found if f is not None]
    return min(known) if known else None


def size_text(size: float) -> str:
    """`850 MB`, `9.2 GB`: powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.0f} {unit}" if size >= 100 * scale else f"{size / scale:.2g} {unit}"
    return f"{size / 1e3:.0f} kB"


def _machine(proc: Path) -> int | None:
    free = _field(proc / "meminfo", "MemAvailable:")
    if free is not None:
        return free * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        # absent, or "max": no limit
        return None


def _field(path: Path, label: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [label]), None)
