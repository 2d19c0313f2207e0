"""A fitted featurizer as operations on many rows or on one.

One row gets the same answer as in bulk, to the last bit, because both do the same: arithmetic on
floats is NumPy's, on contiguous arrays and grouped over the columns, so that one row costs few
calls; everything else is integers. (NumPy's log1p, sin and cos do not depend on the length of an
array on one kind of CPU. Between kinds of CPU they may differ in the last bit of a float64, which
the cast to float32 mostly hides.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.features import _raw_inputs as _inputs
from raysys.features._column_groups import CalendarGroup, CyclicGroup, NumericGroup
from raysys.features._lookups import (
    CategoryCells,
    FittedBins,
    HashedBuckets,
    WordCounts,
    one_hot,
    target_mean,
)
from raysys.features._transforms import (
    Binned,
    Calendar,
    Crossed,
    Cyclic,
    Hashed,
    Numeric,
    OneHot,
    TextHashed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.features._transform_base import State, Transform

# Readers of columns.
_READERS = {
    "number": _inputs.numbers,
    "category": _inputs.categories,
    "time": _inputs.times,
    "text": _inputs.texts,
}
_MISSING = {"number": np.nan, "time": _inputs.NO_TIME}


class FeatureProgram:
    """A featurizer's computation, compiled from its transforms and their states."""

    def __init__(self, transforms: Sequence[Transform], states: Sequence[Sequence[State]]):
        self.places: dict[str, dict[str, int]] = {kind: {} for kind in _READERS}
        self.on_numbers: list[NumericGroup | CyclicGroup] = []
        self.on_bins: list[FittedBins] = []
        self.on_categories: list[CategoryCells | HashedBuckets] = []
        self.on_times: list[CalendarGroup] = []
        self.on_texts: list[WordCounts] = []
        self.width = 0
        numeric: list[tuple[Numeric, int, Sequence[State]]] = []
        cyclic: list[tuple[Cyclic, int]] = []
        for transform, learned in zip(transforms, states, strict=True):
            first, width = self.width, len(transform.feature_names(learned))
            self.width += width
            if isinstance(transform, Numeric):
                numeric.append((transform, first, learned))
                self._at("number", transform)
            elif isinstance(transform, Cyclic):
                cyclic.append((transform, first))
                self._at("number", transform)
            elif isinstance(transform, Calendar):
                places = self._at("time", transform)
                self.on_times.append(CalendarGroup(places, first, transform))
            elif isinstance(transform, Crossed):
                places, onehot = self._at("category", transform), transform.encode == "onehot"
                self.on_categories.append(HashedBuckets(places, first, transform.buckets, onehot))
            else:
                self._add_each(transform, learned, first)
        numbers = self.places["number"]
        if numeric:
            self.on_numbers.append(NumericGroup(numeric, numbers))
        if cyclic:
            self.on_numbers.append(CyclicGroup(cyclic, numbers))

    def _at(self, kind: str, transform: Transform) -> list[int]:
        """Places of the columns of a transform among those read as this kind."""
        places = self.places[kind]
        return [places.setdefault(name, len(places)) for name in transform.columns]

    def _add_each(self, transform: Transform, states: Sequence[State], first: int) -> None:
        """Add a transform that works on its columns one by one."""
        for name, state in zip(transform.columns, states, strict=True):
            single = transform.model_copy(update={"columns": (name,)})
            if isinstance(transform, Binned):
                [at] = self._at("number", single)
                onehot = transform.encode == "onehot"
                self.on_bins.append(FittedBins(at, first, state["edges"], onehot))
            elif isinstance(transform, TextHashed):
                [at] = self._at("text", single)
                self.on_texts.append(WordCounts(at, first, transform))
            else:
                [at] = self._at("category", single)
                self.on_categories.append(_on_category(transform, state, at, first))
            first += len(single.feature_names([state]))

    def row(self, request: Mapping[str, Any]) -> np.ndarray:
        """Features of one row's values by name, float32 `(d,)`."""
        out = np.zeros(self.width, np.float32)
        column = out.reshape(-1, 1)
        get = request.get
        names = self.places["number"]
        if names:
            values = [
                value if type(value := get(name)) is float else _inputs.number_of(name, value)
                for name in names
            ]
            numbers = np.array(values).reshape(-1, 1)
            with np.errstate(over="ignore", invalid="ignore"):
                for group in self.on_numbers:
                    group.fill_rows(numbers, column)
            for bins in self.on_bins:
                bins.fill_row(numbers, out)
        names = self.places["category"]
        if names:
            categories = [
                value if type(value := get(name)) is str else _inputs.category_of(name, value)
                for name in names
            ]
            for lookup in self.on_categories:
                lookup.fill_row(categories, out)
        names = self.places["time"]
        if names:
            times = np.array([_inputs.time_of(name, get(name)) for name in names])
            for dates in self.on_times:
                dates.fill_rows(times.reshape(-1, 1), column)
        names = self.places["text"]
        if names:
            texts = [_inputs.text_of(name, get(name)) for name in names]
            for counted in self.on_texts:
                counted.fill_row(texts, out)
        return out

    def fill(self, columns: Mapping[str, Any], rows: int, out: np.ndarray) -> None:
        """Fill float32 `(d, rows)` of zeros from columns by name."""
        read: dict[str, list[Any]] = {}
        for kind, places in self.places.items():
            read[kind] = [
                _READERS[kind](name, columns[name]) if name in columns else _absent(kind, rows)
                for name in places
            ]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.on_numbers or self.on_bins:
                numbers = np.array(read["number"])
                for operation in (*self.on_numbers, *self.on_bins):
                    operation.fill_rows(numbers, out)
        for lookup in self.on_categories:
            lookup.fill_rows(read["category"], out)
        for dates in self.on_times:
            dates.fill_rows(np.array(read["time"]), out)
        for counted in self.on_texts:
            counted.fill_rows(read["text"], out)


def _on_category(
    transform: Transform, state: State, at: int, first: int
) -> CategoryCells | HashedBuckets:
    if isinstance(transform, Hashed):
        return HashedBuckets([at], first, transform.buckets, transform.encode == "onehot")
    if isinstance(transform, OneHot):
        return CategoryCells(at, one_hot(state["categories"], first))
    return CategoryCells(at, target_mean(state, first))


def _absent(kind: str, rows: int) -> Any:
    """An absent column: missing in every row."""
    if kind in _MISSING:
        return np.full(rows, _MISSING[kind])
    return _inputs.CodedColumn([], np.full(rows, -1))
