"""Open Inference Protocol v2 of KServe and Triton, with binary tensors.

Bodies to columns and back, without I/O. Binary tensors follow the JSON, in the order of the
tensors; the header `Inference-Header-Content-Length` is the length of the JSON (Triton, "Binary
Tensor Data Extension").
"""

from __future__ import annotations

import itertools
import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from raysys.errors import DataError, GraphError
from raysys.gateway import JSON_LENGTH_HEADER
from raysys.serve._column_types import DATATYPES, Array, rows_of
from raysys.serve._json_values import json_bytes, time_texts

PLATFORM = "raysys_graph"
# Python types of a column's JSON values, by the kind of its dtype.
_JSON_TYPES: dict[str, set[type]] = {
    "b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str},
}  # fmt: skip
_JSON_NAMES = {
    dict: "object", list: "array", str: "string", int: "integer", float: "number",
    bool: "boolean", type(None): "null",
}  # fmt: skip
_MAX_OUTPUTS = 1000
# Features of Triton that would change the response: refused, not ignored.
_UNSUPPORTED = ("classification", "shared_memory_region")


@dataclass(frozen=True)
class InferRequest:
    """An inference request.

    Attributes:
        columns: Validated, read-only inputs `(rows, ...)`.
        id: The client's id of the request.
        outputs: Whether a requested output is sent as bytes after the JSON; None requests all.
        binary_default: Whether other outputs are sent as bytes.
    """

    columns: dict[str, np.ndarray]
    id: str | None
    outputs: dict[str, bool] | None
    binary_default: bool


def datatype(array: Array) -> str:
    """The protocol's name of a dtype."""
    return DATATYPES[array.dtype]


def decode(body: bytes, json_length: int | None, inputs: Mapping[str, Array]) -> InferRequest:
    """Parse an inference request, which must have exactly the columns of `inputs`.

    Binary numbers are a view of the body unless they are misaligned; memory use is proportional to
    the body. `json_length` is the header `Inference-Header-Content-Length`.

    Raises:
        DataError: The body violates the protocol or does not match the inputs.
    """
    offset = len(body) if json_length is None else json_length
    if not 0 <= offset <= len(body):
        raise DataError(f"{JSON_LENGTH_HEADER} is {offset}, but the body has {len(body)} bytes")
    try:
        header = orjson.loads(memoryview(body)[:offset])
    except orjson.JSONDecodeError as error:
        raise DataError(f"the body's {offset} bytes of JSON are malformed: {error}") from error
    if type(header) is not dict:
        raise DataError(f"the request must be a JSON object, given {reprlib.repr(header)}")

    columns: dict[str, np.ndarray] = {}
    for tensor in _get(header, "inputs", list, "the request"):
        name = _name(tensor, "an input")
        if name not in inputs:
            raise DataError(f"unknown input {reprlib.repr(name)}; inputs are {sorted(inputs)}")
        if name in columns:
            raise DataError(f"{name}: given twice")
        raw = _raw(name, tensor, memoryview(body)[offset:])
        offset += 0 if raw is None else len(raw)
        columns[name] = _column(name, inputs[name], tensor, raw, len(body))
    if missing := sorted(inputs.keys() - columns.keys()):
        raise DataError(f"missing inputs {missing}")
    if offset != len(body):
        raise DataError(f"{len(body) - offset} bytes after the data of the last input")
    rows_of(columns)  # equal in every column

    parameters = _get(header, "parameters", dict, "the request", {})
    binary = _get(parameters, "binary_data_output", bool, "the request's parameters", False)
    return InferRequest(
        columns=columns,
        id=_get(header, "id", str, "the request") if "id" in header else None,
        outputs=_outputs(_get(header, "outputs", list, "the request", []), binary) or None,
        binary_default=binary,
    )


def encode(
    request: InferRequest, model: str, version: str, columns: Mapping[str, np.ndarray | list]
) -> tuple[bytes, int | None]:
    """Serialize a response: the body, and the length of its JSON if bytes follow.

    Lists and arrays of objects become BYTES: strings and bytes unchanged, other values as JSON,
    times as ISO 8601; durations become FP64 seconds. In JSON, float16 is sent as FP32, and numbers
    that are not finite as null. An empty version is omitted.

    Raises:
        DataError: Unknown output, or bytes that are not UTF-8 in JSON.
        GraphError: A value of the graph is not representable in the protocol.
    """
    tensors, parts = [], []
    for name, binary in (request.outputs or dict.fromkeys(columns, request.binary_default)).items():
        if name not in columns:
            raise DataError(f"unknown output {reprlib.repr(name)}; outputs are {sorted(columns)}")
        tensor, raw = _tensor(name, columns[name], binary)
        tensors.append(tensor)
        if raw is not None:
            parts.append(raw)
    header: dict[str, Any] = {"model_name": model}
    if version:
        header["model_version"] = version
    if request.id is not None:
        header["id"] = request.id
    text = orjson.dumps({**header, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)


def model_metadata(
    name: str, versions: Sequence[str], inputs: Mapping[str, Array], outputs: Mapping[str, Array],
    classes: Sequence[Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Signature of a model, for `GET /v2/models/<name>`, with the classes of probabilities."""
    named = {} if classes is None else {"parameters": {"classes": list(classes)}}
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_signature(*column) for column in inputs.items()],
        "outputs": [_signature(*column) | named for column in outputs.items()],
    }


def model_config(
    name: str, max_batch_size: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> dict[str, Any]:
    """Configuration of a model, for `GET /v2/models/<name>/config`; shapes are those of a row."""
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "raysys",
        "max_batch_size": max_batch_size,
        "input": [_configured(*column) for column in inputs.items()],
        "output": [_configured(*column) for column in outputs.items()],
    }


def _configured(name: str, array: Array) -> dict[str, Any]:
    signature = _signature(name, array)
    kind = "STRING" if signature["datatype"] == "BYTES" else signature["datatype"]
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": signature["shape"][1:]}


def _signature(name: str, array: Array) -> dict[str, Any]:
    sides = [-1 if side is None else side for side in array.shape]
    return {"name": name, "datatype": datatype(array), "shape": [-1, *sides]}


def _get(owner: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = owner.get(key, default)
    if type(value) is not kind:
        actual = reprlib.repr(value) if key in owner else "nothing"
        raise DataError(f"{where}: {key!r} must be a JSON {_JSON_NAMES[kind]}, given {actual}")
    return value


def _name(tensor: Any, what: str) -> str:
    if type(tensor) is not dict:
        raise DataError(f"{what} must be a JSON object, given {reprlib.repr(tensor)}")
    return _get(tensor, "name", str, what)


def _parameters(where: str, tensor: dict[str, Any]) -> dict[str, Any]:
    parameters = _get(tensor, "parameters", dict, where, {})
    if refused := [key for key in _UNSUPPORTED if key in parameters]:
        raise DataError(f"{where}: the parameter {refused[0]!r} is not supported; leave it out")
    return parameters


def _outputs(tensors: list[Any], binary_default: bool) -> dict[str, bool]:
    outputs: dict[str, bool] = {}
    if len(tensors) > _MAX_OUTPUTS:
        raise DataError(f"{len(tensors)} outputs are requested: request at most {_MAX_OUTPUTS}")
    for tensor in tensors:
        name = _name(tensor, "an output")
        where = f"output {reprlib.repr(name)}"
        if name in outputs:
            raise DataError(f"{where}: requested twice")
        parameters = _parameters(where, tensor)
        outputs[name] = _get(parameters, "binary_data", bool, where, binary_default)
    return outputs


def _raw(name: str, tensor: dict[str, Any], left: memoryview) -> memoryview | None:
    """The bytes of an input, from the start of the remaining body; None if it is not binary."""
    parameters = _parameters(name, tensor)
    if "binary_data_size" not in parameters:
        return None
    size = _get(parameters, "binary_data_size", int, name)
    if not 0 <= size <= len(left):
        raise DataError(
            f"{name}: binary_data_size is {size}, but {len(left)} bytes follow the JSON and the "
            f"inputs before; is the header {JSON_LENGTH_HEADER} correct?"
        )
    return left[:size]


def _column(
    name: str, array: Array, tensor: dict[str, Any], raw: memoryview | None, body_length: int
) -> np.ndarray:
    actual = _get(tensor, "datatype", str, name)
    if actual != datatype(array):
        raise DataError(f"{name}: datatype must be {datatype(array)}, given {reprlib.repr(actual)}")
    shape = _shape(name, array, _get(tensor, "shape", list, name), body_length)
    if (raw is None) == ("data" not in tensor):
        raise DataError(f"{name}: needs either 'data' or the parameter 'binary_data_size'")
    if raw is None:
        flat = _from_json(name, array, shape, _get(tensor, "data", list, name))
    elif array.numpy.kind == "O":
        flat = _from_text(name, raw, math.prod(shape))
    else:
        flat = _from_bytes(name, array, raw, math.prod(shape))
    try:
        return array.check(name, flat.reshape(shape))
    except ValueError as error:  # sides that overflow in NumPy, next to a side of 0
        raise DataError(f"{name}: shape {reprlib.repr(shape)} ({error})") from error


def _shape(name: str, array: Array, shape: list[Any], body_length: int) -> list[int]:
    pattern = (None, *array.shape)
    fits = len(shape) == len(pattern) and all(
        type(side) is int and side >= 0 and expected in (None, side)
        for side, expected in zip(shape, pattern, strict=True)
    )
    if not fits or shape[0] == 0:
        sides = [-1 if side is None else side for side in pattern]
        raise DataError(
            f"{name}: shape must be {sides} with at least one row, given {reprlib.repr(shape)}"
        )
    # An element takes at least a byte; so must an empty row, since it costs memory later.
    if math.prod(itertools.takewhile(bool, shape)) > body_length:
        raise DataError(f"{name}: shape {shape} exceeds a body of {body_length} bytes")
    return shape


def _from_json(name: str, array: Array, shape: list[int], data: list[Any]) -> np.ndarray:
    flat = data
    if data and type(data[0]) is list:
        flat = [data]
        for side in shape:
            if not all(type(row) is list and len(row) == side for row in flat):
                raise DataError(f"{name}: nested data must have shape {shape}")
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != math.prod(shape):
        raise DataError(f"{name}: shape {shape} needs {math.prod(shape)} values, given {len(flat)}")
    kind = array.numpy.kind
    nulls = {type(None)} if array.nullable else set()
    if wrong := set(map(type, flat)) - _JSON_TYPES[kind] - nulls:
        names = sorted(_JSON_NAMES[json_type] for json_type in wrong)
        raise DataError(f"{name}: values are not {datatype(array)}: {', '.join(names)}")
    try:
        # float64 first, so that the check sees values that overflow a narrower type.
        return np.array(flat, np.float64 if kind == "f" else array.numpy)
    except OverflowError as error:
        raise DataError(f"{name}: values beyond the range of {array.dtype}") from error


def _from_bytes(name: str, array: Array, raw: memoryview, count: int) -> np.ndarray:
    dtype = array.numpy.newbyteorder("<")
    if len(raw) != count * dtype.itemsize:
        raise DataError(
            f"{name}: {count} values of {datatype(array)} take {count * dtype.itemsize} bytes, "
            f"given {len(raw)}"
        )
    if dtype.kind == "b":
        flags = np.frombuffer(raw, np.uint8)
        if flags.max(initial=0) > 1:
            raise DataError(f"{name}: a byte of BOOL must be 0 or 1, given {flags.max()}")
        return flags.view(np.bool_)
    values = np.frombuffer(raw, dtype)
    # Compiled code may assume alignment and crash without it.
    return values if values.flags.aligned else values.copy()


def _from_text(name: str, raw: memoryview, count: int) -> np.ndarray:
    texts: list[str] = []
    start = 0
    while start < len(raw):
        length = int.from_bytes(raw[start : start + 4], "little")
        start += 4
        if length > len(raw) - start:
            raise DataError(f"{name}: element {len(texts)} extends beyond the end of the data")
        try:
            texts.append(str(raw[start : start + length], "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: element {len(texts)} is not UTF-8 ({error})") from error
        start += length
    if len(texts) != count:
        raise DataError(f"{name}: the shape needs {count} values, given {len(texts)}")
    return np.array(texts, dtype=object)


def _tensor(name: str, column: np.ndarray | list, binary: bool) -> tuple[dict[str, Any], Any]:
    """A tensor's JSON, and its bytes or array if it is binary."""
    values = _as_array(name, column)
    if values.dtype == np.float16 and not binary:
        values = values.astype(np.float32)
    tensor: dict[str, Any] = {"name": name, "shape": values.shape}
    if values.dtype == object:
        tensor["datatype"] = DATATYPES["str"]
        parts = _texts(name, values)
        if not binary:
            try:
                return {**tensor, "data": [part.decode() for part in parts]}, None
            except UnicodeDecodeError:
                raise DataError(
                    f"output {name!r} has bytes that are not UTF-8: ask for binary_data"
                ) from None
        raw = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw
    tensor["datatype"] = DATATYPES[values.dtype.name]
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).ravel()
    if not binary:
        return {**tensor, "data": flat}, None
    return {**tensor, "parameters": {"binary_data_size": flat.nbytes}}, flat


def _as_array(name: str, column: np.ndarray | list) -> np.ndarray:
    """The column as an array of numbers or objects."""
    if not isinstance(column, np.ndarray):
        return np.fromiter(column, object, len(column))
    if column.dtype.kind in "OUTS":
        return column.astype(object, copy=False)
    if column.dtype.kind == "M":
        return time_texts(column)
    if column.dtype.kind == "m":
        return column / np.timedelta64(1, "s")
    if column.dtype.name not in DATATYPES:
        raise GraphError(f"output {name!r}: protocol v2 has no datatype for {column.dtype}")
    return column


def _texts(name: str, values: np.ndarray) -> list[bytes]:
    """Values of BYTES."""
    try:
        return [
            value.encode() if isinstance(value, str)
            else bytes(value) if isinstance(value, bytes | bytearray | memoryview)
            else json_bytes(value)
            for value in values.ravel().tolist()
        ]  # fmt: skip
    except (TypeError, UnicodeEncodeError) as error:
        raise GraphError(f"output {name!r}: {error}") from error
