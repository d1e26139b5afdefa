"""`Homogeneity`: the chi-square test that a random coefficient does not vary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Homogeneity:
    """Chi-square test that a random coefficient does not vary (Raudenbush & Bryk, 3.103).

    Attributes
    ----------
    chi2, df, p_value : float
        nan when no group has a least-squares estimate.
    groups : int
        Groups whose own data determine all random coefficients: only they enter.
    reliability : float
        Mean reliability of those groups' least-squares coefficients (3.59).
    """

    chi2: float
    df: int
    p_value: float
    groups: int
    reliability: float
