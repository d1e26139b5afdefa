"""`fit.derived`: what follows from the variance components and the fixed effects of one fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from mlsql._arrays import Array
from mlsql.diagnostics.explained import explained_variance
from mlsql.errors import FitError
from mlsql.inference.fixed_effects import check_level
from mlsql.pipeline.products import Products
from mlsql.pipeline.residual_diagnostics import key_columns
from mlsql.report.points import plain_frame, points_frame
from mlsql.results import variance
from mlsql.results.estimates import Estimates
from mlsql.results.measures import icc
from mlsql.results.one_factor import require_one_factor
from mlsql.results.points import Points, make_points, random_intercept
from mlsql.results.reliability import mean_reliabilities, reliabilities

if TYPE_CHECKING:
    import polars as pl

    from mlsql.pipeline.fitted import Fit

At = Mapping[str, object]
"""Predictors by name to a value or values; see `mlsql.results.points.make_points`."""

SHARES = "fit.levels.variance_partition() has the variance and the share of each"


@dataclass(frozen=True, slots=True)
class Derived:
    """Quantities derived from a fit.

    Predictors are named as in the formula, on the scale of the model's columns: `{"group_center(ses)": [-1, 0, 1]}`;
    factors by their level, `{"sex": "M"}`.  Sequences are columns of one table, of equal length; a predictor that is
    not named is at 0.  The points are shown as the first columns of the result, as `at_<name>` where a name is taken.

    With precision weights, Var(e_i) = sigma2 / w_i, level-1 variances are those of a row of weight 1.  Standard errors
    come from the observed information by the delta method; they are null on the boundary.  `level` is that of the
    confidence intervals.  Names and values that do not fit raise a FitError, as what a method says it needs.

    Attributes
    ----------
    products : Products
    """

    products: Products

    def icc(self, at: At | None = None, level: float = 0.95) -> pl.DataFrame:
        """Intraclass correlation: the share of the variance that lies between groups.

        Parameters
        ----------
        at : mapping of str to value(s), optional
            Where, in a model with random slopes, whose share z'Tz / (z'Tz + sigma2) depends on the predictors.
        level : float

        Returns
        -------
        polars.DataFrame
            The points' columns (random slopes only), estimate, std_error, conf_low, conf_high (on the logit scale),
            kind: "unconditional", or "conditional" when the model has predictors.

        Raises
        ------
        FitError
            When slopes are random and no point is given.

        Examples
        --------
        >>> import mlsql
        >>> hsb = mlsql.example_data("hsb")
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", hsb)
        >>> fit.derived.icc().row(0)[-1], fit.derived.icc()["estimate"].round(4).to_list()
        ('unconditional', [0.1804])
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", hsb)
        >>> fit.derived.icc(at={"ses": [-1, 0, 1]})["estimate"].round(3).to_list()
        [0.131, 0.116, 0.118]
        """
        estimates, z = self._one_factor("icc", SHARES), _normal(level)
        if at is None and not random_intercept(estimates.design):
            variables = [v.name for c in estimates.design.random for v in c.variables]
            raise FitError(
                "with random slopes there is no single intraclass correlation, it depends on "
                f"{', '.join(dict.fromkeys(variables))}; say where: icc(at={{{variables[0]!r}: [-1, 0, 1]}})"
            )
        points = self._random_points(at)
        found = variance.variance_at(estimates, points.rows(estimates.design.random))
        low, high = found.share_interval(z)
        columns = {"estimate": found.share, "std_error": found.share_error, "conf_low": low, "conf_high": high}
        return points_frame(points, columns | {"kind": [variance.icc_kind(estimates)] * len(low)})

    def variance_function(self, at: At | None = None, level: float = 0.95) -> pl.DataFrame:
        """Variance of the outcome around its fixed part as a function of the predictors with random slopes.

        With one slope tau00 + 2 x tau01 + x^2 tau11 + sigma2; in general z'Tz + sigma2.

        Parameters
        ----------
        at : mapping of str to value(s), optional
            Where; the origin when not given.
        level : float

        Returns
        -------
        polars.DataFrame
            point ("given", "origin", and last "minimum": where the variance between groups is smallest, in the data's
            range or not; absent for factors, products and powers), the points' columns, between, between_std_error,
            between_conf_low, between_conf_high (log scale), within (sigma2), total, total_std_error, total_conf_low,
            total_conf_high, icc.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> table = fit.derived.variance_function(at={"ses": [-1, 1]})
        >>> table["point"].to_list(), table["ses"].round(2).to_list(), table["between"].round(2).to_list()
        (['given', 'given', 'minimum'], [-1.0, 1.0, 0.37], [5.55, 4.93, 4.77])
        """
        estimates, z = self._one_factor("variance_function", SHARES), _normal(level)
        points = self._random_points(at)
        labels = ["origin" if at is None else "given"] * points.values.shape[1]
        lowest = variance.minimum_point(estimates, points)
        if lowest is not None:
            points = Points(points.variables, np.column_stack([points.values, lowest]), points.given)
            labels.append("minimum")
        found = variance.variance_at(estimates, points.rows(estimates.design.random))
        columns = _with_interval("between", found.between, found.between_error, z)
        columns["within"] = [found.residual] * len(labels)
        columns |= _with_interval("total", found.total, found.total_error, z)
        return points_frame(points, columns | {"icc": found.share}, {"point": labels})

    def correlations(self, at: At | None = None, level: float = 0.95) -> pl.DataFrame:
        """Covariances and correlations of the random coefficients, at any origin of their predictors.

        Writing a predictor as x - c makes the intercept the value at x = c: tau00(c) = tau00 + 2 c tau01 + c^2 tau11,
        tau01(c) = tau01 + c tau11.  The model is the same, nothing is fitted again.

        Parameters
        ----------
        at : mapping of str to value(s), optional
            The new origin or origins.
        level : float

        Returns
        -------
        polars.DataFrame
            The origin's columns (when given), group (with several factors), term1, term2, variance1, variance2,
            covariance, covariance_std_error, correlation, std_error, conf_low, conf_high (Fisher's z).  A covariance
            that is zero by definition (`||`) has no errors.

        Raises
        ------
        FitError
            When no factor has two random coefficients, or an origin cannot be moved: when a random column is computed
            from the predictor, I(x^2), or has no lower-order random column beside it.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
        >>> fit.derived.correlations(at={"ses": [-1, 0, 1]})["correlation"].round(2).to_list()
        [-0.37, -0.11, 0.18]
        """
        estimates, z = self.products.estimates, _normal(level)
        names, factors = estimates.random_names, variance.factors_of(estimates)
        points = self._random_points(at, together=False)
        if not variance.correlated(estimates):
            alone = f"{names[0]} is the only random coefficient" + (" of each factor" if len(names) > 1 else "")
            raise FitError(f"{alone}: there is no other to correlate it with")
        found = variance.random_pairs(estimates, variance.moved_origins(estimates, points))
        low, high = found.interval(z)
        shown = [i for i, v in enumerate(points.variables) if v in points.given]
        values = points.values[shown][:, found.origin]
        columns: dict[str, Any] = {} if estimates.levels is None else {"group": [factors[a] for a in found.first]}
        columns |= {
            "term1": [names[a] for a in found.first],
            "term2": [names[b] for b in found.second],
            "variance1": found.variance1,
            "variance2": found.variance2,
            "covariance": found.covariance,
            "covariance_std_error": found.covariance_error,
            "correlation": found.correlation,
            "std_error": found.correlation_error,
        }
        origin = Points(tuple(points.variables[i] for i in shown), values, points.given)
        return points_frame(origin, columns | {"conf_low": low, "conf_high": high})

    def plausible_values(self, level: float = 0.95, at_w: At | None = None) -> pl.DataFrame:
        """The range in which a share of the groups' coefficients lies, gamma_q0 +- z sqrt(tau_qq) (4.4, 4.19).

        Parameters
        ----------
        level : float
            Share of the groups.
        at_w : mapping of str to value(s), optional
            Values of the level-2 predictors, 0 when not given; the range is that of groups with these values.

        Returns
        -------
        polars.DataFrame
            The level-2 predictors' columns, group (with several factors: the range over its groups, with effects 0 of
            the others), term, estimate (the mean coefficient), sd (sqrt tau_qq), lower, upper,
            ratio (of the limit farther from 0 to the nearer; null when 0 lies between), conditional (tau_qq is a
            residual variance, given level-2 predictors).

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.derived.plausible_values().select("lower", "upper").row(0)
        (6.88..., 18.38...)
        """
        estimates, z = self.products.estimates, _normal(level)
        equations = [variance.equation(estimates, q) for q in range(estimates.statistics.q)]
        level2 = [c for e in equations for c in e.level2]
        points = make_points(estimates.design, level2, at_w, role="level-2 predictors of random coefficients")
        m, q = points.values.shape[1], len(equations)
        means = np.array([e.mean(estimates, points) for e in equations]).T.ravel()
        sd = np.tile(np.sqrt(np.maximum(np.diag(estimates.T), 0.0)), m)
        low, high = means - z * sd, means + z * sd
        columns: dict[str, Any] = {} if estimates.levels is None else {"group": variance.factors_of(estimates) * m}
        columns |= {"term": list(estimates.random_names) * m, "estimate": means, "sd": sd}
        columns |= {"lower": low, "upper": high, "ratio": variance.limit_ratio(low, high)}
        columns["conditional"] = [e.conditional for e in equations] * m
        return points_frame(Points(points.variables, np.repeat(points.values, q, axis=1), points.given), columns)

    def reliability(self, by_group: bool = False) -> pl.DataFrame:
        """Reliability of the groups' least-squares coefficients, tau_qq / (tau_qq + v_qqj) (3.58), and its mean (3.59).

        Parameters
        ----------
        by_group : bool
            One row per group and coefficient instead of the mean; with several factors `Fit.group_effects` has them.

        Returns
        -------
        polars.DataFrame
            group (with several factors), term, reliability, groups_used (whose own data determine all random
            coefficients), groups; or the key column(s), term, reliability (null for the other groups), n.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.derived.reliability().row(0)
        ('(Intercept)', 0.901..., 160, 160)
        """
        estimates = self.products.estimates
        if not by_group:
            return plain_frame(mean_reliabilities(estimates))
        self._one_factor("reliability", "fit.group_effects(factor) has the reliability of every group", "by_group=True")
        found, names = reliabilities(estimates), estimates.random_names
        q, J = found.shape
        columns = {"term": list(names) * J, "reliability": found.T.ravel(), "n": np.repeat(estimates.moments.n, q)}
        keys = {k: v.gather(np.repeat(np.arange(J), q)) for k, v in key_columns(estimates.moments).items()}
        return plain_frame({(f"group_{k}" if k in columns else k): v for k, v in keys.items()} | columns)

    def design_effect(self) -> pl.DataFrame:
        """How much the variance of a mean over all rows exceeds that of independent rows.

        Returns
        -------
        polars.DataFrame
            formula, group_size, icc, kind (as in `icc`), design_effect, effective_rows (N / design effect),
            std_error_ratio (its root).  With the mean group size, the usual approximation, and with sum n_j^2 / N,
            exact for the plain mean of rows in groups of unequal size.

        Raises
        ------
        FitError
            With random slopes or precision weights, for which the formula does not hold.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.derived.design_effect()["design_effect"].round(2).to_list()
        [8.92, 9.48]
        """
        estimates = self._one_factor("design_effect")
        rho = icc(estimates)
        if rho is None or estimates.design.spec.weights is not None:
            what = "random slopes" if rho is None else "precision weights"
            raise FitError(
                "the design effect 1 + (n - 1) ICC holds for one intraclass correlation and rows of equal variance, "
                f"and this fit has {what}; take it from a fit with (1 | group) alone, without weights"
            )
        sizes, effects = variance.design_effects(estimates.moments.n, rho)
        formulas, kind = ["1 + (mean n_j - 1) icc", "1 + (sum n_j^2 / N - 1) icc"], variance.icc_kind(estimates)
        columns = {"formula": formulas, "group_size": sizes, "icc": [rho] * 2, "kind": [kind] * 2}
        columns |= {"design_effect": effects, "effective_rows": estimates.statistics.n_rows / effects}
        return plain_frame(columns | {"std_error_ratio": np.sqrt(effects)})

    def explained_variance(self, baseline: Fit | None = None) -> pl.DataFrame:
        """Proportions of variance explained, at each level, against a baseline that you name.

        Parameters
        ----------
        baseline : Fit, optional
            A simpler model of the same rows: usually the null model for level 1, the same level-1 model without
            level-2 predictors for level 2.  Without it only the measures that need none.

        Returns
        -------
        polars.DataFrame
            measure, level, term, baseline_value, model_value, proportion ((baseline - model) / baseline; may be
            negative), baseline (its formula), note (why there is no proportion, or what it holds for).

            - `raudenbush_bryk`: sigma2 at level 1, each tau_qq above (4.20, 4.24), between models with the same level-1
              predictors and random coefficients; with several factors, that vary within the groups of the factor.
            - `snijders_bosker`: sigma2 + tau at level 1, sigma2 / (mean n_j) + tau at level 2; one random intercept.
            - `nakagawa_marginal`, `nakagawa_conditional`: variance of the fixed part, and of the fixed and random
              parts, over the model's own total variance (its rows' baseline_value; model_value is what remains).
              With random slopes the random part's is its mean over rows (Johnson 2014).

        Raises
        ------
        FitError
            When the baseline describes other rows, another outcome or other weights.

        Examples
        --------
        >>> import mlsql
        >>> hsb = mlsql.example_data("hsb")
        >>> null = mlsql.fit("mathach ~ 1 + (1 | school)", hsb)
        >>> fit = mlsql.fit("mathach ~ meanses + (1 | school)", hsb)
        >>> fit.derived.explained_variance(null).select("measure", "level", "proportion").row(1)
        ('raudenbush_bryk', 2, 0.693...)
        """
        import polars as pl

        other = getattr(baseline, "estimates", None)
        if baseline is not None and not isinstance(other, Estimates):
            raise FitError(f"the baseline is a {type(baseline).__name__}; give the fit of a simpler model")
        found = explained_variance(self.products.estimates, other)
        formula = None if other is None else other.design.spec.formula
        names = ("measure", "level", "term", "baseline_value", "model_value", "proportion", "baseline", "note")
        columns = {n: [getattr(f, n, None) for f in found] for n in names}
        columns["baseline"] = [None if f.measure.startswith("nakagawa") else formula for f in found]
        return plain_frame(columns, dict.fromkeys(("term", "baseline", "note"), pl.String) | {"level": pl.Int64})

    def optimal_n(self, cost_group: float, cost_row: float) -> pl.DataFrame:
        """Rows per group that give the smallest standard error for a budget, were a study like this one planned anew.

        Parameters
        ----------
        cost_group, cost_row : float
            Costs of one more group and of one more row.

        Returns
        -------
        polars.DataFrame
            effect ("level-2 predictor"; "level-1 treatment" per random slope), term (the coefficient whose variance
            between groups counts), n, note.  sqrt(C (1 - ICC) / ICC) for a level-2 predictor (5.63),
            sqrt(C 4 sigma2 / tau11) for a treatment given at random to half of each group, coded 0 and 1 (5.64), with
            C = cost_group / cost_row.  n is inf when groups do not differ: then only the number of rows counts.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ 1 + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.derived.optimal_n(cost_group=50, cost_row=2)["n"].round(1).to_list()
        [10.7]
        """
        import polars as pl

        found = variance.optimal_sizes(self._one_factor("optimal_n"), cost_group, cost_row)
        columns = {name: [getattr(f, name) for f in found] for name in ("effect", "term", "n", "note")}
        return plain_frame(columns, {"note": pl.String})

    def _one_factor(self, method: str, instead: str | None = None, arguments: str = "") -> Estimates:
        require_one_factor(self.products.estimates, f"derived.{method}({arguments}) is", instead)
        return self.products.estimates

    def _random_points(self, at: At | None, *, together: bool = True) -> Points:
        design = self.products.estimates.design
        return make_points(design, design.random, at, role="random columns' predictors", together=together)


def _normal(level: float) -> float:
    """The normal quantile of a two-sided level."""
    check_level(level)
    return float(ndtri(0.5 + level / 2.0))


def _with_interval(name: str, value: Array, error: Array, z: float) -> dict[str, Any]:
    low, high = variance.log_interval(value, error, z)
    return {name: value, f"{name}_std_error": error, f"{name}_conf_low": low, f"{name}_conf_high": high}
