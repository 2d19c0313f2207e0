import json
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as client
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError, GraphError
from raysys.gateway import server_metadata
from raysys.serve import Array
from raysys.serve._column_types import rows_of
from raysys.serve.protocols import _open_inference as _v2

NUMBERS = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
XY = {"x": Array("float32", (2,)), "y": Array("int64")}
FUZZ = settings(deadline=None, derandomize=True, max_examples=300)


def sent(
    columns: dict[str, np.ndarray],
    inputs: dict[str, Array],
    *,
    binary: bool = True,
    outputs: list[client.InferRequestedOutput] | None = None,
    request_id: str = "",
) -> _v2.InferRequest:
    """The request as Triton's client writes it, read by us."""
    tensors = []
    for name, values in columns.items():
        tensor = client.InferInput(name, list(values.shape), _v2.datatype(inputs[name]))
        tensors.append(tensor.set_data_from_numpy(values, binary_data=binary))
    body, length = client.InferenceServerClient.generate_request_body(
        tensors, outputs=outputs, request_id=request_id
    )
    return _v2.decode(body, length, inputs)


def read(answer: tuple[bytes, int | None]) -> client.InferResult:
    """Our answer, read by Triton's client."""
    body, length = answer
    return client.InferenceServerClient.parse_response_body(body, header_length=length)


def body_of(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def tensor(name: str = "y", shape: Any = (1,), datatype: Any = "INT64", **more: Any) -> Any:
    return {"name": name, "shape": list(shape), "datatype": datatype, **more}


def asking(*outputs: tuple[str, bool], binary: bool = False) -> _v2.InferRequest:
    return _v2.InferRequest({}, None, dict(outputs) or None, binary)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers_of_the_client_arrive_as_they_are(dtype: str, binary: bool) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    if dtype not in ("bool", "float16"):
        info = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
        values[0, :2] = info.min, info.max
    request = sent({"x": values}, {"x": Array(dtype, (None,))}, binary=binary)
    assert rows_of(request.columns) == 2
    assert request.columns["x"].dtype == values.dtype
    np.testing.assert_array_equal(request.columns["x"], values)


@pytest.mark.parametrize("binary", [True, False])
def test_strings_of_the_client_arrive_as_they_are(binary: bool) -> None:
    values = np.array([["", "naïve 日本 \U0001f600"], ["a\0b\0", '"\\\n']], dtype=object)
    request = sent({"s": values}, {"s": Array("str", (2,))}, binary=binary)
    assert request.columns["s"].tolist() == values.tolist()


def test_several_inputs_stand_behind_each_other() -> None:
    inputs = {"s": Array("str"), "flag": Array("bool"), **XY}
    columns = {
        "flag": np.array([True, False, True]),
        "y": np.array([1, 2, 3]),
        "s": np.array(["", "ab", "c"], dtype=object),
        "x": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    request = sent(columns, inputs)
    assert rows_of(request.columns) == 3
    for name, values in columns.items():
        np.testing.assert_array_equal(request.columns[name], values)


def test_binary_and_json_inputs_mix() -> None:
    raw = np.array([1.5, 2.5], np.float32).tobytes()
    text = body_of(
        tensor("y", (1,), data=[7]),
        tensor("x", (1, 2), "FP32", parameters={"binary_data_size": 8}),
    )
    request = _v2.decode(text + raw, len(text), XY)
    assert request.columns["x"].tolist() == [[1.5, 2.5]]
    assert request.columns["y"].tolist() == [7]


def test_json_data_may_be_flat_or_nested() -> None:
    inputs = {"x": Array("float32", (2, None))}
    shape = (2, 2, 3)
    values = np.arange(12, dtype=np.float32).reshape(shape)
    for data in (values.ravel().tolist(), values.tolist()):
        request = _v2.decode(body_of(tensor("x", shape, "FP32", data=data)), None, inputs)
        np.testing.assert_array_equal(request.columns["x"], values)


def test_json_integers_are_taken_for_floats() -> None:
    request = _v2.decode(body_of(tensor("x", (1,), "FP32", data=[3])), None, {"x": Array()})
    assert request.columns["x"].tolist() == [3.0]


def test_aligned_binary_numbers_are_a_view_of_the_body_and_others_are_aligned_copies() -> None:
    values = np.arange(8, dtype=np.float64)
    text = body_of(tensor("x", (8,), "FP64", parameters={"binary_data_size": 64}))
    for padding in range(8):
        padded = text + b" " * padding
        body = padded + values.tobytes()
        column = _v2.decode(body, len(padded), {"x": Array("float64")}).columns["x"]
        assert column.flags.aligned
        assert column.flags.c_contiguous
        assert column.tolist() == values.tolist()
        whole = np.frombuffer(body, np.uint8)
        aligned = (whole.ctypes.data + len(padded)) % 8 == 0
        assert np.shares_memory(column, whole) == aligned


def test_a_side_of_any_length_may_be_empty() -> None:
    for binary in (True, False):
        request = sent(
            {"x": np.zeros((2, 0), np.int64)}, {"x": Array("int64", (None,))}, binary=binary
        )
        assert request.columns["x"].shape == (2, 0)


def test_what_the_client_asks_for() -> None:
    columns = {"y": np.array([1])}
    inputs = {"y": Array("int64")}
    request = sent(columns, inputs, request_id="abc")
    assert (request.id, request.outputs, request.binary_default) == ("abc", None, True)
    outputs = [
        client.InferRequestedOutput("a", binary_data=True),
        client.InferRequestedOutput("b", binary_data=False),
    ]
    request = sent(columns, inputs, outputs=outputs)
    assert request.id is None
    assert request.outputs == {"a": True, "b": False}
    assert not request.binary_default
    one = tensor(data=[1])
    request = _v2.decode(body_of(one), None, inputs)
    assert (request.id, request.outputs, request.binary_default) == (None, None, False)
    request = _v2.decode(
        body_of(one, outputs=[{"name": "a"}], parameters={"binary_data_output": True}),
        None,
        inputs,
    )
    assert request.outputs == {"a": True}


X1 = tensor("x", (1, 2), "FP32", data=[1, 2])
Y1 = tensor(data=[1])
BINARY_Y = tensor(parameters={"binary_data_size": 8})
MALFORMED = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"\xff", "JSON"),
    (b"[" * 100_000, "JSON"),
    (b"[]", "must be a JSON object"),
    (b"{}", "'inputs' must be a JSON array, given nothing"),
    (b'{"inputs": null}', "'inputs' must be a JSON array, given None"),
    (b'{"inputs": {"y": 1}}', "'inputs' must be a JSON array"),
    (body_of(), "missing inputs ['x', 'y']"),
    (body_of(X1), "missing inputs ['y']"),
    (body_of(X1, Y1, Y1), "y: given twice"),
    (body_of(X1, Y1, tensor("z", data=[1])), "unknown input 'z'; inputs are ['x', 'y']"),
    (body_of(X1, 1), "an input must be a JSON object"),
    (body_of(X1, {}), "'name' must be a JSON string"),
    (body_of(X1, tensor(1)), "'name' must be a JSON string"),
    (body_of(X1, {"name": "y"}), "y: 'datatype'"),
    (body_of(X1, tensor(datatype="FP32", data=[1])), "y: datatype must be INT64, given 'FP32'"),
    (body_of(X1, tensor(datatype="INT32", data=[1])), "y: datatype must be INT64"),
    (body_of(X1, tensor(datatype="BF16", data=[1])), "y: datatype must be INT64"),
    (body_of(X1, tensor(datatype=None, data=[1])), "y: 'datatype'"),
    (body_of(X1, {"name": "y", "datatype": "INT64", "data": [1]}), "y: 'shape'"),
    (body_of(X1, {"name": "y", "datatype": "INT64", "shape": 1, "data": [1]}), "y: 'shape'"),
    (body_of(X1, tensor(shape=(), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=(1, 1), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=(-1,), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=(0,), data=[])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=(True,), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=(1.0,), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=("1",), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=[1] * 100_000, data=[1])), "y: shape must be [-1]"),
    (body_of(Y1, tensor("x", (1, 3), "FP32", data=[1, 2, 3])), "x: shape must be [-1, 2]"),
    (body_of(X1, tensor(shape=(10**12,), data=[1])), "y: shape [1000000000000] exceeds"),
    (body_of(X1, tensor(shape=(2**80,), data=[1])), "y: shape must be [-1]"),
    (body_of(X1, tensor(shape=(2,), data=[1])), "y: shape [2] needs 2 values, given 1"),
    (body_of(X1, tensor(shape=(1,), data=[1, 2])), "y: shape [1] needs 1 values, given 2"),
    (body_of(X1, tensor(shape=(2,), data=[1, 2])), "columns must have equal lengths"),
    (body_of(X1, tensor()), "y: needs either"),
    (body_of(X1, tensor(data=None)), "y: 'data' must be a JSON array"),
    (body_of(X1, tensor(data=1)), "y: 'data' must be a JSON array"),
    (body_of(X1, tensor(data={"0": 1})), "y: 'data' must be a JSON array"),
    (body_of(X1, tensor(data=[[1]])), "y: values are not INT64: array"),
    (body_of(X1, tensor(data=[1.0])), "y: values are not INT64: number"),
    (body_of(X1, tensor(data=[True])), "y: values are not INT64: boolean"),
    (body_of(X1, tensor(data=["1"])), "y: values are not INT64: string"),
    (body_of(X1, tensor(data=[None])), "y: values are not INT64: null"),
    (body_of(X1, tensor(data=[2**63])), "y: values beyond the range of int64"),
    (body_of(X1, tensor(data=[2**64])), "y: values are not INT64: number"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[True, 1])), "x: values are not FP32"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[None, 1])), "x: values are not FP32"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[1e39, 1])), "x: values that are not finite"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[[1, 2, 3]])), "x: nested data"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[[1, 2], [3, 4]])), "x: nested data"),
    (body_of(Y1, tensor("x", (2, 2), "FP32", data=[[1, 2], 3])), "x: nested data"),
    (body_of(Y1, tensor("x", (2, 2), "FP32", data=[[1, 2], "34"])), "x: nested data"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[1, [2]])), "x: values are not FP32: array"),
    (body_of(Y1, tensor("x", (1, 2), "FP32", data=[[[1], [2]]])), "x: values are not"),
    (body_of(X1, Y1).replace(b"[1]", b"[NaN]"), "JSON"),
    (body_of(X1, Y1).replace(b"[1]", b"[1e999]"), "JSON"),
    (body_of(X1, tensor(data=[1], parameters=[])), "y: 'parameters' must be a JSON object"),
    (body_of(X1, tensor(data=[1], parameters={"binary_data_size": 0})), "y: needs either"),
    (body_of(X1, tensor(parameters={"binary_data_size": 8.0})), "y: 'binary_data_size'"),
    (body_of(X1, tensor(parameters={"binary_data_size": True})), "y: 'binary_data_size'"),
    (body_of(X1, tensor(parameters={"binary_data_size": None})), "y: 'binary_data_size'"),
    (body_of(X1, tensor(parameters={"binary_data_size": -8})), "y: binary_data_size is -8"),
    (body_of(X1, BINARY_Y), "y: binary_data_size is 8, but 0 bytes follow"),
    (
        body_of(X1, tensor(parameters={"shared_memory_region": "r"})),
        "y: the parameter 'shared_memory_region' is not supported",
    ),
    (body_of(X1, Y1, id=1), "'id' must be a JSON string"),
    (body_of(X1, Y1, id=None), "'id' must be a JSON string"),
    (body_of(X1, Y1, parameters=1), "'parameters' must be a JSON object"),
    (body_of(X1, Y1, parameters={"binary_data_output": 1}), "'binary_data_output'"),
    (body_of(X1, Y1, outputs={}), "'outputs' must be a JSON array"),
    (body_of(X1, Y1, outputs=["a"]), "an output must be a JSON object"),
    (body_of(X1, Y1, outputs=[{}]), "'name' must be a JSON string"),
    (body_of(X1, Y1, outputs=[{"name": "a"}, {"name": "a"}]), "output 'a': requested twice"),
    (
        body_of(X1, Y1, outputs=[{"name": "a", "parameters": {"binary_data": "yes"}}]),
        "output 'a': 'binary_data' must be a JSON boolean",
    ),
    (
        body_of(X1, Y1, outputs=[{"name": "a", "parameters": {"classification": 3}}]),
        "output 'a': the parameter 'classification' is not supported",
    ),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_malformed_bodies_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(DataError) as refused:
        _v2.decode(body, None, XY)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500


def test_names_of_a_client_do_not_swell_the_message() -> None:
    for body in (body_of({"name": "z" * 10**6}), body_of(tensor(shape=["z" * 10**6]))):
        with pytest.raises(DataError) as refused:
            _v2.decode(body, None, XY)
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("array", "shape", "raw", "message"),
    [
        (Array("int64"), [1], b"1234567", "y: 1 values of INT64 take 8 bytes, given 7"),
        (Array("int64"), [1], b"123456789", "y: 1 values of INT64 take 8 bytes, given 9"),
        (Array("int64"), [2], b"12345678", "y: 2 values of INT64 take 16 bytes"),
        (Array("bool"), [2], b"\0\2", "y: a byte of BOOL must be 0 or 1, given 2"),
        (Array("float32"), [1], np.float32(np.nan).tobytes(), "y: values that are not finite"),
        (Array("float64"), [1], np.float64(-np.inf).tobytes(), "y: values that are not finite"),
        (Array("float16"), [1], np.float16(np.inf).tobytes(), "y: values that are not finite"),
        (Array("str"), [1], b"", "y: the shape needs 1 values, given 0"),
        (Array("str"), [1], b"\1\0\0", "y: element 0 extends beyond"),
        (Array("str"), [1], b"\2\0\0\0a", "y: element 0 extends beyond"),
        (Array("str"), [1], b"\xff\xff\xff\xff", "y: element 0 extends beyond"),
        (Array("str"), [1], b"\1\0\0\0ab", "y: element 1 extends beyond"),
        (Array("str"), [2], b"\1\0\0\0a", "y: the shape needs 2 values, given 1"),
        (Array("str"), [1], b"\1\0\0\0a\1\0\0\0a", "y: the shape needs 1 values, given 2"),
        (Array("str"), [1], b"\1\0\0\0\xff", "y: element 0 is not UTF-8"),
        (Array("str"), [1], b"\3\0\0\0\xed\xa0\x80", "y: element 0 is not UTF-8"),
    ],
)
def test_malformed_binary_data_are_refused(
    array: Array, shape: list[int], raw: bytes, message: str
) -> None:
    parameters = {"binary_data_size": len(raw)}
    text = body_of(tensor("y", shape, _v2.datatype(array), parameters=parameters))
    with pytest.raises(DataError) as refused:
        _v2.decode(text + raw, len(text), {"y": array})
    assert message in str(refused.value)


def test_binary_sizes_must_add_up() -> None:
    inputs = {"y": Array("int64")}
    text = body_of(BINARY_Y)
    raw = bytes(8)
    assert rows_of(_v2.decode(text + raw, len(text), inputs).columns) == 1
    cases = [
        (text + raw[:7], len(text), "y: binary_data_size is 8, but 7 bytes follow"),
        (text + raw + b"!", len(text), "1 bytes after the data of the last input"),
        (body_of(Y1) + b"!", len(body_of(Y1)), "1 bytes after"),
        (text + raw, None, "JSON"),
        (text + raw, 0, "JSON"),
        (text + raw, len(text) - 1, "JSON"),
        (text + raw, -1, "Inference-Header-Content-Length is -1"),
        (text + raw, len(text) + 9, "Inference-Header-Content-Length is"),
    ]
    for body, length, message in cases:
        with pytest.raises(DataError, match=message):
            _v2.decode(body, length, inputs)


def test_rows_without_data_do_not_count_beyond_the_body() -> None:
    inputs = {"y": Array("int64", (None, None))}
    for shape in ([10**9, 0, 1], [1, 10**9, 0], [1, 0, 2**63]):
        for more in ({"data": []}, {"parameters": {"binary_data_size": 0}}):
            body = body_of(tensor("y", shape, **more))
            with pytest.raises(DataError, match="y: shape"):
                _v2.decode(body, len(body), inputs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", "s"]) | JSON,
        "datatype": st.sampled_from(["FP32", "INT64", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data": st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=4) | JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 20) | JSON}
        )
        | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSORS, max_size=4) | JSON,
        "outputs": st.lists(TENSORS, max_size=2) | JSON,
        "parameters": JSON,
        "id": JSON,
    },
)
ALL = {"x": Array("float32", (None,)), "y": Array("int64"), "s": Array("str")}


def refused_or_sound(body: bytes, length: int | None) -> bool:
    try:
        request = _v2.decode(body, length, ALL)
    except DataError:
        return False
    assert request.columns.keys() == ALL.keys()
    assert rows_of(request.columns) > 0
    return True


@FUZZ
@given(REQUESTS | JSON, st.binary(max_size=40), st.none() | st.integers(-1, 10))
def test_arbitrary_requests_are_refused_as_bad_data(
    request: Any, raw: bytes, off: int | None
) -> None:
    text = json.dumps(request).encode()
    refused_or_sound(text + raw, None if off is None else len(text) + off * 3)
    refused_or_sound(text + raw, len(text))


def a_good_body() -> tuple[bytes, int]:
    columns = {
        "x": np.array([[1, 2, 3]], np.float32),
        "y": np.array([7]),
        "s": np.array(["héllo"], dtype=object),
    }
    tensors = [
        client.InferInput(n, list(v.shape), _v2.datatype(ALL[n])).set_data_from_numpy(v)
        for n, v in columns.items()
    ]
    body, length = client.InferenceServerClient.generate_request_body(tensors)
    assert length is not None
    return body, length


@FUZZ
@given(st.data())
def test_damaged_bodies_are_refused_as_bad_data_or_still_sound(data: st.DataObject) -> None:
    body, length = a_good_body()
    assert refused_or_sound(body, length)
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        new = data.draw(st.binary(max_size=3) | st.sampled_from([b"9", b"0", b"[", b"]", b"-"]))
        damaged[at : at + data.draw(st.integers(0, 3))] = new
    refused_or_sound(bytes(damaged), length)
    refused_or_sound(body[: data.draw(st.integers(0, len(body)))], length)


COLUMNS = {
    **{dtype: np.array([[0, 1], [1, 0]]).astype(dtype) for dtype in NUMBERS},
    "words": ["é", "", "a\0"],
    "objects": np.array([["a", "b"], ["日", "d"]], dtype=object),
    "unicode": np.array(["ab", "c"]),
    "strided": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
    "swapped": np.arange(3, dtype=">i4"),
    "empty": np.zeros((2, 0), np.float32),
}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", COLUMNS)
def test_the_client_reads_each_kind_of_output(name: str, binary: bool) -> None:
    result = read(_v2.encode(asking(binary=binary), "m", "3", {name: COLUMNS[name]}))
    given = result.as_numpy(name)
    text = name in ("words", "objects", "unicode")
    expected = np.array(COLUMNS[name], dtype=object if text else None)
    if text and binary:
        given = np.vectorize(bytes.decode, otypes=[object])(given)
    np.testing.assert_array_equal(given, expected)
    described = result.get_output(name)
    wide = name == "float16" and not binary
    dtype = "str" if text else "float32" if wide else expected.dtype.name
    assert described["datatype"] == _v2.datatype(Array(dtype))
    assert ("data" in described) != binary


def test_outputs_come_in_the_order_asked_for_each_in_its_form() -> None:
    columns = {"a": np.array([1.5, 2.5]), "b": ["x", "yy"], "c": np.array([True, False])}
    request = asking(
        ("c", True),
        ("b", True),
        ("a", False),
    )
    body, length = _v2.encode(request, "m", "", columns)
    assert length is not None
    assert len(body) == length + 2 + 4 + 1 + 4 + 2
    header = json.loads(body[:length])
    assert [output["name"] for output in header["outputs"]] == ["c", "b", "a"]
    assert header["model_name"] == "m"
    assert "model_version" not in header
    assert "id" not in header
    result = read((body, length))
    assert result.as_numpy("a").tolist() == [1.5, 2.5]
    assert result.as_numpy("b").tolist() == [b"x", b"yy"]
    assert result.as_numpy("c").tolist() == [True, False]


def test_the_answer_repeats_the_request_id_and_names_the_model() -> None:
    request = sent({"y": np.array([1])}, {"y": Array("int64")}, request_id="abc")
    header = read(_v2.encode(request, "m", "7", {"z": np.array([1])})).get_response()
    assert (header["id"], header["model_name"], header["model_version"]) == ("abc", "m", "7")


def test_all_outputs_come_in_their_own_order() -> None:
    columns = {name: np.array([1]) for name in "cab"}
    body, _ = _v2.encode(asking(), "m", "1", columns)
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["c", "a", "b"]


def test_pure_json_has_no_json_length() -> None:
    body, length = _v2.encode(asking(), "m", "1", {"z": np.array([0.1], np.float32)})
    assert length is None
    assert json.loads(body)["outputs"] == [
        {"name": "z", "shape": [1], "datatype": "FP32", "data": [0.1]}
    ]


def test_json_writes_null_for_numbers_that_are_not_finite() -> None:
    body, _ = _v2.encode(asking(), "m", "1", {"z": np.array([np.nan, np.inf, 1.0])})
    assert json.loads(body)["outputs"][0]["data"] == [None, None, 1.0]


@pytest.mark.parametrize("binary", [True, False])
def test_other_values_in_lists_go_as_their_json(binary: bool) -> None:
    rows = [{"film": 1, "score": np.float32(0.5), "near": np.arange(4)[::2]}, [1, 2], 3.5, None]
    result = read(_v2.encode(asking(binary=binary), "m", "1", {"rows": rows}))
    assert result.get_output("rows")["datatype"] == "BYTES"
    assert [orjson.loads(text) for text in result.as_numpy("rows")] == [
        {"film": 1, "score": 0.5, "near": [0, 2]}, [1, 2], 3.5, None,
    ]  # fmt: skip


def test_lists_of_equal_lists_have_one_text_a_row() -> None:
    result = read(_v2.encode(asking(), "m", "1", {"rows": [[1, 2], [3, 4]]}))
    assert result.as_numpy("rows").tolist() == ["[1,2]", "[3,4]"]


def test_an_output_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"unknown output 'b'; outputs are \['a'\]"):
        _v2.encode(asking(("b", True)), "m", "1", {"a": np.array([1])})


@pytest.mark.parametrize("column", [np.array([1j]), [object()], ["\ud800"], [{(1, 2): 3}]])
def test_values_without_a_form_are_the_graphs_fault(column: Any) -> None:
    for binary in (True, False):
        with pytest.raises(GraphError, match="output 'z'"):
            _v2.encode(asking(binary=binary), "m", "1", {"z": column})


def test_metadata_describe_the_columns() -> None:
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    assert server_metadata()["extensions"] == extensions
    named = _v2.model_metadata("m", ["1"], XY, {"p": Array("float64", (2,))}, ["no", "yes"])
    assert named["outputs"] == [
        {"name": "p", "datatype": "FP64", "shape": [-1, 2],
         "parameters": {"classes": ["no", "yes"]}},
    ]  # fmt: skip
    described = _v2.model_metadata("m", ["1", "2"], XY, {"s": Array("str", (None, 3))})
    assert described == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "raysys_graph",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "y", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "s", "datatype": "BYTES", "shape": [-1, -1, 3]}],
    }
