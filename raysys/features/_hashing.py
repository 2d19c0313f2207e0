"""Hashes of categories and words, part of the format of a stored featurizer: they never change.

CRC-32 (ISO 3309) of the UTF-8 bytes, spread over 64 bits by `splitmix64`. One text costs less than
a microsecond, which a hash in NumPy does not reach.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.splitmix import splitmix64, splitmix64_int

if TYPE_CHECKING:
    from collections.abc import Sequence

MISSING = 0x9AE16A3B2F90404F
_WORDS = re.compile(r"\w+").findall


def hash_of(value: str | None) -> int:
    """Hash of one text, below 2**64; None has a hash of its own."""
    if value is None:
        return MISSING
    return splitmix64_int(zlib.crc32(value.encode("utf-8", "surrogatepass")))


def hashes_of(values: Sequence[str]) -> np.ndarray:
    """`hash_of` of texts, then of None, uint64 `(n + 1,)`."""
    sums = [zlib.crc32(value.encode("utf-8", "surrogatepass")) for value in values]
    return np.append(splitmix64(np.array(sums, np.uint64)), np.uint64(MISSING))


def pair_hash(first: int, second: int) -> int:
    """Hash of an ordered pair of hashes."""
    return splitmix64_int(first * 3 + second)


def pair_hashes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`pair_hash` of uint64 arrays."""
    return splitmix64(first * np.uint64(3) + second)


def words(text: str) -> list[str]:
    """Words of a text, in lower case."""
    return _WORDS(text.lower())


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint64 hashes of the words of texts in their order; number of words of each, int64 `(n,)`."""
    # Arrow splits ASCII just as Python does, and much faster; its tables of non-ASCII letters
    # differ, so texts with any are left to Python.
    ascii_only = np.array([text.isascii() for text in texts], bool)
    column = pa.array([text for text in texts if text.isascii()], pa.large_string())
    parts = pc.split_pattern_regex(pc.ascii_lower(column), "[^0-9a-z_]+")
    pieces = parts.flatten()
    nonempty = pc.not_equal(pieces, "").to_numpy(zero_copy_only=False)
    text = np.flatnonzero(ascii_only)[pc.list_parent_indices(parts).to_numpy()[nonempty]]
    encoded = pieces.filter(nonempty).dictionary_encode()
    hashes = hashes_of(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    if not ascii_only.all():
        pairs = [
            (n, word) for n in np.flatnonzero(~ascii_only).tolist() for word in words(texts[n])
        ]
        text = np.concatenate([text, [n for n, _ in pairs]])
        order = np.argsort(text, kind="stable")
        more = hashes_of([word for _, word in pairs])[:-1]
        hashes, text = np.concatenate([hashes, more])[order], text[order]
    return hashes, np.bincount(text.astype(np.int64), minlength=len(texts))
