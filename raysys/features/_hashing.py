"""Hashes of categories and words: part of the format of a stored featurizer, never to change.

CRC-32 (ISO 3309) of the UTF-8 bytes, spread over 64 bits by the finaliser of SplitMix64 (Steele,
Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 15). One text costs
less than a microsecond, which a hash in NumPy does not reach.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

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


def joined(first: int, second: int) -> int:
    """The hash of a pair, of its hashes; the order counts."""
    mixed = (first * 3 + second + _GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
    return mixed ^ (mixed >> 31)


def joined_arrays(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`joined` of uint64 arrays."""
    mixed = first * np.uint64(3) + second + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORDS(text.lower())
