"""What a graph's output node gives back, as rows and as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysys.errors import GraphError
from raysys.serve._column_types import Array

Answers = dict[str, Any] | list[Any]
"""Columns of n values by name, or a list of n rows."""


def answers_of(output: str, value: Any, rows: int) -> Answers:
    """The output node's value in one of the two forms.

    Args:
        output: The node's name; of the column too, if the value is a single array.
        value: What it gave.
        rows: How many rows it was given.

    Raises:
        GraphError: Another kind of value, or another number of rows.
    """
    answers: Answers
    lengths: dict[str, Any]
    if isinstance(value, Mapping):
        answers = {
            name: column if isinstance(column, list) else np.asarray(column)
            for name, column in value.items()
        }
        lengths = {
            name: len(column) if isinstance(column, list) or column.ndim else "no"
            for name, column in answers.items()
        }
    elif isinstance(value, np.ndarray) and value.ndim:
        answers, lengths = {output: value}, {output: len(value)}
    elif isinstance(value, list):
        answers, lengths = value, {output: len(value)}
    else:
        raise GraphError(
            f"the output node {output!r} gave a {type(value).__name__}: give an array of n rows, a "
            "dict of such columns, or a list of n dicts"
        )
    if set(lengths.values()) != {rows}:
        raise GraphError(f"the output node {output!r} gave {lengths} rows for {rows}")
    return answers


def columns_of(output: str, answers: Answers) -> dict[str, Any]:
    """Answers as columns; a list of rows is one column named by the output node."""
    return answers if isinstance(answers, dict) else {output: answers}


def slice_of(answers: Answers, start: int, stop: int) -> Answers:
    """The answers of some rows."""
    if isinstance(answers, dict):
        return {name: column[start:stop] for name, column in answers.items()}
    return answers[start:stop]


def join(parts: Sequence[Answers]) -> Answers:
    """Answers to consecutive batches, as one."""
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


def types_of(output: str, answers: Answers) -> dict[str, Array]:
    """The types of the columns of some answers; lists and objects count as strings of JSON."""
    types = {}
    for name, column in columns_of(output, answers).items():
        plain = isinstance(column, np.ndarray) and column.dtype.kind in "biuf"
        types[name] = Array(column.dtype.name, column.shape[1:]) if plain else Array("str")
    return types
