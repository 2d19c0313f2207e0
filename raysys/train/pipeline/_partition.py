"""A traced module cut into consecutive stages that take about the same time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from raysys.errors import TrainError
from raysys.train.pipeline._cost_profile import CostProfile, is_random

if TYPE_CHECKING:
    from raysys.train.pipeline._trace import TracedModule

_BETWEEN_BYTES_A_SECOND = {"cpu": 1.5e9, "cuda": 20e9}  # from one stage to the next
_NEAR = 1.03  # cuts within this of the fastest are compared by the bytes that they send


@dataclass(frozen=True)
class StageValue:
    """A tensor that one stage sends to the next; `graded` if its gradient is sent back."""

    node: fx.Node
    shape: tuple[int, ...]
    dtype: torch.dtype
    graded: bool


@dataclass(frozen=True)
class StagePhase:
    """Operations of a stage in order, with their inputs, and its values from and for neighbours."""

    operations: list[fx.Node]
    receives: list[StageValue]
    sends: list[StageValue]


@dataclass
class PipelineStage:
    """The computation of one worker of a pipeline.

    Values of the parameters alone are the same for all micro-batches of a step: they are computed
    and sent `once`, as is a parameter that two stages use. The rest is done for `each`. Values of
    the batch alone (masks, positions) are not sent: each stage computes them.

    Attributes:
        once: Operations on parameters alone.
        each: Operations of each micro-batch.
        tensor_names: Its own parameters and buffers; of other stages' buffers that it reads, a
            stage has copies.
    """

    once: StagePhase
    each: StagePhase
    tensor_names: list[str]


def partition(traced: TracedModule, profile: CostProfile, stages: int) -> list[PipelineStage]:
    """Cut a traced module into stages; a function of the graph alone, so workers agree.

    Raises:
        TrainError: There are fewer places to cut, with a trained parameter in each part, or the
            module changes a parameter or its arguments in place.
    """
    kinds = _kinds(traced, profile)
    order = [n for n in traced.graph.nodes if n.op == "call_function" and kinds[n] != "free"]
    spans = _spans(traced, kinds, order)
    seconds, trained, between = np.zeros((3, len(order)))
    for node, (first, last) in spans.items():
        seconds[first] += profile.seconds.get(node, 0.0)
        trained[first] += node.op == "placeholder" and node in profile.graded
        between[first + 1 : last + 1] += _between_s(profile, node, kinds[node])
    for first, last in _unbroken(traced, profile, order):
        between[first + 1 : last + 1] = np.inf
    cuts = choose_cuts(seconds, between, trained, stages)
    if cuts is None:
        raise TrainError(
            f"the module cannot be cut into {stages} stages with a trained parameter in each, and "
            "a buffer that changes in one with all that reads it: give fewer stages, or train "
            "with zero3 or fsdp"
        )
    edges = [0, *cuts, len(order)]
    sent = [_crossing(profile, spans, cut) for cut in edges]
    parts: list[PipelineStage] = []
    assigned: set[str] = set()
    for at in range(stages):
        nodes = set(order[edges[at] : edges[at + 1]])
        once, each = (
            StagePhase(
                _complete(traced, kinds, {node for node in nodes if kinds[node] == kind}),
                receives=[value for value in sent[at] if kinds[value.node] == kind],
                sends=[value for value in sent[at + 1] if kinds[value.node] == kind],
            )
            for kind in ("once", "each")
        )
        read = {n for node in once.operations + each.operations for n in node.all_input_nodes}
        read -= {value.node for value in sent[at]}
        names = dict.fromkeys(
            traced.names[node.name]
            for node in traced.graph.find_nodes(op="placeholder")
            if node.name in traced.names and node in read
        )
        parts.append(PipelineStage(once, each, [name for name in names if name not in assigned]))
        assigned |= names.keys()
    parts[0].tensor_names += [
        name for name in dict.fromkeys(traced.names.values()) if name not in assigned
    ]
    return parts


def choose_cuts(
    seconds: np.ndarray, between: np.ndarray, needed: np.ndarray, stages: int
) -> list[int] | None:
    """Cuts of a chain of operations into parts; None if there are none.

    Minimizes the time of the slowest part, with what it receives and sends; among cuts near the
    minimum, the bytes sent.

    Args:
        seconds: float64 `(n,)`, seconds of each operation.
        between: float64 `(n,)`, seconds to send the values that cross a cut before each
            operation; infinite where a cut is not allowed.
        needed: float64 `(n,)`; each part must have an operation where it is not 0.
        stages: Number of parts.

    Returns:
        The first operation of each part but the first, ascending.
    """
    count = len(seconds)
    allowed = [0, *(at for at in range(1, count) if np.isfinite(between[at])), count]
    at = np.array(allowed)
    before = np.concatenate([[0.0], np.cumsum(seconds)])[at]
    have = np.concatenate([[0.0], np.cumsum(needed)])[at]
    sent = np.array([0.0, *between[at[1:-1]], 0.0])
    # costs[i, j]: the part from place i up to place j.
    costs = before[None] - before[:, None] + sent[None] + sent[:, None]
    costs[(have[None] <= have[:, None]) | (at[None] <= at[:, None])] = np.inf
    fastest = _best_path(costs, np.maximum, stages)
    if fastest is None:
        return None
    limit = max(costs[i, j] for i, j in itertools.pairwise(fastest))
    cheap = np.where(costs <= _NEAR * limit, sent[None], np.inf)
    cheapest = _best_path(cheap, np.add, stages)
    return None if cheapest is None else [int(at[place]) for place in cheapest[1:-1]]


def _best_path(costs: np.ndarray, join: np.ufunc, stages: int) -> list[int] | None:
    """Places of the cheapest path from the first to the last in `stages` parts."""
    total = np.full(len(costs), np.inf)
    total[0] = 0.0
    came = []
    for _ in range(stages):
        ways = join(total[:, None], costs)
        came.append(ways.argmin(axis=0))
        total = ways.min(axis=0)
    if not np.isfinite(total[-1]):
        return None
    path = [len(costs) - 1]
    for origins in reversed(came):
        path.append(int(origins[path[-1]]))
    return path[::-1]


def _kinds(traced: TracedModule, profile: CostProfile) -> dict[fx.Node, str]:
    """Kinds of nodes: "free" for each stage to compute, "once" a step, or for "each"."""
    sources: dict[fx.Node, set[str]] = {}
    for node in traced.graph.nodes:
        source: set[str] = set().union(*(sources[argument] for argument in node.all_input_nodes))
        if node.op == "placeholder":
            if isinstance(traced.tensors.get(node.name), torch.nn.Parameter):
                source = {"parameters"}
            elif node.name in traced.arguments:
                source = {"batch"}
        elif (
            node is traced.loss or is_random(node) or profile.storages[node] & set(profile.mutated)
        ):
            source = {"parameters", "batch"}
        sources[node] = source
    names = {frozenset({"parameters", "batch"}): "each", frozenset({"parameters"}): "once"}
    return {node: names.get(frozenset(source), "free") for node, source in sources.items()}


def _spans(
    traced: TracedModule, kinds: dict[fx.Node, str], order: list[fx.Node]
) -> dict[fx.Node, tuple[int, int]]:
    """Places in the order where a value is computed and last used.

    A parameter counts as computed at its first use.
    """
    places = {node: at for at, node in enumerate(order)}
    spans = {}
    for node in traced.graph.nodes:
        used = [places[user] for user in node.users if user in places]
        if node in places:
            spans[node] = (places[node], max(used, default=places[node]))
        elif kinds[node] == "once" and used:
            spans[node] = (min(used), max(used))
    return spans


def _between_s(profile: CostProfile, node: fx.Node, kind: str) -> float:
    """Seconds to send a value, and its gradient back; infinite for one that cannot be sent."""
    tensor = profile.values[node]
    if not isinstance(tensor, torch.Tensor):
        return float("inf")
    seconds = tensor.nbytes * (1 + (node in profile.graded))
    seconds /= _BETWEEN_BYTES_A_SECOND[tensor.device.type]
    return seconds / profile.accumulate if kind == "once" else seconds


def _unbroken(
    traced: TracedModule, profile: CostProfile, order: list[fx.Node]
) -> list[tuple[int, int]]:
    """First and last places of operations that must share a stage, because of in-place changes."""
    sources = {
        storage: node
        for node in traced.graph.find_nodes(op="placeholder")
        for storage in profile.storages[node]
    }
    unbroken = []
    for storage, last in profile.mutated.items():
        touching = [at for at, node in enumerate(order) if storage in profile.storages[node]]
        source = sources.get(storage)
        if source is None:
            unbroken.append((touching[0], order.index(last)))
        elif source.name in traced.arguments or isinstance(
            traced.tensors[source.name], torch.nn.Parameter
        ):
            name = traced.arguments.get(source.name) or traced.names[source.name]
            raise TrainError(
                f"forward changes {name} in place, which the stages of a pipeline cannot share: "
                "change a copy, or train with zero3 or fsdp"
            )
        else:  # A buffer: its next value depends on this one.
            unbroken.append((touching[0], touching[-1]))
    return unbroken


def _crossing(
    profile: CostProfile, spans: dict[fx.Node, tuple[int, int]], cut: int
) -> list[StageValue]:
    """Values computed before a cut and used after it."""
    crossing = {n: profile.values[n] for n, (first, last) in spans.items() if first < cut <= last}
    return [
        StageValue(node, tuple(tensor.shape), tensor.dtype, node in profile.graded)
        for node, tensor in crossing.items()
    ]


def _complete(
    traced: TracedModule, kinds: dict[fx.Node, str], nodes: set[fx.Node]
) -> list[fx.Node]:
    """Operations in their order, with the "free" ones that they need."""
    needed = set(nodes)
    for node in reversed(traced.graph.nodes):
        if node in needed:
            inputs = (n for n in node.all_input_nodes if n.op != "placeholder")
            needed |= {n for n in inputs if kinds[n] == "free"}
    return [node for node in traced.graph.nodes if node in needed]
