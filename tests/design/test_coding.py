"""Factor coding by R's rule: contrasts where the term without the factor is in the model, all levels otherwise."""

from __future__ import annotations

import duckdb
import pytest

import mlsql
from mlsql.design.columns import Variable, code_terms
from mlsql.formula.terms import Atom, Term

LEVELS = {"f": ("a", "b", "c"), "h": ("p", "q")}


def variables(spec: mlsql.ModelSpec) -> dict[Atom, tuple[Variable, ...]]:
    """f and h are factors, everything else is a number."""
    coded = {}
    for atom in spec.atoms:
        names = [f"{atom.name}[{level}]" for level in LEVELS[atom.name]] if atom.name in LEVELS else [atom.name]
        coded[atom] = tuple(Variable(n, n, "DOUBLE", atom.sql, 1, "rows", "none", 0.0) for n in names)
    return coded


def columns(formula: str) -> list[str]:
    spec = mlsql.parse_model(f"y ~ {formula} + (1 | g)")
    return [c.name for c in code_terms(spec.fixed, variables(spec))]


ONE = "(Intercept)"
ALL_SIX = ["f[a]:h[p]", "f[b]:h[p]", "f[c]:h[p]", "f[a]:h[q]", "f[b]:h[q]", "f[c]:h[q]"]

# as model.matrix() of R names them, sex[M] for sexM
R = {
    "f": [ONE, "f[b]", "f[c]"],
    "x + f": [ONE, "x", "f[b]", "f[c]"],
    "f + h": [ONE, "f[b]", "f[c]", "h[q]"],
    "0 + f": ["f[a]", "f[b]", "f[c]"],
    "0 + x + f": ["x", "f[a]", "f[b]", "f[c]"],
    "f*h": [ONE, "f[b]", "f[c]", "h[q]", "f[b]:h[q]", "f[c]:h[q]"],
    "h*f": [ONE, "h[q]", "f[b]", "f[c]", "h[q]:f[b]", "h[q]:f[c]"],
    "f:h": [ONE, *ALL_SIX],
    "0 + f:h": ALL_SIX,
    "f + f:h": [ONE, "f[b]", "f[c]", "f[a]:h[q]", "f[b]:h[q]", "f[c]:h[q]"],
    "f/h": [ONE, "f[b]", "f[c]", "f[a]:h[q]", "f[b]:h[q]", "f[c]:h[q]"],
    "f*x": [ONE, "f[b]", "f[c]", "x", "f[b]:x", "f[c]:x"],
    "x + f:x": [ONE, "x", "x:f[b]", "x:f[c]"],
    "f:x": [ONE, "f[a]:x", "f[b]:x", "f[c]:x"],
    "0 + f:x": ["f[a]:x", "f[b]:x", "f[c]:x"],
    "f + f:x": [ONE, "f[b]", "f[c]", "f[a]:x", "f[b]:x", "f[c]:x"],
    # without an intercept the first factor alone has a column for every level
    "0 + f + h": ["f[a]", "f[b]", "f[c]", "h[q]"],
    "0 + h + f": ["h[p]", "h[q]", "f[b]", "f[c]"],
    "0 + x + f + h": ["x", "f[a]", "f[b]", "f[c]", "h[q]"],
    "0 + f*h": ["f[a]", "f[b]", "f[c]", "h[q]", "f[b]:h[q]", "f[c]:h[q]"],
}


@pytest.mark.parametrize("formula", R)
def test_columns_are_those_of_r(formula: str) -> None:
    assert columns(formula) == R[formula]


def test_a_product_without_its_main_effect_keeps_every_level() -> None:
    f, x = Atom("f", '"f"'), Atom("x", '"x"')
    spec = mlsql.parse_model("y ~ f + x + (1 | g)")
    coded = code_terms((Term((f, x)),), variables(spec))
    assert [c.name for c in coded] == ["f[a]:x", "f[b]:x", "f[c]:x"]


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute(
        """
        CREATE TYPE size AS ENUM ('small', 'medium', 'large');
        CREATE TABLE t AS SELECT
            i // 12 AS g,
            ['c', 'a', 'b'][i % 3 + 1] AS f,
            ['p', 'q'][(i * 7) % 11 // 6 + 1] AS h,
            i % 2 = 0 AS flag,
            (['large', 'small', 'medium'][(i * 5) % 7 % 3 + 1])::size AS s,
            (i * 5) % 4 AS k,
            ((i * 7919) % 1009) / 1009.0 AS x,
            ((i * 104729) % 997) / 997.0 + (i // 12 * 31 % 17) / 10.0 + i % 3 AS y
        FROM range(144) r(i)
        """
    )
    return con


def terms(con: duckdb.DuckDBPyConnection, formula: str) -> list[str]:
    return mlsql.fit(formula, "t", con=con).fixed_effects["term"].to_list()


@pytest.mark.parametrize(
    ("formula", "names"),
    [
        # text: sorted; ENUM: as declared; boolean: false first; numbers in order; ref= moves one to the front
        ("y ~ f + (1 | g)", ["f[b]", "f[c]"]),
        ("y ~ s + (1 | g)", ["s[medium]", "s[large]"]),
        ("y ~ flag + (1 | g)", ["flag[true]"]),
        ("y ~ C(k) + (1 | g)", ["k[1]", "k[2]", "k[3]"]),
        ("y ~ C(f, ref='b') + (1 | g)", ["f[a]", "f[c]"]),
        ("y ~ C(s, ref='large') + (1 | g)", ["s[small]", "s[medium]"]),
        ("y ~ C(k, ref=2) + (1 | g)", ["k[0]", "k[1]", "k[3]"]),
        ("y ~ C(flag, ref='true') + (1 | g)", ["flag[false]"]),
        ("y ~ I(k > 1) + (1 | g)", ["I(k > 1)[true]"]),
    ],
)
def test_order_and_reference_of_levels(con: duckdb.DuckDBPyConnection, formula: str, names: list[str]) -> None:
    assert terms(con, formula) == [ONE, *names]


def test_a_reference_level_that_is_none(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(mlsql.DesignError, match=r"C\(f, ref='z'\): reference level 'z' is not among a, b, c"):
        terms(con, "y ~ C(f, ref='z') + (1 | g)")


def test_random_coefficients_of_a_factor(con: duckdb.DuckDBPyConnection) -> None:
    contrasts = mlsql.fit("y ~ f + x + (flag | g)", "t", con=con)
    assert contrasts.estimates.random_names == (ONE, "flag[true]")
    indicators = mlsql.fit("y ~ f + x + (0 + flag | g)", "t", con=con)
    assert indicators.estimates.random_names == ("flag[false]", "flag[true]")
    # the same model in another basis; 1e-8 is the accuracy asked of a deviance
    assert indicators.deviance == pytest.approx(contrasts.deviance, rel=1e-8)


@pytest.mark.parametrize(
    ("formula", "by_hand"),
    [
        ("f + x", "I((f = 'b')::INT) + I((f = 'c')::INT) + x"),
        ("f*x", "I((f = 'b')::INT)*x + I((f = 'c')::INT)*x"),
        ("0 + f", "0 + I((f = 'a')::INT) + I((f = 'b')::INT) + I((f = 'c')::INT)"),
        ("C(f, ref='b') + flag", "I((f = 'a')::INT) + I((f = 'c')::INT) + I(flag::INT)"),
        ("group_center(f)", "group_center(I((f = 'b')::INT)) + group_center(I((f = 'c')::INT))"),
    ],
)
def test_numbers_of_a_factor_are_those_of_its_indicators(
    con: duckdb.DuckDBPyConnection, formula: str, by_hand: str
) -> None:
    factor = mlsql.fit(f"y ~ {formula} + (1 | g)", "t", con=con)
    indicators = mlsql.fit(f"y ~ {by_hand} + (1 | g)", "t", con=con)
    # the same columns, sums in another order
    assert factor.deviance == pytest.approx(indicators.deviance, rel=1e-12)
    assert sorted(factor.fixed_effects["estimate"]) == pytest.approx(
        sorted(indicators.fixed_effects["estimate"]), rel=1e-9, abs=1e-12
    )


def test_parametrisations_of_two_factors_agree(con: duckdb.DuckDBPyConnection) -> None:
    """Full maximum likelihood does not depend on the basis of the fixed effects."""
    crossed, nested, cells, means = (
        mlsql.fit(f"y ~ {f} + (1 | g)", "t", con=con, method="ML").deviance
        for f in ("f*h", "f/h", "0 + f:h", "0 + f*h")
    )
    # 1e-8 is the accuracy asked of a deviance
    assert nested == pytest.approx(crossed, rel=1e-8)
    assert cells == pytest.approx(crossed, rel=1e-8)
    assert means == pytest.approx(crossed, rel=1e-8)


@pytest.mark.parametrize(
    "formula",
    ["y ~ C(k) + (k | g)", "y ~ k + (C(k) | g)", "y ~ C(k)*x + (k || g)", "y ~ k + C(k > 1) + (1 | g)"],
)
def test_a_column_may_be_a_factor_and_a_number(con: duckdb.DuckDBPyConnection, formula: str) -> None:
    """Occasions as categories with a linear slope between groups are an ordinary growth model."""
    fitted = mlsql.fit(formula, "t", con=con)
    by_another_name = formula.replace("C(k)", "C(k2)").replace("C(k > 1)", "C(k2 > 1)")
    expected = mlsql.fit(by_another_name, "SELECT *, k AS k2 FROM t", con=con)
    # the same columns
    assert fitted.deviance == pytest.approx(expected.deviance, rel=1e-10)
    predicted = fitted.predict()
    assert predicted is not None
    assert predicted["conditional"].null_count() == 0
