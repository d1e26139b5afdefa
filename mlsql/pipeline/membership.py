"""Membership tables to patterns: the data get one key column per factor, the engine a small incidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from sqlglot import exp

from mlsql.design.membership import (
    Membership,
    MembershipSum,
    MembershipTable,
    check_factors,
    check_key_types,
    check_time,
    sum_table,
    unused_warning,
    with_sums,
)
from mlsql.design.schema import NUMERIC, Candidate, Input, classify, columns_read, require_columns
from mlsql.engine.duckdb import DuckDBEngine
from mlsql.engine.source import Source, make_source
from mlsql.errors import DataError
from mlsql.formula.atoms import column_atom, sql_atom
from mlsql.formula.spec import ModelSpec
from mlsql.moments.incidence import Incidence
from mlsql.pipeline.membership_checks import (
    Reach,
    check_entries,
    check_reach,
    check_repeated,
    check_sets,
    check_units,
    reach_warnings,
)
from mlsql.pipeline.prepare import Inputs, types_of
from mlsql.sql.membership import (
    Lookup,
    MembershipQuery,
    Sum,
    histories_step,
    patterns_step,
    units_step,
    with_patterns,
)
from mlsql.sql.syntax import unique

if TYPE_CHECKING:
    import pyarrow as pa


def prepare_memberships(
    spec: ModelSpec, inputs: Inputs, memberships: Mapping[str, Membership], engine: DuckDBEngine
) -> tuple[ModelSpec, Inputs, Mapping[str, MembershipTable], tuple[str, ...]]:
    """Replace membership tables by pattern numbers in the data.

    1. The model's use of the factors; `membership_sum(x, factor)` becomes a column.
    2. For each factor: its tables checked, its sets computed in the database.
    3. The data's relation with a pattern number per factor, called like the factor, and the sums.

    Parameters
    ----------
    spec : ModelSpec
    inputs : Inputs
    memberships : mapping of factor to Membership
    engine : DuckDBEngine
        Open on `inputs`.

    Returns
    -------
    spec : ModelSpec
    inputs : Inputs
        To be opened anew: the sets are among its sources.
    tables : mapping of factor to MembershipTable
    warnings : tuple of str

    Raises
    ------
    FormulaError, DataError, DesignError
    """
    # 1
    check_factors(spec, memberships)
    if not memberships:
        # membership_sum() without memberships is refused here
        with_sums(spec, memberships, list)
        return spec, inputs, {}, ()
    if engine.foreign:
        raise DataError("memberships of a DuckDB relation need con=, the connection that made the relation")
    rows = engine.columns(inputs.rows, "data")
    taken = [*rows, *memberships]
    spec, sums = with_sums(spec, memberships, lambda names: unique(names, taken))
    # 2
    data = _Table("data", inputs.rows, rows)
    lookups: list[Lookup] = []
    others, tables, warnings = list(inputs.others), {}, []
    for factor, given in memberships.items():
        own = [s for s in sums if s.factor == factor]
        tables[factor], lookup, sources, said = _one_factor(factor, given, own, data, inputs, engine)
        lookups.append(lookup)
        others += sources
        warnings += said
    # 3
    relation = with_patterns(inputs.rows.relation, lookups)
    changed = replace(inputs, rows=replace(inputs.rows, relation=relation), others=tuple(others))
    return spec, changed, tables, tuple(warnings)


def membership_incidences(
    tables: Mapping[str, MembershipTable], cells: pa.Table
) -> tuple[dict[str, Incidence], tuple[str, ...]]:
    """The incidence of each factor with memberships, and a warning for units that no complete row has.

    Parameters
    ----------
    tables : mapping of factor to MembershipTable
    cells : pyarrow.Table
        Key columns of the cells; those called like the factors hold pattern numbers.
    """
    found, warnings = {}, []
    for factor, table in tables.items():
        patterns = cells.column(factor).to_numpy().astype(np.int64)
        kept = table.restricted(patterns)
        found[factor] = Incidence(factor, kept.units, *kept.entries(patterns))
        if kept.unused > table.unused:
            warnings.append(unused_warning(factor, kept.unused - table.unused, complete=True))
    return found, tuple(warnings)


@dataclass(frozen=True, slots=True)
class _Table:
    """A source with its columns; `label` says in messages which one."""

    label: str
    source: Source
    columns: Mapping[str, str]

    def has(self, column: str) -> bool:
        return column.lower() in {c.lower() for c in self.columns}

    def key(self, factor: str, column: str) -> Input:
        """A column to match or to order by."""
        if not self.has(column):
            raise DataError.unknown_column(column, self.columns, f"memberships of {factor}, {self.label}")
        name = next(c for c in self.columns if c.lower() == column.lower())
        return classify(Candidate(name, column_atom(name).sql, "key", "rows"), self.columns[name])

    def number(self, factor: str, shown: str, sql: str, engine: DuckDBEngine) -> Input:
        """An expression to compute with; a condition counts as 0 and 1."""
        require_columns(f"memberships of {factor}, {shown}, {self.label}", sql, self.columns)
        (dtype,) = types_of(engine, self.source.relation, [Candidate(shown, sql, "numeric", "rows")])
        if dtype.split("(", maxsplit=1)[0].upper() not in (*NUMERIC, "BOOLEAN"):
            raise DataError(
                f"memberships of {factor}: {shown} has type {dtype} in the {self.label}; it must be a number: convert "
                "it, or use a condition such as (degree = 'master')"
            )
        return Input(shown, sql, "numeric", "rows", dtype)


def _one_factor(
    factor: str,
    given: Membership,
    sums: Sequence[MembershipSum],
    data: _Table,
    inputs: Inputs,
    engine: DuckDBEngine,
) -> tuple[MembershipTable, Lookup, list[Source], list[str]]:
    if data.has(factor):
        raise DataError(
            f"the data have a column {factor!r}, and memberships are given for the factor {factor!r}: its units come "
            "from one place; rename the column, or call the factor otherwise and give Membership(unit=...)"
        )
    with ExitStack() as stack:
        tables = []
        for what, label in ((given.data, "membership table"), (given.units, "units table")):
            if what is not None:
                source = _source(what, label, inputs, engine)
                stack.enter_context(source.attached(engine.con))
                tables.append(_Table(label, source, engine.columns(source, f"{label} of {factor}")))
        query, warnings = _make_query(factor, given, sums, data, tables[0], tables[1] if tables[1:] else None, engine)
        check_entries(factor, given, query, engine)
        warnings += check_units(factor, query, engine)
        reach = check_reach(factor, query, engine)
        units = engine.query(units_step(query, factor))
        histories = _answer(f"histories of {factor}", engine.query(histories_step(query)))
        stack.enter_context(histories.attached(engine.con))
        check_repeated(factor, query, histories.relation, engine)
        sets = engine.query(patterns_step(query, histories.relation))
    check_sets(factor, query, histories.frame, sets)
    table = _pack(units, sets, reach)
    warnings += reach_warnings(factor, query, reach, table)
    kept = [_without_lists(histories), _answer(f"patterns of {factor}", sets.drop_columns(["n", "entries", "members"]))]
    lookup = Lookup(query, kept[0].relation, kept[1].relation, factor, tuple(s.column for s in sums))
    return table, lookup, kept, warnings


def _answer(label: str, frame: pa.Table) -> Source:
    """An answer of the engine as a source for further statements."""
    name = f"mlsql_sets_{id(frame):x}"
    return Source(label, exp.Table(this=exp.to_identifier(name, quoted=True)), frame, name)


def _without_lists(histories: Source) -> Source:
    return _answer(histories.label, histories.frame.drop_columns("members"))


def _source(data: object, role: str, inputs: Inputs, engine: DuckDBEngine) -> Source:
    source = make_source(data, role=role, exists=None if inputs.con is None else engine.exists)
    if source.duckdb_relation is None:
        return source
    # statements run where the data are, which may be another connection than the relation's
    return replace(source, frame=source.duckdb_relation.to_arrow_table(), duckdb_relation=None)


def _make_query(
    factor: str,
    given: Membership,
    sums: Sequence[MembershipSum],
    data: _Table,
    members: _Table,
    units: _Table | None,
    engine: DuckDBEngine,
) -> tuple[MembershipQuery, list[str]]:
    """Find the columns in the tables, and their types."""
    on = tuple((data.key(factor, c), members.key(factor, c)) for c in given.columns)
    time = None if given.time is None else (data.key(factor, given.time), members.key(factor, given.time))
    for a, b in (*on, *([time] if time else [])):
        check_key_types(factor, a.name, (a.dtype, b.dtype), (data.label, members.label))
    for side in time or ():
        check_time(factor, given, side.dtype)
    unit = members.key(factor, given.unit or factor)
    unit_key = None if units is None else units.key(factor, unit.name)
    if unit_key is not None and units is not None:
        check_key_types(factor, unit.name, (unit.dtype, unit_key.dtype), (members.label, units.label))
    weight = None
    if given.weight is not None:
        weight = members.number(factor, f"weight {given.weight}", sql_atom(given.weight).sql, engine)
    found, warnings = [], []
    for item in sums:
        kind = sum_table(item, members.columns, None if units is None else units.columns, unit.name)
        holder = members if units is None or kind == "memberships" else units
        found.append(Sum(holder.number(factor, item.shown, item.sql, engine), kind == "units"))
        both = [c for c in columns_read(item.sql) if members.has(c) and c.lower() != unit.name.lower()]
        if kind == "units" and both:
            warnings.append(
                f"{item.shown}: column {', '.join(both)} is in the membership table and in the units table; the units "
                "table's value is used"
            )
    relations = (data.source.relation, members.source.relation, None if units is None else units.source.relation)
    query = MembershipQuery(
        *relations, on, time, unit, unit_key, weight, given.normalise, given.decay, sums=tuple(found)
    )
    return query, warnings


def _pack(units: pa.Table, answer: pa.Table, reach: Reach) -> MembershipTable:
    """The incidence from the answer's lists, one per pattern; units without rows are dropped."""
    import pyarrow.compute as pc

    once = answer.select(["pattern", "members"]).filter(pc.is_valid(answer.column("members"))).sort_by("pattern")
    sets = once.column("members").combine_chunks()
    entries = pc.list_flatten(sets)
    sizes = pc.list_value_length(sets).to_numpy(zero_copy_only=False)
    pattern = np.repeat(once.column("pattern").to_numpy().astype(np.int64), sizes)
    unit = pc.struct_field(entries, "u").to_numpy(zero_copy_only=False).astype(np.int64)
    weight = pc.struct_field(entries, "w").to_numpy(zero_copy_only=False).astype(np.float64)
    empty = pc.equal(answer.column("pattern"), 0)
    without = pc.sum(answer.column("n").filter(empty)).as_py() or 0
    table = MembershipTable(units, pattern, unit, weight, int(without) + reach.unknown)
    return table.restricted(pattern)
