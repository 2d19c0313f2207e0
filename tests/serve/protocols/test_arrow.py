import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError, GraphError
from raysys.serve import Array
from raysys.serve.protocols import _arrow

FUZZ = settings(deadline=None, derandomize=True, max_examples=500)
NUMBERS = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def lists(values: np.ndarray) -> pa.Array:
    """FixedSizeLists as others than raysys build them."""
    leaf = pa.array(values.ravel())
    for side in reversed(values.shape[1:]):
        leaf = pa.FixedSizeListArray.from_arrays(leaf, side)
    return leaf


def refused(body: bytes, inputs: dict[str, Array], **more: Any) -> str:
    with pytest.raises(DataError) as error:
        _arrow.decode(body, inputs, **more)
    return str(error.value)


def of(column: Any, array: Array, **options: Any) -> np.ndarray:
    return _arrow.decode(stream(pa.table({"x": column}), **options), {"x": array})["x"]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 4)])
def test_numbers_arrive_as_they_are(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    given = of(lists(values), Array(dtype, shape[1:]))
    assert given.dtype == values.dtype
    np.testing.assert_array_equal(given, values)


@pytest.mark.parametrize("shape", [(1000,), (100, 10), (10, 5, 20)])
def test_numbers_are_views_of_the_body(shape: tuple[int, ...]) -> None:
    body = stream(pa.table({"x": lists(np.zeros(shape, np.float32))}))
    given = _arrow.decode(body, {"x": Array("float32", shape[1:])})["x"]
    assert np.shares_memory(given, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()),
     pa.dictionary(pa.uint32(), pa.large_string())],
)  # fmt: skip
def test_strings_arrive_as_they_are(kind: pa.DataType) -> None:
    words = ["a", "", "naïve 日本", "a", "a\0"]
    assert of(pa.array(words, kind), Array("str")).tolist() == words
    many = pa.chunked_array([pa.array(words[:2], kind), pa.array(words[2:], kind)])
    assert of(many, Array("str")).tolist() == words


def test_rows_that_share_an_entry_of_a_dictionary_share_one_string() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 0, 0], pa.int8()), ["x" * 1000])
    given = of(pa.chunked_array([column, column]), Array("str"))
    assert len({id(word) for word in given}) == 1


def test_tensors_and_lists_of_one_length_become_arrays() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    np.testing.assert_array_equal(of(tensors, Array("float32", (3, 4))), values)
    nested = pa.array(values.tolist(), pa.list_(pa.large_list(pa.float32())))
    for array in (Array("float32", (None, None)), Array("float32", (3, 4))):
        np.testing.assert_array_equal(of(nested, array), values)
    words = pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2))
    assert of(words, Array("str", (2,))).tolist() == [["a", "b"], ["c", "d"]]


def test_batches_are_joined_and_compressed_ones_read() -> None:
    values = np.arange(1000.0).reshape(100, 10)
    for compression in (None, "lz4", "zstd"):
        table = pa.table({"x": lists(values), "s": [str(row) for row in range(100)]})
        many = pa.concat_tables([table.slice(0, 30), table.slice(30, 0), table.slice(30)])
        inputs = {"x": Array("float64", (10,)), "s": Array("str")}
        given = _arrow.decode(stream(many, compression=compression), inputs)
        np.testing.assert_array_equal(given["x"], values)
        assert given["s"].tolist() == table["s"].to_pylist()


def test_narrow_types_widen_and_nothing_is_cut() -> None:
    assert of(pa.array([1, 2], pa.int32()), Array("int64")).dtype == np.int64
    assert of(pa.array([1, 2], pa.int64()), Array("float32")).dtype == np.float32
    assert "x: values beyond the range of int8" in refused(
        stream(pa.table({"x": [1, 300]})), {"x": Array("int8")}
    )


def test_compressed_bodies_do_not_expand_beyond_the_limit() -> None:
    column = pa.array(np.zeros(100_000))
    codes = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), ["x" * 800_000])
    for table, size, array in (
        (pa.table({"x": column}), 800_000, Array("float64")),
        (pa.table({"x": codes}), 800_000, Array("str")),
    ):
        body = stream(table, compression="zstd")
        assert len(body) < 2000
        assert "decompresses to more than" in refused(body, {"x": array}, max_bytes=size - 1)
        assert _arrow.decode(body, {"x": array}, max_bytes=size + 100)


def test_a_forged_length_before_compression_allocates_nothing() -> None:
    body = stream(pa.table({"x": np.zeros(100_000)}), compression="lz4")
    forged = body.replace(struct.pack("<q", 800_000), struct.pack("<q", 1 << 50))
    assert forged != body
    assert "decompresses to more than" in refused(forged, {"x": Array("float64")})


def test_compression_as_it_was_before_arrow_1_does_not_pass_unseen() -> None:
    batch = pa.record_batch({"x": np.zeros(100_000)})
    options = pa.ipc.IpcWriteOptions(compression="zstd", metadata_version=pa.MetadataVersion.V4)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    body = sink.getvalue().to_pybytes()
    assert len(pa.ipc.open_stream(body).read_all()) == 100_000
    assert "may hide compression" in refused(body, {"x": Array("float64")})


class Unpickled(pa.ExtensionType):
    """An extension type of Python, like those that unpickle what the stream brings."""

    made = 0

    def __init__(self) -> None:
        super().__init__(pa.float64(), "raysys.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Unpickled":
        cls.made += 1
        return cls()


def test_no_python_class_is_made_of_what_a_client_sent() -> None:
    column = pa.ExtensionArray.from_storage(Unpickled(), pa.array([1.0, 2.0]))
    bodies = [
        stream(pa.table({"x": one}))
        for one in (column, pa.FixedSizeListArray.from_arrays(column, 1))
    ]
    pa.register_extension_type(Unpickled())
    try:
        for body in bodies:
            assert "extension type" in refused(body, {"x": Array("float64", ())})
        assert Unpickled.made == 0
        pa.ipc.open_stream(bodies[0])
        assert Unpickled.made == 1
    finally:
        pa.unregister_extension_type("raysys.test")


X = Array("float32", (2,))


@pytest.mark.parametrize(
    ("column", "array", "message"),
    [
        (pa.array([1.0, None]), Array("float64"), "x: 1 nulls"),
        (pa.array(["a", None]), Array("str"), "x: 1 nulls"),
        (pa.array(["a", None]).dictionary_encode(), Array("str"), "x: 1 nulls"),
        (pa.DictionaryArray.from_arrays([0, 1], ["a", None]), Array("str"), "x: 1 nulls"),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), X, "x: 1 nulls"),
        (pa.array([[1.0, None]], pa.list_(pa.float32(), 2)), X, "x: 1 nulls"),
        (pa.array([[1.0], [1.0, 2.0]]), Array("float64", (None,)), "x: lists of 1 to 2 values"),
        (pa.array([[1.0]], pa.list_(pa.float32())), X, "x: expected shape ('n', 2)"),
        (pa.array([1.0]), X, "x: expected shape ('n', 2)"),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), Array(), "x: expected shape ('n',)"),
        (pa.array([1.5]), Array("int64"), "x: expected int64, given float64"),
        (pa.array([1]), Array("bool"), "x: expected bool, given int64"),
        (pa.array(["1"]), Array("float64"), "x: expected float64[n], given Arrow type str"),
        (pa.array(["1"]).dictionary_encode(), Array("float64"), "x: expected float64[n], given"),
        (pa.array([1]), Array("str"), "x: expected str[n], given Arrow type int64"),
        (pa.array([b"1"]), Array("str"), "x: expected str[n], given Arrow type binary"),
        (pa.array(["1"], pa.string_view()), Array("str"), "x: expected str[n], given Arrow type"),
        (
            pa.array([1], pa.timestamp("s")),
            Array("int64"),
            "x: expected int64[n], given Arrow type",
        ),
        (pa.array([1], pa.decimal128(5)), Array("int64"), "x: expected int64[n], given Arrow type"),
        (pa.nulls(1), Array("int64"), "x: expected int64[n], given Arrow type null"),
        (pa.array([{"a": 1}]), Array("int64"), "x: expected int64[n], given Arrow type st"),
        (pa.array([{"a": 1, "b": 2}]), Array("int64"), "struct or another nested type"),
        (pa.array([np.nan]), Array("float64"), "x: values that are not finite"),
        (pa.array([1e300]), Array("float32"), "x: values that are not finite"),
        (pa.array([], pa.float64()), Array("float64"), "no rows"),
    ],
)
def test_columns_that_do_not_fit_are_refused(column: Any, array: Array, message: str) -> None:
    assert message in refused(stream(pa.table({"x": column})), {"x": array})


def test_a_tensor_with_permuted_sides_is_refused() -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])
    storage = pa.array([[1.0] * 6], pa.list_(pa.float32(), 6))
    column = pa.ExtensionArray.from_storage(kind, storage)
    body = stream(pa.table({"x": column}))
    assert "x: a tensor with permuted sides" in refused(body, {"x": Array("float32", (2, 3))})


def test_columns_must_be_those_of_the_inputs() -> None:
    inputs = {"x": Array("int64"), "y": Array("int64")}
    for names in (["x"], ["x", "y", "z"], ["x", "y", "y"], ["x", "z"]):
        table = pa.Table.from_arrays([pa.array([1])] * len(names), names=names)
        assert "columns must be ['x', 'y'], each once, given" in refused(stream(table), inputs)


def test_names_of_a_client_do_not_swell_the_message() -> None:
    long = "z" * 10**6
    struct_of_one = pa.array([{long: 1}])
    for table in (pa.table({long: [1]}), pa.table({"x": struct_of_one})):
        assert len(refused(stream(table), {"x": Array("int64")})) < 500


def test_bodies_that_are_no_stream_are_refused() -> None:
    table = pa.table({"x": [1, 2]})
    whole = stream(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    inputs = {"x": Array("int64")}
    for body, message in (
        (b"", "not a valid Arrow IPC stream"),
        (b'{"x": [1, 2]}', "not a valid Arrow IPC stream"),
        (sink.getvalue().to_pybytes(), "send a stream"),
        (whole + b"!", "1 bytes after its end"),
        (whole + whole, f"{len(whole)} bytes after its end"),
        (stream(table.slice(0, 0)), "no rows"),
    ):
        assert message in refused(body, inputs)
    for cut in range(len(whole) - 8):
        refused(whole[:cut], inputs)
    # The mark of the end may be left out.
    assert _arrow.decode(whole[:-8], inputs)["x"].tolist() == [1, 2]


def test_forged_buffers_are_refused_before_they_are_read() -> None:
    words = stream(pa.table({"x": ["ab", "cd", "ef"]}))
    codes = stream(pa.table({"x": pa.array(["aa", "b", "cc", "d"]).dictionary_encode()}))
    for body, old, new in (
        (words, struct.pack("<4i", 0, 2, 4, 6), struct.pack("<4i", 0, 2, 4, 1 << 30)),
        (words, struct.pack("<4i", 0, 2, 4, 6), struct.pack("<4i", 0, 6, 2, 6)),
        (words, b"abcdef", b"ab\xff\xffef"),
        (codes, struct.pack("<4i", 0, 1, 2, 3), struct.pack("<4i", 0, 1, 2, 99)),
        (codes, struct.pack("<4i", 0, 1, 2, 3), struct.pack("<4i", 0, 1, 2, -1)),
    ):
        assert body.count(old) == 1
        forged = body.replace(old, new)
        assert "not a valid Arrow IPC stream" in refused(forged, {"x": Array("str")})


def test_a_body_out_of_step_does_not_unalign_an_array() -> None:
    body = stream(pa.table({"x": np.arange(10)}))
    mark, length = struct.unpack_from("<ii", body)
    longer = struct.pack("<ii", mark, length + 4) + body[8 : 8 + length] + bytes(4)
    column = _arrow.decode(longer + body[8 + length :], {"x": Array("int64")})["x"]
    assert column.tolist() == list(range(10))
    assert column.ctypes.data % 8 == 0


def test_a_dictionary_that_grows_is_refused() -> None:
    column = pa.chunked_array(
        [
            pa.DictionaryArray.from_arrays(pa.array([0]), ["a"]),
            pa.DictionaryArray.from_arrays(pa.array([1]), ["a", "b"]),
        ]
    )
    body = stream(pa.table({"x": column}), emit_dictionary_deltas=True)
    assert "a dictionary in parts" in refused(body, {"x": Array("str")})
    assert of(column, Array("str")).tolist() == ["a", "b"]


def test_rows_without_data_do_not_count_beyond_the_body() -> None:
    column = pa.array([[]] * 1_000_000, pa.list_(pa.int64(), 0))
    body = stream(pa.table({"x": column}))
    assert len(body) < 1000
    assert "1000000 rows exceed" in refused(body, {"x": Array("int64", (None,))})
    few = of(pa.array([[]] * 3, pa.list_(pa.int64(), 0)), Array("int64", (None,)))
    assert few.shape == (3, 0)


GOOD = {"x": Array("float32", (2,)), "y": Array("int64"), "s": Array("str"), "d": Array("str"),
        "l": Array("bool", (None,))}  # fmt: skip


def good_bodies() -> list[bytes]:
    table = pa.table(
        {
            "x": lists(np.arange(6, dtype=np.float32).reshape(3, 2)),
            "y": pa.array([1, 2, 3]),
            "s": pa.array(["a", "béé", ""]),
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "l": pa.array([[True], [False], [True]]),
        }
    )
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((3, 2), np.float32))
    return [
        stream(table),
        stream(pa.concat_tables([table, table])),
        stream(table, compression="lz4"),
        stream(table, compression="zstd"),
        stream(table, metadata_version=pa.MetadataVersion.V4),
        stream(table.set_column(0, "x", tensors), use_legacy_format=True),
    ]


BODIES = good_bodies()


def refused_or_sound(body: bytes) -> bool:
    try:
        columns = _arrow.decode(body, GOOD, max_bytes=1 << 20)
    except DataError:
        return False
    assert columns.keys() == GOOD.keys()
    for values in columns.values():
        values.tolist()
    return True


@FUZZ
@given(st.data())
def test_damaged_streams_are_refused_as_bad_data_or_still_sound(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(BODIES))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        new = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xff" * 8])
        )
        damaged[at : at + len(new)] = new
    refused_or_sound(bytes(damaged))


@FUZZ
@given(st.binary(max_size=200), st.sampled_from(BODIES), st.integers(0, 2000))
def test_arbitrary_bytes_are_refused_as_bad_data(raw: bytes, body: bytes, cut: int) -> None:
    refused_or_sound(raw)
    refused_or_sound(body[:cut] + raw)


def test_the_bodies_that_are_damaged_are_sound_at_first() -> None:
    assert all(refused_or_sound(body) for body in BODIES)


def test_blocks_of_the_object_store_are_not_copied() -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    table = pa.table({"x": lists(values)})
    inputs = {"x": X}
    assert np.shares_memory(_arrow.from_table(table, inputs)["x"], values)
    part = _arrow.from_table(table.slice(2, 3), inputs)["x"]
    assert np.shares_memory(part, values)
    np.testing.assert_array_equal(part, values[2:5])


def test_slices_of_tables_become_their_own_rows() -> None:
    nested = np.arange(24).reshape(4, 3, 2)
    table = pa.table(
        {
            "f": lists(nested),
            "v": pa.array(nested.tolist()),
            "t": pa.FixedShapeTensorArray.from_numpy_ndarray(nested),
            "s": ["a", "b", "c", "d"],
            "d": pa.array(["p", "q", "p", "r"]).dictionary_encode(),
        }
    )
    whole = Array("int64", (3, 2))
    inputs = {"f": whole, "v": whole, "t": whole, "s": Array("str"), "d": Array("str")}
    columns = _arrow.from_table(table.slice(1, 2), inputs)
    for name in "fvt":
        np.testing.assert_array_equal(columns[name], nested[1:3])
    assert (columns["s"].tolist(), columns["d"].tolist()) == (["b", "c"], ["q", "p"])


def test_a_block_without_rows_becomes_empty_arrays() -> None:
    kinds = {"x": pa.list_(pa.float32(), 2), "s": pa.string(), "d": pa.dictionary("i4", "str")}
    inputs = {"x": X, "s": Array("str"), "d": Array("str")}
    schema = pa.schema(list(kinds.items()))
    for table in (schema.empty_table(), pa.Table.from_batches([], schema)):
        columns = _arrow.from_table(table, inputs)
        assert {name: column.shape for name, column in columns.items()} == {
            "x": (0, 2), "s": (0,), "d": (0,),
        }  # fmt: skip


def test_tensors_of_ray_data_become_arrays() -> None:
    tensors = pytest.importorskip("ray.data.extensions")
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    table = pa.table({"x": tensors.ArrowTensorArray.from_numpy(values)})
    inputs = {"x": Array("float32", (3, 2))}
    np.testing.assert_array_equal(_arrow.from_table(table, inputs)["x"], values)
    storage = pa.array([[1.0] * 5], pa.large_list(pa.float32()))
    wrong = pa.ExtensionArray.from_storage(table["x"].type, storage)
    with pytest.raises(DataError, match=r"x: .*ArrowTensorTypeV2.* to float32"):
        _arrow.from_table(pa.table({"x": wrong}), inputs)


def test_extension_types_that_are_no_tensors_are_refused() -> None:
    column = pa.ExtensionArray.from_storage(Unpickled(), pa.array([1.0]))
    with pytest.raises(DataError, match=r"x: expected float64\[n\], given Arrow type extension"):
        _arrow.from_table(pa.table({"x": column}), {"x": Array("float64")})


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 0), (0, 3), (2, 3, 2)])
def test_arrays_come_back_as_they_went(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    table = pa.ipc.open_stream(_arrow.encode({"x": values})).read_all()
    assert table["x"].num_chunks == 1
    given = _arrow.from_table(table, {"x": Array(dtype, shape[1:])})["x"]
    assert given.dtype == values.dtype
    np.testing.assert_array_equal(given, values)


def test_answers_of_each_kind_become_columns() -> None:
    table = _arrow.to_batch(
        {
            "words": np.array(["a", "bé"], dtype=object),
            "unicode": np.array([["a", "b"], ["c", "d"]]),
            "ragged": [[1], [2, 3]],
            "rows": [{"film": 1, "score": np.float32(0.5)}, {"film": 2, "near": np.arange(2)}],
            "strided": np.arange(8, dtype=np.int16).reshape(2, 4)[:, ::2],
            "swapped": np.arange(2, dtype=">f8"),
        }
    )
    assert table.schema.field("strided").type == pa.list_(pa.int16(), 2)
    assert table.to_pydict() == {
        "words": ["a", "bé"],
        "unicode": [["a", "b"], ["c", "d"]],
        "ragged": [[1], [2, 3]],
        "rows": [
            {"film": 1, "score": 0.5, "near": None},
            {"film": 2, "score": None, "near": [0, 1]},
        ],
        "strided": [[0, 2], [4, 6]],
        "swapped": [0.0, 1.0],
    }


def test_rows_become_columns_by_their_keys() -> None:
    table = _arrow.to_batch([{"a": 1}, {"a": 2, "b": "x"}])
    assert table.to_pydict() == {"a": [1, 2], "b": [None, "x"]}
    assert pa.ipc.open_stream(_arrow.encode([{"a": 1}])).read_all().to_pydict() == {"a": [1]}


def test_numbers_become_a_batch_without_a_copy() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = _arrow.to_batch({"x": values})["x"]
    assert np.shares_memory(column.flatten().to_numpy(), values)


@pytest.mark.parametrize("values", [[1, "a"], [object()], np.array([1j, 2j])])
def test_values_without_a_type_are_the_graphs_fault(values: Any) -> None:
    with pytest.raises(GraphError, match="output 'x'"):
        _arrow.to_batch({"x": values})


def test_outputs_of_unequal_length_are_the_graphs_fault() -> None:
    with pytest.raises(GraphError, match=r"equal lengths, given {'x': 1, 'y': 2}"):
        _arrow.encode({"x": [1], "y": [1, 2]})
