"""Predictions of a stored model for a Table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.arguments import checked
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.models._model_store import StoredModel
    from raysys.storage import Storage

PREDICTION = "prediction"


@checked
def predict(
    model_class: type, storage: Storage, model: StoredModel, table: Table, *,
    keep: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Predict the rows of a Table in one task a block; each task loads the model from the store.

    Args:
        model_class: `Predictor` for a model of `save`; or a class that is created with the model's
            folder, and called with numbers `(n, inputs)`, or a pandas frame if an input is not
            numeric.
        storage: Storage of the model.
        model: Model whose signature names its `inputs`, columns of the Table.
        table: Rows to predict.
        keep: Columns to keep beside the predictions.

    Returns:
        The kept columns and `prediction`, in the rows' order: a value, or a list of fixed size
        of a classifier's probabilities.

    Raises:
        DataError: The signature has no inputs, or the Table lacks a column.
        StorageError: The model's files were changed.
    """
    inputs = signature_of(storage, model)["inputs"]
    needed = list(dict.fromkeys([*inputs, *keep]))
    if missing := [name for name in needed if name not in table.schema.names]:
        raise DataError(f"no such column: {missing}; the table has {table.schema.names[:20]}")
    arguments = model_class, storage, model, inputs, list(keep)
    return table.select(needed).map_blocks(_predict_block, *arguments, name=f"predict {model.name}")


def signature_of(storage: Storage, model: StoredModel) -> dict[str, Any]:
    """Signature of a model, which names the inputs."""
    signature = model.manifest(storage).get("signature")
    if not isinstance(signature, dict) or not isinstance(signature.get("inputs"), list):
        raise DataError(
            f"the signature of {model.name!r} version {model.version} names no inputs: register "
            'it with signature={"inputs": [names], "classes": [values] or None}'
        )
    return signature


def _predict_block(
    block: pa.Table, model_class: type, storage: Storage, model: StoredModel, inputs: list[str],
    keep: list[str],
) -> pa.Table:  # fmt: skip
    columns = block.select(inputs)
    by_name = getattr(model_class, "takes_columns", False)
    batch = columns.to_pandas(strings_to_categorical=True) if by_name else _batch(columns)
    predictions = np.asarray(model_class(model.fetch(storage))(batch))
    column = pa.array(predictions.ravel())
    if predictions.ndim > 1:
        column = pa.FixedSizeListArray.from_arrays(column, predictions.shape[1])
    return block.select(keep).append_column(PREDICTION, column)


def _batch(columns: pa.Table) -> Any:
    """A matrix of numeric columns, otherwise a frame."""
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if all(any(matches(field.type) for matches in numeric) for field in columns.schema):
        return np.stack([column.to_numpy() for column in columns.columns], axis=1)
    return columns.to_pandas(strings_to_categorical=True)


def array_of(table: pa.Table) -> np.ndarray:
    """Predictions of `predict` as an array: `(n,)` or `(n, k)`."""
    column = table[PREDICTION].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    return column.flatten().to_numpy().reshape(len(column), -1)
