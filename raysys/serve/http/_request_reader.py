"""Bodies of requests as columns, without I/O: one row as JSON, many in Arrow or protocol v2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import SchemaValidator

from raysys.errors import DataError, unknown_names
from raysys.serve.http._server import HTTPStatusError
from raysys.serve.protocols import _arrow
from raysys.serve.protocols import _open_inference as _v2

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._column_types import Columns

LARGE_BYTES = 64 << 10
"""Size from which a body is read in another process, since it would hold up the event loop."""
_MAX_DETAILS = 20


class RequestReader:
    """Reads the requests of one graph.

    Attributes:
        request: Pydantic model of one request.
    """

    def __init__(self, application: Application, action: str) -> None:
        self._graph = graph = application.graphs[action]
        fields: Any = {name: kind.field() for name, kind in graph.inputs.items()}
        request = graph.request or create_model(f"{action}Request", **fields)
        if not application.ignore_unknown_fields and "extra" not in request.model_config:
            members = {"model_config": {"extra": "forbid"}, "__module__": request.__module__}
            request = type(request.__name__, (request,), members)
        self.request: type[BaseModel] = request
        self._refuses_unknown = request.model_config.get("extra") == "forbid"
        schema = _failing_fast(request.__pydantic_core_schema__)
        self._validate = SchemaValidator(schema).validate_json
        # Generated models are as strict as the schema that clients see.
        self._strict = True if graph.request is None else None
        self._is_loose = graph.request is not None or any(
            None in kind.shape for kind in graph.inputs.values()
        )

    def row(self, body: bytes) -> tuple[Any, ...]:
        """The values of one row, in the order of the inputs.

        Raises:
            HTTPStatusError: 422 for a body that does not fit the model.
            DataError: A value that does not fit its column type.
        """
        if self._refuses_unknown and len(body) > LARGE_BYTES:
            self._refuse_unknown(body)  # pydantic would report each of a million
        try:
            request = self._validate(body, strict=self._strict)
        except ValidationError as error:
            raise invalid(error, self.request) from None
        values = tuple([getattr(request, name) for name in self._graph.inputs])
        if self._is_loose:  # column types are narrower than the request model
            for value, (name, column) in zip(values, self._graph.inputs.items(), strict=True):
                column.check(name, [value])
        return values

    def row_columns(self, body: bytes) -> Columns:
        """One row as columns."""
        inputs = self._graph.inputs.items()
        return {
            name: np.array([value], kind.numpy)
            for value, (name, kind) in zip(self.row(body), inputs, strict=True)
        }

    def arrow(self, body: bytes, max_bytes: int) -> Columns:
        """The columns of an Arrow stream, which may take `max_bytes` decompressed.

        Raises:
            HTTPStatusError: 400 for a malformed body, 422 for rows that do not fit the model.
        """
        columns = decoded(lambda: _arrow.decode(body, self._graph.inputs, max_bytes))
        self._check_rows(columns)
        return columns

    def v2(self, body: bytes, json_length: int | None) -> _v2.InferRequest:
        """A request of the Open Inference Protocol; raises like `arrow`."""
        request = decoded(lambda: _v2.decode(body, json_length, self._graph.inputs))
        self._check_rows(request.columns)
        return request

    def is_cheap(self, json_bytes: int) -> bool:
        """Whether columns are views of a large body, beside some JSON."""
        is_text = any(kind.numpy.kind == "O" for kind in self._graph.inputs.values())
        return json_bytes <= LARGE_BYTES and not is_text and not self._graph.request

    def _check_rows(self, columns: Columns) -> None:
        """Validate rows by the request model, whose constraints may go beyond column types."""
        if self._graph.request is None:
            return
        inputs = self._graph.inputs.items()
        for row in range(len(next(iter(columns.values())))):
            values = {name: kind.to_json(columns[name][row]) for name, kind in inputs}
            try:
                self.request.model_validate(values)
            except ValidationError as error:
                raise HTTPStatusError(422, f"row {row}: {_first(error)}") from error

    def _refuse_unknown(self, body: bytes) -> None:
        try:
            names = orjson.loads(body)
        except orjson.JSONDecodeError:
            return  # pydantic says where
        if isinstance(names, dict):
            unknown = [name for name in names if name not in self.request.model_fields]
            if unknown:
                raise HTTPStatusError(422, _unknown(unknown[:_MAX_DETAILS], self.request))


def decoded(decode: Callable[[], Any]) -> Any:
    """A malformed body is 400; a graph's DataError on a well-formed one is 422."""
    try:
        return decode()
    except DataError as error:
        raise HTTPStatusError(400, str(error)) from error


def invalid(error: ValidationError, request: type[BaseModel] | None = None) -> HTTPStatusError:
    """The response to a body that does not fit its model."""
    text, details = _first(error), _details(error)
    if request is not None:
        unknown = [d["loc"][0] for d in details if d["type"] == "extra_forbidden"]
        if unknown:
            text = _unknown(unknown[:_MAX_DETAILS], request)
    failure = HTTPStatusError(422, text)
    failure.body["detail"] = details[:_MAX_DETAILS]
    return failure


def _unknown(names: list[Any], request: type[BaseModel]) -> str:
    fields = request.model_fields
    return f"unknown fields: {unknown_names(names, fields)}; fields: {', '.join(fields)}"


def _details(error: ValidationError) -> list[Any]:
    return error.errors(include_url=False, include_context=False, include_input=False)


def _first(error: ValidationError) -> str:
    """The first error, with its field."""
    first = _details(error)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the body"
    more = error.error_count() - 1
    return f"{place}: {first['msg']}" + (f" (and {more} more)" if more else "")


def _failing_fast(schema: Any) -> Any:
    """A core schema of pydantic whose lists stop at the first wrong element.

    A list of a million of them would otherwise give as many errors.
    """
    if isinstance(schema, dict):
        fast = {key: _failing_fast(part) for key, part in schema.items()}
        return {**fast, "fail_fast": True} if fast.get("type") == "list" else fast
    return [_failing_fast(part) for part in schema] if isinstance(schema, list) else schema
