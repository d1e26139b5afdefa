"""The textbook name of a model."""

from __future__ import annotations

from mlsql.design.design import Design


def submodel_name(design: Design) -> str:
    """Name a two-level model as Raudenbush & Bryk (2002, chapter 2) do, for headings.

    Returns
    -------
    str
        For instance "random coefficients" or "intercepts and slopes as outcomes".
    """
    random_slopes = any(c.level1 for c in design.random)
    slopes = [c for c in design.fixed.columns if c.level1]
    crossed = any(c.level2 for c in slopes)
    means = any(c.level2 and not c.level1 for c in design.fixed.columns)
    if random_slopes:
        return "intercepts and slopes as outcomes" if crossed or means else "random coefficients"
    if crossed:
        return "nonrandomly varying slopes"
    if slopes:
        return "one-way ANCOVA with random effects" + (" and level-2 predictors" if means else "")
    return "means as outcomes" if means else "one-way ANOVA with random effects"
