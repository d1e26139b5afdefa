"""The textbook name of a two-level model; what there is to say of others."""

from __future__ import annotations

from mlsql.design.design import Design


def submodel_name(design: Design) -> str:
    """Name a two-level model as Raudenbush & Bryk (2002, chapter 2) do, for headings.

    Their names are of two levels.  A model with several grouping factors is unconditional (8.1-8.3, 12.1-12.2) or
    conditional, with random slopes or without.

    Returns
    -------
    str
        For instance "random coefficients" or "intercepts and slopes as outcomes"; "conditional, random slopes".
    """
    if len(design.spec.factors) > 1:
        kind = "conditional" if any(c.variables for c in design.fixed.columns) else "unconditional"
        return kind + (", random slopes" if any(c.variables for c in design.random) else "")
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
