import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import DataError
from raysys.index._types import (
    NO_ID,
    Settings,
    check_attributes,
    check_ids,
    check_queries,
    merge,
    rows,
    shard_of,
    split_rows,
)

SETTINGS = Settings(dim=2)
ONES = np.ones((2, 2), np.float32)


def _table(vectors: pa.Array, ids: object = (1, 2)) -> pa.Table:
    return pa.table({"id": pa.array(ids), "vector": vectors})


def _lists(values: object, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, pa.list_(kind or pa.float32(), 2))


def test_rows_are_a_table_of_int64_ids_and_float32_vectors() -> None:
    made = rows([5, 7], [[1, 2], [3, 4]], {"year": [1990, None]})
    assert made.schema.names == ["id", "vector", "year"]
    assert made.schema.field("id").type == pa.int64()
    assert made.schema.field("vector").type == pa.list_(pa.float32(), 2)
    assert made.to_pylist()[1] == {"id": 7, "vector": [3.0, 4.0], "year": None}


def test_float32_vectors_are_not_copied() -> None:
    made = rows([1, 2], ONES)["vector"].chunk(0).flatten().to_numpy()
    assert np.shares_memory(made, ONES)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8])
def test_other_numbers_and_layouts_of_vectors_are_converted(dtype: type) -> None:
    given = np.arange(12).reshape(3, 4).astype(dtype).T[::2]
    ids, vectors, _ = split_rows(rows([1, 2], given), "l2")
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.tolist() == given.tolist()
    assert ids.tolist() == [1, 2]


def test_attributes_come_from_mappings_tables_and_arrays() -> None:
    columns = {"year": pa.chunked_array([[1990], [2000]]), "name": np.array(["a", "b"])}
    expected = [{"year": 1990, "name": "a"}, {"year": 2000, "name": "b"}]
    for given in (columns, pa.table(columns), pa.table(columns).to_pandas()):
        assert split_rows(rows([1, 2], ONES, given), "ip")[2].to_pylist() == expected


@pytest.mark.parametrize(
    ("ids", "vectors", "attributes", "message"),
    [
        (["a", "b"], ONES, None, "ids are integers"),
        ([1.0, 2.0], ONES, None, "ids are integers"),
        ([True, False], ONES, None, "ids are integers"),
        ([[1, 2]], ONES, None, "ids are integers"),
        ([1, None], ONES, None, "ids are integers"),
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
        ([1, 2], ONES, {"year": [1, "x"]}, "'year' is no column"),
        ([1, 2], ONES, {"id": [8, 9]}, "named 'id'"),
        ([1, 2], ONES, {"vector": [8, 9]}, "named 'vector'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    ids: object, vectors: object, attributes: dict[str, object] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rows(ids, vectors, attributes)


def test_no_rows_are_rows() -> None:
    ids, vectors, attributes = split_rows(rows([], np.empty((0, 2)), {"year": []}), "cosine")
    assert (ids.shape, vectors.shape, len(attributes)) == ((0,), (0, 2), 0)
    without_chunks = rows([1], [[1, 2]]).schema.empty_table()
    assert split_rows(without_chunks, "l2")[1].shape == (0, 2)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int32(), pa.uint64()])
def test_vectors_of_other_numbers_in_a_table_are_converted(kind: pa.DataType) -> None:
    values = np.array([1, 2, 3, 4]).astype(kind.to_pandas_dtype())
    column = pa.FixedSizeListArray.from_arrays(pa.array(values, kind), 2)
    _, vectors, _ = split_rows(_table(column), "l2")
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 2], [3, 4]]


def test_slices_and_chunks_of_a_table_are_split_like_copies() -> None:
    table = rows(range(10), np.arange(20).reshape(10, 2), {"year": range(10)})
    cut = pa.concat_tables([table.slice(7), table.slice(2, 3)])
    ids, vectors, attributes = split_rows(cut, "l2")
    assert ids.tolist() == [7, 8, 9, 2, 3, 4]
    assert vectors.tolist() == [[2.0 * one, 2.0 * one + 1] for one in ids]
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
        (_table(_lists([[1, 2]] * 2), [3, 3]), r"an id stands once.*such as \[3\]"),
        (_table(_lists([[1, 2]] * 2), [3, NO_ID]), "id -1"),
        (_table(_lists([[1, 2], [np.nan, 1]])), r"NaN or infinity in 1, .* id \[2\]"),
        (_table(_lists([[1, 2], [np.inf, 1]])), r"id \[2\]"),
        (_table(_lists([[1, 1e39], [1, 2]], pa.float64())), r"id \[1\]"),
        (pa.table([[1], _lists([[1, 2]]), [3]], names=["id", "vector", "id"]), "stands twice"),
        (pa.table([[1], [2], [3], [4]], names=["id", "vector", "a", "a"]), "stands twice"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_rows(table, "l2")


def test_a_vector_of_zeros_is_refused_under_cosine_alone() -> None:
    table = rows([4, 9], [[0, 0], [1, 1]])
    with pytest.raises(DataError, match=r"no direction.*id \[4\]"):
        split_rows(table, "cosine")
    assert split_rows(table, "l2")[1][0].tolist() == [0, 0]
    assert split_rows(table, "ip")[1][0].tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1, 1e-44, 1e-30, 1e-22, 1e20, 3e38])
def test_under_cosine_vectors_get_length_one_however_long_they_are(scale: float) -> None:
    given = (np.array([[3, 4], [-1, 0]]) / 4 * scale).astype(np.float32)
    kept = split_rows(rows([1, 2], given), "cosine")[1]
    exact = given.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, exact, rtol=1e-6)


def test_under_cosine_a_vector_of_length_one_is_kept_to_the_last_digit() -> None:
    given = np.random.default_rng(0).normal(size=(1000, 16))
    once = split_rows(rows(range(1000), given), "cosine")[1]
    again = split_rows(rows(range(1000), once), "cosine")[1]
    np.testing.assert_array_equal(once, again)


def test_finite_vectors_whose_squares_overflow_are_taken() -> None:
    huge = np.full((2, 2), 3e38, np.float32)
    assert split_rows(rows([1, 2], huge), "ip")[1].tolist() == huge.tolist()
    assert check_queries(huge, SETTINGS) is huge


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 4)), "vectors of 2 numbers; given: 4"),
        (np.ones(2), r"vectors\[None, :\]"),
        ([["a", "b"]], "matrix of numbers"),
        ([[1.0, np.nan]], r"query \[0\]"),
        ([[1.0, 1.0], [1.0, -np.inf]], r"query \[1\]"),
        (np.array([[1e39, 0]]), "infinity"),
        ([], "matrix"),
        (None, "matrix"),
    ],
)
def test_queries_that_cannot_be_used_are_refused(vectors: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_queries(vectors, SETTINGS)


def test_queries_are_float32_and_contiguous() -> None:
    given = np.arange(8, dtype=np.float64).reshape(2, 4).T
    made = check_queries(given, SETTINGS)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert made.tolist() == given.tolist()
    assert check_queries(np.empty((0, 2)), SETTINGS).shape == (0, 2)


def test_ids_stand_once_and_are_not_the_mark_of_absence() -> None:
    check_ids(np.array([], np.int64))
    check_ids(np.array([-2, 0, 2**63 - 1, -(2**63)]))
    with pytest.raises(DataError, match=r"2 stand more often, such as \[1, 3\]"):
        check_ids(np.array([3, 1, 2, 1, 3]))
    with pytest.raises(DataError, match="id -1 marks"):
        check_ids(np.array([0, -1]))


def test_attributes_get_the_order_and_types_of_the_index() -> None:
    schema = pa.schema({"year": pa.int16(), "name": pa.string()})
    given = pa.table({"name": pa.array(["a", None]), "year": pa.array([1990, None], pa.int64())})
    made = check_attributes(given, schema)
    assert made.schema == schema
    assert made.to_pylist() == [{"year": 1990, "name": "a"}, {"year": None, "name": None}]


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
def test_shards_get_equal_parts_whatever_pattern_the_ids_have(ids: np.ndarray, shards: int) -> None:
    made = shard_of(ids, shards)
    assert made.dtype == np.int64
    counts = np.bincount(made, minlength=shards)
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


def test_what_shards_found_is_merged_nearest_first_with_padding_last() -> None:
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
