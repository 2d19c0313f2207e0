"""What one graph answers over HTTP: checks in front of its batcher."""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ValidationError, create_model

from raysys.errors import DataError, StorageError, UnavailableError
from raysys.gateway import TIMEOUT_HEADER
from raysys.serve._batcher import Batcher, DeadlineError, OverloadedError, RequestContext
from raysys.serve._outputs import Answers, columns_of, types_of
from raysys.serve.protocols import _arrow
from raysys.serve.protocols import _open_inference as _v2

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from raysys.serve._application import Application
    from raysys.serve._http_server import Headers, Respond

JSON_TYPE = "application/json"
_CACHED_ANSWERS = 4096
_log = logging.getLogger("raysys.serve")


class HttpError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})
        self.body: dict[str, Any] = {"error": text}


class Action:
    """The answers of one graph in one replica.

    Attributes:
        request: The model of one request.
        example: Answers to an example, by which clients are told what to expect.
    """

    def __init__(
        self, application: Application, action: str, batcher: Batcher, example: Answers | None
    ) -> None:
        """Prepare the checks.

        Args:
            application: What is served.
            action: Which of its graphs this is.
            batcher: Answers rows.
            example: Answers to an example, if one was run.
        """
        self._app, self._batcher, self.example = application, batcher, example
        self._graph = graph = application.graphs[action]
        self._cache_s = 0.0 if graph.writes else application.cache_s
        self._model = application.model(action)
        self._outputs = {} if example is None else types_of(graph.output, example)
        fields: Any = {name: kind.field() for name, kind in graph.inputs.items()}
        self.request: type[BaseModel] = graph.request or create_model(f"{action}Request", **fields)
        self._validate = self.request.__pydantic_validator__.validate_json
        self._inputs = tuple(graph.inputs)
        # Models of our own are as strict as the schema that clients see.
        self._strict = True if graph.request is None else None
        self._loose = graph.request is not None or any(
            None in kind.shape for kind in graph.inputs.values()
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._cache: collections.OrderedDict[bytes, tuple[float, bytes]] = collections.OrderedDict()

    def predict(self, headers: Headers, body: bytes, respond: Respond) -> None:
        """One row as JSON, or many as Arrow."""
        kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if kind == _arrow.MEDIA_TYPE.encode():
            self._later(self._arrow(headers, body), headers, respond)
            return
        if kind != b"application/json":
            raise HttpError(415, f"content-type must be {JSON_TYPE} or {_arrow.MEDIA_TYPE}")
        if self._cache_s and (found := self._cached(body)) is not None:
            respond(200, JSON_TYPE, found, {"x-cache": "hit"})
            return
        request = self._validate(body, strict=self._strict)
        row = tuple([getattr(request, name) for name in self._inputs])
        if self._loose:  # the types of the columns are narrower than the model of a row
            for value, (name, column) in zip(row, self._graph.inputs.items(), strict=True):
                column.check(name, [value])
        future = self._batcher.submit_row(row, self._deadline(headers), _context(headers))

        def done(future: asyncio.Future[Answers]) -> None:
            try:
                encoded = _encoded(future.result())
                if self._cache_s:
                    self._keep(body, encoded)
                respond(200, JSON_TYPE, encoded)
            except Exception as error:
                fail(error, headers, respond)

        future.add_done_callback(done)

    def infer(self, headers: Headers, body: bytes, respond: Respond) -> None:
        """Many rows in the Open Inference Protocol."""
        self._later(self._v2(headers, body), headers, respond)

    def metadata(self) -> dict[str, Any]:
        """What the graph takes and gives, in the Open Inference Protocol."""
        versions = [str(self._app.version)]
        return _v2.model_metadata(self._model, versions, self._graph.inputs, self._outputs)

    async def _arrow(
        self, headers: Headers, body: bytes
    ) -> tuple[str, bytes, dict[str, str] | None]:
        columns = _decoded(lambda: _arrow.decode(body, self._graph.inputs))
        answers = await self._bulk(columns, headers)
        encoded = _arrow.encode(columns_of(self._graph.output, answers))
        return _arrow.MEDIA_TYPE, encoded, None

    async def _v2(self, headers: Headers, body: bytes) -> tuple[str, bytes, dict[str, str] | None]:
        length = headers.get(b"inference-header-content-length")
        if length is not None and not (length.isdigit() and len(length) < 12):
            raise HttpError(400, "Inference-Header-Content-Length is not a number")
        graph, json_length = self._graph, None if length is None else int(length)
        request = _decoded(lambda: _v2.decode(body, json_length, graph.inputs))
        answers = await self._bulk(request.columns, headers)
        columns = columns_of(graph.output, answers)
        version = str(self._app.version)
        encoded, json_length = _decoded(lambda: _v2.encode(request, self._model, version, columns))
        if json_length is None:
            return JSON_TYPE, encoded, None
        return "application/octet-stream", encoded, {
            "inference-header-content-length": str(json_length)
        }  # fmt: skip

    async def _bulk(self, columns: dict[str, Any], headers: Headers) -> Answers:
        rows = len(next(iter(columns.values())))
        if self._graph.request:
            # Aside: of a large body this takes long enough for the event loop to be missed.
            await asyncio.to_thread(self._check_rows, columns, rows)
        deadline = self._deadline(headers)
        return await self._batcher.submit_columns(columns, rows, deadline, _context(headers))

    def _check_rows(self, columns: dict[str, Any], rows: int) -> None:
        """The model of a row may bound more than the columns' types do."""
        for row in range(rows):
            values = {
                name: column[row].tolist() if hasattr(column[row], "tolist") else column[row]
                for name, column in columns.items()
            }
            try:
                self.request.model_validate(values)
            except ValidationError as error:
                raise HttpError(422, f"row {row}: {_first(error)}") from error

    def _deadline(self, headers: Headers) -> float:
        asked = headers.get(TIMEOUT_HEADER.encode())
        seconds = self._app.deadline_s
        if asked is not None:
            try:
                wanted = float(asked)
            except ValueError:
                wanted = math.nan
            if not wanted > 0:
                raise HttpError(400, f"{TIMEOUT_HEADER} is not a positive number")
            seconds = min(seconds, wanted)
        return time.monotonic() + seconds

    def _cached(self, body: bytes) -> bytes | None:
        found = self._cache.get(body)
        if found is None:
            return None
        if found[0] < time.monotonic():
            del self._cache[body]
            return None
        return found[1]

    def _keep(self, body: bytes, encoded: bytes) -> None:
        self._cache[body] = (time.monotonic() + self._cache_s, encoded)
        if len(self._cache) > _CACHED_ANSWERS:
            self._cache.popitem(last=False)

    def _later(
        self, answer: Coroutine[Any, Any, tuple[str, bytes, dict[str, str] | None]],
        headers: Headers, respond: Respond,
    ) -> None:  # fmt: skip
        """Answer when a coroutine has ended."""

        async def run() -> None:
            try:
                respond(200, *await answer)
            except Exception as error:
                fail(error, headers, respond)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def fail(error: BaseException, headers: Headers, respond: Respond) -> None:
    """Answer a request that has failed."""
    failed = _failed(error, headers)
    respond(failed.status, JSON_TYPE, orjson.dumps(failed.body), failed.headers)


def _failed(error: BaseException, headers: Headers) -> HttpError:
    """What a client is told of an error."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, OverloadedError):
        wait = str(max(1, math.ceil(error.retry_after_s)))
        return HttpError(503, str(error), {"retry-after": wait})
    if isinstance(error, DeadlineError):
        return HttpError(504, str(error))
    if isinstance(error, ValidationError):
        failed = HttpError(422, _first(error))
        failed.body["detail"] = error.errors(
            include_url=False, include_context=False, include_input=False
        )
        return failed
    if isinstance(error, DataError):
        return HttpError(422, str(error))
    # An index that cannot write its log has changed nothing.
    if isinstance(error, UnavailableError | StorageError):
        return HttpError(503, str(error), {"retry-after": "1"})
    request = _context(headers).request_id
    _log.error("request %s failed", request, exc_info=error, extra={"request_id": request})
    return HttpError(500, f"the graph failed; the replica's log says why at {request}")


def _encoded(answers: Answers) -> bytes:
    """The answers to one row as JSON."""
    answer = (
        answers[0]
        if isinstance(answers, list)
        else {name: column[0] for name, column in answers.items()}
    )
    return orjson.dumps(answer, _as_list, orjson.OPT_SERIALIZE_NUMPY)


def _as_list(value: Any) -> Any:
    """Arrays that orjson does not take, such as those in Fortran's order."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _decoded(decode: Callable[[], Any]) -> Any:
    """Malformed bodies are 400; what a graph says of good ones is 422."""
    try:
        return decode()
    except DataError as error:
        raise HttpError(400, str(error)) from error


def _first(error: ValidationError) -> str:
    """The first complaint, with its field named."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"]) or "the body"
    more = error.error_count() - 1
    return f"{place}: {found['msg']}" + (f" (and {more} more)" if more else "")


def _context(headers: Headers) -> RequestContext:
    return RequestContext(
        headers.get(b"x-request-id", b"").decode("latin-1"),
        headers.get(b"traceparent", b"").decode("latin-1"),
    )
