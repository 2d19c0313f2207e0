import asyncio
import queue
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from raysys.errors import DataError, ResourceError
from raysys.gateway import _grpc_proxy as _grpc
from raysys.gateway import inference_pb2 as messages
from raysys.gateway import server_metadata
from raysys.serve import Array
from raysys.serve._column_types import rows_of
from raysys.serve.protocols import _open_inference as _v2

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "str",
]  # fmt: skip
ECHO = {dtype: {"x": Array(dtype, (None,))} for dtype in DTYPES}


@dataclass
class Endpoint:
    """An HTTP endpoint of the protocol: model `<dtype>` gives its input back as `y`."""

    seen: list[web.Request] = field(default_factory=list)
    healthy: bool = True
    status: int = 200
    error: str = ""
    left: threading.Event = field(default_factory=threading.Event)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._watch])
        app.router.add_get("/base/v2/health/{what}", self._health)
        app.router.add_get("/base/v2", self._server)
        for path in ("/base/v2/models/{name}", "/base/v2/models/{name}/versions/{version}"):
            app.router.add_get(path, self._model)
            app.router.add_get(f"{path}/ready", self._model)
            app.router.add_get(f"{path}/config", self._config)
            app.router.add_post(f"{path}/infer", self._infer)
        return app

    @web.middleware
    async def _watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append(request)
        if self.status != 200:
            error = {"error": self.error} if self.error else ["?"]
            return web.json_response(error, status=self.status, headers={"Location": "/base/v2"})
        response = await handler(request)
        response.headers["x-request-id"] = request.headers.get("x-request-id", "")
        return response

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.healthy else 503)

    async def _server(self, request: web.Request) -> web.Response:
        return web.json_response(server_metadata())

    async def _model(self, request: web.Request) -> web.Response:
        name, version = request.match_info["name"], request.match_info.get("version", "1")
        if name not in ECHO or version not in "12":
            return web.json_response({"error": f"no model {name} {version}"}, status=404)
        outputs = {"y": ECHO[name]["x"]}
        return web.json_response(_v2.model_metadata(name, ["1", "2"], ECHO[name], outputs))

    async def _config(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(_v2.model_config(name, 8, ECHO[name], {"y": ECHO[name]["x"]}))

    async def _infer(self, request: web.Request) -> web.Response:
        name, version = request.match_info["name"], request.match_info.get("version", "2")
        if name == "slow":
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        length = request.headers.get(_v2.JSON_LENGTH_HEADER)
        try:
            asked = _v2.decode(await request.read(), length and int(length), ECHO[name])
            columns = {"y": asked.columns["x"], "sizes": np.array([len(asked.columns["x"])])}
            body, json_length = _v2.encode(asked, name, version, columns)
        except DataError as error:
            return web.json_response({"error": str(error)}, status=422)
        headers = {} if json_length is None else {_v2.JSON_LENGTH_HEADER: str(json_length)}
        return web.Response(body=body, headers=headers)


class Served:
    """The endpoint and its gRPC side, on an event loop in a thread."""

    def __init__(self) -> None:
        self.endpoint = Endpoint()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self._start())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _start(self) -> None:
        self._runner = web.AppRunner(self.endpoint.app(), handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.http_port = self._runner.addresses[0][1]
        self.server, self.port = await _grpc.serve_grpc(
            "127.0.0.1", 0, f"http://127.0.0.1:{self.http_port}/base/"
        )

    def stop(self) -> None:
        self.run(self.server.stop(None))
        self.run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


@pytest.fixture
def served(running: Served) -> Served:
    fresh = Endpoint()
    for name in ("seen", "healthy", "status", "error", "left"):
        setattr(running.endpoint, name, getattr(fresh, name))
    return running


@pytest.fixture
def triton(served: Served) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(f"127.0.0.1:{served.port}") as one:
        yield one


@pytest.fixture
def stub(served: Served) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(values: np.ndarray, dtype: str, name: str = "x") -> client.InferInput:
    datatype = _v2.datatype(Array(dtype))
    return client.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


ONE = np.array([[1.0, 2.0]], np.float32)


def descriptors(owner: Any) -> Iterator[Any]:
    """Descriptors of messages, with those nested in them."""
    for descriptor in owner:
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from descriptors(descriptor.nested_types)


OURS = list(descriptors(messages.DESCRIPTOR.message_types_by_name.values()))


def test_the_messages_equal_the_published_service() -> None:
    published = [service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR]
    theirs = {
        descriptor.name: descriptor
        for file in published
        for descriptor in descriptors(file.message_types_by_name.values())
    }
    kinds = messages.DataType.DESCRIPTOR.values_by_name
    assert {name: kind.number for name, kind in kinds.items()}.items() <= dict(
        model_config_pb2.DataType.items()
    ).items()
    for ours in OURS:
        for sent in ours.fields:
            same = theirs[ours.name].fields_by_name[sent.name]
            assert (sent.number, sent.type, sent.is_repeated) == (
                same.number, same.type, same.is_repeated,
            )  # fmt: skip
            if sent.message_type:
                assert sent.message_type.name == same.message_type.name
                assert sent.message_type.GetOptions().map_entry == (
                    same.message_type.GetOptions().map_entry
                )


def test_the_generated_module_agrees_with_its_proto_file() -> None:
    fields, owners = set(), list[str]()
    text = Path(messages.__file__).with_name("inference.proto").read_text()
    for line in re.sub(r"enum \w+ \{.*?\}", "", text, flags=re.DOTALL).splitlines():
        if match := re.match(r"\s*(message|oneof) (\w+) \{(\})?", line):
            owners += [] if match[3] else [owners[-1] if match[1] == "oneof" else match[2]]
        elif line.strip() == "}":
            owners.pop()
        elif match := re.match(r"\s+(.+) (\w+) = (\d+);", line):
            repeated = match[1].startswith(("repeated ", "map<"))
            fields.add((owners[-1], match[2], int(match[3]), repeated))
    generated = {
        (descriptor.name, sent.name, sent.number, sent.is_repeated)
        for descriptor in OURS
        for sent in descriptor.fields
    }
    assert generated == fields


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_client_gets_back_what_it_sent(
    triton: client.InferenceServerClient, dtype: str
) -> None:
    if dtype == "str":
        values = np.array([["", "naïve 日本"], ["a\0", "b"]], dtype=object)
        expected = np.vectorize(str.encode, otypes=[object])(values)
    else:
        values = expected = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    result = triton.infer(dtype, [tensor(values, dtype)], request_id="abc")
    given = result.as_numpy("y")
    assert given.dtype == values.dtype
    np.testing.assert_array_equal(given, expected)
    assert result.as_numpy("sizes").tolist() == [2]
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (dtype, "2", "abc")


def test_a_version_and_outputs_can_be_named(triton: client.InferenceServerClient) -> None:
    wanted = [client.InferRequestedOutput("sizes")]
    inputs = [tensor(ONE, "float32")]
    result = triton.infer("float32", inputs, model_version="1", outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["sizes"]
    assert result.get_response().model_version == "1"
    assert result.get_response().id == ""


def test_the_first_input_is_aligned_so_that_nobody_copies_it() -> None:
    for name in ("m", "mo", "model"):
        request = messages.ModelInferRequest(
            model_name=name, id=name, raw_input_contents=[ONE.tobytes()]
        )
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        body, length = _grpc._to_http(request)
        assert length % 64 == 0
        column = _v2.decode(body, length, {"x": Array("float32", (2,))}).columns["x"]
        assert np.shares_memory(column, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("dtype", "contents", "values"),
    [
        ("bool", "bool_contents", [True, False]),
        ("int8", "int_contents", [-128, 127]),
        ("int16", "int_contents", [-(2**15), 2**15 - 1]),
        ("int32", "int_contents", [-(2**31), 2**31 - 1]),
        ("int64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("uint8", "uint_contents", [0, 255]),
        ("uint16", "uint_contents", [0, 2**16 - 1]),
        ("uint32", "uint_contents", [0, 2**32 - 1]),
        ("uint64", "uint64_contents", [0, 2**64 - 1]),
        ("float32", "fp32_contents", [0.5, -1.5]),
        ("float64", "fp64_contents", [0.1, -1e300]),
        ("str", "bytes_contents", [b"", "é".encode()]),
    ],
)
def test_values_may_be_typed_instead_of_raw(
    stub: Any, dtype: str, contents: str, values: list[Any]
) -> None:
    request = service_pb2.ModelInferRequest(model_name=dtype)
    one = request.inputs.add(name="x", datatype=_v2.datatype(Array(dtype)), shape=[2, 1])
    getattr(one.contents, contents).extend(values)
    result = client.InferResult(stub.ModelInfer(request))
    assert result.as_numpy("y").ravel().tolist() == values


def test_outputs_are_raw_whatever_the_parameters_say(stub: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="float32")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(ONE.tobytes())
    request.parameters["binary_data_output"].bool_param = False
    assert stub.ModelInfer(request).raw_output_contents[0] == ONE.tobytes()
    request.outputs.add(name="y").parameters["binary_data"].bool_param = False
    assert list(stub.ModelInfer(request).raw_output_contents) == [ONE.tobytes()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.inputs[0].contents.fp64_contents.append(1), "belongs in fp32_contents"),
        (lambda r: r.inputs[0].contents.ClearField("fp32_contents"), "x: 2 values of FP32 take 8"),
        (lambda r: r.raw_input_contents.append(b"12345678"), "x: has both contents and raw"),
        (lambda r: r.raw_input_contents.extend([b"", b""]), "1 inputs, but 2 raw_input_contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "x: send 'FP16' as raw"),
        (lambda r: setattr(r.inputs[0], "datatype", "INT8"), "x: INT8 belongs in int_contents"),
        (lambda r: setattr(r.inputs[0], "name", "z"), "unknown input 'z'"),
        (lambda r: r.inputs[0].shape.append(1), "x: shape must be [-1, -1]"),
        (lambda r: r.inputs.add().CopyFrom(r.inputs[0]), "x: given twice"),
        (lambda r: r.ClearField("inputs"), "missing inputs ['x']"),
        (lambda r: r.outputs.add(name="z"), "unknown output 'z'"),
        (
            lambda r: setattr(
                r.outputs.add(name="y").parameters["classification"], "int64_param", 3
            ),
            "output 'y': the parameter 'classification' is not supported",
        ),
        (
            lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
            "x: the parameter 'shared_memory_region' is not supported",
        ),
    ],
)
def test_requests_that_do_not_fit_are_invalid_arguments(
    stub: Any, change: Any, message: str
) -> None:
    request = service_pb2.ModelInferRequest(model_name="float32")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(
        [1, 2]
    )
    assert stub.ModelInfer(request).raw_output_contents
    change(request)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in refused.value.details()


def test_typed_values_beyond_the_range_are_invalid_arguments(stub: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="int8")
    request.inputs.add(name="x", datatype="INT8", shape=[1, 1]).contents.int_contents.append(128)
    with pytest.raises(grpc.RpcError, match="x: values beyond the range of INT8"):
        stub.ModelInfer(request)


def test_parameters_arrive_with_their_types() -> None:
    request = messages.ModelInferRequest()
    kinds = {"bool": True, "int64": -1, "string": "s", "double": 0.5, "uint64": 2**63}
    for kind, value in kinds.items():
        setattr(request.parameters[kind], f"{kind}_param", value)
    assert request.parameters["none"].WhichOneof("choice") is None
    assert _grpc._parameters(request) == kinds


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"), (413, "INVALID_ARGUMENT"), (422, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"), (502, "INTERNAL"), (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"), (302, "INTERNAL"), (418, "INTERNAL"),
    ],
)  # fmt: skip
def test_errors_keep_their_meaning_and_their_text(
    served: Served, triton: client.InferenceServerClient, status: int, code: str
) -> None:
    served.endpoint.status, served.endpoint.error = status, "x: the reason, naïve 日本"
    calls = [
        lambda: triton.infer("float32", [tensor(ONE, "float32")]),
        lambda: triton.get_model_metadata("float32"),
        triton.get_server_metadata,
    ]
    for call in calls:
        with pytest.raises(client.InferenceServerException) as refused:
            call()
        assert refused.value.status() == f"StatusCode.{code}"
        assert refused.value.message() == "x: the reason, naïve 日本"


def test_errors_without_a_text_tell_the_status(
    served: Served, triton: client.InferenceServerClient
) -> None:
    served.endpoint.status = 500
    with pytest.raises(client.InferenceServerException, match="responded with status 500"):
        triton.get_server_metadata()


def test_a_long_text_of_an_error_does_not_break_the_call(
    served: Served, triton: client.InferenceServerClient
) -> None:
    served.endpoint.status, served.endpoint.error = 422, "日" * 100_000
    with pytest.raises(client.InferenceServerException) as refused:
        triton.get_server_metadata()
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert refused.value.message().startswith("日日日")


def test_health_and_metadata(served: Served, triton: client.InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    paths = [request.path for request in served.endpoint.seen]
    assert paths == ["/base/v2/health/live", "/base/v2/health/ready"]
    assert triton.is_model_ready("float32")
    assert triton.is_model_ready("float32", "1")
    assert not triton.is_model_ready("none")
    assert not triton.is_model_ready("float32", "3")
    assert "binary_tensor_data" in triton.get_server_metadata().extensions
    described = triton.get_model_metadata("str", as_json=True)
    assert described == {
        "name": "str",
        "versions": ["1", "2"],
        "platform": "raysys_graph",
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": ["-1", "-1"]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": ["-1", "-1"]}],
    }
    served.endpoint.healthy = False
    assert not triton.is_server_live()
    assert not triton.is_server_ready()
    served.endpoint.status = 401
    with pytest.raises(client.InferenceServerException, match="UNAUTHENTICATED"):
        triton.is_server_ready()


def test_the_model_configuration_has_the_shapes_of_a_row(
    triton: client.InferenceServerClient,
) -> None:
    config = triton.get_model_config("str").config
    assert (config.name, config.platform, config.max_batch_size) == ("str", "raysys_graph", 8)
    for one, name in ((config.input[0], "x"), (config.output[0], "y")):
        assert (one.name, list(one.dims)) == (name, [-1])
        assert one.data_type == model_config_pb2.TYPE_STRING
    config = triton.get_model_config("float32").config
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32


def test_a_response_and_an_error_have_the_id_of_their_request(served: Served, stub: Any) -> None:
    request = service_pb2.ModelMetadataRequest(name="float32")
    _, call = stub.ModelMetadata.with_call(request, metadata=[("x-request-id", "mine")])
    assert ("x-request-id", "mine") in call.trailing_metadata()
    request.name = "nobody"
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelMetadata(request, metadata=[("x-request-id", "mine")])
    assert ("x-request-id", "mine") in refused.value.trailing_metadata()


# --- streams and garbage ---


def test_a_stream_answers_each_request_in_order_and_goes_on_after_errors(stub: Any) -> None:
    def requests() -> Iterator[Any]:
        for number in range(100):
            dtype = "none" if number % 10 == 3 else "float32"
            request = service_pb2.ModelInferRequest(model_name=dtype, id=str(number))
            request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
            request.raw_input_contents.append(np.float32(number).tobytes())
            yield request

    for number, answer in enumerate(stub.ModelStreamInfer(requests())):
        response = answer.infer_response
        assert response.id == str(number)
        if number % 10 == 3:
            assert answer.error_message == "the HTTP endpoint responded with status 500"
        else:
            assert answer.error_message == ""
            assert response.parameters["triton_final_response"].bool_param
            assert client.InferResult(response).as_numpy("y").tolist() == [[number]]
    assert number == 99


def test_triton_streams(triton: client.InferenceServerClient) -> None:
    seen: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton.start_stream(lambda result, error: seen.put((result, error)))
    for model in ("float32", "nobody", "float32"):
        triton.async_stream_infer(
            model, [tensor(ONE, "float32")], request_id=model, enable_empty_final_response=True
        )
    answers = [seen.get(timeout=20) for _ in range(3)]
    triton.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    np.testing.assert_array_equal(answers[2][0].as_numpy("y"), ONE)


GARBAGE = [b"\xff", b"garbage" * 100, b"\x0a\x02\xff\xff", b"\x2a\xff\xff\xff\xff\x0f"]


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_is_an_invalid_argument(served: Served, data: bytes) -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        for method in ("ModelInfer", "ModelReady", "ModelConfig", "RepositoryIndex"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{service.full_name}/{method}")(data, timeout=20)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "bytes that are not a" in refused.value.details()
        stream = channel.stream_stream(f"/{service.full_name}/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as refused:
            list(stream(iter([data]), timeout=20))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_compressed_message_has_the_limit_of_what_it_holds(served: Served) -> None:
    with client.InferenceServerClient(f"127.0.0.1:{served.port}") as triton:
        inputs = [tensor(np.zeros((1, 1000)), "float64")]
        result = triton.infer("float64", inputs, compression_algorithm="gzip")
        assert result.as_numpy("y").shape == (1, 1000)
        bomb = [tensor(np.zeros((1, 20 << 20)), "float64")]
        with pytest.raises(client.InferenceServerException, match="RESOURCE_EXHAUSTED"):
            triton.infer("float64", bomb, compression_algorithm="gzip")


def test_a_name_cannot_reach_another_address(
    served: Served, triton: client.InferenceServerClient
) -> None:
    for name in ("../../v2", "..", "a/b", "a?b", "a%2Fb", "a b", "é", "a#b"):
        with pytest.raises(client.InferenceServerException, match="NOT_FOUND"):
            triton.get_model_metadata(name)
        sent = served.endpoint.seen[-1].raw_path
        assert sent == f"/base/v2/models/{urllib.parse.quote(name, safe='')}"
    assert not triton.is_model_ready("")


def test_headers_and_the_deadline_are_passed_on(
    served: Served, triton: client.InferenceServerClient
) -> None:
    headers = {
        "authorization": "Bearer t",
        "x-request-id": "r1",
        "traceparent": "00-1",
        "other": "o",
    }
    triton.infer("float32", [tensor(ONE, "float32")], headers=headers, client_timeout=10_000)
    got = served.endpoint.seen[-1].headers
    assert (got["authorization"], got["x-request-id"], got["traceparent"]) == (
        "Bearer t", "r1", "00-1",
    )  # fmt: skip
    assert "other" not in got
    # gRPC rounds what it sends.
    assert 1000 < float(got["x-request-timeout-seconds"]) < 11_000
    triton.infer("float32", [tensor(ONE, "float32")])
    got = served.endpoint.seen[-1].headers
    assert not {"authorization", "x-request-id", "x-request-timeout-seconds"} & set(got)


def test_a_call_ends_at_its_deadline_on_both_sides(
    served: Served, triton: client.InferenceServerClient
) -> None:
    with pytest.raises(client.InferenceServerException, match="DEADLINE_EXCEEDED"):
        triton.infer("slow", [tensor(ONE, "float32")], client_timeout=2)
    assert served.endpoint.left.wait(60)


def test_messages_may_have_64_mib_and_no_more(triton: client.InferenceServerClient) -> None:
    values = np.zeros((1, 5 << 20), np.float64)
    assert triton.infer("float64", [tensor(values, "float64")]).as_numpy("y").shape == values.shape
    with pytest.raises(client.InferenceServerException, match="RESOURCE_EXHAUSTED"):
        triton.infer("float64", [tensor(np.zeros((1, 8 << 20)), "float64")])


def test_an_endpoint_that_is_down_is_unavailable(served: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        server, port = served.run(_grpc.serve_grpc("127.0.0.1", 0, url))
        with client.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            for call in (
                triton.is_server_live,
                lambda: triton.infer("m", [tensor(ONE, "float32")]),
            ):
                with pytest.raises(client.InferenceServerException) as refused:
                    call()
                assert refused.value.status() == "StatusCode.UNAVAILABLE"
                assert url in refused.value.message()
        served.run(server.stop(None))


def test_only_the_given_address_is_bound_and_only_once(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port))
    with pytest.raises(ResourceError, match=f"cannot listen on 127.0.0.1:{served.port}"):
        served.run(_grpc.serve_grpc("127.0.0.1", served.port, "http://127.0.0.1:1"))


def test_an_address_of_ipv6_can_be_bound(served: Served) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    url = f"http://127.0.0.1:{served.http_port}/base"
    server, port = served.run(_grpc.serve_grpc("::1", 0, url))
    with client.InferenceServerClient(f"[::1]:{port}") as triton:
        assert triton.is_server_live()
    served.run(server.stop(None))


def test_the_connections_are_closed_after_the_server(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    session = _grpc.aiohttp.ClientSession
    monkeypatch.setattr(
        _grpc.aiohttp, "ClientSession", lambda **more: made.append(session(**more)) or made[-1]
    )

    async def start_and_stop() -> None:
        server, _ = await _grpc.serve_grpc("127.0.0.1", 0, "http://127.0.0.1:1")
        assert not made[0].closed
        others = asyncio.all_tasks() - {asyncio.current_task()}
        closing = [task for task in others if task.get_coro().__name__ == "close"]
        await server.stop(None)
        await asyncio.gather(*closing[-1:])

    asyncio.run(start_and_stop())
    assert made[0].closed


TEXT = st.text(max_size=3)
MESSAGES = st.builds(
    service_pb2.ModelInferRequest,
    model_name=TEXT,
    id=TEXT,
    parameters=st.dictionaries(
        TEXT | st.just("binary_data_output"),
        st.builds(service_pb2.InferParameter)
        | st.builds(service_pb2.InferParameter, double_param=st.floats())
        | st.builds(service_pb2.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
        max_size=2,
    ),
    inputs=st.lists(
        st.builds(
            service_pb2.ModelInferRequest.InferInputTensor,
            name=st.sampled_from(["x", "y"]) | TEXT,
            datatype=st.sampled_from(["FP32", "INT8", "UINT16", "BYTES", "FP16"]) | TEXT,
            shape=st.lists(st.integers(-1, 2) | st.integers(-(2**63), 2**63 - 1), max_size=3),
            contents=st.none()
            | st.builds(
                service_pb2.InferTensorContents,
                int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2),
                uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=2),
                fp32_contents=st.lists(st.floats(width=32), max_size=2),
                bytes_contents=st.lists(st.binary(max_size=2), max_size=2),
            ),
        ),
        max_size=3,
    ),
    outputs=st.lists(
        st.builds(service_pb2.ModelInferRequest.InferRequestedOutputTensor, name=TEXT), max_size=2
    ),
    raw_input_contents=st.lists(st.binary(max_size=9), max_size=3),
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(MESSAGES, st.sampled_from([Array("float32"), Array("int8"), Array("str", (None,))]))
def test_arbitrary_messages_are_refused_as_bad_data(message: Any, array: Array) -> None:
    ours = messages.ModelInferRequest.FromString(message.SerializeToString())
    try:
        body, length = _grpc._to_http(ours)
        request = _v2.decode(body, length, {"x": array})
    except DataError:
        return
    assert rows_of(request.columns) == len(request.columns["x"]) > 0
