import datetime

import numpy as np
import pyarrow as pa
import pytest

from raysys.index._change_record import ChangeBatch, decode, encode, tokens
from raysys.index._rows import shard_of
from tests.index._exact import SCHEMA, batch_of, exact_settings

SETTINGS = exact_settings(dim=3)


def _assert_equal(left: ChangeBatch, right: ChangeBatch) -> None:
    for batch in (left, right):
        assert (batch.ids.dtype, batch.deleted.dtype) == (np.int64, np.int64)
        assert batch.vectors.dtype == np.float32
    assert left.ids.tolist() == right.ids.tolist()
    assert left.deleted.tolist() == right.deleted.tolist()
    np.testing.assert_array_equal(left.vectors, right.vectors, strict=True)
    assert left.attributes.schema == right.attributes.schema
    assert left.attributes.to_pylist() == right.attributes.to_pylist()


@pytest.mark.parametrize(
    ("ids", "deleted"), [(range(5), [9, 7]), (range(5), []), ([], [3, 1, 2]), ([], []), ([4], [])]
)
def test_a_batch_survives_encoding(ids: list[int], deleted: list[int]) -> None:
    batch = batch_of(SETTINGS, ids, deleted)
    record = encode(batch, "abc")
    assert tokens(record) == ["abc"]
    _assert_equal(decode(record), batch)


def test_attributes_of_any_type_survive_encoding() -> None:
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
        batch = ChangeBatch(np.arange(3), vectors, pa.table(columns), np.array(deleted, np.int64))
        _assert_equal(decode(encode(batch, "")), batch)
    both = decode(encode(batch, "a") + encode(batch, "b"))
    assert both.attributes.to_pylist() == batch.attributes.to_pylist()


def test_a_batch_without_attributes_survives_encoding() -> None:
    none = pa.schema([]).empty_table()
    batch = ChangeBatch(np.arange(3), np.ones((3, 3), np.float32), none, np.array([7]))
    decoded = decode(encode(batch, "a") + encode(batch, "b"))
    assert (decoded.ids.tolist(), decoded.deleted.tolist()) == ([0, 1, 2], [7])
    assert decoded.of_shard(0, 1).vectors.shape == (3, 3)


def test_the_last_of_several_batches_wins() -> None:
    batches = [
        batch_of(SETTINGS, [1, 2, 3, 4], [8, 9], seed=1),
        batch_of(SETTINGS, [9, 3], [1], seed=2),
        batch_of(SETTINGS, [], [], seed=3),
        batch_of(SETTINGS, [4, 5], [9, 6], seed=4),
    ]
    record = b"".join(encode(batch, f"t{number}") for number, batch in enumerate(batches))
    assert tokens(record) == ["t0", "t1", "t2", "t3"]
    decoded = decode(record)
    assert sorted(decoded.ids.tolist()) == [2, 3, 4, 5]
    assert sorted(decoded.deleted.tolist()) == [1, 6, 8, 9]
    for number, origin in ((2, 0), (3, 1), (4, 3), (5, 3)):
        source, place = (batch.ids.tolist().index(number) for batch in (batches[origin], decoded))
        np.testing.assert_array_equal(decoded.vectors[place], batches[origin].vectors[source])
        expected = batches[origin].attributes.slice(source, 1).to_pylist()
        assert decoded.attributes.slice(place, 1).to_pylist() == expected


def test_batches_of_deletes_are_joined() -> None:
    record = encode(batch_of(SETTINGS, [], [1, 2]), "a") + encode(batch_of(SETTINGS, [], [2]), "b")
    decoded = decode(record)
    assert (decoded.ids.tolist(), sorted(decoded.deleted.tolist())) == ([], [1, 2])
    assert decoded.vectors.shape == (0, 3)
    assert decoded.attributes.schema == SCHEMA


def test_an_upsert_after_a_delete_wins() -> None:
    record = encode(batch_of(SETTINGS, [], [1]), "a") + encode(batch_of(SETTINGS, [1]), "b")
    decoded = decode(record)
    assert (decoded.ids.tolist(), decoded.deleted.tolist()) == ([1], [])


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_each_change_belongs_to_one_shard(shards: int) -> None:
    batch = batch_of(SETTINGS, range(0, 50, 3), range(1, 50, 3))
    parts = [batch.of_shard(shard, shards) for shard in range(shards)]
    assert sum(len(part.ids) + len(part.deleted) for part in parts) == 17 + 17
    for shard, part in enumerate(parts):
        assert (shard_of(part.ids, shards) == shard).all()
        assert (shard_of(part.deleted, shards) == shard).all()
        for number, vector, row in zip(
            part.ids.tolist(), part.vectors, part.attributes.to_pylist(), strict=True
        ):
            np.testing.assert_array_equal(vector, batch.vectors[number // 3])
            assert row == batch.attributes.slice(number // 3, 1).to_pylist()[0]
