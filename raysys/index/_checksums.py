"""Checksums of an index's files: what was damaged on disk is refused, not read."""

from __future__ import annotations

import concurrent.futures
import json
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_BLOCK, _THREADS = 4 << 20, 4
# Length and checksum of a record, and the checksum of these two.
_LENGTH, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
_HEADER = _LENGTH.size + _CHECKSUM.size
_KEY = "crc32"


class DamagedError(Exception):
    """A content that differs from what was written."""


class CutOffError(DamagedError):
    """A record whose end was never written."""


def sealed(record: bytes) -> bytes:
    """A record with its length and checksum before it."""
    head = _LENGTH.pack(len(record), zlib.crc32(record))
    return head + _CHECKSUM.pack(zlib.crc32(head)) + record


def unsealed(content: bytes) -> bytes:
    """The record of `sealed`.

    Raises:
        CutOffError: The end is missing.
        DamagedError: Anything else differs.
    """
    if len(content) < _HEADER:
        raise CutOffError("its end is missing")
    length, checksum = _LENGTH.unpack_from(content)
    record = content[_HEADER:]
    if _CHECKSUM.pack(zlib.crc32(content[: _LENGTH.size])) != content[_LENGTH.size : _HEADER]:
        raise DamagedError("its checksum differs")
    if len(record) < length:
        raise CutOffError("its end is missing")
    if len(record) > length or zlib.crc32(record) != checksum:
        raise DamagedError("its checksum differs")
    return record


def sealed_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts to be written as JSON, with their checksum."""
    return {**facts, _KEY: zlib.crc32(_canonical(facts))}


def unsealed_facts(content: bytes) -> dict[str, Any]:
    """The facts of `sealed_facts`, from JSON; otherwise a `DamagedError`."""
    try:
        facts = json.loads(content)
        checksum = facts.pop(_KEY)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise DamagedError("it is not the JSON that was written") from error
    if checksum != zlib.crc32(_canonical(facts)):
        raise DamagedError("its checksum differs")
    return facts


def file_checksum(file: Path) -> int:
    """CRC-32 of the CRC-32s of a file's blocks, read in threads, without the interpreter."""
    with file.open("rb") as source, concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:

        def checksum(start: int) -> bytes:
            return _CHECKSUM.pack(zlib.crc32(os.pread(source.fileno(), _BLOCK, start)))

        blocks = range(0, os.fstat(source.fileno()).st_size, _BLOCK)
        return zlib.crc32(b"".join(threads.map(checksum, blocks)))


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()
