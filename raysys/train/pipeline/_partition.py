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
_NEAR = 1.03  # cuts within this of the fastest are judged by what they send


@dataclass(frozen=True)
class StageValue:
    """A tensor that one stage gives to the next.

    Attributes:
        node: Where it is made.
        shape: Of the tensor.
        dtype: Of the tensor.
        graded: Whether a gradient comes back.
    """

    node: fx.Node
    shape: tuple[int, ...]
    dtype: torch.dtype
    graded: bool


@dataclass
class PipelineStage:
    """What one worker of a pipeline computes.

    What depends on parameters alone is the same for all micro-batches of a step: it is computed
    and sent `once`, a parameter that two stages use among it. The rest is done for `each`. What
    depends on the batch alone (masks, positions) is not sent: each stage makes it for itself.

    Attributes:
        once: Operations on parameters alone, in order, with what they need.
        each: Operations of each micro-batch, in order, with what they need.
        receives_once: What comes from the stage before, in the order in which it is sent.
        receives_each: The same, for each micro-batch.
        sends_once: What goes to the stage after.
        sends_each: The same, for each micro-batch.
        holds: Names of the parameters and buffers that are its own; a stage has copies of the
            buffers of others that it reads.
        seconds: Estimated time of a micro-batch, forward and backward.
    """

    once: list[fx.Node]
    each: list[fx.Node]
    receives_once: list[StageValue]
    receives_each: list[StageValue]
    sends_once: list[StageValue]
    sends_each: list[StageValue]
    holds: list[str]
    seconds: float


def partition(traced: TracedModule, profile: CostProfile, stages: int) -> list[PipelineStage]:
    """Cut a traced module into stages; a function of the graph alone, so workers agree.

    Raises:
        TrainError: There are not so many places to cut, with a trained parameter in each part,
            or the module changes a parameter or its arguments in place.
    """
    kinds = _kinds(traced, profile)
    order = [n for n in traced.graph.nodes if n.op == "call_function" and kinds[n] != "free"]
    spans = _spans(traced, kinds, order)
    seconds, trained = np.zeros(len(order)), np.zeros(len(order))
    for node, (first, _) in spans.items():
        seconds[first] += profile.seconds.get(node, 0.0)
        trained[first] += node.op == "placeholder" and node in profile.graded
    between = np.zeros(len(order))
    for node, (first, last) in spans.items():
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
    found: list[PipelineStage] = []
    held: set[str] = set()
    for at in range(stages):
        nodes = set(order[edges[at] : edges[at + 1]])
        once, each = (
            _complete(traced, kinds, {node for node in nodes if kinds[node] == kind})
            for kind in ("once", "each")
        )
        read = {given for node in (*once, *each) for given in node.all_input_nodes}
        received = {value.node for value in sent[at]}
        holds = [
            traced.names[node.name]
            for node in traced.graph.find_nodes(op="placeholder")
            if node.name in traced.names and node in read and node not in received
        ]
        found.append(
            PipelineStage(
                once=once,
                each=each,
                receives_once=[value for value in sent[at] if kinds[value.node] == "once"],
                receives_each=[value for value in sent[at] if kinds[value.node] == "each"],
                sends_once=[value for value in sent[at + 1] if kinds[value.node] == "once"],
                sends_each=[value for value in sent[at + 1] if kinds[value.node] == "each"],
                holds=[name for name in dict.fromkeys(holds) if name not in held],
                seconds=float(seconds[edges[at] : edges[at + 1]].sum()),
            )
        )
        held |= set(holds)
    found[0].holds += [name for name in dict.fromkeys(traced.names.values()) if name not in held]
    return found


def choose_cuts(
    seconds: np.ndarray, between: np.ndarray, needed: np.ndarray, stages: int
) -> list[int] | None:
    """Where to cut a chain of operations; None if it cannot be.

    The slowest part is as fast as can be, what it receives and sends counted; among cuts that
    come near to that, the one that sends least.

    Args:
        seconds: float64 `(n,)`, of each operation.
        between: float64 `(n,)`, seconds to send what crosses the cut before each operation;
            infinite where no cut may be.
        needed: float64 `(n,)`; each part must have an operation where it is not 0.
        stages: Number of parts.

    Returns:
        The first operations of all parts but the first, rising.
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
    least = _best_path(cheap, np.add, stages)
    return None if least is None else [int(at[place]) for place in least[1:-1]]


def _best_path(costs: np.ndarray, join: np.ufunc, stages: int) -> list[int] | None:
    """Places of the cheapest way from the first to the last one in so many parts."""
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
    """Whether a node is "free", for each stage to make, done "once" a step, or for "each"."""
    sources: dict[fx.Node, set[str]] = {}
    for node in traced.graph.nodes:
        found: set[str] = set().union(*(sources[given] for given in node.all_input_nodes))
        if node.op == "placeholder":
            if isinstance(traced.tensors.get(node.name), torch.nn.Parameter):
                found = {"parameters"}
            elif node.name in traced.arguments:
                found = {"batch"}
        elif (
            node is traced.loss or is_random(node) or profile.storages[node] & set(profile.mutated)
        ):
            found = {"parameters", "batch"}
        sources[node] = found
    names = {frozenset({"parameters", "batch"}): "each", frozenset({"parameters"}): "once"}
    return {node: names.get(frozenset(found), "free") for node, found in sources.items()}


def _spans(
    traced: TracedModule, kinds: dict[fx.Node, str], order: list[fx.Node]
) -> dict[fx.Node, tuple[int, int]]:
    """Where a value is made and where it is used last, as places in the order.

    A parameter counts as made where it is used first.
    """
    places = {node: at for at, node in enumerate(order)}
    found = {}
    for node in traced.graph.nodes:
        used = [places[user] for user in node.users if user in places]
        if node in places:
            found[node] = (places[node], max(used, default=places[node]))
        elif kinds[node] == "once" and used:
            found[node] = (min(used), max(used))
    return found


def _between_s(profile: CostProfile, node: fx.Node, kind: str) -> float:
    """Seconds to send a value, and its gradient back; infinite for what cannot be sent."""
    tensor = profile.values[node]
    if not isinstance(tensor, torch.Tensor):
        return float("inf")
    seconds = tensor.nbytes * (1 + (node in profile.graded))
    seconds /= _BETWEEN_BYTES_A_SECOND[tensor.device.type]
    return seconds / profile.accumulate if kind == "once" else seconds


def _unbroken(
    traced: TracedModule, profile: CostProfile, order: list[fx.Node]
) -> list[tuple[int, int]]:
    """First and last places of what must stay in one stage, because it changes in place."""
    given = {
        storage: node
        for node in traced.graph.find_nodes(op="placeholder")
        for storage in profile.storages[node]
    }
    found = []
    for storage, last in profile.mutated.items():
        touching = [at for at, node in enumerate(order) if storage in profile.storages[node]]
        source = given.get(storage)
        if source is None:
            found.append((touching[0], order.index(last)))
        elif source.name in traced.arguments or isinstance(
            traced.tensors[source.name], torch.nn.Parameter
        ):
            name = traced.arguments.get(source.name) or traced.names[source.name]
            raise TrainError(
                f"forward changes {name} in place, which the stages of a pipeline cannot share: "
                "change a copy, or train with zero3 or fsdp"
            )
        else:  # A buffer, whose next value depends on this one.
            found.append((touching[0], touching[-1]))
    return found


def _crossing(
    profile: CostProfile, spans: dict[fx.Node, tuple[int, int]], cut: int
) -> list[StageValue]:
    """What is made before a cut and used after it."""
    return [
        StageValue(
            node,
            tuple(profile.values[node].shape),
            profile.values[node].dtype,
            node in profile.graded,
        )
        for node, (first, last) in spans.items()
        if first < cut <= last
    ]


def _complete(
    traced: TracedModule, kinds: dict[fx.Node, str], nodes: set[fx.Node]
) -> list[fx.Node]:
    """Operations in their order, with those that each stage makes for itself."""
    wanted, waiting = set(nodes), list(nodes)
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if kinds[node] == "free" and node.op != "placeholder" and node not in wanted:
                wanted.add(node)
                waiting.append(node)
    return [node for node in traced.graph.nodes if node in wanted]
