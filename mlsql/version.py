"""The installed version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The version of the installed package; "unknown" in a checkout that is not installed."""
    try:
        return version("mlsql")
    except PackageNotFoundError:
        return "unknown"
