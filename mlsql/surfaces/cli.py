"""The command line: `mlsql fit`, `mlsql plan`, `mlsql demo`.

Data go to stdout, progress and messages to stderr.  Exit codes: 0 converged, 1 error, 2 usage, 3 fitted but singular
or not converged, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsql._typing import Method
from mlsql.errors import FormulaError, MlsqlError, QueryInterrupted
from mlsql.surfaces.database import opened
from mlsql.surfaces.progress import progress_bar

if TYPE_CHECKING:
    import duckdb

    from mlsql.pipeline.fitted import Fit

app = typer.Typer(
    help="Multilevel models where the data live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_ERROR, EXIT_UNSETTLED, EXIT_INTERRUPTED = 1, 3, 130

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


@app.command("fit")
def fit_command(
    data: Data,
    formula: Formula,
    method: Restricted = "REML",
    level2: Level2 = None,
    weights: Weights = None,
    groups: Groups = None,
    database: Database = None,
    into: Annotated[Path | None, typer.Option(help="DuckDB file to which the result tables are written.")] = None,
    drop_collinear: Annotated[bool, typer.Option(help="Leave out collinear predictors.")] = False,
) -> None:
    """Fit a two-level model, print its summary, and store the result tables if asked."""
    import mlsql

    with _connection(database) as con, progress_bar() as progress:
        fitted = mlsql.fit(
            _formula(formula),
            data,
            method=_method(method),
            con=con,
            level2=level2,
            weights=weights,
            groups=groups,
            drop_collinear=drop_collinear,
            progress=progress,
        )
        typer.echo(fitted.summary())
    # the database of the data may be the one of the results: it is closed by now
    if into is not None:
        _store(fitted, into)
    if not fitted.converged or fitted.singular:
        raise typer.Exit(EXIT_UNSETTLED)


@app.command("plan")
def plan_command(
    data: Data,
    formula: Formula,
    method: Restricted = "REML",
    level2: Level2 = None,
    weights: Weights = None,
    groups: Groups = None,
    database: Database = None,
    survey: Annotated[bool, typer.Option(help="Run the survey and show the moments statements exactly.")] = False,
) -> None:
    """Print the SQL that a fit would run; only column names and types are read."""
    import mlsql

    with _connection(database) as con:
        script = mlsql.plan(
            _formula(formula),
            data,
            method=_method(method),
            con=con,
            level2=level2,
            weights=weights,
            groups=groups,
            survey=survey,
        )
    typer.echo(str(script))


@app.command("demo")
def demo_command(
    into: Annotated[Path, typer.Option(help="DuckDB file for the result tables.")] = Path("mlsql_demo.duckdb"),
) -> None:
    """Fit the four High School & Beyond models of Raudenbush & Bryk (2002), chapter 4."""
    from mlsql.surfaces.demo import run_demo

    for text in run_demo(into):
        typer.echo(text)


def main() -> None:
    """Entry point: turn errors into one message and an exit code."""
    try:
        app(standalone_mode=True)
    except QueryInterrupted as error:
        typer.echo(f"interrupted: {error}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except MlsqlError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(EXIT_ERROR)


def _store(fitted: Fit, into: Path) -> None:
    with opened(into) as con:
        fit_id = fitted.to_tables(con)
    typer.echo(f"result tables ml_fits, ml_fixed_effects, ml_variance_components, ml_group_effects of fit {fit_id} "
               f"are in {into}", err=True)  # fmt: skip


@contextmanager
def _connection(database: Path | None) -> Iterator[duckdb.DuckDBPyConnection | None]:
    if database is None:
        yield None
        return
    with opened(database, read_only=True) as con:
        yield con


def _formula(text: str) -> str:
    """A formula, or the content of a file that holds it."""
    if "~" in text or "=" in text:
        return text
    path = Path(text)
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else text
    except UnicodeDecodeError as error:
        raise FormulaError(f"the formula file {text} is not text in UTF-8") from error


def _method(text: str) -> Method:
    chosen: dict[str, Any] = {"REML": "REML", "ML": "ML"}
    if text.upper() not in chosen:
        raise typer.BadParameter(f"{text!r} is neither REML nor ML", param_hint="--method")
    method: Method = chosen[text.upper()]
    return method
