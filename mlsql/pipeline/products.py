"""Products by group, from the moments at hand or by one more scan when they are first needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mlsql._arrays import Array
from mlsql.design.design import Design
from mlsql.errors import QueryError
from mlsql.moments.moments import Moments, complete
from mlsql.moments.products import group_products
from mlsql.pipeline.prepare import Inputs
from mlsql.results.estimates import Estimates
from mlsql.sql.moments import completion_step


@dataclass(slots=True, repr=False)
class Products:
    """What the likelihood does not need but robust errors, influence and comparators do.

    In the full layout they came with the moments.  In the lean layout one query fetches them at the first need and
    they are kept: that is the only state of a fit.

    Attributes
    ----------
    estimates : Estimates
    inputs : Inputs
    """

    estimates: Estimates
    inputs: Inputs
    _complete: tuple[Design, Moments] | None = field(default=None, repr=False)
    _by_group: Array | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"<mlsql.Products of {self.estimates.design.spec.formula}>"

    @property
    def fetched(self) -> bool:
        """True when all products by group are at hand."""
        return self._complete is not None or self.estimates.design.layout == "full"

    def complete(self) -> tuple[Design, Moments]:
        """Design and moments with all products by group.

        Raises
        ------
        DataError
            When the data have changed since the fit.
        QueryError
            When they are gone.
        """
        if self._complete is None:
            design, moments = self.estimates.design, self.estimates.moments
            if design.layout == "full":
                self._complete = design, moments
            else:
                try:
                    with self.inputs.engine() as engine:
                        answer = engine.query(completion_step(design, self.inputs.tables))
                except QueryError as error:
                    raise QueryError(
                        error.step,
                        error.sql,
                        f"{str(error).split(': ', 1)[-1]}  A large fit needs one more scan of its data for robust "
                        "errors, influence and comparators, when first asked for; use vcov='model', or fit again",
                    ) from error
                self._complete = complete(design, moments, answer)
        return self._complete

    def by_group(self) -> Array:
        """(p+1, p+1, J) [X y]'W[X y] in the internal columns; by cell where there are several factors."""
        if self._by_group is None:
            self._by_group = group_products(*self.complete(), self.estimates.statistics)
        return self._by_group

    def estimates_complete(self) -> Estimates:
        """The estimates, on complete moments."""
        design, moments = self.complete()
        return replace(self.estimates, design=design, moments=moments)
