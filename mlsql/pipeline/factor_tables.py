"""Level-2 tables of several grouping factors: each is joined to the rows by its factor's keys.

With one factor the table is joined after aggregation (`design.schema.locate`): there a group is what is aggregated to.
With several it is a cell, and a table for the groups of one factor has no place among the cells' own.  The relation of
the rows then gets the tables' columns, and everything after works as if the data had them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlsql.design.schema import Candidate, Input, classify, columns_read, comparable, require_columns
from mlsql.engine.duckdb import DuckDBEngine, open_engine
from mlsql.engine.source import Source, make_source
from mlsql.errors import DataError, DesignError
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import Atom, Factor
from mlsql.pipeline.prepare import Inputs, JoinedTable, make_inputs, types_of
from mlsql.sql.factor_tables import GroupTable, check_step, with_group_tables
from mlsql.sql.plan import Step

if TYPE_CHECKING:
    from mlsql.results.estimates import Estimates


def level2_tables(
    spec: ModelSpec, level2: object, memberships: Collection[str] = ()
) -> tuple[object, dict[str, object]]:
    """What `level2` holds: the table of the only factor, or the tables of several by factor.

    Parameters
    ----------
    spec : ModelSpec
    level2 : like data, or mapping of str to such
        A mapping from factor to table; with one factor also its table alone.
    memberships : collection of str
        Factors whose groups come from a membership table.

    Returns
    -------
    table : object
        To be joined after aggregation; None when there is none.
    tables : dict of str to object
        To be joined to the rows, by the factor's name.

    Raises
    ------
    DesignError
        When a factor is not the model's, or the model has several and none is named.
    """
    factors = spec.factors
    names = _listed([f.name for f in factors])
    if level2 is None:
        return None, {}
    if not isinstance(level2, Mapping):
        if len(factors) > 1:
            example = ", ".join(f"{f.name!r}: ..." for f in factors if f.name not in memberships)
            raise DesignError(
                f"the model has {len(factors)} grouping factors, {names}, and level2 is one table: say whose groups "
                f"it describes, with a table for each factor that has one, level2={{{example}}}"
            )
        level2 = {factors[0].name: level2}
    found: dict[str, object] = {}
    for key, table in level2.items():
        factor = spec.factor(key) if isinstance(key, str) else None
        if factor is None:
            of = f"its grouping factor is {names}" if len(factors) == 1 else f"its grouping factors are {names}"
            raise DesignError(
                f"level2 has a table for {key!r}, which is no grouping factor of the model; {of}: name a table by "
                "its factor"
            )
        if factor.name in found:
            raise DesignError(f"level2 has two tables for the grouping factor {factor.name}; give one")
        if factor.name in memberships:
            raise DesignError(
                f"level2 has a table for {factor.name}, whose units come from a membership table: give it as "
                f"Membership(units=...), and write its columns as membership_sum(x, {factor.name})"
            )
        found[factor.name] = table
    if len(factors) == 1:
        return next(iter(found.values()), None), {}
    return None, found


@dataclass(frozen=True, slots=True)
class FactorTables:
    """Tables found, not yet read.

    Attributes
    ----------
    inputs : Inputs
        The rows with the tables' columns, once `steps` have found nothing wrong.
    tables : tuple of GroupTable
    steps : tuple of Step
        The checks.
    warnings : tuple of str
    """

    inputs: Inputs
    tables: tuple[GroupTable, ...]
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]


def prepare_factor_tables(
    spec: ModelSpec, inputs: Inputs, tables: Mapping[str, object], *, new: bool = False
) -> tuple[Inputs, tuple[str, ...]]:
    """Join the tables to the rows, after a look at their keys.

    Parameters
    ----------
    spec : ModelSpec
    inputs : Inputs
    tables : mapping of str to object
        By the factor's name, as `level2_tables` gives them.
    new : bool
        The rows are to be predicted: what the model reads of them is checked later.

    Returns
    -------
    inputs : Inputs
        Their rows have the tables' columns.
    warnings : tuple of str

    Raises
    ------
    DataError, DesignError
    """
    found = locate_factor_tables(spec, inputs, tables, new=new)
    return found.inputs, (*found.warnings, *check_factor_tables(found))


def locate_factor_tables(
    spec: ModelSpec, inputs: Inputs, tables: Mapping[str, object], *, new: bool = False
) -> FactorTables:
    """Find keys and columns in the tables, and make the joined relation; no row is read.

    Parameters and errors are those of `prepare_factor_tables`.
    """
    if not tables:
        return FactorTables(inputs, (), (), ())
    sources = {factor: _source(table, factor, inputs) for factor, table in tables.items()}
    opened = replace(inputs, joined=tuple(JoinedTable(s, ()) for s in sources.values()))
    with opened.engine() as engine:
        rows = engine.columns(inputs.rows, "data")
        columns = {f: engine.columns(s, f"level2 table of {f}") for f, s in sources.items()}
        chosen, warnings = _choose(spec, rows, columns, new=new)
        found = []
        for f, names in chosen.items():
            factor = spec.factor(f)
            assert factor is not None
            keys = _matched_keys(factor, inputs, sources[f], rows, columns[f], engine)
            if names:
                found.append(GroupTable(f, sources[f].relation, keys, tuple(names)))
            else:
                warnings.append(f"the model reads no column of the level2 table of {f}; it was not used")
    relation = with_group_tables(inputs.rows.relation, list(rows), found) if found else inputs.rows.relation
    have = {c.lower() for c in rows}
    joined = [JoinedTable(sources[t.factor], tuple(c for c in t.columns if c.lower() not in have)) for t in found]
    return FactorTables(
        replace(inputs, rows=replace(inputs.rows, relation=relation), joined=tuple(joined)),
        tuple(found),
        tuple(check_step(inputs.rows.relation, t) for t in found),
        tuple(warnings),
    )


def check_factor_tables(found: FactorTables) -> tuple[str, ...]:
    """Refuse a table with a group twice; say how many rows have a group that a table lacks.

    Raises
    ------
    DataError
    """
    if not found.tables:
        return ()
    warnings = []
    with found.inputs.engine() as engine:
        for table, step in zip(found.tables, found.steps, strict=True):
            (met,) = engine.query(step).to_pylist()
            factor, keys = table.factor, [b.name for _, b in table.keys]
            if not met["groups"]:
                raise DataError(f"the level2 table of {factor} has no rows with a value of {_listed(keys)}")
            if met["repeated"]:
                first = ", ".join(f"{k} {met[f'first {label}']}" for k, label in zip(keys, table.labels, strict=True))
                groups = "1 group" if met["repeated"] == 1 else f"{met['repeated']:,} groups"
                raise DataError(
                    f"the level2 table of {factor} has more than one row for {groups}, first {first} "
                    f"({met['times']:,} rows); it needs one row per group: aggregate it first"
                )
            if met["rows"] and met["unmatched"] == met["rows"]:
                raise DataError(
                    f"none of the {met['rows']:,} rows belongs to a group of the level2 table of {factor}; compare "
                    f"their keys, {_listed(keys)}"
                )
            if met["unmatched"]:
                belong = "1 row belongs" if met["unmatched"] == 1 else f"{met['unmatched']:,} rows belong"
                warnings.append(
                    f"{belong} to groups that the level2 table of {factor} does not have, and without a value of "
                    f"{_listed(table.columns)}"
                )
    return tuple(warnings)


def new_inputs(estimates: Estimates, data: object, level2: object, con: object) -> Inputs:
    """Rows to be predicted, with the level-2 tables that belong to them.

    Raises
    ------
    DataError, DesignError
        When a table does not fit, or is missing.
    """
    table, tables = level2_tables(estimates.design.spec, level2)
    chosen, expected = make_inputs(data, table, con), estimates.design.schema.has_level2
    if expected and table is None:
        raise DataError("the model uses a level2 table; new data need their level2= too")
    if table is not None and not expected:
        raise DataError("the model was fitted without a level2 table; leave level2= out")
    return prepare_factor_tables(estimates.design.spec, chosen, tables, new=True)[0]


def _source(table: object, factor: str, inputs: Inputs) -> Source:
    role = f"level2 table of {factor}"
    with open_engine(inputs.con, []) as engine:
        source = make_source(table, role=role, exists=None if inputs.con is None else engine.exists)
    if source.duckdb_relation is None:
        return source
    # statements run where the data are, which may be another connection than the relation's
    try:
        frame = source.duckdb_relation.to_arrow_table()
    except Exception as error:
        raise DataError(f"{role} {source.label} cannot be read: {str(error).splitlines()[0]}") from error
    return replace(source, frame=frame, duckdb_relation=None)


def _choose(
    spec: ModelSpec, rows: Mapping[str, str], tables: Mapping[str, Mapping[str, str]], *, new: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Which columns come from which table, by factor.

    A table's value goes before the data's; keys, the outcome, offsets and weights are the data's.
    """
    chosen: dict[str, list[str]] = {f: [] for f in tables}
    lower = {c.lower() for c in rows}
    spelled = {f: {c.lower(): c for c in columns} for f, columns in tables.items()}
    keys = {c.lower() for key in spec.keys for c in columns_read(key.sql)}
    outer = [spec.outcome, *spec.offset, *([spec.weights] if spec.weights else [])]
    own = {c.lower() for atom in outer for c in columns_read(atom.sql)}
    holder: dict[str, str] = {}
    warnings = []
    for atom in spec.atoms:
        for c in columns_read(atom.sql):
            key = c.lower()
            if key in keys or key in holder:
                continue
            having = [f for f, columns in spelled.items() if key in columns]
            if not having:
                if key not in lower and not new:
                    everything = [*rows, *(name for columns in tables.values() for name in columns)]
                    raise DataError.unknown_column(c, everything, atom.name)
                continue
            if len(having) > 1:
                raise DesignError(
                    f"column {c} is in the level2 tables of {_listed(having)}; leave it out of all but one, or rename"
                    " it: a predictor comes from one table"
                )
            if key in lower and key in own:
                raise DesignError(
                    f"column {c} is in the data, where the outcome, an offset or the weights read it, and in the "
                    f"level2 table of {having[0]}, where a predictor would; rename one of them"
                )
            if key in lower:
                warnings.append(
                    f"column {c} is in the data and in the level2 table of {having[0]}; the level2 table's value is "
                    "used"
                )
            holder[key] = having[0]
            chosen[having[0]].append(spelled[having[0]][key])
    for atom in spec.atoms:
        _check_centring(atom, spec, [holder.get(c.lower()) for c in columns_read(atom.sql) if c.lower() not in keys])
    return chosen, warnings


def _check_centring(atom: Atom, spec: ModelSpec, holders: Sequence[str | None]) -> None:
    """Refuse the group means of what has one value per group anyway."""
    group = None if atom.group is None else spec.factor(atom.group)
    if group is None or (atom.kind != "group_mean" and atom.centering != "group"):
        return
    above = [f for f in map(spec.factor, filter(None, holders)) if f is not None and f.columns <= group.columns]
    if holders and len(above) == len(holders):
        raise DesignError(
            f"{atom.name}: the column comes from the level2 table of {above[0].name}, so that it has one value per "
            f"group of {group.name}; use it as it is, or centre it with grand_center()"
        )


def _matched_keys(
    factor: Factor,
    inputs: Inputs,
    source: Source,
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    engine: DuckDBEngine,
) -> tuple[tuple[Input, Input], ...]:
    names = _listed([k.name for k in factor.keys])
    have = {c.lower() for c in columns}
    for key in factor.keys:
        require_columns(f"level2 table of {factor.name}, key {key.name}", key.sql, rows)
        absent = [c for c in columns_read(key.sql) if c.lower() not in have]
        if absent:
            raise DataError(
                f"the level2 table of {factor.name} has no column {absent[0]!r} among {_listed(list(columns))}; its "
                f"rows are found by {names}: add it, or rename a column"
            )
    candidates = [Candidate(k.name, k.sql, "key", "rows") for k in factor.keys]
    sides = [types_of(engine, relation, candidates) for relation in (inputs.rows.relation, source.relation)]
    found = []
    for candidate, mine, theirs in zip(candidates, *sides, strict=True):
        if not comparable(mine, theirs):
            raise DataError(
                f"the grouping column {candidate.name} is {mine} in the data and {theirs} in the level2 table of "
                f"{factor.name}; convert one of them, so that groups can be matched"
            )
        found.append((classify(candidate, mine), classify(candidate, theirs)))
    return tuple(found)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
