"""From the answer of the cells query to a fit: the same steps as `mlsql.fit`, without a connection."""

from __future__ import annotations

import re
import time
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlglot import exp

from mlsql._typing import DfMethod, Method, Vcov
from mlsql.design.cells import CellLayout, cell_layout, schema_of
from mlsql.design.design import build_design, check_survey
from mlsql.engine.source import Source, make_source
from mlsql.errors import DataError, DesignError
from mlsql.formula.spec import ModelSpec, parse_model
from mlsql.moments.cells import moments_from_cells, survey_cells
from mlsql.moments.statistics import collinear_columns
from mlsql.optimise.search import optimise
from mlsql.pipeline.analysis import collinear_message, dropped_rows, survey_warnings, with_factors
from mlsql.pipeline.fitted import Fit
from mlsql.pipeline.objective import make_objective
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.products import Products
from mlsql.pipeline.survey import MAX_LEVELS
from mlsql.results.advice import advice
from mlsql.results.estimates import Estimates
from mlsql.sql.cells import cells_step
from mlsql.sql.plan import Plan
from mlsql.surfaces.sql_cells import call_of, unpack_cells
from mlsql.surfaces.sql_known import learn, recall
from mlsql.surfaces.sql_lean import Known, lean_step

if TYPE_CHECKING:
    import pyarrow as pa

    from mlsql.design.design import Design
    from mlsql.moments.moments import Moments

_FILE = re.compile(r"\.(parquet|pq|csv|tsv)(\.\w+)?$", re.IGNORECASE)
_QUERY = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:select|with|from|values|pivot)\b(?!\s*\.)", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a table function; the answer of the query repeats them.

    Attributes
    ----------
    formula, table : str
    method : {"REML", "ML"}
    level2, weights, groups : str or None
    df, vcov : str or None
    """

    formula: str
    table: str
    method: Method = "REML"
    level2: str | None = None
    weights: str | None = None
    groups: str | None = None
    df: DfMethod | None = None
    vcov: Vcov = "model"

    @property
    def spec(self) -> ModelSpec:
        """The model.

        Raises
        ------
        FormulaError
        """
        return parse_model(self.formula, method=self.method, weights=self.weights, groups=self.groups)

    @property
    def inputs(self) -> Inputs:
        """The data, by name: they are looked up by the statement that contains the query.

        Raises
        ------
        DataError
        """
        upper = None if self.level2 is None else named_source(self.level2, "level2")
        return Inputs(named_source(self.table, "tbl"), upper, None)


def named_source(text: str, role: str) -> Source:
    """A table by its name, SQL text or a file, without asking a connection.

    Raises
    ------
    DataError
        When the text is none of these, or the file does not exist.
    """
    if not isinstance(text, str):
        raise DataError(f"{role} is NULL; give the name of a table, '(SELECT ...)', or a file's path")

    def is_name(table: exp.Expr) -> bool:
        parts = [p.name for p in table.parts] if isinstance(table, exp.Table) else []
        whole = len(parts) == 1 and parts[0] == text
        if _FILE.search(text) or "://" in text:
            return False
        if not whole:
            return bool(parts) and not _QUERY.match(text)
        # quotes and dots are read as SQL reads them, in the second try
        plain = re.fullmatch(r"[^\W\d]\w*( \w+)*", text)
        return plain is not None and not (" " in text and _QUERY.match(text)) and not Path(text).is_file()

    return make_source(text, role=role, exists=is_name)


def cells_sql(call: Call, home: str) -> str:
    """The query that the statement runs.

    Parameters
    ----------
    call : Call
    home : str
        The name of the connection, of whose tables earlier statements may know something.

    Raises
    ------
    FormulaError, DataError
    """
    tables = call.inputs.tables
    return _rendered(call, home, recall(home, _layout(call), tables), tables.rows, tables.level2)


@lru_cache(maxsize=64)
def _rendered(call: Call, home: str, known: Known | None, rows: exp.Expr, level2: exp.Expr | None) -> str:
    """A relation is read twice, when it is made and when it runs: the second time costs nothing."""
    layout, told = _layout(call), (*astuple(call), home)
    if known is None:
        step = cells_step(layout, rows, level2, (*told, None))
    else:
        step = lean_step(layout, known, rows, level2, (*told, known.text))
    return step.tree.sql(dialect="duckdb")


@lru_cache(maxsize=64)
def _layout(call: Call) -> CellLayout:
    return cell_layout(call.spec, level2=call.level2 is not None)


@dataclass(frozen=True, slots=True)
class Analysed:
    """A design with its moments, all products by group, and what was noticed on the way."""

    design: Design
    moments: Moments
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]


def analyse_cells(answer: pa.StructArray) -> tuple[Call, Analysed]:
    """Read the answer.

    Raises
    ------
    MlsqlError
        As `mlsql.fit` does on the same data.
    """
    *told, home, facts = call_of(answer)
    call, known = Call(*told), None if facts is None else Known(tuple(facts.split()))
    layout = _layout(call)
    header, cells = unpack_cells(layout, answer, known)
    schema = schema_of(cells.layout, header)
    if header.upper_survey is not None:
        _check_upper(call.spec, header.upper_survey)
    survey, cells = survey_cells(header, schema, cells)
    check_survey(schema, survey)
    if not cells.keys.num_rows:
        missing = [f"{c.input.name}: {c.nulls:,} NULL, {c.nans:,} NaN" for c in survey.columns if c.incomplete]
        raise DataError("no complete rows are left; missing values are " + ", ".join(missing))
    for factor in schema.of_role("factor"):
        count = len(survey.levels[factor.sql])
        if count > MAX_LEVELS:
            raise DesignError(
                f"factor {factor.name} has {count:,} levels, more than {MAX_LEVELS}; "
                "is it a grouping column, or a number stored as text (then CAST it)?"
            )
    if cells.layout is layout:
        learn(home, layout, call.inputs.tables, schema, survey.preview.varying, known)
    design = build_design(call.spec, schema, survey).completed()
    moments, noted = with_factors(design, moments_from_cells(design, cells), {})
    collinear = collinear_columns(design, moments)
    if collinear:
        raise DesignError(collinear_message(collinear[0]) + "; leave it out")
    warnings = (*schema.warnings, *survey_warnings(survey), *noted)
    return call, Analysed(design, moments, dropped_rows(survey, moments), warnings)


def _check_upper(spec: ModelSpec, found: tuple[float, ...]) -> None:
    if not found[0]:
        raise DataError("the level2 table has no rows")
    rows, with_keys, keys = (int(x) for x in found[:3])
    if keys < with_keys:
        names = ", ".join(k.name for k in spec.keys)
        raise DataError(
            f"the level2 table has {rows:,} rows but {keys:,} distinct values of {names}; "
            "it needs one row per group: aggregate it first"
        )


def fit_cells(answer: pa.StructArray) -> tuple[Call, Fit]:
    """Fit the model to the answer.

    Raises
    ------
    MlsqlError
    """
    started = time.perf_counter()
    call, found = analyse_cells(answer)
    deviance = make_objective(found.design, found.moments, call.spec.method)
    packed = time.perf_counter()
    best = optimise(deviance, max_evaluations=200)
    estimates = Estimates.at_optimum(found.design, found.moments, deviance.statistics, best)
    seconds = {"survey": 0.0, "scan": 0.0, "pack": packed - started, "optimise": time.perf_counter() - packed}
    inputs = call.inputs
    warnings = (*found.warnings, *advice(estimates))
    fit = Fit(estimates, inputs, Plan(()), found.dropped, warnings, seconds, Products(estimates, inputs))
    return call, fit
