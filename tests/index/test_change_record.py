import datetime

import numpy as np
import pyarrow as pa
import pytest

from raysys.index._change_record import Batch, decode, encode, tokens
from raysys.index._types import shard_of
from tests.index._exact import SCHEMA, batch_of, exact_settings

SETTINGS = exact_settings(dim=3)


def _assert_equal(left: Batch, right: Batch) -> None:
    for one in (left, right):
        assert (one.ids.dtype, one.deleted.dtype) == (np.int64, np.int64)
        assert one.vectors.dtype == np.float32
    assert left.ids.tolist() == right.ids.tolist()
    assert left.deleted.tolist() == right.deleted.tolist()
    np.testing.assert_array_equal(left.vectors, right.vectors, strict=True)
    assert left.attributes.schema == right.attributes.schema
    assert left.attributes.to_pylist() == right.attributes.to_pylist()


@pytest.mark.parametrize(
    ("ids", "deleted"), [(range(5), [9, 7]), (range(5), []), ([], [3, 1, 2]), ([], []), ([4], [])]
)
def test_a_batch_comes_back_as_it_was(ids: list[int], deleted: list[int]) -> None:
    batch = batch_of(SETTINGS, ids, deleted)
    record = encode(batch, "abc")
    assert tokens(record) == ["abc"]
    _assert_equal(decode(record), batch)


def test_attributes_of_any_type_come_back() -> None:
    day = datetime.datetime(2020, 5, 1, 12, tzinfo=datetime.UTC)
    columns = {
        "text": pa.array(["é", None, ""]),
        "list": pa.array([["a", None], None, []]),
        "at": pa.array([day, None, day], pa.timestamp("us", "UTC")),
        "flag": pa.array([True, None, False]),
        "none": pa.array([None] * 3, pa.int8()),
        "nested": pa.array([{"x": 1}, None, {"x": None}]),
        "raw": pa.array([b"\0", None, b""]),
        "cents": pa.array([1, None, 3]).cast(pa.decimal128(30, 2)),
        "kind": pa.array(["x", None, "y"]).dictionary_encode(),
        "part": pa.chunked_array([pa.array([1, 2]), pa.array([None], pa.int64())]),
        "ids": pa.array([7, 8, 9]),
    }
    vectors = np.ones((3, 3), np.float32)
    for deleted in ([], [5]):
        batch = Batch(np.arange(3), vectors, pa.table(columns), np.array(deleted, np.int64))
        _assert_equal(decode(encode(batch, "")), batch)
    both = decode(encode(batch, "a") + encode(batch, "b"))
    assert both.attributes.to_pylist() == batch.attributes.to_pylist()


def test_an_index_without_attributes_has_batches_too() -> None:
    none = pa.schema([]).empty_table()
    batch = Batch(np.arange(3), np.ones((3, 3), np.float32), none, np.array([7]))
    made = decode(encode(batch, "a") + encode(batch, "b"))
    assert (made.ids.tolist(), made.deleted.tolist()) == ([0, 1, 2], [7])
    assert made.of_shard(0, 1).vectors.shape == (3, 3)


def test_of_several_batches_the_last_wins() -> None:
    batches = [
        batch_of(SETTINGS, [1, 2, 3, 4], [8, 9], seed=1),
        batch_of(SETTINGS, [9, 3], [1], seed=2),
        batch_of(SETTINGS, [], [], seed=3),
        batch_of(SETTINGS, [4, 5], [9, 6], seed=4),
    ]
    record = b"".join(encode(one, f"t{place}") for place, one in enumerate(batches))
    assert tokens(record) == ["t0", "t1", "t2", "t3"]
    made = decode(record)
    assert sorted(made.ids.tolist()) == [2, 3, 4, 5]
    assert sorted(made.deleted.tolist()) == [1, 6, 8, 9]
    for number, origin in ((2, 0), (3, 1), (4, 3), (5, 3)):
        there, here = (one.ids.tolist().index(number) for one in (batches[origin], made))
        np.testing.assert_array_equal(made.vectors[here], batches[origin].vectors[there])
        expected = batches[origin].attributes.slice(there, 1).to_pylist()
        assert made.attributes.slice(here, 1).to_pylist() == expected


def test_deletes_alone_join_with_deletes() -> None:
    record = encode(batch_of(SETTINGS, [], [1, 2]), "a") + encode(batch_of(SETTINGS, [], [2]), "b")
    made = decode(record)
    assert (made.ids.tolist(), sorted(made.deleted.tolist())) == ([], [1, 2])
    assert made.vectors.shape == (0, 3)
    assert made.attributes.schema == SCHEMA


def test_a_row_of_a_later_batch_is_not_lost_to_an_earlier_delete() -> None:
    record = encode(batch_of(SETTINGS, [], [1]), "a") + encode(batch_of(SETTINGS, [1]), "b")
    made = decode(record)
    assert (made.ids.tolist(), made.deleted.tolist()) == ([1], [])


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_each_change_concerns_one_shard(shards: int) -> None:
    batch = batch_of(SETTINGS, range(0, 50, 3), range(1, 50, 3))
    parts = [batch.of_shard(one, shards) for one in range(shards)]
    assert sum(len(part.ids) + len(part.deleted) for part in parts) == 17 + 17
    for shard, part in enumerate(parts):
        assert (shard_of(part.ids, shards) == shard).all()
        assert (shard_of(part.deleted, shards) == shard).all()
        for number, vector, row in zip(
            part.ids.tolist(), part.vectors, part.attributes.to_pylist(), strict=True
        ):
            np.testing.assert_array_equal(vector, batch.vectors[number // 3])
            assert row == batch.attributes.slice(number // 3, 1).to_pylist()[0]
