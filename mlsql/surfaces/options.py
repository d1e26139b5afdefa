"""Options that commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from mlsql._typing import DfMethod, Method, Vcov
from mlsql.errors import FormulaError
from mlsql.surfaces.database import opened

if TYPE_CHECKING:
    import duckdb
    import polars as pl

EXIT_UNSETTLED = 3
"""A fit is singular or did not converge."""

Data = Annotated[
    str, typer.Option(help="Parquet or CSV file or glob, SQL text, or with --database a table.", show_default=False)
]
Formula = Annotated[
    str,
    typer.Option(help="Formula, 'y ~ x + (x | g)', level equations, or a file that holds one.", show_default=False),
]
Groups = Annotated[str | None, typer.Option(help="Grouping column(s) of level equations.", show_default=False)]
Restricted = Annotated[str, typer.Option("--method", help="REML or ML.")]
Database = Annotated[Path | None, typer.Option(help="DuckDB file that holds the tables; opened read-only.")]
Level2 = Annotated[str | None, typer.Option(help="Second source with one row per group.")]
Weights = Annotated[str | None, typer.Option(help="Column of precision weights.")]
DfOption = Annotated[
    str | None,
    typer.Option("--df", help="hlm, between_within, residual, satterthwaite, kenward_roger or normal."),
]
VcovOption = Annotated[str, typer.Option("--vcov", help="model, CR0, CR1 or CR2.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]
Trace = Annotated[bool, typer.Option("--trace", help="Show each statement with its time and rows, on stderr.")]


@contextmanager
def connection(database: Path | None) -> Iterator[duckdb.DuckDBPyConnection | None]:
    """The database that holds the tables, read-only; None without one."""
    if database is None:
        yield None
        return
    with opened(database, read_only=True) as con:
        yield con


@contextmanager
def tracing(wanted: bool) -> Iterator[None]:
    """Statements on stderr as they finish."""
    if not wanted:
        yield
        return
    from mlsql.engine.duckdb import Executed, traced

    def show(done: Executed) -> None:
        typer.echo(f"-- {done.step}: {done.seconds:.3f} s, {done.rows:,} rows\n{done.sql};\n", err=True)

    with traced(show):
        yield


def formula_text(text: str) -> str:
    """A formula, or the content of a file that holds it."""
    if "~" in text or "=" in text:
        return text
    path = Path(text)
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else text
    except UnicodeDecodeError as error:
        raise FormulaError(f"the formula file {text} is not text in UTF-8") from error
    except OSError:
        # too long for a path, or not to be read: the parser says what is wrong with it as a formula
        return text


def method_name(text: str) -> Method:
    """REML or ML, however written."""
    chosen: dict[str, Any] = {"REML": "REML", "ML": "ML"}
    if text.upper() not in chosen:
        raise typer.BadParameter(f"{text!r} is neither REML nor ML", param_hint="--method")
    method: Method = chosen[text.upper()]
    return method


def df_method(text: str | None) -> DfMethod | None:
    """The name of a rule for degrees of freedom."""
    if text is not None and text not in get_args(DfMethod):
        raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(DfMethod))}", param_hint="--df")
    return cast("DfMethod | None", text)


def vcov_name(text: str) -> Vcov:
    """The name of a covariance matrix."""
    if text not in get_args(Vcov):
        raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(Vcov))}", param_hint="--vcov")
    return cast("Vcov", text)


def records(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: what has no place there (infinite df) becomes null."""
    import polars as pl

    finite = pl.when(pl.selectors.float().is_finite()).then(pl.selectors.float())
    found: list[dict[str, Any]] = frame.with_columns(finite).to_dicts()
    return found


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for JSON, which has neither NaN nor infinity."""
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


def json_text(value: object) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
