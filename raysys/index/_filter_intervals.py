"""Filters that are ranges of numbers, such as `1990 <= year < 2000 and price <= 5`."""

from __future__ import annotations

import functools
import itertools
import keyword
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

Interval = tuple[str, int | float, int | float]  # a column, its lowest and its highest value
Intervals = tuple[Interval, ...]
Bounds = tuple[Sequence[int | float], Sequence[int | float]]  # lowest and highest of each filter

# As Python writes them, and within int64; not a part of a name or of a longer number.
_NUMBER = re.compile(
    r"(?<![\w.`+-])([+-]?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?)(?![\w.`])", re.ASCII
)
_COMPARISON = re.compile(
    r" *(?:# *(?P<mirrored><=?|>=?|==) *)?(?P<name>[^\W\d]\w*|`[^`#]+`)"
    r" *(?:(?P<operator><=?|>=?|==) *# *)?",
    re.ASCII,
)
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
_MAX_SHAPES = 256  # each of a text that `_filter_conditions` limits
_INT64 = np.iinfo(np.int64)


class IntervalParser:
    """Recognition of filters that are ranges of numbers, which need no parser and no mask.

    The text around the numbers is recognized once, so that filters that differ in their numbers
    cost little.
    """

    def __init__(self, schema: pa.Schema) -> None:
        bounds = {field.name: _bounds(field.type) for field in schema}
        self._bounds = {name: function for name, function in bounds.items() if function}
        self._shapes: dict[tuple[str, ...], list[tuple[str, str]] | None] = {}

    def __call__(self, texts: Sequence[str]) -> list[Intervals | None]:
        """The closed interval of each column, or None of any other filter, for each text.

        Texts that differ in their numbers alone are read at once.
        """
        shape = _NUMBER.split(texts[0])[::2] if texts else []
        numbers = len(shape) - 1
        pieces = _NUMBER.split("\0".join(texts))
        joint = f"{shape[-1]}\0{shape[0]}" if texts else ""
        between = [*shape[1:-1], joint] * len(texts)
        if numbers > 0 and pieces[::2] == [shape[0], *between[:-1], shape[-1]]:
            return self._of_shape(shape, [pieces[2 * n + 1 :: 2 * numbers] for n in range(numbers)])
        return [self([text])[0] for text in texts] if len(texts) > 1 else [None] * len(texts)

    def _of_shape(
        self, shape: Sequence[str], numbers: Sequence[Sequence[str]]
    ) -> list[Intervals | None]:
        """Intervals from the numbers at each place of texts."""
        key = tuple(shape)  # a `#` of the text itself matches no comparison
        if key not in self._shapes:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            self._shapes[key] = self._comparisons(key)
        comparisons = self._shapes[key]
        if comparisons is None:
            return [None] * len(numbers[0])
        columns: dict[str, Bounds] = {}
        for (name, operator), texts in zip(comparisons, numbers, strict=True):
            lows, highs = self._bounds[name](operator, texts)
            if name in columns:
                least, most = columns[name]
                lows, highs = list(map(max, lows, least)), list(map(min, highs, most))
            columns[name] = lows, highs
        intervals = [zip(itertools.repeat(name), *bounds) for name, bounds in columns.items()]
        return list(zip(*intervals, strict=True))

    def _comparisons(self, shape: tuple[str, ...]) -> list[tuple[str, str]] | None:
        """The column and the operator of each number, or None of any other filter."""
        comparisons = []
        for part in "#".join(shape).split(" and "):
            match = _COMPARISON.fullmatch(part)
            if match is None or keyword.iskeyword(match["name"]):
                return None
            name = match["name"].strip("`")
            operators = [_MIRRORED.get(match["mirrored"]), match["operator"]]
            if name not in self._bounds or operators == [None, None]:
                return None
            comparisons += [(name, operator) for operator in operators if operator]
        return comparisons if len(comparisons) == len(shape) - 1 else None


def _bounds(kind: pa.DataType) -> Callable[[str, Sequence[str]], Bounds] | None:
    """The values of a type that satisfy comparisons, by operator and numbers."""
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return _integer_bounds
    if pa.types.is_float64(kind):
        return functools.partial(_float_bounds, np.float64)
    return functools.partial(_float_bounds, np.float32) if pa.types.is_float32(kind) else None


def _integer_bounds(operator: str, numbers: Sequence[str]) -> Bounds:
    if "." in "".join(numbers):
        lows = [math.ceil(float(n)) if "." in n else int(n) for n in numbers]
        highs = [math.floor(float(n)) if "." in n else int(n) for n in numbers]
    else:
        lows = highs = list(map(int, numbers))
    if operator == "==":
        return lows, highs  # empty of a number between two integers
    if operator in ("<", "<="):
        return [_INT64.min] * len(lows), [n - 1 for n in lows] if operator == "<" else highs
    return [n + 1 for n in highs] if operator == ">" else lows, [_INT64.max] * len(lows)


def _float_bounds(dtype: type[np.floating], operator: str, numbers: Sequence[str]) -> Bounds:
    values = np.array(list(map(float, numbers))).astype(dtype)
    if operator in ("<", ">"):  # the next number on that side
        values = np.nextafter(values, dtype(-math.inf if operator == "<" else math.inf))
    every, ends = [math.inf] * len(values), values.tolist()
    lows = [-math.inf] * len(values) if operator in ("<", "<=") else ends
    return lows, every if operator in (">", ">=") else ends
