"""Clients of the Open Inference Protocol, Arrow and OpenAPI, as they are; and hostile ones."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import schemathesis
import tritonclient.grpc
import tritonclient.http
from hypothesis import HealthCheck, given, settings
from tritonclient.utils import InferenceServerException

from raysys.serve import Endpoint
from tests.serve.serving import Client, get, mixed_graph, post

ARROW = "application/vnd.apache.arrow.stream"
JSON_LENGTH = "inference-header-content-length"
DATATYPES = {"vector": "FP32", "weight": "INT64", "name": "BYTES", "flag": "BOOL"}
ROWS = 5
COLUMNS: dict[str, np.ndarray] = {
    "vector": np.linspace(-1, 1, 3 * ROWS, dtype=np.float32).reshape(ROWS, 3),
    "weight": np.arange(ROWS),
    "name": np.array(["ab", "", "äß", "\0", "x" * 300], object),
    "flag": np.arange(ROWS) % 2 == 0,
}
PLAIN: dict[str, Any] = {
    name: column for name, column in mixed_graph()(COLUMNS).items() if name != "pid"
}


# --- Open Inference Protocol ---


class Triton:
    """One of the two clients of tritonclient, which differ in a few names."""

    how: dict[str, Any]

    def __init__(self, module: Any, address: str) -> None:
        self.module, self.client = module, module.InferenceServerClient(address)

    def inputs(self, **how: Any) -> list[Any]:
        made = []
        for name, datatype in DATATYPES.items():
            column = COLUMNS[name]
            tensor = self.module.InferInput(name, list(column.shape), datatype)
            tensor.set_data_from_numpy(column, **how)
            made.append(tensor)
        return made


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, mixed: Endpoint) -> Iterator[Triton]:
    if request.param == "http":
        client = Triton(tritonclient.http, mixed.base_url.removeprefix("http://"))
    else:
        assert mixed.grpc_address
        client = Triton(tritonclient.grpc, mixed.grpc_address)
    yield client
    client.client.close()


def assert_plain(result: Any, names: Any = PLAIN) -> None:
    for name in names:
        answer = result.as_numpy(name).tolist()
        if name == "label":
            answer = [text.decode() if isinstance(text, bytes) else text for text in answer]
        assert answer == PLAIN[name].tolist(), name


def test_triton_finds_the_server_and_the_model(triton: Triton) -> None:
    client = triton.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mixed")
    assert client.is_model_ready("mixed", "1")
    assert not client.is_model_ready("mixed", "999")
    assert not client.is_model_ready("nobody")
    how = {"as_json": True} if triton.module is tritonclient.grpc else {}
    assert client.get_server_metadata(**how)["name"] == "raysys"
    metadata = client.get_model_metadata("mixed", **how)
    assert metadata["name"] == "mixed"
    assert metadata["versions"] == ["1"]
    inputs = {one["name"]: (one["datatype"], list(map(int, one["shape"])))
              for one in metadata["inputs"]}  # fmt: skip
    assert inputs == {
        name: (datatype, [-1, 3] if name == "vector" else [-1])
        for name, datatype in DATATYPES.items()
    }
    outputs = {one["name"]: one["datatype"] for one in metadata["outputs"]}
    assert outputs == {"scores": "FP32", "turned": "FP32", "label": "BYTES", "next": "INT64",
                       "unset": "BOOL", "pid": "INT64"}  # fmt: skip


def test_triton_infers_several_rows_in_binary(triton: Triton) -> None:
    result = triton.client.infer("mixed", triton.inputs(), request_id="ours")
    assert_plain(result)
    answer = result.get_response()
    assert (answer["id"] if isinstance(answer, dict) else answer.id) == "ours"


def test_triton_gets_the_outputs_that_it_asks_for(triton: Triton) -> None:
    wanted = [triton.module.InferRequestedOutput(name) for name in ("label", "scores")]
    result = triton.client.infer("mixed", triton.inputs(), outputs=wanted, model_version="1")
    assert_plain(result, ["label", "scores"])
    assert result.as_numpy("next") is None


def test_triton_infers_with_tensors_in_json(mixed: Endpoint) -> None:
    triton = Triton(tritonclient.http, mixed.base_url.removeprefix("http://"))
    wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=False) for name in PLAIN]
    result = triton.client.infer("mixed", triton.inputs(binary_data=False), outputs=wanted)
    assert_plain(result)
    triton.client.close()


def test_triton_is_told_what_is_wrong(triton: Triton) -> None:
    good = triton.inputs()

    def refused(*words: str, model: str = "mixed", inputs: Any = good, **how: Any) -> None:
        with pytest.raises(InferenceServerException) as caught:
            triton.client.infer(model, inputs, **how)
        assert all(word in str(caught.value) for word in words), caught.value

    refused("no application has this path", model="nobody")
    refused("missing inputs", "flag", inputs=good[:-1])
    refused("unknown output", outputs=[triton.module.InferRequestedOutput("nothing")])
    wrong = triton.module.InferInput("weight", [ROWS], "INT32")
    wrong.set_data_from_numpy(np.arange(ROWS, dtype=np.int32))
    refused("weight", "INT64", inputs=[good[0], wrong, *good[2:]])
    short = triton.module.InferInput("weight", [2], "INT64")
    short.set_data_from_numpy(np.arange(2))
    refused("equal lengths", inputs=[good[0], short, *good[2:]])


# --- Arrow ---


def arrow_body(**how: Any) -> bytes:
    table = pa.table(
        {name: pa.array(column.tolist()) for name, column in COLUMNS.items()}
        | {"vector": pa.FixedSizeListArray.from_arrays(pa.array(COLUMNS["vector"].ravel()), 3)}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**how)) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_arrow_streams_of_many_rows(mixed: Endpoint, compression: str | None) -> None:
    reply = post(mixed.url, arrow_body(compression=compression), {"content-type": ARROW})
    assert (reply.status, reply.headers["content-type"]) == (200, ARROW)
    answers = pa.ipc.open_stream(reply.body).read_all()
    for name, column in PLAIN.items():
        assert answers[name].to_pylist() == column.tolist(), name


def test_an_arrow_stream_longer_than_a_batch(mixed: Endpoint) -> None:
    rows = 1000
    table = pa.table(
        {
            "vector": pa.array([[n, n, n] for n in range(rows)], pa.list_(pa.float32(), 3)),
            "weight": np.arange(rows),
            "name": [str(n) for n in range(rows)],
            "flag": [False] * rows,
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    reply = post(mixed.url, sink.getvalue().to_pybytes(), {"content-type": ARROW})
    answers = pa.ipc.open_stream(reply.body).read_all()
    assert answers["next"].to_pylist() == list(range(1, rows + 1))
    assert answers["label"].to_pylist() == table["name"].to_pylist()


# --- hostile bodies ---


def v2_body() -> tuple[bytes, dict[str, str]]:
    inputs, parts = [], []
    for name, datatype in DATATYPES.items():
        column = COLUMNS[name]
        if datatype == "BYTES":
            texts = [text.encode() for text in column]
            raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            raw = column.tobytes()
        inputs.append({"name": name, "datatype": datatype, "shape": list(column.shape),
                       "parameters": {"binary_data_size": len(raw)}})  # fmt: skip
        parts.append(raw)
    text = json.dumps({"inputs": inputs}).encode()
    return b"".join([text, *parts]), {JSON_LENGTH: str(len(text))}


def v2_json_body() -> tuple[bytes, dict[str, str]]:
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(COLUMNS[name].shape),
         "data": COLUMNS[name].tolist()}
        for name, datatype in DATATYPES.items()
    ]  # fmt: skip
    return json.dumps({"inputs": inputs}).encode(), {}


def json_body() -> tuple[bytes, dict[str, str]]:
    row = {name: column[0].tolist() if name != "name" else column[0]
           for name, column in COLUMNS.items()}  # fmt: skip
    return json.dumps(row).encode(), {}


def spoiled(body: bytes, rng: random.Random) -> bytes:
    """A body with some bits flipped, a part cut out or put in twice, or its end missing."""
    data = bytearray(body)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if kind == 1:
        return bytes(data[:start])
    if kind == 2:
        return bytes(data[:start] + data[stop:])
    return bytes(data[:stop] + data[start:])


def spoiled_headers(headers: dict[str, str], rng: random.Random) -> dict[str, str]:
    """Often as they are, else with a length or a type that is wrong."""
    if rng.random() < 0.7:
        return headers
    lengths = ["", "-1", "0", "1", "1e3", "0x10", "99999999999999999999", "٣".encode().hex(),
               "9" * 5000, " 5 ", "5, 5"]  # fmt: skip
    types = ["", "application/json; charset=latin-1", "application/octet-stream", "*/*", ARROW]
    return {**headers, rng.choice([JSON_LENGTH, "content-type"]): rng.choice([*lengths, *types])}


@pytest.mark.parametrize(
    ("make", "kind", "path"),
    [
        (lambda: (arrow_body(), {}), ARROW, "/mixed"),
        (lambda: (arrow_body(compression="lz4"), {}), ARROW, "/mixed"),
        (v2_body, "application/octet-stream", "/v2/models/mixed/infer"),
        (v2_json_body, "application/json", "/v2/models/mixed/infer"),
        (json_body, "application/json", "/mixed"),
    ],
    ids=["arrow", "arrow compressed", "v2 binary", "v2 json", "json"],
)
def test_a_spoiled_body_is_the_clients_error(
    mixed: Endpoint, make: Callable[[], tuple[bytes, dict[str, str]]], kind: str, path: str
) -> None:
    pid = answered_by(mixed)
    body, headers = make()
    rng, client, refused = random.Random(kind + path), Client(mixed.url), 0
    assert client.post(body, {"content-type": kind, **headers}, path).status == 200
    for number in range(120):
        bad = spoiled(body, rng)
        sent = spoiled_headers({"content-type": kind, **headers}, rng)
        reply = client.post(bad, sent, path)
        assert reply.status == 200 or 400 <= reply.status < 500, (number, sent, bad, reply)
        if reply.status != 200:
            assert reply.json["error"]
            refused += 1
    assert refused > 40
    assert answered_by(mixed) == pid


def test_an_arrow_stream_that_could_run_code_is_refused(mixed: Endpoint) -> None:
    kind = pa.list_(pa.float32(), 3)
    meta = {"ARROW:extension:name": "ray.data.arrow_pickled_object",
            "ARROW:extension:metadata": ""}  # fmt: skip
    schema = pa.schema([pa.field("vector", kind, metadata=meta)])
    table = pa.table([pa.array([[1, 2, 3]], kind)], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    reply = post(mixed.url, sink.getvalue().to_pybytes(), {"content-type": ARROW})
    assert reply.status == 400
    assert "extension type" in reply.json["error"]


def answered_by(endpoint: Endpoint) -> int:
    return int(endpoint.predict(json.loads(json_body()[0]))["pid"])


# --- OpenAPI ---


@schemathesis.serializer(ARROW)
def _arrow_bytes(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_requests_made_from_the_openapi_form_are_answered_by_it(
    mixed: Endpoint, mode: schemathesis.GenerationMode
) -> None:
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_url(f"{mixed.url}/openapi.json")
    operations = {one.ok().method: one.ok() for one in schema.get_all_operations()}
    assert set(operations) == {"post", "get"}
    pid, statuses = answered_by(mixed), set()

    @settings(max_examples=50, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(operations["post"].as_strategy(generation_mode=mode))
    def conforms(case: schemathesis.Case) -> None:
        # The form cannot say that bytes are an Arrow stream of these columns, nor that 1.0 is no
        # integer, as it is in JSON Schema.
        weight = case.body.get("weight") if isinstance(case.body, dict) else None
        vague = case.media_type == ARROW or isinstance(weight, float)
        excluded = [checks.positive_data_acceptance] if vague else []
        reply = case.call_and_validate(excluded_checks=excluded)
        assert reply.status_code < 500
        statuses.add(reply.status_code)

    conforms()
    assert (200 in statuses) is (mode == schemathesis.GenerationMode.POSITIVE)
    operations["get"].Case().call_and_validate()
    assert answered_by(mixed) == pid


def test_the_servers_own_description(mixed: Endpoint) -> None:
    answer = get(f"{mixed.base_url}/v2").json
    assert set(answer) == {"name", "version", "extensions"}
    assert get(f"{mixed.base_url}/v2/models/mixed/infer").status == 405
