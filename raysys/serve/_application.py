"""What a replica must know of its application; travels pickled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import GraphError
from raysys.serve._graph import Graph

if TYPE_CHECKING:
    from raysys.serve._batcher import Batching

_OWN_PATHS = ("docs", "healthz", "openapi.json")


@dataclass(frozen=True)
class Application:
    """Graphs and how they are served.

    Attributes:
        name: Of the application.
        version: Counted by the gateway.
        route: What all of its paths begin with.
        graphs: What answers, by action; a graph that is served alone has the action "".
        batching: How requests are brought together, those of each action by themselves.
        deadline_s: Time for an answer; a request may ask for less.
        max_body_bytes: Of a request.
        cache_s: Lifetime of a cached answer; 0 caches nothing.
        examples: Batches that a replica runs before it takes requests, by action: zeros for an
            action that is left out, none for one that has None.
        protected: Wants an API key.
        token: Shared by gateway and replicas, so that nobody passes by the gateway.
    """

    name: str
    version: int
    route: str
    graphs: Mapping[str, Graph]
    batching: Batching
    deadline_s: float
    max_body_bytes: int
    cache_s: float
    examples: Mapping[str, Mapping[str, Any] | None]
    protected: bool
    token: str

    def path(self, action: str) -> str:
        """Where an action's requests are posted."""
        return below(self.route, action)

    def model(self, action: str) -> str:
        """An action's name in the Open Inference Protocol."""
        return below(self.name, action)


def below(base: str, action: str) -> str:
    """A path or name of an action; the base itself, if its graph is served alone."""
    return f"{base}/{action}" if action else base


def graphs_of(name: str, graph: Graph | Mapping[str, Graph]) -> dict[str, Graph]:
    """The graphs of an application by action; one that is served alone has the action "".

    Raises:
        GraphError: There is none, or one whose name cannot be part of a path.
    """
    if not isinstance(graph, Mapping):
        return {"": graph}
    if not graph:
        raise GraphError(
            f"application {name!r} has no actions: give a Graph, or one for each action's name"
        )
    for action, one in graph.items():
        if action in _OWN_PATHS:
            raise GraphError(
                f"action {action!r} of application {name!r}: every application has paths "
                f"{', '.join(_OWN_PATHS)} of its own; choose another name"
            )
        if not isinstance(action, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", action):
            raise GraphError(
                f"action {action!r} of application {name!r}: use letters, digits, _ and -"
            )
        if not isinstance(one, Graph):
            raise GraphError(
                f"action {action!r} of application {name!r} is a {type(one).__name__}: give a Graph"
            )
    return dict(graph)


def examples_of(
    graphs: Mapping[str, Graph], example: Mapping[str, Any] | None
) -> dict[str, Mapping[str, Any] | None]:
    """What `Application.examples` holds, of what was given for an application's graphs.

    Raises:
        GraphError: An example of what is no action.
    """
    if "" in graphs:
        example = {} if example is None else {"": example}
    elif unknown := [action for action in example or {} if action not in graphs]:
        raise GraphError(
            f"examples of {unknown}, which are not actions; actions are {sorted(graphs)}: give "
            "example={action: batch}"
        )
    return {action: None for action, graph in graphs.items() if graph.writes} | dict(example or {})
