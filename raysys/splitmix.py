"""SplitMix64, the mixing function of every hash and pseudo-random number of the package.

Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 15. Stored
files depend on its values: they never change.
"""

from __future__ import annotations

import numpy as np

GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # the odd integer nearest to 2**64 divided by the golden ratio
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


def splitmix64(states: np.ndarray, increment: int = GOLDEN_GAMMA) -> np.ndarray:
    """Outputs for generator states: a bijection that scatters integers over all of uint64.

    Args:
        states: uint64 of any shape.
        increment: Added to the states first, below 2**64; another one scatters differently.
    """
    mixed = states + np.uint64(increment)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))


def splitmix64_int(state: int, increment: int = GOLDEN_GAMMA) -> int:
    """`splitmix64` of a Python integer, without the cost of an array."""
    mixed = (state + increment) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
    return mixed ^ (mixed >> 31)
