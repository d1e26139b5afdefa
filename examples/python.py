"""Four models of one data set, compared; then the schools that the best of them finds unusual.

Run it with `python examples/python.py`; it needs nothing but mlsql.
"""

from __future__ import annotations

import polars as pl

import mlsql

MODELS = {
    "schools differ": "mathach ~ 1 + (1 | school)",
    "by their status": "mathach ~ meanses + (1 | school)",
    "slopes differ": "mathach ~ group_center(ses) + (group_center(ses) | school)",
    "by status and sector": (
        "mathach ~ meanses * group_center(ses) + sector * group_center(ses) + (group_center(ses) | school)"
    ),
}


def main() -> None:
    data = mlsql.example_data("hsb")
    # full maximum likelihood, because the models differ in their fixed effects
    fits = {name: mlsql.fit(formula, data, method="ML") for name, formula in MODELS.items()}

    print("Deviance, parameters, and the variances within and between schools\n")
    for name, fit in fits.items():
        parameters = fit.statistics["n_parameters"][0]
        print(f"  {name:22} {fit.deviance:10.2f} {parameters:3}   {fit.sigma2:6.2f}  {fit.T[0, 0]:5.2f}")

    best = fits["by status and sector"]
    print(f"\n{best}\n")

    effects = best.group_effects().filter(pl.col("term") == "(Intercept)")
    unusual = effects.with_columns((pl.col("estimate") / pl.col("std_error")).alias("z"))
    print("Schools farthest from what their status and sector let expect\n")
    for row in unusual.sort(pl.col("z").abs(), descending=True).head(5).iter_rows(named=True):
        print(
            f"  school {row['school']}: mean {row['coefficient']:5.2f}, "
            f"{row['estimate']:+5.2f} beside the expected (z = {row['z']:+.1f}, {row['n']} pupils)"
        )


if __name__ == "__main__":
    main()
