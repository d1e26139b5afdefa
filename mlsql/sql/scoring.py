"""Predictions and residuals as one query: the data joined to a small table with one row per group.

The query works in the internal columns of the fixed part and of Z (pivoted, so that standard errors keep their
digits far from zero), with

    population   = x'beta                              variance  |R x|^2,            Var(beta) = R'R
    conditional  = x'beta + z'u_j                      variance  |R (x - C_j'z)|^2 + z' s2K_j z

where the group's row holds u_j, C_j = K_j Z'WX and s2 K_j; for a group that the fit did not see u = 0, C = 0 and
s2 K = T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.columns import Column, Variable
from mlsql.design.design import Design
from mlsql.sql.syntax import aliased, as_double, column, is_floating, name, number, present, scalar, shifted, times

Floats = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """Numbers of a fit that the query needs, as plain floats; internal columns throughout.

    Attributes
    ----------
    design : Design
    shifts : mapping of Variable to float, for the fixed part and each column of Z
        Constants subtracted from a variable that is not centred within groups.
    beta : (p,)    constant : float    added to x'beta
    root : (p, p) rows of R
    T : (q, q)
    sigma : float
    means : tuple of str
        SQL of the columns whose group means the group table holds, in order.
    """

    design: Design
    fixed_shifts: Mapping[Variable, float]
    random_shifts: tuple[Mapping[Variable, float], ...]
    beta: Floats
    constant: float
    root: tuple[Floats, ...]
    T: tuple[Floats, ...]
    sigma: float
    means: tuple[str, ...]


def key_name(i: int) -> str:
    """Column of the group table that holds key i."""
    return f"mlsql key {i}"


def effect_name(kind: str, *index: int) -> str:
    """Column of the group table: `u a`, `ols a`, `C a f`, `K a b`, `mean i`."""
    return " ".join(["mlsql", kind, *map(str, index)])


@dataclass(frozen=True, slots=True)
class ScoreQuery:
    """Where the query reads and what it keeps.

    Attributes
    ----------
    model : ScoreModel
    data, groups : sqlglot expression
        Relations; `groups` holds the columns named by `key_name` and `effect_name`.
    level2 : sqlglot expression or None
    columns : tuple of str
        The data's columns, all of which are kept.
    unseen : bool
        Predict rows whose group is not in `groups` as members of a new group.
    """

    model: ScoreModel
    data: exp.Expr
    groups: exp.Expr
    level2: exp.Expr | None
    columns: tuple[str, ...]
    unseen: bool


def unseen_query(query: ScoreQuery) -> exp.Select:
    """Count rows with a key that the group table does not have, and how many groups they are."""
    design = query.model.design
    keys = [scalar(k.sql) for k in design.keys]
    grouped = (
        exp.select(*[aliased(k.copy(), f"k{i}") for i, k in enumerate(keys)], aliased(exp.Count(this=exp.Star()), "n"))
        .from_(query.data.copy())
        .where(*[exp.not_(exp.Is(this=k.copy(), expression=exp.Null())) for k in keys])
        .group_by(*[k.copy() for k in keys])
    )
    on = exp.and_(*[exp.EQ(this=column(f"k{i}", "a"), expression=column(key_name(i), "b")) for i in range(len(keys))])
    groups = exp.select("*").from_(query.groups.copy()).subquery("b")
    return (
        exp.select(
            exp.Coalesce(this=exp.Sum(this=column("n")), expressions=[exp.Literal.number(0)]),
            exp.Count(this=exp.Star()),
        )
        .from_(grouped.subquery("a"))
        .join(groups, on=on, join_type="anti")
    )


def prediction_query(query: ScoreQuery) -> exp.Select:
    """The data's columns with population, conditional and their standard errors."""
    model = query.model
    known = None if query.unseen else is_known()
    offset = [scalar(o.sql) for o in model.design.spec.offset]
    population = added([population_part(model), *offset])
    conditional = added([population_part(model), *[o.copy() for o in offset], random_part(model, "u")])
    items = {
        "population": population,
        "population_std_error": _standard_error(model, [_x(f) for f in range(len(model.beta))], []),
        "conditional": only_when(known, conditional),
        "conditional_std_error": only_when(known, _conditional_error(model)),
    }
    return with_rows(query, items)


def residual_query(query: ScoreQuery) -> exp.Select:
    """The data's columns with level-1 residuals."""
    model = query.model
    outcome, known = outcome_value(model.design), is_known()
    fitted = exp.paren(population_part(model))
    residual = exp.Sub(this=exp.Sub(this=outcome, expression=fitted), expression=exp.paren(random_part(model, "u")))
    ols = exp.Sub(
        this=exp.Sub(this=outcome.copy(), expression=fitted.copy()), expression=exp.paren(random_part(model, "ols"))
    )
    scaled: exp.Expr = exp.Div(this=exp.paren(residual.copy()), expression=number(model.sigma))
    weight = model.design.schema.weight
    if weight is not None:
        scaled = exp.Mul(this=scaled, expression=exp.Sqrt(this=as_double(weight.sql, weight.dtype)))
    items = {
        "residual_population": exp.Sub(this=outcome.copy(), expression=fitted.copy()),
        "residual": only_when(known, residual),
        "residual_ols": ols,
        "residual_standardized": only_when(known, scaled),
    }
    return with_rows(query, {k: only_when(analysed(model.design), v) for k, v in items.items()})


def outcome_value(design: Design) -> exp.Expr:
    """The outcome as a double, NULL for NaN."""
    tree = as_double(design.outcome.sql, design.outcome.dtype)
    if not is_floating(design.outcome.dtype):
        return tree
    return exp.Nullif(this=tree, expression=exp.cast(exp.Literal.string("NaN"), exp.DataType.Type.DOUBLE))


def analysed(design: Design) -> exp.Expr | None:
    """A condition that a row was in the analysis, where the model's own columns do not tell.

    A model made from another's moments has that one's rows: those complete in columns that it does not use itself.
    """
    if design.survey is None:
        return None
    used = {v.source for c in (*design.fixed.columns, *design.random) for v in c.variables}
    missing = [i for i in design.survey.incomplete_inputs("rows") if i.role in ("numeric", "factor")]
    conditions = present([i for i in missing if i.sql not in used])
    return exp.and_(*conditions) if conditions else None


PREDICTION_COLUMNS = ("population", "population_std_error", "conditional", "conditional_std_error")
RESIDUAL_COLUMNS = ("residual_population", "residual", "residual_ols", "residual_standardized")


def with_rows(query: ScoreQuery, items: Mapping[str, exp.Expr]) -> exp.Select:
    """The data's columns and, beside them, items computed from the scored rows."""
    kept = [column(c) for c in query.columns]
    select = exp.select(*kept, *[aliased(tree, label) for label, tree in items.items()]).from_(name("mlsql_scored"))
    return select.with_(name("mlsql_scored"), as_=_scored(query))


def _scored(query: ScoreQuery) -> exp.Select:
    """Every row with the values of the model's internal columns and its group's numbers beside it."""
    model, design = query.model, query.model.design
    shifts = [model.fixed_shifts] * len(design.fixed.columns)
    items = [
        aliased(_product(query, c, s), f"mlsql x {f}")
        for f, (c, s) in enumerate(zip(design.fixed.columns, shifts, strict=True))
    ]
    items += [
        aliased(_product(query, c, s), f"mlsql z {a}")
        for a, (c, s) in enumerate(zip(design.random, model.random_shifts, strict=True))
    ]
    keys = [scalar(k.sql) for k in design.keys]
    star = exp.Column(this=exp.Star(), table=name("data"))
    groups = exp.Column(this=exp.Star(), table=name("groups"))
    select = exp.select(star, groups, *items).from_(_named(query.data, "data"))
    on = exp.and_(*[exp.EQ(this=k.copy(), expression=column(key_name(i), "groups")) for i, k in enumerate(keys)])
    select = select.join(_named(query.groups, "groups"), on=on, join_type="left")
    if query.level2 is not None:
        upper = _level2(query)
        on = exp.and_(
            *[exp.EQ(this=k.copy(), expression=column(f"mlsql level2 key {i}", "level2")) for i, k in enumerate(keys)]
        )
        select = select.join(upper.subquery("level2"), on=on, join_type="left")
    return select


def _level2(query: ScoreQuery) -> exp.Select:
    assert query.level2 is not None
    design = query.model.design
    joined = [v for v in design.group_values if v.origin == "level2"]
    return exp.select(
        *[aliased(scalar(k.sql), f"mlsql level2 key {i}") for i, k in enumerate(design.keys)],
        *[aliased(guarded(v, design), f"mlsql level2 {v.name}") for v in joined],
    ).from_(query.level2.copy())


def _named(relation: exp.Expr, alias: str) -> exp.Expr:
    return exp.select("*").from_(relation.copy()).subquery(alias)


def _product(query: ScoreQuery, item: Column, shifts: Mapping[Variable, float]) -> exp.Expr:
    if not item.variables:
        return exp.cast(exp.Literal.number(1), exp.DataType.Type.DOUBLE)
    factors = [_value(query, v, shifts.get(v, 0.0)) for v in item.variables]
    return times([exp.paren(f) if isinstance(f, exp.Add | exp.Sub) and len(factors) > 1 else f for f in factors])


def _value(query: ScoreQuery, variable: Variable, shift: float) -> exp.Expr:
    model = query.model
    if variable.origin == "group_mean":
        return shifted(_group_mean(query, variable), shift)
    if variable.origin == "level2":
        base = next(g for g in model.design.group_values if g.sql == variable.sql and g.origin == "level2")
        return shifted(column(f"mlsql level2 {base.name}", "level2"), shift)
    value = guarded(variable, model.design)
    if variable.centering == "group":
        return exp.Sub(this=value, expression=_group_mean(query, variable))
    return shifted(value, shift)


def guarded(variable: Variable, design: Design) -> exp.Expr:
    """The value as a double; NULL for NaN and for a factor level that the fit did not see."""
    tree: exp.Expr = exp.cast(scalar(variable.sql), exp.DataType.Type.DOUBLE)
    if is_floating(variable.dtype):
        nan = exp.cast(exp.Literal.string("NaN"), exp.DataType.Type.DOUBLE)
        tree = exp.Nullif(this=tree, expression=nan)
    levels = {} if design.survey is None else design.survey.levels
    if variable.source not in levels or variable.source == variable.sql:
        return tree
    text = exp.cast(scalar(variable.source), exp.DataType.Type.VARCHAR)
    known = exp.In(this=text, expressions=[exp.Literal.string(level) for level in levels[variable.source]])
    return exp.Case(ifs=[exp.If(this=known, true=tree)])


def _group_mean(query: ScoreQuery, variable: Variable) -> exp.Expr:
    """The group's mean at the fit; for a new group, when asked for, its mean in the data at hand."""
    stored = column(effect_name("mean", query.model.means.index(variable.sql)), "groups")
    if not query.unseen:
        return stored
    here = exp.Window(
        this=exp.Avg(this=as_double(variable.sql, variable.dtype)),
        partition_by=[scalar(k.sql) for k in query.model.design.keys],
    )
    return exp.Coalesce(this=stored, expressions=[here])


def _x(f: int) -> exp.Expr:
    return column(f"mlsql x {f}")


def _z(a: int) -> exp.Expr:
    return column(f"mlsql z {a}")


def added(trees: Sequence[exp.Expr]) -> exp.Expr:
    """A sum, left to right."""
    result = trees[0]
    for tree in trees[1:]:
        result = exp.Add(this=result, expression=tree)
    return result


def population_part(model: ScoreModel) -> exp.Expr:
    """x'beta."""
    terms = [times([number(b), _x(f)]) for f, b in enumerate(model.beta)]
    return added([number(model.constant), *terms] if model.constant else terms)


def random_part(model: ScoreModel, kind: str) -> exp.Expr:
    """z'u with EB residuals (kind "u", 0 for unknown groups) or least-squares ones ("ols")."""
    trees = []
    for a in range(len(model.T)):
        effect: exp.Expr = column(effect_name(kind, a))
        if kind == "u":
            effect = exp.Coalesce(this=effect, expressions=[exp.Literal.number(0)])
        trees.append(times([effect, _z(a)]))
    return added(trees)


def _conditional_error(model: ScoreModel) -> exp.Expr:
    q = range(len(model.T))
    zero = exp.Literal.number(0)
    moved: list[exp.Expr] = []
    for f in range(len(model.beta)):
        pulls = [
            times([exp.Coalesce(this=column(effect_name("C", a, f)), expressions=[zero.copy()]), _z(a)]) for a in q
        ]
        moved.append(exp.paren(exp.Sub(this=_x(f), expression=exp.paren(added(pulls)))))
    own = []
    for a in q:
        for b in range(a + 1):
            spread = exp.Coalesce(this=column(effect_name("K", a, b)), expressions=[number(model.T[a][b])])
            own.append(times([*([number(2.0)] if a != b else []), spread, _z(a), _z(b)]))
    return _standard_error(model, moved, own)


def _standard_error(model: ScoreModel, x: Sequence[exp.Expr], own: Sequence[exp.Expr]) -> exp.Expr:
    squares = []
    for row in model.root:
        terms = [times([number(r), x[f].copy()]) for f, r in enumerate(row) if r != 0.0]
        if terms:
            squares.append(exp.Anonymous(this="POWER", expressions=[added(terms), exp.Literal.number(2)]))
    return exp.Sqrt(this=added([*squares, *own]))


def is_known() -> exp.Expr:
    """The row's group was in the fit."""
    return exp.not_(exp.Is(this=column(effect_name("u", 0)), expression=exp.Null()))


def only_when(known: exp.Expr | None, tree: exp.Expr) -> exp.Expr:
    """The tree where the condition holds, else NULL."""
    return tree if known is None else exp.Case(ifs=[exp.If(this=known.copy(), true=tree)])
