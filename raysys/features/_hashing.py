"""Hashes of categories and words: part of the format of a stored featurizer, never to change.

CRC-32 (ISO 3309) of the UTF-8 bytes, spread over 64 bits by the finaliser of SplitMix64 (Steele,
Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 15). One text costs
less than a microsecond, which a hash in NumPy does not reach.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MISSING = 0x9AE16A3B2F90404F
_WORDS = re.compile(r"\w+").findall


def hash_of(value: str | None) -> int:
    """The hash of one text, below 2**64; a missing one has its own."""
    if value is None:
        return MISSING
    mixed = zlib.crc32(value.encode("utf-8", "surrogatepass")) + _GOLDEN
    mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
    return mixed ^ (mixed >> 31)


def hashes_of(values: Sequence[str]) -> np.ndarray:
    """`hash_of` of texts, and of a missing one at the end, uint64 `(n + 1,)`."""
    sums = [zlib.crc32(value.encode("utf-8", "surrogatepass")) for value in values]
    mixed = np.array([*sums, 0], np.uint64) + np.uint64(_GOLDEN)
    mixed = _finished(mixed)
    mixed[-1] = MISSING
    return mixed


def joined(first: int, second: int) -> int:
    """The hash of a pair, of its hashes; the order counts."""
    mixed = (first * 3 + second + _GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
    return mixed ^ (mixed >> 31)


def joined_arrays(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`joined` of uint64 arrays."""
    return _finished(first * np.uint64(3) + second + np.uint64(_GOLDEN))


def _finished(mixed: np.ndarray) -> np.ndarray:
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORDS(text.lower())


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the words of texts, one text after the other.

    Returns:
        uint64 hashes of all words, and how many words each text has, int64 `(n,)`.
    """
    # Arrow splits ASCII just as Python does, and much faster; of other letters it has other
    # tables, so that those texts are left to Python.
    plain = np.array([text.isascii() for text in texts], bool)
    column = pa.array([text for text in texts if text.isascii()], pa.large_string())
    parts = pc.split_pattern_regex(pc.ascii_lower(column), "[^0-9a-z_]+")
    found = parts.flatten()
    whole = pc.not_equal(found, "").to_numpy(zero_copy_only=False)
    text = np.flatnonzero(plain)[pc.list_parent_indices(parts).to_numpy()[whole]]
    encoded = found.filter(whole).dictionary_encode()
    hashes = hashes_of(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    if not plain.all():
        others = [(place, words(texts[place])) for place in np.flatnonzero(~plain).tolist()]
        more = hashes_of([word for _, made in others for word in made])[:-1]
        text = np.concatenate([text, [place for place, made in others for _ in made]])
        order = np.argsort(text, kind="stable")
        hashes, text = np.concatenate([hashes, more])[order], text[order]
    return hashes, np.bincount(text.astype(np.int64), minlength=len(texts))
