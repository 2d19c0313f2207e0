"""Blocks without Ray."""

import itertools
from collections.abc import Callable
from typing import Any

import pyarrow as pa


def each_block(table: pa.Table, *cuts: int) -> Callable[..., list[Any]]:
    """What calls a function for the blocks of a table that is cut at these rows."""
    edges = [0, *sorted(cuts), len(table)]

    def each(function: Callable[..., Any], *args: Any) -> list[Any]:
        pairs = itertools.pairwise(edges)
        return [function(table.slice(start, end - start), start, *args) for start, end in pairs]

    return each
