"""A featurizer that has seen its table: names, matrices, and its state on disk."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from raysys.errors import DataError, StorageError
from raysys.features._operations import Program
from raysys.features._transform_base import checked_names
from raysys.features._transforms import TargetEncoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data import Table
    from raysys.features._featurizer import Featurizer
    from raysys.features._transform_base import State

FORMAT = 1
STATE_FILE, ARRAYS_FILE = "featurizer.json", "arrays.npz"
# Up to this many rows, one after the other is faster than by arrays.
_FEW = 8
# Rows filled at a time: look-ups write all over the matrix, which is to stay in the cache.
_AT_ONCE = 8_192


@dataclass(frozen=True, eq=False)
class FittedFeaturizer:
    """Turns raw fields into float32 features: of a Table, of a batch, of one request.

    All three give the same to the last bit. Instances pickle cheaply enough for tasks; on disk
    they are JSON and arrays, see `save`.

    Attributes:
        definition: What was fitted.
        states: What each transform learned of each of its columns: numbers, texts and arrays.
        inputs: The columns that a request may have, with their Arrow types in the fitted table.
        fitted_on: Fingerprint of the Table that it was fitted on.
        rows: Number of rows of it.
    """

    definition: Featurizer
    states: tuple[tuple[State, ...], ...]
    inputs: dict[str, str]
    fitted_on: str
    rows: int

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The output columns, in order."""
        pairs = zip(self.definition.transforms, self.states, strict=True)
        return tuple(checked_names([n for made, state in pairs for n in made.names(state)]))

    @functools.cached_property
    def _program(self) -> Program:
        return Program(self.definition.transforms, self.states)

    def __getstate__(self) -> dict[str, Any]:
        # Without what is derived from it: look-ups are functions, which do not pickle.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def one(self, request: Mapping[str, Any]) -> np.ndarray:
        """The features of one request.

        Args:
            request: Plain values by field: numbers, text, booleans, times (datetime, date,
                datetime64, ISO 8601 text). A field that is None, NaN or absent is missing; fields
                that are no input are left alone.

        Returns:
            float32 `(d,)`, in the order of `names`.

        Raises:
            DataError: A value has the wrong type; the field and the value are named.
        """
        return self._program.one(request)

    def matrix(self, batch: Mapping[str, Any]) -> np.ndarray:
        """The features of a batch of requests, what a node of a serving graph calls.

        Args:
            batch: Columns of n values each: NumPy arrays (numbers with NaN for missing ones,
                datetime64, objects), Arrow arrays, or lists with None. An absent column is
                missing in every row; columns that are no input are left alone.

        Returns:
            float32 `(n, d)`, C-contiguous.

        Raises:
            DataError: A value has the wrong type, no column is an input, or lengths differ.

        Example:
            A node whose parameters are its columns:

            >>> class Features:
            ...     def __init__(self, folder):
            ...         self.featurizer = FittedFeaturizer.load(folder)
            ...
            ...     def __call__(self, distance, carrier):
            ...         return self.featurizer.matrix({"distance": distance, "carrier": carrier})
        """
        columns = {name: batch[name] for name in self.inputs if name in batch}
        if not columns:
            raise DataError(
                f"the batch has no column that is an input; given: {', '.join(batch) or 'none'}; "
                f"inputs: {', '.join(self.inputs)}"
            )
        rows = _common_length(columns)
        if rows <= _FEW and not any(_is_arrow(column) for column in columns.values()):
            out = np.empty((rows, len(self.names)), np.float32)
            for row in range(rows):
                out[row] = self.one({name: column[row] for name, column in columns.items()})
            return out
        out = np.zeros((rows, len(self.names)), np.float32)
        self._program.many(columns, rows, out.T)
        return out

    def transform(self, table: Table, keep: Sequence[str] = ()) -> Table:
        """The features of a Table, in one task a block.

        Args:
            table: Has the inputs among its columns; rows stay in order.
            keep: Columns to carry along as they are, such as labels and ids.

        Returns:
            The kept columns and one float32 column for each of `names`.

        Raises:
            DataError: A value has the wrong type, or a kept column has the name of an output.
        """
        self.check(table.schema.names, keep)
        return table.map_blocks(
            featurize, ray.put(self), {}, {}, list(keep), name="transform_features"
        )

    def check(self, given: Sequence[str], keep: Sequence[str]) -> None:
        """Refuse a table that lacks an input, or columns to keep that would be two of a name."""
        for name in (*self.inputs, *keep):
            if name not in given:
                raise DataError(f"the table has no column {name!r}; it has: {', '.join(given)}")
        checked_names(self.names, keep)

    def save(self, folder: Path) -> None:
        """Write the state: `featurizer.json`, and float64 arrays in `arrays.npz`.

        Nothing is pickled. `Storage.new_dir` gives a folder that appears whole or not at all.

        Args:
            folder: Made if it is not there.
        """
        arrays: dict[str, np.ndarray] = {}
        plain: list[list[State]] = []
        for number, states in enumerate(self.states):
            plain.append([])
            for place, state in enumerate(states):
                held = {key: v for key, v in state.items() if isinstance(v, np.ndarray)}
                arrays |= {f"{number}.{place}.{key}": value for key, value in held.items()}
                plain[-1].append({key: v for key, v in state.items() if key not in held})
        content = {
            "format": FORMAT,
            "fitted_on": self.fitted_on,
            "rows": self.rows,
            "inputs": self.inputs,
            "names": self.names,
            "definition": self.definition.model_dump(mode="json"),
            "states": plain,
        }
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        (folder / STATE_FILE).write_text(text + "\n", "utf-8")
        np.savez(folder / ARRAYS_FILE, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> FittedFeaturizer:
        """Read what `save` wrote, now or with an earlier version of raysys.

        Raises:
            StorageError: There is none, or it was written by a later version.
        """
        from raysys.features._featurizer import Featurizer

        file = Path(folder) / STATE_FILE
        if not file.exists():
            raise StorageError(f"no fitted featurizer in {folder}: {STATE_FILE} is not there")
        content = json.loads(file.read_text("utf-8"))
        if content["format"] > FORMAT:
            raise StorageError(
                f"the featurizer in {folder} has format {content['format']}, and this raysys "
                f"reads up to {FORMAT}: upgrade raysys, or fit the featurizer again"
            )
        states: list[list[State]] = content["states"]
        with np.load(Path(folder) / ARRAYS_FILE, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, place, name = key.split(".")
                states[int(number)][int(place)][name] = arrays[key]
        return cls(
            Featurizer.model_validate(content["definition"]),
            tuple(tuple(of) for of in states),
            content["inputs"],
            content["fitted_on"],
            content["rows"],
        )


def featurize(
    block: pa.Table,
    fitted: FittedFeaturizer,
    training: Mapping[tuple[int, str], Any],
    times: Mapping[tuple[int, str], Table],
    keep: Sequence[str],
) -> pa.Table:
    """A block's features; with the values that a training row may see, where there are any."""
    from raysys.features import _target_encoding as _target

    out = np.empty((len(fitted.names), len(block)), np.float32)
    filled = np.zeros((len(out), min(len(block), _AT_ONCE)), np.float32)
    for start in range(0, len(block), _AT_ONCE):
        rows = block.slice(start, _AT_ONCE)
        part = filled[:, : len(rows)]
        part[:] = 0
        fitted._program.many({name: rows[name] for name in fitted.inputs}, len(rows), part)
        out[:, start : start + len(rows)] = part
    first = 0
    pairs = zip(fitted.definition.transforms, fitted.states, strict=True)
    for number, (transform, states) in enumerate(pairs):
        for place, name in enumerate(transform.columns):
            key = (number, name)
            if isinstance(transform, TargetEncoded) and key in training:
                out[first + place] = _target.encode_out_of_fold(
                    block, transform, name, training[key]
                )
            elif isinstance(transform, TargetEncoded) and key in times:
                out[first + place] = _target.encode_by_time(block, transform, name, times[key])
        first += len(transform.names(states))
    kept = {name: block[name] for name in keep}
    made = {name: pa.array(column) for name, column in zip(fitted.names, out, strict=True)}
    return pa.table(kept | made)


def _common_length(columns: Mapping[str, Any]) -> int:
    first, *others = columns
    rows = len(columns[first])
    for name in others:
        if len(columns[name]) != rows:
            raise DataError(
                f"{first} has {rows} values and {name} {len(columns[name])}: columns of a batch "
                "have one length"
            )
    return rows


def _is_arrow(column: Any) -> bool:
    return type(column).__module__.partition(".")[0] == "pyarrow"
