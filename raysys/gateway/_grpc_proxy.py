"""Open Inference Protocol v2 over gRPC, translated to the HTTP endpoint.

Ray Serve's own gRPC ingress is not used: in Ray 2.60 it always binds every interface, and it routes
by application metadata that clients of the protocol do not send.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import grpc
import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from yarl import URL

from raysys.errors import DataError, ResourceError
from raysys.gateway import inference_pb2 as messages
from raysys.gateway._wire import (
    INDEX_PATH,
    JSON_LENGTH_HEADER,
    STATISTICS_PATH,
    TIMEOUT_HEADER,
)

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

_SERVICE = "inference.GRPCInferenceService"
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_PENDING = 32  # requests of a stream
_PASSED_ON = ("authorization", "x-request-id", "traceparent")
# gRPC sends an error's details as a header, and clients refuse headers beyond 8 KiB.
_MAX_DETAILS = 800

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Field of a datatype's values that are not sent raw, and their NumPy dtype as bytes.
_CONTENTS = {
    "BOOL": ("bool_contents", "?"), "BYTES": ("bytes_contents", ""),
    "INT8": ("int_contents", "i1"), "UINT8": ("uint_contents", "u1"),
    "INT16": ("int_contents", "<i2"), "UINT16": ("uint_contents", "<u2"),
    "INT32": ("int_contents", "<i4"), "UINT32": ("uint_contents", "<u4"),
    "INT64": ("int64_contents", "<i8"), "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"), "FP64": ("fp64_contents", "<f8"),
}  # fmt: skip


async def serve_grpc(host: str, port: int, http_url: str) -> tuple[grpc.aio.Server, int]:
    """Serve the protocol's gRPC clients through its HTTP endpoint, `http_url` without `/v2`.

    Returns:
        The running server and its port; a free one if `port` is 0.

    Raises:
        ResourceError: The address cannot be bound.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Otherwise a second server could bind the same port and receive half of the calls.
            ("grpc.so_reuseport", 0),
        ]
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ResourceError(
            f"gRPC cannot listen on {address}: use a free port, or 0, and an address of this "
            "machine"
        ) from error
    translation = _Translation(http_url)
    methods = {
        "ServerLive": translation.server_live, "ServerReady": translation.server_ready,
        "ModelReady": translation.model_ready, "ModelMetadata": translation.model_metadata,
        "ModelInfer": translation.infer, "ServerMetadata": translation.server_metadata,
        "ModelConfig": translation.model_config, "ModelStatistics": translation.model_statistics,
        "RepositoryIndex": translation.repository_index,
    }  # fmt: skip
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answering(getattr(messages, f"{name}Request"), method),
            response_serializer=getattr(messages, f"{name}Response").SerializeToString,
        )
        for name, method in methods.items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        translation.stream_infer,
        response_serializer=messages.ModelStreamInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    await server.start()
    translation.closing = asyncio.create_task(translation.close_after(server))
    return server, bound


class _RefusedError(Exception):
    """An error response; its text is cut to what clients accept."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text[:_MAX_DETAILS])
        self.code = code


class _Translation:
    """The methods of the service, translated to HTTP requests.

    All but `stream_infer` raise _RefusedError, or DataError for an invalid argument.
    """

    closing: asyncio.Task[None]

    def __init__(self, http_url: str) -> None:
        self._url = http_url.rstrip("/")
        # The client's deadline and the endpoint's limits bound time and number of calls.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            skip_auto_headers=["Accept-Encoding"],
        )

    async def close_after(self, server: grpc.aio.Server) -> None:
        """Close the HTTP connections when the server has stopped."""
        async with self._session:
            await server.wait_for_termination()

    async def server_live(self, request: Any, context: ServicerContext) -> Any:
        return messages.ServerLiveResponse(live=await self._ready("/v2/health/live", context))

    async def server_ready(self, request: Any, context: ServicerContext) -> Any:
        return messages.ServerReadyResponse(ready=await self._ready("/v2/health/ready", context))

    async def model_ready(self, request: Any, context: ServicerContext) -> Any:
        path = f"{_model_path(request.name, request.version)}/ready"
        return messages.ModelReadyResponse(ready=await self._ready(path, context))

    async def server_metadata(self, request: Any, context: ServicerContext) -> Any:
        return _message(messages.ServerMetadataResponse, await self._describe("/v2", context))

    async def model_metadata(self, request: Any, context: ServicerContext) -> Any:
        path = _model_path(request.name, request.version)
        return _message(messages.ModelMetadataResponse, await self._describe(path, context))

    async def model_config(self, request: Any, context: ServicerContext) -> Any:
        path = f"{_model_path(request.name, request.version)}/config"
        config = await self._describe(path, context)
        return _message(messages.ModelConfigResponse, {"config": config})

    async def model_statistics(self, request: Any, context: ServicerContext) -> Any:
        path = STATISTICS_PATH
        if request.name:
            path = f"{_model_path(request.name, request.version)}/stats"
        return _message(messages.ModelStatisticsResponse, await self._describe(path, context))

    async def repository_index(self, request: Any, context: ServicerContext) -> Any:
        body = orjson.dumps({"ready": request.ready})
        models = await self._describe(INDEX_PATH, context, body)
        return _message(messages.RepositoryIndexResponse, {"models": models})

    async def infer(self, request: Any, context: ServicerContext) -> Any:
        body, json_length = _to_http(request)
        path = f"{_model_path(request.model_name, request.model_version)}/infer"
        status, headers, answer = await self._call(path, context, body, json_length)
        if status != 200:
            raise _refusal(status, answer)
        return _from_http(answer, int(headers.get(JSON_LENGTH_HEADER, len(answer))))

    async def stream_infer(self, requests: AsyncIterator[bytes], context: ServicerContext) -> None:
        """Answer each request, in their order; an error concerns its request only."""
        free, previous = asyncio.Semaphore(_MAX_PENDING), None

        async def answer(request: Any, before: asyncio.Task[None] | None) -> None:
            response = await self._streamed(request, context)
            if before:
                await before
            await context.write(response)
            free.release()

        malformed: DataError | None = None
        async with asyncio.TaskGroup() as group:
            async for data in requests:
                try:
                    request = _parsed(messages.ModelInferRequest, data)
                except DataError as error:
                    malformed = error
                    break
                await free.acquire()
                previous = group.create_task(answer(request, previous))
        if malformed:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(malformed))

    async def _streamed(self, request: Any, context: ServicerContext) -> Any:
        try:
            response = await self.infer(request, context)
        except (_RefusedError, DataError) as error:
            response = messages.ModelInferResponse(model_name=request.model_name, id=request.id)
            return messages.ModelStreamInferResponse(
                error_message=str(error)[:_MAX_DETAILS], infer_response=response
            )
        # Clients that take several responses to a request wait for this one.
        response.parameters["triton_final_response"].bool_param = True
        return messages.ModelStreamInferResponse(infer_response=response)

    async def _ready(self, path: str, context: ServicerContext) -> bool:
        status, _, answer = await self._call(path, context)
        if status in (401, 403):
            raise _refusal(status, answer)
        return status == 200

    async def _describe(
        self, path: str, context: ServicerContext, body: bytes | None = None
    ) -> Any:
        status, _, answer = await self._call(path, context, body)
        if status != 200:
            raise _refusal(status, answer)
        return orjson.loads(answer)

    async def _call(
        self, path: str, context: ServicerContext, body: bytes | None = None, json_length: int = 0
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the endpoint's response: to GET, or to POST with a body."""
        url, method = URL(self._url + path, encoded=True), "GET" if body is None else "POST"
        headers = {key: value for key, value in context.invocation_metadata() if key in _PASSED_ON}
        remaining = context.time_remaining()
        if remaining is not None:
            headers[TIMEOUT_HEADER] = f"{max(remaining, 0.001):.3f}"
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
            headers[JSON_LENGTH_HEADER] = str(json_length)
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as reply:
                identity = "x-request-id", reply.headers.get("x-request-id", "")
                context.set_trailing_metadata((identity,))
                return reply.status, reply.headers, await reply.read()
        except aiohttp.ClientError as error:
            text = f"{self._url} is not reachable: {error}"
            raise _RefusedError(grpc.StatusCode.UNAVAILABLE, text) from error


def _answering(
    kind: Any, method: Callable[[Any, ServicerContext], Awaitable[Any]]
) -> Callable[[bytes, ServicerContext], Awaitable[Any]]:
    """The handler of a method, which takes a message as bytes: gRPC calls garbage INTERNAL."""

    async def answer(data: bytes, context: ServicerContext) -> Any:
        try:
            return await method(_parsed(kind, data), context)
        except DataError as error:
            refusal = _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except _RefusedError as error:
            refusal = error
        return await context.abort(refusal.code, str(refusal))

    return answer


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise DataError(f"{len(data)} bytes that are not a {kind.__name__}: {error}") from error


def _message(kind: Any, content: dict[str, Any]) -> Any:
    return json_format.ParseDict(content, kind(), ignore_unknown_fields=True)


def _refusal(status: int, answer: bytes) -> _RefusedError:
    try:
        text = str(orjson.loads(answer)["error"])
    except (ValueError, TypeError, LookupError):
        text = f"the HTTP endpoint responded with status {status}"
    return _RefusedError(_CODES.get(status, grpc.StatusCode.INTERNAL), text)


def _model_path(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _to_http(request: Any) -> tuple[bytes, int]:
    """The body of the HTTP request, and the length of its JSON."""
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise DataError(
            f"{len(request.inputs)} inputs, but {len(raws)} raw_input_contents: send all of them "
            "raw, or none"
        )
    parts = list(raws) or [_contents(tensor) for tensor in request.inputs]
    inputs = []
    for tensor, part in zip(request.inputs, parts, strict=True):
        if raws and tensor.HasField("contents"):
            raise DataError(f"{tensor.name}: has both contents and raw_input_contents")
        parameters = _parameters(tensor) | {"binary_data_size": len(part)}
        described = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        inputs.append(described | {"parameters": parameters})
    header: dict[str, Any] = {
        "inputs": inputs,
        "outputs": [
            {"name": output.name, "parameters": _parameters(output) | {"binary_data": True}}
            for output in request.outputs
        ],
        "parameters": _parameters(request) | {"binary_data_output": True},
    }
    if request.id:
        header["id"] = request.id
    text = orjson.dumps(header)
    # Padding, so that the first input is aligned and the endpoint need not copy it.
    text += b" " * (-len(text) % 64)
    return b"".join([text, *parts]), len(text)


def _from_http(answer: bytes, json_length: int) -> Any:
    header = orjson.loads(answer[:json_length])
    response = messages.ModelInferResponse(
        model_name=header["model_name"],
        model_version=header.get("model_version", ""),
        id=header.get("id", ""),
    )
    start = json_length
    for output in header["outputs"]:
        response.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        end = start + output["parameters"]["binary_data_size"]
        response.raw_output_contents.append(answer[start:end])
        start = end
    return response


def _parameters(owner: Any) -> dict[str, Any]:
    chosen = {key: value.WhichOneof("choice") for key, value in owner.parameters.items()}
    return {key: getattr(owner.parameters[key], field) for key, field in chosen.items() if field}


def _contents(tensor: Any) -> bytes:
    if tensor.datatype not in _CONTENTS:
        raise DataError(f"{tensor.name}: send {tensor.datatype!r} as raw_input_contents")
    field, dtype = _CONTENTS[tensor.datatype]
    names = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if wrong := [name for name in names if name != field]:
        raise DataError(f"{tensor.name}: {tensor.datatype} belongs in {field}, given {wrong}")
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    try:
        return np.array(list(values), dtype).tobytes()
    except OverflowError as error:
        raise DataError(f"{tensor.name}: values beyond the range of {tensor.datatype}") from error
