from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import DataError
from raysys.index import IndexSettings
from raysys.index._query_result import check_queries, merge
from raysys.index._rows import (
    NO_ID,
    check_attributes,
    check_ids,
    shard_of,
    split_rows,
    vector_table,
)

SETTINGS = IndexSettings(dim=2)
ONES = np.ones((2, 2), np.float32)


def _table(vectors: pa.Array, ids: object = (1, 2)) -> pa.Table:
    return pa.table({"id": pa.array(ids), "vector": vectors})


def _lists(values: object, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, pa.list_(kind or pa.float32(), 2))


def test_rows_are_a_table_of_int64_ids_and_float32_vectors() -> None:
    table = vector_table([5, 7], [[1, 2], [3, 4]], {"year": [1990, None]})
    assert table.schema.names == ["id", "vector", "year"]
    assert table.schema.field("id").type == pa.int64()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 2)
    assert table.to_pylist()[1] == {"id": 7, "vector": [3.0, 4.0], "year": None}


def test_float32_vectors_are_not_copied() -> None:
    vectors = vector_table([1, 2], ONES)["vector"].chunk(0).flatten().to_numpy()
    assert np.shares_memory(vectors, ONES)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8])
def test_other_numbers_and_layouts_of_vectors_are_converted(dtype: type) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype).T[::2]
    ids, vectors, _ = split_rows(vector_table([1, 2], array), "l2")
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.tolist() == array.tolist()
    assert ids.tolist() == [1, 2]


def test_attributes_come_from_mappings_tables_and_arrays() -> None:
    columns = {"year": pa.chunked_array([[1990], [2000]]), "name": np.array(["a", "b"])}
    expected = [{"year": 1990, "name": "a"}, {"year": 2000, "name": "b"}]
    for attributes in (columns, pa.table(columns), pa.table(columns).to_pandas()):
        assert split_rows(vector_table([1, 2], ONES, attributes), "ip")[2].to_pylist() == expected


@pytest.mark.parametrize(
    ("ids", "vectors", "attributes", "message"),
    [
        (["a", "b"], ONES, None, "ids must be integers"),
        ([1.0, 2.0], ONES, None, "ids must be integers"),
        ([True, False], ONES, None, "ids must be integers"),
        ([[1, 2]], ONES, None, "ids must be integers"),
        ([1, None], ONES, None, "ids must be integers"),
        (
            np.array([1, 2**63], np.uint64),
            ONES,
            None,
            r"below 2\*\*63; given: 9223372036854775808",
        ),
        ([1, 2, 3], ONES, None, "3 ids for 2 vectors"),
        ([1], ONES[0], None, r"vectors\[None, :\]"),
        ([1], [["a", "b"]], None, "matrix of numbers"),
        ([1, 2], [[1, 2], [3]], None, "matrix of numbers"),
        ([1, 2], [[1j, 2], [3, 4]], None, "matrix of numbers"),
        ([1], np.empty((1, 0)), None, "matrix of numbers"),
        ([1, 2], ONES, {"year": [1]}, "'year' has 1 values for 2 ids"),
        ([1, 2], ONES, {"year": [1, "x"]}, "'year' has values of several types"),
        ([1, 2], ONES, {"id": [8, 9]}, "name 'id' is reserved"),
        ([1, 2], ONES, {"vector": [8, 9]}, "name 'vector' is reserved"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    ids: object, vectors: object, attributes: dict[str, object] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        vector_table(ids, vectors, attributes)


def test_an_empty_table_is_valid() -> None:
    ids, vectors, attributes = split_rows(
        vector_table([], np.empty((0, 2)), {"year": []}), "cosine"
    )
    assert (ids.shape, vectors.shape, len(attributes)) == ((0,), (0, 2), 0)
    without_chunks = vector_table([1], [[1, 2]]).schema.empty_table()
    assert split_rows(without_chunks, "l2")[1].shape == (0, 2)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int32(), pa.uint64()])
def test_vectors_of_other_numbers_in_a_table_are_converted(kind: pa.DataType) -> None:
    values = np.array([1, 2, 3, 4]).astype(kind.to_pandas_dtype())
    column = pa.FixedSizeListArray.from_arrays(pa.array(values, kind), 2)
    _, vectors, _ = split_rows(_table(column), "l2")
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 2], [3, 4]]


def test_slices_and_chunks_of_a_table_are_split_like_copies() -> None:
    table = vector_table(range(10), np.arange(20).reshape(10, 2), {"year": range(10)})
    cut = pa.concat_tables([table.slice(7), table.slice(2, 3)])
    ids, vectors, attributes = split_rows(cut, "l2")
    assert ids.tolist() == [7, 8, 9, 2, 3, 4]
    assert vectors.tolist() == [[2.0 * number, 2.0 * number + 1] for number in ids]
    assert attributes["year"].to_pylist() == ids.tolist()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"vector": _lists([[1, 2]])}), "columns `id`"),
        (pa.table({"id": [1]}), "columns `id`"),
        (_table(_lists([[1, 2]] * 2), ["a", "b"]), "id string"),
        (_table(_lists([[1, 2]] * 2), [1.0, 2.0]), "id double"),
        (_table(_lists([[1, 2]] * 2), [1, None]), "missing"),
        (_table(_lists([[1, 2], None])), "missing"),
        (_table(_lists([[1, 2], [None, 3]])), "missing values"),
        (_table(_lists([["a", "b"]] * 2, pa.string())), "same length"),
        (_table(pa.array([[1.0, 2.0], [3.0]])), "same length"),
        (_table(pa.array([1.0, 2.0])), "same length"),
        (_table(_lists([[1, 2]] * 2), pa.array([1, 2**63], pa.uint64())), "int64"),
        (_table(_lists([[1, 2]] * 2), [3, 3]), r"duplicate ids: 1, such as \[3\]"),
        (_table(_lists([[1, 2]] * 2), [3, NO_ID]), "id -1"),
        (_table(_lists([[1, 2], [3, 1]])).append_column("a`b", [[1, 2]]), r"attributes \['a`b'\]"),
        (_table(_lists([[1, 2], [np.nan, 1]])), r"NaN and infinity: 1, .* id \[2\]"),
        (_table(_lists([[1, 2], [np.inf, 1]])), r"id \[2\]"),
        (_table(_lists([[1, 1e39], [1, 2]], pa.float64())), r"id \[1\]"),
        (pa.table([[1], _lists([[1, 2]]), [3]], names=["id", "vector", "id"]), "duplicate column"),
        (pa.table([[1], [2], [3], [4]], names=["id", "vector", "a", "a"]), "duplicate column"),
    ],
)
def test_invalid_rows_are_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_rows(table, "l2")


def test_a_vector_of_zeros_is_refused_only_under_cosine() -> None:
    table = vector_table([4, 9], [[0, 0], [1, 1]])
    with pytest.raises(DataError, match=r"no direction.*id \[4\]"):
        split_rows(table, "cosine")
    assert split_rows(table, "l2")[1][0].tolist() == [0, 0]
    assert split_rows(table, "ip")[1][0].tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1, 1e-44, 1e-30, 1e-22, 1e20, 3e38])
def test_vectors_of_any_length_are_normalized_under_cosine(scale: float) -> None:
    array = (np.array([[3, 4], [-1, 0]]) / 4 * scale).astype(np.float32)
    unit = split_rows(vector_table([1, 2], array), "cosine")[1]
    exact = array.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, exact, rtol=1e-6)


def test_normalization_is_idempotent() -> None:
    array = np.random.default_rng(0).normal(size=(1000, 16))
    once = split_rows(vector_table(range(1000), array), "cosine")[1]
    again = split_rows(vector_table(range(1000), once), "cosine")[1]
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_vectors_whose_distances_overflow_are_refused_but_under_cosine(metric: Any) -> None:
    settings = SETTINGS.model_copy(update={"metric": metric})
    far = np.array([[1, 0], [0, 9.2e18]], np.float32)  # its distance from its opposite is finite
    assert np.isfinite(np.float32(2) * far[1, 1] * (np.float32(2) * far[1, 1]))
    assert check_queries(far, settings) is far
    assert len(split_rows(vector_table([1, 2], far), metric)[0]) == 2
    for value in (1e19, 1e20, 3e38):
        farther = np.array([[1, 0], [0, value]], np.float32)
        if metric == "cosine":
            assert split_rows(vector_table([1, 2], farther), metric)[1].tolist() == [[1, 0], [0, 1]]
            assert check_queries(farther, settings) is farther
            continue
        with pytest.raises(DataError, match=r"infinite distances in float32: 1, such as id \[2\]"):
            split_rows(vector_table([1, 2], farther), metric)
        with pytest.raises(DataError, match=r"such as query \[1\]. Scale all vectors"):
            check_queries(farther, settings)


def test_a_query_of_zeros_is_refused_only_under_cosine() -> None:
    queries = np.array([[1, 0], [0, 0]], np.float32)
    for metric in ("l2", "ip"):
        settings = SETTINGS.model_copy(update={"metric": metric})
        assert check_queries(queries, settings) is queries
    with pytest.raises(DataError, match=r"no direction.*query \[1\]"):
        check_queries(queries, SETTINGS.model_copy(update={"metric": "cosine"}))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 4)), "vectors of dimension 2; given: 4"),
        (np.ones(2), r"vectors\[None, :\]"),
        ([["a", "b"]], "matrix of numbers"),
        ([[1.0, np.nan]], r"query \[0\]"),
        ([[1.0, 1.0], [1.0, -np.inf]], r"query \[1\]"),
        (np.array([[1e39, 0]]), "infinity"),
        ([], "matrix"),
        (None, "matrix"),
    ],
)
def test_invalid_queries_are_refused(vectors: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_queries(vectors, SETTINGS)


def test_queries_are_float32_and_contiguous() -> None:
    array = np.arange(8, dtype=np.float64).reshape(2, 4).T
    queries = check_queries(array, SETTINGS)
    assert queries.dtype == np.float32
    assert queries.flags.c_contiguous
    assert queries.tolist() == array.tolist()
    assert check_queries(np.empty((0, 2)), SETTINGS).shape == (0, 2)


def test_duplicate_and_reserved_ids_are_refused() -> None:
    check_ids(np.array([], np.int64))
    check_ids(np.array([-2, 0, 2**63 - 1, -(2**63)]))
    with pytest.raises(DataError, match=r"duplicate ids: 2, such as \[1, 3\]"):
        check_ids(np.array([3, 1, 2, 1, 3]))
    with pytest.raises(DataError, match="id -1 marks"):
        check_ids(np.array([0, -1]))


def test_attributes_are_cast_to_the_schema_of_the_index() -> None:
    schema = pa.schema({"year": pa.int16(), "name": pa.string()})
    table = pa.table({"name": pa.array(["a", None]), "year": pa.array([1990, None], pa.int64())})
    attributes = check_attributes(table, schema)
    assert attributes.schema == schema
    assert attributes.to_pylist() == [{"year": 1990, "name": "a"}, {"year": None, "name": None}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"year": [1]}, r"missing: \['name'\], unknown: \[\]"),
        ({"year": [1], "name": ["a"], "x": [1]}, r"missing: \[\], unknown: \['x'\]"),
        ({"year": [70_000], "name": ["a"]}, "do not fit year int16"),
        ({"year": ["old"], "name": ["a"]}, "do not fit year int16"),
        ({"year": [[1]], "name": ["a"]}, "do not fit year int16"),
        ({"year": [None], "name": ["a"]}, "do not fit year int16"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(columns: dict[str, object], message: str) -> None:
    schema = pa.schema([pa.field("year", pa.int16(), nullable=False), ("name", pa.string())])
    with pytest.raises(DataError, match=message):
        check_attributes(pa.table(columns), schema)


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(10_000),
        np.arange(10_000) * 4096,
        -np.arange(10_000),
        np.arange(10_000) << 48,
        np.random.default_rng(0).integers(-(2**63), 2**63, 10_000),
    ],
)
@pytest.mark.parametrize("shards", [2, 3, 7, 16])
def test_shards_are_balanced_for_any_pattern_of_ids(ids: np.ndarray, shards: int) -> None:
    numbers = shard_of(ids, shards)
    assert numbers.dtype == np.int64
    counts = np.bincount(numbers, minlength=shards)
    assert len(counts) == shards
    # Five standard deviations of a fair draw.
    fair = len(ids) / shards
    assert (np.abs(counts - fair) < 5 * np.sqrt(fair)).all()


def test_the_shard_of_a_row_never_changes() -> None:
    # Snapshots and logs in use depend on these very numbers.
    ids = np.array([0, 1, -2, 2**62, 12345])
    before = ids.copy()
    assert shard_of(ids, 1000).tolist() == [0, 789, 746, 525, 873]
    assert shard_of(ids, 1).tolist() == [0] * 5
    assert ids.tolist() == before.tolist()
    assert shard_of(np.array([], np.int64), 4).tolist() == []


def test_results_are_merged_nearest_first_with_padding_last() -> None:
    far = np.inf
    left = np.array([[4, 8, -1]]), np.array([[0.1, 0.5, far]], np.float32)
    right = np.array([[5, -1, -1]]), np.array([[0.3, far, far]], np.float32)
    ids, distances = merge([left, right], 3)
    assert ids.tolist() == [[4, 5, 8]]
    np.testing.assert_allclose(distances, [[0.1, 0.3, 0.5]])
    assert distances.dtype == np.float32
    ids, distances = merge([right, right], 3)
    assert ids.tolist() == [[5, 5, -1]]
    assert distances[0, 2] == far
    assert merge([left], 3) is left
