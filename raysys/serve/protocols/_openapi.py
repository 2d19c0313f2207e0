"""The OpenAPI 3.1 form of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic.json_schema import models_json_schema

from raysys.serve.protocols import _arrow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from raysys.serve._application import Application
    from raysys.serve._outputs import Answers

_ERRORS = {
    "400": "The body cannot be read",
    "401": "An API key is missing or unknown",
    "411": "Content-Length is missing",
    "413": "The body is too large",
    "415": "The content type is neither JSON nor Arrow",
    "422": "A value does not fit; the message names the field",
    "429": "The key's rate is exceeded",
    "500": "The graph failed",
    "503": "Too many requests wait; Retry-After says for how long",
    "504": "The deadline passed",
}


# A number that is not finite goes as null.
_JSON_TYPES: dict[str, Any] = {
    "b": "boolean", "i": "integer", "u": "integer", "f": ["number", "null"],
}  # fmt: skip


def document(
    application: Application,
    requests: Mapping[str, type[BaseModel]],
    examples: Mapping[str, Answers | None],
) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        application: What is served.
        requests: Models of one request, by action.
        examples: Answers, by which the schema is told if a graph has no model of one.
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
        "properties": {"error": {"type": "string"}, "detail": {"type": "array"}},
        "required": ["error"],
    }
    components: dict[str, Any] = {"schemas": schemas}
    if application.protected:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, Any] = {}
    for action, graph in application.graphs.items():
        example, answered = examples[action], {}
        if isinstance(example, dict):
            schemas[f"{action}Answer"] = _schema_of(example)
            answered = {"$ref": f"#/components/schemas/{action}Answer"}
        if graph.response:
            answered = references[graph.response, "serialization"]
        asked = references[requests[action], "validation"]
        paths[application.path(action)] = {"post": _operation(application, action, asked, answered)}
    paths[f"{application.route}/healthz"] = {"get": {
        "operationId": "healthz",
        "summary": "Says that a replica answers",
        "responses": {"200": {"description": "It does", "content": {
            "application/json": {"schema": {"type": "object"}}}}},
    }}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": application.name, "version": str(application.version)},
        "paths": paths,
        "components": components,
    }


def _operation(
    application: Application, action: str, asked: Mapping[str, Any], answered: Mapping[str, Any]
) -> dict[str, Any]:
    """What an action takes and gives, by the schemas of its JSON."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    arrow = {_arrow.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    model = application.model(action)
    operation: dict[str, Any] = {
        "operationId": model.replace("/", "-"),
        "summary": f"Answers of {model}: one to a JSON request, many to Arrow's IPC",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": asked}, **arrow},
        },
        "responses": {
            "200": {
                "description": "The answer",
                "content": {"application/json": {"schema": answered}, **arrow},
            },
            **errors,
        },
    }
    if application.protected:
        operation["security"] = [{"key": []}]
    return operation


def _schema_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an answer with these columns; of lists and objects nothing is known."""
    properties: dict[str, Any] = {}
    for name, column in columns.items():
        properties[name] = {}
        if isinstance(column, np.ndarray) and column.dtype.kind in _JSON_TYPES:
            kind: dict[str, Any] = {"type": _JSON_TYPES[column.dtype.kind]}
            for _ in column.shape[1:]:
                kind = {"type": "array", "items": kind}
            properties[name] = kind
    return {"type": "object", "properties": properties, "required": list(properties)}


def page(application: Application) -> bytes:
    """The document as a form to try requests with; the browser loads Swagger UI from its CDN."""
    from fastapi.openapi.docs import get_swagger_ui_html

    page = get_swagger_ui_html(
        openapi_url=f"{application.route}/openapi.json", title=application.name
    )
    return bytes(page.body)
