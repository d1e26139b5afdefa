"""Commands on fits that are there: compare, predict, show, register."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsql.surfaces.database import opened
from mlsql.surfaces.options import (
    EXIT_UNSETTLED,
    Data,
    Database,
    Groups,
    Json,
    Level2,
    Restricted,
    Trace,
    Weights,
    connection,
    finite,
    formula_text,
    json_text,
    method_name,
    records,
    tracing,
)
from mlsql.surfaces.progress import progress_bar
from mlsql.surfaces.words import in_options

if TYPE_CHECKING:
    import duckdb


def compare_command(
    data: Data,
    formula: Annotated[list[str], typer.Option(help="Formula, or a file that holds one; two or more.")],
    method: Restricted = "ML",
    level2: Level2 = None,
    weights: Weights = None,
    groups: Groups = None,
    database: Database = None,
    as_json: Json = False,
    trace: Trace = False,
) -> None:
    """Fit several models to the same rows and print their comparison."""
    import mlsql
    from mlsql.report.comparison import comparison_text

    if len(formula) < 2:
        raise typer.BadParameter("give two formulas or more", param_hint="--formula")
    with connection(database) as con, progress_bar() as progress, tracing(trace):
        fits = [
            mlsql.fit(
                formula_text(text),
                data,
                method=method_name(method),
                con=con,
                level2=level2,
                weights=weights,
                groups=groups,
                progress=progress,
            )
            for text in formula
        ]
        table = mlsql.compare(*fits)
    typer.echo(json_text(records(table)) if as_json else in_options(comparison_text(table)))
    if any(f.singular or not f.converged for f in fits):
        raise typer.Exit(EXIT_UNSETTLED)


def predict_command(
    fit: Annotated[Path, typer.Option(help="A fit saved by `mlsql fit --save`.", show_default=False)],
    data: Data,
    into: Annotated[str, typer.Option(help="Parquet or CSV file for the rows with predictions.", show_default=False)],
    level2: Level2 = None,
    database: Database = None,
    unseen: Annotated[str, typer.Option(help="Rows of groups the fit did not see: error, population or missing.")] = (
        "error"
    ),
    replace: Annotated[bool, typer.Option(help="Overwrite the file if it exists.")] = False,
    trace: Trace = False,
) -> None:
    """Predict rows from a saved fit, in the database, into a file."""
    import mlsql

    if unseen not in ("error", "population", "missing"):
        raise typer.BadParameter(f"{unseen!r} is not error, population or missing", param_hint="--unseen")
    if not into.lower().endswith((".parquet", ".csv")):
        raise typer.BadParameter("name a file ending in .parquet or .csv", param_hint="--into")
    fitted = mlsql.load(fit)
    with connection(database) as con, tracing(trace):
        fitted.predict(data, into=into, con=con, level2=level2, unseen=unseen, replace=replace)  # type: ignore[arg-type]
    typer.echo(f"predictions are in {into}", err=True)


def show_command(
    results: Annotated[Path, typer.Argument(help="DuckDB file that holds result tables.", show_default=False)],
    fit_id: Annotated[str | None, typer.Argument(help="Which fit; without it, the list of fits.")] = None,
    as_json: Json = False,
) -> None:
    """Print a stored fit, or list those stored."""
    from mlsql.pipeline.store import show_stored

    with opened(results, read_only=True) as con:
        # it also refuses a fit that is not there
        text = in_options(show_stored(con, fit_id))
        typer.echo(json_text(stored_document(con, fit_id)) if as_json else text)


def stored_document(con: duckdb.DuckDBPyConnection, fit_id: str | None) -> Any:
    """A stored fit as `mlsql fit --json` prints it, with when it was written and by what; without an identifier, all.

    The list, the latest first, has no fixed effects and variance components.
    """
    from mlsql.engine.write import read_rows
    from mlsql.pipeline.store import SHOWN

    fits, fixed, components = (read_rows(con, f"ml_{label}", fit_id) or [] for label in SHOWN)
    documents = [finite(fit) | {"warnings": (fit["warnings"] or "").splitlines()} for fit in fits]
    if fit_id is None:
        return sorted(documents, key=lambda fit: (str(fit["written_at"]), fit["fit_id"]), reverse=True)
    parts = {"fixed_effects": fixed, "variance_components": components}
    return documents[0] | {
        label: [{key: value for key, value in finite(row).items() if key != "fit_id"} for row in rows]
        for label, rows in parts.items()
    }


def register_command(
    results: Annotated[Path, typer.Argument(help="DuckDB file that gets the SQL functions.", show_default=False)],
) -> None:
    """Install the SQL functions in a database file, for any client to use."""
    from mlsql.surfaces.macros import install_macros, macros

    with opened(results) as con:
        names = install_macros(con)
    typer.echo(f"{len(macros())} functions are in {results}, {len(names)} of them new or renewed", err=True)
