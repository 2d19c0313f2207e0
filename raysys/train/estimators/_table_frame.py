"""A Table as the frame and arrays of scikit-learn."""

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
class FrameColumns:
    """Roles of a Table's columns."""

    features: tuple[str, ...]
    label: str
    weight: str | None = None
    groups: str | None = None

    def checked(self, table: Table) -> FrameColumns:
        """These columns, if the Table has them."""
        names = table.schema.names
        if missing := [name for name in self.used if name not in names]:
            raise DataError(f"no such column: {missing}; the table has {names[:20]}")
        if not self.features:
            raise DataError("features=(): give one or more columns")
        if self.label in self.features:
            raise DataError(f"the label {self.label!r} is among the features: leave it out")
        return self

    @property
    def used(self) -> list[str]:
        """Names of all columns, each once."""
        optional = [name for name in (self.weight, self.groups) if name is not None]
        return list(dict.fromkeys([*self.features, self.label, *optional]))


@dataclass(frozen=True)
class FrameRows:
    """Rows of a Table, mapped from the object store.

    Attributes:
        x: pandas frame of the features.
        y: Labels `(n,)`.
        weight: Row weights `(n,)`, or None.
        groups: Groups `(n,)`, or None.
        stored: The frame and the labels, each with its reference.
    """

    x: Any
    y: np.ndarray
    weight: np.ndarray | None
    groups: np.ndarray | None
    stored: list[tuple[Any, Any]]

    @classmethod
    def of(cls, table: Table, columns: FrameColumns) -> FrameRows:
        """Read a Table; called in a task."""
        rows = table.select(columns.used).to_arrow()
        if not len(rows):
            raise DataError("the table has no rows to fit: check the filters before it")
        y = _vector(rows, columns.label)
        # The copies in the store, which all tasks map, replace those of this process.
        refs = [
            ray.put(rows.select(list(columns.features)).to_pandas(strings_to_categorical=True)),
            ray.put(y),
        ]
        del y
        x, y = ray.get(refs)
        weight, groups = (
            None if name is None else _vector(rows, name)
            for name in (columns.weight, columns.groups)
        )
        return cls(x, y, weight, groups, [(x, refs[0]), (y, refs[1])])


def _vector(rows: pa.Table, name: str) -> np.ndarray:
    """A column without missing values; text as NumPy strings, which tasks can map."""
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
