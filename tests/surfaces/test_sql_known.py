"""What earlier statements found makes a table function's query leaner, and never changes its result."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import polars as pl
import polars.testing
import pytest

import mlsql
from mlsql.design.cells import cell_layout
from mlsql.formula.spec import parse_model
from mlsql.surfaces import sql_fit, sql_known
from mlsql.surfaces.sql_fit import Call
from mlsql.surfaces.sql_functions import connect
from mlsql.surfaces.sql_known import forget, recall
from mlsql.surfaces.sql_lean import Known, lean_layout

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
def recalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Known | None]]:
    """What each statement knew, from a start at which nothing is known."""
    forget()
    found: list[Known | None] = []

    def kept(*arguments: object) -> Known | None:
        found.append(recall(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(sql_fit, "recall", kept)
    yield found
    forget()


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each answer with all sums: whether the statement had been misled."""
    found: list[bool] = []
    monkeypatch.setattr(sql_fit, "learn", lambda *facts: found.append(facts[-1] is not None))
    return found


def parameters(con: Con, formula: str, table: str = "pupils", settings: str = "") -> pl.DataFrame:
    answer = con.execute(f"FROM ml_fit($1, $2{settings})", [formula, table]).fetchall()
    assert con.description is not None
    frame = pl.DataFrame(answer, schema=[d[0] for d in con.description], orient="row", infer_schema_length=None)
    # how often the optimiser looked, and at what rounding it stopped, belongs to no model
    return frame.filter(~pl.col("term").is_in(["evaluations", "promised_decrease"]).fill_null(value=False))


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    polars.testing.assert_frame_equal(found, expected, rel_tol=SAME, abs_tol=SAME)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_known_changes_nothing(con: Con, recalled: list[Known | None], name: str) -> None:
    formula, settings = MODELS[name]
    first = parameters(con, formula, settings=settings)
    second = parameters(con, formula, settings=settings)
    assert [x is not None for x in recalled] == [False, True]
    same(second, first)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_known_is_right(
    con: Con, recalled: list[Known | None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    formula, settings = MODELS[name]
    parameters(con, formula, settings=settings)
    learnt: list[bool] = []
    monkeypatch.setattr(sql_fit, "learn", lambda *_: learnt.append(True))
    parameters(con, formula, settings=settings)
    # an answer with all sums would have been learned from
    assert recalled[1] is not None
    assert not learnt


MISLEADING = [
    (name, fact)
    for name, (_, settings) in MODELS.items()
    for fact in ("varying", "fixed", "text", *(["upper"] if "level2" in settings else []))
]


@pytest.mark.parametrize(("name", "fact"), MISLEADING)
def test_what_is_wrong_changes_nothing(
    con: Con, monkeypatch: pytest.MonkeyPatch, learned: list[bool], name: str, fact: str
) -> None:
    formula, settings = MODELS[name]
    monkeypatch.setattr(sql_fit, "recall", lambda _, layout, __: Known((fact,) * len(layout.predictors)))
    found = parameters(con, formula, settings=settings)
    assert learned == [True] or (fact == "varying" and not learned)
    monkeypatch.setattr(sql_fit, "recall", lambda *_: None)
    same(found, parameters(con, formula, settings=settings))


def test_what_is_known(con: Con, recalled: list[Known | None]) -> None:
    formula = "mathach ~ ses*upper_sector + meanses + sex + C(minority) + group_mean(size) + (1 | school)"
    for _ in range(2):
        parameters(con, formula, settings=", level2 := 'schools'")
    assert recalled == [None, Known(("varying", "upper", "fixed", "text", "varying", "varying"))]


def test_another_model_of_the_same_predictors(con: Con, recalled: list[Known | None]) -> None:
    parameters(con, "mathach ~ ses + sector + meanses + sex + (1 | school)")
    parameters(con, "mathach ~ sector*ses + (ses | school)")
    parameters(con, "ses ~ group_mean(sector) + group_mean(meanses) + (1 | school)")
    # a predictor that nobody has met, another grouping, another name
    parameters(con, "mathach ~ ses + size + (1 | school)")
    parameters(con, "mathach ~ ses + (1 | part)")
    parameters(con, "mathach ~ ses + (1 | school)", "everyone")
    assert recalled[1:] == [Known(("fixed", "varying")), Known(("varying", "varying")), None, None, None]


def test_a_number_of_the_level_2_table_whose_mean_is_wanted(con: Con, recalled: list[Known | None]) -> None:
    settings = ", level2 := 'schools'"
    parameters(con, "mathach ~ ses + upper_sector + (1 | school)", settings=settings)
    with pytest.raises(duckdb.Error, match="upper_sector"):
        parameters(con, "mathach ~ ses + group_mean(upper_sector) + (1 | school)", settings=settings)
    assert recalled == [None, None]


def test_connections_do_not_share_what_they_know(con: Con, recalled: list[Known | None]) -> None:
    parameters(con, "mathach ~ ses + (1 | school)")
    with connect() as other:
        other.execute("CREATE TABLE pupils AS FROM read_parquet(?)", [mlsql.example_data("hsb")])
        parameters(other, "mathach ~ ses + (1 | school)")
    assert recalled == [None, None]


def test_a_lean_query_sums_less() -> None:
    layout = cell_layout(parse_model("mathach ~ ses*sector + meanses + (ses | school)"), level2=False)
    lean = lean_layout(layout, Known(("varying", "fixed", "fixed")))
    assert [" ".join(product).replace('"', "") for product in lean.products] == [
        *["meanses", "sector", "ses", "mathach", "meanses meanses", "sector sector"],
        *["ses ses", "mathach ses", "mathach mathach"],
    ]
    assert len(layout.products) == 19


@pytest.mark.parametrize(
    "table",
    ["pupils", "everyone", "SELECT *, ses + 1 AS higher FROM pupils", "passing", "registered", "a file"],
)
def test_every_kind_of_table_is_remembered(con: Con, recalled: list[Known | None], table: str) -> None:
    con.execute("CREATE OR REPLACE TEMP TABLE passing AS FROM pupils")
    con.register("registered", pl.read_parquet(mlsql.example_data("hsb")).to_arrow())
    source = mlsql.example_data("hsb") if table == "a file" else table
    first, second = (parameters(con, "mathach ~ ses + sector + (1 | school)", source) for _ in range(2))
    assert recalled == [None, Known(("varying", "fixed"))]
    same(second, first)


def test_a_table_whose_values_change(con: Con, recalled: list[Known | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE changing AS FROM pupils")
    formula = "mathach ~ ses*sector + kind + (ses | school)"
    parameters(con, formula, "changing")
    con.execute("UPDATE changing SET sector = 1 - sector WHERE id > 7000")
    found = [parameters(con, formula, "changing") for _ in range(2)]
    assert recalled == [None, Known(("varying", "fixed", "text")), Known(("varying", "varying", "text"))]
    expected = parameters(con, formula, "SELECT * FROM changing ORDER BY id")
    for each in found:
        same(each, expected)
    # what varied once is not taken for fixed again
    con.execute("CREATE OR REPLACE TABLE changing AS FROM pupils")
    parameters(con, "mathach ~ ses*sector + size + (1 | school)", "changing")
    parameters(con, formula, "changing")
    assert recalled[-1] == Known(("varying", "varying", "text"))


def test_a_temporary_table_that_hides_the_one_that_is_known(con: Con, recalled: list[Known | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE hidden AS SELECT school, mathach, ses, sector, kind FROM pupils")
    formula = "mathach ~ ses*sector + kind + (1 | school)"
    parameters(con, formula, "hidden")
    changed = "ses AS sector, CASE WHEN ses > 0 THEN 1 ELSE 0 END AS kind, sex AS ses"
    con.execute(f"CREATE OR REPLACE TEMP TABLE hidden AS SELECT school, mathach, {changed} FROM pupils")
    found = [parameters(con, formula, "hidden") for _ in range(2)]
    assert recalled[1:] == [Known(("varying", "fixed", "text")), Known(("text", "varying", "varying"))]
    expected = parameters(con, formula, "SELECT * FROM temp.hidden ORDER BY rowid")
    for each in found:
        same(each, expected)
    con.execute("DROP TABLE temp.hidden")


def test_a_column_that_is_gone(con: Con, recalled: list[Known | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE lacking AS SELECT school, mathach, ses, sector FROM pupils")
    parameters(con, "mathach ~ ses + sector + (1 | school)", "lacking")
    con.execute("ALTER TABLE lacking DROP COLUMN ses")
    with pytest.raises(duckdb.Error, match="ses: column 'ses' is not in the data"):
        parameters(con, "mathach ~ ses + sector + (1 | school)", "lacking")
    assert recalled == [None, Known(("varying", "fixed"))]


def test_rows_that_are_not_committed_yet(con: Con, recalled: list[Known | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE growing AS FROM pupils WHERE id <= 5000")
    formula = "mathach ~ ses*sector + (1 | school)"
    parameters(con, formula, "growing")
    con.execute("BEGIN")
    con.execute("INSERT INTO growing SELECT * REPLACE (1 - sector AS sector) FROM pupils WHERE id > 5000")
    found = parameters(con, formula, "growing")
    same(found, parameters(con, formula, "SELECT * FROM growing ORDER BY id"))
    con.execute("ROLLBACK")
    assert recalled == [None, Known(("varying", "fixed")), None]
    assert found.filter(pl.col("term") == "n_rows")["estimate"].to_list() == [7185]


def test_a_statement_that_is_prepared_before_the_table_is_known(con: Con, recalled: list[Known | None]) -> None:
    con.execute("CREATE OR REPLACE TABLE early AS FROM pupils")
    # a relation's statement is read when it is made and when it runs
    relation = con.sql("FROM ml_fixed_effects('mathach ~ ses + sector + (1 | school)', 'early')")
    parameters(con, "mathach ~ ses + sector + (1 | school)", "early")
    assert len(relation.fetchall()) == 3
    assert recalled == [None, None, Known(("varying", "fixed"))]


def test_what_was_wrongly_taken_for_fixed_is_so_no_more(con: Con, recalled: list[Known | None]) -> None:
    """The query's limit for what is constant is the stricter one: the answer may still find a column within it."""
    formula = "mathach ~ ses + sector + (1 | school)"
    layout = cell_layout(parse_model(formula), level2=False)
    schema, tables = (
        mlsql.fit(formula, "pupils", con=con).estimates.design.schema,
        Call(formula, "pupils").inputs.tables,
    )
    sql_known.learn("home", layout, tables, schema, frozenset(), None)
    assert recall("home", layout, tables) == Known(("fixed", "fixed"))
    sql_known.learn("home", layout, tables, schema, frozenset(), Known(("fixed", "fixed")))
    assert recall("home", layout, tables) == Known(("varying", "varying"))


def test_the_oldest_table_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch, con: Con, recalled: list[Known | None]
) -> None:
    monkeypatch.setattr(sql_known, "KEPT", 2)
    for i in (0, 1, 0, 2, 0, 1):
        parameters(con, "mathach ~ ses + (1 | school)", f"SELECT * FROM pupils WHERE id > {i}")
    assert [x is not None for x in recalled] == [False, False, True, False, False, False]
