"""`Inferring`: the part of a fit that tests, compares and gives intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlsql._arrays import Array
from mlsql._typing import DfMethod, IntervalMethod, Vcov
from mlsql.errors import DataError, FitError, QueryError
from mlsql.inference.hypotheses import make_hypothesis
from mlsql.inference.likelihood_ratio import likelihood_ratio, single_level_ratio
from mlsql.inference.reference import Reference, make_reference
from mlsql.pipeline.intervals import confidence_intervals
from mlsql.pipeline.products import Products
from mlsql.report import fixed
from mlsql.report.comparison import ratio_table
from mlsql.results.estimates import Estimates

if TYPE_CHECKING:
    import polars as pl

    from mlsql.pipeline.fitted import Fit


MANY_CELLS = 200_000
"""Groups of the lowest level up to which robust errors of a model with several factors are part of its tables."""


class Inferring:
    """Inference on the fixed effects and the variance components; `Fit` brings estimates and products."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def estimates(self) -> Estimates:
            """The numbers."""

        @property
        def products(self) -> Products:
            """Sums by group."""

    @property
    def fixed_effects(self) -> pl.DataFrame:
        """Estimates and tests from the model's covariance matrix with HLM's df, and robust standard errors beside.

        Columns: term, estimate, std_error, df, statistic, p_value, conf_low, conf_high (95 %), robust_std_error (CR0),
        robust_ratio (robust to model-based), df_method, vcov, centering, note (few groups; or why there are no robust
        errors: the data of a large fit have changed or gone before they were first asked for).  `inference` has other
        choices.
        """
        return fixed.fixed_effects_table(self.estimates, self.robust_or_reason())

    def inference(self, df: DfMethod | None = None, vcov: Vcov = "model", level: float = 0.95) -> pl.DataFrame:
        """The fixed effects with degrees of freedom and a covariance matrix of your choice.

        Parameters
        ----------
        df : str, optional
            `hlm` (J - S_q - 1 by equation; the default), `between_within`, `residual` (N - p), `satterthwaite`,
            `kenward_roger` (with its adjusted covariance matrix; REML only), `normal`.  Beside CR2 the default is
            `satterthwaite`: Bell and McCaffrey's df of the robust matrix.
        vcov : {"model", "CR0", "CR1", "CR2"}
            Model-based, or cluster-robust by group: CR0 is what HLM prints, CR1 has the factor J / (J - 1), CR2 is
            unbiased when the model holds.
        level : float
            Confidence level.

        Returns
        -------
        polars.DataFrame
            term, estimate, std_error, df (inf for `normal`), statistic, p_value, conf_low, conf_high, df_method, vcov,
            centering, note (when p values need care, else null).

        Raises
        ------
        FitError
            When the method does not exist for this fit; the message names another.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ sector + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.inference(df="satterthwaite", vcov="CR2")["df"].round(1).to_list()
        [88.8, 149.3]
        """
        return fixed.inference_table(self.estimates, self.reference(df, vcov), level)

    def test(self, hypothesis: object, df: DfMethod | None = None, vcov: Vcov = "model") -> pl.DataFrame:
        """Wald test of a linear hypothesis on the fixed effects.

        Parameters
        ----------
        hypothesis : str, list of str, or (r, p) matrix
            Equations in the terms' names, `"sector = 0"`, `"ses + ses:sector = 2"`, `["a = b", "c"]` (a name alone:
            `= 0`), or a matrix whose rows are compared with 0.
        df, vcov
            As for `inference`.

        Returns
        -------
        polars.DataFrame
            One row: hypothesis, chi2, chi2_df, chi2_p_value, statistic (F), df1, df2, p_value, df_method, vcov, note.

        Raises
        ------
        FitError
            For unknown terms, a matrix of the wrong width, or rows that follow from others.

        Examples
        --------
        >>> import mlsql
        >>> fit = mlsql.fit("mathach ~ sector*ses + (1 | school)", mlsql.example_data("hsb"))
        >>> fit.test(["sector", "sector:ses"])["chi2"].round(1).to_list()
        [76.3]
        """
        return fixed.test_table(
            self.estimates, self.reference(df, vcov), make_hypothesis(hypothesis, self.estimates.fixed_names)
        )

    def reference(self, df: DfMethod | None = None, vcov: Vcov = "model") -> Reference:
        """Covariance matrix and degrees of freedom by name, as `inference` and `test` use them."""
        return make_reference(self.estimates, self.products.by_group, df, vcov)

    def robust_covariance(self) -> Array:
        """(p, p) CR0 covariance matrix of the fixed effects, by group."""
        return make_reference(self.estimates, self.products.by_group, "hlm", "CR0").covariance

    def robust_or_reason(self) -> Array | str:
        """The CR0 covariance matrix, or why there is none: estimates stay readable without.

        Many cells whose products are not at hand are not fetched unasked: `inference(vcov="CR0")` does.
        """
        levels = self.estimates.levels
        if levels is not None and levels.top is None:
            return "no robust errors: they need a grouping factor that contains all others"
        if levels is not None and not self.products.fetched and self.estimates.moments.n_groups > MANY_CELLS:
            return "no robust errors unasked for so many groups: inference(vcov='CR0') computes them"
        try:
            return self.robust_covariance()
        except (DataError, QueryError) as error:
            return f"no robust errors: {error}"

    def confint(
        self,
        level: float = 0.95,
        method: IntervalMethod = "wald",
        *,
        df: DfMethod | None = None,
        vcov: Vcov | None = None,
        replicates: int | None = None,
        seed: int | None = None,
    ) -> pl.DataFrame:
        """Confidence intervals of all parameters.

        Parameters
        ----------
        level : float
            Confidence level.
        method : {"wald", "profile", "bootstrap"}
            `wald`: t intervals of fixed effects, variances on the log scale, covariances symmetric.  `profile`: where
            the deviance has risen by the chi-square quantile, down to 0 and up to +-1 at the boundary; the fixed
            effects' by ML, the components' by the fit's own likelihood.  `bootstrap`: percentiles of a parametric
            bootstrap (`resampling` has more).
        df, vcov
            As for `inference`; Wald only.
        replicates, seed : int, optional
            Bootstrap only; 1000 and 1 when not given.

        Returns
        -------
        polars.DataFrame
            effect (fixed, variance, covariance; correlation in its place for profile and bootstrap), term, estimate,
            conf_low, conf_high, and for profile the likelihood.  Variances are on the variance scale.

        Raises
        ------
        FitError
            For an argument that the method does not use.
        """
        return confidence_intervals(self.products, level, method, df, vcov, replicates, seed)

    def likelihood_ratio(self, smaller: Fit | None = None) -> pl.DataFrame:
        """Likelihood-ratio test of a model within this one.

        Parameters
        ----------
        smaller : Fit, optional
            A nested model of the same rows; the same fixed part without random coefficients when not given.

        Returns
        -------
        polars.DataFrame
            One row: smaller, larger (formulas), chi2, df, p_value (plain chi-square), mixture and mixture_p_value (the
            mixture that holds when one variance is tested at its boundary), note.

        Raises
        ------
        FitError
            Different outcomes, rows, weights or methods, REML with different fixed parts, models that are not nested.

        Examples
        --------
        >>> import mlsql
        >>> hsb = mlsql.example_data("hsb")
        >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", hsb)
        >>> fit.likelihood_ratio(mlsql.fit("mathach ~ ses + (1 | school)", hsb))["chi2"].round(2).to_list()
        [4.77]
        """
        own = self.estimates.design.spec.formula
        if smaller is None:
            return ratio_table(single_level_ratio(self.estimates), "the fixed part alone", own)
        if not isinstance(smaller, Inferring):
            raise FitError(f"smaller is a {type(smaller).__name__}; it is a fit of a nested model")
        found = likelihood_ratio(smaller.estimates, self.estimates)
        return ratio_table(found, smaller.estimates.design.spec.formula, own)
