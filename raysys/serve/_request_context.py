"""The requests of the running batch, for logs and spans of nodes."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestContext:
    """The identity of a request: its header `x-request-id`, and its W3C trace context."""

    request_id: str
    traceparent: str


_current: contextvars.ContextVar[tuple[RequestContext, ...]] = contextvars.ContextVar(
    "raysys_requests", default=()
)


def current_requests() -> tuple[RequestContext, ...]:
    """The requests of the running batch; a bulk request counts once.

    Empty outside of an HTTP application.
    """
    return _current.get()


@contextlib.contextmanager
def running_requests(contexts: tuple[RequestContext, ...]) -> Iterator[None]:
    """Set the requests of the batch that runs in this thread."""
    token = _current.set(contexts)
    try:
        yield
    finally:
        _current.reset(token)
