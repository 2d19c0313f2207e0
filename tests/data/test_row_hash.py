"""Hashes of rows: equal for equal values however they are stored, and different otherwise."""

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data import block_digest, hash_rows, hash_text
from raysys.data._row_hash import content_digest, content_of
from raysys.errors import DataError

_PAIR = pa.struct([("a", pa.int64()), ("b", pa.large_string())])
_COLUMNS = {
    "whole": pa.array([3, None, -1, 0, 2**62]),
    "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "real": pa.array([0.5, None, float("nan"), 0.0]),
    "truth": pa.array([True, None, False]),
    "text": pa.array(["a", None, "", "ab", "ba"]),
    "view": pa.array(["a", None, "b" * 20], pa.string_view()),
    "bytes": pa.array([b"", None, b"\0", b"\0\0"]),
    "fixed bytes": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "day": pa.array([dt.date(2020, 1, 1), None, dt.date(1969, 1, 1)]),
    "nanoseconds": pa.array([1, None, 1000, -1, -1000], pa.timestamp("ns")),
    "time": pa.array([dt.time(1), None, dt.time(2)]),
    "decimal": pa.array([Decimal("1.50"), None, Decimal("1.25")]),
    "codes": pa.array(["a", None, "b", "a"]).dictionary_encode(),
    "null in a dictionary": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, None]), pa.array(["a", None, "b"])
    ),
    "lists": pa.array([["a", "b"], None, ["ab"], [], [None], [""], ["b", "a"]]),
    "large lists": pa.array([[0, 0], [1, 1], [1, 0], [0], None, []], pa.large_list(pa.int64())),
    "fixed lists": pa.array([[1, 2], None, [3, 4], [None, 1], [2, 1]], pa.list_(pa.int64(), 2)),
    "nested": pa.array([[[1], [2]], [[1, 2]], [[], [1, 2]], None, []]),
    "structs": pa.array([{"a": 1}, None, {"b": "x"}, {"a": 1, "b": "x"}, {}], _PAIR),
    "map": pa.array([[("a", 1)], None, [], [("b", 1)]], pa.map_(pa.string(), pa.int64())),
    "null": pa.nulls(3),
}


def _hashes(array: Any) -> list[int]:
    return [int(value) for value in hash_rows(pa.table({"a": array}))]


@pytest.mark.parametrize("kind", list(_COLUMNS))
def test_a_slice_has_the_hashes_of_its_rows(kind: str) -> None:
    array = _COLUMNS[kind]
    whole, rows = _hashes(array), len(array)
    assert len(set(whole)) == len({repr(value) for value in array.to_pylist()})
    for start in range(rows):
        for count in range(rows - start + 1):
            assert _hashes(array.slice(start, count)) == whole[start : start + count]
    assert _hashes(pa.chunked_array([array.slice(0, 2), array.slice(2)])) == whole


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, None, 5], pa.int8()), pa.array([1, None, 5], pa.uint64())),
        (pa.array([0.5, None, -0.0], pa.float32()), pa.array([0.5, None, 0.0])),
        (_COLUMNS["text"], _COLUMNS["text"].cast(pa.large_string())),
        (_COLUMNS["text"], _COLUMNS["text"].dictionary_encode()),
        (_COLUMNS["fixed lists"], _COLUMNS["fixed lists"].cast(pa.large_list(pa.int64()))),
        (_COLUMNS["day"], _COLUMNS["day"].cast(pa.date64())),
        (pa.array([-7, None], pa.timestamp("s")), pa.array([-7 * 10**9, None], pa.timestamp("ns"))),
        (pa.array([7, None], pa.duration("ms")), pa.array([7000, None], pa.duration("us"))),
    ],
    ids=["integers", "reals", "text", "codes", "lists", "days", "times", "durations"],
)
def test_equal_values_of_other_types_have_equal_hashes(one: pa.Array, other: pa.Array) -> None:
    assert one.type != other.type
    assert _hashes(one) == _hashes(other)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(10**6),
        (np.arange(10**6) - 500_000) * 2**40,
        np.arange(10**6) / 7,
        [f"user-{n}" for n in range(10**6)],
    ],
    ids=["integers", "multiples", "reals", "text"],
)
def test_a_million_values_do_not_collide(values: Any) -> None:
    assert len(np.unique(hash_rows(pa.table({"a": values})))) == 10**6


def test_pairs_do_not_collide() -> None:
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(500), np.arange(500)))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([a, b], 1).ravel()), 2)
    for table in (pa.table({"a": a, "b": b}), pa.table({"ab": lists})):
        assert len(np.unique(hash_rows(table))) == 250_000


def test_a_seed_gives_other_hashes() -> None:
    table = pa.table({"a": np.arange(1000)})
    assert not set(hash_rows(table, seed=1)) & set(hash_rows(table, seed=2))


@given(st.binary(max_size=40), st.integers(0, 5))
def test_the_hash_of_a_text_equals_that_of_a_column(value: bytes, seed: int) -> None:
    column = pa.table({"a": pa.array([b"x", value])})
    one = int(hash_rows(column.slice(1), seed=seed)[0])
    assert one == int(hash_rows(pa.table({"a": pa.array([value])}), seed=seed)[0])
    # A column adds the number of columns, and its own mixing.
    from raysys.data._row_hash import mix

    inner = np.array([hash_text(value, seed)], np.uint64)
    assert one == int(mix(np.array([1], np.uint64) ^ inner, seed)[0])


def test_texts_may_be_longer_than_a_chunk() -> None:
    long = "x" * (3 << 20)
    hashes = _hashes(pa.array(["a", long, "b", long + "y", long]))
    assert [hashes[0], hashes[2]] == _hashes(pa.array(["a", "b"]))
    assert hashes[1] == hashes[4] != hashes[3]


def test_a_type_that_cannot_be_hashed_is_named() -> None:
    with pytest.raises(DataError, match="month_day_nano_interval cannot be hashed"):
        _hashes(pa.array([(1, 2, 3)], pa.month_day_nano_interval()))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.text(max_size=3)), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_the_digest_of_rows_does_not_depend_on_cuts(rows: list[Any], cuts: list[int]) -> None:
    columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    table = pa.table(columns, pa.schema([("a", pa.int64()), ("b", pa.string())]))
    places = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(places)]
    assert content_digest([content_of(piece) for piece in pieces]) == block_digest(table)
    if rows:
        changed = [*rows[:-1], (rows[-1][0] + 1, rows[-1][1])]
        altered = pa.table({"a": [a for a, _ in changed], "b": [b for _, b in changed]})
        assert block_digest(altered) != block_digest(table)
    if rows != rows[::-1]:
        assert block_digest(table.take(list(range(len(rows)))[::-1])) != block_digest(table)


def test_a_table_without_rows_has_the_digest_of_no_rows() -> None:
    table = pa.table({"a": [1, 2], "s": ["x", "y"], "d": pa.array(["p", "q"]).dictionary_encode()})
    nothing = table.filter(pc.greater(table["a"], 5))
    assert nothing["a"].num_chunks == 0
    assert len(hash_rows(nothing)) == 0
    assert block_digest(nothing) == block_digest(table.slice(0, 0))
