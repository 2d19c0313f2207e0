"""A fitted featurizer as operations: on many rows, or on one.

The answer for one row is the answer in bulk, to the last bit, because both do the same:
arithmetic on floats is NumPy's, on contiguous arrays and grouped over the columns, so that one
row costs few calls; all else is integers. (NumPy's log1p, sin and cos do not depend on the length
of an array on one kind of CPU. Between kinds of CPU they may differ in the last bit of a float64,
which the cast to float32 mostly hides.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.features import _raw_inputs as _inputs
from raysys.features._column_groups import CyclicGroup, Dates, NumericGroup
from raysys.features._lookups import Bins, Buckets, Cells, Words, one_hot, target_mean
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

# How columns are read: by arrays, and value by value.
_MANY = {
    "number": _inputs.numbers,
    "category": _inputs.categories,
    "time": _inputs.times,
    "text": _inputs.texts,
}
_MISSING = {"number": np.nan, "time": _inputs.NO_TIME}


class Program:
    """What a featurizer computes, compiled from its transforms and their states."""

    def __init__(self, transforms: Sequence[Transform], states: Sequence[Sequence[State]]):
        self.places: dict[str, dict[str, int]] = {kind: {} for kind in _MANY}
        self.on_numbers: list[NumericGroup | CyclicGroup] = []
        self.on_bins: list[Bins] = []
        self.on_categories: list[Cells | Buckets] = []
        self.on_times: list[Dates] = []
        self.on_texts: list[Words] = []
        self.width = 0
        numeric: list[tuple[Numeric, int, Sequence[State]]] = []
        cyclic: list[tuple[Cyclic, int]] = []
        for transform, learned in zip(transforms, states, strict=True):
            first, width = self.width, len(transform.names(learned))
            self.width += width
            if isinstance(transform, Numeric):
                numeric.append((transform, first, learned))
                self._at("number", transform)
            elif isinstance(transform, Cyclic):
                cyclic.append((transform, first))
                self._at("number", transform)
            elif isinstance(transform, Calendar):
                self.on_times.append(Dates(self._at("time", transform), first, transform))
            elif isinstance(transform, Crossed):
                places, onehot = self._at("category", transform), transform.encode == "onehot"
                self.on_categories.append(Buckets(places, first, transform.buckets, onehot))
            else:
                self._add_each(transform, learned, first)
        numbers = self.places["number"]
        if numeric:
            self.on_numbers.append(NumericGroup(numeric, numbers))
        if cyclic:
            self.on_numbers.append(CyclicGroup(cyclic, numbers))

    def _at(self, kind: str, transform: Transform) -> list[int]:
        """Where the columns of a transform stand among those read as this kind."""
        places = self.places[kind]
        return [places.setdefault(name, len(places)) for name in transform.columns]

    def _add_each(self, transform: Transform, states: Sequence[State], first: int) -> None:
        """Add a transform that works on its columns one by one."""
        for name, state in zip(transform.columns, states, strict=True):
            alone = transform.model_copy(update={"columns": (name,)})
            if isinstance(transform, Binned):
                [at] = self._at("number", alone)
                onehot = transform.encode == "onehot"
                self.on_bins.append(Bins(at, first, state["edges"], onehot))
            elif isinstance(transform, TextHashed):
                [at] = self._at("text", alone)
                self.on_texts.append(Words(at, first, transform))
            else:
                [at] = self._at("category", alone)
                self.on_categories.append(_on_category(transform, state, at, first))
            first += len(alone.names([state]))

    def one(self, request: Mapping[str, Any]) -> np.ndarray:
        """Of one row's values by name, float32 `(d,)`."""
        out = np.zeros(self.width, np.float32)
        column = out.reshape(-1, 1)
        get = request.get
        names = self.places["number"]
        if names:
            row = [
                value if type(value := get(name)) is float else _inputs.number_of(name, value)
                for name in names
            ]
            numbers = np.array(row).reshape(-1, 1)
            with np.errstate(over="ignore", invalid="ignore"):
                for group in self.on_numbers:
                    group.many(numbers, column)
            for bins in self.on_bins:
                bins.one(numbers, out)
        names = self.places["category"]
        if names:
            categories = [
                value if type(value := get(name)) is str else _inputs.category_of(name, value)
                for name in names
            ]
            for lookup in self.on_categories:
                lookup.one(categories, out)
        names = self.places["time"]
        if names:
            times = np.array([_inputs.time_of(name, get(name)) for name in names])
            for dates in self.on_times:
                dates.many(times.reshape(-1, 1), column)
        names = self.places["text"]
        if names:
            texts = [_inputs.text_of(name, get(name)) for name in names]
            for counted in self.on_texts:
                counted.one(texts, out)
        return out

    def many(self, columns: Mapping[str, Any], rows: int, out: np.ndarray) -> None:
        """Of columns by name, into float32 `(d, rows)` of zeros."""
        read: dict[str, list[Any]] = {}
        for kind, places in self.places.items():
            read[kind] = [
                _MANY[kind](name, columns[name]) if name in columns else _absent(kind, rows)
                for name in places
            ]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.on_numbers or self.on_bins:
                numbers = np.array(read["number"])
                for operation in (*self.on_numbers, *self.on_bins):
                    operation.many(numbers, out)
        for lookup in self.on_categories:
            lookup.many(read["category"], out)
        for dates in self.on_times:
            dates.many(np.array(read["time"]), out)
        for counted in self.on_texts:
            counted.many(read["text"], out)


def _on_category(transform: Transform, state: State, at: int, first: int) -> Cells | Buckets:
    if isinstance(transform, Hashed):
        return Buckets([at], first, transform.buckets, transform.encode == "onehot")
    if isinstance(transform, OneHot):
        return Cells(at, one_hot(state["categories"], first))
    return Cells(at, target_mean(state, first))


def _absent(kind: str, rows: int) -> Any:
    """A column that was not given: missing in every row."""
    if kind in _MISSING:
        return np.full(rows, _MISSING[kind])
    return _inputs.Coded([], np.full(rows, -1))
