"""`fit.comparators`: regressions that take the groups less seriously, from the fit's own moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy.special import chdtrc, stdtr

from mlsql._arrays import Array
from mlsql.diagnostics.comparators import (
    Regression,
    between_regression,
    between_share,
    contextual_pairs,
    design_effect,
    total_regression,
    within_regression,
)
from mlsql.diagnostics.group_ols import group_least_squares
from mlsql.errors import DesignError, FitError
from mlsql.formula.terms import INTERCEPT, Atom, RandomBlock, Term
from mlsql.inference.fixed_effects import fixed_effects
from mlsql.pipeline.products import Products
from mlsql.pipeline.submodels import plain_text, predictor, simple_model, submodel_estimates, with_group_means
from mlsql.results.estimates import Estimates
from mlsql.results.one_factor import require_one_factor

if TYPE_CHECKING:
    import polars as pl

RobustVcov = Literal["model", "CR0", "CR1"]

GROUP_COLUMNS = ("term", "estimate", "std_error", "n", "df", "residual_sd", "full_rank")


@dataclass(frozen=True, slots=True)
class Comparators:
    """What other analyses of the same rows would have said.

    Weights of the model are used in all of them; group means are then weighted means.

    Attributes
    ----------
    products : Products
    """

    products: Products

    def ols(self, vcov: RobustVcov = "model") -> pl.DataFrame:
        """Regression of the fit's fixed part on rows, the groups ignored.

        Parameters
        ----------
        vcov : {"model", "CR0", "CR1"}
            Which standard error the tests use.  CR0 (Raudenbush & Bryk 9.15) and CR1 are cluster-robust by group and
            take J - 1 degrees of freedom, the model's N - p.  With nested factors groups are those of the coarsest;
            crossed factors have no robust errors (null).

        Returns
        -------
        polars.DataFrame
            term, estimate, std_error (of independent rows), robust_std_error (CR0; CR1 when chosen), ratio (robust to
            model-based), df, statistic, p_value, vcov, note.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ sector + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.comparators.ols()["ratio"].round(2).to_list()
        [2.52, 2.64]
        """
        estimates, levels = self.products.estimates, self.products.estimates.levels
        if levels is None:
            products = self.products.by_group()
        elif levels.top is not None:
            products = estimates.moments.incidences[levels.top].total(self.products.by_group())
        else:
            products = estimates.statistics.XytXy[:, :, None]
        found = total_regression(estimates, products)
        return _robust_table(estimates, found, vcov, _notes(estimates, found, "zero in every row", "a combination of"))

    def between(self, weighted: bool = False) -> pl.DataFrame:
        """Regression of the group means of the outcome on those of the fixed columns; each group is one point.

        Parameters
        ----------
        weighted : bool
            Give each group its number of rows (sum of weights).

        Returns
        -------
        polars.DataFrame
            term, estimate, std_error, df, statistic, p_value, note.  A column that does not vary between groups, as one
            centred within groups, has no estimate and a note that says so.
        """
        estimates = self._one_factor("between")
        found = between_regression(estimates, weighted)
        notes = _notes(estimates, found, "its group means do not vary", "its group means are a combination of those of")
        return _table(estimates, found, {"std_error": np.sqrt(np.diag(found.covariance))}, found.df, notes)

    def within(self, vcov: RobustVcov = "model") -> pl.DataFrame:
        """Fixed-effects regression: an intercept for each group instead of a random one.

        Parameters
        ----------
        vcov : {"model", "CR0", "CR1"}
            As for `ols`; the model's degrees of freedom are N - J - k.

        Returns
        -------
        polars.DataFrame
            As for `ols`.  Columns with one value per group have no estimate and a note that says so.
        """
        estimates = self._one_factor("within")
        found = within_regression(estimates, self.products.by_group())
        notes = _notes(
            estimates,
            found,
            "one value per group, which the groups' intercepts absorb",
            "within groups a combination of",
        )
        return _robust_table(estimates, found, vcov, notes)

    def per_group(self) -> pl.DataFrame:
        """One regression for each group on the level-1 columns, nothing pooled.

        Returns
        -------
        polars.DataFrame
            Key column(s), term, estimate, std_error (from the group's own residual variance), n, df, residual_sd,
            full_rank; J rows a term.  Groups whose rows do not determine every coefficient are there with
            full_rank false and no estimates.  A key called like one of these columns is shown as `group_<key>`.
        """
        import polars as pl

        self._one_factor("per_group")
        design, moments = self.products.complete()
        found = group_least_squares(design, moments)
        keys = pl.from_arrow(moments.keys)
        assert isinstance(keys, pl.DataFrame)
        keys = keys.rename({k: f"group_{k}" for k in keys.columns if k in GROUP_COLUMNS})
        errors, m, J = found.std_error, len(found.columns), moments.n_groups
        frames = [
            keys.with_columns(
                pl.lit(column.name).alias("term"),
                _series("estimate", found.coefficients[c]),
                _series("std_error", errors[c]),
                pl.Series("n", found.n),
                pl.Series("df", found.df),
                _series("residual_sd", np.sqrt(found.sigma2)),
                pl.Series("full_rank", found.full_rank),
            )
            for c, column in enumerate(found.columns)
        ]
        return pl.concat(frames)[np.arange(J * m).reshape(m, J).T.ravel()]

    def slopes(self, term: str) -> pl.DataFrame:
        """The slope of one level-1 predictor as each analysis estimates it (Raudenbush & Bryk, table 5.10).

        Other predictors are left aside.  The rows: `total`, OLS on rows; `between` and `between_weighted`, OLS on group
        means, each counted once or by its rows; `within`, an intercept for each group; `multilevel`, y ~ x + (1 | g), a
        mixture of between and within unless they agree; `multilevel_random_slope`, y ~ group_center(x) +
        (group_center(x) | g).

        Parameters
        ----------
        term : str
            A level-1 predictor of the fit, centred or not.

        Returns
        -------
        polars.DataFrame
            estimator, estimate, std_error, df, statistic, p_value, weight_in_total (eta squared for between_weighted,
            1 - eta squared for within: their weighted sum is total, 5.38), note.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.comparators.slopes("ses")["estimate"].round(3).to_list()
        [3.184, 5.909, 5.717, 2.191, 2.39, 2.193]
        """
        import polars as pl

        self._one_factor("slopes")
        raw = predictor(self.products, term)
        simple = simple_model(self.products.estimates.design.spec, raw)
        estimates = submodel_estimates(self.products, simple)
        products = Products(estimates, self.products.inputs).by_group()
        total, within = total_regression(estimates, products), within_regression(estimates, products)
        once, by_rows = between_regression(estimates, False), between_regression(estimates, True)
        eta2 = between_share(estimates, products, 1)
        parts = [f"{(1.0 - eta2):.5f} x {within.beta[0]:.5f}"]
        if 1 in by_rows.columns:
            parts.insert(0, f"{eta2:.5f} x {by_rows.beta[1]:.5f}")
        rows = [
            _slope_row("total", total, None, "= " + " + ".join(parts)),
            _slope_row("between", once, None, "each group's mean counts once"),
            _slope_row("between_weighted", by_rows, eta2, "each group's mean counts by its rows"),
            _slope_row("within", within, 1.0 - eta2, "an intercept for each group"),
            _fit_row("multilevel", estimates),
            self._centred_row(raw),
        ]
        numbers = dict.fromkeys(("estimate", "std_error", "df", "statistic", "p_value", "weight_in_total"), pl.Float64)
        return pl.DataFrame(rows, schema={"estimator": pl.String} | numbers | {"note": pl.String}, orient="row")

    def hausman(self) -> pl.DataFrame:
        """Is the slope between groups the slope within them?  Mundlak's form of Hausman's test.

        The group mean of every level-1 predictor is added to the fit's model (unless it is there) and refitted; the
        contextual effect, between minus within, is the mean's coefficient, or its difference from the within slope
        when the predictor is centred within groups.  Predictors centred within groups without their mean in the model
        assume nothing about the slope between and are left aside.  Products keep their form: beside one, the effects
        are those where the other factor is 0.

        Returns
        -------
        polars.DataFrame
            One row a predictor: term, within, between, contextual, std_error (of the contextual effect), chi2, df,
            p_value, note; a last row `(joint)` tests all at once.

        Raises
        ------
        FitError
            When there is no predictor to test.
        """
        import polars as pl

        means = "put group_mean(x, factor) into the formula; contrasts.contextual_effect() tests it"
        self._one_factor("hausman", means)
        estimates, skipped = with_group_means(self.products)
        pairs = contextual_pairs(estimates.design)
        if not pairs:
            why = "; ".join(f"{name}: {note}" for name, note in skipped)
            raise FitError(
                "there is nothing to test: no level-1 predictor has its slopes within and between groups set equal, or "
                "both estimated" + (f" ({why})" if why else "")
            )
        beta, vcov = estimates.beta, estimates.vcov
        L = np.zeros((len(pairs), len(beta)))
        rows: list[tuple[Any, ...]] = []
        for r, (x, mean, centred) in enumerate(pairs):
            L[r, mean] = 1.0
            L[r, x] = -1.0 if centred else 0.0
            effect, error = float(L[r] @ beta), float(np.sqrt(L[r] @ vcov @ L[r]))
            chi2 = (effect / error) ** 2
            within = float(beta[x])
            p_value = float(chdtrc(1, chi2))
            rows.append((estimates.fixed_names[x], within, within + effect, effect, error, chi2, 1, p_value, None))
        joint = float(L @ beta @ np.linalg.solve(L @ vcov @ L.T, L @ beta))
        rows += [(name, None, None, None, None, None, None, None, note) for name, note in skipped]
        rows.append(("(joint)", None, None, None, None, joint, len(L), float(chdtrc(len(L), joint)), None))
        names = ("term", "within", "between", "contextual", "std_error", "chi2", "df", "p_value", "note")
        types = dict.fromkeys(names, pl.Float64) | {"term": pl.String, "df": pl.Int64, "note": pl.String}
        return pl.DataFrame(rows, schema=types, orient="row")

    def design_effects(self) -> pl.DataFrame:
        """How much too small standard errors are when the groups are ignored.

        Returns
        -------
        polars.DataFrame
            term, ols_std_error, std_error (of the fit), ratio (OLS to the fit's), expected_ratio (sqrt(1 - lambda),
            5.15; for terms of level 2), mean_group_size, icc, reliability (lambda), design_effect
            (1 + (mean_group_size - 1) icc).  The last four belong to the fit's intercept variance, given its
            predictors, and are null without a random intercept and with several grouping factors.
        """
        import polars as pl

        estimates = self.products.estimates
        # standard errors of independent rows need no products by group, so no scan
        found = total_regression(estimates, estimates.statistics.XytXy[:, :, None])
        ols = np.full(estimates.statistics.p, np.nan)
        ols[list(found.columns)] = np.sqrt(np.diag(found.covariance))
        error, effect = np.sqrt(np.diag(estimates.vcov)), design_effect(estimates)
        upper = [not c.level1 for c in estimates.design.fixed.columns]
        frame = pl.DataFrame({"term": estimates.fixed_names, "std_error": error, "ratio": ols / error})
        numbers = (
            (None, None, None, None) if effect is None else (effect.size, effect.icc, effect.reliability, effect.effect)
        )
        names = ("mean_group_size", "icc", "reliability", "design_effect")
        expected = [effect.factor if effect is not None and u else None for u in upper]
        return frame.insert_column(1, _series("ols_std_error", ols)).with_columns(
            pl.Series("expected_ratio", expected, dtype=pl.Float64),
            *[pl.lit(v, dtype=pl.Float64).alias(n) for n, v in zip(names, numbers, strict=True)],
        )

    def _one_factor(self, method: str, instead: str | None = None) -> Estimates:
        require_one_factor(self.products.estimates, f"comparators.{method}() is", instead)
        return self.products.estimates

    def _centred_row(self, raw: Atom) -> _Row:
        """The random slope of the predictor centred within groups; a note where it cannot be had."""
        label = "multilevel_random_slope"
        centred = Term((replace(raw, name=f"group_center({plain_text(raw)})", centering="group"),))
        spec = self.products.estimates.design.spec
        block = RandomBlock((INTERCEPT, centred), spec.keys)
        try:
            estimates = submodel_estimates(self.products, replace(spec, fixed=(INTERCEPT, centred), random=(block,)))
        except (DesignError, FitError) as error:
            return label, None, None, None, None, None, None, str(error)
        return _fit_row(label, estimates)


def _robust_table(estimates: Estimates, found: Regression, vcov: RobustVcov, notes: list[str | None]) -> pl.DataFrame:
    """Both standard errors; tests by the one chosen."""
    import polars as pl

    if vcov not in get_args(RobustVcov):
        raise FitError(f"vcov is {vcov!r}; this regression has {', '.join(get_args(RobustVcov))}")
    J, levels = estimates.statistics.n_groups, estimates.levels
    crossed = levels is not None and levels.top is None
    if crossed and vcov != "model":
        raise FitError(
            f"vcov={vcov!r} is robust by group, and {estimates.design.spec.group} are crossed or a membership: no rows "
            "are independent of the others; use vcov='model'"
        )
    inflation = J / (J - 1.0) if vcov == "CR1" else 1.0
    model, robust = np.sqrt(np.diag(found.covariance)), np.sqrt(inflation * np.diag(found.robust))
    robust = np.full_like(robust, np.nan) if crossed else robust
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = {"std_error": model, "robust_std_error": robust, "ratio": robust / model}
    table = _table(estimates, found, errors, found.df if vcov == "model" else J - 1, notes, vcov != "model")
    return table.insert_column(table.columns.index("note"), pl.Series("vcov", [vcov] * table.height))


def _table(
    estimates: Estimates,
    found: Regression,
    errors: Mapping[str, Array],
    df: int,
    notes: list[str | None],
    robust: bool = False,
) -> pl.DataFrame:
    """One row per fixed column, without numbers for those left out."""
    import polars as pl

    with np.errstate(divide="ignore", invalid="ignore"):
        t = found.beta / errors["robust_std_error" if robust else "std_error"]
    numbers = {"estimate": found.beta, **errors, "df": np.full(len(t), float(df)), "statistic": t}
    numbers["p_value"] = 2.0 * stdtr(df, -np.abs(t))
    columns = [_series(name, _spread(estimates, found, values)) for name, values in numbers.items()]
    return pl.DataFrame([pl.Series("term", estimates.fixed_names), *columns, pl.Series("note", notes, dtype=pl.String)])


def _spread(estimates: Estimates, found: Regression, values: Array) -> Array:
    """Values of the regression's columns among all fixed columns."""
    whole = np.full(estimates.statistics.p, np.nan)
    whole[list(found.columns)] = values
    return whole


def _notes(estimates: Estimates, found: Regression, constant: str, combination: str) -> list[str | None]:
    """Why columns are left out; a column that depends on the intercept alone is constant."""
    notes: list[str | None] = [None] * estimates.statistics.p
    for item in found.left_out:
        by = [estimates.fixed_names[k] for k in item.explained_by if k != estimates.statistics.intercept]
        notes[item.column] = "left out: " + (f"{combination} {', '.join(by)}" if by else constant)
    return notes


_Row = tuple[str, float | None, float | None, float | None, float | None, float | None, float | None, str]


def _slope_row(label: str, found: Regression, weight: float | None, note: str) -> _Row:
    """A row of `slopes`: the predictor is column 1 of the simple model."""
    if 1 not in found.columns:
        return label, None, None, None, None, None, weight, "the group means do not vary"
    k = found.columns.index(1)
    estimate, error = float(found.beta[k]), float(np.sqrt(found.covariance[k, k]))
    t = estimate / error
    return label, estimate, error, float(found.df), t, float(2.0 * stdtr(found.df, -abs(t))), weight, note


def _fit_row(label: str, estimates: Estimates) -> _Row:
    found, spec = fixed_effects(estimates), estimates.design.spec
    values = (found.estimate, found.std_error, found.df, found.statistic, found.p_value)
    estimate, error, df, t, p_value = (float(v[1]) for v in values)
    return label, estimate, error, df, t, p_value, None, f"{spec.formula}, {spec.method}"


def _series(name: str, values: Array) -> pl.Series:
    import polars as pl

    return pl.Series(name, np.asarray(values, dtype=np.float64)).fill_nan(None)
