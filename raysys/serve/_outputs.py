"""The value of a graph's output node, as rows and as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysys.errors import GraphError
from raysys.serve._column_types import Array
from raysys.serve._json_values import host_array

Outputs = dict[str, Any] | list[Any]
"""Columns of n values by name, or a list of n rows."""


def as_outputs(output: str, value: Any, rows: int) -> Outputs:
    """The output node's value in one of the two forms; a single array is named after the node.

    Raises:
        GraphError: An unsupported type, or a different number of rows.
    """
    outputs: Outputs
    if isinstance(value, Mapping):
        outputs = {
            name: column if isinstance(column, list) else _array(column)
            for name, column in value.items()
        }
    elif (isinstance(value, np.ndarray) or hasattr(value, "detach")) and value.ndim:
        outputs = {output: _array(value)}
    elif isinstance(value, list):
        outputs = value
    else:
        raise GraphError(
            f"the output node {output!r} returned a {type(value).__name__}: return an array of n "
            "rows, a dict of such columns, or a list of n dicts"
        )
    lengths = {
        name: len(column) if isinstance(column, list) or column.ndim else "no"
        for name, column in output_columns(output, outputs).items()
    }
    if set(lengths.values()) != {rows}:
        raise GraphError(f"the output node {output!r} returned {lengths} rows for {rows}")
    return outputs


def output_columns(output: str, outputs: Outputs) -> dict[str, Any]:
    """Outputs as columns; a list of rows is one column named after the output node."""
    return outputs if isinstance(outputs, dict) else {output: outputs}


def _array(column: Any) -> np.ndarray | list[Any]:
    """A column as an array; as a list if its values have unequal lengths."""
    if isinstance(column, np.ndarray):
        # Such as float128, which no protocol has.
        is_wide = column.dtype.kind == "f" and column.dtype.itemsize > 8
        return column.astype(np.float64) if is_wide else column
    if hasattr(column, "detach"):
        return host_array(column)
    try:
        return np.asarray(column)
    except ValueError:
        return list(column)


def slice_outputs(outputs: Outputs, start: int, stop: int) -> Outputs:
    """The outputs of a range of rows."""
    if isinstance(outputs, dict):
        return {name: column[start:stop] for name, column in outputs.items()}
    return outputs[start:stop]


def concat_outputs(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of consecutive batches as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, list):
        return [row for part in parts for row in part]
    return {
        name: [row for part in parts for row in part[name]]  # type: ignore[call-overload]
        if isinstance(first[name], list)
        else np.concatenate([part[name] for part in parts])  # type: ignore[call-overload]
        for name in first
    }


def output_types(output: str, outputs: Outputs) -> dict[str, Array]:
    """Column types of some outputs; lists and objects count as strings of JSON."""
    types = {}
    for name, column in output_columns(output, outputs).items():
        plain = isinstance(column, np.ndarray) and column.dtype.kind in "biuf"
        types[name] = Array(column.dtype.name, column.shape[1:]) if plain else Array("str")
    return types
