"""A fit as one JSON document and one Arrow table, and back: what a saved file holds (docs/reference/stored_moments.md).

The table has the moments by group, by cell where there are several grouping factors, and the units of memberships; the
document has the rest.  The groups of other factors follow from the keys of the cells.  Every number comes back bit by
bit: the table holds doubles, and the document writes them with as many digits as they need, or as "nan", "inf", "-inf".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from mlsql._arrays import Array
from mlsql._typing import Centering, Method
from mlsql.design.design import Design, Layout, build_design
from mlsql.design.layout import moment_columns
from mlsql.design.schema import Input, Role, Schema, Table
from mlsql.design.survey import ColumnSurvey, Preview, Survey
from mlsql.formula.atoms import sql_atom
from mlsql.formula.spec import ModelSpec
from mlsql.formula.terms import Atom, RandomBlock, Term
from mlsql.moments.incidence import Incidence
from mlsql.moments.moments import SAME, Moments
from mlsql.pipeline.incidences import incidence
from mlsql.sql.syntax import unique

Document = dict[str, Any]


class Damaged(Exception):
    """What a file holds is not what was saved; the message says in what."""


# numbers


def number_document(value: float) -> float | str:
    """A double for JSON, which has no word for nan and infinity."""
    return float(value) if math.isfinite(value) else str(float(value))


def restored_number(value: Any) -> float:
    """The double of `number_document`."""
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise Damaged(f"{value!r} stands where a number should")
    return float(value)


def matrix_document(values: Array) -> list[list[float | str]]:
    """A matrix, row by row."""
    return [[number_document(v) for v in row] for row in values]


def restored_matrix(rows: Any, size: int, what: str) -> Array:
    """The square matrix of `matrix_document`."""
    values = np.array([[restored_number(v) for v in row] for row in rows], dtype=np.float64)
    if values.shape != (size, size):
        raise Damaged(f"the {what} have shape {values.shape}, the model needs {size} x {size}")
    return values


# the model


def design_document(design: Design) -> Document:
    """Specification, schema, survey, and what the design took from the moments: see `restored_design`."""
    survey = design.survey
    assert survey is not None
    variables = {v for c in (*design.fixed.columns, *design.random) for v in c.variables}
    varying = {v.source for v in variables if v.level == 1 and v.centering != "group"}
    whole = build_design(design.spec, design.schema, survey, varying=frozenset(varying))
    kept = {c.name for c in design.fixed.columns}
    return {
        "spec": _spec_document(design.spec),
        "schema": {
            "inputs": [asdict(i) for i in design.schema.inputs],
            "has_level2": design.schema.has_level2,
            "warnings": list(design.schema.warnings),
        },
        "survey": _survey_document(survey, design.schema),
        "varying": sorted(varying),
        "excluded": [c.name for c in whole.fixed.columns if c.name not in kept],
        "layout": design.layout,
        "per_group": list(design.per_group),
        "sources": [list(s) for s in design.sources],
        "pivots": {b.name: number_document(b.pivot) for b in design.bases},
        "fixed": [c.name for c in design.fixed.columns],
        "random": [c.name for c in design.random],
    }


def restored_design(document: Document) -> Design:
    """Build the design again from its specification, schema and survey."""
    spec = _restored_spec(document["spec"])
    schema = _restored_schema(document["schema"])
    survey = _restored_survey(document["survey"], schema)
    varying, excluded = frozenset(document["varying"]), frozenset(document["excluded"])
    design = build_design(spec, schema, survey, varying=varying, excluded=excluded)
    per_group = tuple(document["per_group"])
    positions = set(range(1, len(design.sources)))
    if document["layout"] not in get_args(Layout) or len(set(per_group)) < len(per_group) or set(per_group) - positions:
        raise Damaged("the layout of the sums is none that this version knows")
    if [list(s) for s in design.sources] != document["sources"]:
        raise Damaged("this version sums other columns for the model than the version that saved it")
    names = [c.name for c in design.fixed.columns], [c.name for c in design.random]
    if names != (document["fixed"], document["random"]):
        raise Damaged("its specification and its list of terms do not agree")
    return replace(design, layout=document["layout"], per_group=per_group)


def _spec_document(spec: ModelSpec) -> Document:
    return {
        "formula": spec.formula,
        "method": spec.method,
        "weights": None if spec.weights is None else asdict(spec.weights),
        "outcome": asdict(spec.outcome),
        "fixed": [_term_document(t) for t in spec.fixed],
        "random": [
            {"terms": [_term_document(t) for t in b.terms], "keys": [asdict(k) for k in b.keys]} for b in spec.random
        ],
        "offset": [asdict(o) for o in spec.offset],
    }


def _term_document(term: Term) -> list[Document]:
    return [asdict(a) for a in term.atoms]


def _restored_spec(document: Document) -> ModelSpec:
    spec = ModelSpec(
        outcome=_atom(document["outcome"]),
        fixed=tuple(_term(t) for t in document["fixed"]),
        random=tuple(
            RandomBlock(tuple(_term(t) for t in b["terms"]), tuple(_atom(k) for k in b["keys"]))
            for b in document["random"]
        ),
        offset=tuple(_atom(o) for o in document["offset"]),
        weights=None if document["weights"] is None else _atom(document["weights"]),
        method=_one_of(Method, document["method"]),
    )
    if spec.formula != document["formula"]:
        raise Damaged("its formula and its specification do not agree")
    return spec


def _term(document: Any) -> Term:
    return Term(tuple(_atom(a) for a in document))


def _atom(document: Document) -> Atom:
    atom = Atom(**document)
    _one_of(Centering, atom.centering)
    if atom.kind not in ("value", "group_mean"):
        raise Damaged(f"{atom.kind!r} is no kind of predictor")
    # what will be part of a statement is one scalar expression, as in a formula
    sql_atom(atom.sql)
    return atom


def _restored_schema(document: Document) -> Schema:
    inputs = tuple(Input(**i) for i in document["inputs"])
    for item in inputs:
        _one_of(Role, item.role)
        _one_of(Table, item.table)
        sql_atom(item.sql)
    return Schema(inputs, bool(document["has_level2"]), tuple(document["warnings"]))


def _one_of(words: Any, found: Any) -> Any:
    if found not in get_args(words):
        raise Damaged(f"{found!r} is not one of {', '.join(get_args(words))}")
    return found


_COUNTS = ("rows", "nulls", "nans", "infinite")
_RANGE = ("mean", "minimum", "maximum")


def _survey_document(survey: Survey, schema: Schema) -> Document:
    preview = survey.preview
    return {
        "rows": survey.rows,
        "unmatched": survey.unmatched,
        "columns": [
            {"input": schema.inputs.index(c.input)}
            | {n: getattr(c, n) for n in _COUNTS}
            | {n: number_document(getattr(c, n)) for n in _RANGE}
            for c in survey.columns
        ],
        "levels": {sql: list(levels) for sql, levels in survey.levels.items()},
        "empty_levels": {sql: list(levels) for sql, levels in survey.empty_levels.items()},
        "preview": {
            "rows": preview.rows,
            "groups": preview.groups,
            "runs": preview.runs,
            "varying": sorted(preview.varying),
            "spread": {sql: number_document(v) for sql, v in preview.spread.items()},
        },
    }


def _restored_survey(document: Document, schema: Schema) -> Survey:
    columns = tuple(_restored_column(c, schema) for c in document["columns"])
    seen = document["preview"]
    spread = {sql: restored_number(v) for sql, v in seen["spread"].items()}
    return Survey(
        rows=int(document["rows"]),
        columns=columns,
        levels=_tuples(document["levels"]),
        empty_levels=_tuples(document["empty_levels"]),
        preview=Preview(seen["rows"], seen["groups"], seen["runs"], frozenset(seen["varying"]), spread),
        unmatched=int(document["unmatched"]),
    )


def _restored_column(document: Document, schema: Schema) -> ColumnSurvey:
    rows, nulls, nans, infinite = (int(document[n]) for n in _COUNTS)
    mean, minimum, maximum = (restored_number(document[n]) for n in _RANGE)
    return ColumnSurvey(schema.inputs[document["input"]], rows, nulls, nans, infinite, mean, minimum, maximum)


def _tuples(levels: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {sql: tuple(found) for sql, found in levels.items()}


# the moments


def moments_table(design: Design, moments: Moments) -> pa.Table:
    """One row per group: keys, n, sums, products, means, group values under readable names, units of memberships."""
    layout, position = moment_columns(design), {s: d for d, s in enumerate(design.per_group)}
    arrays: list[Any] = [moments.n]
    if layout.weighted:
        arrays.append(moments.sums[0])
    arrays += [moments.sums[s] for s in layout.sums]
    for a, b in layout.products:
        arrays.append(moments.products[position[a], b] if a in position else moments.products[position[b], a])
    arrays += [*moments.means, *moments.values]
    keys, memberships = moments.keys, [i for i in moments.incidences if not i.ordinary]
    columns = [*keys.columns, *(pa.array(np.ascontiguousarray(values)) for values in arrays)]
    columns += [part for of in memberships for part in _member_lists(of, moments.n_groups)]
    names = _column_names(design, keys.column_names, [i.name for i in memberships])
    return pa.table(columns, names=[*keys.column_names, *names])


def moments_document(moments: Moments) -> Document:
    """The sums over all rows, and what a Parquet file would forget of the keys."""
    return {
        "keys": [str(field.type) for field in moments.keys.schema],
        "log_weights": number_document(moments.log_weights),
        "pooled": matrix_document(moments.pooled),
    }


def restored_moments(design: Design, document: Document, table: pa.Table) -> Moments:
    """The moments of a table and its document; refuses sums by group that do not add up to those over all rows.

    Of the incidences only those of memberships: the others follow from the keys.
    """
    layout, S, J = moment_columns(design), len(design.sources), table.num_rows
    memberships = document.get("memberships", {})
    names = _column_names(design, table.column_names[: layout.n_keys], list(memberships))
    if table.column_names[layout.n_keys :] != names:
        lacking = [n for n in names if n not in table.column_names]
        what = f"lacks {', '.join(map(repr, lacking[:5]))}" if lacking else "has others or another order"
        raise Damaged(f"the model needs the columns keys, {', '.join(names[:3])}, ...; the file {what}")
    numbers = table.columns[layout.n_keys : table.num_columns - 2 * len(memberships)]
    columns = iter([_values(c, n) for c, n in zip(numbers, names, strict=False)])
    n = next(columns)
    if n.dtype != np.int64 or J < 2 or n.min() < 1:
        raise Damaged("the numbers of rows are none of two or more groups")
    sums = np.empty((S, J))
    sums[0] = next(columns) if layout.weighted else n
    for s in layout.sums:
        sums[s] = next(columns)
    products = np.empty((len(design.per_group), S, J))
    position = {s: d for d, s in enumerate(design.per_group)}
    for d, s in enumerate(design.per_group):
        products[d, 0] = sums[s]
    pooled = restored_matrix(document["pooled"], S, "sums over all rows")
    checks = [(0, s, sums[s]) for s in range(1, S)]
    for a, b in layout.products:
        values = next(columns)
        checks.append((a, b, values))
        for s, t in ((a, b), (b, a)):
            if s in position:
                products[position[s], t] = values
    for a, b, values in checks:
        if not abs(float(values.sum()) - pooled[a, b]) <= SAME * np.sqrt(pooled[a, a] * pooled[b, b]):
            raise Damaged(f"the sums by group of {_label(design, a, b)} are not those over all rows")
    means = np.array([next(columns) for _ in design.means]).reshape(len(design.means), J)
    values = np.array([next(columns) for _ in design.group_values]).reshape(len(design.group_values), J)
    keys = table.select(list(range(layout.n_keys)))
    for i, kind in enumerate(document["keys"]):
        keys = keys.set_column(i, keys.column_names[i], _cast(keys.column(i), kind))
    return Moments(keys, n, restored_number(document["log_weights"]), sums, products, pooled, means, values)


def _cast(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """A column in the type that it had: Parquet has no seconds."""
    return column if str(column.type) == kind else column.cast(pa.type_for_alias(kind))


def _values(column: pa.ChunkedArray, name: str) -> Any:
    if column.null_count or not (pa.types.is_float64(column.type) or pa.types.is_int64(column.type)):
        raise Damaged(f"column {name!r} is {column.type} with {column.null_count} NULL")
    return column.to_numpy()


def _column_names(design: Design, keys: Sequence[str], memberships: Sequence[str] = ()) -> list[str]:
    layout = moment_columns(design)
    bases = {b.sql: b.name for b in design.bases}
    names = ["n", *(["sum(weight)"] if layout.weighted else [])]
    names += [f"sum({_label(design, 0, s)})" for s in layout.sums]
    names += [f"sum({_label(design, a, b)})" for a, b in layout.products]
    names += [f"mean({bases[sql]})" for sql in design.means]
    names += [f"value({v.name})" for v in design.group_values]
    names += [f"{what}({factor})" for factor in memberships for what in ("units", "weights")]
    return unique(names, keys)


def _label(design: Design, a: int, b: int) -> str:
    bases = {b.sql: b.name for b in design.bases}
    factors = [bases[sql] for s in (a, b) for sql in design.sources[s]]
    return " * ".join([*(["weight"] if design.schema.weight is not None else []), *factors])


# memberships


def memberships_document(moments: Moments) -> Document:
    """Name and type of the units of each factor whose groups come from a membership table, and its weights' sum."""
    found = {}
    for of in moments.incidences:
        if of.weight is not None:
            unit = of.keys.schema.field(0)
            total = number_document(float(of.weight.sum()))
            found[of.name] = {"unit": unit.name, "type": str(unit.type), "weight": total}
    return found


def restored_memberships(document: Document, table: pa.Table) -> dict[str, Incidence]:
    """The incidences of memberships, from the last columns of the table: units and weights of every cell."""
    found, start = {}, table.num_columns - 2 * len(document)
    for position, (factor, unit) in enumerate(document.items()):
        units, weights = (table.column(start + 2 * position + i).combine_chunks() for i in range(2))
        found[factor] = _restored_membership(factor, unit, units, weights)
    return found


def _member_lists(of: Incidence, cells: int) -> list[pa.Array]:
    """Units and weights of every cell; entries are in order of the cells."""
    assert of.weight is not None
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(of.cell, minlength=cells))]), type=pa.int64())
    units = of.keys.column(0).take(pa.array(of.group)).combine_chunks()
    return [pa.LargeListArray.from_arrays(offsets, values) for values in (units, pa.array(of.weight))]


def _restored_membership(factor: str, unit: Document, units: Any, weights: Any) -> Incidence:
    import pyarrow.compute as pc

    lists = all(pa.types.is_list(a.type) or pa.types.is_large_list(a.type) for a in (units, weights))
    if not lists or units.null_count or weights.null_count:
        raise Damaged(f"the memberships of {factor} are no lists of units and weights")
    sizes = pc.list_value_length(units).to_numpy(zero_copy_only=False)
    weight = weights.flatten()
    same = np.array_equal(sizes, pc.list_value_length(weights).to_numpy(zero_copy_only=False))
    if not same or weight.type != pa.float64() or weight.null_count or not np.isfinite(weight).all():
        raise Damaged(f"the weights of {factor} are not one finite number for each unit")
    values: Array = weight.to_numpy(zero_copy_only=False)
    if not abs(float(values.sum()) - restored_number(unit["weight"])) <= SAME * float(np.abs(values).sum()):
        # on another scale the likelihood would be the same, and the variances not
        raise Damaged(f"the weights of {factor} do not add up to what was saved")
    cell = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    key = _cast(pa.chunked_array([units.flatten()]), unit["type"])
    if key.null_count:
        raise Damaged(f"a unit of {factor} is NULL")
    # the units are distinct values of one column of the entries, as groups are of the cells
    label = unit["unit"]
    of = incidence(factor, pa.table([key, pa.array(cell)], names=[label, f"{label} cell"]), [label])
    return Incidence(factor, of.keys, cell, of.group, values)
