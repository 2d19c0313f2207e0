import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features._hashing import MISSING, hash_of, joined, joined_arrays, words

_BITS = st.integers(0, 2**64 - 1)


def test_hashes_are_those_of_format_1() -> None:
    # Stored featurizers and the models behind them rest on these: they may never change.
    assert hash_of("") == 0xE220A8397B1DCDAF  # SplitMix64's first output for the seed 0
    assert [hash_of(text) % 2**20 for text in ("N14228", "été", "日本")] == [390074, 716815, 243405]
    assert joined(hash_of("JFK"), hash_of("LAX")) % 2**20 == 568836
    assert hash_of(None) == MISSING


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(_BITS, _BITS), min_size=1, max_size=5))
def test_pairs_hash_alike_one_by_one_and_in_arrays(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, np.uint64).T
    assert joined_arrays(first, second).tolist() == [joined(*pair) for pair in pairs]


def test_buckets_are_evenly_used() -> None:
    counts = np.bincount([hash_of(f"N{number}") % 64 for number in range(64_000)], minlength=64)
    assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 6 * (2 * 63) ** 0.5  # chi squared


def test_words_are_runs_of_letters_and_digits_in_lower_case() -> None:
    assert words("The 2nd ÉTÉ, re-run!") == ["the", "2nd", "été", "re", "run"]
