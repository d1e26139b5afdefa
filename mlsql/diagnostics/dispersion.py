"""Level-1 residuals: shape from sums of powers, and whether their variance is the same in every group.

Of each group's own least-squares regression on the level-1 columns, with residual variance S2 on f df (Raudenbush &
Bryk 9.5 and 9.6),

    d_j = [ln S2_j - sum f ln S2 / sum f] / sqrt(2 / f_j),      H = sum d_j^2 ~ chi-square(groups - 1),

good for groups of ten rows and more.  ln S2 is too small by about 1/f (7.21): corrected indices add that before they
are compared, so that small groups do not look less dispersed for being small; H takes the plain ones.

A large H is first a sign of an omitted level-1 predictor, a slope wrongly fixed, bad data in a few groups or heavy
tails; a model of unequal variances comes after those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from mlsql._arrays import Array, BoolArray, IntArray
from mlsql.diagnostics.group_ols import GroupLeastSquares

VANISHING = 1e-12
"""A sum of squares below this share of the one it was taken from is rounding."""


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Residual standard deviations of J groups, and what of them enters the test.

    Attributes
    ----------
    sd : (J,)     S_j, 0 for an exact fit; nan without a least-squares fit or residual degrees of freedom
    df : (J,)     f_j
    index : (J,)  d_j; nan for groups left out
    corrected : (J,)
        d_j of ln S2 + 1/f.
    used : (J,) bool
    small : int
        Groups left out for having fewer rows than asked.
    deficient : int
        Of the others, those whose data do not determine the regression, or leave it no degree of freedom.
    exact : int
        Of the others, those that the regression fits without residual.
    """

    sd: Array
    df: IntArray
    index: Array
    corrected: Array
    used: BoolArray
    small: int
    deficient: int
    exact: int

    @property
    def chi2(self) -> float:
        """H."""
        return float(np.sum(self.index[self.used] ** 2))

    @property
    def groups(self) -> int:
        """Groups that enter."""
        return int(self.used.sum())

    @property
    def p_value(self) -> float:
        """Of H; nan for fewer than two groups."""
        return float(chdtrc(self.groups - 1, self.chi2)) if self.groups > 1 else float("nan")


def dispersion(own: GroupLeastSquares, squares: Array, min_n: int) -> Dispersion:
    """Compare the residual variances of groups.

    Parameters
    ----------
    own : GroupLeastSquares
    squares : (J,)
        Sum of squares of the outcome from which the residual ones were computed: the scale of their rounding.
    min_n : int
        Rows of the smallest group that enters.
    """
    df, fitted = own.df, own.full_rank & (own.df > 0)
    rss = np.where(own.rss > VANISHING * squares, own.rss, 0.0)
    sd = np.sqrt(np.where(fitted, rss / np.maximum(df, 1), np.nan))
    large = own.n >= min_n
    used = large & fitted & (sd > 0)
    log = 2.0 * np.log(np.where(used, sd, 1.0))
    f = np.where(used, df, 0)
    index = _index(log, f, used)
    return Dispersion(
        sd=sd,
        df=df,
        index=index,
        corrected=_index(log + 1.0 / np.maximum(f, 1), f, used),
        used=used,
        small=int((~large).sum()),
        deficient=int((large & ~fitted).sum()),
        exact=int((large & fitted & (sd == 0)).sum()),
    )


def _index(log: Array, f: IntArray, used: BoolArray) -> Array:
    """Deviations of ln S2 from their mean, in standard errors; nan for groups left out."""
    centre = float(f @ log) / max(float(f.sum()), 1.0)
    return np.where(used, (log - centre) * np.sqrt(f / 2.0), np.nan)


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean, standard deviation, skewness and excess kurtosis; nan where there are too few values, or they are equal.

    Skewness and kurtosis are the unbiased-under-normality G1 and G2 of SAS, SPSS and pandas.
    """

    mean: Array
    sd: Array
    skewness: Array
    kurtosis: Array


def shape(n: Array, powers: Array) -> Shape:
    """Shape of several sets of values from their sums.

    Parameters
    ----------
    n : (k,)           values of each set
    powers : (4, k)    sums of their first to fourth powers; values are of order one around zero
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        m1, r2, r3, r4 = powers / n
        m2 = r2 - m1**2
        varied = m2 > VANISHING * r2
        m2 = np.where(varied, m2, np.nan)
        m3 = r3 - 3 * m1 * r2 + 2 * m1**3
        m4 = r4 - 4 * m1 * r3 + 6 * m1**2 * r2 - 3 * m1**4
        sd = np.where(n > 1, np.sqrt(np.where(varied, m2, 0.0) * n / (n - 1)), np.nan)
        skewness = np.sqrt(n * (n - 1)) / (n - 2) * m3 / m2**1.5
        kurtosis = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * (m4 / m2**2 - 3) + 6)
    return Shape(
        mean=np.where(n > 0, m1, np.nan),
        sd=sd,
        skewness=np.where(n > 2, skewness, np.nan),
        kurtosis=np.where(n > 3, kurtosis, np.nan),
    )
