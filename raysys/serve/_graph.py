"""A directed acyclic graph of functions over columnar batches."""

from __future__ import annotations

import functools
import graphlib
import inspect
import itertools
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import GraphError
from raysys.identity import digest
from raysys.serve._column_types import Array, Columns, mismatch, of_field, rows_of
from raysys.serve._nodes import Placement, Renamed, content_of, function_of, load

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raysys.data import Table
    from raysys.serve._compiler import Plan


@dataclass(frozen=True)
class Node:
    """A function of a graph, as the checks see it.

    Attributes:
        call: The function.
        needs: Names of inputs and nodes, in the order of its parameters.
        takes: Annotations of the parameters that have one.
        gives: Annotation of what it returns, if it has one.
        placement: None runs it in the entry's replica.
    """

    call: Callable[..., Any]
    needs: tuple[str, ...]
    takes: Mapping[str, Any]
    gives: Any
    placement: Placement | None


class Graph:
    """Batch functions joined by the names of their arguments.

    A node is a function or a `Lazy` whose parameters are names of inputs or of other nodes. It
    receives their values for a whole batch, and its own value is known by its node's name. The
    same graph is called in-process, mapped over a Table (`map`) and put behind HTTP (`deploy`).
    Nodes must not depend on which rows share their batch, and must be safe to run twice: rows
    are split anew when one is bad, and run again when a replica dies.

    Example:
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
            inputs: Types of the columns that a batch brings, or a pydantic model of one row,
                whose bounds hold for every request that comes over HTTP.
            nodes: Functions by the name of what they compute.
            output: The node whose value answers: an array `(n, ...)`, a dict of such columns,
                or a list of n dicts, one a row.
            placement: Of the nodes that do not run in the entry's replica.
            response: A pydantic model of one answer, for the OpenAPI form.
            writes: The nodes change something, so that no example runs unless it is given, and
                no answer is given twice.

        Raises:
            GraphError: A cycle, a name that nothing provides, an edge whose types do not fit.
        """
        if isinstance(inputs, Mapping):
            self.request, types = None, dict(inputs)
        else:
            fields = typing.get_type_hints(inputs)  # without Annotated's bounds
            self.request = inputs
            types = {name: of_field(name, fields[name]) for name in inputs.model_fields}
        placement = placement or {}
        self.inputs: dict[str, Array] = types
        self.nodes = {name: _node(name, call, placement.get(name)) for name, call in nodes.items()}
        self.output, self.response, self.writes = output, response, writes
        for check in _CHECKS:
            check(self, placement)
        self.order = self._sorted()

    def _sorted(self) -> tuple[str, ...]:
        edges = {
            name: [n for n in node.needs if n in self.nodes] for name, node in self.nodes.items()
        }
        try:
            order = tuple(graphlib.TopologicalSorter(edges).static_order())
        except graphlib.CycleError as error:
            raise GraphError(f"nodes feed each other in a circle: {error.args[1]}") from error
        wanted = {self.output}
        for name in reversed(order):
            if name in wanted:
                wanted.update(edges[name])
        return tuple(name for name in order if name in wanted)

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Run what the output needs in this process; the output node's value comes back.

        Args:
            batch: A column of n values for each input.

        Raises:
            DataError: A column is missing or does not fit its type.
        """
        columns = self.check_columns(batch)
        return self.run(self.order, columns)[self.output]

    def map(self, table: Table, **how: Any) -> Table:
        """Run the graph over a Table on the whole cluster; see `map_table`."""
        from raysys.serve._bulk_map import map_table

        return map_table(self, table, **how)

    def check_columns(self, batch: Mapping[str, Any]) -> Columns:
        """The inputs' columns as arrays of their types; others are let be."""
        from raysys.errors import DataError

        if missing := [name for name in self.inputs if name not in batch]:
            raise DataError(f"inputs {missing} are missing; given {sorted(batch)}")
        columns = {name: self.inputs[name].check(name, batch[name]) for name in self.inputs}
        rows_of(columns)
        return columns

    def run(
        self,
        names: Sequence[str],
        values: Columns,
        observe: Callable[[str, float], None] | None = None,
    ) -> Columns:
        """Run some nodes in their order; their values come back by name.

        Args:
            names: Nodes.
            values: What they need of inputs and other nodes.
            observe: Told each node's name and seconds.
        """
        known = dict(values)
        for name in names:
            node, started = self.nodes[name], time.perf_counter()
            try:
                known[name] = node.call(*[known[need] for need in node.needs])
            except StopIteration as error:  # no future takes one
                raise RuntimeError(f"node {name!r} raised StopIteration") from error
            except Exception as error:
                error.add_note(f"in node {name!r}")
                raise
            if observe:
                observe(name, time.perf_counter() - started)
        return {name: known[name] for name in names}

    def load(self, names: Sequence[str]) -> None:
        """Make the objects that some nodes need, before the first batch."""
        for name in names:
            load(self.nodes[name].call)

    @property
    def fingerprint(self) -> str:
        """Digest of the plan, the code that the nodes reach and the arguments of Lazy objects."""
        nodes = [(name, self.nodes[name].needs, content_of(self.nodes[name].call))
                 for name in self.order]  # fmt: skip
        return digest(self.explain(), nodes)

    @functools.cached_property
    def plan(self) -> Plan:
        """What runs where."""
        from raysys.serve._compiler import compile_plan

        return compile_plan(self)

    def explain(self, form: typing.Literal["text", "mermaid"] = "text") -> str:
        """What will run where, and why: to read, or as a Mermaid flowchart."""
        from raysys.serve import _compiler as _plan

        return _plan.as_mermaid(self) if form == "mermaid" else _plan.as_text(self)


def _node(name: str, call: Callable[..., Any], placement: Placement | None) -> Node:
    """What the checks know of a function."""
    if isinstance(call, Renamed):
        node = _node(name, call.call, placement)
        if unknown := sorted(set(call.names) - set(node.needs)):
            raise GraphError(f"node {name!r} has no parameters {unknown}, it has {node.needs}")
        needs = tuple(call.names.get(need, need) for need in node.needs)
        takes = {call.names.get(need, need): kind for need, kind in node.takes.items()}
        return Node(node.call, needs, takes, node.gives, placement)
    try:
        function, parameters = function_of(call)
    except GraphError as error:
        raise GraphError(f"node {name!r}: {error}") from None
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except Exception:  # names that exist for type checkers only
        hints = {}
    return Node(call, tuple(parameters), hints, hints.get("return"), placement)


def _check_names(graph: Graph, _: Mapping[str, Placement]) -> None:
    known = {*graph.inputs, *graph.nodes}
    if twice := set(graph.inputs) & set(graph.nodes):
        raise GraphError(f"{sorted(twice)} are inputs and nodes at once: rename one of the two")
    for name, node in graph.nodes.items():
        if missing := [need for need in node.needs if need not in known]:
            raise GraphError(
                f"node {name!r} needs {missing}, which is neither an input "
                f"({list(graph.inputs)}) nor a node ({sorted(graph.nodes)}): rename the parameter "
                "or add the node"
            )


def _check_output(graph: Graph, _: Mapping[str, Placement]) -> None:
    if graph.output not in graph.nodes:
        raise GraphError(
            f"the output {graph.output!r} is not a node; nodes are {sorted(graph.nodes)}"
        )


def _check_placement(graph: Graph, placement: Mapping[str, Placement]) -> None:
    if unknown := sorted(set(placement) - set(graph.nodes)):
        raise GraphError(
            f"placement of {unknown}, which are not nodes; nodes are {sorted(graph.nodes)}"
        )


def _check_edges(graph: Graph, _: Mapping[str, Placement]) -> None:
    for name, need in itertools.chain.from_iterable(
        ((name, need) for need in node.needs) for name, node in graph.nodes.items()
    ):
        wanted = graph.nodes[name].takes.get(need)
        if need in graph.nodes:
            given, source = graph.nodes[need].gives, f"node {need!r}"
        else:
            given = typing.Annotated[np.ndarray, graph.inputs[need]]
            source = f"input {need!r}"
        if wanted is not None and given is not None and (why := mismatch(given, wanted)):
            raise GraphError(f"{source} -> node {name!r}: gives {why}")


_CHECKS: tuple[Callable[[Graph, Mapping[str, Placement]], None], ...] = (
    _check_names,
    _check_output,
    _check_placement,
    _check_edges,
)
