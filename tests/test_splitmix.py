import numpy as np
import pytest

from raysys.splitmix import splitmix64, splitmix64_int


def test_first_outputs_are_those_of_the_reference_implementation() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert splitmix64(states).tolist() == expected


@pytest.mark.parametrize("increment", [0, 1, 2**64 - 1])
def test_integers_and_arrays_have_equal_outputs(increment: int) -> None:
    states = [0, 1, 2**63, 2**64 - 1]
    arrays = splitmix64(np.array(states, np.uint64), increment).tolist()
    assert arrays == [splitmix64_int(state, increment) for state in states]
