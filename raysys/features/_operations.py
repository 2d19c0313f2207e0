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

from raysys.features import _lookups
from raysys.features import _raw_inputs as _inputs
from raysys.features import _transforms as _kinds
from raysys.features._column_groups import CalendarGroup, CyclicGroup, NumericGroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.features._transforms import State, Transform

_READERS = {
    "number": _inputs.numbers, "category": _inputs.categories, "time": _inputs.times,
    "text": _inputs.texts,
}  # fmt: skip
_MISSING = {"number": np.nan, "time": _inputs.NO_TIME}


class FeatureProgram:
    """A featurizer's computation, compiled from its transforms and their states."""

    def __init__(self, transforms: Sequence[Transform], states: Sequence[Sequence[State]]):
        self.places: dict[str, dict[str, int]] = {kind: {} for kind in _READERS}
        self.on_numbers: list[NumericGroup | CyclicGroup] = []
        self.on_bins: list[_lookups.FittedBins] = []
        self.on_categories: list[_lookups.CategoryCells | _lookups.HashedBuckets] = []
        self.on_times: list[CalendarGroup] = []
        self.on_texts: list[_lookups.WordCounts] = []
        self.width = 0
        numeric: list[tuple[_kinds.Numeric, int, Sequence[State]]] = []
        cyclic: list[tuple[_kinds.Cyclic, int]] = []
        for transform, learned in zip(transforms, states, strict=True):
            first, width = self.width, len(transform.feature_names(learned))
            self.width += width
            if isinstance(transform, _kinds.Numeric):
                numeric.append((transform, first, learned))
                self._at("number", *transform.columns)
            elif isinstance(transform, _kinds.Cyclic):
                cyclic.append((transform, first))
                self._at("number", *transform.columns)
            elif isinstance(transform, _kinds.Calendar):
                places = self._at("time", *transform.columns)
                self.on_times.append(CalendarGroup(places, first, transform))
            elif isinstance(transform, _kinds.Crossed):
                places = self._at("category", *transform.columns)
                self.on_categories.append(_lookups.HashedBuckets(places, first, transform))
            else:
                self._add_each(transform, learned, first)
        numbers = self.places["number"]
        if numeric:
            self.on_numbers.append(NumericGroup(numeric, numbers))
        if cyclic:
            self.on_numbers.append(CyclicGroup(cyclic, numbers))

    def _at(self, kind: str, *names: str) -> list[int]:
        """Places of columns among those read as this kind."""
        places = self.places[kind]
        return [places.setdefault(name, len(places)) for name in names]

    def _add_each(self, transform: Transform, states: Sequence[State], first: int) -> None:
        """Add a transform that works on its columns one by one."""
        for name, state in zip(transform.columns, states, strict=True):
            if isinstance(transform, _kinds.Binned):
                [at] = self._at("number", name)
                self.on_bins.append(_lookups.FittedBins(at, first, state["edges"], transform))
            elif isinstance(transform, _kinds.TextHashed):
                [at] = self._at("text", name)
                self.on_texts.append(_lookups.WordCounts(at, first, transform))
            elif isinstance(transform, _kinds.Hashed):
                places = self._at("category", name)
                self.on_categories.append(_lookups.HashedBuckets(places, first, transform))
            else:
                [at] = self._at("category", name)
                is_onehot = isinstance(transform, _kinds.OneHot)
                make_cell = _lookups.one_hot if is_onehot else _lookups.target_mean
                self.on_categories.append(_lookups.CategoryCells(at, make_cell(state, first)))
            first += len(transform.names_of(name, state))

    def row(self, request: Mapping[str, Any]) -> np.ndarray:
        """Features of one row's values by name, float32 `(d,)`."""
        out = np.zeros(self.width, np.float32)
        column = out.reshape(-1, 1)
        get = request.get
        if names := self.places["number"]:
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
        if names := self.places["category"]:
            categories = [
                value if type(value := get(name)) is str else _inputs.category_of(name, value)
                for name in names
            ]
            for lookup in self.on_categories:
                lookup.fill_row(categories, out)
        if names := self.places["time"]:
            times = np.array([_inputs.time_of(name, get(name)) for name in names])
            for dates in self.on_times:
                dates.fill_rows(times.reshape(-1, 1), column)
        if names := self.places["text"]:
            texts = [_inputs.text_of(name, get(name)) for name in names]
            for counted in self.on_texts:
                counted.fill_row(texts, out)
        return out

    def fill(self, columns: Mapping[str, Any], rows: int, out: np.ndarray) -> None:
        """Fill float32 `(d, rows)` of zeros from columns by name."""
        read: dict[str, list[Any]] = {
            kind: [
                _READERS[kind](name, columns[name]) if name in columns else _absent(kind, rows)
                for name in places
            ]
            for kind, places in self.places.items()
        }
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


def _absent(kind: str, rows: int) -> Any:
    """An absent column: missing in every row."""
    if kind in _MISSING:
        return np.full(rows, _MISSING[kind])
    return _inputs.CodedColumn([], np.full(rows, -1))
