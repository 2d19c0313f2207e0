"""A stored model's answers for a Table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.models._store import StoredModel
    from raysys.storage import Storage

ANSWER = "answer"


def answers(
    make: type, storage: Storage, model: StoredModel, table: Table, *, keep: Sequence[str] = ()
) -> Table:
    """Ask a stored model about a Table, in one task a block; each loads it from the store.

    Args:
        make: Class that is given the model's folder, and called with a batch: numbers
            `(n, inputs)`, or a pandas frame if an input is no number.
        storage: Of the store.
        model: Its signature names its `inputs`, columns of the Table.
        table: Rows to ask about.
        keep: Columns to keep beside the answers.

    Returns:
        The kept columns and `answer` in the rows' order: a number, or a list of fixed size.

    Raises:
        DataError: The signature has no inputs, or a column is not there.
        StorageError: The model's files are not those that were stored.
    """
    inputs = signature_of(storage, model)["inputs"]
    wanted = list(dict.fromkeys([*inputs, *keep]))
    if missing := [name for name in wanted if name not in table.schema.names]:
        raise DataError(f"{missing} are no columns; the table has {table.schema.names[:20]}")
    return table.select(wanted).map_blocks(
        _ask, make, storage, model, inputs, list(keep), name=f"ask {model.name}"
    )


def signature_of(storage: Storage, model: StoredModel) -> dict[str, Any]:
    """A model's signature.

    Raises:
        DataError: It does not name the model's inputs.
    """
    found = model.manifest(storage).get("signature")
    if not isinstance(found, dict) or not isinstance(found.get("inputs"), list):
        raise DataError(
            f"the signature of {model.name!r} version {model.version} names no inputs: store it "
            'with signature={"inputs": [names], "classes": [values] or None}'
        )
    return found


def _ask(
    block: pa.Table,
    make: type,
    storage: Storage,
    model: StoredModel,
    inputs: list[str],
    keep: list[str],
) -> pa.Table:
    said = np.asarray(make(model.fetch(storage))(_batch(block.select(inputs))))
    if said.ndim == 1:
        column = pa.array(said)
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(said.ravel()), said.shape[1])
    return block.select(keep).append_column(ANSWER, column)


def _batch(columns: pa.Table) -> Any:
    """Numbers as a matrix, else a frame."""
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if all(any(is_one(field.type) for is_one in numeric) for field in columns.schema):
        return np.stack([column.to_numpy() for column in columns.columns], axis=1)
    return columns.to_pandas(strings_to_categorical=True)


def array_of(table: pa.Table) -> np.ndarray:
    """What `answers` put into a column: `(n,)` or `(n, k)`."""
    column = table[ANSWER].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    return column.flatten().to_numpy().reshape(len(column), -1)
