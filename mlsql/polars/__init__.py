"""The namespace `ml` of Polars frames and expressions: `import mlsql.polars` adds it.

>>> import polars as pl
>>> import mlsql.polars
>>> pupils = pl.read_parquet(mlsql.example_data("hsb"))
>>> pupils.ml.fit("mathach ~ ses + (1 | school)").n_groups
160
>>> pupils.select(pl.col("ses").ml.group_center("school").abs().max().round(3)).item()
3.651
"""

from __future__ import annotations

from mlsql.polars.expressions import ExprNamespace as ExprNamespace
from mlsql.polars.frames import DataFrameNamespace as DataFrameNamespace
from mlsql.polars.frames import LazyFrameNamespace as LazyFrameNamespace
