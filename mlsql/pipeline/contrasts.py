"""`fit.contrasts`: linear combinations of the fixed effects that users ask for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlsql._arrays import Array
from mlsql._typing import DfMethod, Vcov
from mlsql.design.columns import Variable
from mlsql.errors import FitError
from mlsql.inference.fixed_effects import check_level
from mlsql.inference.hypotheses import make_hypothesis
from mlsql.inference.reference import Reference, make_reference
from mlsql.inference.slopes import johnson_neyman, slope_contrasts
from mlsql.moments.shifts import Shifts
from mlsql.pipeline.products import Products
from mlsql.report.fixed import contrasts_table, named
from mlsql.results.estimates import Estimates
from mlsql.results.points import did_you_mean, make_points

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Contrasts of the fixed effects.  `df` and `vcov` are those of `Fit.inference`.

    Attributes
    ----------
    products : Products
    """

    products: Products

    def estimate(
        self, combinations: object, df: DfMethod | None = None, vcov: Vcov = "model", level: float = 0.95
    ) -> pl.DataFrame:
        """Linear combinations with standard errors, each tested against its value.

        Parameters
        ----------
        combinations : str, list of str, or (r, p) matrix
            As `Fit.test` takes hypotheses; here every row stands by itself.

        Returns
        -------
        polars.DataFrame
            contrast, null (the value under the null hypothesis), estimate, std_error, df, statistic, p_value, conf_low,
            conf_high, df_method, vcov.

        Raises
        ------
        FitError
            As `Fit.test`.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ sector*ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.contrasts.estimate("ses + sector:ses")["estimate"].round(3).to_list()
        [1.638]
        """
        rows = make_hypothesis(combinations, self._estimates.fixed_names)
        columns = {"contrast": rows.labels, "null": rows.values}
        return contrasts_table(self._estimates, self._reference(df, vcov), columns, rows.contrasts, level, rows.values)

    def simple_slopes(
        self,
        predictor: str,
        at: Mapping[str, object] | None = None,
        df: DfMethod | None = None,
        vcov: Vcov = "model",
        level: float = 0.95,
    ) -> pl.DataFrame:
        """The slope of a predictor where its moderators have given values.

        Parameters
        ----------
        predictor : str
            As in the formula, `group_center(ses)`; an indicator of a factor, `sex[M]`, for its difference from the
            reference.
        at : mapping of str to value(s), optional
            Moderators by name, on the scale of the model's columns: `{"sector": [0, 1]}`; sequences are columns of one
            table.  Those not named are at 0, factors at their reference.

        Returns
        -------
        polars.DataFrame
            predictor, one column for each moderator, estimate, std_error, df, statistic, p_value, conf_low, conf_high,
            df_method, vcov.

        Raises
        ------
        FitError
            For names that are not in the model.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ sector*ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.contrasts.simple_slopes("ses", at={"sector": [0, 1]})["estimate"].round(3).to_list()
        [2.951, 1.638]
        """
        variable = self._variable(predictor)
        design = self._estimates.design
        beside = tuple(c for c in design.fixed.columns if variable in c.variables)
        moderators = [type(c)(tuple(v for v in c.variables if v != variable)) for c in beside]
        points = make_points(design, moderators, at, role="moderators of " + predictor, together=False)
        L = slope_contrasts(design.fixed.columns, variable, points)
        shown = {
            v.name if v.name not in TAKEN else f"at_{v.name}": values
            for v, values in zip(points.variables, points.values, strict=True)
        }
        columns = {"predictor": [predictor] * len(L)} | shown
        return contrasts_table(self._estimates, self._reference(df, vcov), columns, L, level)

    def johnson_neyman(
        self,
        predictor: str,
        moderator: str,
        at: Mapping[str, object] | None = None,
        df: DfMethod | None = None,
        vcov: Vcov = "model",
        level: float = 0.95,
    ) -> pl.DataFrame:
        """The values of a moderator for which a predictor's slope differs from zero.

        Parameters
        ----------
        predictor, moderator : str
            Two variables of the model whose product is a fixed effect.
        at : mapping of str to number, optional
            Other moderators; 0 when not named.

        Returns
        -------
        polars.DataFrame
            One row: predictor, moderator, significant ("outside" or "between" low and high, "everywhere", "nowhere"),
            low, high, crossover (where the slope is zero), moderator_minimum, moderator_maximum (in the data; null for
            a centred moderator), df_method, vcov.

        Raises
        ------
        FitError
            When the slope does not depend on the moderator, or not linearly.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ meanses*ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.contrasts.johnson_neyman("ses", "meanses")["significant"].to_list()
        ['between']
        """
        check_level(level)
        variable, other = self._variable(predictor), self._variable(moderator)
        design = self._estimates.design
        columns = design.fixed.columns
        orders = [c.variables.count(other) for c in columns if variable in c.variables]
        if variable == other:
            raise FitError(f"{predictor} is both predictor and moderator; a slope is moderated by another variable")
        if moderator in (at or {}):
            raise FitError(f"at gives {moderator} too, whose values johnson_neyman looks for; leave it out of at")
        if max(orders) == 0:
            raise FitError(
                f"the slope of {predictor} does not depend on {moderator}: there is no fixed effect of their product; "
                f"add {predictor}:{moderator} to the formula"
            )
        if max(orders) > 1:
            raise FitError(f"the slope of {predictor} is not linear in {moderator}; use simple_slopes at values of it")
        beside = [type(c)(tuple(v for v in c.variables if v != variable)) for c in columns if variable in c.variables]

        def contrast(value: float) -> Array:
            points = make_points(design, beside, {**(at or {}), moderator: value}, role="moderators", together=False)
            L = slope_contrasts(columns, variable, points)
            if len(L) > 1:
                raise FitError("johnson_neyman takes one value of each other moderator in at=")
            return np.asarray(L[0])

        reference = self._reference(df, vcov)
        found = johnson_neyman(self._estimates.beta, reference, contrast, level)
        minimum, maximum = self._range(other)
        return _one_row(
            {
                "predictor": predictor,
                "moderator": moderator,
                "significant": found.significant,
                "low": found.low,
                "high": found.high,
                "crossover": found.crossover,
                "moderator_minimum": minimum,
                "moderator_maximum": maximum,
            }
            | {k: v[0] for k, v in named(reference, 1).items()}
        )

    def contextual_effect(
        self,
        within: str,
        mean: str | None = None,
        df: DfMethod | None = None,
        vcov: Vcov = "model",
        level: float = 0.95,
    ) -> pl.DataFrame:
        """Within, between and contextual slope of a level-1 predictor (Raudenbush & Bryk, 5.42).

        Parameters
        ----------
        within : str
            The level-1 predictor as in the formula: `ses`, `group_center(ses)`, `grand_center(ses)`.  With several
            factors any predictor that varies within the groups of the mean.
        mean : str, optional
            The fixed effect of its group mean: `group_mean(ses)`, or a column such as `meanses`; `group_mean` of the
            same column when not given.

        Returns
        -------
        polars.DataFrame
            Rows within, between, contextual (between minus within): effect, estimate, std_error, df, statistic,
            p_value, conf_low, conf_high, df_method, vcov.

        Raises
        ------
        FitError
            When one of the two is not in the model; when the model has means of the predictor over several factors.

        Examples
        --------
        >>> import mlsql
        >>> model = "mathach ~ group_mean(ses) + group_center(ses) + (1 | school)"
        >>> fit = mlsql.fit(model, mlsql.example_data("hsb"))
        >>> fit.contrasts.contextual_effect("group_center(ses)")["estimate"].round(3).to_list()
        [2.191, 5.866, 3.675]
        """
        inner = self._variable(within)
        if inner.level != 1 and self._estimates.levels is None:
            raise FitError(
                f"{within} is constant within groups; name the level-1 predictor, and its group mean as mean="
            )
        outer = self._mean_of(inner, mean)
        if self._estimates.levels is not None:
            self._check_levels(inner, outer)
        names = self._estimates.fixed_names
        for variable in (inner, outer):
            if variable.name not in names:
                raise FitError(
                    f"{variable.name} has no fixed effect of its own, only in products; add it to the formula"
                )
        w, b = np.eye(len(names))[[names.index(inner.name), names.index(outer.name)]]
        centred = inner.centering == "group"
        L = np.array([w, b, b - w] if centred else [w, b + w, b])
        columns = {"effect": ["within", "between", "contextual"]}
        return contrasts_table(self._estimates, self._reference(df, vcov), columns, L, level)

    @property
    def _estimates(self) -> Estimates:
        return self.products.estimates

    def _reference(self, df: DfMethod | None, vcov: Vcov) -> Reference:
        return make_reference(self._estimates, self.products.by_group, df, vcov)

    def _variables(self) -> dict[str, Variable]:
        return {v.name: v for c in self._estimates.design.fixed.columns for v in c.variables}

    def _variable(self, name: str) -> Variable:
        known = self._variables()
        if name not in known:
            if not known:
                raise FitError(f"{name!r} is not in the model, which has no predictors")
            raise FitError(f"{name!r} is not a predictor of the fixed part; {did_you_mean(name, list(known))}")
        return known[name]

    def _mean_of(self, inner: Variable, mean: str | None) -> Variable:
        if mean is not None:
            found = self._variable(mean)
            if found.level != 2:
                raise FitError(f"{mean} varies within groups; the mean of {inner.name} has one value per group")
            return found
        for variable in self._means(inner):
            return variable
        of = inner.source if self._estimates.levels is None else f"{inner.source}, factor"
        raise FitError(
            f"the group mean of {inner.name} is not among the fixed effects; add group_mean({of}) to the "
            "formula, or name the column that holds it with mean="
        )

    def _means(self, inner: Variable) -> list[Variable]:
        return [v for v in self._variables().values() if v.origin == "group_mean" and v.sql == inner.sql]

    def _check_levels(self, inner: Variable, outer: Variable) -> None:
        """With several factors the mean is of groups within which the predictor varies, and the only one."""
        design, moments = self._estimates.design, self._estimates.moments
        means = self._means(inner)
        factors = dict.fromkeys(v.group for v in (*means, inner, outer) if v.group is not None)
        if len(means) > 1 or len(factors) > 1:
            raise FitError(
                f"{inner.name} and its means are of several grouping factors ({', '.join(factors)}), so the slope "
                "between groups is a sum of several coefficients; test it with contrasts.estimate()"
            )
        shifts = Shifts(design, moments)
        known = [v for v in (inner, outer) if v.level == 2]
        values = {v: shifts.pivoted_values(v) for v in known}
        if not any(all((i.constant(values[v]) is not None) == (v == outer) for v in known) for i in moments.incidences):
            raise FitError(
                f"there is no grouping factor within which {inner.name} varies and {outer.name} does not: name the "
                "predictor, and its mean as mean="
            )

    def _range(self, variable: Variable) -> tuple[float | None, float | None]:
        survey = self._estimates.design.survey
        if survey is None or variable.centering != "none" or variable.origin == "group_mean":
            return None, None
        for column in survey.columns:
            if column.input.sql == variable.sql and column.input.numeric:
                return column.minimum, column.maximum
        return None, None


TAKEN = frozenset(
    ("predictor", "estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high", "df_method", "vcov")
)


def _one_row(values: dict[str, object]) -> pl.DataFrame:
    import polars as pl

    numbers = dict.fromkeys(("low", "high", "crossover", "moderator_minimum", "moderator_maximum"), pl.Float64)
    return pl.DataFrame([values], schema_overrides=numbers).with_columns(pl.selectors.float().fill_nan(None))
