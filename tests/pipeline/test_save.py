"""A fit saved and loaded: the same numbers bit by bit, the same tables and text, without the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

import mlsql
from mlsql.design import design as design_module
from mlsql.pipeline.save import load, save_fit
from mlsql.pipeline.store import write_tables
from mlsql.pipeline.submodels import submodel

Con = duckdb.DuckDBPyConnection


def assert_same(one: mlsql.Fit, other: mlsql.Fit) -> None:
    """Bit by bit: nothing here is `close to`."""
    assert other.fit_id == one.fit_id
    assert other.spec == one.spec
    ours, theirs = one.estimates.design, other.estimates.design
    assert replace(theirs, survey=None) == replace(ours, survey=None)
    assert ours.survey is not None
    assert theirs.survey is not None
    assert replace(theirs.survey, columns=()) == replace(ours.survey, columns=())
    # by their text, since unknown means are nan
    assert repr(theirs.survey.columns) == repr(ours.survey.columns)
    a, b = one.estimates.moments, other.estimates.moments
    assert b.keys.equals(a.keys)
    assert b.log_weights == a.log_weights
    for name in ("n", "sums", "products", "pooled", "means", "values"):
        assert getattr(b, name).dtype == getattr(a, name).dtype
        assert getattr(b, name).tobytes() == np.ascontiguousarray(getattr(a, name)).tobytes(), name
    for name in ("L", "beta", "T", "vcov"):
        assert getattr(other.estimates, name).tobytes() == getattr(one.estimates, name).tobytes(), name
    facts = ("sigma2", "deviance", "status", "converged", "singular", "n_evaluations", "dropped", "warnings", "seconds")
    for name in facts:
        assert getattr(other, name) == getattr(one, name), name
    assert repr(other.estimates.promised) == repr(one.estimates.promised)
    for table in ("fixed_effects", "variance_components", "statistics", "survey"):
        assert_frame_equal(getattr(other, table), getattr(one, table), check_exact=True)
    # an ENUM's unused levels are not part of the rows
    plain = [f.group_effects().with_columns(pl.selectors.categorical().cast(pl.String)) for f in (one, other)]
    assert_frame_equal(*plain, check_exact=True)
    assert_frame_equal(other.confint(), one.confint(), check_exact=True)
    assert other.summary() == one.summary()
    assert other.equations() == one.equations()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., mlsql.Fit]:
    """The fit after a round through a file."""

    def through(fit: mlsql.Fit, **named: bool) -> mlsql.Fit:
        path = tmp_path / "fit.parquet"
        save_fit(fit, path, replace=True, **named)
        return load(path)

    return through


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "intercept": ("y ~ 1 + (1 | g)", {}),
    "slope": ("y ~ x + (x | g)", {}),
    "ML": ("y ~ x + (x | g)", {"method": "ML"}),
    "blocks": ("y ~ x + z + (x + z || g)", {}),
    "no intercept": ("y ~ 0 + x + z + (0 + x | g)", {}),
    "factors": ("y ~ f*x + C(i % 2, ref='1') + (f | g)", {}),
    "centring": ("y ~ group_center(x) + group_mean(x) + grand_center(z) + (group_center(x) | g)", {}),
    "cross-level": ("y ~ group_mean(z)*group_center(x) + (group_center(x) | g)", {}),
    "offset": ("y ~ z + offset(x) + offset(z / 2) + (1 | g)", {}),
    "weights": ("y ~ x + group_mean(z) + (x | g)", {"weights": "z / 2"}),
    "level 2": ("y ~ x*w + k + (x | g)", {"level2": "upper"}),
    "level 2, weighted, centred": ("y ~ x + grand_center(w) + (x | g)", {"level2": "upper", "weights": "z"}),
    "expressions": ("ln(y + 1) ~ I(CASE WHEN x > 0.5 THEN 1 ELSE 0 END) + sqrt(z):x + (1 | I(g % 6))", {}),
    "two keys": ("y ~ x + (x | I(g % 3):I(g // 3))", {}),
    "unicode": ('"größe [m²]" ~ "x \'1\'" + "mean(ses)" + (1 | "группа")', {"data": "odd"}),
    "key called n": ("y ~ x + (1 | n)", {"data": "named"}),
    "missing values": ("y ~ x + f + (1 | g)", {"data": "gaps"}),
    "singular": ("y ~ x + (1 | I(i % 7))", {}),
    "level equations": ("y = b0 + b1*x + r\nb0 = g00 + g01*group_mean(z) + u0\nb1 = g10 + u1", {"groups": "g"}),
    "collinear": ("y ~ x + I(2 * x) + z + (1 | g)", {"drop_collinear": True}),
    "stopped": ("y ~ x + z + (x + z | g)", {"max_evaluations": 2}),
    "year": ("y ~ I(2000 + i % 10) + (I(2000 + i % 10) | g)", {}),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_round_through_a_file(con: Con, saved: Callable[..., mlsql.Fit], model: str) -> None:
    con.execute(
        """
        CREATE TABLE odd AS
        SELECT y AS "größe [m²]", x AS "x '1'", z AS "mean(ses)", 'школа ' || g || chr(10) AS "группа" FROM t;
        CREATE TABLE named AS SELECT *, g AS n FROM t;
        CREATE TABLE gaps AS SELECT * REPLACE (CASE i % 11 WHEN 0 THEN NULL WHEN 1 THEN 'nan'::DOUBLE ELSE x END AS x,
            nullif(f, 'c') AS f) FROM t
        """
    )
    formula, named = MODELS[model]
    fit = mlsql.fit(formula, **({"data": "t", "con": con} | named))
    assert fit.singular or model != "singular"
    assert fit.converged is (model != "stopped")
    assert_same(fit, saved(fit))


def test_given_components(con: Con, saved: Callable[..., mlsql.Fit]) -> None:
    fit = mlsql.evaluate("y ~ x + (x | g)", "t", con=con, T=[[1.0, 0.0], [0.0, 0.0]], sigma2=0.3)
    assert_same(fit, saved(fit))
    # not what a profiled sigma2 would give
    assert saved(fit).sigma2 == 0.3


KEYS = {
    "small": "g::UTINYINT",
    "huge": "g::HUGEINT",
    "decimal": "(g / 4)::DECIMAL(9, 2)",
    "double": "g / 4 - 0.1",
    "infinity": "CASE WHEN g = 3 THEN 'inf'::DOUBLE ELSE g END",
    "float": "(g / 4)::FLOAT",
    "text": "'k' || g",
    "uuid": "('00000000-0000-4000-8000-' || printf('%012d', g))::UUID",
    "date": "DATE '1969-12-30' + g::INT",
    "timestamp": "TIMESTAMP '2020-01-01' + INTERVAL 1 HOUR * g",
    "seconds": "(TIMESTAMP '2020-01-01' + INTERVAL 1 HOUR * g)::TIMESTAMP_S",
    "milliseconds": "(TIMESTAMP '2020-01-01' + INTERVAL 1 HOUR * g)::TIMESTAMP_MS",
    "nanoseconds": "(TIMESTAMP '2020-01-01 00:00:00.000001' + INTERVAL 1 HOUR * g)::TIMESTAMP_NS",
    "time": "TIME '00:00:00' + INTERVAL 1 MINUTE * g",
    "blob": "printf('%02d', g)::BLOB",
    "boolean": "g > 5",
    "enum": "(['z', 'y', 'x'][g % 3 + 1])::e",
}


@pytest.mark.parametrize("key", KEYS)
def test_types_of_keys(con: Con, saved: Callable[..., mlsql.Fit], key: str) -> None:
    con.execute("CREATE TYPE e AS ENUM ('z', 'y', 'unused', 'x')")
    data = f"SELECT * REPLACE ({KEYS[key]} AS g) FROM t"
    fit = mlsql.fit("y ~ x + (1 | g)", data, con=con)
    again = saved(fit)
    assert_same(fit, again)
    one, other = fit.predict(), again.predict(data, con=con)
    assert one is not None
    assert other is not None
    assert_frame_equal(one, other, check_exact=True)


def test_rows_without_a_key_stay_out(con: Con, saved: Callable[..., mlsql.Fit]) -> None:
    fit = mlsql.fit("y ~ x + (1 | g)", "SELECT * REPLACE (nullif(g, 3) AS g) FROM t", con=con)
    assert fit.n_groups == 11
    assert_same(fit, saved(fit))


@pytest.fixture
def lean(con: Con, monkeypatch: pytest.MonkeyPatch) -> mlsql.Fit:
    """A fit whose products of level-1 columns were summed over all rows only, as in data of half a million rows."""
    monkeypatch.setattr(design_module, "SMALL", 0)
    con.execute("CREATE TABLE scattered AS SELECT * FROM t ORDER BY hash(i)")
    fit = mlsql.fit("y ~ x + z + f + (x | g)", "scattered", con=con)
    assert fit.estimates.design.layout == "lean"
    return fit


def test_a_lean_fit_stays_lean(con: Con, lean: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    again = saved(lean)
    assert again.estimates.design.layout == "lean"
    assert (again.fit_id, again.deviance) == (lean.fit_id, lean.deviance)
    assert_frame_equal(again.group_effects(), lean.group_effects(), check_exact=True)
    # estimates stay readable; what needs the rows says what to do
    assert again.fixed_effects["note"].str.contains("no robust errors.*complete=True").all()
    assert again.fixed_effects["robust_std_error"].null_count() == 5
    with pytest.raises(mlsql.DataError, match=r"loaded without its data.*complete=True"):
        again.inference(vcov="CR2")
    store = duckdb.connect()
    assert write_all(again, store) == lean.fit_id


def test_a_lean_fit_made_complete(con: Con, lean: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    again = saved(lean, complete=True)
    assert again.estimates.design.layout == "full"
    assert again.fit_id == lean.fit_id
    assert_frame_equal(again.fixed_effects, lean.fixed_effects, check_exact=True)
    assert_frame_equal(again.inference(vcov="CR2"), lean.inference(vcov="CR2"), check_exact=True)
    smaller = submodel(again.products, "y ~ x + (1 | g)")
    assert smaller.deviance == submodel(lean.products, "y ~ x + (1 | g)").deviance


def test_products_that_were_fetched_are_kept(lean: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    robust = lean.fixed_effects
    assert_frame_equal(saved(lean).fixed_effects, robust, check_exact=True)


def test_completing_needs_the_data(con: Con, lean: mlsql.Fit, tmp_path: Path) -> None:
    con.execute("DROP TABLE scattered")
    with pytest.raises(mlsql.QueryError):
        save_fit(lean, tmp_path / "fit.parquet", complete=True)
    assert list(tmp_path.iterdir()) == []


def test_saving_what_was_loaded(fitted: mlsql.Fit, tmp_path: Path) -> None:
    one, two = tmp_path / "1.parquet", tmp_path / "2.parquet"
    save_fit(fitted, one)
    save_fit(load(one), two)
    assert one.read_bytes() == two.read_bytes()


def test_a_submodel_is_a_fit_to_keep(fitted: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    smaller = submodel(fitted.products, "y ~ group_mean(z) + x + (1 | g)")
    again = saved(smaller)
    assert_same(smaller, again)
    assert submodel(again.products, "y ~ x + (1 | g)").deviance == submodel(fitted.products, "y ~ x + (1 | g)").deviance


def test_all_that_needs_moments_alone(con: Con, fitted: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    again = saved(fitted)
    for df, vcov in (("satterthwaite", "model"), ("kenward_roger", "model"), (None, "CR2"), ("normal", "CR0")):
        assert_frame_equal(again.inference(df, vcov), fitted.inference(df, vcov), check_exact=True)  # type: ignore[arg-type]
    assert_frame_equal(again.test("x = 1"), fitted.test("x = 1"), check_exact=True)
    assert_frame_equal(again.confint(method="profile"), fitted.confint(method="profile"), check_exact=True)
    assert_frame_equal(again.likelihood_ratio(), fitted.likelihood_ratio(), check_exact=True)
    assert_frame_equal(again.tidy(), fitted.tidy(), check_exact=True)
    other = mlsql.fit("y ~ x + f + group_center(z) + (1 | g)", "t", con=con)
    assert mlsql.compare(again, saved(other))["chi2"].to_list() == mlsql.compare(fitted, other)["chi2"].to_list()
    for facet in ("contrasts", "derived", "comparators", "diagnostics", "resampling"):
        assert getattr(again, facet).products.estimates.deviance == fitted.deviance
    assert_frame_equal(again.diagnostics.influence(), fitted.diagnostics.influence(), check_exact=True)


def test_predictions_of_given_data(con: Con, fitted: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    assert_frame_equal(saved(fitted).predict("t", con=con), fitted.predict(), check_exact=True)


def test_predictions_with_a_level2_table(con: Con, saved: Callable[..., mlsql.Fit]) -> None:
    fit = mlsql.fit("y ~ x*w + (x | g)", "t", con=con, level2="upper")
    assert_frame_equal(saved(fit).predict("t", con=con, level2="upper"), fit.predict(), check_exact=True)


NEED_ROWS: dict[str, Callable[[mlsql.Fit, Con], object]] = {
    "predict": lambda fit, con: fit.predict(),
    "predict on a connection": lambda fit, con: fit.predict(con=con),
    "residuals": lambda fit, con: fit.residuals(),
    "residuals on a connection": lambda fit, con: fit.residuals(con=con),
    "augment": lambda fit, con: fit.augment(),
    "marginal effects": lambda fit, con: fit.as_marginaleffects(),
    "residual diagnostics": lambda fit, con: fit.diagnostics.residuals(),
}


@pytest.mark.parametrize("what", NEED_ROWS)
def test_what_needs_the_rows_says_so(con: Con, fitted: mlsql.Fit, saved: Callable[..., mlsql.Fit], what: str) -> None:
    with pytest.raises(mlsql.DataError, match=r"loaded without its data \(t\).*pass data="):
        NEED_ROWS[what](saved(fitted), con)


def write_all(fit: mlsql.Fit, con: Con) -> str:
    return write_tables(fit.estimates, fit.inputs.rows.label, fit.warnings, con, "ml_", fit.fixed_effects)


def test_result_tables_are_those_of_the_fit(fitted: mlsql.Fit, saved: Callable[..., mlsql.Fit]) -> None:
    one, two = duckdb.connect(), duckdb.connect()
    assert write_all(fitted, one) == write_all(saved(fitted), two)
    for (table,) in one.sql("SELECT table_name FROM duckdb_tables()").fetchall():
        columns = "* EXCLUDE (written_at)" if table == "ml_fits" else "*"
        assert_frame_equal(*(c.sql(f"SELECT {columns} FROM {table}").pl() for c in (one, two)), check_exact=True)


def test_loading_in_another_process(fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = tmp_path / "fit.parquet"
    save_fit(fitted, path)
    program = f"from mlsql.pipeline.save import load; f = load({str(path)!r}); print(f.fit_id, f.deviance.hex())"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.split() == [fitted.fit_id, fitted.deviance.hex()]


def test_the_file_reads_without_mlsql(con: Con, fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = str(tmp_path / "fit.parquet")
    save_fit(fitted, path)
    rows = con.sql(
        f"""SELECT m.g, m.n, m."sum(x)", m."sum(x * y)", m."mean(z)" FROM '{path}' m ORDER BY g"""
    ).fetchall()
    (text,) = con.sql(
        f"SELECT decode(value) FROM parquet_kv_metadata('{path}') WHERE decode(key) = 'mlsql'"
    ).fetchall()[0]
    document = json.loads(text)
    x, y, z = (document["pivots"][c] for c in "xyz")
    direct = con.execute(
        "SELECT g, count(*), sum(x - $1), sum((x - $1) * (y - $2)), avg(z - $3) FROM t GROUP BY g ORDER BY g", [x, y, z]
    ).fetchall()
    assert [r[:2] for r in rows] == [r[:2] for r in direct]
    # sums may run in another order
    assert [list(r[2:]) for r in rows] == [pytest.approx(list(r[2:]), abs=1e-12) for r in direct]
    assert document["spec"]["formula"] == fitted.spec.formula
    assert (document["format"], document["version"], document["fit_id"]) == ("mlsql fit", 1, fitted.fit_id)
    # strict JSON: no NaN for another reader to stumble on
    json.loads(text, parse_constant=pytest.fail)


def test_overwriting_on_request(con: Con, fitted: mlsql.Fit, tmp_path: Path) -> None:
    path = tmp_path / "fit.parquet"
    save_fit(fitted, path)
    other = mlsql.fit("y ~ x + (1 | g)", "t", con=con)
    save_fit(other, path, replace=True)
    assert load(path).fit_id == other.fit_id
    assert [p.name for p in tmp_path.iterdir()] == ["fit.parquet"]
    # readable for whom a new file is, not for its maker alone
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_path_in_the_home_folder(fitted: mlsql.Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_fit(fitted, "~/fit.parquet")
    assert load("~/fit.parquet").fit_id == fitted.fit_id
    assert pq.read_metadata(tmp_path / "fit.parquet").num_rows == 12
