"""Wald tests of linear hypotheses on the fixed effects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, fdtrc

from mlsql._arrays import Array
from mlsql.inference.hypotheses import Hypothesis
from mlsql.inference.reference import Reference


@dataclass(frozen=True, slots=True)
class WaldTest:
    """Chi-square (Raudenbush & Bryk, 3.91) and F test of contrasts @ beta = values."""

    chi2: float
    chi2_df: int
    chi2_p_value: float
    F: float
    df1: int
    df2: float
    p_value: float


def wald_test(beta: Array, reference: Reference, hypothesis: Hypothesis) -> WaldTest:
    """Test all rows of a hypothesis at once.

    The chi-square takes the covariance matrix as known; F takes the reference's degrees of freedom.
    """
    L, r = hypothesis.contrasts, len(hypothesis.contrasts)
    difference = L @ beta - hypothesis.values
    chi2 = reference.wald(L, difference)
    joint = reference.joint(L, difference)
    tail = fdtrc(joint.df1, joint.df2, joint.F) if np.isfinite(joint.df2) else chdtrc(joint.df1, joint.df1 * joint.F)
    return WaldTest(chi2, r, float(chdtrc(r, chi2)), joint.F, joint.df1, joint.df2, float(tail))
