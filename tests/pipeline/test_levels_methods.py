"""Every public method of a fit, with one grouping factor, nested ones and crossed ones: each works or says why not."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

import mlsql

FACETS = ("levels", "contrasts", "derived", "diagnostics", "comparators", "resampling")
KINDS = ("two", "nested", "crossed")


@pytest.fixture(scope="module")
def fits(data_file: Callable[[str], str]) -> dict[str, mlsql.Fit]:
    """Two levels, three levels with slopes at two of them, and two crossed factors."""
    plates = pl.read_parquet(data_file("penicillin")).with_row_index("i").with_columns(x=pl.col("i") * 7 % 11)
    return {
        "two": mlsql.fit("mathach ~ meanses + ses + (ses | school)", data_file("hsb")),
        "nested": mlsql.fit("math ~ lowinc + year + (year | schoolid/childid)", data_file("egsingle")),
        "crossed": mlsql.fit("diameter ~ x + (1 | plate) + (1 | sample)", plates),
    }


def slope(fit: mlsql.Fit) -> str:
    return fit.fixed_effects["term"].to_list()[-1]


def top(fit: mlsql.Fit) -> str:
    return fit.spec.factors[0].name


WORKS = None
SEVERAL = {"nested": "the model has 2: schoolid, schoolid:childid", "crossed": "the model has 2: plate, sample"}


def refused(method: str) -> dict[str, str]:
    """Refused for several factors, by the method's name."""
    found = f"{method}.* for models with one grouping factor; "
    return {kind: found + why for kind, why in SEVERAL.items()}


RESIDUALS = refused(r"diagnostics.residuals\(\), qq\(\), by_group\(\) and against\(\)")
CROSSED = {"crossed": "no grouping factor contains the others"}
ONE_VARYING = {"crossed": r"\(Intercept\) is the only random coefficient of each factor"}
GRID = {"two": "say where", "nested": "say where"}

Call = Callable[[Any], Any]
Refusals = dict[str, str]

METHODS: dict[str, tuple[Call, Refusals | None]] = {
    "T": (lambda f: f.T, WORKS),
    "aic": (lambda f: f.aic, WORKS),
    "as_marginaleffects": (lambda f: f.as_marginaleffects().get_modeldata(), WORKS),
    "augment": (lambda f: f.augment(), WORKS),
    "bic": (lambda f: f.bic, WORKS),
    "confint": (lambda f: f.confint(), WORKS),
    "converged": (lambda f: f.converged, WORKS),
    "deviance": (lambda f: f.deviance, WORKS),
    "equations": (lambda f: f.equations(), WORKS),
    "fit_id": (lambda f: f.fit_id, WORKS),
    "fixed_effects": (lambda f: f.fixed_effects, WORKS),
    "glance": (lambda f: f.glance(), WORKS),
    "group_effects": (lambda f: f.group_effects(top(f)), WORKS),
    "icc": (lambda f: (f.icc,), WORKS),
    "inference": (lambda f: f.inference("satterthwaite"), WORKS),
    "likelihood_ratio": (lambda f: f.likelihood_ratio(), WORKS),
    "log_likelihood": (lambda f: f.log_likelihood, WORKS),
    "n_evaluations": (lambda f: f.n_evaluations, WORKS),
    "n_groups": (lambda f: (f.n_groups,), WORKS),
    "n_rows": (lambda f: f.n_rows, WORKS),
    "predict": (lambda f: f.predict(), WORKS),
    "reference": (lambda f: f.reference(), WORKS),
    "residuals": (lambda f: f.residuals(), WORKS),
    "robust_covariance": (lambda f: f.robust_covariance(), CROSSED),
    "robust_or_reason": (lambda f: f.robust_or_reason(), WORKS),
    "save": (lambda f: f, WORKS),  # written and read in test_levels_save.py
    "sigma2": (lambda f: f.sigma2, WORKS),
    "singular": (lambda f: (f.singular,), WORKS),
    "spec": (lambda f: f.spec, WORKS),
    "statistics": (lambda f: f.statistics, WORKS),
    "status": (lambda f: f.status, WORKS),
    "summary": (lambda f: f.summary(), WORKS),
    "survey": (lambda f: f.survey, WORKS),
    "test": (lambda f: f.test(slope(f)), WORKS),
    "tidy": (lambda f: f.tidy(), WORKS),
    "to_tables": (lambda f: f.to_tables(duckdb.connect()), WORKS),
    "variance_components": (lambda f: f.variance_components, WORKS),
    "vcov": (lambda f: f.vcov, WORKS),
    "levels.between_share": (
        lambda f: f.levels.between_share(),
        dict.fromkeys(("two", "crossed"), "no coefficient varies over two factors"),
    ),
    "levels.correlations": (lambda f: f.levels.correlations(), WORKS),
    "levels.factors": (lambda f: f.levels.factors(), WORKS),
    "levels.intra_unit_correlations": (lambda f: f.levels.intra_unit_correlations(), GRID),
    "levels.structure": (lambda f: (f.levels.structure(),), WORKS),
    "levels.variance_partition": (lambda f: f.levels.variance_partition(), GRID),
    "contrasts.contextual_effect": (
        lambda f: f.contrasts.contextual_effect("ses", "meanses"),
        dict.fromkeys(("nested", "crossed"), "'ses' is not a predictor"),
    ),
    "contrasts.estimate": (lambda f: f.contrasts.estimate(slope(f)), WORKS),
    "contrasts.johnson_neyman": (
        lambda f: f.contrasts.johnson_neyman(slope(f), slope(f)),
        dict.fromkeys(KINDS, "both predictor and moderator"),
    ),
    "contrasts.simple_slopes": (lambda f: f.contrasts.simple_slopes(slope(f)), WORKS),
    "derived.correlations": (lambda f: f.derived.correlations(), ONE_VARYING),
    "derived.design_effect": (
        lambda f: f.derived.design_effect(),
        {"two": "random slopes", **refused(r"derived.design_effect\(\)")},
    ),
    "derived.explained_variance": (lambda f: f.derived.explained_variance(f), WORKS),
    "derived.icc": (lambda f: f.derived.icc(at={"ses": 0}), refused(r"derived.icc\(\)")),
    "derived.optimal_n": (lambda f: f.derived.optimal_n(10, 1), refused(r"derived.optimal_n\(\)")),
    "derived.plausible_values": (lambda f: f.derived.plausible_values(), WORKS),
    "derived.reliability": (lambda f: f.derived.reliability(), WORKS),
    "derived.variance_function": (lambda f: f.derived.variance_function(), refused(r"derived.variance_function\(\)")),
    "diagnostics.advice": (lambda f: (f.diagnostics.advice(),), WORKS),
    "diagnostics.against": (lambda f: f.diagnostics.against(slope(f)), RESIDUALS),
    "diagnostics.by_group": (lambda f: f.diagnostics.by_group(), RESIDUALS),
    "diagnostics.deletion": (
        lambda f: f.diagnostics.deletion(),
        refused(r"diagnostics.influence\(\) and deletion\(\)"),
    ),
    "diagnostics.extreme_groups": (
        lambda f: f.diagnostics.extreme_groups(),
        refused(r"diagnostics.homogeneity\(\) and extreme_groups\(\)"),
    ),
    "diagnostics.homogeneity": (
        lambda f: f.diagnostics.homogeneity(),
        refused(r"diagnostics.homogeneity\(\) and extreme_groups\(\)"),
    ),
    "diagnostics.influence": (
        lambda f: f.diagnostics.influence(),
        refused(r"diagnostics.influence\(\) and deletion\(\)"),
    ),
    "diagnostics.level2": (lambda f: f.diagnostics.level2(), refused(r"diagnostics.level2\(\)")),
    "diagnostics.qq": (lambda f: f.diagnostics.qq(), RESIDUALS),
    "diagnostics.residuals": (lambda f: f.diagnostics.residuals(), RESIDUALS),
    "diagnostics.to_enter": (lambda f: f.diagnostics.to_enter(["meanses"]), refused(r"diagnostics.to_enter\(\)")),
    "comparators.between": (lambda f: f.comparators.between(), refused(r"comparators.between\(\)")),
    "comparators.design_effects": (lambda f: f.comparators.design_effects(), WORKS),
    "comparators.hausman": (lambda f: f.comparators.hausman(), refused(r"comparators.hausman\(\)")),
    "comparators.ols": (lambda f: f.comparators.ols(), WORKS),
    "comparators.per_group": (lambda f: f.comparators.per_group(), refused(r"comparators.per_group\(\)")),
    "comparators.slopes": (lambda f: f.comparators.slopes("ses"), refused(r"comparators.slopes\(\)")),
    "comparators.within": (lambda f: f.comparators.within(), refused(r"comparators.within\(\)")),
    "resampling.bootstrap": (lambda f: f.resampling.bootstrap(3).table(), WORKS),
    "resampling.cluster_bootstrap": (
        lambda f: f.resampling.cluster_bootstrap(3).table(),
        refused(r"resampling.cluster_bootstrap\(\)"),
    ),
    "resampling.jackknife": (lambda f: f.resampling.jackknife(3), refused(r"resampling.jackknife\(\)")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_works_or_says_why_not(fits: dict[str, mlsql.Fit], method: str, kind: str) -> None:
    if method == "as_marginaleffects":
        pytest.importorskip("marginaleffects")
    call, refusals = METHODS[method]
    if refusals is not None and kind in refusals:
        with pytest.raises(mlsql.FitError, match=refusals[kind]):
            call(fits[kind])
        return
    found = call(fits[kind])
    assert found is not None
    if isinstance(found, pl.DataFrame):
        assert found.height


def test_no_method_is_left_out() -> None:
    """A new one is put into the table, with what it does for several factors."""
    own = public(mlsql.Fit) - {f.name for f in dataclasses.fields(mlsql.Fit)} - set(FACETS)
    annotations = {name: inspect.get_annotations(getattr(mlsql.Fit, name).fget, eval_str=False) for name in FACETS}
    modules = {name: __import__(f"mlsql.pipeline.{name}", fromlist=[a["return"]]) for name, a in annotations.items()}
    for name, module in modules.items():
        own |= {f"{name}.{m}" for m in public(getattr(module, annotations[name]["return"])) - {"products"}}
    assert set(METHODS) == own


def public(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls) if not name.startswith("_")}


def test_every_facet_is_here() -> None:
    folder = Path(mlsql.__file__).parent / "pipeline"
    properties = {n for n, _ in inspect.getmembers(mlsql.Fit, lambda m: isinstance(m, property))}
    assert {n for n in properties if (folder / f"{n}.py").exists()} - {"products", "survey"} == set(FACETS)


def test_step_up_is_of_two_levels(data_file: Callable[[str], str]) -> None:
    with pytest.raises(mlsql.FitError, match=r"step_up is for models with one grouping factor.*has 2: plate, sample"):
        mlsql.step_up("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))


def test_a_membership_is_no_group_of_each_row() -> None:
    rows = pl.DataFrame({"y": [1.0, 2, 4, 3, 5, 7, 2, 1], "pupil": [1, 1, 2, 2, 3, 3, 4, 4]})
    history = pl.DataFrame({"pupil": [1, 2, 2, 3, 4, 4], "teacher": ["a", "a", "b", "b", "a", "c"]})
    table = mlsql.Membership(history, on="pupil", normalise=True)
    fit = mlsql.fit("y ~ 1 + (1 | teacher)", rows, memberships={"teacher": table})
    assert fit.icc is None
    with pytest.raises(mlsql.FitError, match=r"derived.icc\(\) is for models with groups .*; teacher is a membership"):
        fit.derived.icc()
    with pytest.raises(mlsql.FitError, match="vcov='CR0' is robust by group, and teacher are crossed or a membership"):
        fit.comparators.ols("CR0")
    assert fit.comparators.ols()["robust_std_error"].to_list() == [None]
