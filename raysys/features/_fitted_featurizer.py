"""A fitted featurizer: features of tables, batches and requests, and its state on disk."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from raysys.arguments import checked
from raysys.errors import DataError, StorageError, unknown_names
from raysys.features import _target_encoding as _target
from raysys.features._operations import FeatureProgram
from raysys.features._raw_inputs import is_arrow
from raysys.features._transforms import TargetEncoded, check_unique

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data import Table
    from raysys.features._featurizer import Featurizer
    from raysys.features._transforms import State

FORMAT = 2
STATE_FILE, ARRAYS_FILE = "featurizer.json", "arrays.npz"
# Up to this many rows, one after the other is faster than by arrays.
_FEW_ROWS = 8
# Rows filled at a time: look-ups write all over the matrix, which should stay in the cache.
_ROWS_AT_ONCE = 8_192
# Options that format 1 named otherwise, by kind of transform.
_RENAMED_IN_2 = {
    "numeric": {"indicator": "add_indicator"},
    "binned": {"bins": "n_bins", "by": "strategy"},
    "onehot": {"most": "max_categories"},
    "target_encoded": {"smoothing": "smooth", "folds": "cv", "most": "max_categories"},
}


@dataclass(frozen=True, eq=False, repr=False)
class FittedFeaturizer:
    """Turns raw fields of a Table, of a batch or of one request into float32 features.

    The three give the same features to the last bit. Instances pickle cheaply enough for tasks; on
    disk they are JSON and arrays, see `save`.

    Attributes:
        definition: The featurizer that was fitted.
        states: State of each transform for each of its columns: numbers, texts and arrays.
        inputs: Arrow types of the input columns in the fitted table, by name.
        fitted_on: Fingerprint of the fitted Table.
        rows: Number of rows of the fitted Table.
    """

    definition: Featurizer
    states: tuple[tuple[State, ...], ...]
    inputs: dict[str, str]
    fitted_on: str
    rows: int

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in order.

        Where two kinds of transforms give a column the same names, such as `Hashed` and
        `TextHashed`, those of the second have its kind too.
        """
        names: list[str] = []
        kinds: dict[str, str] = {}
        for transform, state in zip(self.definition.transforms, self.states, strict=True):
            own, kind = transform.feature_names(state), transform.kind
            if any(kinds.get(name, kind) != kind for name in own):
                own = [f"{name} ({kind})" for name in own]
            names += own
            kinds |= dict.fromkeys(own, kind)
        return tuple(names)

    @functools.cached_property
    def _program(self) -> FeatureProgram:
        return FeatureProgram(self.definition.transforms, self.states)

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties: look-ups are functions, which do not pickle.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{type(t).__name__}({', '.join(t.columns)})" for t in self.definition.transforms
        )
        return f"<FittedFeaturizer {kinds}: {len(self.feature_names)} features, {self.rows} rows>"

    def transform_one(
        self, request: Mapping[str, Any], *, ignore_unknown: bool = False
    ) -> np.ndarray:
        """Features of one request.

        Args:
            request: Plain values by field: numbers, text, booleans, times (datetime, date,
                datetime64, ISO 8601 text). A field that is None, NaN or absent is missing.
            ignore_unknown: Ignore fields that are not an input; they are refused by default.

        Returns:
            float32 `(d,)`, in the order of `feature_names`.

        Raises:
            DataError: A value has the wrong type, or a field is unknown; the message names it.
        """
        if not ignore_unknown:
            self._refuse_unknown(request)
        return self._program.row(request)

    def transform_batch(
        self, batch: Mapping[str, Any], *, ignore_unknown: bool = False
    ) -> np.ndarray:
        """Features of a batch of requests, for a node of a serving graph.

        Args:
            batch: Columns of n values each: NumPy arrays (numbers with NaN for missing ones,
                datetime64, objects), Arrow arrays, or lists with None. An absent column is
                missing in every row.
            ignore_unknown: Ignore columns that are not an input; they are refused by default.

        Returns:
            float32 `(n, d)`, C-contiguous.

        Raises:
            DataError: A value has the wrong type, a column is unknown, no column is an input, or
                lengths differ.

        Example:
            A node with its columns as parameters:

            >>> class Features:
            ...     def __init__(self, folder):
            ...         self.featurizer = FittedFeaturizer.load(folder)
            ...
            ...     def __call__(self, distance, carrier):
            ...         columns = {"distance": distance, "carrier": carrier}
            ...         return self.featurizer.transform_batch(columns)
        """
        if not ignore_unknown:
            self._refuse_unknown(batch)
        columns = {name: batch[name] for name in self.inputs if name in batch}
        if not columns:
            raise DataError(
                f"no column of the batch is an input; given: {', '.join(batch) or 'none'}; "
                f"inputs: {', '.join(self.inputs)}"
            )
        first, rows = next((name, len(column)) for name, column in columns.items())
        for name, column in columns.items():
            if len(column) != rows:
                raise DataError(
                    f"{first} has {rows} values and {name} {len(column)}: columns of a batch must "
                    "have one length"
                )
        if rows <= _FEW_ROWS and not any(is_arrow(column) for column in columns.values()):
            out = np.empty((rows, len(self.feature_names)), np.float32)
            for row in range(rows):
                out[row] = self._program.row({name: c[row] for name, c in columns.items()})
            return out
        out = np.zeros((rows, len(self.feature_names)), np.float32)
        self._program.fill(columns, rows, out.T)
        return out

    def _refuse_unknown(self, fields: Mapping[str, Any]) -> None:
        if unknown := fields.keys() - self.inputs.keys():
            raise DataError(
                f"unknown fields: {unknown_names(sorted(unknown), self.inputs)}; inputs: "
                f"{', '.join(self.inputs)}. Correct them, or give ignore_unknown=True"
            )

    @checked
    def transform(self, table: Table, keep: Sequence[str] = ()) -> Table:
        """Features of a Table, in one task a block.

        Args:
            table: Rows with the inputs among their columns; they stay in order.
            keep: Columns to copy unchanged, such as labels and ids.

        Returns:
            The kept columns and one float32 column for each of `feature_names`.

        Raises:
            DataError: A value has the wrong type, or a kept column has the name of a feature.
        """
        self.check_columns(table.schema.names, keep)
        return table.map_blocks(
            featurize, ray.put(self), {}, {}, list(keep), name="transform_features"
        )

    def check_columns(self, names: Sequence[str], keep: Sequence[str]) -> None:
        """Refuse a table that lacks an input, and kept columns with the name of a feature."""
        for name in (*self.inputs, *keep):
            if name not in names:
                raise DataError(f"the table has no column {name!r}; it has: {', '.join(names)}")
        check_unique(self.feature_names, keep)

    @checked
    def save(self, folder: Path) -> None:
        """Write the state: `featurizer.json`, and float64 arrays in `arrays.npz`.

        Nothing is pickled. Use a folder of `Storage.new_dir` to write atomically.

        Args:
            folder: Target folder; created if missing.
        """
        arrays: dict[str, np.ndarray] = {}
        plain: list[list[State]] = [[{**state} for state in states] for states in self.states]
        for number, states in enumerate(plain):
            for place, state in enumerate(states):
                for key in [key for key, value in state.items() if isinstance(value, np.ndarray)]:
                    arrays[f"{number}.{place}.{key}"] = state.pop(key)
        content = {
            "format": FORMAT, "fitted_on": self.fitted_on, "rows": self.rows,
            "inputs": self.inputs, "names": self.feature_names,
            "definition": self.definition.model_dump(mode="json"), "states": plain,
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        (folder / STATE_FILE).write_text(text + "\n", "utf-8")
        np.savez(folder / ARRAYS_FILE, allow_pickle=False, **arrays)

    @classmethod
    @checked
    def load(cls, folder: Path) -> FittedFeaturizer:
        """Read a featurizer that this or an earlier version of raysys saved.

        Raises:
            StorageError: The folder has no featurizer, or one of a later version.
        """
        from raysys.features._featurizer import Featurizer

        file = Path(folder) / STATE_FILE
        if not file.exists():
            raise StorageError(f"no fitted featurizer in {folder}: {STATE_FILE} is missing")
        content = json.loads(file.read_text("utf-8"))
        if content["format"] > FORMAT:
            raise StorageError(
                f"the featurizer in {folder} has format {content['format']}, and this raysys "
                f"reads up to {FORMAT}: upgrade raysys, or fit the featurizer again"
            )
        if content["format"] == 1:
            for transform in content["definition"]["transforms"]:
                renamed = _RENAMED_IN_2.get(transform["kind"], {})
                for old in renamed.keys() & transform.keys():
                    transform[renamed[old]] = transform.pop(old)
        states: list[list[State]] = content["states"]
        with np.load(Path(folder) / ARRAYS_FILE, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, place, name = key.split(".")
                states[int(number)][int(place)][name] = arrays[key]
        definition = Featurizer.model_validate(content["definition"])
        learned = tuple(tuple(columns) for columns in states)
        return cls(definition, learned, content["inputs"], content["fitted_on"], content["rows"])


def featurize(
    block: pa.Table, fitted: FittedFeaturizer, training: Mapping[tuple[int, str], Any],
    times: Mapping[tuple[int, str], Table], keep: Sequence[str],
) -> pa.Table:  # fmt: skip
    """Features of a block, with target means that are safe for training where given.

    They are out-of-fold means in `training`, and results of `by_time` in `times`, by number of the
    transform and column.
    """
    out = np.empty((len(fitted.feature_names), len(block)), np.float32)
    filled = np.zeros((len(out), min(len(block), _ROWS_AT_ONCE)), np.float32)
    for start in range(0, len(block), _ROWS_AT_ONCE):
        rows = block.slice(start, _ROWS_AT_ONCE)
        part = filled[:, : len(rows)]
        part[:] = 0
        fitted._program.fill({name: rows[name] for name in fitted.inputs}, len(rows), part)
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
        first += len(transform.feature_names(states))
    columns = {name: block[name] for name in keep}
    columns |= {n: pa.array(column) for n, column in zip(fitted.feature_names, out, strict=True)}
    return pa.table(columns)
