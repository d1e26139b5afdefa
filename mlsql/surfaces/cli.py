"""The command line: `mlsql fit`, `plan`, `compare`, `predict`, `show`, `register`, `demo`.

Data go to stdout, progress and messages to stderr.  Exit codes: 0 converged, 1 error, 2 usage, 3 fitted but singular
or not converged, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsql._typing import DfMethod, Vcov
from mlsql.errors import MlsqlError, QueryInterrupted
from mlsql.surfaces.database import opened
from mlsql.surfaces.options import (
    EXIT_UNSETTLED,
    Data,
    Database,
    DfOption,
    Formula,
    Groups,
    Json,
    Level2,
    Restricted,
    Trace,
    VcovOption,
    Weights,
    connection,
    df_method,
    formula_text,
    json_text,
    method_name,
    records,
    tracing,
    vcov_name,
)
from mlsql.surfaces.progress import progress_bar
from mlsql.surfaces.results import compare_command, predict_command, register_command, show_command
from mlsql.surfaces.words import in_options

if TYPE_CHECKING:
    from mlsql.pipeline.fitted import Fit
    from mlsql.sql.plan import Plan

app = typer.Typer(
    help="Multilevel models where the data live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


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
    history: Annotated[bool, typer.Option(help="With --into: keep the rows that a rerun replaces.")] = False,
    save: Annotated[Path | None, typer.Option(help="Parquet file to which the fit is saved, without the data.")] = None,
    replace: Annotated[bool, typer.Option(help="With --save: overwrite the file if it exists.")] = False,
    df: DfOption = None,
    vcov: VcovOption = "model",
    max_evaluations: Annotated[int, typer.Option(help="Limit for the optimiser, over all starts.")] = 200,
    drop_collinear: Annotated[bool, typer.Option(help="Leave out collinear predictors.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the statements, as `plan` does, and run none.")] = False,
    as_json: Json = False,
    trace: Trace = False,
) -> None:
    """Fit a multilevel model, print its summary, and store the result tables if asked."""
    import mlsql
    from mlsql.pipeline.save import save_target

    if history and into is None:
        raise typer.BadParameter("--history belongs to --into", param_hint="--history")
    if replace and save is None:
        raise typer.BadParameter("--replace belongs to --save", param_hint="--replace")
    if max_evaluations < 2:
        raise typer.BadParameter("at least 2 are needed", param_hint="--max-evaluations")
    rule, matrix = df_method(df), vcov_name(vcov)
    if dry_run:
        plan_command(data, formula, method, level2, weights, groups, database, as_json=as_json)
        return
    # what cannot be written is said before the data are read
    if save is not None:
        save_target(save, replace)
    if into is not None and into.exists() and into != database:
        with opened(into):
            pass
    with connection(database) as con, progress_bar() as progress, tracing(trace):
        fitted = mlsql.fit(
            formula_text(formula),
            data,
            method=method_name(method),
            con=con,
            level2=level2,
            weights=weights,
            groups=groups,
            drop_collinear=drop_collinear,
            max_evaluations=max_evaluations,
            progress=progress,
        )
        text = json_text(fit_document(fitted, rule, matrix)) if as_json else in_options(fitted.summary(rule, matrix))
    # the database of the data may be the one of the results: it is closed by now
    if into is not None:
        with opened(into) as results, tracing(trace):
            fit_id = fitted.to_tables(results, history=history, df=rule, vcov=matrix)
        typer.echo(f"the result tables of fit {fit_id} are in {into}", err=True)
    if save is not None:
        fitted.save(save, replace=replace)
        typer.echo(f"the fit is saved in {save}", err=True)
    typer.echo(text)
    if not fitted.converged or fitted.singular:
        raise typer.Exit(EXIT_UNSETTLED)


def fit_document(fitted: Fit, df: DfMethod | None, vcov: Vcov) -> dict[str, Any]:
    """A fit as JSON: statistics, fixed effects, variance components, warnings."""
    return {
        "fit_id": fitted.fit_id,
        "source": fitted.inputs.rows.label,
        **records(fitted.statistics)[0],
        "fixed_effects": records(fitted.inference(df, vcov)),
        "variance_components": records(fitted.variance_components),
        "warnings": list(fitted.warnings),
        "dropped": list(fitted.dropped),
    }


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
    as_json: Json = False,
) -> None:
    """Print the SQL that a fit would run; only column names and types are read."""
    import mlsql

    with connection(database) as con:
        script = mlsql.plan(
            formula_text(formula),
            data,
            method=method_name(method),
            con=con,
            level2=level2,
            weights=weights,
            groups=groups,
            survey=survey,
        )
    typer.echo(json_text(plan_document(script)) if as_json else in_options(str(script)))


def plan_document(script: Plan) -> dict[str, Any]:
    """A plan as JSON: its notes, and name, purpose and SQL of each step."""
    steps = [{"name": step.name, "purpose": step.purpose, "sql": step.sql} for step in script.steps]
    return {"notes": [in_options(note) for note in script.notes], "steps": steps}


@app.command("demo")
def demo_command(
    into: Annotated[Path, typer.Option(help="DuckDB file for the result tables.")] = Path("mlsql_demo.duckdb"),
) -> None:
    """Fit the four High School & Beyond models of Raudenbush & Bryk (2002), chapter 4."""
    from mlsql.surfaces.demo import run_demo

    for text in run_demo(into):
        typer.echo(text)


app.command("compare")(compare_command)
app.command("predict")(predict_command)
app.command("show")(show_command)
app.command("register")(register_command)


def main() -> None:
    """Entry point: turn errors into one message and an exit code."""
    try:
        app(standalone_mode=True)
    except QueryInterrupted as error:
        typer.echo(f"interrupted: {in_options(str(error))}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except MlsqlError as error:
        typer.echo(f"error: {in_options(str(error))}", err=True)
        sys.exit(EXIT_ERROR)
