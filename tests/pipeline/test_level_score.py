"""Predictions and residuals of models with several grouping factors, against matrices with a column for every group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

import mlsql
from mlsql.pipeline import level_score
from mlsql.results import joint_effects
from mlsql.results.level_effects import level_effects

Array = NDArray[np.float64]
Files = Callable[[str], str]

EXACT = 1e-9
"""The same algebra in another order; a variance by cancellation of larger ones keeps ten digits."""

ALL = ["population", "population_std_error", "conditional", "conditional_std_error"]


@dataclass(frozen=True)
class Whole:
    """beta and all groups' effects as one vector: Henderson's equations, their inverse, and predictions from it.

    Attributes
    ----------
    frame : rows of the fit, the outcome among them
    outcome : str
    X : expressions of the fixed columns
    Z : by factor, the key columns joined by a colon, expressions of the random columns
    T : by factor
    sigma2 : float
    weight : expression or None
    """

    frame: pl.DataFrame
    outcome: str
    X: Sequence[pl.Expr]
    Z: Mapping[str, Sequence[pl.Expr]]
    T: Mapping[str, Array]
    sigma2: float
    weight: pl.Expr | None = None

    def keys(self, factor: str) -> pl.DataFrame:
        names = factor.split(":")
        return self.frame.select(names).unique().sort(names).with_row_index("code")

    def codes(self, rows: pl.DataFrame, factor: str) -> Array:
        """Group of each row, nan for those that the fit did not see."""
        names = factor.split(":")
        found = rows.join(self.keys(factor), on=names, how="left", maintain_order="left")
        return found["code"].cast(pl.Float64).fill_null(np.nan).to_numpy()

    def wide(self, rows: pl.DataFrame, factor: str) -> Array:
        Z, codes, J = values(rows, self.Z[factor]), self.codes(rows, factor), self.keys(factor).height
        return np.einsum("nj,nq->njq", codes[:, None] == np.arange(J), Z).reshape(len(rows), -1)

    def columns(self, rows: pl.DataFrame, terms: Sequence[str]) -> Array:
        parts = [self.wide(rows, f) * (f in terms) for f in self.Z]
        return np.hstack([values(rows, self.X), *parts])

    @cached_property
    def w(self) -> Array:
        return np.ones(len(self.frame)) if self.weight is None else values(self.frame, [self.weight])[:, 0]

    @cached_property
    def inverse(self) -> Array:
        H = self.columns(self.frame, list(self.Z))
        C, start = (H.T * self.w) @ H, len(self.X)
        for factor, T in self.T.items():
            J = self.keys(factor).height
            stop = start + J * len(T)
            C[start:stop, start:stop] += self.sigma2 * np.kron(np.eye(J), np.linalg.inv(T))
            start = stop
        return np.linalg.inv(C)

    @cached_property
    def solution(self) -> Array:
        H = self.columns(self.frame, list(self.Z))
        return self.inverse @ (H.T * self.w) @ self.frame[self.outcome].cast(pl.Float64).to_numpy()

    def predicted(self, rows: pl.DataFrame, terms: Sequence[str]) -> Array:
        """(n, 4) the columns of a prediction; unseen groups are new ones."""
        found = []
        for own in ((), terms):
            H = self.columns(rows, own)
            variance = self.sigma2 * np.einsum("na,ab,nb->n", H, self.inverse, H, optimize=True)
            for factor in own:
                Z = values(rows, self.Z[factor])
                new = np.einsum("na,ab,nb->n", Z, self.T[factor], Z)
                variance = variance + np.where(np.isnan(self.codes(rows, factor)), new, 0.0)
            found += [H @ self.solution, np.sqrt(variance)]
        return np.column_stack(found)


def values(rows: pl.DataFrame, expressions: Sequence[pl.Expr]) -> Array:
    found = rows.select(e.cast(pl.Float64).alias(str(i)) for i, e in enumerate(expressions))
    return np.column_stack([np.broadcast_to(found[c].to_numpy(), len(rows)) for c in found.columns])


def read(data_file: Files, name: str) -> pl.DataFrame:
    """Rows with their number; of egsingle six schools."""
    frame = pl.read_parquet(data_file(name))
    if name == "egsingle":
        frame = frame.filter(pl.col("schoolid").rank("dense") <= 6)
    return frame.with_row_index("row")


def predicted(fit: mlsql.Fit, *arguments: Any, **named: Any) -> pl.DataFrame:
    frame = fit.predict(*arguments, **named)
    assert frame is not None
    return frame.sort("row")


def agrees(frame: pl.DataFrame, expected: Array) -> None:
    scale = np.abs(expected).max(axis=0)
    np.testing.assert_allclose(frame.select(ALL).to_numpy() / scale, expected / scale, rtol=EXACT, atol=EXACT)


one, year, lowinc = pl.lit(1.0), pl.col("year"), pl.col("lowinc")
slopes = np.array([[0.7, 0.1], [0.1, 0.2]])
FORMULAS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: data, formula, what Whole needs beside the rows
    "nested": (
        "pastes",
        "strength ~ 1 + (1 | batch/cask)",
        {"X": [one], "Z": {"batch": [one], "batch:cask": [one]}, "T": {"batch": 1.66, "batch:cask": 8.43}},
    ),
    "nested, unique labels": (
        "pastes",
        "strength ~ 1 + (1 | sample) + (1 | batch)",
        {"X": [one], "Z": {"sample": [one], "batch": [one]}, "T": {"sample": 8.43, "batch": 1.66}},
    ),
    "crossed": (
        "penicillin",
        "diameter ~ 1 + (1 | plate) + (1 | sample)",
        {"X": [one], "Z": {"plate": [one], "sample": [one]}, "T": {"plate": 0.71, "sample": 3.73}},
    ),
    "slopes at both levels": (
        "egsingle",
        "math ~ year * lowinc + (year | schoolid/childid)",
        {
            "X": [one, year, lowinc, year * lowinc],
            "Z": {"schoolid": [one, year], "schoolid:childid": [one, year]},
            "T": {"schoolid": slopes, "schoolid:childid": slopes + 0.1},
        },
    ),
    "a slope at the top": (
        "egsingle",
        "math ~ year + (year || schoolid) + (1 | schoolid:childid)",
        {
            "X": [one, year],
            "Z": {"schoolid": [one, year], "schoolid:childid": [one]},
            "T": {"schoolid": np.diag([0.7, 0.2]), "schoolid:childid": 0.6},
        },
    ),
    "crossed over nested": (
        "egsingle",
        "math ~ year + (1 | schoolid/childid) + (year | grade)",
        {
            "X": [one, year],
            "Z": {"schoolid": [one], "schoolid:childid": [one], "grade": [one, year]},
            "T": {"schoolid": 0.2, "schoolid:childid": 0.6, "grade": slopes},
        },
    ),
}
OUTCOMES = {"pastes": "strength", "penicillin": "diameter", "egsingle": "math"}
Pair = tuple[mlsql.Fit, Whole]


def make(data_file: Files, name: str, rows: str = "TRUE", **settings: Any) -> Pair:
    """A fit at given variances and its matrices."""
    data, formula, rest = FORMULAS[name]
    frame = read(data_file, data).filter(pl.sql_expr(rows))
    T = {factor: np.atleast_2d(value) for factor, value in rest["T"].items()}
    fit = mlsql.evaluate(formula, frame, T=T, sigma2=0.7, **settings)
    weight = pl.sql_expr(settings["weights"]) if "weights" in settings else None
    return fit, Whole(frame, OUTCOMES[data], rest["X"], rest["Z"], T, 0.7, weight)


@pytest.fixture
def pair(data_file: Files) -> Callable[..., Pair]:
    return lambda *arguments, **settings: make(data_file, *arguments, **settings)


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [s for r in range(len(names) + 1) for s in combinations(names, r)]


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", FORMULAS)
def test_predictions_with_any_of_the_factors(pair: Callable[..., Pair], name: str) -> None:
    fit, whole = pair(name)
    for terms in subsets(list(whole.Z)):
        agrees(predicted(fit, terms=terms), whole.predicted(whole.frame, terms))
    assert_frame_equal(predicted(fit), predicted(fit, terms=list(whole.Z)))


@pytest.mark.parametrize("name", ["nested", "crossed", "slopes at both levels"])
def test_residuals(pair: Callable[..., Pair], name: str) -> None:
    fit, whole = pair(name)
    found = fit.residuals()
    assert found is not None
    added = ["residual_population", "residual", "residual_standardized"]
    assert found.columns == [*whole.frame.columns, *added]
    population, _, conditional, _ = whole.predicted(whole.frame, list(whole.Z)).T
    y = whole.frame[whole.outcome].cast(pl.Float64).to_numpy()
    expected = np.column_stack([y - population, y - conditional, (y - conditional) / np.sqrt(0.7)])
    np.testing.assert_allclose(found.sort("row").select(added).to_numpy(), expected, atol=EXACT * np.abs(y).max())
    fitted = fit.augment()
    assert fitted is not None
    fitted = fitted.sort("row")
    np.testing.assert_allclose(fitted["fitted"].to_numpy(), conditional, rtol=EXACT)
    assert_frame_equal(fitted.select(added), found.sort("row").select(added))


def test_weights(pair: Callable[..., Pair]) -> None:
    fit, whole = pair("slopes at both levels", weights="size / 500.0")
    for terms in subsets(list(whole.Z)):
        agrees(predicted(fit, terms=terms), whole.predicted(whole.frame, terms))
    found = fit.residuals()
    assert found is not None
    expected = found["residual"] * (found["size"] / 500.0).sqrt() / np.sqrt(0.7)
    np.testing.assert_allclose(found["residual_standardized"].to_numpy(), expected.to_numpy(), rtol=EXACT)


def test_an_offset_is_part_of_the_prediction(data_file: Files) -> None:
    frame = read(data_file, "egsingle")
    fit = mlsql.fit("math ~ year + offset(grade) + (1 | schoolid/childid)", frame)
    rows, found = predicted(fit), fit.residuals()
    assert found is not None
    left = rows["math"] - rows["conditional"]
    np.testing.assert_allclose(found.sort("row")["residual"].to_numpy(), left.to_numpy(), atol=1e-12)
    shifted = predicted(fit, frame.with_columns(grade=pl.col("grade") + 2))
    np.testing.assert_allclose((shifted["population"] - rows["population"]).to_numpy(), 2.0, rtol=1e-12)


def test_at_the_optimum_with_the_effects_of_the_tables(data_file: Files) -> None:
    fit = mlsql.fit("math ~ year + (year | schoolid/childid)", read(data_file, "egsingle"))
    rows = predicted(fit)
    sums = rows["population"].to_numpy().copy()
    for factor in ("schoolid", "schoolid:childid"):
        effects = fit.group_effects(factor).pivot("term", index=factor.split(":"), values="estimate")
        joined = rows.join(effects, on=factor.split(":"), how="left", suffix="_effect", maintain_order="left")
        sums += (joined["(Intercept)"] + joined["year_effect"] * joined["year"]).to_numpy()
        alone = predicted(fit, terms=factor)
        expected = (joined["population"] + joined["(Intercept)"] + joined["year_effect"] * joined["year"]).to_numpy()
        np.testing.assert_allclose(alone["conditional"].to_numpy(), expected, atol=EXACT)
    np.testing.assert_allclose(rows["conditional"].to_numpy(), sums, atol=EXACT)


def test_a_factor_without_variance(pair: Callable[..., Pair], data_file: Files) -> None:
    """Effects are zero and known to be: what is left is the model without the factor."""
    T = {"plate": 0.0, "sample": 3.73}
    frame = read(data_file, "penicillin")
    fit = mlsql.evaluate("diameter ~ 1 + (1 | plate) + (1 | sample)", frame, T=T, sigma2=0.7)
    without = mlsql.evaluate("diameter ~ 1 + (1 | sample)", frame, T=3.73, sigma2=0.7)
    agrees(predicted(fit), predicted(without).select(ALL).to_numpy())
    agrees(predicted(fit, terms="plate"), predicted(fit, terms=()).select(ALL).to_numpy())
    other = mlsql.evaluate(
        "diameter ~ 1 + (1 | plate) + (1 | sample)", frame, T={"plate": 0.71, "sample": 0}, sigma2=0.7
    )
    without = mlsql.evaluate("diameter ~ 1 + (1 | plate)", frame, T=0.71, sigma2=0.7)
    agrees(predicted(other), predicted(without).select(ALL).to_numpy())


def test_predictors_far_from_zero(data_file: Files) -> None:
    """Shifting a predictor by a million of its standard deviations changes nothing that a user sees."""
    frame = read(data_file, "egsingle")
    formula = "math ~ year + (year | schoolid/childid)"
    near = mlsql.fit(formula, frame)
    far = mlsql.fit(formula, frame.with_columns(year=pl.col("year") + 1.3e6))
    for terms in (None, "schoolid"):
        for column in ALL:
            expected = predicted(near, terms=terms)[column].to_numpy()
            # the promise for every result; 1e-10 of the predictor's own digits are lost in the shift
            np.testing.assert_allclose(predicted(far, terms=terms)[column].to_numpy(), expected, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------- terms


def test_names_of_terms(pair: Callable[..., Pair]) -> None:
    fit, _ = pair("nested")
    both = predicted(fit)
    assert_frame_equal(predicted(fit, terms=["batch:cask", "batch", "batch"]), both)
    assert_frame_equal(predicted(fit, terms="cask:batch"), predicted(fit, terms=["batch:cask"]))
    none = predicted(fit, terms=())
    assert_frame_equal(predicted(fit, terms="none"), none)
    assert none["conditional"].equals(none["population"])
    assert none["conditional_std_error"].equals(none["population_std_error"])
    assert both.columns == none.columns


@pytest.mark.parametrize("terms", ["cask", ["batch", "nobody"], [3], 3])
def test_terms_that_are_no_factors(pair: Callable[..., Pair], terms: Any) -> None:
    fit, _ = pair("nested")
    with pytest.raises(mlsql.FitError, match=r"is no grouping factor of the model; its factors are batch, batch:cask"):
        fit.predict(terms=terms)


def test_terms_of_a_two_level_model(data_file: Files) -> None:
    fit = mlsql.fit("strength ~ 1 + (1 | batch)", read(data_file, "pastes"))
    assert_frame_equal(predicted(fit, terms="batch"), predicted(fit))
    none = predicted(fit, terms=())
    assert_frame_equal(none.select(ALL[:2]), predicted(fit).select(ALL[:2]))
    assert none["conditional"].equals(none["population"])
    assert none["conditional_std_error"].equals(none["population_std_error"])
    with pytest.raises(
        mlsql.FitError, match="'cask', which is no grouping factor of the model; its factors are batch:"
    ):
        fit.predict(terms="cask")


def test_means_of_a_two_level_model_without_its_effects(data_file: Files) -> None:
    frame = read(data_file, "egsingle")
    fit = mlsql.fit("math ~ group_center(year) + group_mean(year) + (1 | schoolid)", frame)
    assert_frame_equal(predicted(fit, terms=()).select(ALL[:2]), predicted(fit).select(ALL[:2]))


def test_keys_of_factors_that_are_left_out_may_be_missing(pair: Callable[..., Pair]) -> None:
    fit, whole = pair("slopes at both levels")
    rows = whole.frame.select("row", "schoolid", "year", "lowinc")
    agrees(predicted(fit, rows, terms="schoolid"), whole.predicted(whole.frame, ["schoolid"]))
    agrees(predicted(fit, rows.drop("schoolid"), terms=()), whole.predicted(whole.frame, []))
    with pytest.raises(mlsql.DataError, match="column 'childid' is not in the data"):
        fit.predict(rows)
    with pytest.raises(mlsql.DataError, match="column 'year' is not in the data"):
        fit.predict(rows.drop("year"), terms=())


# ---------------------------------------------------------------------------------------------- new data


def test_combinations_that_the_fit_did_not_see(pair: Callable[..., Pair]) -> None:
    """Plates and samples never together in the fit: their effects are uncertain together all the same."""
    fit, whole = pair("crossed", "row % 5 > 0")
    rows = read_all(whole, "plate", "sample")
    assert len(rows) > len(whole.frame)
    for terms in subsets(list(whole.Z)):
        agrees(predicted(fit, rows, terms=terms), whole.predicted(rows, terms))


def read_all(whole: Whole, *names: str) -> pl.DataFrame:
    """Every combination of values."""
    rows = whole.frame.select(names[0]).unique()
    for other in names[1:]:
        rows = rows.join(whole.frame.select(other).unique(), how="cross")
    return rows.sort(names).with_row_index("row")


def test_groups_that_moved(pair: Callable[..., Pair]) -> None:
    """A cask that the fit saw in one batch, in another: effects of casks and batches that never met."""
    fit, whole = pair("nested, unique labels")
    rows = read_all(whole, "sample", "batch")
    for terms in subsets(list(whole.Z)):
        agrees(predicted(fit, rows, terms=terms), whole.predicted(rows, terms))


def test_groups_that_moved_within_a_chain(data_file: Files) -> None:
    """Three nested factors with labels of their own: the upper two are related through what they share."""
    frame = read(data_file, "pastes").with_columns(
        site=(pl.col("batch").rank("dense") % 3).cast(pl.Int64), half=pl.concat_str("sample", pl.col("row") % 2)
    )
    T = {"half": 0.6, "sample": 2.0, "batch": 1.7, "site": 0.9}
    formula = "strength ~ 1 + (1 | half) + (1 | sample) + (1 | batch) + (1 | site)"
    frame = pl.concat([frame, frame.with_columns(row=pl.col("row") + 60, strength=pl.col("strength") + 0.5)])
    fit = mlsql.evaluate(formula, frame, T=T, sigma2=0.7)
    Z = {factor: [one] for factor in T}
    whole = Whole(frame, "strength", [one], Z, {f: np.array([[v]]) for f, v in T.items()}, 0.7)
    rng = np.random.default_rng(3)
    rows = pl.DataFrame({f: rng.permutation(frame[f].to_numpy()) for f in T}).with_row_index("row")
    for terms in subsets(list(T)):
        agrees(predicted(fit, rows, terms=terms), whole.predicted(rows, terms))


@pytest.mark.parametrize("name", ["slopes at both levels", "crossed over nested"])
def test_new_groups_by_the_population(pair: Callable[..., Pair], data_file: Files, name: str) -> None:
    """New children in known schools, new schools, new grades: each with the variance of a new group."""
    fit, whole = pair(name, "schoolid % 3 > 0 AND childid % 3 > 0 AND grade > 1")
    rows = read(data_file, "egsingle")
    for factor in whole.Z:
        share = np.isnan(whole.codes(rows, factor)).mean()
        assert 0 < share < 1
    for terms in subsets(list(whole.Z)):
        agrees(predicted(fit, rows, terms=terms, unseen="population"), whole.predicted(rows, terms))


def test_new_groups_left_missing(pair: Callable[..., Pair], data_file: Files) -> None:
    fit, whole = pair("slopes at both levels", "schoolid % 3 > 0 AND childid % 3 > 0")
    rows = read(data_file, "egsingle")
    unknown = {factor: np.isnan(whole.codes(rows, factor)) for factor in whole.Z}
    for terms in subsets(list(whole.Z)):
        frame = predicted(fit, rows, terms=terms, unseen="missing")
        new = np.any([unknown[f] for f in terms], axis=0) if terms else np.zeros(len(rows), dtype=bool)
        for column in ALL[2:]:
            assert np.array_equal(frame[column].is_null().to_numpy(), new)
        assert frame.select(pl.col(ALL[:2]).null_count().sum()).row(0) == (0, 0)
        agrees(frame.filter(~new), whole.predicted(rows, terms)[~new])


def test_new_groups_are_refused(pair: Callable[..., Pair]) -> None:
    fit, whole = pair("nested")
    rows = whole.frame.with_columns(batch=pl.col("batch").replace({"A": "new"}), cask=pl.col("cask").replace("c", "d"))
    with pytest.raises(mlsql.DataError) as caught:
        fit.predict(rows)
    assert str(caught.value) == (
        "6 rows belong to 1 groups of batch (batch new) and 24 rows belong to 12 groups of batch:cask (batch B, "
        "cask d; batch C, cask d; batch D, cask d; ...) that the fit did not see; pass unseen='population' to predict "
        "their effects as those of new groups, or unseen='missing' to leave them NULL"
    )
    with pytest.raises(
        mlsql.DataError, match=r"^6 rows belong to 1 groups of batch \(batch new\) that the fit did not"
    ):
        fit.predict(rows, terms="batch")
    assert predicted(fit, rows, terms=()).height == 60


def test_rows_without_a_key(pair: Callable[..., Pair]) -> None:
    """As in a two-level model: unknown groups, which are no error."""
    fit, whole = pair("crossed")
    rows = whole.frame.with_columns(plate=pl.when(pl.col("row") % 5 > 0).then("plate"))
    null = (rows["row"] % 5 == 0).to_numpy()
    for unseen in ("error", "missing"):
        frame = predicted(fit, rows, unseen=unseen)
        assert np.array_equal(frame["conditional"].is_null().to_numpy(), null)
    agrees(predicted(fit, rows, unseen="population"), whole.predicted(rows, list(whole.Z)))
    assert predicted(fit, rows, terms="sample")["conditional"].null_count() == 0


def test_missing_predictors_give_null(data_file: Files) -> None:
    frame = read(data_file, "egsingle")
    fit = mlsql.fit("math ~ year + female + (year | schoolid/childid)", frame)
    row = pl.col("row")
    rows = frame.with_columns(
        year=pl.when(row % 7 > 0).then("year"),
        female=pl.when(row % 11 > 0).then("female").otherwise(pl.lit("neither")),
        math=pl.when(row % 5 > 0).then("math"),
    )
    found = predicted(fit, rows)
    for column in ALL:
        assert found[column].is_null().equals((rows["row"] % 7 == 0) | (rows["row"] % 11 == 0))
    left = mlsql.fit("math ~ year + (year | schoolid/childid)", rows).residuals()
    assert left is not None
    left = left.sort("row")
    assert left["residual"].is_null().equals((rows["row"] % 7 == 0) | (rows["row"] % 5 == 0))


# ---------------------------------------------------------------------------------------------- means of groups


CENTRED = "math ~ group_center(year, schoolid:childid) + group_mean(year, schoolid) + (group_center(year, schoolid) | schoolid) + (1 | schoolid:childid)"  # noqa: E501


def centred(frame: pl.DataFrame, fitted: pl.DataFrame) -> pl.DataFrame:
    """Means of the fit; for groups that it does not have, those of the frame."""
    for label, keys in (("school_mean", ["schoolid"]), ("child_mean", ["schoolid", "childid"])):
        stored = fitted.group_by(keys).agg(pl.col("year").mean().alias(label))
        frame = frame.join(stored, on=keys, how="left", maintain_order="left")
        frame = frame.with_columns(pl.coalesce(label, pl.col("year").mean().over(keys)))
    return frame


def test_centred_within_groups_of_a_factor(data_file: Files) -> None:
    every = read(data_file, "egsingle")
    frame = every.filter((pl.col("schoolid") % 3 > 0) & (pl.col("childid") % 3 > 0) & (pl.col("grade") > 0))
    T: dict[str, Array] = {"schoolid": slopes, "schoolid:childid": np.array([[0.6]])}
    fit = mlsql.evaluate(CENTRED, frame, T=T, sigma2=0.7)
    school, child = pl.col("school_mean"), pl.col("child_mean")
    X = [one, year - child, school]
    Z = {"schoolid": [one, year - school], "schoolid:childid": [one]}
    whole = Whole(centred(frame, frame), "math", X, Z, T, 0.7)
    rows = centred(every, frame)
    for terms in subsets(list(Z)):
        agrees(predicted(fit, terms=terms), whole.predicted(whole.frame, terms))
        agrees(predicted(fit, every, terms=terms, unseen="population"), whole.predicted(rows, terms))
    # a group of the fit keeps the fit's mean, whichever of its rows are predicted
    few = predicted(fit, frame.filter(pl.col("grade") > 2))
    assert_frame_equal(few, predicted(fit).filter(pl.col("grade") > 2))


def test_means_of_groups_that_the_fit_did_not_see(data_file: Files) -> None:
    every = read(data_file, "egsingle")
    fit = mlsql.fit(
        "math ~ group_center(year, schoolid) + (1 | schoolid/childid)", every.filter(pl.col("schoolid") % 3 > 0)
    )
    new = (every["schoolid"] % 3 == 0).to_numpy()
    with pytest.raises(mlsql.DataError, match="groups of schoolid "):
        fit.predict(every, terms=())
    found = predicted(fit, every, terms=(), unseen="missing")
    for column in ALL:
        assert np.array_equal(found[column].is_null().to_numpy(), new)
    with pytest.raises(mlsql.DataError, match="column 'schoolid' is not in the data"):
        fit.predict(every.drop("schoolid"), terms=())


def test_grand_means_are_those_of_the_fit(data_file: Files) -> None:
    frame = read(data_file, "egsingle")
    formula = "math ~ {} + ({} | schoolid) + (1 | schoolid:childid)"
    fit = mlsql.fit(formula.format(*["grand_center(year)"] * 2), frame)
    shift = frame["year"].mean()
    by_hand = mlsql.fit(formula.format("yc", "yc"), frame.with_columns(yc=pl.col("year") - shift))
    few = frame.filter(pl.col("grade") > 2)
    expected = predicted(by_hand, few.with_columns(yc=pl.col("year") - shift))
    # two searches for the same optimum
    for column in ALL:
        np.testing.assert_allclose(predicted(fit, few)[column].to_numpy(), expected[column].to_numpy(), rtol=1e-6)


# ---------------------------------------------------------------------------------------------- targets, sources


def test_into_tables_and_files(data_file: Files, tmp_path: Path) -> None:
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE rows AS SELECT row_number() OVER () AS row, * FROM '{data_file('penicillin')}'")
        fit = mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", "rows", con=con)
        expected = predicted(fit, terms="plate")
        assert fit.predict(into="scored", terms="plate") is None
        assert_frame_equal(con.sql("FROM scored ORDER BY row").pl(), expected)
        with pytest.raises(mlsql.StoreError, match="table 'scored' exists"):
            fit.predict(into="scored")
        fit.residuals(into="left_over")
        assert con.sql("SELECT count(residual) FROM left_over").fetchall() == [(144,)]
        for target in ("p.parquet", "p.csv"):
            assert fit.predict(into=tmp_path / target, terms="plate") is None
        assert_frame_equal(pl.read_parquet(tmp_path / "p.parquet").sort("row"), expected)
        assert pl.read_csv(tmp_path / "p.csv").columns == expected.columns
        # nothing of ours stays behind
        assert con.sql("SHOW TABLES").fetchall() == [("left_over",), ("rows",), ("scored",)]


def test_on_another_connection(pair: Callable[..., Pair]) -> None:
    fit, whole = pair("nested")
    with duckdb.connect() as con:
        assert_frame_equal(predicted(fit, con=con), predicted(fit))
        assert_frame_equal(predicted(fit, whole.frame.to_arrow(), con=con), predicted(fit))


def test_a_column_of_the_result(pair: Callable[..., Pair]) -> None:
    fit, whole = pair("nested")
    with pytest.raises(mlsql.DataError, match="a column called 'conditional' already"):
        fit.predict(whole.frame.with_columns(conditional=1))


# ---------------------------------------------------------------------------------------------- limits


def test_more_combinations_than_memory_should_hold(pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    fit, whole = pair("crossed")
    expected = whole.predicted(whole.frame, list(whole.Z))
    # 144 combinations of two numbers and a covariance
    monkeypatch.setattr(level_score, "JOINT_NUMBERS", 3 * 144)
    agrees(predicted(fit), expected)
    monkeypatch.setattr(level_score, "JOINT_NUMBERS", 3 * 143)
    found = predicted(fit)
    assert found["conditional_std_error"].null_count() == 144
    np.testing.assert_allclose(found.select(ALL[:3]).to_numpy(), expected[:, :3], rtol=EXACT)
    agrees(predicted(fit, terms="plate"), whole.predicted(whole.frame, ["plate"]))


@pytest.mark.parametrize("name", ["crossed", "slopes at both levels", "crossed over nested"])
def test_one_factor_s_errors_do_not_need_the_matrix_of_the_rest(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fit, whole = pair(name)
    monkeypatch.setattr(joint_effects.JointEffects, "complete", property(lambda self: False))
    for factor in whole.Z:
        agrees(predicted(fit, terms=factor), whole.predicted(whole.frame, [factor]))
    found = predicted(fit)
    assert found["conditional_std_error"].null_count() == found.height
    assert found["conditional"].null_count() == 0


@pytest.mark.parametrize("name", FORMULAS)
def test_effects_are_those_of_the_tables(pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By substitution from the top down, and by Lambda Z'V^-1(y - X beta); small blocks of rows change nothing."""
    fit, _ = pair(name)
    monkeypatch.setattr(joint_effects, "ROWS_BYTES", 100)
    found = joint_effects.joint_effects(fit.estimates)
    for t, table in enumerate(level_effects(fit.estimates)):
        # Lambda - Lambda Z'V^-1Z Lambda loses digits
        np.testing.assert_allclose(found.effects(t), table.u, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.shrunken(t), table.shrunken, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.conditional(t), table.conditional, rtol=1e-8, atol=1e-10)


# ---------------------------------------------------------------------------------------------- memberships


@pytest.fixture
def teachers(data_file: Files) -> tuple[pl.DataFrame, pl.DataFrame, Callable[..., mlsql.Fit]]:
    """Rows of plates, three testers of each plate, two of the first, whose outcomes are missing; and a fit."""
    frame = read(data_file, "penicillin").with_columns(diameter=pl.when(pl.col("row") >= 6).then("diameter"))
    frame = frame.with_columns(code=pl.col("plate").rank("dense").cast(pl.Int64))
    plate = pl.DataFrame({"code": np.arange(1, 25)})
    history = pl.concat(
        plate.with_columns(tester=(pl.col("code") * step) % 7 + 10, share=pl.lit(share))
        for step, share in ((1, 0.5), (2, 0.3), (3, 0.2))
    ).filter((pl.col("code") > 1) | (pl.col("share") > 0.2))
    given = {"tester": mlsql.Membership(history, on="code", weight="share")}

    def fit(formula: str, T: Mapping[str, float]) -> mlsql.Fit:
        return mlsql.evaluate(formula, frame, T=T, sigma2=0.7, memberships=given)

    return frame, history, fit


def test_effects_of_several_units(teachers: Any) -> None:
    """The fit did not see the first plate's set of testers: no prediction with their effects."""
    frame, history, fit_with = teachers
    T = {"tester": 2.1, "sample": 3.73}
    fit = fit_with("diameter ~ 1 + (1 | tester) + (1 | sample)", T)
    weights = np.zeros((24, 7))
    for code, tester, share in history.iter_rows():
        weights[code - 1, tester - 10] += share
    M = weights[frame["code"].to_numpy() - 1]
    S = frame["sample"].to_dummies().to_numpy() * 1.0
    seen = frame["diameter"].is_not_null().to_numpy()
    H = np.hstack([np.ones((144, 1)), M, S])
    C = H[seen].T @ H[seen] + np.diag([0.0, *[0.7 / 2.1] * 7, *[0.7 / 3.73] * 6])
    inverse = np.linalg.inv(C)
    coefficients = inverse @ H[seen].T @ frame["diameter"].drop_nulls().to_numpy()
    use = {"tester": slice(1, 8), "sample": slice(8, 14)}
    for terms in subsets(list(T)):
        own = np.zeros_like(H)
        for columns in (slice(0, 1), *(use[t] for t in terms)):
            own[:, columns] = H[:, columns]
        found = predicted(fit, terms=terms, unseen="population")
        known = seen if "tester" in terms else np.ones(144, dtype=bool)
        assert np.array_equal(found["conditional"].is_null().to_numpy(), ~known)
        error = np.sqrt(0.7 * np.einsum("na,ab,nb->n", own, inverse, own))
        np.testing.assert_allclose(found["conditional"].to_numpy()[known], (own @ coefficients)[known], rtol=EXACT)
        np.testing.assert_allclose(found["conditional_std_error"].to_numpy()[known], error[known], rtol=EXACT)
        # what numbers the sets stays inside
        assert found.columns == [*frame.columns, *ALL]


def test_memberships_of_new_data(teachers: Any) -> None:
    frame, _, fit_with = teachers
    fit = fit_with("diameter ~ 1 + (1 | tester) + (1 | sample)", {"tester": 2.1, "sample": 3.73})
    # a column of that name would hold units, not sets
    rows = frame.with_columns(tester=pl.lit(10))
    with pytest.raises(
        mlsql.DataError, match="units of tester come from a membership table, which new data do not have"
    ):
        fit.predict(rows)
    own = predicted(fit, terms="sample").select(ALL)
    assert_frame_equal(predicted(fit, frame, terms="sample").select(ALL), own)
    with pytest.raises(
        mlsql.DataError, match=r"^6 rows have 1 sets of units of tester that the fit did not see; pass unse"
    ):
        fit.predict()
