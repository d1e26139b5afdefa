"""mlsql: multilevel (hierarchical linear) models where the data live.

Names are loaded when first used, so that `import mlsql` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlsql.design.membership import Membership as Membership
    from mlsql.errors import DataError as DataError
    from mlsql.errors import DesignError as DesignError
    from mlsql.errors import FitError as FitError
    from mlsql.errors import FormulaError as FormulaError
    from mlsql.errors import MlsqlError as MlsqlError
    from mlsql.errors import QueryError as QueryError
    from mlsql.errors import QueryInterrupted as QueryInterrupted
    from mlsql.errors import StoreError as StoreError
    from mlsql.example import example_data as example_data
    from mlsql.formula.describe import level_equations as level_equations
    from mlsql.formula.spec import ModelSpec as ModelSpec
    from mlsql.formula.spec import parse_model as parse_model
    from mlsql.pipeline.compare import StepUp as StepUp
    from mlsql.pipeline.compare import compare as compare
    from mlsql.pipeline.compare import step_up as step_up
    from mlsql.pipeline.fit import evaluate as evaluate
    from mlsql.pipeline.fit import fit as fit
    from mlsql.pipeline.fitted import Fit as Fit
    from mlsql.pipeline.plan import plan as plan
    from mlsql.pipeline.save import load as load
    from mlsql.sql.plan import Plan as Plan
    from mlsql.status import Status as Status
    from mlsql.surfaces.sql_functions import connect as connect
    from mlsql.surfaces.sql_functions import register as register

_HOME = {
    "fit": "mlsql.pipeline.fit",
    "evaluate": "mlsql.pipeline.fit",
    "compare": "mlsql.pipeline.compare",
    "step_up": "mlsql.pipeline.compare",
    "plan": "mlsql.pipeline.plan",
    "load": "mlsql.pipeline.save",
    "register": "mlsql.surfaces.sql_functions",
    "connect": "mlsql.surfaces.sql_functions",
    "parse_model": "mlsql.formula.spec",
    "level_equations": "mlsql.formula.describe",
    "example_data": "mlsql.example",
    "Fit": "mlsql.pipeline.fitted",
    "Membership": "mlsql.design.membership",
    "StepUp": "mlsql.pipeline.compare",
    "ModelSpec": "mlsql.formula.spec",
    "Plan": "mlsql.sql.plan",
    "Status": "mlsql.status",
    "MlsqlError": "mlsql.errors",
    "FormulaError": "mlsql.errors",
    "DataError": "mlsql.errors",
    "DesignError": "mlsql.errors",
    "QueryError": "mlsql.errors",
    "QueryInterrupted": "mlsql.errors",
    "FitError": "mlsql.errors",
    "StoreError": "mlsql.errors",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from mlsql.version import package_version

        return package_version()
    if name not in _HOME:
        raise AttributeError(f"module 'mlsql' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
