"""Open Inference Protocol v2 over gRPC, translated to the HTTP endpoint.

Ray Serve's own gRPC ingress will not do: in Ray 2.60 it binds every interface and cannot be told
otherwise, and it routes by application metadata that clients of the protocol do not send.
"""

from __future__ import annotations

import asyncio
import re
import struct
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import aiohttp
import grpc
import numpy as np
import orjson
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from yarl import URL

from raysys.errors import DataError, ResourceError
from raysys.gateway._wire import JSON_LENGTH_HEADER, TIMEOUT_HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping

_SERVICE = "inference.GRPCInferenceService"
_MAX_MESSAGE_BYTES = 64 << 20
_PASSED_ON = ("authorization", "x-request-id", "traceparent")
# gRPC sends the text of an error as a header, and clients refuse headers beyond 8 KiB.
_MAX_DETAILS = 800

# The messages of grpc_service.proto that unary inference needs. What it nests is on top here:
# nesting is only a matter of names, which are not sent.
_PROTO = """
message ServerLiveRequest
message ServerLiveResponse
    bool live = 1
message ServerReadyRequest
message ServerReadyResponse
    bool ready = 1
message ModelReadyRequest
    string name = 1
    string version = 2
message ModelReadyResponse
    bool ready = 1
message ServerMetadataRequest
message ServerMetadataResponse
    string name = 1
    string version = 2
    repeated string extensions = 3
message ModelMetadataRequest
    string name = 1
    string version = 2
message TensorMetadata
    string name = 1
    string datatype = 2
    repeated int64 shape = 3
message ModelMetadataResponse
    string name = 1
    repeated string versions = 2
    string platform = 3
    repeated TensorMetadata inputs = 4
    repeated TensorMetadata outputs = 5
message InferParameter
    oneof bool bool_param = 1
    oneof int64 int64_param = 2
    oneof string string_param = 3
    oneof double double_param = 4
    oneof uint64 uint64_param = 5
message InferTensorContents
    repeated bool bool_contents = 1
    repeated int32 int_contents = 2
    repeated int64 int64_contents = 3
    repeated uint32 uint_contents = 4
    repeated uint64 uint64_contents = 5
    repeated float fp32_contents = 6
    repeated double fp64_contents = 7
    repeated bytes bytes_contents = 8
message InferInputTensor
    string name = 1
    string datatype = 2
    repeated int64 shape = 3
    map InferParameter parameters = 4
    optional InferTensorContents contents = 5
message InferRequestedOutputTensor
    string name = 1
    map InferParameter parameters = 2
message ModelInferRequest
    string model_name = 1
    string model_version = 2
    string id = 3
    map InferParameter parameters = 4
    repeated InferInputTensor inputs = 5
    repeated InferRequestedOutputTensor outputs = 6
    repeated bytes raw_input_contents = 7
message InferOutputTensor
    string name = 1
    string datatype = 2
    repeated int64 shape = 3
message ModelInferResponse
    string model_name = 1
    string model_version = 2
    string id = 3
    repeated InferOutputTensor outputs = 5
    repeated bytes raw_output_contents = 6
"""

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
# Where the values of a datatype stand if they are not sent raw, and what they are as bytes.
_CONTENTS = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", ""),
}


async def serve_grpc(host: str, port: int, http_url: str) -> tuple[grpc.aio.Server, int]:
    """Answer the protocol's gRPC clients by asking its HTTP endpoint.

    Args:
        host: Address of the only interface that is bound.
        port: To bind; 0 takes a free one.
        http_url: What stands before `/v2` in the endpoint's addresses.

    Returns:
        The server, which runs until its `stop`, and its port.

    Raises:
        ResourceError: The address cannot be bound.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Else a second server takes the same port without an error, and half of the calls.
            ("grpc.so_reuseport", 0),
        ]
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ResourceError(
            f"gRPC cannot listen on {address}: choose a free port, or 0, and an address of this "
            "machine"
        ) from error
    translation = _Translation(http_url)
    methods = {
        "ServerLive": translation.server_live,
        "ServerReady": translation.server_ready,
        "ModelReady": translation.model_ready,
        "ServerMetadata": translation.server_metadata,
        "ModelMetadata": translation.model_metadata,
        "ModelInfer": translation.infer,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=_messages[f"{name}Request"].FromString,
            response_serializer=_messages[f"{name}Response"].SerializeToString,
        )
        for name, method in methods.items()
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    await server.start()
    translation.close_after(server)
    return server, bound


class _Translation:
    """The methods of the service."""

    def __init__(self, http_url: str) -> None:
        self._url = http_url.rstrip("/")
        # The client's deadline and the endpoint's limits bound the time and the number of calls.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )

    def close_after(self, server: grpc.aio.Server) -> None:
        """Close the connections when the server has stopped."""

        async def close() -> None:
            async with self._session:
                await server.wait_for_termination()

        self._closing = asyncio.create_task(close())

    async def server_live(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        ready = await self._ready("/v2/health/live", context)
        return _messages["ServerLiveResponse"](live=ready)

    async def server_ready(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        ready = await self._ready("/v2/health/ready", context)
        return _messages["ServerReadyResponse"](ready=ready)

    async def model_ready(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        path = f"{_model_path(request.name, request.version)}/ready"
        return _messages["ModelReadyResponse"](ready=await self._ready(path, context))

    async def server_metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return _messages["ServerMetadataResponse"](**await self._describe("/v2", context))

    async def model_metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        path = _model_path(request.name, request.version)
        return _messages["ModelMetadataResponse"](**await self._describe(path, context))

    async def infer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            body, json_length = _to_http(request)
        except DataError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        status, headers, answer = await self._call(
            "POST",
            f"{_model_path(request.model_name, request.model_version)}/infer",
            context,
            body,
            {"Content-Type": "application/octet-stream", JSON_LENGTH_HEADER: str(json_length)},
        )
        if status != 200:
            await _refuse(context, status, answer)
        return _from_http(answer, int(headers.get(JSON_LENGTH_HEADER, len(answer))))

    async def _ready(self, path: str, context: grpc.aio.ServicerContext) -> bool:
        status, _, answer = await self._call("GET", path, context)
        if status in (401, 403):
            await _refuse(context, status, answer)
        return status == 200

    async def _describe(self, path: str, context: grpc.aio.ServicerContext) -> dict[str, Any]:
        status, _, answer = await self._call("GET", path, context)
        if status != 200:
            await _refuse(context, status, answer)
        return orjson.loads(answer)

    async def _call(
        self,
        method: str,
        path: str,
        context: grpc.aio.ServicerContext,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        sent = {key: value for key, value in context.invocation_metadata() if key in _PASSED_ON}
        remaining = context.time_remaining()
        if remaining is not None:
            sent[TIMEOUT_HEADER] = f"{max(remaining, 0.001):.3f}"
        try:
            async with self._session.request(
                method,
                URL(self._url + path, encoded=True),
                data=body,
                headers={**sent, **(headers or {})},
                allow_redirects=False,
            ) as reply:
                return reply.status, reply.headers, await reply.read()
        except aiohttp.ClientError as error:
            await _abort(
                context, grpc.StatusCode.UNAVAILABLE, f"{self._url} does not answer: {error}"
            )


async def _refuse(context: grpc.aio.ServicerContext, status: int, answer: bytes) -> NoReturn:
    try:
        details = str(orjson.loads(answer)["error"])
    except (ValueError, TypeError, LookupError):
        details = f"the HTTP endpoint answered with status {status}"
    await _abort(context, _CODES.get(status, grpc.StatusCode.INTERNAL), details)


async def _abort(
    context: grpc.aio.ServicerContext, code: grpc.StatusCode, details: str
) -> NoReturn:
    await context.abort(code, details[:_MAX_DETAILS])
    raise AssertionError  # abort raises; its annotation does not say so


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
    # Spaces, so that the first input is aligned and the endpoint need not copy it.
    text += b" " * (-len(text) % 64)
    return b"".join([text, *parts]), len(text)


def _from_http(answer: bytes, json_length: int) -> Any:
    header = orjson.loads(answer[:json_length])
    response = _messages["ModelInferResponse"](
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
    return {key: getattr(owner.parameters[key], one) for key, one in chosen.items() if one}


def _contents(tensor: Any) -> bytes:
    if tensor.datatype not in _CONTENTS:
        raise DataError(f"{tensor.name}: send {tensor.datatype!r} as raw_input_contents")
    field, dtype = _CONTENTS[tensor.datatype]
    if wrong := [one.name for one, _ in tensor.contents.ListFields() if one.name != field]:
        raise DataError(f"{tensor.name}: {tensor.datatype} goes in {field}, given {wrong}")
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    try:
        return np.array(list(values), dtype).tobytes()
    except OverflowError as error:
        raise DataError(f"{tensor.name}: values beyond the range of {tensor.datatype}") from error


def _message_classes() -> dict[str, Any]:
    """Classes of the messages, by name.

    In a pool of their own: clients of the protocol register the same names in the common one.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="raysys/inference.proto", package="inference", syntax="proto3"
    )
    for line in _PROTO.strip().splitlines():
        if found := re.fullmatch(r"message (\w+)", line):
            message = file.message_type.add(name=found[1])
            continue
        *labels, kind, name, _, number = line.split()
        label = labels[0] if labels else ""
        repeated = label in ("repeated", "map")
        field = message.field.add(
            name=name,
            number=int(number),
            label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
        )
        if kind[0].islower():
            field.type = getattr(kinds, f"TYPE_{kind.upper()}")
        else:
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".inference.{kind}"
        if label == "oneof":
            if not message.oneof_decl:
                message.oneof_decl.add(name="choice")
            field.oneof_index = 0
        if label == "map":
            entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
            entry.options.map_entry = True
            text = {"type": kinds.TYPE_STRING, "label": kinds.LABEL_OPTIONAL}
            entry.field.add(name="key", number=1, **text)
            value = {"type": kinds.TYPE_MESSAGE, "label": kinds.LABEL_OPTIONAL}
            entry.field.add(name="value", number=2, type_name=f".inference.{kind}", **value)
            field.type_name = f".inference.{message.name}.{entry.name}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"inference.{message.name}")
        )
        for message in file.message_type
    }


_messages = _message_classes()
