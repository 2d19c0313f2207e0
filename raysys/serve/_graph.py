"""A directed acyclic graph of functions over columnar batches."""

from __future__ import annotations

import graphlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from raysys.errors import GraphError

# Columns of equal length: what enters a graph, and what its last node gives back.
Batch = dict[str, Any]


class Graph:
    """Batch functions joined by the names of their arguments.

    A node is a function whose parameters are names of inputs or of other nodes. It receives
    their values for a whole batch, and its own value is known by its node's name.

    Example:
        >>> graph = Graph(inputs=["x"], nodes={"double": lambda x: 2 * x}, output="double")
        >>> import numpy as np
        >>> graph({"x": np.array([1, 2])})
        array([2, 4])
    """

    def __init__(
        self, *, inputs: list[str], nodes: Mapping[str, Callable[..., Any]], output: str
    ) -> None:
        """Check and order the nodes.

        Args:
            inputs: Names of the columns that a batch brings.
            nodes: Functions by the name of what they compute.
            output: The node whose value answers.

        Raises:
            GraphError: A cycle, or a name that nothing provides.
        """
        self._nodes = dict(nodes)
        self._needs = {name: tuple(inspect.signature(nodes[name]).parameters) for name in nodes}
        known = set(inputs) | set(nodes)
        for name, needs in self._needs.items():
            if missing := [need for need in needs if need not in known]:
                raise GraphError(
                    f"node {name!r} needs {missing}, which is neither an input ({inputs}) nor a "
                    f"node ({sorted(nodes)}): rename the parameter or add the node"
                )
        if output not in nodes:
            raise GraphError(f"the output {output!r} is not a node; nodes are {sorted(nodes)}")
        edges = {name: [n for n in needs if n in nodes] for name, needs in self._needs.items()}
        try:
            self._order = tuple(graphlib.TopologicalSorter(edges).static_order())
        except graphlib.CycleError as error:
            raise GraphError(f"nodes feed each other in a circle: {error.args[1]}") from error
        wanted = {output}
        for name in reversed(self._order):
            if name in wanted:
                wanted.update(edges[name])
        self._order = tuple(name for name in self._order if name in wanted)
        self._inputs, self._output = tuple(inputs), output

    def __call__(self, batch: Batch) -> Any:
        """Run what the output needs, each node once; the output node's value comes back."""
        values = {name: batch[name] for name in self._inputs}
        for name in self._order:
            values[name] = self._nodes[name](*[values[need] for need in self._needs[name]])
        return values[self._output]
