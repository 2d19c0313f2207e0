"""Training and validation Tables of a boosting run, checked and ready to be assigned to actors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from raysys.errors import DataError
from raysys.train.boosting._feature_columns import FeatureEncoding, is_classification
from raysys.train.boosting._table_summary import check_classes, summarize, weights_by_class

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train.boosting._feature_columns import FeatureColumns
    from raysys.train.boosting._table_summary import ClassWeights, TableSummary


class ShardSource(NamedTuple):
    """Blocks of a Table with all that an actor needs to read them."""

    blocks: Sequence[Any]
    rows: Sequence[int]
    columns: FeatureColumns
    encoding: FeatureEncoding
    class_weights: list[float] | None


@dataclass
class BoostInputs:
    """Tables of a run; summarized when their rows are first needed."""

    table: Table
    validation_table: Table | None
    columns: FeatureColumns
    objective: str
    num_actors: int
    class_weights: ClassWeights | None

    def training(self) -> ShardSource:
        """Training rows."""
        weights = weights_by_class(self._summary.classes, self.class_weights)
        return self._source(self._training, "training", weights)

    def validation(self) -> ShardSource:
        """Validation rows: encoded like the training rows, and never weighted by class."""
        assert self._validation is not None
        summary = summarize(self._validation, self.columns, self.objective, name="validation")
        trained = self.encoding.classes
        unknown = {value: n for value, n in summary.classes.items() if value not in (trained or ())}
        if trained is not None and unknown:
            raise DataError(
                f"validation: {self.columns.label!r} has classes that the training Table lacks "
                f"(with their rows): {unknown}. Drop these rows, or split so that every class is "
                "trained on"
            )
        return self._source(self._validation, "validation", None)

    @functools.cached_property
    def encoding(self) -> FeatureEncoding:
        """Encoding of the columns as numbers."""
        classes = list(self._summary.classes) if is_classification(self.objective) else None
        return FeatureEncoding(self.columns.features, self._summary.categories, classes)

    def identity(self) -> dict[str, Any]:
        """Data and columns of the run, as JSON values: its identity apart from its settings."""
        weights = self.class_weights
        return {
            "table": self._training.fingerprint(),
            "validation": None if self._validation is None else self._validation.fingerprint(),
            **asdict(self.columns),
            "class_weights": list(weights.items()) if isinstance(weights, Mapping) else weights,
        }

    @functools.cached_property
    def _training(self) -> Table:
        return _only(self.table, self.columns.used)

    @functools.cached_property
    def _validation(self) -> Table | None:
        if self.validation_table is None:
            return None
        names = self.validation_table.schema.names
        if missing := [name for name in self.columns.used if name not in names]:
            raise DataError(f"validation: no columns {missing[:20]}, which the training Table has")
        return _only(self.validation_table, self.columns.used)

    @functools.cached_property
    def _summary(self) -> TableSummary:
        summary = summarize(self._training, self.columns, self.objective, name="training")
        if is_classification(self.objective):
            check_classes(summary.classes, self.objective, self.columns.label)
        elif self.class_weights is not None:
            raise DataError(f"class_weights: {self.objective} has no classes; leave them out")
        return summary

    def _source(self, table: Table, name: str, weights: list[float] | None) -> ShardSource:
        pairs = [(b, m.rows) for b, m in zip(table.blocks(), table.metas(), strict=True) if m.rows]
        rows = [count for _, count in pairs]
        if self.columns.group and len(pairs) < self.num_actors:
            raise DataError(
                f"{name}: {len(pairs)} blocks with rows cannot feed {self.num_actors} actors, as a "
                "group stays in one block: use fewer actors, or repartition the groups: "
                f"table.partition_by({self.columns.group!r}, {self.num_actors})"
            )
        if sum(rows) < self.num_actors:
            raise DataError(
                f"{name}: {sum(rows)} rows cannot feed {self.num_actors} actors; use fewer"
            )
        blocks = [block for block, _ in pairs]
        return ShardSource(blocks, rows, self.columns, self.encoding, weights)


def _only(table: Table, names: Sequence[str]) -> Table:
    """These columns, materialized; a Table without others stays as it is."""
    chosen = table if set(table.schema.names) == set(names) else table.select(names)
    return chosen.materialize()
