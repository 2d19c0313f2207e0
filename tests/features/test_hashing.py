import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features._hashing import MISSING, hash_of, pair_hash, pair_hashes, words

_BITS = st.integers(0, 2**64 - 1)


def test_hashes_never_change() -> None:
    # Stored featurizers and their models depend on these values.
    assert hash_of("") == 0xE220A8397B1DCDAF  # SplitMix64's first output for the seed 0
    assert [hash_of(text) % 2**20 for text in ("N14228", "été", "日本")] == [390074, 716815, 243405]
    assert pair_hash(hash_of("JFK"), hash_of("LAX")) % 2**20 == 568836
    assert hash_of(None) == MISSING


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(_BITS, _BITS), min_size=1, max_size=5))
def test_a_pair_hashes_as_arrays_of_pairs_do(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, np.uint64).T
    assert pair_hashes(first, second).tolist() == [pair_hash(*pair) for pair in pairs]


def test_buckets_are_evenly_used() -> None:
    counts = np.bincount([hash_of(f"N{number}") % 64 for number in range(64_000)], minlength=64)
    assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 6 * (2 * 63) ** 0.5  # chi squared


def test_words_are_runs_of_letters_and_digits_in_lower_case() -> None:
    assert words("The 2nd ÉTÉ, re-run!") == ["the", "2nd", "été", "re", "run"]
