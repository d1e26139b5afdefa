"""What result tables are for: standard errors by SQL alone, history, several writers, a fit shown from its tables."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import mlsql
from mlsql.pipeline import store as store_module
from mlsql.pipeline.store import show_stored, write_tables

Con = duckdb.DuckDBPyConnection

# the same algebra in SQL, where sums run in another order
SAME = 1e-9


def write(fit: mlsql.Fit, con: Con, prefix: str = "ml_", **named: Any) -> str:
    return write_tables(fit.estimates, fit.inputs.rows.label, fit.warnings, con, prefix, fit.fixed_effects, **named)


def count(con: Con, table: str, where: str = "true") -> int:
    found: int = con.sql(f"SELECT count(*) FROM {table} WHERE {where}").fetchall()[0][0]
    return found


# covariances


@pytest.fixture
def store() -> Con:
    return duckdb.connect()


def test_covariances_of_the_fixed_effects(fitted: mlsql.Fit, store: Con) -> None:
    write(fitted, store)
    names = fitted.fixed_effects["term"].to_list()
    stored = {
        (a, b): v for a, b, v in store.sql("SELECT term1, term2, covariance FROM ml_fixed_covariances").fetchall()
    }
    V = [[stored[a, b] for b in names] for a in names]
    assert np.array_equal(V, fitted.vcov)


def test_covariances_of_a_group_are_those_of_dense_matrices(con: Con, store: Con, dense: Any) -> None:
    """Henderson's equations give the errors' joint covariance matrix."""
    fit = mlsql.fit("y ~ x + z + (x | g)", "t", con=con)
    write(fit, store)
    rows = con.sql("SELECT x, z, y, g FROM t ORDER BY i").fetchnumpy()
    one, x, z = np.ones(len(rows["x"])), rows["x"], rows["z"]
    X, Z, ones = np.column_stack([one, x, z]), np.column_stack([one, x]), np.ones(len(x))
    # T is nonsingular here, which Henderson's equations need
    assert not fit.singular
    whole = dense(X, Z, rows["y"], rows["g"].astype(np.int64), fit.T, fit.sigma2, ones).joint
    fixed, random = ["(Intercept)", "x", "z"], ["(Intercept)", "x"]
    stored = {r[:5]: r[5] for r in store.sql('SELECT * EXCLUDE (fit_id, "group") FROM ml_group_covariances').fetchall()}
    assert len(stored) == 12 * (3 * 2 + 2 * 2)
    for g in (0, 5, 11):
        at = 3 + 2 * g
        for i, f in enumerate(fixed):
            for j, r in enumerate(random):
                assert stored[str(g), "fixed", f, "random", r] == pytest.approx(whole[i, at + j], abs=1e-9)
        for i, a in enumerate(random):
            for j, b in enumerate(random):
                assert stored[str(g), "random", a, "random", b] == pytest.approx(whole[at + i, at + j], abs=1e-9)


@pytest.mark.parametrize(("wanted", "rows"), [(None, 24 * 7), (True, 24 * 7), (False, 0)])
def test_covariances_on_request(fitted: mlsql.Fit, store: Con, wanted: bool | None, rows: int) -> None:
    write(fitted, store)
    write(fitted, store, covariances=wanted)
    # the table is there either way, for macros that read it
    assert count(store, "ml_group_covariances") == rows


def test_many_groups_keep_their_covariances_to_themselves(
    fitted: mlsql.Fit, store: Con, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MANY_GROUPS", 11)
    write(fitted, store)
    assert count(store, "ml_group_covariances") == 0
    write(fitted, store, covariances=True)
    assert count(store, "ml_group_covariances") == 24 * 7


# scoring by SQL alone

SCORE = """
WITH data AS (SELECT i AS row, * FROM {source}),
columns AS ({columns}),
fixed AS (
    SELECT c.row, sum(c.value * e.estimate) AS estimate FROM columns c JOIN ml_fixed_effects e USING (term)
    WHERE c.part = 'fixed' GROUP BY ALL
),
fixed_error AS (
    SELECT a.row, sum(a.value * b.value * v.covariance) AS variance
    FROM columns a JOIN columns b USING (row) JOIN ml_fixed_covariances v ON v.term1 = a.term AND v.term2 = b.term
    WHERE a.part = 'fixed' AND b.part = 'fixed' GROUP BY ALL
),
random AS (
    SELECT c.row, sum(c.value * u.estimate) AS estimate FROM columns c JOIN ml_group_effects u USING (key, term)
    WHERE c.part = 'random' GROUP BY ALL
),
random_error AS (
    SELECT a.row,
        sum(a.value * b.value * v.covariance * CASE effect1 WHEN 'fixed' THEN 2 ELSE 1 END) AS variance
    FROM columns a JOIN columns b USING (row) JOIN ml_group_covariances v
        ON v.key = a.key AND v.effect1 = a.part AND v.term1 = a.term AND v.effect2 = b.part AND v.term2 = b.term
    GROUP BY ALL
)
SELECT fixed.estimate, sqrt(fixed_error.variance), fixed.estimate + random.estimate,
    sqrt(fixed_error.variance + random_error.variance)
FROM fixed JOIN fixed_error USING (row) JOIN random USING (row) JOIN random_error USING (row) ORDER BY row
"""

SCORED = {
    "plain": ("y ~ x + z + (x | g)", {}),
    "factors": ("y ~ f*x + (1 | g)", {}),
    "centred": ("y ~ group_center(x) + group_mean(x) + grand_center(z) + (group_center(x) | g)", {}),
    "products": ("y ~ group_mean(z)*group_center(x) + grand_center(z):x + (1 | g)", {}),
    "a date as key": ("y ~ group_center(x) + (1 | day)", {}),
    "two keys": ("y ~ group_center(x) + (x | I(g % 3):day)", {}),
    "a key called key": ('y ~ group_center("mean") + ("mean" | "key")', {}),
    "expressions": ("y ~ I(CASE WHEN x > 0.5 THEN 1 ELSE 0 END) + ln(z):x + (1 | g)", {}),
    "level 2": ("y ~ x*w + grand_center(v) + k + (x | g)", {"level2": "upper2"}),
    "weights": ("y ~ group_center(x) + (x | g)", {"weights": "z"}),
}


@pytest.mark.parametrize("model", SCORED)
def test_predictions_and_their_errors_by_sql_alone(con: Con, model: str) -> None:
    """The terms' expressions and the stored tables give what `predict` gives."""
    con.execute(
        """
        CREATE TABLE d AS SELECT *, DATE '2020-01-30' + g::INT AS day, 'k"' || g AS "key", x AS "mean" FROM t;
        CREATE TABLE upper2 AS SELECT *, w * w AS v FROM upper
        """
    )
    formula, named = SCORED[model]
    fit = mlsql.fit(formula, "d", con=con, **named)  # type: ignore[arg-type]
    write(fit, con)
    terms = con.sql("SELECT part, term, sql FROM ml_terms WHERE part IN ('fixed', 'random') ORDER BY ALL").fetchall()
    keys = [r[0] for r in con.sql("SELECT sql FROM ml_terms WHERE part = 'key' ORDER BY position").fetchall()]
    texts = [f"CAST({k} AS VARCHAR)" for k in keys]
    key = texts[0] if len(keys) == 1 else f"'[' || concat_ws(', ', {', '.join(f'to_json({t})' for t in texts)}) || ']'"
    columns = " UNION ALL ".join(
        f"""SELECT row, {key} AS key, '{part}' AS part, '{term.replace("'", "''")}' AS term, {sql} AS value FROM data"""
        for part, term, sql in terms
    )
    source = "d JOIN upper2 USING (g)" if named.get("level2") else "d"
    got = con.sql(SCORE.format(source=source, columns=columns)).fetchall()
    frame = fit.predict()
    assert frame is not None
    expected = (
        frame.sort("i").select("population", "population_std_error", "conditional", "conditional_std_error").rows()
    )
    assert len(got) == len(expected) == 120
    assert np.allclose(got, expected, rtol=SAME, atol=SAME)


def test_new_groups_by_sql_alone(con: Con, fitted: mlsql.Fit) -> None:
    """z'Tz from the variance components, for a group that the fit did not see."""
    write(fitted, con)
    con.execute("CREATE TABLE fresh AS SELECT * REPLACE (g + 100 AS g) FROM t WHERE g < 2")
    frame = fitted.predict("fresh", con=con, unseen="population")
    assert frame is not None
    spread = frame["conditional_std_error"].to_numpy() ** 2 - frame["population_std_error"].to_numpy() ** 2
    T = {r[:2]: r[2] for r in con.sql("SELECT term1, term2, estimate FROM ml_variance_components").fetchall()}
    x = frame["x"].to_numpy()
    z = T["(Intercept)", None] + 2 * x * T["(Intercept)", "x"] + x**2 * T["x", None]
    assert np.allclose(spread, z, rtol=SAME)


def test_terms_say_what_was_read(con: Con) -> None:
    fit = mlsql.fit("ln(y + 1) ~ x*w + offset(z / 100) + (x | g)", "t", con=con, level2="upper", weights="z")
    write(fit, con)
    found = con.sql("SELECT part, position, term, sql, in_table FROM ml_terms ORDER BY part, position").fetchall()
    assert found == [
        ("fixed", 0, "(Intercept)", "CAST(1 AS DOUBLE)", None),
        ("fixed", 1, "x", "NULLIF(CAST(\"x\" AS DOUBLE), CAST('NaN' AS DOUBLE))", "data"),
        ("fixed", 2, "w", "NULLIF(CAST(\"w\" AS DOUBLE), CAST('NaN' AS DOUBLE))", "level2"),
        (
            "fixed", 3, "x:w",
            "NULLIF(CAST(\"x\" AS DOUBLE), CAST('NaN' AS DOUBLE)) * "
            "NULLIF(CAST(\"w\" AS DOUBLE), CAST('NaN' AS DOUBLE))",
            "data, level2",
        ),
        ("key", 0, "g", '"g"', "data"),
        ("offset", 0, "z / 100", '("z" / 100)', "data"),
        ("outcome", 0, "ln(y + 1)", 'LN("y" + 1)', "data"),
        ("random", 0, "(Intercept)", "CAST(1 AS DOUBLE)", None),
        ("random", 1, "x", "NULLIF(CAST(\"x\" AS DOUBLE), CAST('NaN' AS DOUBLE))", "data"),
        ("weight", 0, "z", '"z"', "data"),
    ]  # fmt: skip


def test_a_level_that_the_fit_did_not_see_is_no_reference_level(con: Con, fitted: mlsql.Fit) -> None:
    write(fitted, con)
    (sql,) = con.sql("SELECT sql FROM ml_terms WHERE term = 'f[b]'").fetchall()[0]
    query = f"SELECT f, {sql} FROM (VALUES ('a'), ('b'), ('new'), (NULL)) v(f)"
    assert con.sql(query).fetchall() == [("a", 0.0), ("b", 1.0), ("new", None), (None, None)]


CAST_KEYS = [
    "DATE '2020-02-27' + g::INT",
    "TIMESTAMP '2020-01-01' + INTERVAL 1 HOUR * g",
    "TIME '00:00:00' + INTERVAL 1 MINUTE * g",
    "(g / 4)::DECIMAL(9, 2)",
    "g > 5",
    "g / 4",
    "(g * 1e20)::DOUBLE",
    "printf('%02d\x01', g)::BLOB",
]


@pytest.mark.parametrize("key", CAST_KEYS)
def test_stored_keys_are_found_by_a_cast(con: Con, key: str) -> None:
    fit = mlsql.fit("y ~ x + (1 | g)", f"SELECT * REPLACE ({key} AS g) FROM t", con=con)
    write(fit, con)
    query = f"SELECT count(*) FROM (SELECT {key} AS g FROM t) d JOIN ml_group_effects e ON e.key = CAST(d.g AS VARCHAR)"
    assert con.sql(query).fetchall() == [(120,)]


# history


def test_history_keeps_what_a_rerun_replaces(fitted: mlsql.Fit, store: Con) -> None:
    write(fitted, store, history=True)
    assert count(store, "ml_history_fits") == 0
    (first,) = store.sql("SELECT written_at FROM ml_fits").fetchnumpy()["written_at"]
    write(fitted, store, history=True)
    write(fitted, store, history=True)
    assert count(store, "ml_fits") == 1
    assert count(store, "ml_history_fits") == 2
    assert count(store, "ml_history_group_effects") == 48
    assert count(store, "ml_history_group_covariances") == 2 * 24 * 7
    kept = store.sql("SELECT min(written_at) AS first FROM ml_history_fits").fetchnumpy()["first"]
    assert kept[0] == first
    assert count(store, "ml_history_fits", "replaced_at >= written_at") == 2
    columns = {t: [r[0] for r in store.sql(f"DESCRIBE {t}").fetchall()] for t in ("ml_terms", "ml_history_terms")}
    assert columns["ml_history_terms"] == [*columns["ml_terms"], "replaced_at"]


def test_history_only_when_asked_for(con: Con, fitted: mlsql.Fit, store: Con) -> None:
    write(fitted, store)
    write(fitted, store)
    assert store.sql("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '%history%'").fetchall() == []
    write(fitted, store, history=True)
    write(fitted, store)
    write(mlsql.fit("y ~ x + (1 | g)", "t", con=con), store, history=True)
    assert count(store, "ml_history_fits") == 1


def test_history_of_an_older_version(fitted: mlsql.Fit, store: Con) -> None:
    write(fitted, store, history=True)
    write(fitted, store, history=True)
    for table in ("ml_fits", "ml_history_fits"):
        store.execute(f"ALTER TABLE {table} DROP COLUMN icc")
    write(fitted, store, history=True)
    write(fitted, store, history=True)
    assert count(store, "ml_history_fits") == 3
    assert "icc" in [r[0] for r in store.sql("DESCRIBE ml_history_fits").fetchall()]


# several writers, and the file itself


def test_threads_take_turns(con: Con, tmp_path: Path) -> None:
    """Each its own fit on its own connection, the tables not made yet."""
    fits = [mlsql.fit(f, "t", con=con) for f in ("y ~ 1 + (1 | g)", "y ~ x + (1 | g)", "y ~ z + (1 | g)")] * 2
    failures: list[BaseException] = []
    with duckdb.connect(str(tmp_path / "results.duckdb")) as base:

        def work(fit: mlsql.Fit, own: Con) -> None:
            try:
                write(fit, own)
            except BaseException as error:  # a thread's error would be lost
                failures.append(error)

        threads = [threading.Thread(target=work, args=(f, base.cursor())) for f in fits]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert base.sql("SELECT count(*), count(DISTINCT fit_id) FROM ml_fits").fetchall() == [(3, 3)]
        assert count(base, "ml_group_effects") == 36


KILLED = """
    import os, sys, duckdb, mlsql
    from mlsql.pipeline.store import write_tables
    fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    con = duckdb.connect(sys.argv[1])
    for table in sys.argv[2:]:
        con.execute(table)
    for _ in range(2):
        write_tables(fit.estimates, "hsb", (), con, "ml_", fit.fixed_effects, history=True)
    os._exit(0)
"""


def test_what_was_committed_survives_a_killed_process(tmp_path: Path) -> None:
    """The log is replayed with tables made, columns added and rows replaced in one transaction."""
    path = str(tmp_path / "results.duckdb")
    program = "\n".join(line[4:] for line in KILLED.splitlines())
    old = "CREATE TABLE ml_fits AS SELECT 'old' AS fit_id, 'y ~ 1 + (1 | g)' AS formula"
    subprocess.run([sys.executable, "-c", program, path, old], check=True, env=os.environ.copy())
    assert Path(path + ".wal").exists()
    with duckdb.connect(path) as con:
        assert count(con, "ml_fits") == 2
        assert count(con, "ml_fits", "deviance IS NULL") == 1
        assert count(con, "ml_history_fits") == 1
        assert count(con, "ml_group_effects") == count(con, "ml_history_group_effects") == 320
        # an older row shows what it has
        assert "y ~ 1 + (1 | g)" in show_stored(con, "old")
        assert "old" in show_stored(con)


# showing


def test_a_fit_shown_from_its_tables(con: Con, tmp_path: Path) -> None:
    fit = mlsql.fit("mathach ~ sector*group_center(ses) + (group_center(ses) | school)", mlsql.example_data("hsb"))
    path = str(tmp_path / "results.duckdb")
    with duckdb.connect(path) as store:
        write(fit, store)
        write(mlsql.fit("y ~ x + (1 | g)", "t", con=con), store)
    with duckdb.connect(path, read_only=True) as store:
        text = show_stored(store, fit.fit_id)
        listing = show_stored(store)
    lines = text.splitlines()
    assert lines[0] == f"Stored fit {fit.fit_id}"
    assert lines[1] == f"Model      {fit.spec.formula}"
    for row in fit.fixed_effects.iter_rows(named=True):
        (line,) = [ln for ln in lines if ln.strip().startswith(row["term"] + " ")]
        assert f"{row['estimate']:.5f}" in line
        assert f"{row['std_error']:.5f}" in line
        assert f"{row['df']:.0f}" in line
    assert f"Deviance = {fit.deviance:.6f}" in text
    components = {ln[4:42].strip(): ln[42:].split() for ln in lines[lines.index("Variance components") + 2 :]}
    assert components["school: group_center(ses)"][0] == f"{fit.T[1, 1]:.5f}"
    assert components["school: (Intercept), group_center(ses)"][0] == f"{fit.T[0, 1]:.5f}"
    assert components["level 1"][0] == f"{fit.sigma2:.5f}"
    assert [w for w in fit.warnings if w not in text] == []
    assert not any(line != line.rstrip() for line in lines)
    # the latest first
    listed = listing.splitlines()
    assert len(listed) == 3
    assert listed[0].split()[:3] == ["fit_id", "rows", "groups"]
    assert listed[2].startswith(fit.fit_id)
    assert fit.spec.formula in listed[2]
    assert "7,185" in listed[2]


def test_a_given_fit_and_a_singular_one_are_shown(con: Con, store: Con) -> None:
    given = mlsql.evaluate("y ~ 1 + (1 | g)", "t", con=con, T=0.0, sigma2=1.0)
    text = show_stored(store, write(given, store))
    assert "variance components given, not estimated" in text
    assert "Intraclass correlation = 0.00000" in text
    assert "Std. error" in text


def test_other_prefixes_are_shown(fitted: mlsql.Fit, store: Con) -> None:
    fit_id = write(fitted, store, "we\"ird '; ")
    assert fit_id in show_stored(store, prefix="we\"ird '; ")
    assert fit_id in show_stored(store, fit_id, "we\"ird '; ")


def test_no_fits_left(fitted: mlsql.Fit, store: Con) -> None:
    write(fitted, store)
    store.execute("DELETE FROM ml_fits")
    assert show_stored(store) == "No fits are stored."
    with pytest.raises(mlsql.StoreError, match="stored are none"):
        show_stored(store, fitted.fit_id)
