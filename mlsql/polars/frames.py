"""The namespace `ml` of DataFrame and LazyFrame: it forwards to `mlsql.fit` and its kin.

Imports of the package stand in functions: Polars never lets go of a namespace, nor of what the module refers to, and
a connection that is alive at the end of the process is reported as leaked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

import polars as pl

from mlsql.errors import DataError

if TYPE_CHECKING:
    import duckdb

    from mlsql._typing import Method, Unseen
    from mlsql.design.membership import Membership
    from mlsql.engine.duckdb import Progress
    from mlsql.formula.spec import ModelSpec
    from mlsql.pipeline.compare import StepUp
    from mlsql.pipeline.fitted import Fit

ROW, ADDED = "mlsql row", "mlsql added"


@dataclass(frozen=True, slots=True)
class _Scoring:
    """How rows get columns.

    Attributes
    ----------
    score : callable
        From rows and a connection to the same rows with columns added, in any order.
    added : sequence of str
    """

    score: Callable[[pl.DataFrame, duckdb.DuckDBPyConnection | None], pl.DataFrame | None]
    added: Sequence[str]

    def columns(self, rows: pl.DataFrame, con: duckdb.DuckDBPyConnection | None) -> pl.DataFrame:
        """The added columns alone, in the order of the rows: a database keeps none."""
        scored = self.score(rows.with_row_index(ROW), con)
        assert scored is not None
        return scored.sort(ROW).select(pl.col(self.added).cast(pl.Float64))


class Settings(TypedDict, total=False):
    """Arguments of `mlsql.fit` that the namespace passes on."""

    method: Method
    con: duckdb.DuckDBPyConnection | None
    level2: object
    weights: str | None
    groups: str | None
    memberships: Mapping[str, Membership] | None
    drop_collinear: bool
    max_evaluations: int
    progress: Progress | None


class SharedSettings(TypedDict, total=False):
    """Arguments of `mlsql.step_up` that the namespace passes on."""

    method: Method
    con: duckdb.DuckDBPyConnection | None
    level2: object
    weights: str | None
    groups: str | None


class _Models:
    """What both kinds of frame do alike: the frame is the `data` of a model."""

    _frame: pl.DataFrame | pl.LazyFrame

    def fit(self, formula: str | ModelSpec, **settings: Unpack[Settings]) -> Fit:
        """Fit a multilevel model to these rows: `mlsql.fit(formula, frame, **settings)`.

        A LazyFrame is streamed: each scan runs its query once, and reads the columns of the model alone.

        Parameters
        ----------
        formula : str or ModelSpec
        **settings
            As for `mlsql.fit`: method, level2, weights, ...

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> pupils = pl.scan_parquet(mlsql.example_data("hsb"))
        >>> pupils.filter(pl.col("sector") == 1).ml.fit("mathach ~ ses + (1 | school)").n_groups
        70
        """
        from mlsql.pipeline.fit import fit

        return fit(formula, self._frame, **settings)

    def group_effects(
        self, model: str | ModelSpec | Fit, group: str | None = None, **settings: Unpack[Settings]
    ) -> pl.DataFrame:
        """Effects of every group, with key columns named and typed as in this frame, to be joined to it.

        Parameters
        ----------
        model : str, ModelSpec or Fit
            A formula to fit to these rows, or a fit.
        group : str, optional
            The grouping factor, needed when the model has several.
        **settings
            As for `mlsql.fit`.

        Returns
        -------
        polars.DataFrame
            As `Fit.group_effects`.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> pupils = pl.read_parquet(mlsql.example_data("hsb"))
        >>> effects = pupils.ml.group_effects("mathach ~ 1 + (1 | school)")
        >>> pupils.join(effects.select("school", "coefficient"), on="school").height
        7185
        """
        from mlsql.pipeline.fitted import Fit

        found = model if isinstance(model, Fit) else self.fit(model, **settings)
        types = self._frame.collect_schema()
        own = {name.lower(): name for name in types}
        effects = found.group_effects(group)
        # an expression may be a key too; it is no column of the frame
        keys = {k.name: own[k.name.lower()] for k in found.estimates.design.keys if k.name.lower() in own}
        keys = {k: name for k, name in keys.items() if k in effects.columns}
        effects = effects.rename(keys)
        return effects.cast({name: types[name] for name in keys.values() if effects.schema[name] != types[name]})

    def step_up(self, formula: str | ModelSpec, **settings: Unpack[SharedSettings]) -> StepUp:
        """The textbook's sequence of models up to a final one: `mlsql.step_up(formula, frame, **settings)`."""
        from mlsql.pipeline.compare import step_up

        return step_up(formula, self._frame, **settings)

    def compare(self, *formulas: str | ModelSpec, **settings: Unpack[Settings]) -> pl.DataFrame:
        """Fit several models to these rows and compare each with the one before, as `mlsql.compare`.

        Parameters
        ----------
        *formulas : str or ModelSpec
            Two or more.
        **settings
            As for `mlsql.fit`; method="ML" when the models differ in fixed effects.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> pupils = pl.read_parquet(mlsql.example_data("hsb"))
        >>> models = "mathach ~ 1 + (1 | school)", "mathach ~ meanses + (1 | school)"
        >>> pupils.ml.compare(*models, method="ML")["chi2"].round(1).to_list()
        [None, 156.7]
        """
        from mlsql.pipeline.compare import compare

        return compare(*[self.fit(formula, **settings) for formula in formulas])


@pl.api.register_dataframe_namespace("ml")
class DataFrameNamespace(_Models):
    """`frame.ml`: models of a DataFrame's rows."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame: pl.DataFrame = frame

    def predict(self, fit: Fit, *, level2: object = None, unseen: Unseen = "error") -> pl.DataFrame:
        """The frame with predictions of a fit beside its columns, its rows in their order.

        Parameters
        ----------
        fit : Fit
        level2, unseen
            As for `Fit.predict`.

        Returns
        -------
        polars.DataFrame
            The frame's columns and population, population_std_error, conditional, conditional_std_error.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> pupils = pl.read_parquet(mlsql.example_data("hsb"))
        >>> pupils.ml.predict(pupils.ml.fit("mathach ~ ses + (1 | school)"))["conditional"].round(3).head(2).to_list()
        [7.371, 9.618]
        """
        return _eager(self._frame, fit, _predictions(fit, level2, unseen))

    def augment(self, fit: Fit, *, level2: object = None) -> pl.DataFrame:
        """The frame with fitted values and residuals beside its columns, its rows in their order.

        Parameters
        ----------
        fit : Fit
        level2 : like data, optional
            The table of groups, when the fit used one.

        Returns
        -------
        polars.DataFrame
            The frame's columns and fitted, fitted_population, residual, residual_population, residual_standardized;
            null in rows that the model leaves out.
        """
        return _eager(self._frame, fit, _augmented(fit, level2))


@pl.api.register_lazyframe_namespace("ml")
class LazyFrameNamespace(_Models):
    """`lazy.ml`: models of a LazyFrame's rows.

    `predict` and `augment` give a LazyFrame: nothing is computed before it is collected.  Then the columns that the
    model reads come to memory together; for data larger than that, `fit.predict(path, into="file.parquet")`.
    A model whose fit has a connection is scored on a cursor of it: temporary tables are not seen there.
    """

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame: pl.LazyFrame = frame

    def predict(self, fit: Fit, *, level2: object = None, unseen: Unseen = "error") -> pl.LazyFrame:
        """The frame with predictions of a fit beside its columns; see `DataFrameNamespace.predict`."""
        return _lazy(self._frame, fit, _predictions(fit, level2, unseen))

    def augment(self, fit: Fit, *, level2: object = None) -> pl.LazyFrame:
        """The frame with fitted values and residuals beside its columns; see `DataFrameNamespace.augment`."""
        return _lazy(self._frame, fit, _augmented(fit, level2))


def _predictions(fit: Fit, level2: object, unseen: Unseen) -> _Scoring:
    from mlsql.sql.scoring import PREDICTION_COLUMNS

    def score(rows: pl.DataFrame, con: duckdb.DuckDBPyConnection | None) -> pl.DataFrame | None:
        return fit.predict(rows, con=con, level2=level2, unseen=unseen)

    return _Scoring(score, PREDICTION_COLUMNS)


def _augmented(fit: Fit, level2: object) -> _Scoring:
    from mlsql.pipeline.factor_tables import new_inputs
    from mlsql.pipeline.score import score_rows
    from mlsql.sql.augment import AUGMENT_COLUMNS, augment_query

    if fit.estimates.levels is None:
        has_level2 = fit.estimates.design.schema.has_level2
        if level2 is None and has_level2:
            raise DataError("the model uses a level2 table; pass it as level2=")
        if level2 is not None and not has_level2:
            raise DataError("the model was fitted without a level2 table; leave level2= out")

    def score(rows: pl.DataFrame, con: duckdb.DuckDBPyConnection | None) -> pl.DataFrame | None:
        inputs = new_inputs(fit.estimates, rows, level2, con)
        return score_rows(fit.estimates, inputs, augment_query, AUGMENT_COLUMNS, None, "missing", False)

    return _Scoring(score, AUGMENT_COLUMNS)


def _eager(frame: pl.DataFrame, fit: Fit, scoring: _Scoring) -> pl.DataFrame:
    _check_new(frame.columns, scoring.added)
    return frame.hstack(scoring.columns(frame.select(_read_by(fit, frame.columns)), fit.inputs.con))


def _lazy(frame: pl.LazyFrame, fit: Fit, scoring: _Scoring) -> pl.LazyFrame:
    names = frame.collect_schema().names()
    _check_new(names, scoring.added)

    def columns(rows: pl.Series) -> pl.Series:
        # the connection itself may be busy: with the very query that waits for these rows
        con = fit.inputs.con
        return scoring.columns(rows.struct.unnest(), None if con is None else con.cursor()).to_struct(ADDED)

    dtype = pl.Struct(dict.fromkeys(scoring.added, pl.Float64()))
    scored = pl.struct(_read_by(fit, names)).map_batches(columns, return_dtype=dtype)
    return frame.with_columns(scored.alias(ADDED)).unnest(ADDED)


def _check_new(names: Sequence[str], added: Sequence[str]) -> None:
    taken = next((name for name in names if name.lower() in added), None)
    if taken is not None:
        raise DataError(f"the data have a column called {taken!r} already; select other columns or rename it")


def _read_by(fit: Fit, names: Sequence[str]) -> list[str]:
    """Those columns of the frame that the model reads; the others stay where they are."""
    import sqlglot
    from sqlglot import exp

    read = set()
    for item in fit.estimates.design.schema.inputs:
        for column in sqlglot.parse_one(item.sql, dialect="duckdb").find_all(exp.Column):
            read.add(column.parts[0].name.lower())
    return [name for name in names if name.lower() in read]
