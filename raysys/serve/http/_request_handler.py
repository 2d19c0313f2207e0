"""The HTTP requests of one graph: validation and response cache in front of its batcher."""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ValidationError

from raysys.errors import DataError, GraphError, StorageError, UnavailableError
from raysys.gateway import APP_HEADER, TIMEOUT_HEADER
from raysys.serve._batching import DeadlineError, OverloadedError, TooManyRowsError
from raysys.serve._column_types import rows_of
from raysys.serve._json_values import json_bytes
from raysys.serve._outputs import Outputs, output_columns, output_types, slice_outputs
from raysys.serve._request_context import RequestContext
from raysys.serve.http._request_reader import LARGE_BYTES, RequestReader, decoded, invalid
from raysys.serve.http._server import HTTPStatusError, body_limit, request_id
from raysys.serve.protocols import _arrow
from raysys.serve.protocols import _open_inference as _v2

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._batcher import Batcher
    from raysys.serve.http._server import Headers, Respond

Response = tuple[str, bytes, dict[str, str] | None]
"""Content type, body and further headers of a response with status 200."""

Read = Callable[..., Coroutine[Any, Any, Any]]
"""Takes the name of a method of `RequestReader` and its arguments."""

JSON_TYPE = "application/json"
_MAX_CACHED = 4096
_FEW_ROWS = 1024
_log = logging.getLogger("raysys.serve")


class RequestHandler:
    """Handles the requests of one graph in one replica.

    Attributes:
        example: Example outputs, which give the response schema.
    """

    def __init__(
        self, application: Application, action: str, batcher: Batcher, example: Outputs | None,
        read: Read | None = None,
    ) -> None:  # fmt: skip
        """Respond by a batcher; `read` calls a method of `RequestReader` in another process."""
        self._app, self._batcher, self.example = application, batcher, example
        self._graph = graph = application.graphs[action]
        self._cache_ttl_s = 0.0 if graph.writes else application.cache_ttl_s
        self._model = application.model(action)
        self._outputs = {} if example is None else output_types(graph.output, example)
        if example is not None:
            _require_encodable(graph.output, example)
        self._reader = RequestReader(application, action)
        self._read = read or functools.partial(_read_in_thread, self._reader)
        self._tasks: set[asyncio.Task[None]] = set()
        self._cache: collections.OrderedDict[bytes, tuple[float, bytes]] = collections.OrderedDict()

    def predict(self, headers: Headers, body: bytes, respond: Respond) -> None:
        """Respond to one row as JSON, or many as Arrow."""
        kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if kind == _arrow.MEDIA_TYPE.encode():
            self._later(self._arrow(headers, body), headers, respond)
            return
        if kind != b"application/json":
            raise HTTPStatusError(415, f"content-type must be {JSON_TYPE} or {_arrow.MEDIA_TYPE}")
        if self._cache_ttl_s and (cached := self._cached(body)) is not None:
            respond(200, JSON_TYPE, cached, {"x-cache": "hit"})
            return
        if len(body) > LARGE_BYTES:
            self._later(self._large_row(headers, body), headers, respond)
            return
        row = self._reader.row(body)
        future = self._batcher.submit_row(row, self._deadline(headers), _context(headers))

        def done(future: asyncio.Future[Outputs]) -> None:
            try:
                encoded = _encoded(future.result())
                if self._cache_ttl_s:
                    self._store(body, encoded)
                respond(200, JSON_TYPE, encoded)
            except Exception as error:
                fail(error, headers, respond)

        future.add_done_callback(done)

    def infer(self, headers: Headers, body: bytes, respond: Respond) -> None:
        """Respond to many rows in the Open Inference Protocol."""
        self._later(self._v2(headers, body), headers, respond)

    def metadata(self) -> dict[str, Any]:
        """The model metadata of the Open Inference Protocol."""
        versions = [str(self._app.version)]
        graph = self._graph
        return _v2.model_metadata(self._model, versions, graph.inputs, self._outputs, graph.classes)

    def config(self) -> dict[str, Any]:
        """The model configuration of Triton's extension of the protocol."""
        limit = self._app.batching.max_batch_size
        return _v2.model_config(self._model, limit, self._graph.inputs, self._outputs)

    @property
    def request(self) -> type[BaseModel]:
        """Pydantic model of one request."""
        return self._reader.request

    async def _large_row(self, headers: Headers, body: bytes) -> Response:
        columns = await self._read("row_columns", body)
        outputs = await self._bulk(columns, headers)
        encoded = _encoded(outputs)
        if self._cache_ttl_s:
            self._store(body, encoded)
        return JSON_TYPE, encoded, None

    async def _arrow(self, headers: Headers, body: bytes) -> Response:
        limit = body_limit(headers, self._app.max_body_bytes)
        read = self._reader.arrow
        if len(body) <= LARGE_BYTES:
            columns = read(body, limit)
        elif self._reader.is_cheap(0):
            columns = await asyncio.to_thread(read, body, limit)
        else:
            columns = await self._read("arrow", body, limit)
        outputs = output_columns(self._graph.output, await self._bulk(columns, headers))
        return _arrow.MEDIA_TYPE, await _apart(outputs, _arrow.encode, outputs), None

    async def _v2(self, headers: Headers, body: bytes) -> Response:
        length = headers.get(b"inference-header-content-length")
        if length is not None and not (length.isdigit() and len(length) < 12):
            raise HTTPStatusError(400, "Inference-Header-Content-Length is not a number")
        json_length = None if length is None else int(length)
        if len(body) <= LARGE_BYTES or self._reader.is_cheap(json_length or len(body)):
            request = self._reader.v2(body, json_length)
        else:
            request = await self._read("v2", body, json_length)
        outputs = await self._bulk(request.columns, headers)
        columns = output_columns(self._graph.output, outputs)
        version = str(self._app.version)
        encoded, json_length = await _apart(
            columns, decoded, functools.partial(_v2.encode, request, self._model, version, columns)
        )
        if json_length is None:
            return JSON_TYPE, encoded, None
        lengths = {"inference-header-content-length": str(json_length)}
        return "application/octet-stream", encoded, lengths

    async def _bulk(self, columns: dict[str, Any], headers: Headers) -> Outputs:
        rows = len(next(iter(columns.values())))
        self._batcher.check_rows(rows)
        deadline = self._deadline(headers)
        return await self._batcher.submit_columns(columns, rows, deadline, _context(headers))

    def _deadline(self, headers: Headers) -> float:
        header = headers.get(TIMEOUT_HEADER.encode())
        timeout_s = self._app.deadline_s
        if header is not None:
            try:
                requested_s = float(header)
            except ValueError:
                requested_s = math.nan
            if not requested_s > 0:
                raise HTTPStatusError(400, f"{TIMEOUT_HEADER} is not a positive number")
            timeout_s = min(timeout_s, requested_s)
        return time.monotonic() + timeout_s

    def _cached(self, body: bytes) -> bytes | None:
        expires, encoded = self._cache.get(body, (math.inf, None))
        if expires < time.monotonic():
            del self._cache[body]
            return None
        return encoded

    def _store(self, body: bytes, encoded: bytes) -> None:
        self._cache[body] = (time.monotonic() + self._cache_ttl_s, encoded)
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)

    def _later(
        self, response: Coroutine[Any, Any, Response], headers: Headers, respond: Respond
    ) -> None:
        """Respond when a coroutine has finished."""

        async def run() -> None:
            try:
                respond(200, *await response)
            except Exception as error:
                fail(error, headers, respond)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def fail(error: BaseException, headers: Headers, respond: Respond) -> None:
    """Respond with the status and message of an error."""
    failure = _as_http(error, headers)
    body = {**failure.body, "request_id": request_id(headers)}
    respond(failure.status, JSON_TYPE, orjson.dumps(body), failure.headers)


def _as_http(error: BaseException, headers: Headers) -> HTTPStatusError:
    """The response to an error."""
    if isinstance(error, HTTPStatusError):
        return error
    if isinstance(error, OverloadedError):
        wait = str(max(1, math.ceil(error.retry_after_s)))
        return HTTPStatusError(503, str(error), {"retry-after": wait})
    if isinstance(error, DeadlineError):
        return HTTPStatusError(504, str(error))
    if isinstance(error, TooManyRowsError):
        return HTTPStatusError(413, str(error))
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, DataError):
        return HTTPStatusError(422, str(error))
    # An index that cannot write its log is unchanged.
    if isinstance(error, UnavailableError | StorageError):
        return HTTPStatusError(503, str(error), {"retry-after": "1"})
    request = request_id(headers)
    _log.error("request %s failed", request, exc_info=error, extra={"request_id": request})
    app = headers.get(APP_HEADER.encode(), b"NAME").decode()
    return HTTPStatusError(
        500, f"the graph failed: `raysys logs --app {app} --request {request}` prints why"
    )


def _encoded(outputs: Outputs) -> bytes:
    """The outputs of one row as JSON."""
    if isinstance(outputs, dict):
        outputs = [{name: column[0] for name, column in outputs.items()}]
    return json_bytes(outputs[0])


def _require_encodable(output: str, outputs: Outputs) -> None:
    """Encode outputs in every protocol.

    Raises:
        GraphError: A protocol has no form of a value.
    """
    columns = output_columns(output, outputs)
    try:
        for row in range(len(next(iter(columns.values())))):
            _encoded(slice_outputs(outputs, row, row + 1))
    except TypeError as error:
        raise GraphError(
            f"the answer of node {output!r} cannot be sent: {error.__cause__ or error}"
        ) from error
    _arrow.encode(columns)
    _v2.encode(_v2.InferRequest({}, None, None, True), "", "", columns)


async def _read_in_thread(reader: RequestReader, method: str, *args: Any) -> Any:
    return await asyncio.to_thread(getattr(reader, method), *args)


async def _apart(columns: Mapping[str, Any], encode: Callable[..., Any], *args: Any) -> Any:
    """Call a function, in a thread if the columns are long."""
    if rows_of(columns) <= _FEW_ROWS:
        return encode(*args)
    return await asyncio.to_thread(encode, *args)


def _context(headers: Headers) -> RequestContext:
    return RequestContext(request_id(headers), headers.get(b"traceparent", b"").decode("latin-1"))
