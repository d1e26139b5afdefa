"""What the `marginaleffects` package asks of a model class: predictions of the fixed part for any coefficients."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from mlsql._arrays import Array
from mlsql.design.design import Design
from mlsql.design.schema import columns_read
from mlsql.errors import DataError, FitError
from mlsql.inference.fixed_effects import fixed_effects
from mlsql.pipeline.design_matrix import design_matrix, mean_columns, raw_columns
from mlsql.pipeline.model_frame import model_frame
from mlsql.pipeline.prepare import Inputs, make_inputs
from mlsql.results.estimates import Estimates

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_RESERVED = {"rowid", "type", "group", "term", "contrast", "estimate", "std_error", "statistic", "p_value", "s_value"}
_RESERVED |= {"conf_low", "conf_high"}
"""Names of marginaleffects' own columns, which it refuses in data."""


def marginal_model(
    estimates: Estimates,
    inputs: Inputs,
    data: object = None,
    *,
    con: duckdb.DuckDBPyConnection | None = None,
    df: float | None = None,
) -> Any:
    """See `Fit.as_marginaleffects`."""
    try:
        base = import_module("marginaleffects.classes").ModelAbstract
    except ImportError as error:
        raise FitError("the package marginaleffects is not installed: pip install marginaleffects") from error
    con = con if con is not None else inputs.con
    rows = inputs.rows if data is None else make_inputs(data, None, con).rows
    frame = model_frame(estimates, replace(inputs, rows=rows, con=con))
    read = {c.lower() for c in raw_columns(estimates.design)}
    frame = frame.drop(c for c in frame.columns if c in _RESERVED and c not in read)
    # a subclass, which is how marginaleffects tells its models; made here, for the package is optional
    return type(MarginalModel.__name__, (MarginalModel, base), {})(estimates, frame, con, df)


class MarginalModel:
    """The interface of `marginaleffects.classes.ModelAbstract`, for the population's predictions of a fit.

    Attributes
    ----------
    model : Estimates
    response_name : str
    df_resid : float
        Degrees of freedom of tests and intervals; absent when they are to be normal.
    """

    def __init__(
        self, estimates: Estimates, frame: pl.DataFrame, con: duckdb.DuckDBPyConnection | None, df: float | None
    ) -> None:
        self.model = estimates
        self.response_name = estimates.design.spec.outcome.name
        self._frame, self._con, self._df = frame, con, df
        self._types = _variable_types(estimates.design, frame)
        if df is not None:
            self.df_resid = float(df)

    def get_modeldata(self) -> pl.DataFrame:
        """Rows of the analysis, the model's raw columns."""
        return self._frame

    def get_formula(self) -> Any:
        """A callable: marginaleffects must not read mlsql's formula, whose calls are SQL."""
        return self.get_exog

    def get_coef(self) -> Array:
        """(p,) fixed effects."""
        return self.model.beta

    def get_coefnames(self) -> Any:
        """(p,) their terms."""
        return np.array(self.model.fixed_names)

    def get_vcov(self, vcov: object = True) -> Array | None:
        """(p, p) covariance matrix of the fixed effects; None for `vcov=False`."""
        if vcov is None or isinstance(vcov, bool):
            return self.model.vcov if vcov else None
        raise FitError(f"vcov is {vcov!r}; it is True, False, or a matrix for the {len(self.model.beta)} fixed effects")

    def get_df(self) -> float:
        """Denominator of joint F tests: the user's, or the smallest of the fixed effects' own.

        Raises
        ------
        FitError
            When the terms are not the predictors, by which marginaleffects finds and labels what it tests jointly.
        """
        if [n for n in self.model.fixed_names if n != "(Intercept)"] != self._predictors():
            raise FitError(
                "marginaleffects tests predictors jointly, and the terms of this model are not plain predictors; "
                "test terms with the fit's own methods"
            )
        return float(fixed_effects(self.model).df.min()) if self._df is None else self._df

    def get_variable_type(self, name: str | None = None) -> Any:
        """The type of one column, or of all."""
        return self._types.get(name, self._types) if name is not None else self._types

    def find_variables(self) -> list[str]:
        """The outcome, the predictors, and the group means, which a balanced grid holds fixed."""
        wanted = [self.response_name, *self._predictors(), *mean_columns(self.model.design).values()]
        return [c for c in wanted if c in self._types]

    def find_response(self) -> str:
        """The outcome."""
        return self.response_name

    def find_predictors(self) -> list[str] | None:
        """Raw columns that the fixed part reads and that can be varied; None without any."""
        return self._predictors() or None

    def get_exog(self, newdata: pl.DataFrame) -> Array:
        """(n, p) X; with an offset in the model (n, p + 1), the offset last.

        Raises
        ------
        DataError
            For rows without a value of some column of X.
        """
        X, offset = design_matrix(self.model, newdata, self._con)
        names = list(self.model.fixed_names)
        if self.model.design.spec.offset:
            X, names = np.column_stack([X, offset]), [*names, "offset"]
        missing = np.isnan(X)
        if missing.any():
            worst = int(missing.sum(axis=0).argmax())
            raise DataError(
                f"{names[worst]} has no value in {int(missing[:, worst].sum()):,} of {len(X):,} rows: a predictor is "
                "missing, or the fit did not see the group or the factor's level"
            )
        return X

    def get_predict(self, params: Array, newdata: Array) -> pl.DataFrame:
        """Predictions from what `get_exog` returned: rowid, estimate."""
        import polars as pl

        p = len(params)
        estimate = newdata[:, :p] @ np.asarray(params) + newdata[:, p:].sum(axis=1)
        return pl.DataFrame({"rowid": pl.Series(np.arange(len(estimate)), dtype=pl.Int32), "estimate": estimate})

    def get_autodiff_args(self) -> dict[str, str | None] | str:
        """Predictions are linear in the coefficients, which makes derivatives exact."""
        if self.model.design.spec.offset:
            return "models with an offset"
        return {"model_type": "linear", "family": None, "link": None}

    def _predictors(self) -> list[str]:
        columns = {c.lower(): c for c in self._frame.columns}
        found = [columns[c.lower()] for c in raw_columns(self.model.design)]
        return [c for c in dict.fromkeys(found) if self._types[c] != "unknown"]


def _variable_types(design: Design, frame: pl.DataFrame) -> dict[str, str]:
    """How each column can be varied, in the words of marginaleffects."""
    coded = {c.lower() for i in design.schema.of_role("factor", "key") for c in columns_read(i.sql)}
    return {c: _variable_type(frame[c], c.lower() in coded) for c in frame.columns}


def _variable_type(values: pl.Series, coded: bool) -> str:
    import polars as pl

    kind = values.dtype
    if kind == pl.Boolean:
        return "boolean"
    if coded or isinstance(kind, pl.Enum):
        return "character"
    if not kind.is_numeric():
        return "unknown"
    if ((values == 0) | (values == 1)).all():
        return "binary"
    return "integer" if kind.is_integer() else "numeric"
