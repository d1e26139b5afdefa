"""Result tables in a database: columns, replacement, separation of fits, transactions, refusals."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from polars.testing import assert_frame_equal

import mlsql

Con = duckdb.DuckDBPyConnection
COUNTED = ("fits", "fixed_effects", "variance_components", "group_effects")
TABLES = (*COUNTED, "fixed_covariances", "group_covariances", "group_means", "terms")

COLUMNS = {
    "fits": {
        "fit_id": "VARCHAR", "formula": "VARCHAR", "method": "VARCHAR", "n_rows": "BIGINT", "n_groups": "BIGINT",
        "deviance": "DOUBLE", "log_likelihood": "DOUBLE", "aic": "DOUBLE", "bic": "DOUBLE", "n_parameters": "BIGINT",
        "n_covariance_parameters": "BIGINT", "sigma2": "DOUBLE", "icc": "DOUBLE", "converged": "BOOLEAN",
        "singular": "BOOLEAN", "status": "VARCHAR", "evaluations": "BIGINT", "promised_decrease": "DOUBLE",
        "source": "VARCHAR", "group": "VARCHAR", "warnings": "VARCHAR", "mlsql_version": "VARCHAR",
        "written_at": "TIMESTAMP WITH TIME ZONE",
    },
    "fixed_effects": {
        "fit_id": "VARCHAR", "term": "VARCHAR", "estimate": "DOUBLE", "std_error": "DOUBLE", "df": "DOUBLE",
        "statistic": "DOUBLE", "p_value": "DOUBLE", "conf_low": "DOUBLE", "conf_high": "DOUBLE",
        "robust_std_error": "DOUBLE", "robust_ratio": "DOUBLE", "df_method": "VARCHAR", "vcov": "VARCHAR",
        "centering": "VARCHAR", "note": "VARCHAR",
    },
    "variance_components": {
        "fit_id": "VARCHAR", "group": "VARCHAR", "term1": "VARCHAR", "term2": "VARCHAR", "estimate": "DOUBLE",
        "sd_or_corr": "DOUBLE", "std_error": "DOUBLE", "conf_low": "DOUBLE", "conf_high": "DOUBLE", "chi2": "DOUBLE",
        "df": "BIGINT", "p_value": "DOUBLE", "groups_used": "BIGINT", "reliability": "DOUBLE",
    },
    "group_effects": {
        "fit_id": "VARCHAR", "group": "VARCHAR", "key": "VARCHAR", "term": "VARCHAR", "estimate": "DOUBLE",
        "std_error": "DOUBLE", "conditional_sd": "DOUBLE", "coefficient": "DOUBLE", "coefficient_std_error": "DOUBLE",
        "ols_estimate": "DOUBLE", "ols_std_error": "DOUBLE", "ols_coefficient": "DOUBLE", "reliability": "DOUBLE",
        "n": "BIGINT",
    },
    "fixed_covariances": {"fit_id": "VARCHAR", "term1": "VARCHAR", "term2": "VARCHAR", "covariance": "DOUBLE"},
    "group_covariances": {
        "fit_id": "VARCHAR", "group": "VARCHAR", "key": "VARCHAR", "effect1": "VARCHAR", "term1": "VARCHAR",
        "effect2": "VARCHAR", "term2": "VARCHAR", "covariance": "DOUBLE",
    },
    "group_means": {
        "fit_id": "VARCHAR", "group": "VARCHAR", "key": "VARCHAR", "variable": "VARCHAR", "mean": "DOUBLE",
    },
    "terms": {
        "fit_id": "VARCHAR", "part": "VARCHAR", "position": "BIGINT", "term": "VARCHAR", "sql": "VARCHAR",
        "in_table": "VARCHAR", "group": "VARCHAR",
    },
}  # fmt: skip


def names(con: Con) -> list[str]:
    return sorted(r[0] for r in con.sql("SELECT table_name FROM duckdb_tables()").fetchall())


def counts(con: Con, prefix: str = "ml_") -> list[int]:
    return [con.sql(f'SELECT count(*) FROM "{prefix}{t}"').fetchall()[0][0] for t in COUNTED]


@pytest.fixture
def store() -> Con:
    return duckdb.connect()


@pytest.mark.parametrize("table", TABLES)
def test_columns(fitted: mlsql.Fit, store: Con, table: str) -> None:
    fitted.to_tables(store)
    described = {r[0]: r[1] for r in store.sql(f"DESCRIBE ml_{table}").fetchall()}
    assert described == COLUMNS[table]


def test_rows_are_those_of_the_accessors(fitted: mlsql.Fit, store: Con) -> None:
    fit_id = fitted.to_tables(store)
    assert fit_id == fitted.fit_id
    fixed = store.sql(f"SELECT * EXCLUDE (fit_id) FROM ml_fixed_effects WHERE fit_id = '{fit_id}'").pl()
    assert_frame_equal(fixed, fitted.fixed_effects)
    stored = store.sql("SELECT * EXCLUDE (fit_id) FROM ml_variance_components").pl()
    assert_frame_equal(stored, fitted.variance_components)
    effects = store.sql('SELECT * EXCLUDE (fit_id, "group", key) FROM ml_group_effects').pl()
    assert_frame_equal(effects, fitted.group_effects().drop("g"))
    assert store.sql('SELECT DISTINCT "group", count(DISTINCT key) FROM ml_group_effects GROUP BY 1').fetchall() == [
        ("g", 12)
    ]
    (row,) = store.sql("SELECT * FROM ml_fits").pl().to_dicts()
    assert row["deviance"] == fitted.deviance
    assert row["status"] == "converged"
    assert row["source"] == "t"
    assert row["warnings"] == "\n".join(fitted.warnings)
    assert row["mlsql_version"] == mlsql.__version__
    age = datetime.datetime.now(tz=datetime.UTC) - row["written_at"]
    assert abs(age.total_seconds()) < 600


def test_running_again_replaces_the_rows(con: Con, fitted: mlsql.Fit, store: Con) -> None:
    fitted.to_tables(store)
    before = counts(store)
    again = mlsql.fit(fitted.spec, "t", con=con)
    assert again.to_tables(store) == fitted.fit_id
    assert counts(store) == before == [1, 5, 4, 24]


def test_two_models_are_kept_apart(con: Con, fitted: mlsql.Fit, store: Con) -> None:
    fitted.to_tables(store)
    other = mlsql.fit("y ~ x + (1 | g)", "t", con=con)
    other.to_tables(store)
    assert counts(store) == [2, 7, 6, 36]
    fitted.to_tables(store)
    assert counts(store) == [2, 7, 6, 36]
    stored = dict(store.sql("SELECT fit_id, deviance FROM ml_fits").fetchall())
    assert stored == {fitted.fit_id: fitted.deviance, other.fit_id: other.deviance}


def test_what_makes_another_fit(con: Con) -> None:
    """Method, weights, data, level-2 table, given components: none may overwrite another's rows."""
    frame = con.sql("FROM t").pl()
    formula = "y ~ x + (1 | g)"
    with_upper = "y ~ x + w + (1 | g)"
    fits = {
        "plain": mlsql.fit(formula, "t", con=con),
        "method": mlsql.fit(formula, "t", con=con, method="ML"),
        "weights": mlsql.fit(formula, "t", con=con, weights="z"),
        "source": mlsql.fit(formula, "SELECT * FROM t", con=con),
        "frame": mlsql.fit(formula, frame),
        "another frame of the same size": mlsql.fit(formula, frame.with_columns(y=frame["y"] * 2 + frame["x"])),
        "T": mlsql.evaluate(formula, "t", con=con, T=1.0, sigma2=1.0),
        "another T": mlsql.evaluate(formula, "t", con=con, T=2.0, sigma2=1.0),
        "level2": mlsql.fit(with_upper, "t", con=con, level2="upper"),
        "another level2": mlsql.fit(with_upper, "t", con=con, level2="SELECT * REPLACE (w * g AS w) FROM upper"),
    }
    by_id: dict[str, list[str]] = {}
    for name, fitted in fits.items():
        by_id.setdefault(fitted.fit_id, []).append(name)
    assert [same for same in by_id.values() if len(same) > 1] == []


def test_the_same_fit_has_the_same_id_in_another_process(con: Con, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    con.execute(f"COPY t TO '{file}' (FORMAT parquet)")
    program = f"import mlsql; print(mlsql.fit('y ~ x + (1 | g)', {str(file)!r}).fit_id)"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    fit_id = mlsql.fit("y ~ x + (1 | g)", file).fit_id
    assert other.stdout.strip() == fit_id
    assert len(fit_id) == 16
    int(fit_id, 16)


@pytest.mark.parametrize("prefix", ["", "other_", 'we"ird; ', "'); DROP TABLE t; --", "Ä "])
def test_other_prefixes(fitted: mlsql.Fit, store: Con, prefix: str) -> None:
    store.execute("CREATE TABLE t AS SELECT 1 AS a")
    fitted.to_tables(store, prefix=prefix)
    assert names(store) == sorted([*(prefix + t for t in TABLES), "t"])


def test_prefixes_do_not_meet(con: Con, fitted: mlsql.Fit, store: Con) -> None:
    fitted.to_tables(store)
    mlsql.fit("y ~ x + (1 | g)", "t", con=con).to_tables(store, prefix="b_")
    assert counts(store) == [1, 5, 4, 24]
    assert counts(store, "b_") == [1, 2, 2, 12]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_that_name_with_other_columns(fitted: mlsql.Fit, store: Con, table: str) -> None:
    store.execute(f"CREATE TABLE ml_{table} AS SELECT 42 AS mine")
    with pytest.raises(mlsql.StoreError, match="nothing was changed") as caught:
        fitted.to_tables(store)
    # the cause is named, not what followed from it
    assert "fit_id" in str(caught.value)
    assert "aborted" not in str(caught.value)
    assert names(store) == [f"ml_{table}"]
    assert store.sql(f"FROM ml_{table}").fetchall() == [(42,)]


def test_earlier_fits_survive_a_failure(con: Con, fitted: mlsql.Fit, store: Con) -> None:
    fitted.to_tables(store)
    store.execute("ALTER TABLE ml_group_effects ALTER term TYPE INTEGER USING 1")
    with pytest.raises(mlsql.StoreError):
        mlsql.fit("y ~ x + (1 | g)", "t", con=con).to_tables(store)
    with pytest.raises(mlsql.StoreError):
        fitted.to_tables(store)
    assert counts(store) == [1, 5, 4, 24]


def test_a_table_of_an_older_version_gets_the_columns_that_it_lacks(con: Con, fitted: mlsql.Fit, store: Con) -> None:
    fitted.to_tables(store)
    store.execute("ALTER TABLE ml_group_effects DROP COLUMN reliability; ALTER TABLE ml_fits DROP COLUMN written_at")
    store.execute("DROP TABLE ml_terms; ALTER TABLE ml_fixed_effects ADD COLUMN newer INTEGER")
    other = mlsql.fit("y ~ x + (1 | g)", "t", con=con)
    other.to_tables(store)
    assert counts(store) == [2, 7, 6, 36]
    query = "SELECT fit_id, count(*), count(reliability) FROM ml_group_effects GROUP BY 1"
    assert sorted(store.sql(query).fetchall()) == sorted([(fitted.fit_id, 24, 0), (other.fit_id, 12, 12)])
    assert store.sql("SELECT fit_id FROM ml_fits WHERE written_at IS NULL").fetchall() == [(fitted.fit_id,)]
    assert store.sql("SELECT DISTINCT fit_id FROM ml_terms").fetchall() == [(other.fit_id,)]


def test_inside_the_users_transaction_that_is_rolled_back(fitted: mlsql.Fit, store: Con) -> None:
    store.execute("BEGIN; CREATE TABLE mine AS SELECT 1 AS a")
    fitted.to_tables(store)
    assert counts(store) == [1, 5, 4, 24]
    store.execute("ROLLBACK")
    assert names(store) == []


def test_inside_the_users_transaction_that_is_committed(fitted: mlsql.Fit, store: Con) -> None:
    store.execute("BEGIN; CREATE TABLE mine AS SELECT 1 AS a")
    fitted.to_tables(store)
    store.execute("COMMIT")
    assert names(store) == sorted([*(f"ml_{t}" for t in TABLES), "mine"])


def test_other_connections_see_all_tables_or_none(fitted: mlsql.Fit, store: Con) -> None:
    fitted.to_tables(store)
    assert counts(store.cursor()) == [1, 5, 4, 24]
    # nothing is left open
    store.execute("BEGIN")
    store.execute("ROLLBACK")


def test_a_read_only_database(fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as con:
        con.execute("CREATE TABLE kept AS SELECT 1 AS a")
    with duckdb.connect(path, read_only=True) as con:
        with pytest.raises(mlsql.StoreError, match="read-only"):
            fitted.to_tables(con)
        assert names(con) == ["kept"]


def test_a_read_only_database_with_the_tables(fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as con:
        fitted.to_tables(con)
    with duckdb.connect(path, read_only=True) as con:
        with pytest.raises(mlsql.StoreError, match="read-only"):
            fitted.to_tables(con)
        assert counts(con) == [1, 5, 4, 24]


def test_results_outlive_the_process(fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as con:
        fitted.to_tables(con)
    with duckdb.connect(path, read_only=True) as con:
        assert con.sql("SELECT count(*) FROM ml_fits JOIN ml_group_effects USING (fit_id)").fetchall() == [(24,)]


@pytest.mark.parametrize("con_like", ["results.duckdb", None, 3])
def test_something_that_is_no_connection(fitted: mlsql.Fit, con_like: object) -> None:
    with pytest.raises(mlsql.StoreError, match="pass an open DuckDB connection"):
        fitted.to_tables(con_like)  # type: ignore[arg-type]


def test_a_closed_connection(fitted: mlsql.Fit, store: Con) -> None:
    store.close()
    with pytest.raises(mlsql.StoreError, match="closed"):
        fitted.to_tables(store)
