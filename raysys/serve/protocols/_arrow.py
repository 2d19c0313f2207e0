"""Bulk bodies: columns as Arrow IPC streams, and Arrow tables.

pyarrow reads a stream without copying, which is safe only after checks that it leaves to the
caller: full validation, a limit on the decompressed size, and no extension types, whose Python
classes may unpickle data of the stream. The last two must happen before pyarrow reads a message, so
its flatbuffer is inspected here (layout: Message.fbs and Schema.fbs of Apache Arrow).
"""

from __future__ import annotations

import itertools
import json
import math
import reprlib
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.errors import DataError, GraphError
from raysys.serve._json_values import json_bytes

if TYPE_CHECKING:
    from raysys.serve._column_types import Array

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

_EXTENSION_KEY, _TENSOR = b"ARROW:extension:name", b"arrow.fixed_shape_tensor"
_LISTS = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
_TEXTS = (pa.types.is_string, pa.types.is_large_string)
_NUMBERS = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
# Errors of pyarrow, and of reading a forged flatbuffer.
_MALFORMED = (pa.ArrowException, OSError, ValueError, struct.error)
# Errors of pyarrow for values in Python; it lets those of the conversions through.
_UNCONVERTIBLE = (pa.ArrowException, TypeError, ValueError, OverflowError)


def decode(
    body: bytes, inputs: Mapping[str, Array], max_bytes: int = 16 << 20
) -> dict[str, np.ndarray]:
    """Read columns from an Arrow IPC stream, as views of the body where the types allow.

    The stream must have exactly the columns of `inputs`; its buffers may be compressed, from at
    most `max_bytes`. The arrays `(n, ...)` are read-only, with n at least 1.

    Raises:
        DataError: The body is malformed or does not match the inputs.
    """
    if body.startswith(b"ARROW1"):
        raise DataError("the body is an Arrow IPC file: send a stream (pa.ipc.new_stream)")
    try:
        size = len(body) + _scan(body, max_bytes)
        # Otherwise a misaligned stream gives arrays that NumPy wrongly considers aligned.
        options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)
        table = pa.ipc.open_stream(pa.py_buffer(body), options=options).read_all()
        table.validate(full=True)
    except _MALFORMED as error:
        raise DataError(f"the body is not a valid Arrow IPC stream: {error}") from error
    if not table.num_rows:
        raise DataError("the body has no rows: send at least one")
    if table.num_rows > 8 * size:  # of nulls, which take no bytes
        raise DataError(f"{table.num_rows} rows exceed {size} bytes")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if (expanded := _dense_bytes(column)) > max_bytes:
            raise DataError(
                f"{name}: its dictionary expands to {expanded} bytes: send at most {max_bytes}"
            )
    columns = from_table(table, inputs)
    for name, values in columns.items():
        # An element takes at least a bit; so must an empty row, since it costs memory later.
        if math.prod(itertools.takewhile(bool, values.shape)) > 8 * size:
            raise DataError(f"{name}: shape {values.shape} exceeds {size} bytes")
    return columns


def from_table(table: pa.Table, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """The columns of a table as arrays, without copying numbers of a single chunk.

    Scalar columns are numbers, bool or strings, also dictionary-encoded. Columns with a shape are
    FixedSizeLists (nested for more sides), fixed-shape tensors (Arrow's or Ray's), or Lists of
    equal length.

    The table must be trusted or fully validated, and have exactly the columns of `inputs`.

    Raises:
        DataError: The table does not match the inputs, or has nulls in a column that is not
            nullable.
    """
    names = table.column_names
    if len(set(names)) != len(names) or set(names) != set(inputs):
        actual = reprlib.repr(sorted(names))
        raise DataError(f"columns must be {sorted(inputs)}, each once, given {actual}")
    columns = {}
    for name, array in inputs.items():
        column = table.column(name)
        if array.nullable and pa.types.is_null(column.type):
            column = column.cast(pa.string() if array.dtype == "str" else pa.float64())
        _check_type(name, column.type, array)
        try:
            values = _from_chunks(name, column, array) if len(column) else array.zeros(0)
            columns[name] = array.check(name, values)
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"{name}: cannot convert {column.type} to {array}: {error}") from error
    return columns


def encode(columns: Mapping[str, Any] | list[dict[str, Any]]) -> bytes:
    """Columns, or rows, as an Arrow IPC stream of one record batch; see `to_batch`.

    A column whose values have no common type is text: strings unchanged, other values as JSON.
    """
    batch = to_batch(columns, mixed_as_text=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def to_batch(
    columns: Mapping[str, Any] | list[dict[str, Any]], *, mixed_as_text: bool = False
) -> pa.RecordBatch:
    """Columns, or rows, as a record batch.

    Values of types that Arrow lacks, such as sets and tensors, are converted as for JSON.

    Args:
        columns: Arrays `(n, ...)` or lists of n by name; an array with more than one side becomes
            a FixedSizeList, a list of dicts a struct. Or rows as a list of dicts; missing keys
            become null.
        mixed_as_text: Convert a column whose values have no common type to text.

    Raises:
        GraphError: Arrow has no type for the values, or the columns have unequal lengths.
    """
    if isinstance(columns, list):
        names = dict.fromkeys(name for row in columns for name in row)
        columns = {name: [row.get(name) for row in columns] for name in names}
    arrays = [_to_arrow(name, values, mixed_as_text) for name, values in columns.items()]
    if len({len(array) for array in arrays}) > 1:
        lengths = dict(zip(columns, map(len, arrays), strict=True))
        raise GraphError(f"outputs must have equal lengths, given {lengths}")
    return pa.RecordBatch.from_arrays(arrays, list(columns))


def _dense_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a dictionary-encoded column without its dictionary; texts are shared instead."""
    if not pa.types.is_dictionary(column.type):
        return 0
    return sum(
        len(chunk) * (8 if any(is_text(column.type.value_type) for is_text in _TEXTS)
                      else chunk.dictionary.nbytes // max(1, len(chunk.dictionary)))
        for chunk in column.chunks
    )  # fmt: skip


def _check_type(name: str, kind: pa.DataType, array: Array) -> None:
    leaf = kind.value_type if pa.types.is_dictionary(kind) else kind
    while not pa.types.is_primitive(leaf):
        if isinstance(leaf, pa.BaseExtensionType) and getattr(leaf, "shape", None) is not None:
            leaf = leaf.storage_type
        elif any(is_list(leaf) for is_list in _LISTS):
            leaf = leaf.value_type
        else:
            break
    if not any(is_kind(leaf) for is_kind in (_TEXTS if array.dtype == "str" else _NUMBERS)):
        actual = str(kind)
        actual = actual if len(actual) < 100 else f"{actual[:100]}..."
        raise DataError(f"{name}: expected {array}, given Arrow type {actual}: cast it")


def _from_chunks(name: str, column: pa.ChunkedArray, array: Array) -> np.ndarray:
    if array.nullable and pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_dictionary(column.type):
        merged = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return _from_arrow(name, merged, array)
    # One string object per entry, shared by all rows and batches.
    entries: dict[tuple[int, ...], np.ndarray] = {}
    parts = []
    for chunk in column.chunks:
        if chunk.null_count:
            raise DataError(f"{name}: {chunk.null_count} nulls: fill them or drop their rows")
        words = chunk.dictionary
        addresses = (buffer.address if buffer else 0 for buffer in words.buffers())
        key = (*addresses, words.offset, len(words))
        if key not in entries:
            entries[key] = _from_arrow(name, words, array)
        parts.append(entries[key][chunk.indices.to_numpy()])
    return np.concatenate(parts)


def _from_arrow(name: str, column: pa.Array, array: Array) -> np.ndarray:
    kind, rows = column.type, len(column)
    is_leaf = pa.types.is_primitive(kind) or any(is_text(kind) for is_text in _TEXTS)
    if column.null_count and array.nullable and is_leaf:
        if not pa.types.is_floating(kind) and array.dtype != "str":
            column = column.cast(pa.float64())  # refuses integers that it would round
    elif column.null_count:
        raise DataError(f"{name}: {column.null_count} nulls: fill them or drop their rows")
    if isinstance(kind, pa.BaseExtensionType):
        order = getattr(kind, "permutation", None) or range(len(kind.shape))
        if list(order) != sorted(order):
            raise DataError(f"{name}: a tensor with permuted sides; store it in row-major order")
        return _from_arrow(name, column.storage, array).reshape(rows, *kind.shape)
    if not any(is_list(kind) for is_list in _LISTS):
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        side = kind.list_size
    else:
        lengths = np.diff(column.offsets.to_numpy())
        side = int(lengths[0]) if rows else 0
        if (lengths != side).any():
            raise DataError(
                f"{name}: lists of {lengths.min()} to {lengths.max()} values: all lists of a "
                "request must have equal lengths"
            )
    inner = _from_arrow(name, column.flatten(), array)
    return inner.reshape(rows, side, *inner.shape[1:])


def _to_arrow(name: str, values: np.ndarray | list, mixed_as_text: bool) -> pa.Array:
    if not isinstance(values, np.ndarray):
        return _leaves(name, values, mixed_as_text)
    flat = values.ravel()
    if values.dtype.kind in "OUT":
        leaf = _leaves(name, flat.tolist(), mixed_as_text)
    elif values.dtype.kind in "Mmc":
        leaf = _leaves(name, flat, mixed_as_text)
    else:
        leaf = pa.array(np.ascontiguousarray(values, values.dtype.newbyteorder("=")).ravel())
    sides = values.shape[1:]
    if 0 in sides:  # from_arrays refuses such lists
        kind = leaf.type
        for side in reversed(sides):
            kind = pa.list_(kind, side)
        return pa.array(values.tolist(), kind)
    for side in reversed(sides):
        leaf = pa.FixedSizeListArray.from_arrays(leaf, side)
    return leaf


def _leaves(name: str, values: Any, mixed_as_text: bool) -> pa.Array:
    """Values in Arrow's types, or else in those of JSON."""
    try:
        return pa.array(values)
    except _UNCONVERTIBLE:
        pass
    try:
        texts = [v if isinstance(v, str) else json_bytes(v).decode() for v in values]
        pairs = zip(values, texts, strict=True)
        plain = [value if value is text else json.loads(text) for value, text in pairs]
    except TypeError as error:
        raise GraphError(f"output {name!r}: not representable in Arrow ({error})") from error
    try:
        return pa.array(plain)
    except _UNCONVERTIBLE as error:
        if not mixed_as_text:
            raise GraphError(f"output {name!r}: not representable in Arrow ({error})") from error
    return pa.array(texts)


def _scan(body: bytes, max_bytes: int) -> int:
    """Check the messages before they are read; returns the decompressed size of their buffers."""
    source = pa.BufferReader(body)
    reader = pa.ipc.MessageReader.open_stream(source)
    expanded = 0
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            break
        # pyarrow has verified the flatbuffer: its offsets are in range and acyclic.
        metadata = _Flatbuffer(message.metadata.to_pybytes())
        root = metadata.target(0)
        header = metadata.slot(root, 2)
        if header is None:
            raise ValueError("a message without a header")
        header = metadata.target(header)
        if message.type == "schema":
            for field in metadata.tables(header, 1):
                _check_extension(metadata, field)
            continue
        if message.type == "dictionary":
            batch, delta = metadata.slot(header, 1), metadata.slot(header, 2)
            # Each batch after a delta keeps its own copy of the dictionary so far.
            if batch is None or delta is not None:
                raise ValueError("a dictionary in parts (delta); send it whole")
            header = metadata.target(batch)
        if message.metadata_version != pa.MetadataVersion.V5 and metadata.slot(root, 4) is not None:
            raise ValueError("metadata of a version before 1.0, which may hide compression")
        if metadata.slot(header, 3) is not None:
            # A compressed buffer starts with its uncompressed length; -1 means uncompressed.
            starts = [start for start, length in metadata.pairs(header, 2) if length]
            data = memoryview(message.body)
            expanded += sum(max(0, *struct.unpack_from("<q", data, start)) for start in starts)
        if expanded > max_bytes:
            raise ValueError(f"it decompresses to more than {max_bytes} bytes; send it in parts")
    if source.tell() != len(body):
        raise ValueError(f"{len(body) - source.tell()} bytes after its end")
    return expanded


def _check_extension(metadata: _Flatbuffer, field: int | None) -> None:
    while field is not None:
        for pair in metadata.tables(field, 6):
            if metadata.text(pair, 0) == _EXTENSION_KEY and metadata.text(pair, 1) != _TENSOR:
                raise ValueError("a column has an extension type other than a fixed-shape tensor")
        children = list(itertools.islice(metadata.tables(field, 5), 2))
        if len(children) > 1:
            raise ValueError("a column has a struct or another nested type")
        field = children[0] if children else None


class _Flatbuffer:
    """Minimal reader of a flatbuffer; positions are offsets in it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def target(self, position: int) -> int:
        """Target of the reference at a position."""
        return position + self._read("<I", position)

    def slot(self, table: int, number: int) -> int | None:
        """Position of a table's field; None if it is absent."""
        vtable = table - self._read("<i", table)
        if 4 + 2 * number >= self._read("<H", vtable):
            return None
        offset = self._read("<H", vtable + 4 + 2 * number)
        return table + offset if offset else None

    def tables(self, table: int, number: int) -> Iterator[int]:
        """Tables of a vector field."""
        start, count = self._vector(table, number)
        return (self.target(start + 4 * index) for index in range(count))

    def pairs(self, table: int, number: int) -> Iterator[tuple[int, int]]:
        """Pairs of 64-bit integers of a vector field."""
        start, count = self._vector(table, number)
        return (struct.unpack_from("<qq", self._data, start + 16 * index) for index in range(count))

    def text(self, table: int, number: int) -> bytes:
        """Value of a string field."""
        start, count = self._vector(table, number)
        return self._data[start : start + count]

    def _vector(self, table: int, number: int) -> tuple[int, int]:
        position = self.slot(table, number)
        if position is None:
            return 0, 0
        start = self.target(position)
        return start + 4, self._read("<I", start)

    def _read(self, layout: str, position: int) -> int:
        return struct.unpack_from(layout, self._data, position)[0]
