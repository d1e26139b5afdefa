"""Example data that come with the package."""

from __future__ import annotations

from importlib.resources import files

from mlsql.errors import DataError

EXAMPLES = ("hsb",)


def example_data(name: str) -> str:
    """Path of an example data set.

    Parameters
    ----------
    name : {"hsb"}
        High School & Beyond, 1982: 7,185 students in 160 schools (mathach, ses, minority, female; meanses, sector,
        size and more of the school), from R's nlme package, MathAchieve and MathAchSchool.

    Raises
    ------
    DataError
        For an unknown name.

    Examples
    --------
    >>> import mlsql
    >>> mlsql.example_data("hsb").endswith("hsb.parquet")
    True
    """
    if name not in EXAMPLES:
        raise DataError(f"there is no example called {name!r}; choose from {', '.join(EXAMPLES)}")
    return str(files("mlsql") / "data" / f"{name}.parquet")
