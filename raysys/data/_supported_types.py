"""Arrow's types that a Table holds, and those that become one of them."""

from __future__ import annotations

import functools
import re
import zoneinfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError

_OFFSET = re.compile(r"[+-][0-9]{2}:?[0-9]{2}|Z|utc")
_DIGITS = 38  # of decimal128


def supported(table: pa.Table) -> pa.Table:
    """A table with types that polars and Arrow's kernels have.

    Raises:
        DataError: A column has a type without an equal one, such as an interval or a union, or a
            value that does not fit.
    """
    for number, field in enumerate(table.schema):
        kind = supported_type(field.name, field.type)
        if kind != field.type:
            column = convert(table[number], kind, f"column {field.name!r}")
            table = table.set_column(number, field.with_type(kind), column)
    return table


def supported_type(name: str, kind: pa.DataType) -> pa.DataType:
    """The type of a Table's column for a type of Arrow.

    Offsets of times become UTC, list views and run-end-encoded columns plain ones, and all
    decimals decimal128.

    Raises:
        DataError: There is none; with the column's name.
    """
    try:
        if pa.types.is_run_end_encoded(kind):
            return _supported(kind.value_type)
        if _is_view(kind):
            return pa.large_list(_supported(kind.value_type))
        return _supported(kind)
    except _UnsupportedError as error:
        raise DataError(
            f"column {name!r} has the type {kind}: {error}. Leave it out with columns=[...], or "
            "convert it before"
        ) from None


class _UnsupportedError(TypeError):
    """A type without a supported one."""


def _supported(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_timestamp(kind) and kind.tz is not None:
        if _OFFSET.fullmatch(kind.tz):
            return pa.timestamp(kind.unit, "UTC")
        if kind.tz not in _zones():
            raise _UnsupportedError(f"unknown time zone {kind.tz!r}")
    elif types.is_decimal(kind):
        scale = max(0, kind.scale)
        if scale > _DIGITS:
            raise _UnsupportedError(f"more than {_DIGITS} decimal places")
        return pa.decimal128(min(_DIGITS, kind.precision + scale - kind.scale), scale)
    elif types.is_interval(kind):
        raise _UnsupportedError("intervals of months are not supported")
    elif types.is_union(kind):
        raise _UnsupportedError("unions are not supported")
    elif types.is_run_end_encoded(kind) or _is_view(kind):
        raise _UnsupportedError(f"{kind} is not supported within another type")
    elif types.is_dictionary(kind):
        value = _supported(kind.value_type)
        return kind if value == kind.value_type else value
    elif types.is_map(kind):
        return pa.map_(_supported(kind.key_type), _supported(kind.item_type))
    elif types.is_fixed_size_list(kind):
        return pa.list_(_supported(kind.value_type), kind.list_size)
    elif types.is_list(kind) or types.is_large_list(kind):
        value = _supported(kind.value_type)
        make = pa.list_ if types.is_list(kind) else pa.large_list
        return kind if value == kind.value_type else make(value)
    elif types.is_struct(kind):
        return pa.struct([field.with_type(_supported(field.type)) for field in kind])
    return kind


@functools.cache
def _zones() -> set[str]:
    return zoneinfo.available_timezones()


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)


def convert(column: pa.ChunkedArray, kind: pa.DataType, where: str) -> pa.ChunkedArray:
    """A column as another type, without a loss.

    Raises:
        DataError: A value does not fit.
    """
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if _is_view(column.type):
        chunks = [_without_view(chunk) for chunk in column.chunks]
        column = pa.chunked_array(chunks, pa.large_list(column.type.value_type))
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.cast(column.type.value_type)
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where}: {column.type} does not fit {kind}: {error}. Write it with one type in all "
            "files, or read the files on their own and convert the column"
        ) from None


def _without_view(lists: pa.Array) -> pa.Array:
    """Lists with their values one after another; Arrow 25's cast fails if none is null."""
    sizes = lists.sizes.to_numpy()
    ends = np.cumsum(sizes, dtype=np.int64)
    places = np.repeat(lists.offsets.to_numpy() - (ends - sizes), sizes) + np.arange(sizes.sum())
    offsets = np.append(np.int64(0), ends)
    return pa.LargeListArray.from_arrays(offsets, lists.values.take(places), mask=lists.is_null())
