"""Expressions of the namespace `ml`: centring, means and shrunken means of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import polars as pl
import polars.selectors as cs

from mlsql.errors import DataError, FitError

if TYPE_CHECKING:
    from mlsql._typing import Method

VALUE, GROUP = "value", "group"


@pl.api.register_expr_namespace("ml")
class ExprNamespace:
    """`pl.col(...).ml`: what multilevel models do to a column before it is a predictor.

    Groups are columns (names or expressions), several for nested keys.  As in a model, a value that is null or NaN
    counts for no mean, and a row whose group is null or NaN has no group: its result is null.  A model leaves a row
    out when *any* of its columns is missing there; name those columns as `complete` for the model's own means.

    Nothing is computed before the query runs.  `.over(...)` around an expression does all of it within each part:
    `grand_center().over("year")` centres at the mean of the year, `group_center("school").over("year")` at the mean of
    the school's rows of that year, `shrunken_mean("school").over("year")` fits each year's model.  Polars before 1.37
    does not nest windows: there, of these, only `grand_center` and `shrunken_mean` without variance components work.
    """

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def grand_center(self, *, complete: Sequence[str] = ()) -> pl.Expr:
        """Deviations from the mean of all rows, as `grand_center(x)` in a formula.

        Parameters
        ----------
        complete : sequence of str
            Columns that must not be missing in the rows that the mean is over.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> pl.DataFrame({"x": [1, 2, 6]}).select(pl.col("x").ml.grand_center())["x"].to_list()
        [-2.0, -1.0, 3.0]
        """
        return self._value - _among(self._value, complete).mean()

    def group_mean(self, *groups: str | pl.Expr, complete: Sequence[str] = ()) -> pl.Expr:
        """The mean of the row's group, as `group_mean(x)` in a formula.

        Parameters
        ----------
        *groups : str or expression
            The grouping columns.
        complete : sequence of str
            As for `grand_center`.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> frame = pl.DataFrame({"g": ["a", "a", "b"], "x": [1, 3, 5]})
        >>> frame.select(pl.col("x").ml.group_mean("g"))["x"].to_list()
        [2.0, 2.0, 5.0]
        """
        keys = _keys(groups)
        return pl.when(_grouped(groups)).then(_among(self._value, complete).mean().over(keys))

    def group_center(self, *groups: str | pl.Expr, complete: Sequence[str] = ()) -> pl.Expr:
        """Deviations from the mean of the row's group, as `group_center(x)` in a formula.

        Parameters
        ----------
        *groups, complete
            As for `group_mean`.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> frame = pl.DataFrame({"g": ["a", "a", "b"], "x": [1, 3, 5]})
        >>> frame.select(pl.col("x").ml.group_center("g"))["x"].to_list()
        [-1.0, 1.0, 0.0]
        """
        return self._value - self.group_mean(*groups, complete=complete)

    def shrunken_mean(
        self,
        *groups: str | pl.Expr,
        tau00: float | None = None,
        sigma2: float | None = None,
        method: Method = "REML",
        complete: Sequence[str] = (),
    ) -> pl.Expr:
        """The empirical-Bayes mean of the row's group, under the one-way random-effects ANOVA.

        It is the group's own mean drawn towards the overall mean, the more the fewer rows the group has: the
        coefficient of `x ~ 1 + (1 | group)`.  Without variance components the model is fitted by `mlsql.fit` when the
        query reaches the expression, which brings this column and the groups to memory; with them it is arithmetic
        that Polars streams.  The result has a value in every row of a group with any value, null elsewhere.

        Parameters
        ----------
        *groups, complete
            As for `group_mean`.
        tau00, sigma2 : float, optional
            Variance between groups and within them, both or neither.
        method : {"REML", "ML"}
            How they are estimated when not given.

        Raises
        ------
        FitError
            One variance component without the other, or none that could be one; a fit that does not converge.

        Examples
        --------
        >>> import polars as pl
        >>> import mlsql.polars
        >>> frame = pl.DataFrame({"g": ["a", "a", "a", "b"], "x": [1, 2, 3, 6]})
        >>> shrunken = pl.col("x").ml.shrunken_mean("g", tau00=1.0, sigma2=1.0)
        >>> frame.select(shrunken.round(3))["x"].to_list()
        [2.4, 2.4, 2.4, 4.8]
        """
        value = _among(self._value, complete)
        if tau00 is None and sigma2 is None:
            return _fitted_means(value, groups, method)
        _check_components(tau00, sigma2)
        size = pl.when(_grouped(groups)).then(value.count().over(_keys(groups)))
        # 1 / (n tau00 + sigma2): what a row weighs in the overall mean, its group's precision spread over the group
        weight = (size * tau00 + sigma2).pow(-1.0)
        overall = (value * weight).sum() / pl.when(value.is_not_null()).then(weight).sum()
        mean = self.group_mean(*groups, complete=complete)
        return mean + (sigma2 * weight) * (overall - mean)

    @property
    def _value(self) -> pl.Expr:
        return self._expr.cast(pl.Float64).fill_nan(None)


def _keys(groups: Sequence[str | pl.Expr]) -> list[pl.Expr]:
    if not groups:
        raise DataError("name the grouping column: group_mean('school')")
    return [pl.col(g) if isinstance(g, str) else g for g in groups]


def _grouped(groups: Sequence[str | pl.Expr]) -> pl.Expr:
    """The row has a group."""
    names = [g for g in groups if isinstance(g, str)]
    return pl.all_horizontal(*(key.is_not_null() for key in _keys(groups)), ~_nan(names))


def _nan(names: Sequence[str]) -> pl.Expr:
    """One of the named columns holds NaN; only floating ones can."""
    found = (cs.by_name(names) & cs.float()).is_nan().fill_null(False)
    return pl.any_horizontal(pl.lit(False), found)


def _among(value: pl.Expr, complete: Sequence[str]) -> pl.Expr:
    """The value where none of the named columns is missing."""
    if isinstance(complete, str):
        complete = [complete]
    if not complete:
        return value
    return pl.when(pl.all_horizontal(*(pl.col(c).is_not_null() for c in complete), ~_nan(complete))).then(value)


def _check_components(tau00: float | None, sigma2: float | None) -> None:
    if tau00 is None or sigma2 is None:
        raise FitError("give both tau00 and sigma2, or neither")
    for name, number, least in (("tau00", tau00, "0 or more"), ("sigma2", sigma2, "positive")):
        possible = isinstance(number, Real) and math.isfinite(number) and number >= 0
        if not possible or (name == "sigma2" and number == 0):
            raise FitError(f"{name} is {number!r}; a variance is a number, {least}")


def _fitted_means(value: pl.Expr, groups: Sequence[str | pl.Expr], method: Method) -> pl.Expr:
    """The coefficients of the fitted model, one for each row; the columns arrive when the query runs."""
    labels = [f"mlsql key {i}" for i in range(len(groups))]

    def means(rows: pl.Series) -> pl.Series:
        # here for the reason given in frames.py
        from mlsql.pipeline.fit import fit

        frame = rows.struct.unnest()
        name = frame.columns[0]
        used = frame.drop_nulls(name)
        # numbers stand for the keys, in their order: those may be of any type
        numbers = used.select(labels).unique().sort(labels).with_row_index(GROUP)
        data = used.join(numbers, on=labels).select(pl.col(name).alias(VALUE), GROUP)
        found = fit(f"{VALUE} ~ 1 + (1 | {GROUP})", data, method=method)
        if not found.converged:
            raise FitError(f"the means of groups could not be estimated: {found.status.value}")
        coefficients = numbers.join(found.group_effects().select(GROUP, "coefficient"), on=GROUP)
        joined = frame.join(coefficients, on=labels, how="left", maintain_order="left")
        return joined["coefficient"].alias(name)

    keys = [key.alias(label) for key, label in zip(_keys(groups), labels, strict=True)]
    # a struct: old versions of Polars take a function of several columns for one of single rows, and give it parts
    rows = pl.struct(pl.when(_grouped(groups)).then(value), *keys)
    return rows.map_batches(means, return_dtype=pl.Float64)
