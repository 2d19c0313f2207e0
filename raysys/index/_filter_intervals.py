"""Filters that are ranges of numbers, such as `1990 <= year < 2000 and price <= 5`."""

from __future__ import annotations

import functools
import keyword
import math
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa

Interval = tuple[int | float, int | float]

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
_MAX_SHAPES = 1024
_EVERY = (-math.inf, math.inf)
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

    def __call__(self, text: str) -> dict[str, Interval] | None:
        """The closed interval of each column, or None of any other filter."""
        if not isinstance(text, str):
            return None
        pieces = _NUMBER.split(text)
        shape = tuple(pieces[::2])  # a `#` of the text itself matches no comparison
        if shape not in self._shapes:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = self._comparisons(shape)
        comparisons = self._shapes[shape]
        if comparisons is None:
            return None
        columns: dict[str, Interval] = {}
        for (name, operator), number in zip(comparisons, pieces[1::2], strict=True):
            low, high = self._bounds[name](operator, number)
            least, most = columns.get(name, _EVERY)
            columns[name] = max(low, least), min(high, most)
        return columns

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


def _bounds(kind: pa.DataType) -> Callable[[str, str], Interval] | None:
    """The values of a type that satisfy a comparison, by operator and number."""
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return _integer_bounds
    if pa.types.is_float64(kind):
        return functools.partial(_float_bounds, np.float64)
    return functools.partial(_float_bounds, np.float32) if pa.types.is_float32(kind) else None


def _integer_bounds(operator: str, number: str) -> Interval:
    if "." in number:
        low, high = math.ceil(float(number)), math.floor(float(number))
    else:
        low = high = int(number)
    if operator == "==":
        return low, high  # empty of a number between two integers
    if operator in ("<", "<="):
        return _INT64.min, low - 1 if operator == "<" else high
    return high + 1 if operator == ">" else low, _INT64.max


def _float_bounds(dtype: type[np.floating], operator: str, number: str) -> Interval:
    value = dtype(float(number))
    if operator in ("<", ">"):  # the next number on that side
        value = np.nextafter(value, dtype(-math.inf if operator == "<" else math.inf))
    low = -math.inf if operator in ("<", "<=") else float(value)
    return low, math.inf if operator in (">", ">=") else float(value)
