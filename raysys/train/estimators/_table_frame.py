"""A Table as scikit-learn takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from raysys.errors import DataError

if TYPE_CHECKING:
    from raysys.data import Table


@dataclass(frozen=True)
class Columns:
    """Which columns of a Table are what."""

    features: tuple[str, ...]
    label: str
    weights: str | None = None
    groups: str | None = None

    def checked(self, table: Table) -> Columns:
        """The same, if the Table has them."""
        extra = [name for name in (self.weights, self.groups) if name is not None]
        wanted, names = [*self.features, self.label, *extra], table.schema.names
        if missing := [name for name in wanted if name not in names]:
            raise DataError(f"{missing} are no columns; the table has {names[:20]}")
        if not self.features:
            raise DataError("features: give one or more columns")
        if self.label in self.features:
            raise DataError(f"the label {self.label!r} is among the features: leave it out")
        return self


@dataclass(frozen=True)
class Rows:
    """A Table as scikit-learn takes it, in the object store."""

    x: Any
    y: np.ndarray
    weights: np.ndarray | None
    groups: np.ndarray | None
    held: list[tuple[Any, Any]]

    @classmethod
    def of(cls, table: Table, columns: Columns) -> Rows:
        """The rows of a Table; called in a task."""
        extra = [name for name in (columns.weights, columns.groups) if name is not None]
        wanted = list(dict.fromkeys([*columns.features, columns.label, *extra]))
        rows = table.select(wanted).to_arrow()
        if not len(rows):
            raise DataError("the table has no rows to fit: look at what filtered them")
        y = _vector(rows, columns.label)
        # In place of the copies in this process: those in the store, which all tasks map.
        refs = [
            ray.put(rows.select(list(columns.features)).to_pandas(strings_to_categorical=True)),
            ray.put(y),
        ]
        del y
        x, y = ray.get(refs)
        weights, groups = (
            None if name is None else _vector(rows, name)
            for name in (columns.weights, columns.groups)
        )
        return cls(x, y, weights, groups, [(x, refs[0]), (y, refs[1])])


def _vector(rows: pa.Table, name: str) -> np.ndarray:
    """A column without missing values; text as NumPy's, which tasks can map."""
    column = rows[name]
    values = column.to_numpy() if not column.null_count else np.empty(0)
    missing = column.null_count
    if pa.types.is_floating(column.type):
        missing += int(np.isnan(values).sum())
    if missing:
        raise DataError(
            f"{name!r} has {missing} missing values of {len(column)}: filter them out, "
            f"table.filter(pl.col({name!r}).is_not_null())"
        )
    return values.astype(np.str_) if values.dtype == object else values
