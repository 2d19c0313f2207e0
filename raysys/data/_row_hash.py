"""Hashes of rows that are the same in every process, on every machine and in every release."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError
from raysys.splitmix import GOLDEN_GAMMA, splitmix64, splitmix64_int

if TYPE_CHECKING:
    from collections.abc import Sequence


_CHUNK_BYTES = 1 << 20  # of text at once: the powers of the base are a table of this length
_NULL, _NAN = 0x9AE16A3B2F90404F, 0x7FF8000000000000
_MASK = 2**64 - 1


def mix(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """`splitmix64` of uint64 of any shape; each seed scatters differently."""
    return splitmix64(values, (seed + 1) * GOLDEN_GAMMA % 2**64)


def hash_rows(block: pa.Table, columns: Sequence[str] | None = None, seed: int = 0) -> np.ndarray:
    """One hash a row, uint64 `(rows,)`.

    Equal values have equal hashes whatever the width of their type: int8 and int64, float32 and
    float64, string and large_string, seconds and nanoseconds. A missing value has its own hash.

    Args:
        block: Columns of numbers, booleans, text, bytes, times, and lists and structs of these.
        columns: Columns to hash; all by default.
        seed: Each seed gives independent hashes.

    Raises:
        DataError: A column's type has no hash.
    """
    hashes = np.full(len(block), len(columns or block.column_names), np.uint64)
    for name in block.column_names if columns is None else columns:
        hashes = mix(hashes ^ _hash_array(_one_array(block[name]), seed), seed)
    return hashes


def uniforms(first: int, count: int, seed: int) -> np.ndarray:
    """Pseudo-random float64 in (0, 1), one for each row number from `first` on.

    A row's value depends on its number and the seed only, not on the block it lies in.
    """
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return ((mix(mix(numbers, seed)) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def content_of(block: pa.Table) -> tuple[int, int, int]:
    """Number of rows, and two digests of the rows in their order, see `content_digest`."""
    digests = []
    for seed in (11, 12):
        hashes, total = hash_rows(block, seed=seed), 0
        for first in range(0, len(hashes), _CHUNK_BYTES):
            chunk = hashes[first : first + _CHUNK_BYTES]
            powers = _powers(seed)[: len(chunk)][::-1]
            total = total * int(_powers(seed)[len(chunk)]) + int((chunk * powers).sum())
            total &= _MASK
        digests.append(total)
    return len(block), digests[0], digests[1]


def block_digest(block: pa.Table) -> str:
    """A digest of a block's rows in their order, equal in every process and release."""
    return content_digest([content_of(block)])


def content_digest(contents: Sequence[tuple[int, int, int]]) -> str:
    """The digest of consecutive blocks, independent of where they were cut."""
    rows, totals = 0, [0, 0]
    for count, *digests in contents:
        for which, seed in enumerate((11, 12)):
            shifted = totals[which] * pow(_base(seed), count, 2**64)
            totals[which] = (shifted + digests[which]) & _MASK
        rows += count
    return f"{rows}:{totals[0]:016x}{totals[1]:016x}"


def table_digest(columns: Sequence[str], contents: Sequence[tuple[int, int, int]]) -> str:
    """A digest of columns, as "name:type", and of the `content_of` of their blocks."""
    text = f"{list(columns)} {content_digest(contents)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _one_array(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks or [pa.array([], column.type)]
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return column


def _hash_array(array: Any, seed: int) -> np.ndarray:
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.uint64(_NULL))
    if pa.types.is_dictionary(kind):
        return _hash_codes(array, _hash_array(array.dictionary, seed))
    if pa.types.is_struct(kind):
        flat = pa.Table.from_arrays(array.flatten(), [f.name for f in kind])
        hashes = hash_rows(flat, seed=seed)
    elif _is_list(kind):
        hashes = _hash_lists(array, seed)
    elif _is_text(kind):
        encoded = array.cast(pa.large_binary()).dictionary_encode()
        return _hash_codes(encoded, _hash_bytes(encoded.dictionary, seed))
    else:
        hashes = mix(_bits(array), seed)
    if array.null_count:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        hashes = np.where(missing, np.uint64(_NULL), hashes)
    return hashes


def _is_list(kind: Any) -> bool:
    t = pa.types
    return bool(
        t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind) or t.is_map(kind)
    )  # fmt: skip


def _is_text(kind: Any) -> bool:
    t = pa.types
    return bool(
        t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
        or t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind)
        or t.is_fixed_size_binary(kind)
    )  # fmt: skip


def _bits(array: Any) -> np.ndarray:
    """The values as uint64; arbitrary for missing ones."""
    kind = array.type
    if pa.types.is_floating(kind):
        numbers = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
        bits = (numbers + 0.0).view(np.uint64)  # -0.0 becomes 0.0
        return np.where(np.isnan(numbers), np.uint64(_NAN), bits)
    if pa.types.is_decimal(kind):
        return _hash_array(array.cast(pa.string()), 0)
    if not (pa.types.is_primitive(kind) or pa.types.is_boolean(kind)) or pa.types.is_interval(kind):
        raise DataError(
            f"a column of type {kind} cannot be hashed: cast it to numbers, times, text or lists"
        )
    if pa.types.is_temporal(kind):
        array = array.cast(_ticks(kind)).cast(pa.int64())
        if getattr(kind, "unit", "") == "ns":
            ticks = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
            micros = np.floor_divide(ticks, 1000)
            # Equal to the hash of microseconds, with the remainder in the upper bits.
            remainder = (ticks - micros * 1000).view(np.uint64)
            return micros.view(np.uint64) ^ (remainder << np.uint64(54))
    array = pc.fill_null(array, False if pa.types.is_boolean(kind) else 0)
    wide = pa.uint64() if pa.types.is_unsigned_integer(kind) else pa.int64()
    return array.cast(wide).to_numpy(zero_copy_only=False).view(np.uint64)


def _ticks(kind: Any) -> Any:
    """The time type with the unit that all times are hashed in, if the values fit."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz=kind.tz) if kind.unit != "ns" else kind
    if pa.types.is_duration(kind):
        return pa.duration("us") if kind.unit != "ns" else kind
    if pa.types.is_date(kind):
        return pa.date64()
    if pa.types.is_time(kind):
        return pa.time64("us") if str(kind) != "time64[ns]" else kind
    return kind


def _hash_lists(array: Any, seed: int) -> np.ndarray:
    kind = array.type
    if pa.types.is_map(kind):
        # As pairs, because the name of a map's key field would be part of the hash.
        pairs = pa.struct([pa.field("key", kind.key_type, False), ("value", kind.item_type)])
        array = array.cast(pa.large_list(pairs))
    elif not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        array = array.cast(pa.large_list(kind.value_type))
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths.astype(np.int64))
    inner = _hash_array(array.flatten(), seed)
    # An item is hashed with its place in the list, so that [1, 2] differs from [2, 1].
    place = np.arange(len(inner)) - np.repeat(ends - lengths, lengths)
    # Mixed twice, or an integer would cancel out with an equal place.
    items = mix(mix(inner, seed) ^ mix(place.astype(np.uint64), seed), seed)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(items, dtype=np.uint64)])
    return mix(sums[ends] - sums[ends - lengths] + lengths.astype(np.uint64), seed)


def _hash_codes(encoded: Any, values: np.ndarray) -> np.ndarray:
    """Hashes of a dictionary array, from those of its dictionary."""
    if not len(values):
        return np.full(len(encoded), np.uint64(_NULL))
    if not encoded.null_count:
        return values[encoded.indices.to_numpy()]
    missing = encoded.indices.is_null().to_numpy(zero_copy_only=False)
    hashes = values[encoded.indices.fill_null(0).to_numpy()]
    return np.where(missing, np.uint64(_NULL), hashes)


def hash_text(value: str | bytes, seed: int = 0) -> int:
    """The hash of a text or byte string that `hash_rows` builds on, as an int below 2**64."""
    raw = value.encode() if isinstance(value, str) else value
    return _mix_int(_polynomial(raw, seed) + len(raw), seed)


def _mix_int(value: int, seed: int) -> int:
    return splitmix64_int(value, (seed + 1) * GOLDEN_GAMMA)


def _polynomial(raw: bytes, seed: int) -> int:
    base, total = _base(seed), 0
    for byte in raw:
        total = (total * base + byte + 1) & _MASK
    return total


def _base(seed: int) -> int:
    return _mix_int(seed, 7) | 1


@functools.lru_cache(8)
def _powers(seed: int) -> np.ndarray:
    """Powers 0 to _CHUNK_BYTES of the base, modulo 2**64."""
    factors = np.full(_CHUNK_BYTES + 1, _base(seed), np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _hash_bytes(values: Any, seed: int) -> np.ndarray:
    """Polynomial hashes of byte strings without nulls (Karp & Rabin, 1987, modulo 2**64)."""
    if not len(values):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset :][: len(values) + 1]
    data = values.buffers()[2]
    text = np.frombuffer(data if data is not None else b"", np.uint8)
    lengths = np.diff(offsets)
    sums = np.empty(len(values), np.uint64)
    powers, first = _powers(seed), 0
    while first < len(values):
        last = int(np.searchsorted(offsets, offsets[first] + _CHUNK_BYTES, "right")) - 1
        if last <= first:  # a string longer than a chunk
            sums[first] = _polynomial(text[offsets[first] : offsets[last + 1]].tobytes(), seed)
            first += 1
            continue
        start, stop = int(offsets[first]), int(offsets[last])
        chunk = text[start:stop].astype(np.uint64) + np.uint64(1)
        # A byte's weight is the base to the power of its distance from the end of its string.
        ends = np.repeat(offsets[first + 1 : last + 1] - start, lengths[first:last])
        weighted = chunk * powers[ends - np.arange(stop - start) - 1]
        running = np.concatenate([[np.uint64(0)], np.cumsum(weighted, dtype=np.uint64)])
        bounds = offsets[first : last + 1] - start
        sums[first:last] = running[bounds[1:]] - running[bounds[:-1]]
        first = last
    return mix(sums + lengths.astype(np.uint64), seed)
