"""Windows over events, compared with a loop over all events."""

import numpy as np
import pytest

from jobs.flight_history import NEVER, Codes, Latest, Sums

RNG = np.random.default_rng(0)
KEYS, TIMES = RNG.integers(-1, 5, 400), RNG.integers(0, 60, 400)
VALUES = RNG.integers(-20, 20, 400).astype(float)
ASKED = RNG.integers(-1, 7, 300)  # 5 and 6 have no events
UNTIL = RNG.integers(-5, 70, 300)


@pytest.mark.parametrize("span", [0, 1, 7, 1000])
def test_sums_are_those_of_the_events_in_the_window(span: int) -> None:
    times = np.where(TIMES == 30, NEVER, TIMES)
    sums = Sums.of(KEYS, times, n=1.0, value=VALUES).within(ASKED, UNTIL - span, UNTIL)
    for row, (key, until) in enumerate(zip(ASKED, UNTIL, strict=True)):
        selected = (key == KEYS) & (key >= 0) & (times >= until - span) & (times < until)
        assert sums["n"][row] == selected.sum()
        assert sums["value"][row] == VALUES[selected].sum()
    assert sums["n"].any() == (span > 0)


def test_the_latest_event_is_the_last_before_the_moment() -> None:
    latest = Latest.of(KEYS, TIMES, value=VALUES).within(ASKED, UNTIL - 10, UNTIL)
    for row, (key, until) in enumerate(zip(ASKED, UNTIL, strict=True)):
        selected = np.flatnonzero(
            (key == KEYS) & (key >= 0) & (until - 10 <= TIMES) & (until > TIMES)
        )
        if not len(selected):
            assert np.isnan(latest["time"][row])
            assert np.isnan(latest["value"][row])
            continue
        assert latest["time"][row] == TIMES[selected].max()
        newest = selected[TIMES[selected] == TIMES[selected].max()]
        assert latest["value"][row] == VALUES[newest[-1]]
    assert 0 < np.isnan(latest["time"]).mean() < 1


def test_without_events_sums_are_zero_and_latest_values_missing() -> None:
    empty = np.empty(0, np.int64)
    at = np.array([3, 9])
    assert not Sums.of(empty, empty, n=1.0).within(at, at - 1, at)["n"].any()
    assert np.isnan(Latest.of(empty, empty).within(at, at - 1, at)["time"]).all()


def test_codes_number_distinct_rows_and_mark_unseen_ones() -> None:
    first, second = np.array(["b", "a", "b", "c"]), np.array([1, 1, 2, 1])
    codes = Codes(first, second)
    assert len(codes) == 4
    assert sorted(codes(first, second)) == [0, 1, 2, 3]
    queried = codes(np.array(["b", "a", "zz", "b", ""]), np.array([2, 2, 1, 7, 1]))
    assert queried[0] == codes(first, second)[2]
    assert queried[1:].tolist() == [-1, -1, -1, -1]
    assert Codes(np.empty(0, np.str_))(np.array(["a"])).tolist() == [-1]
