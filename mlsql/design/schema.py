"""Where each part of a model lives: table and type of the outcome, the keys, the weights and every predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import sqlglot
from sqlglot import exp

from mlsql.errors import DataError, DesignError
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import Atom

Table = Literal["rows", "level2"]
Role = Literal["outcome", "key", "weight", "offset", "numeric", "factor"]

NUMERIC = (
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
    "FLOAT", "DOUBLE", "DECIMAL", "BIGNUM",
)  # fmt: skip
_NO_KEY = ("STRUCT", "MAP", "UNION", "INTERVAL", "BIGNUM", "BIT", "VARIANT")
FACTOR = ("VARCHAR", "BOOLEAN", "ENUM")


@dataclass(frozen=True, slots=True)
class Input:
    """One column or expression that the model reads.

    Attributes
    ----------
    name : str
        As the user wrote it, without centring.
    sql : str
        Scalar expression, quoted.
    role : {"outcome", "key", "weight", "numeric", "factor"}
    table : {"rows", "level2"}
        The table that holds it.
    dtype : str
        The engine's type.
    """

    name: str
    sql: str
    role: Role
    table: Table
    dtype: str

    @property
    def numeric(self) -> bool:
        """True when the model computes with its value."""
        return self.role in ("outcome", "weight", "numeric")


@dataclass(frozen=True, slots=True)
class Schema:
    """Every input of a model, each once."""

    inputs: tuple[Input, ...]
    has_level2: bool = False
    warnings: tuple[str, ...] = field(default=())

    def of_role(self, *roles: Role) -> tuple[Input, ...]:
        """Inputs of the given roles, in order."""
        return tuple(i for i in self.inputs if i.role in roles)

    def of_table(self, table: Table) -> tuple[Input, ...]:
        """Inputs of one table, in order."""
        return tuple(i for i in self.inputs if i.table == table)

    def find(self, atom: Atom) -> Input:
        """The input behind a predictor."""
        role: Role = "factor" if atom.categorical else "numeric"
        found = [i for i in self.inputs if i.sql == atom.sql and i.role in ("numeric", "factor")]
        return next((i for i in found if i.role == role), found[0])

    @property
    def outcome(self) -> Input:
        """The outcome, offsets subtracted."""
        return self.of_role("outcome")[0]

    @property
    def weight(self) -> Input | None:
        """The precision weight, if any."""
        return next(iter(self.of_role("weight")), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expression whose type is not known yet."""

    name: str
    sql: str
    role: Role
    table: Table
    categorical: bool = False


def comparable(one: str, other: str) -> bool:
    """True when values of two types can be matched as keys."""
    return _family(one) == _family(other)


def _family(dtype: str) -> str:
    kind = dtype.split("(", maxsplit=1)[0].upper()
    if kind in ("VARCHAR", "ENUM"):
        return "text"
    return "number" if kind in NUMERIC else kind


def outcome_sql(spec: ModelSpec) -> str:
    """The outcome with offsets subtracted, as SQL text."""
    tree: exp.Expr = sqlglot.parse_one(spec.outcome.sql, dialect="duckdb")
    for offset in spec.offset:
        tree = exp.Sub(this=exp.paren(tree), expression=exp.paren(sqlglot.parse_one(offset.sql, dialect="duckdb")))
    return tree.sql("duckdb")


def locate(
    spec: ModelSpec, rows: Mapping[str, str], level2: Mapping[str, str] | None
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Decide which table each part of the model comes from.

    Parameters
    ----------
    spec : ModelSpec
    rows, level2 : mapping of column name to type
        Columns of the two tables.

    Returns
    -------
    candidates : tuple of Candidate
    warnings : tuple of str
        Columns that both tables have; the level-2 table's value is used.

    Raises
    ------
    DataError
        For a column that neither table has.
    DesignError
        For an expression that mixes columns of both tables.
    """
    warnings: list[str] = []
    for offset in spec.offset:
        require_columns(f"offset({offset.name})", offset.sql, rows)
    found: list[Candidate] = [Candidate(spec.outcome.name, outcome_sql(spec), "outcome", "rows")]
    found += [Candidate(k.name, k.sql, "key", "rows") for k in spec.keys]
    if spec.weights is not None:
        found.append(Candidate(spec.weights.name, spec.weights.sql, "weight", "rows"))
    for candidate in found:
        require_columns(candidate.name, candidate.sql, rows)
    for key in spec.keys if level2 is not None else ():
        require_columns(f"level2 table, group {key.name}", key.sql, level2 or {})
    key_columns = {name.lower() for key in spec.keys for name in columns_read(key.sql)}
    for atom in spec.atoms:
        table = _table(atom, rows, level2, key_columns, warnings)
        candidate = Candidate(_plain_name(atom), atom.sql, "numeric", table, atom.categorical)
        if candidate not in found:
            found.append(candidate)
    warnings += [_LOGARITHM.format(atom.name) for atom in spec.atoms if _decimal_logarithm(atom.sql)]
    return tuple(found), tuple(dict.fromkeys(warnings))


_LOGARITHM = "{}: LOG is the logarithm to base 10 in SQL; LN is the natural one"


def _decimal_logarithm(sql: str) -> bool:
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    return any(node.args.get("expression") is None for node in tree.find_all(exp.Log))


def classify(candidate: Candidate, dtype: str) -> Input:
    """Settle the role of a candidate by its type.

    Raises
    ------
    DataError
        When the type cannot serve: a text outcome, a date predictor.
    """
    kind = dtype.split("(", maxsplit=1)[0].upper()
    if candidate.role == "key":
        if dtype.endswith("]") or kind in _NO_KEY:
            raise DataError(
                f"the grouping column {candidate.name} has type {dtype}; a key is a number, text, boolean, UUID, date "
                f"or time: group by its parts, or by I(CAST({candidate.sql} AS VARCHAR))"
            )
        return Input(candidate.name, candidate.sql, "key", candidate.table, dtype)
    if candidate.role in ("outcome", "weight", "offset"):
        if kind not in NUMERIC:
            raise DataError(
                f"the {candidate.role} {candidate.name} has type {dtype}; it must be numeric: "
                f"convert it in the formula, for instance I(CAST({candidate.sql} AS DOUBLE))"
            )
        return Input(candidate.name, candidate.sql, candidate.role, candidate.table, dtype)
    if candidate.categorical or kind in FACTOR:
        return Input(candidate.name, candidate.sql, "factor", candidate.table, dtype)
    if kind not in NUMERIC:
        raise DataError(
            f"predictor {candidate.name} has type {dtype}, which is neither a number nor a category: "
            "convert it, for instance I(date_diff('day', DATE '2020-01-01', d)) for a date, or C(x) for categories"
        )
    return Input(candidate.name, candidate.sql, "numeric", candidate.table, dtype)


def _plain_name(atom: Atom) -> str:
    """The uncentred column's name: centring calls share one input."""
    if atom.kind == "value" and atom.centering == "none" and atom.reference is None:
        return atom.name
    tree = sqlglot.parse_one(atom.sql, dialect="duckdb")
    return tree.name if isinstance(tree, exp.Column) else tree.sql("duckdb")


def columns_read(sql: str) -> list[str]:
    """Names of the columns that an expression reads, as written."""
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    bound = {v.name.lower() for fn in tree.find_all(exp.Lambda) for v in fn.expressions}
    return [c.parts[0].name for c in tree.find_all(exp.Column) if c.parts[0].name.lower() not in bound]


def require_columns(where: str, sql: str, columns: Mapping[str, str]) -> None:
    """Refuse an expression with a column that the table does not have.

    Raises
    ------
    DataError
    """
    have = {c.lower() for c in columns}
    for name in columns_read(sql):
        if name.lower() not in have:
            raise DataError.unknown_column(name, columns, where)


def _table(
    atom: Atom, rows: Mapping[str, str], level2: Mapping[str, str] | None, keys: set[str], warnings: list[str]
) -> Table:
    used = [c for c in columns_read(atom.sql) if c.lower() not in keys]
    if level2 is None:
        require_columns(atom.name, atom.sql, rows)
        return "rows"
    upper = {c.lower() for c in level2}
    lower = {c.lower() for c in rows}
    outside = [c for c in used if c.lower() not in upper]
    if used and not outside:
        twice = [c for c in used if c.lower() in lower]
        if twice:
            warnings.append(
                f"column {', '.join(twice)} is in the data and in the level2 table; the level2 table's value is used"
            )
        if atom.kind == "group_mean" or atom.centering == "group":
            raise DesignError(
                f"{atom.name}: the column comes from the level2 table, where it has one value per group; "
                "use it as it is, or centre it with grand_center()"
            )
        return "level2"
    missing = [c for c in outside if c.lower() not in lower]
    if missing:
        raise DataError.unknown_column(missing[0], [*rows, *level2], atom.name)
    elsewhere = [c for c in used if c.lower() not in lower]
    if elsewhere:
        raise DesignError(
            f"{atom.name} mixes columns of the data ({', '.join(outside)}) and of the level2 table "
            f"({', '.join(elsewhere)}); write it as a product a:b, or add the column to one table"
        )
    return "rows"
