"""The definition of an application; pickled to its replicas."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import GraphError
from raysys.serve._graph import Graph

if TYPE_CHECKING:
    from raysys.serve._batching import Batching

_RESERVED_PATHS = ("docs", "healthz", "openapi.json")


@dataclass(frozen=True)
class Application:
    """Graphs and their serving options; see `deploy` and `HTTPOptions`.

    Attributes:
        version: Version number, counted by the gateway.
        route: Common prefix of the application's paths.
        graphs: Graphs by action; the action of a single graph is "".
        batching: Batching options; each action has a batcher of its own.
        examples: Warm-up batches by action: zeros if the action is missing, no warm-up if None.
        token: Secret shared by gateway and replicas, so that clients cannot bypass the gateway.
    """

    name: str
    version: int
    route: str
    graphs: Mapping[str, Graph]
    batching: Batching
    deadline_s: float
    max_body_bytes: int
    cache_ttl_s: float
    examples: Mapping[str, Mapping[str, Any] | None]
    protected: bool
    token: str
    ignore_unknown_fields: bool = False

    def without_functions(self) -> Application:
        """The application for its HTTP servers, whose nodes run in other processes."""
        graphs = {action: graph.without_functions() for action, graph in self.graphs.items()}
        return dataclasses.replace(self, graphs=graphs)

    def path(self, action: str) -> str:
        """Path of an action's requests."""
        return with_action(self.route, action)

    def model(self, action: str) -> str:
        """An action's model name in the Open Inference Protocol."""
        return with_action(self.name, action)


def with_action(base: str, action: str) -> str:
    """`base/action`; the base alone for the action of a single graph."""
    return f"{base}/{action}" if action else base


def graphs_by_action(name: str, graph: Graph | Mapping[str, Graph]) -> dict[str, Graph]:
    """The graphs of an application by action; the action of a single graph is "".

    Raises:
        GraphError: No graphs, or an action whose name is not a valid path segment.
    """
    if not isinstance(graph, Mapping):
        return {"": graph}
    if not graph:
        remedy = "give a Graph, or a mapping of action names to Graphs"
        raise GraphError(f"application {name!r} has no actions: {remedy}")
    for action, action_graph in graph.items():
        where = f"action {action!r} of application {name!r}"
        if action in _RESERVED_PATHS:
            paths = ", ".join(_RESERVED_PATHS)
            raise GraphError(f"{where}: the paths {paths} are reserved; choose another name")
        if not isinstance(action, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", action):
            raise GraphError(f"{where}: use letters, digits, _ and -")
        if not isinstance(action_graph, Graph):
            raise GraphError(f"{where} is a {type(action_graph).__name__}: give a Graph")
    return dict(graph)


def warmup_examples(
    graphs: Mapping[str, Graph], example: Mapping[str, Any] | None
) -> dict[str, Mapping[str, Any] | None]:
    """The value of `Application.examples` for the `example` of `deploy`.

    Raises:
        GraphError: An example for an unknown action.
    """
    if "" in graphs:
        example = {} if example is None else {"": example}
    elif unknown := [action for action in example or {} if action not in graphs]:
        raise GraphError(
            f"examples for unknown actions {unknown}; actions are {sorted(graphs)}: give "
            "example={action: batch}"
        )
    return {action: None for action, graph in graphs.items() if graph.writes} | dict(example or {})
