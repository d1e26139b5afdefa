"""A look at the first rows makes a table function's query leaner, and never changes its result."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator

import duckdb
import polars as pl
import polars.testing
import pytest

import mlsql
from mlsql.design.cells import cell_layout
from mlsql.formula.spec import parse_model
from mlsql.surfaces import sql_fit, sql_look
from mlsql.surfaces.sql_functions import connect
from mlsql.surfaces.sql_lean import Look, lean_layout, look_of
from mlsql.surfaces.sql_look import forget, is_large_scan, look

# the same sums but for the order of their terms; estimates near zero are judged on the scale of the others
SAME = 1e-9
Con = duckdb.DuckDBPyConnection

MODELS = {
    "numbers": ("mathach ~ ses*sector + meanses + (ses | school)", ""),
    "means": ("mathach ~ group_center(ses)*sector + group_mean(meanses) + group_mean(kind) + (1 | school)", ""),
    "products": ("mathach ~ ses*female*sector + grand_center(size) + I(ses * ses) + (ses || school)", ""),
    "factors": ("mathach ~ sex*ses + kind + C(minority) + C(sector)*ses + (sex | school)", ""),
    "gaps": ("mathach ~ gappy*sector + kind + (1 | school)", ""),
    "two keys": ("mathach ~ ses*sector + sex + (1 | part:rest)", ""),
    "weights": ("mathach ~ group_center(ses)*sector + kind + grand_center(meanses) + (1 | school)", ", weights := 'w'"),
    "level 2": ("mathach ~ ses*upper_sector + upper_kind + meanses + (ses | school)", ", level2 := 'schools'"),
    "three levels": ("mathach ~ ses*sector + size + sex + (ses | part/school)", ""),
    "ML": ("mathach ~ ses*sector + (1 | school)", ", method := 'ML'"),
}


@pytest.fixture(scope="module")
def con() -> Iterator[Con]:
    con = connect(threads=1)
    con.execute(
        """CREATE TABLE pupils AS SELECT *, CASE WHEN female = 1 THEN 'f' ELSE 'm' END AS sex, 1 + ses * ses AS w,
            CASE WHEN size > 1200 THEN 'large' WHEN size > 700 THEN 'middle' ELSE 'small' END AS kind,
            CASE WHEN id % 19 = 0 THEN NULL WHEN id % 23 = 0 THEN 'nan'::DOUBLE ELSE ses END AS gappy,
            school % 7 AS part, school / 7 AS rest
        FROM (SELECT *, row_number() OVER () AS id FROM read_parquet(?))""",
        [mlsql.example_data("hsb")],
    )
    con.execute(
        """CREATE TABLE schools AS
        SELECT school, any_value(sector) AS upper_sector, any_value(kind) AS upper_kind FROM pupils GROUP BY school"""
    )
    con.execute("CREATE VIEW everyone AS FROM pupils")
    yield con
    con.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Look | None]]:
    """Looks at small tables as at large ones; what they show."""
    monkeypatch.setattr(sql_look, "LARGE", 1000)
    monkeypatch.setattr(sql_look, "PREVIEW_ROWS", 1000)
    forget()
    sql_look._statement.cache_clear()
    found: list[Look | None] = []

    def kept(*arguments: object) -> Look | None:
        found.append(look(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(sql_fit, "look", kept)
    yield found
    forget()
    sql_look._statement.cache_clear()


def parameters(con: Con, formula: str, table: str = "pupils", settings: str = "") -> pl.DataFrame:
    answer = con.execute(f"FROM ml_fit($1, $2{settings})", [formula, table]).fetchall()
    assert con.description is not None
    frame = pl.DataFrame(answer, schema=[d[0] for d in con.description], orient="row", infer_schema_length=None)
    # how often the optimiser looked, and at what rounding it stopped, belongs to no model
    return frame.filter(~pl.col("term").is_in(["evaluations", "promised_decrease"]).fill_null(value=False))


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    polars.testing.assert_frame_equal(found, expected, rel_tol=SAME, abs_tol=SAME)


@pytest.mark.parametrize("name", MODELS)
def test_a_look_changes_nothing(con: Con, looks: list[Look | None], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    formula, settings = MODELS[name]
    wrong: list[bool] = []
    monkeypatch.setattr(sql_fit, "distrust", lambda *_: wrong.append(True))
    found = parameters(con, formula, settings=settings)
    assert [x is not None for x in looks] == [True]
    assert not wrong
    monkeypatch.setattr(sql_fit, "look", lambda *_: None)
    same(found, parameters(con, formula, settings=settings))


MISLEADING = [
    (name, fact)
    for name, (_, settings) in MODELS.items()
    for fact in ("varying", "fixed", "text", *(["upper"] if "level2" in settings else []))
]


@pytest.mark.parametrize(("name", "fact"), MISLEADING)
def test_a_look_that_misleads_changes_nothing(con: Con, monkeypatch: pytest.MonkeyPatch, name: str, fact: str) -> None:
    formula, settings = MODELS[name]
    wrong: list[bool] = []
    monkeypatch.setattr(sql_fit, "distrust", lambda *_: wrong.append(True))
    monkeypatch.setattr(sql_fit, "look", lambda layout, *_: Look((fact,) * len(layout.predictors)))
    found = parameters(con, formula, settings=settings)
    assert wrong or fact == "varying"
    monkeypatch.setattr(sql_fit, "look", lambda *_: None)
    same(found, parameters(con, formula, settings=settings))
    assert len(wrong) <= 1


def test_what_a_look_shows(con: Con, looks: list[Look | None]) -> None:
    formula = "mathach ~ ses*upper_sector + meanses + sex + C(minority) + group_mean(size) + (1 | school)"
    parameters(con, formula, settings=", level2 := 'schools'")
    # `C(minority)` has no number that could vary
    assert looks == [Look(("varying", "upper", "fixed", "text", "fixed", "varying"))]


def test_a_lean_query_sums_less() -> None:
    layout = cell_layout(parse_model("mathach ~ ses*sector + meanses + (ses | school)"), level2=False)
    lean = lean_layout(layout, Look(("varying", "fixed", "fixed")))
    assert [" ".join(product).replace('"', "") for product in lean.products] == [
        *["meanses", "sector", "ses", "mathach", "meanses meanses", "sector sector"],
        *["ses ses", "mathach ses", "mathach mathach"],
    ]
    assert len(layout.products) == 19


@pytest.mark.parametrize(
    ("table", "looked"),
    [
        ("pupils", True),
        ("PUPILS", True),
        ("main.pupils", True),
        ("memory.main.pupils", True),
        ("everyone", True),
        ("(SELECT * FROM pupils)", True),
        ("SELECT * FROM pupils ORDER BY ses", False),
        ("SELECT *, ses + 1 AS higher FROM pupils", False),
        ("SELECT * FROM pupils LIMIT 5000", False),
        ("few", False),
        ("passing", False),
        ("registered", False),
    ],
)
def test_what_is_looked_at(con: Con, looks: list[Look | None], table: str, looked: bool) -> None:
    con.execute("CREATE OR REPLACE TABLE few AS FROM pupils LIMIT 999")
    con.execute("CREATE OR REPLACE TEMP TABLE passing AS FROM pupils")
    con.register("registered", pl.read_parquet(mlsql.example_data("hsb")).to_arrow())
    parameters(con, "mathach ~ ses + (1 | school)", table)
    assert [x is not None for x in looks] == [looked]


def test_a_file_is_looked_at(con: Con, looks: list[Look | None]) -> None:
    parameters(con, "mathach ~ ses + sector + (1 | school)", mlsql.example_data("hsb"))
    assert looks == [Look(("varying", "fixed"))]


@pytest.mark.parametrize(
    "plan",
    [
        "",
        "[]",
        "{}",
        "null",
        '[{"name": "SEQ_SCAN", "children": []}]',
        '[{"name": "SEQ_SCAN", "children": [], "extra_info": {"Estimated Cardinality": "many"}}]',
        '[{"name": "CSV_SCAN", "children": [], "extra_info": {"Estimated Cardinality": "1000000"}}]',
    ],
)
def test_a_plan_that_is_written_otherwise(plan: str) -> None:
    assert not is_large_scan(plan)
    info = {"Estimated Cardinality": str(sql_look.LARGE)}
    assert is_large_scan(json.dumps([{"name": "SEQ_SCAN ", "children": [], "extra_info": info}]))


def test_a_predictor_that_varies_after_the_first_rows(con: Con, looks: list[Look | None]) -> None:
    con.execute(
        """CREATE OR REPLACE TABLE late AS
        SELECT * REPLACE (CASE WHEN id > 7000 THEN 1 - sector ELSE sector END AS sector) FROM pupils ORDER BY id"""
    )
    formula = "mathach ~ ses*sector + kind + (ses | school)"
    found = parameters(con, formula, "late")
    assert looks == [Look(("varying", "fixed", "text"))]
    same(found, parameters(con, formula, "SELECT * FROM late ORDER BY id"))
    assert looks[1] is None
    assert found["term"].to_list() == [
        *["(Intercept)", "ses", "sector", "kind[middle]", "kind[small]", "ses:sector"],
        *parameters(con, formula, "late")["term"].to_list()[6:],
    ]


def test_a_temporary_table_before_the_one_that_is_seen(con: Con, looks: list[Look | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE shadowed AS SELECT school, mathach, ses, sector, kind FROM pupils")
    formula = "mathach ~ ses*sector + kind + (1 | school)"
    changed = "ses AS sector, CASE WHEN ses > 0 THEN 1 ELSE 0 END AS kind, sex AS ses"
    con.execute(f"CREATE OR REPLACE TEMP TABLE shadowed AS SELECT school, mathach, {changed} FROM pupils")
    found = parameters(con, formula, "shadowed")
    assert looks == [Look(("varying", "fixed", "text"))]
    same(found, parameters(con, formula, "SELECT * FROM temp.shadowed ORDER BY rowid"))
    con.execute("DROP TABLE temp.shadowed")


def test_a_column_that_the_temporary_table_lacks(con: Con, looks: list[Look | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE lacking AS SELECT school, mathach, ses, sector FROM pupils")
    con.execute("CREATE OR REPLACE TEMP TABLE lacking AS SELECT school, mathach, sector FROM pupils")
    with pytest.raises(duckdb.Error, match="ses: column 'ses' is not in the data"):
        parameters(con, "mathach ~ ses + sector + (1 | school)", "lacking")
    assert looks == [Look(("varying", "fixed"))]
    con.execute("DROP TABLE temp.lacking")


def test_rows_that_are_not_committed_yet(con: Con, looks: list[Look | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE growing AS FROM pupils WHERE id <= 5000")
    con.execute("BEGIN")
    con.execute("INSERT INTO growing SELECT * REPLACE (1 - sector AS sector) FROM pupils WHERE id > 5000")
    formula = "mathach ~ ses*sector + (1 | school)"
    found = parameters(con, formula, "growing")
    same(found, parameters(con, formula, "SELECT * FROM growing ORDER BY id"))
    con.execute("ROLLBACK")
    assert looks == [Look(("varying", "fixed")), None]
    assert found.filter(pl.col("term") == "n_rows")["estimate"].to_list() == [7185]


def test_first_rows_are_seen_once_until_the_table_grows(
    con: Con, looks: list[Look | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    con.execute("CREATE OR REPLACE TABLE once AS FROM pupils")
    seen: list[bool] = []

    def counted(*facts: object, **told: bool) -> Look:
        seen.append(True)
        return look_of(*facts, **told)  # type: ignore[arg-type]

    monkeypatch.setattr(sql_look, "look_of", counted)
    statement = "FROM ml_fixed_effects('mathach ~ ses + (1 | school)', 'once')"
    # a relation's statement is read twice
    assert len(con.sql(statement).fetchall()) == 2
    assert (len(seen), looks) == (1, [Look(("varying",))] * 2)
    con.execute("INSERT INTO once SELECT * FROM pupils WHERE id < 100")
    con.execute(statement).fetchall()
    assert (len(seen), looks) == (2, [Look(("varying",))] * 3)


def test_first_rows_that_misled_are_not_looked_at_again(
    con: Con, looks: list[Look | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_look, "look_of", lambda *_, **__: Look(("fixed",)))
    for _ in range(2):
        assert parameters(con, "mathach ~ ses + (1 | school)").height > 2
    # another model of the same table is another matter
    parameters(con, "mathach ~ sector + (1 | school)")
    assert looks == [Look(("fixed",)), None, Look(("fixed",))]


def test_first_rows_of_as_many_groups_tell_nothing(con: Con, looks: list[Look | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE pairs AS SELECT *, id % 3000 AS pair FROM pupils ORDER BY id")
    parameters(con, "mathach ~ ses + sector + (1 | pair)", "pairs")
    parameters(con, "mathach ~ ses + sector + (1 | school)", "pairs")
    assert looks == [Look(("varying", "varying")), Look(("varying", "fixed"))]


def test_a_look_waits_for_nobody(con: Con, looks: list[Look | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor may wait for the statement's own transaction, and the statement must not wait for it."""
    waiting = threading.Event()
    monkeypatch.setattr(sql_look, "PATIENCE", 0.05)
    monkeypatch.setattr(sql_look, "_plan", lambda *_: str(waiting.wait(20)))
    assert len(con.execute("FROM ml_fixed_effects('mathach ~ ses + (1 | school)', 'pupils')").fetchall()) == 2
    assert looks == [None]
    waiting.set()


def test_a_checkpoint_that_waits_for_the_statements_transaction(
    looks: list[Look | None], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(sql_look, "PATIENCE", 0.05)
    with connect(f"{tmp_path}/school.duckdb") as con, con.cursor() as other:
        con.execute("CREATE TABLE pupils AS FROM read_parquet(?)", [mlsql.example_data("hsb")])
        con.execute("BEGIN; INSERT INTO pupils FROM pupils")
        started = threading.Event()

        def checkpoint() -> None:
            started.set()
            other.execute("FORCE CHECKPOINT")

        thread = threading.Thread(target=checkpoint, daemon=True)
        thread.start()
        started.wait(10)
        found = con.execute("SELECT n_rows FROM ml_fit_statistics('mathach ~ ses + (1 | school)', 'pupils')").fetchall()
        assert found == [(14370,)]
        con.execute("COMMIT")
        thread.join(20)
        assert not thread.is_alive()


def test_a_connection_is_not_kept_alive() -> None:
    con = connect()
    cursor = con.cursor()
    mlsql.register(cursor)
    seen = weakref.ref(cursor)
    cursor.close()
    del cursor
    gc.collect()
    assert seen() is None
    con.close()
