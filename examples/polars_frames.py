"""Polars in, Polars out: a growth model of generated children, with gaps and a second table of families.

Run it with `python examples/polars_frames.py`; the data are made here, so the true values are known.  (The file is not
called polars.py: beside a script of that name, `import polars` finds it.)
"""

from __future__ import annotations

import numpy as np
import polars as pl

import mlsql.polars  # noqa: F401  # adds the namespace `ml`

TRUE = {"(Intercept)": 50.0, "years": 4.0, "urban": 3.0, "years:urban": 1.5}


def make_data(children: int = 400) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Up to six yearly tests of every child, and one row per child with where it lives."""
    rng = np.random.default_rng(20240229)
    urban = rng.integers(0, 2, children)
    start = TRUE["(Intercept)"] + TRUE["urban"] * urban + rng.normal(0, 6, children)
    growth = TRUE["years"] + TRUE["years:urban"] * urban + rng.normal(0, 1.2, children)
    child, year = np.repeat(np.arange(children), 6), np.tile(np.arange(6), children)
    score = start[child] + growth[child] * year + rng.normal(0, 3, len(child))
    tests = pl.DataFrame({"child": child, "years": year, "score": score})
    # one test in five was missed
    tests = tests.with_columns(pl.when(pl.Series(rng.random(len(child)) > 0.2)).then("score").alias("score"))
    return tests, pl.DataFrame({"child": np.arange(children), "urban": urban})


def main() -> None:
    tests, homes = make_data()
    fit = tests.lazy().ml.fit("score ~ years * urban + (years | child)", level2=homes)
    print(*fit.dropped, sep="\n  ")

    print("\nEstimates beside the values that made the data\n")
    found = fit.fixed_effects.with_columns(pl.col("term").replace_strict(TRUE, return_dtype=pl.Float64).alias("true"))
    print(found.select("term", "true", pl.col("estimate", "conf_low", "conf_high").round(2)))
    print(fit.variance_components.select("term1", "term2", pl.col("estimate", "sd_or_corr").round(2)))

    growth = homes.ml.group_effects(fit).filter(pl.col("term") == "years")
    columns = pl.col("ols_coefficient", "coefficient", "coefficient_std_error").round(2)
    print("\nGrowth a year of the first children: own data alone, and empirical Bayes\n")
    print(homes.join(growth, on="child", maintain_order="left").select("child", "urban", "n", columns).head(5))

    ahead = pl.DataFrame({"child": [0, 1, 9999], "years": [7, 7, 7]})
    places = pl.DataFrame({"child": [0, 1, 9999], "urban": [homes["urban"][0], homes["urban"][1], 1]})
    print("\nTwo years on, for two of the children and for one nobody has met\n")
    predicted = ahead.ml.predict(fit, level2=places, unseen="population")
    print(predicted.select("child", "years", pl.col("population", "conditional", "conditional_std_error").round(2)))

    print("\nExpressions: a child's own deviations, and its mean drawn towards all children's\n")
    score = pl.col("score")
    described = tests.lazy().select(
        "child",
        "years",
        score,
        score.ml.group_center("child").alias("deviation"),
        score.ml.group_mean("child").alias("mean"),
        score.ml.shrunken_mean("child").alias("shrunken"),
    )
    print(described.head(4).collect().select("child", "years", pl.col(pl.Float64).round(2)))


if __name__ == "__main__":
    main()
