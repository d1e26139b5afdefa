"""A fit in a file of its own, without the data: `Fit.save` and `mlsql.load`."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from sqlglot import exp

from mlsql.engine.source import Source
from mlsql.errors import DataError, FitError, MlsqlError, StoreError
from mlsql.pipeline.codec import (
    Damaged,
    Document,
    design_document,
    matrix_document,
    memberships_document,
    moments_document,
    moments_table,
    number_document,
    restored_design,
    restored_matrix,
    restored_memberships,
    restored_moments,
    restored_number,
)
from mlsql.pipeline.incidences import find_incidences
from mlsql.pipeline.objective import make_objective
from mlsql.pipeline.prepare import Inputs
from mlsql.pipeline.products import Products
from mlsql.pipeline.store import fit_identifier
from mlsql.results.estimates import Estimates
from mlsql.sql.plan import Plan
from mlsql.sql.syntax import name
from mlsql.status import Status
from mlsql.version import package_version

if TYPE_CHECKING:
    import duckdb

    from mlsql.pipeline.fitted import Fit

KEY = b"mlsql"
"""The document's key among the metadata of the Parquet file."""

FORMAT = "mlsql fit"

VERSIONS = (1, 2)
"""Of the format: 1 for two-level models, 2 with several grouping factors or memberships: older releases refuse it."""

SAME_DEVIANCE = 1e-8
"""Relative difference of the stored deviance and that of the stored moments that rounding explains."""


class Absent(Source):
    """Data that stayed behind when a fit was saved: whatever needs them says so."""

    __slots__ = ()

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Refuse.

        Raises
        ------
        DataError
        """
        raise DataError(
            f"the fit was loaded without its data ({self.label}), which this needs: pass data= to predict or to "
            "as_marginaleffects; fit again with mlsql.fit for residuals; for robust errors, influence and other models "
            "of a large fit save it with complete=True"
        )
        yield


def save_fit(fit: Fit, path: str | os.PathLike[str], *, replace: bool = False, complete: bool = False) -> None:
    """See `Fit.save`.

    1. Table and document.
    2. A file beside the target, then moved into place: the target is whole or as it was.
    """
    target = save_target(path, replace)
    # 1
    estimates = fit.estimates
    if complete or fit.products.fetched:
        estimates = fit.products.estimates_complete()
    document = _document(fit, estimates)
    table = moments_table(estimates.design, estimates.moments)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    # 2
    partial = target.with_name(f".mlsql-{secrets.token_hex(8)}.partial")
    try:
        import pyarrow.parquet as pq

        pq.write_table(
            table.replace_schema_metadata({KEY: text.encode()}), partial, compression="zstd", write_page_checksum=True
        )
        os.replace(partial, target)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"the fit cannot be saved to {target}, nothing was written: {_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Fit:
    """A fit from its file, without its data.

    Everything that needs the moments alone works as on the day of the fit: estimates, tests, intervals, group effects,
    other models, result tables (under the same fit_id).  `predict` takes data; what needs the fit's own rows says so.

    Parameters
    ----------
    path : str or path
        Written by `Fit.save`.

    Returns
    -------
    Fit

    Raises
    ------
    StoreError
        When the file is missing, is no saved fit, is of another format version, is damaged or edited, or when its
        moments do not give the deviance stored with them.

    Examples
    --------
    >>> import mlsql, os, tempfile
    >>> fit = mlsql.fit("mathach ~ ses + (ses | school)", mlsql.example_data("hsb"))
    >>> path = os.path.join(tempfile.mkdtemp(), "hsb.parquet")
    >>> fit.save(path)
    >>> mlsql.load(path).deviance == fit.deviance
    True
    """
    # the accessors of a fit use this module
    from mlsql.pipeline.fitted import Fit

    source = _path(path)
    table, document = _read(source)
    try:
        estimates = _restored(document, table)
        label, upper = str(document["source"]), estimates.design.schema.has_level2
        inputs = Inputs(_absent(label, "data"), _absent(f"{label}, level2", "level2") if upper else None, None)
        seconds = {str(k): restored_number(v) for k, v in document["seconds"].items()}
        dropped, warnings = tuple(map(str, document["dropped"])), tuple(map(str, document["warnings"]))
        if fit_identifier(estimates, label) != document["fit_id"]:
            raise Damaged(f"it is not the fit {document['fit_id']} that it says it is")
    except StoreError as error:
        raise StoreError(f"{source}: {error}") from error
    except (Damaged, MlsqlError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{source} is damaged or was edited: {_line(error)}") from error
    plan = Plan((), (f"loaded from {source}: no statement ran",))
    return Fit(estimates, inputs, plan, dropped, warnings, seconds, Products(estimates, inputs))


def _document(fit: Fit, estimates: Estimates) -> Document:
    return {
        "format": FORMAT,
        "version": 2 if estimates.moments.incidences else 1,
        "mlsql_version": package_version(),
        "fit_id": fit.fit_id,
        "source": fit.inputs.rows.label,
        **design_document(estimates.design),
        **moments_document(estimates.moments),
        **({"memberships": memberships_document(estimates.moments)} if estimates.moments.incidences else {}),
        "estimates": {
            "L": matrix_document(estimates.L),
            "sigma2": number_document(estimates.sigma2),
            "deviance": number_document(estimates.deviance),
            "status": estimates.status.label,
            "converged": estimates.converged,
            "singular": estimates.singular,
            "evaluations": estimates.evaluations,
            "promised": number_document(estimates.promised),
        },
        "dropped": list(fit.dropped),
        "warnings": list(fit.warnings),
        "seconds": {stage: number_document(t) for stage, t in fit.seconds.items()},
    }


def _restored(document: Document, table: pa.Table) -> Estimates:
    """Design, moments and statistics again, and the likelihood at the stored variance components."""
    design = restored_design(document)
    moments = restored_moments(design, document, table)
    memberships = restored_memberships(document.get("memberships", {}), table)
    moments = replace(moments, incidences=find_incidences(design, moments, memberships))
    if bool(moments.incidences) != (document["version"] == 2):
        raise Damaged("its version is not that of its grouping factors")
    try:
        objective = make_objective(design, moments, design.spec.method)
    except FitError as error:
        raise StoreError(f"the fit cannot be loaded here: {error}") from error
    statistics = objective.statistics
    found = document["estimates"]
    L = restored_matrix(found["L"], statistics.q, "variance components")
    sigma2, deviance = restored_number(found["sigma2"]), restored_number(found["deviance"])
    if not (np.isfinite(L).all() and 0 < sigma2 < np.inf):
        raise Damaged("its variance components are no numbers")
    evaluation = objective.at(L, sigma2=sigma2)
    # a deviance may be near 0 while the terms that it sums are of the order of the rows
    scale = max(abs(deviance), float(statistics.n_rows))
    if not abs(evaluation.deviance - deviance) <= SAME_DEVIANCE * scale:
        raise StoreError(
            f"the stored moments and variance components have deviance {evaluation.deviance!r}, but the one stored "
            f"with them is {deviance!r}: the file was edited or damaged; fit again"
        )
    status = next((s for s in Status if s.label == found["status"]), None)
    if status is None:
        raise Damaged(f"{found['status']!r} is no status")
    return Estimates(
        design=design,
        moments=moments,
        statistics=statistics,
        L=L,
        evaluation=replace(evaluation, deviance=deviance),
        status=status,
        converged=bool(found["converged"]),
        singular=bool(found["singular"]),
        evaluations=int(found["evaluations"]),
        promised=restored_number(found["promised"]),
    )


def _read(source: Path) -> tuple[pa.Table, Document]:
    import pyarrow.parquet as pq

    try:
        if not source.exists():
            raise StoreError(f"the file {source} does not exist")
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            written: Any = (file.metadata.metadata or {}).get(KEY)
            if written is None:
                raise StoreError(f"{source} is a Parquet file, but no saved fit: fit.save(path) writes them")
            table = file.read(use_threads=False).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{source} cannot be read as a saved fit: {_line(error)}") from error
    try:
        document = json.loads(written)
    except ValueError as error:
        raise StoreError(f"{source} is damaged or was edited: its document is no JSON, {_line(error)}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StoreError(f"{source} is no saved fit: its document does not say {FORMAT!r}")
    version = document.get("version")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise StoreError(
            f"{source} has format version {version}, written by mlsql {document.get('mlsql_version')}; "
            f"this is mlsql {package_version()}, which reads versions {known}: load it with that mlsql, or fit again"
        )
    return table, document


def _path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise StoreError(f"path is {path!r}; it is the name of a file: 'fit.parquet'")
    return Path(os.fsdecode(path)).expanduser()


def save_target(path: object, replace: bool) -> Path:
    """The file to be written, refused when it may not be.

    Raises
    ------
    StoreError
    """
    target = _path(path)
    try:
        folder, present, parent = target.is_dir(), target.exists(), target.parent.is_dir()
    except OSError as error:
        raise StoreError(f"the fit cannot be saved to {target}, nothing was written: {_line(error)}") from error
    if folder:
        raise StoreError(f"{target} is a folder; name a file in it: {target / 'fit.parquet'}")
    if present and not target.is_file():
        raise StoreError(f"{target} is no ordinary file; name one ending in .parquet")
    if present and not replace:
        raise StoreError(f"the file {target} exists; choose another name or pass replace=True")
    if not parent:
        raise StoreError(f"the folder {target.parent} does not exist; make it first")
    return target


def _absent(label: str, role: str) -> Absent:
    return Absent(label, exp.Table(this=name(f"mlsql_absent_{role}")))


def _line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
