"""A directed acyclic graph of functions over columnar batches."""

from __future__ import annotations

import copy
import dataclasses
import functools
import graphlib
import inspect
import time
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.arguments import checked
from raysys.console import html_table
from raysys.errors import DataError, GraphError
from raysys.identity import digest
from raysys.serve import _compiler
from raysys.serve._column_types import Array, Columns, mismatch, of_field, rows_of
from raysys.serve._nodes import (
    BoundNode,
    Placement,
    connect,
    content_of,
    function_of,
    lazy_object_of,
    load,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raysys.data import Table
    from raysys.storage import Storage


@dataclass(frozen=True)
class GraphNode:
    """A function of a graph with its edges and annotations.

    Attributes:
        needs: Inputs and nodes, in the order of its parameters.
        keywords: Names of its last parameters, which are passed by keyword.
        placement: None runs it in the entry's replica.
    """

    call: Callable[..., Any]
    needs: tuple[str, ...]
    keywords: tuple[str, ...]
    takes: Mapping[str, Any]
    gives: Any
    placement: Placement | None


class Graph:
    """Batch functions connected by the names of their parameters.

    A node is a function, a `functools.partial`, a callable object or a `LazyObject` whose
    parameters are names of inputs or of other nodes, or have defaults; it receives their values for
    the whole batch. The same graph is called in-process, mapped over a Table (`map`) and deployed
    behind HTTP (`deploy`). Nodes must be idempotent and must not depend on which rows share their
    batch: a failing batch is split to isolate the bad row, and runs again when a replica dies.

    Example:
        >>> import numpy as np
        >>> from raysys.serve import Array, Graph
        >>> graph = Graph(
        ...     inputs={"x": Array("int64")}, nodes={"double": lambda x: 2 * x}, output="double"
        ... )
        >>> graph({"x": np.array([1, 2])})
        array([2, 4])
    """

    def __init__(
        self,
        *,
        inputs: Mapping[str, Array] | type[BaseModel],
        nodes: Mapping[str, Callable[..., Any]],
        output: str,
        placement: Mapping[str, Placement] | None = None,
        response: type[BaseModel] | None = None,
        writes: bool = False,
    ) -> None:
        """Check and order the nodes.

        Args:
            inputs: Types of the input columns, or a pydantic model of one row, whose constraints
                validate every HTTP request.
            nodes: Functions by node name.
            output: Name of the output node; its value is an array `(n, ...)`, a dict of such
                columns, or a list of n dicts, one per row.
            placement: Placement of nodes that do not run in the entry's replica.
            response: A pydantic model of one response, for the OpenAPI document.
            writes: Whether nodes have side effects: then replicas warm up only with a given
                example, responses are not cached, and all rows of a request are in one batch.

        Raises:
            GraphError: A cycle, an unknown name, or an edge with incompatible types.
        """
        if isinstance(inputs, Mapping):
            self.request, types = None, dict(inputs)
        else:
            fields = typing.get_type_hints(inputs)  # without Annotated's constraints
            self.request = inputs
            types = {name: of_field(name, fields[name]) for name in inputs.model_fields}
        placement = placement or {}
        self.inputs: dict[str, Array] = types
        names = {*types, *nodes}
        self.nodes = {
            name: _node(name, call, placement.get(name), names - {name})
            for name, call in nodes.items()
        }
        self.output, self.response, self.writes = output, response, writes
        _check_names(self, placement)
        _check_edges(self)
        self.order = self._sorted()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {kind}" for name, kind in self.inputs.items())
        return f"Graph({inputs} -> {self.output}; nodes: {', '.join(self.order)})"

    def _repr_html_(self) -> str:
        """The nodes as a table, for notebooks."""
        rows = [("input", name, str(kind), "") for name, kind in self.inputs.items()]
        for name in dict.fromkeys((*self.order, *self.nodes)):
            node = self.nodes[name]
            kind = "output" if name == self.output else "node" if name in self.order else "unused"
            where = "entry" if node.placement is None else str(node.placement)
            rows.append((kind, name, ", ".join(node.needs), where))
        return html_table(("kind", "name", "takes", "placement"), rows)

    @property
    def classes(self) -> list[Any] | None:
        """Classes in the order of the output's probabilities, where its node names them."""
        return getattr(lazy_object_of(self.nodes[self.output].call), "classes", None)

    def _sorted(self) -> tuple[str, ...]:
        edges = {
            name: [n for n in node.needs if n in self.nodes] for name, node in self.nodes.items()
        }
        try:
            order = tuple(graphlib.TopologicalSorter(edges).static_order())
        except graphlib.CycleError as error:
            raise GraphError(f"cycle of nodes: {error.args[1]}") from error
        needed = {self.output}
        for name in reversed(order):
            if name in needed:
                needed.update(edges[name])
        return tuple(name for name in order if name in needed)

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Run the graph in this process and return the output node's value.

        Args:
            batch: A column of n values for each input.

        Raises:
            DataError: A column is missing or has the wrong type.
        """
        return self.run(self.order, self.check_columns(batch))[self.output]

    @checked
    def map(
        self, table: Table, *, keep: Sequence[str] = (), name: str = "map", batch_size: int = 2048,
        max_actors: int | None = None, storage: Storage | None = None, path: str | None = None,
    ) -> Table:  # fmt: skip
        """Run the graph over the rows of a Table, on actors of the whole cluster.

        All nodes run in each actor, which requests the largest of their placements. Actors are
        requested at once, and each takes blocks as soon as it is scheduled. The block of an actor
        that dies is retried on another.

        Args:
            table: The graph's inputs are columns of it; its blocks are the units of work.
            keep: Columns of the table that stand before the outputs, such as keys.
            name: Name in progress messages and in the lineage.
            batch_size: Number of rows per call of the nodes.
            max_actors: Maximum number of actors; by default all CPUs but a reserve for tasks.
            storage: With `path`: each block's outputs are written there when they are computed, and
                an interrupted run resumes from them.
            path: Folder in the storage.

        Returns:
            The outputs in row order, a column for each output.

        Raises:
            DataError: A column is missing or has the wrong type, a kept one has the name of an
                output, or the path holds outputs of another graph.
        """
        from raysys.serve._bulk_map import map_table

        return map_table(
            self, table, keep=keep, name=name, batch_size=batch_size, max_actors=max_actors,
            storage=storage, path=path,
        )  # fmt: skip

    def check_columns(self, batch: Mapping[str, Any]) -> Columns:
        """The input columns as arrays of their types; other columns are ignored."""
        if missing := [name for name in self.inputs if name not in batch]:
            raise DataError(f"inputs {missing} are missing; given {sorted(batch)}")
        columns = {name: self.inputs[name].check(name, batch[name]) for name in self.inputs}
        rows_of(columns)
        return columns

    def run(
        self, names: Sequence[str], values: Columns,
        observe: Callable[[str, float], None] | None = None,
    ) -> Columns:  # fmt: skip
        """Run nodes in order on the values that they need, and return their values by name.

        `observe` is called with each node's name and seconds.
        """
        computed = dict(values)
        for name in names:
            node, started = self.nodes[name], time.perf_counter()
            try:
                arguments = [computed[need] for need in node.needs]
                first = len(arguments) - len(node.keywords)
                named = dict(zip(node.keywords, arguments[first:], strict=True))
                computed[name] = node.call(*arguments[:first], **named)
            except StopIteration as error:  # futures refuse it
                raise RuntimeError(f"node {name!r} raised StopIteration") from error
            except Exception as error:
                error.add_note(f"in node {name!r}")
                raise
            if observe:
                observe(name, time.perf_counter() - started)
        return {name: computed[name] for name in names}

    def load(self, names: Sequence[str]) -> None:
        """Construct the LazyObjects of some nodes, before the first batch."""
        for name in names:
            load(self.nodes[name].call)

    @property
    def fingerprint(self) -> str:
        """Digest of the plan, the code that the nodes reach and their LazyObjects' arguments."""
        nodes = [(name, self.nodes[name].needs, content_of(self.nodes[name].call))
                 for name in self.order]  # fmt: skip
        return digest(self.explain(), nodes)

    def without_functions(self) -> Graph:
        """The graph's types and plan, for a process that runs none of its nodes.

        Unlike the graph it is unpickled without the libraries of its nodes.
        """
        bare = copy.copy(self)
        bare.nodes = {
            name: dataclasses.replace(node, call=_elsewhere, takes={}, gives=None)
            for name, node in self.nodes.items()
        }
        return bare

    @functools.cached_property
    def plan(self) -> _compiler.ServingPlan:
        """The deployments and the steps of a batch."""
        return _compiler.compile_plan(self)

    @checked
    def explain(self, form: typing.Literal["text", "mermaid"] = "text") -> str:
        """The plan with its reasons, as text or as a Mermaid flowchart."""
        return _compiler.as_mermaid(self) if form == "mermaid" else _compiler.as_text(self)


def _elsewhere(*_: Any, **__: Any) -> Any:
    raise GraphError("this copy of the graph has no functions")


def _node(
    name: str, call: Callable[..., Any], placement: Placement | None, available: Set[str]
) -> GraphNode:
    """A node with the edges and annotations of its function."""
    bound: list[Mapping[str, str]] = []
    while isinstance(call, BoundNode):
        bound.append(call.names)
        call = call.call
    try:
        function, parameters = function_of(call)
        sources = {parameter.name: parameter.name for parameter in parameters}
        for names in reversed(bound):
            if unknown := sorted(set(names) - set(sources.values())):
                raise GraphError(f"unknown parameters {unknown}; it has {[*sources.values()]}")
            sources = {p: names.get(source, source) for p, source in sources.items()}
        positional, keywords = connect(parameters, sources, available)
    except GraphError as error:
        raise GraphError(f"node {name!r}: {error}") from None
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except Exception:  # names that exist for type checkers only
        hints = {}
    connected = [*positional, *keywords]
    needs = tuple(sources[parameter] for parameter in connected)
    takes = {sources[p]: hints[p] for p in connected if p in hints}
    return GraphNode(call, needs, tuple(keywords), takes, hints.get("return"), placement)


def _check_names(graph: Graph, placement: Mapping[str, Placement]) -> None:
    names = {*graph.inputs, *graph.nodes}
    if duplicates := sorted(set(graph.inputs) & set(graph.nodes)):
        raise GraphError(f"{duplicates} are both inputs and nodes: rename either")
    for name, node in graph.nodes.items():
        if missing := [need for need in node.needs if need not in names]:
            raise GraphError(
                f"node {name!r} needs {missing}, neither an input "
                f"({list(graph.inputs)}) nor a node ({sorted(graph.nodes)}): rename the parameter "
                "or add the node"
            )
    if graph.output not in graph.nodes:
        raise GraphError(
            f"the output {graph.output!r} is not a node; nodes are {sorted(graph.nodes)}"
        )
    if unknown := sorted(set(placement) - set(graph.nodes)):
        raise GraphError(f"placement of unknown nodes {unknown}; nodes are {sorted(graph.nodes)}")


def _check_edges(graph: Graph) -> None:
    edges = ((name, need) for name, node in graph.nodes.items() for need in node.needs)
    for name, need in edges:
        expected = graph.nodes[name].takes.get(need)
        actual: Any
        if need in graph.nodes:
            actual, source = graph.nodes[need].gives, f"node {need!r}"
        else:
            actual = typing.Annotated[np.ndarray, graph.inputs[need]]
            source = f"input {need!r}"
        if expected is not None and actual is not None and (why := mismatch(actual, expected)):
            raise GraphError(f"{source} -> node {name!r}: {why}")
