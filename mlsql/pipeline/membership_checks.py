"""What a membership table must not hold, and what is counted where it and the data do not meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from mlsql.design.membership import Membership, MembershipTable, unused_warning
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.errors import DataError
from mlsql.sql.membership import MembershipQuery
from mlsql.sql.membership_checks import (
    any_repeated_step,
    problems_step,
    reach_step,
    repeated_step,
    units_table_step,
)

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Reach:
    """Entries of the table, entries that no row takes, rows of unknown keys, sets that begin late."""

    entries: int
    lost: int
    unknown: int
    late: int


def check_entries(factor: str, given: Membership, query: MembershipQuery, engine: DuckDBEngine) -> None:
    """Refuse entries that say nothing.

    Raises
    ------
    DataError
    """
    found = engine.query(problems_step(query)).to_pylist()
    if found:
        first = found[0]
        more = [*(["a time"] if query.time else []), *(["a finite weight of 0 or more"] if query.weight else [])]
        weight = f" with {given.weight} = {first['w']}" if "weight" in first["problem"] else ""
        raise DataError(
            f"memberships of {factor}: {_count(first['found'], 'row')} of the membership table with "
            f"{first['problem']}, first {_entry(query, first)}{weight}; each needs {_listed(['a unit', *more])}: "
            "correct or remove them"
        )


def check_repeated(factor: str, query: MembershipQuery, histories: exp.Expr, engine: DuckDBEngine) -> None:
    """Refuse entries that occur more than once, unless they have weights, which are added.

    Raises
    ------
    DataError
    """
    if query.weight is not None or not engine.query(any_repeated_step(query, histories)).column("found")[0].as_py():
        return
    (first,) = engine.query(repeated_step(query)).to_pylist()
    by = [k.name for k in (*query.member_keys, query.unit)]
    time = "" if query.time else "name time= if effects accumulate, "
    raise DataError(
        f"memberships of {factor}: {_count(first['found'], 'entry', 'entries')} of the membership table in more than "
        f"one row, first {_entry(query, first)} ({first['times']:,} rows); it needs one row for each {_listed(by)}: "
        f"aggregate it, {time}or give weight= (weights of equal entries are added)"
    )


def check_units(factor: str, query: MembershipQuery, engine: DuckDBEngine) -> list[str]:
    """Refuse a units table with a unit twice; say how many units it lacks, if the model reads it.

    Raises
    ------
    DataError
    """
    if query.units is None:
        return []
    (found,) = engine.query(units_table_step(query)).to_pylist()
    if found["repeated"]:
        raise DataError(
            f"memberships of {factor}: {_count(found['repeated'], 'unit')} of the units table with more than one row, "
            f"first {query.unit.name} {found['first']}; it needs one row per unit: aggregate it first"
        )
    if not found["absent"] or not any(s.in_units for s in query.sums):
        return []
    return [
        f"memberships of {factor}: {_count(found['absent'], 'unit')} of the membership table not in the units table; "
        "rows that belong to them have no membership_sum() and are incomplete"
    ]


def check_reach(factor: str, query: MembershipQuery, engine: DuckDBEngine) -> Reach:
    """Count what the membership table and the data do not know of each other.

    Raises
    ------
    DataError
        When they have nothing in common.
    """
    (found,) = engine.query(reach_step(query)).to_pylist()
    reach = Reach(**{k: int(v) for k, v in found.items()})
    if not reach.entries:
        raise DataError(f"memberships of {factor}: the membership table has no rows")
    if reach.lost == reach.entries:
        on = _listed([a.name for a, _ in query.on])
        raise DataError(
            f"memberships of {factor}: no row of the data takes any of the {reach.entries:,} entries of the membership "
            f"table; they are matched by {on}{_no_later(query)}: check that both tables write it alike"
        )
    return reach


def check_sets(factor: str, query: MembershipQuery, histories: pa.Table, answer: pa.Table) -> None:
    """Refuse sets that cannot be averaged, and weights that are too large to be added.

    Raises
    ------
    DataError
    """
    import pyarrow.compute as pc

    if query.normalise:
        zero = answer.filter(pc.and_(pc.greater(answer.column("entries"), 0), pc.equal(answer.column("pattern"), 0)))
        if zero.num_rows:
            first = _first_key(query, histories, zero)
            raise DataError(
                f"memberships of {factor}: the weights of {_count(zero.num_rows, 'set')} sum to 0, first {first}; "
                "normalise divides by the sum: remove these entries, or give them weights"
            )
    sets = answer.column("members").drop_null().combine_chunks()
    finite = pc.all(pc.is_finite(pc.struct_field(pc.list_flatten(sets), "w"))).as_py()
    if finite is False:
        raise DataError(f"memberships of {factor}: weights add up to more than a double can hold; rescale them")


def _first_key(query: MembershipQuery, histories: pa.Table, sets: pa.Table) -> str:
    found = histories.drop_columns("members").join(sets.drop_columns("members"), "history", join_type="inner")
    first = found.sort_by([(c, "ascending") for c in query.labels]).slice(0, 1).to_pylist()[0]
    return _keys(query, first)


def reach_warnings(factor: str, query: MembershipQuery, reach: Reach, table: MembershipTable) -> list[str]:
    """Rows without units, entries without rows, histories that may be incomplete."""
    said = []
    on = _listed([a.name for a, _ in query.on])
    if table.rows_without:
        unknown = f" ({reach.unknown:,} with {on} that the membership table does not have)" if reach.unknown else ""
        said.append(
            f"memberships of {factor}: {_count(table.rows_without, 'row')} of the data without any unit{unknown}; they "
            f"stay, with no effect of {factor}"
        )
    if reach.late and query.time is not None:
        said.append(
            f"memberships of {factor}: {_count(reach.late, 'set')} ({on}) of the data begin after the membership "
            f"table's first {query.time[0].name}; what it does not record counts as no membership"
        )
    if reach.lost:
        said.append(
            f"memberships of {factor}: {reach.lost:,} of {reach.entries:,} entries refer to no row of the data"
            f"{_no_later(query)}; they were left out"
        )
    if table.unused:
        said.append(unused_warning(factor, table.unused))
    return said


def _no_later(query: MembershipQuery) -> str:
    return f", at their {query.time[0].name} or later" if query.time else ""


def _keys(query: MembershipQuery, first: Mapping[str, Any]) -> str:
    named = zip(query.row_keys, query.labels, strict=True)
    return ", ".join(f"{k.name} {_text(first[label])}" for k, label in named)


def _entry(query: MembershipQuery, first: Mapping[str, Any]) -> str:
    return f"{_keys(query, first)}, {query.unit.name} {_text(first['unit'])}"


def _text(value: object) -> str:
    return "NULL" if value is None else str(value)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
