"""Result tables of fits with several grouping factors: every factor's groups, and the SQL functions that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import duckdb
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mlsql
from mlsql.pipeline import store as store_module
from mlsql.pipeline.store import show_stored
from mlsql.surfaces.macros import install_macros

Array = NDArray[np.float64]
Con = duckdb.DuckDBPyConnection
Files = Callable[[str], str]

# the same algebra, in SQL or by dense matrices, where sums run in another order
SAME = 1e-9

CENTRED = (
    "math ~ group_center(year, schoolid:childid) + group_mean(grade, schoolid) + black + "
    "(group_center(year, schoolid:childid) | schoolid) + (1 | schoolid:childid)"
)


@pytest.fixture(scope="module")
def crossed(data_file: Files) -> mlsql.Fit:
    return mlsql.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data_file("penicillin"))


@pytest.fixture(scope="module")
def nested(data_file: Files) -> mlsql.Fit:
    return mlsql.fit(CENTRED, data_file("egsingle"))


@pytest.fixture
def con() -> Iterator[Con]:
    with duckdb.connect() as con:
        yield con


# what is written


def test_effects_of_every_factor(con: Con, nested: mlsql.Fit) -> None:
    nested.to_tables(con)
    for factor, keys in (("schoolid", ["schoolid"]), ("schoolid:childid", ["schoolid", "childid"])):
        own = nested.group_effects(factor)
        stored = con.sql(f"SELECT * FROM ml_group_effects WHERE \"group\" = '{factor}'").pl()
        parts = [pl.col(k).cast(pl.String) for k in keys]
        texts = own.select(parts[0] if len(keys) == 1 else pl.format('["{}", "{}"]', *parts)).to_series()
        assert stored["key"].to_list() == texts.to_list()
        for name in ("term", "estimate", "std_error", "conditional_sd", "reliability", "n"):
            assert stored[name].to_list() == own[name].to_list()
        for name in ("coefficient", "coefficient_std_error", "ols_estimate", "ols_std_error", "ols_coefficient"):
            assert stored[name].null_count() == stored.height


def test_facts_of_the_fit(con: Con, crossed: mlsql.Fit, nested: mlsql.Fit) -> None:
    for fit in (crossed, nested):
        fit.to_tables(con)
    found = con.sql('SELECT "group", n_groups, icc FROM ml_fits ORDER BY n_rows').fetchall()
    assert found == [("plate, sample", None, None), ("schoolid, schoolid:childid", 60, None)]
    query = 'SELECT "group", count(*) FROM ml_variance_components GROUP BY ALL ORDER BY ALL'
    assert con.sql(query).fetchall() == [
        ("Residual", 2), ("plate", 1), ("sample", 1), ("schoolid", 3), ("schoolid:childid", 1),
    ]  # fmt: skip


def test_covariances_are_those_of_dense_matrices(con: Con, crossed: mlsql.Fit, data_file: Files) -> None:
    """Henderson's equations give the errors' joint covariance matrix."""
    crossed.to_tables(con)
    frame = pl.read_parquet(data_file("penicillin"))
    blocks = [np.ones((144, 1))]
    for factor in ("plate", "sample"):
        keys = crossed.group_effects(factor)[factor]
        blocks.append(np.array([[float(v == k) for k in keys] for v in frame[factor]]))
    H = np.hstack(blocks)
    penalty = np.concatenate([[0.0], np.full(24, 1 / crossed.T[0, 0]), np.full(6, 1 / crossed.T[1, 1])])
    whole = crossed.sigma2 * np.linalg.inv(H.T @ H + crossed.sigma2 * np.diag(penalty))
    query = 'SELECT effect1, covariance FROM ml_group_covariances WHERE "group" = ? ORDER BY effect1, key'
    for factor, part in (("plate", slice(1, 25)), ("sample", slice(25, 31))):
        found = con.execute(query, [factor]).fetchall()
        expected = np.concatenate([whole[0, part], np.diag(whole)[part]])
        assert [e for e, _ in found] == ["fixed"] * (len(found) // 2) + ["random"] * (len(found) // 2)
        assert np.allclose([v for _, v in found], expected, rtol=SAME)


def test_all_groups_count_before_covariances_are_written(
    con: Con, crossed: mlsql.Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MANY_GROUPS", 29)
    crossed.to_tables(con)
    assert con.sql("SELECT count(*) FROM ml_group_covariances").fetchall() == [(0,)]
    monkeypatch.setattr(store_module, "MANY_GROUPS", 30)
    crossed.to_tables(con)
    assert con.sql("SELECT count(*) FROM ml_group_covariances").fetchall() == [(60,)]


def test_means_of_the_named_groups(con: Con, nested: mlsql.Fit, data_file: Files) -> None:
    nested.to_tables(con)
    for keys, column in ((("schoolid",), "grade"), (("schoolid", "childid"), "year")):
        parts = ", ".join(f"to_json({k}::VARCHAR)" for k in keys)
        key = f"{keys[0]}::VARCHAR" if len(keys) == 1 else f"'[' || concat_ws(', ', {parts}) || ']'"
        own = f"SELECT {key} AS key, avg({column}) AS mean FROM '{data_file('egsingle')}' GROUP BY ALL"
        query = f"""
            SELECT count(*), max(abs(m.mean - d.mean)) FROM ml_group_means AS m JOIN ({own}) AS d USING (key)
            WHERE m."group" = '{":".join(keys)}' AND m.variable = '{column}'
        """
        ((found, apart),) = con.sql(query).fetchall()
        assert found == (60 if len(keys) == 1 else 1721)
        assert apart < SAME


def test_terms_compute_the_columns_of_the_model(con: Con, nested: mlsql.Fit, data_file: Files) -> None:
    """The fixed part from the terms' SQL and the stored coefficients is what `predict` says of the population."""
    nested.to_tables(con)
    terms = con.sql("SELECT term, sql FROM ml_terms WHERE part = 'fixed' ORDER BY position").fetchall()
    beta = dict(con.sql("SELECT term, estimate FROM ml_fixed_effects").fetchall())
    total = " + ".join(f"({sql}) * {beta[term]!r}" for term, sql in terms)
    con.execute(f"CREATE TABLE d AS SELECT row_number() OVER () AS i, * FROM '{data_file('egsingle')}'")
    found = con.sql(f"SELECT {total} FROM d ORDER BY i").fetchnumpy()
    frame = nested.predict()
    assert frame is not None
    assert np.allclose(next(iter(found.values())), frame["population"].to_numpy(), rtol=SAME, atol=SAME)


def test_terms_name_the_factor(con: Con, nested: mlsql.Fit) -> None:
    nested.to_tables(con)
    query = 'SELECT position, term, "group" FROM ml_terms WHERE part = \'{}\' ORDER BY "group", position'
    assert con.sql(query.format("key")).fetchall() == [
        (0, "schoolid", "schoolid"), (0, "schoolid", "schoolid:childid"), (1, "childid", "schoolid:childid"),
    ]  # fmt: skip
    assert con.sql(query.format("random")).fetchall() == [
        (0, "(Intercept)", "schoolid"),
        (1, "group_center(year, schoolid:childid)", "schoolid"),
        (2, "(Intercept)", "schoolid:childid"),
    ]
    assert con.sql("SELECT count(*) FROM ml_terms WHERE part = 'fixed' AND \"group\" IS NOT NULL").fetchall() == [(0,)]


def test_effects_of_members(con: Con) -> None:
    fit = members()
    fit.to_tables(con)
    found = con.sql('SELECT DISTINCT "group", key FROM ml_group_effects ORDER BY ALL').fetchall()
    assert found == [("teacher", "a"), ("teacher", "b"), ("teacher", "c")]
    found = con.sql("SELECT part, term, in_table FROM ml_terms WHERE in_table <> 'data' ORDER BY ALL").fetchall()
    assert found == [("fixed", "membership_sum(degree, teacher)", "membership"), ("key", "teacher", "membership")]


def members() -> mlsql.Fit:
    rng = np.random.default_rng(1)
    rows = pl.DataFrame({"y": rng.normal(0, 1, 40), "pupil": np.repeat(np.arange(10), 4)})
    pairs = [(p, t, 1 + (p * t) % 3) for p in range(10) for t in range(3) if (p + t) % 4]
    history = pl.DataFrame(pairs, schema=["pupil", "teacher", "degree"], orient="row")
    table = mlsql.Membership(
        history.with_columns(pl.col("teacher").replace_strict({0: "a", 1: "b", 2: "c"})), on="pupil"
    )
    return mlsql.fit("y ~ membership_sum(degree, teacher) + (1 | teacher)", rows, memberships={"teacher": table})


def test_shown_from_the_tables(con: Con, crossed: mlsql.Fit, nested: mlsql.Fit) -> None:
    text = show_stored(con, crossed.to_tables(con))
    assert "\nFactors    plate, sample\n" in text
    assert "Level 2" not in text
    assert "\n    plate: (Intercept) " in text
    assert "\nFactors    schoolid, schoolid:childid\n" in show_stored(con, nested.to_tables(con))
    assert show_stored(con).splitlines()[1:] != []
    assert "\nFactors    teacher\n" in show_stored(con, members().to_tables(con))


def test_running_again_replaces_the_rows(con: Con, crossed: mlsql.Fit) -> None:
    for _ in range(2):
        assert crossed.to_tables(con) == crossed.fit_id
    assert con.sql("SELECT count(*) FROM ml_group_effects").fetchall() == [(30,)]


# SQL functions


def test_functions_that_serve_any_fit(con: Con, crossed: mlsql.Fit) -> None:
    fit_id = crossed.to_tables(con)
    install_macros(con)
    found = con.execute(f"SELECT \"group\", term1, estimate FROM ml_fit_summary('{fit_id}')").fetchall()
    variances = crossed.variance_components
    assert [r for r in found if r[0] is not None] == variances.select("group", "term1", "estimate").rows()
    assert (None, "n_groups", None) in found
    row = con.execute(f"SELECT std_error FROM ml_contrast('{fit_id}', MAP {{'(Intercept)': 2}})").fetchall()
    assert row[0][0] == pytest.approx(2 * crossed.fixed_effects["std_error"].item(), rel=SAME)


def test_caterpillar_of_one_factor(con: Con, crossed: mlsql.Fit) -> None:
    fit_id = crossed.to_tables(con)
    install_macros(con)
    found = con.execute(f"SELECT key, estimate FROM ml_caterpillar('{fit_id}', '(Intercept)', factor := 'sample')")
    assert found.fetchall() == crossed.group_effects("sample").sort("estimate").select("sample", "estimate").rows()
    with pytest.raises(duckdb.InvalidInputException, match=r"varies over several grouping factors.*factor := 'plate'"):
        con.execute(f"FROM ml_caterpillar('{fit_id}', '(Intercept)')").fetchall()
    with pytest.raises(duckdb.InvalidInputException, match=r"has no random coefficient \(Intercept\) of school in"):
        con.execute(f"FROM ml_caterpillar('{fit_id}', '(Intercept)', factor := 'school')").fetchall()


def test_coefficients_of_several_factors_are_null(con: Con, crossed: mlsql.Fit) -> None:
    fit_id = crossed.to_tables(con)
    install_macros(con)
    query = 'count("group"), count(effect), count(n), count(fixed_part), count(coefficient), count(conf_high)'
    assert con.execute(f"SELECT {query} FROM ml_coefficients('{fit_id}')").fetchall() == [(30, 30, 30, 0, 0, 0)]


SCORE = "has several grouping factors or a membership, and ml_score knows one group of each row; use Fit.predict"


def test_scores_need_one_group_of_each_row(con: Con, crossed: mlsql.Fit, data_file: Files) -> None:
    install_macros(con)
    con.execute(f"CREATE TABLE p AS SELECT row_number() OVER () AS i, * FROM '{data_file('penicillin')}'")
    con.execute("CREATE TABLE lines AS SELECT i AS row_id, plate AS key, '(Intercept)' AS term, 1.0 AS value FROM p")
    for fit in (crossed, members()):
        fit_id = fit.to_tables(con)
        with pytest.raises(duckdb.InvalidInputException, match=f"the fit {fit_id} {SCORE}"):
            con.execute(f"FROM ml_score('{fit_id}', 'lines')").fetchall()
        with pytest.raises(duckdb.InvalidInputException, match=f"the fit {fit_id} {SCORE}"):
            con.execute(f"SELECT ml_score_sql('{fit_id}', 'p', 'i')").fetchall()


def test_tables_of_an_older_release_are_scored(con: Con, data_file: Files) -> None:
    """Without the column of ml_terms that names the factor."""
    fit = mlsql.fit("mathach ~ ses + (1 | school)", data_file("hsb"))
    fit_id = fit.to_tables(con)
    install_macros(con)
    con.execute('ALTER TABLE ml_terms DROP COLUMN "group"')
    con.execute(f"CREATE TABLE pupils AS SELECT row_number() OVER () AS i, * FROM '{data_file('hsb')}'")
    con.execute(f"SET VARIABLE scoring = ml_score_sql('{fit_id}', 'pupils', 'i')")
    assert con.sql("SELECT count(conditional) FROM query(getvariable('scoring'))").fetchall() == [(7185,)]
