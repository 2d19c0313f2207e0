"""The OpenAPI 3.1 document of an application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic.json_schema import models_json_schema

from raysys.serve.protocols import _arrow

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raysys.serve._application import Application
    from raysys.serve._outputs import Outputs

_ERRORS = {
    "400": "Malformed Arrow stream, v2 request, compression or header",
    "401": "Missing or unknown API key",
    "413": "Body too large, also when it is decompressed, or too many rows for one write",
    "415": "Content type other than JSON or Arrow, or coding other than gzip or deflate",
    "422": "Malformed JSON or invalid value; the message names the field",
    "429": "Rate limit of the API key exceeded",
    "500": "The graph failed",
    "503": "Overloaded; Retry-After has the seconds to wait",
    "504": "Deadline exceeded",
}
# Numbers that are not finite are sent as null.
_JSON_TYPES: dict[str, Any] = {
    "b": "boolean", "i": "integer", "u": "integer", "f": ["number", "null"],
}  # fmt: skip


def document(
    application: Application, requests: Mapping[str, type[BaseModel]],
    examples: Mapping[str, Outputs | None],
) -> dict[str, Any]:  # fmt: skip
    """The OpenAPI document, from request models and example outputs by action.

    The examples give the schemas of graphs without a response model.
    """
    modes: dict[Any, None] = {}  # in place of a set, which has no order
    for action, graph in application.graphs.items():
        modes[requests[action], "validation"] = None
        if graph.response:
            modes[graph.response, "serialization"] = None
    references, definitions = models_json_schema(
        list(modes), ref_template="#/components/schemas/{model}"
    )
    schemas = definitions.get("$defs", {})
    schemas["Error"] = {
        "type": "object",
        "properties": {
            "error": {"type": "string"},
            "request_id": {"type": "string"},
            "detail": {"type": "array"},
        },
        "required": ["error", "request_id"],
    }
    components: dict[str, Any] = {"schemas": schemas}
    if application.protected:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, Any] = {}
    for action, graph in application.graphs.items():
        example, response = examples[action], {}
        if graph.response:
            response = references[graph.response, "serialization"]
        elif isinstance(example, dict):
            schemas[f"{action}Response"] = _schema_of(example, graph.classes)
            response = {"$ref": f"#/components/schemas/{action}Response"}
        request = references[requests[action], "validation"]
        operation = _operation(application.model(action), request, response)
        if application.protected:
            operation["security"] = [{"key": []}]
        paths[application.path(action)] = {"post": operation}
    paths[f"{application.route}/healthz"] = {"get": {
        "operationId": "healthz",
        "summary": "Health of a replica",
        "responses": {"200": {"description": "The replica is healthy", "content": {
            "application/json": {"schema": {"type": "object"}}}}},
    }}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": application.name, "version": str(application.version)},
        "paths": paths,
        "components": components,
    }


def _operation(
    model: str, request: Mapping[str, Any], response: Mapping[str, Any]
) -> dict[str, Any]:
    """The operation of an action, from its JSON schemas."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    arrow = {_arrow.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    sent = {"application/json": {"schema": request}, **arrow}
    received = {"application/json": {"schema": response}, **arrow}
    return {
        "operationId": model.replace("/", "-"),
        "summary": f"Predictions of {model}: one row as JSON, many as an Arrow IPC stream",
        "requestBody": {"required": True, "content": sent},
        "responses": {"200": {"description": "The response", "content": received}, **errors},
    }


def _schema_of(columns: Mapping[str, Any], classes: Sequence[Any] | None) -> dict[str, Any]:
    """The schema of a response with these columns; lists and objects are unconstrained.

    Of a column of probabilities it names the classes.
    """
    properties: dict[str, Any] = {}
    for name, column in columns.items():
        properties[name] = {}
        if isinstance(column, np.ndarray) and column.dtype.kind in _JSON_TYPES:
            kind: dict[str, Any] = {"type": _JSON_TYPES[column.dtype.kind]}
            for _ in column.shape[1:]:
                kind = {"type": "array", "items": kind}
            if classes is not None and column.shape[1:] == (len(classes),):
                named = ", ".join(map(str, classes))
                kind["description"] = f"Probabilities of the classes, in this order: {named}"
            properties[name] = kind
    return {"type": "object", "properties": properties, "required": list(properties)}
