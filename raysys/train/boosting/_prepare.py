"""The Tables of a boosting run, looked at and ready to be dealt out to actors."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from raysys.errors import DataError
from raysys.train.boosting._columns import Coding, Columns, has_classes
from raysys.train.boosting._survey import (
    ClassWeights,
    Survey,
    check_classes,
    check_known,
    survey,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table


class Prepared(NamedTuple):
    """A Table's blocks, and how an actor reads them."""

    blocks: Sequence[Any]
    rows: Sequence[int]
    columns: Columns
    coding: Coding
    class_weights: list[float] | None


@dataclass
class Inputs:
    """What a run learns from and measures on; looked at when it is first asked for."""

    table: Table
    held_out: Table | None
    columns: Columns
    objective: str
    actors: int
    given_weights: ClassWeights | None

    def training(self) -> Prepared:
        """The rows to learn from."""
        return self._prepared(self._training, "training", weighed=True)

    def validation(self) -> Prepared:
        """The rows to measure on: coded like the others, and never weighed by their classes."""
        assert self._validation is not None
        found = survey(self._validation, self.columns, self.objective, what="validation")
        if self.coding.classes is not None:
            check_known(found.classes, self.coding.classes, self.columns.label)
        return self._prepared(self._validation, "validation", weighed=False)

    @functools.cached_property
    def coding(self) -> Coding:
        """How the columns become numbers."""
        classes = list(self._survey.classes) if has_classes(self.objective) else None
        return Coding(self.columns.features, self._survey.categories, classes)

    def fingerprints(self) -> dict[str, str | None]:
        """Of both Tables, their used columns only."""
        held_out = self._validation.fingerprint if self._validation is not None else None
        return {"table": self._training.fingerprint, "validation": held_out}

    def described(self) -> dict[str, Any]:
        """What a run is made of, apart from its settings."""
        given = self.given_weights
        weights = given if given is None or isinstance(given, str) else list(given.items())
        return {**self.fingerprints(), **asdict(self.columns), "class_weights": weights}

    @functools.cached_property
    def _training(self) -> Table:
        return _only(self.table, self.columns.used)

    @functools.cached_property
    def _validation(self) -> Table | None:
        if self.held_out is None:
            return None
        missing = [n for n in self.columns.used if n not in self.held_out.schema.names]
        if missing:
            raise DataError(f"validation: the columns {missing[:20]} of the training Table lack")
        return _only(self.held_out, self.columns.used)

    @functools.cached_property
    def _survey(self) -> Survey:
        found = survey(self._training, self.columns, self.objective, what="training")
        if has_classes(self.objective):
            check_classes(found.classes, self.objective, self.columns.label)
        elif self.given_weights is not None:
            raise DataError(f"class_weights: {self.objective} has no classes; leave them out")
        return found

    def _prepared(self, table: Table, what: str, *, weighed: bool) -> Prepared:
        coding = self.coding  # after a look at the training rows
        kept = [(b, m.rows) for b, m in zip(table.blocks, table.metas, strict=True) if m.rows]
        rows = [count for _, count in kept]
        if self.columns.group and len(kept) < self.actors:
            raise DataError(
                f"{what}: {len(kept)} blocks with rows cannot feed {self.actors} actors, since a "
                "group stays in one block: use fewer actors, or deal the groups out anew: "
                f"table.partition_by({self.columns.group!r}, {self.actors})"
            )
        if sum(rows) < self.actors:
            raise DataError(f"{what}: {sum(rows)} rows cannot feed {self.actors} actors; use fewer")
        weights = weights_of(self._survey.classes, self.given_weights) if weighed else None
        return Prepared([block for block, _ in kept], rows, self.columns, coding, weights)


def _only(table: Table, names: Sequence[str]) -> Table:
    """These columns, kept; a Table that has no others stays as it is."""
    chosen = table if set(table.schema.names) == set(names) else table.select(names)
    return chosen.materialize()
