"""Predictions and residuals with any of a model's grouping factors: the data joined to one small table per factor.

With z_t the random columns of factor t, R'R = Var(beta), and sums over the factors whose effects are asked for,

    population   = x'beta                    variance  |R x|^2
    conditional  = x'beta + sum_t z_t'u_t    variance  |R x - sum_t D_t'z_t|^2 + sum_ts z_t'S_ts z_s

where a group's row holds u_t, D_t = C_t R' (C_t: how u_t moves with beta) and S_tt.  The covariances S_ts of two
factors' effects depend on both groups: a further table has them for each combination of groups in the data.  A group
that the fit did not see has u = 0, D = 0, S_tt = T_t and no covariance with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from mlsql.design.columns import Column, Variable
from mlsql.sql.plan import Step
from mlsql.sql.scoring import (
    ScoreModel,
    added,
    analysed,
    effect_name,
    guarded,
    key_name,
    only_when,
    outcome_value,
    population_part,
)
from mlsql.sql.syntax import aliased, as_double, call, column, name, number, scalar, shifted, times

GROUP = "mlsql key group"
"""Column of a factor's table that numbers its groups."""

UNKNOWN = -1
"""Number of a group that the fit did not see, in the table of combinations."""


@dataclass(frozen=True, slots=True)
class FactorTable:
    """A factor's groups, as the query reads them.

    Attributes
    ----------
    name : str
    keys : tuple of str
        SQL of the key columns in the data.
    relation : sqlglot expression
        Columns `key_name(i)`, `GROUP` and those named by `effect_name`: u a, mean i and, for standard errors, C a r
        (of D), K a b (of S).
    columns : tuple of int
        Random columns whose effects the table holds; empty when only its means are read.
    means : tuple of str
        SQL of the columns whose group means it holds, in order.
    single : bool
        False when a row belongs to several groups at once, and `relation` has one row per set of groups.
    """

    name: str
    keys: tuple[str, ...]
    relation: exp.Expr
    columns: tuple[int, ...]
    means: tuple[str, ...]
    single: bool = True


@dataclass(frozen=True, slots=True)
class LevelQuery:
    """Where the query reads and what it keeps.

    Attributes
    ----------
    model : ScoreModel
    data : sqlglot expression
    factors : tuple of FactorTable
        Those whose effects or means are used.
    joint : sqlglot expression or None
        One row per combination of groups: their numbers `key_name(t)`, by position among the factors with effects, and
        covariances K a b.  None with fewer than two such factors, or when the covariances are not to be had.
    exact : bool
        The tables have all that the standard error of `conditional` needs; it is NULL otherwise.
    level2 : sqlglot expression or None
    columns : tuple of str
        The data's columns to keep.
    unseen : bool
        Predict groups that the fit did not see as new ones.
    """

    model: ScoreModel
    data: exp.Expr
    factors: tuple[FactorTable, ...]
    joint: exp.Expr | None
    exact: bool
    level2: exp.Expr | None
    columns: tuple[str, ...]
    unseen: bool

    @property
    def acting(self) -> tuple[FactorTable, ...]:
        """Factors with effects."""
        return tuple(f for f in self.factors if f.columns)


def unseen_step(data: exp.Expr, factor: FactorTable, shown: int) -> Step:
    """Rows and groups that a factor's table does not have.  Row layout: the first groups' keys, groups, rows."""
    keys = [scalar(k) for k in factor.keys]
    labels = [f"k{i}" for i in range(len(keys))]
    grouped = (
        exp.select(*[aliased(k, c) for k, c in zip(keys, labels, strict=True)], aliased(_count(), "n"))
        .from_(data.copy())
        .where(*[exp.not_(exp.Is(this=k.copy(), expression=exp.Null())) for k in keys])
        .group_by(*[k.copy() for k in keys])
    )
    on = exp.and_(*[_same(column(c, "a"), column(key_name(i), "b")) for i, c in enumerate(labels)])
    absent = exp.select(exp.Column(this=exp.Star(), table=name("a"))).from_(grouped.subquery("a"))
    absent = absent.join(_whole(factor.relation, "b"), on=on, join_type="anti")
    tree = exp.select(
        *[column(c) for c in labels],
        aliased(exp.Window(this=_count()), "groups"),
        aliased(exp.Window(this=exp.Sum(this=column("n"))), "rows"),
    )
    tree = tree.from_(absent.subquery("absent")).order_by(*[column(c) for c in labels]).limit(shown)
    return Step("unseen groups", f"groups of {factor.name} that the fit did not see", tree)


def combinations_step(query: LevelQuery, limit: int) -> Step:
    """Combinations of groups that occur in the data, by their numbers; at most `limit` of them."""
    keys = list(dict.fromkeys(k for f in query.acting for k in f.keys))
    labels = {k: f"k{i}" for i, k in enumerate(keys)}
    distinct = exp.select(*[aliased(scalar(k), c) for k, c in labels.items()]).from_(query.data.copy()).distinct()
    items = [aliased(_group_number(t), key_name(t)) for t in range(len(query.acting))]
    tree = exp.select(*items).from_(distinct.subquery("data"))
    for t, factor in enumerate(query.acting):
        on = [_same(column(labels[k], "data"), column(key_name(i), _alias(t))) for i, k in enumerate(factor.keys)]
        tree = tree.join(_whole(factor.relation, _alias(t)), on=exp.and_(*on), join_type="left")
    return Step("combinations", "combinations of groups in the data", tree.distinct().limit(limit))


def level_query(query: LevelQuery, wanted: Sequence[str]) -> exp.Select:
    """The data's columns and the wanted ones of predictions, residuals and fitted values, by their names."""
    makers = {**_predictions(query), **_residuals(query)}
    items = [aliased(makers[label](), label) for label in wanted]
    kept = [column(c) for c in query.columns]
    return (
        exp.select(*kept, *items)
        .from_(name("mlsql_scored"))
        .with_(name("mlsql_scored"), as_=_scored(query, errors="conditional_std_error" in wanted))
    )


Makers = dict[str, Callable[[], exp.Expr]]


def _predictions(query: LevelQuery) -> Makers:
    """Offsets are part of a prediction; a missing outcome does not hinder it."""
    known, x = _known(query), [_x(f) for f in range(len(query.model.beta))]
    return {
        "population": lambda: _fixed(query),
        "population_std_error": lambda: exp.Sqrt(this=added(_squares(query.model, x, []))),
        "conditional": lambda: only_when(known, added([_fixed(query), *_random(query)])),
        "conditional_std_error": lambda: only_when(known, _conditional_error(query)),
    }


def _residuals(query: LevelQuery) -> Makers:
    """Of the rows of the analysis."""
    model, known, rows = query.model, _known(query), analysed(query.model.design)

    def residual() -> exp.Expr:
        left = exp.Sub(this=outcome_value(model.design), expression=exp.paren(population_part(model)))
        random = _random(query)
        return exp.Sub(this=left, expression=exp.paren(added(random))) if random else left

    def standardized() -> exp.Expr:
        scaled: exp.Expr = exp.Div(this=exp.paren(residual()), expression=number(model.sigma))
        weight = model.design.schema.weight
        if weight is None:
            return scaled
        return exp.Mul(this=scaled, expression=exp.Sqrt(this=as_double(weight.sql, weight.dtype)))

    makers: Makers = {
        "fitted": lambda: only_when(known, added([_fixed(query), *_random(query)])),
        "fitted_population": lambda: _fixed(query),
        "residual": lambda: only_when(known, residual()),
        "residual_population": lambda: exp.Sub(
            this=outcome_value(model.design), expression=exp.paren(population_part(model))
        ),
        "residual_standardized": lambda: only_when(known, standardized()),
    }
    return {label: _in_analysis(rows, maker) for label, maker in makers.items()}


def _in_analysis(rows: exp.Expr | None, maker: Callable[[], exp.Expr]) -> Callable[[], exp.Expr]:
    return lambda: only_when(rows, maker())


def _fixed(query: LevelQuery) -> exp.Expr:
    return added([population_part(query.model), *[scalar(o.sql) for o in query.model.design.spec.offset]])


def _random(query: LevelQuery) -> list[exp.Expr]:
    return [times([_or(column(effect_name("u", a)), 0.0), _z(a)]) for f in query.acting for a in f.columns]


def _conditional_error(query: LevelQuery) -> exp.Expr:
    """NULL where the covariances of the factors' effects are not to be had."""
    if not query.exact:
        return exp.cast(exp.Null(), exp.DataType.Type.DOUBLE)
    model, acting = query.model, query.acting
    own = []
    for factor in acting:
        for a in factor.columns:
            for b in (b for b in factor.columns if b <= a):
                spread = _or(column(effect_name("K", a, b)), model.T[a][b])
                own.append(times([*([number(2.0)] if a != b else []), spread, _z(a), _z(b)]))
    own += [times([number(2.0), column(effect_name("K", a, b)), _z(a), _z(b)]) for a, b in crossing(acting)]
    columns = [a for f in acting for a in f.columns]
    squares = _squares(model, [_x(f) for f in range(len(model.beta))], columns)
    # a variance of zero may come out below it by rounding
    return exp.Sqrt(this=call("ABS", added([*squares, *own])))


def crossing(factors: Sequence[FactorTable]) -> list[tuple[int, int]]:
    """Pairs of random columns of different factors."""
    return [(a, b) for t, f in enumerate(factors) for g in factors[:t] for a in f.columns for b in g.columns]


def _squares(model: ScoreModel, x: Sequence[exp.Expr], columns: Sequence[int]) -> list[exp.Expr]:
    """Squares of the entries of R x - D'z."""
    squares: list[exp.Expr] = []
    for r, row in enumerate(model.root):
        moved = added([times([number(v), x[f].copy()]) for f, v in enumerate(row) if v != 0.0])
        pulls = [times([_or(column(effect_name("C", a, r)), 0.0), _z(a)]) for a in columns]
        if pulls:
            moved = exp.Sub(this=moved, expression=exp.paren(added(pulls)))
        squares.append(call("POWER", moved, exp.Literal.number(2)))
    return squares


def _known(query: LevelQuery) -> exp.Expr | None:
    """The fit saw the row's groups.  A new set of groups has an unknown variance, whatever is asked of new groups."""
    needed = [t for t, f in enumerate(query.acting) if not (query.unseen and f.single)]
    found = [exp.not_(exp.Is(this=column(_number_name(t)), expression=exp.Null())) for t in needed]
    return exp.and_(*found) if found else None


def _scored(query: LevelQuery, *, errors: bool) -> exp.Select:
    """Every row with the values of the model's internal columns and its groups' numbers beside it."""
    model, design, acting = query.model, query.model.design, query.acting
    items: list[exp.Expr] = [exp.Column(this=exp.Star(), table=name("data"))]
    for f, item in enumerate(design.fixed.columns):
        items.append(aliased(_product(query, item, model.fixed_shifts), f"mlsql x {f}"))
    for t, factor in enumerate(acting):
        items.append(aliased(column(GROUP, _alias(t)), _number_name(t)))
        for a in factor.columns:
            items.append(aliased(_product(query, design.random[a], model.random_shifts[a]), f"mlsql z {a}"))
            held = [effect_name("u", a)]
            if errors:
                held += [effect_name("C", a, r) for r in range(len(model.root))]
                held += [effect_name("K", a, b) for b in factor.columns if b <= a]
            items += [column(label, _alias(t)) for label in held]
    if query.joint is not None:
        items += [column(effect_name("K", a, b), "joint") for a, b in crossing(acting)]
    tree = exp.select(*items).from_(_whole(query.data, "data"))
    for t, factor in enumerate(_ordered(query)):
        on = [_same(scalar(k), column(key_name(i), _alias(t))) for i, k in enumerate(factor.keys)]
        tree = tree.join(_whole(factor.relation, _alias(t)), on=exp.and_(*on), join_type="left")
    if query.joint is not None:
        on = [_same(_group_number(t), column(key_name(t), "joint")) for t in range(len(acting))]
        tree = tree.join(_whole(query.joint, "joint"), on=exp.and_(*on), join_type="left")
    return tree if query.level2 is None else _with_level2(query, query.level2, tree)


def _ordered(query: LevelQuery) -> tuple[FactorTable, ...]:
    """Factors with effects first: their positions are those of the combinations."""
    return (*query.acting, *(f for f in query.factors if not f.columns))


def _with_level2(query: LevelQuery, level2: exp.Expr, tree: exp.Select) -> exp.Select:
    design = query.model.design
    keys = [f"mlsql level2 key {i}" for i in range(len(design.keys))]
    upper = exp.select(
        *[aliased(scalar(k.sql), label) for k, label in zip(design.keys, keys, strict=True)],
        *[aliased(guarded(v, design), f"mlsql level2 {v.name}") for v in design.group_values if v.origin == "level2"],
    ).from_(level2.copy())
    on = [_same(scalar(k.sql), column(label, "level2")) for k, label in zip(design.keys, keys, strict=True)]
    return tree.join(upper.subquery("level2"), on=exp.and_(*on), join_type="left")


def _product(query: LevelQuery, item: Column, shifts: Mapping[Variable, float]) -> exp.Expr:
    if not item.variables:
        return exp.cast(exp.Literal.number(1), exp.DataType.Type.DOUBLE)
    factors = [_value(query, v, shifts.get(v, 0.0)) for v in item.variables]
    return times([exp.paren(f) if isinstance(f, exp.Add | exp.Sub) and len(factors) > 1 else f for f in factors])


def _value(query: LevelQuery, variable: Variable, shift: float) -> exp.Expr:
    design = query.model.design
    if variable.origin == "group_mean":
        return shifted(_group_mean(query, variable), shift)
    if variable.origin == "level2":
        base = next(g for g in design.group_values if g.sql == variable.sql and g.origin == "level2")
        return shifted(column(f"mlsql level2 {base.name}", "level2"), shift)
    value = guarded(variable, design)
    if variable.centering == "group":
        return exp.Sub(this=value, expression=_group_mean(query, variable))
    return shifted(value, shift)


def _group_mean(query: LevelQuery, variable: Variable) -> exp.Expr:
    """The group's mean at the fit; for a new group, when asked for, its mean in the data at hand."""
    position, factor = next(
        (t, f) for t, f in enumerate(_ordered(query)) if variable.group is None or f.name == variable.group
    )
    stored = column(effect_name("mean", factor.means.index(variable.sql)), _alias(position))
    if not query.unseen:
        return stored
    here = exp.Window(
        this=exp.Avg(this=as_double(variable.sql, variable.dtype)), partition_by=[scalar(k) for k in factor.keys]
    )
    return exp.Coalesce(this=stored, expressions=[here])


def _x(f: int) -> exp.Expr:
    return column(f"mlsql x {f}")


def _z(a: int) -> exp.Expr:
    return column(f"mlsql z {a}")


def _number_name(t: int) -> str:
    """Column of the scored rows with the number of the row's group."""
    return f"mlsql key of {t}"


def _alias(t: int) -> str:
    return f"groups {t}"


def _group_number(t: int) -> exp.Expr:
    return _or(column(GROUP, _alias(t)), UNKNOWN)


def _or(tree: exp.Expr, value: float) -> exp.Expr:
    return exp.Coalesce(this=tree, expressions=[number(value)])


def _same(left: exp.Expr, right: exp.Expr) -> exp.Expr:
    return exp.EQ(this=left, expression=right)


def _count() -> exp.Expr:
    return exp.Count(this=exp.Star())


def _whole(relation: exp.Expr, alias: str) -> exp.Expr:
    return exp.select("*").from_(relation.copy()).subquery(alias)
