"""The demonstration: four models of one data set, printed and stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlsql
from mlsql.surfaces.database import opened

MODELS = (
    "mathach ~ 1 + (1 | school)",
    "mathach ~ meanses + (1 | school)",
    "mathach ~ group_center(ses) + (group_center(ses) | school)",
    "mathach ~ meanses * group_center(ses) + sector * group_center(ses) + (group_center(ses) | school)",
)

QUESTIONS = (
    "SELECT formula, round(deviance, 3) AS deviance, round(sigma2, 3) AS sigma2 FROM ml_fits ORDER BY deviance DESC",
    "SELECT term, round(estimate, 3) AS estimate, round(std_error, 3) AS std_error FROM ml_fixed_effects "
    "WHERE fit_id = '{fit_id}'",
    "SELECT key AS school, round(coefficient, 2) AS mean, round(reliability, 2) AS reliability, n "
    "FROM ml_group_effects WHERE fit_id = '{fit_id}' AND term = '(Intercept)' ORDER BY coefficient DESC LIMIT 5",
)


def run_demo(into: Path) -> Iterator[str]:
    """Fit, print and store; then show how to query the tables.

    Parameters
    ----------
    into : Path
        DuckDB file for the result tables.

    Yields
    ------
    str
        Pieces of the output, as they are ready.
    """
    data = mlsql.example_data("hsb")
    with opened(into) as con:
        fit_id = ""
        for number, formula in enumerate(MODELS, start=1):
            fitted = mlsql.fit(formula, data)
            fit_id = fitted.to_tables(con)
            heading = f"Model {number} of {len(MODELS)}: {formula}"
            yield f"{'=' * len(heading)}\n{heading}\n{'=' * len(heading)}\n\n{fitted.summary()}\n"
        yield f"The result tables are in {into}.  Ask it with any DuckDB client, for instance `duckdb {into}`:\n"
        for question in QUESTIONS:
            statement = question.format(fit_id=fit_id)
            yield f"{statement};\n{con.sql(statement)}"
