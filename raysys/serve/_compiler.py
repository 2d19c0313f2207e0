"""The graph compiler: which nodes share a deployment, and the steps of a batch through them."""

from __future__ import annotations

import graphlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysys.serve._autoscaling import replica_bounds
from raysys.serve._nodes import Placement

if TYPE_CHECKING:
    from raysys.serve._graph import Graph

ENTRY = "entry"


@dataclass(frozen=True)
class GraphStage:
    """A deployment: nodes that are fused into one replica, in execution order.

    Its name is `ENTRY` if it receives requests, otherwise its nodes' names.
    """

    name: str
    placement: Placement
    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class BatchStep:
    """Nodes of one stage that run in one call, in order: one object there, one back.

    Attributes:
        needs: Inputs and nodes of other steps that are sent along.
        gives: Nodes that other steps need, or the graph's output.
        after: Numbers of the steps that must finish first.
    """

    stage: str
    nodes: tuple[str, ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class ServingPlan:
    """Stages by name, and the steps of a batch; independent steps run concurrently."""

    stages: dict[str, GraphStage]
    steps: tuple[BatchStep, ...]

    @property
    def in_flight(self) -> int:
        """Number of batches that keeps all deployments busy: one, and one per call of another."""
        return 1 + sum(step.stage != ENTRY for step in self.steps)

    @property
    def placed(self) -> list[GraphStage]:
        """The stages other than the entry."""
        return [stage for stage in self.stages.values() if stage.name != ENTRY]


def compile_plan(graph: Graph) -> ServingPlan:
    """Fuse nodes of equal placement, in as few steps as the edges allow."""
    members: dict[tuple[Placement, str], list[str]] = {}
    entry: list[str] = []
    for name in graph.order:
        placement = graph.nodes[name].placement
        if placement is None:
            entry.append(name)
        else:
            key = (placement, name if placement.isolated else "")
            members.setdefault(key, []).append(name)
    stages = {
        ENTRY: GraphStage(ENTRY, Placement(), tuple(entry), "receives requests and batches them")
    }
    for (placement, _), fused in members.items():
        title = "-".join(fused)
        title += "-node" * (title == ENTRY)
        reason = "isolated" if placement.isolated else "has a placement of its own"
        stages[title] = GraphStage(title, placement, tuple(fused), reason)
    stage_of = {node: stage.name for stage in stages.values() for node in stage.nodes}
    cuts = _cut(graph, stage_of)
    step_of = {node: number for number, (_, nodes) in enumerate(cuts) for node in nodes}
    needs_of: list[tuple[str, ...]] = []
    for number, (_, nodes) in enumerate(cuts):
        needs = itertools.chain.from_iterable(graph.nodes[node].needs for node in nodes)
        needs_of.append(tuple(dict.fromkeys(n for n in needs if step_of.get(n) != number)))
    needed = {graph.output}.union(*needs_of)
    steps = tuple(
        BatchStep(
            stage,
            nodes,
            needs,
            tuple(node for node in nodes if node in needed),
            tuple(sorted({step_of[need] for need in needs if need in step_of})),
        )
        for (stage, nodes), needs in zip(cuts, needs_of, strict=True)
    )
    return ServingPlan(stages, steps)


def _cut(graph: Graph, stage_of: dict[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Steps as (stage, nodes), in execution order.

    Nodes of a stage with the same ancestors and descendants in other stages form a step: then no
    node waits for a neighbour in its step that it does not need, and steps cannot deadlock.
    """
    ancestors: dict[str, set[str]] = {}
    for name in graph.order:
        needs = [need for need in graph.nodes[name].needs if need in graph.nodes]
        ancestors[name] = set(needs).union(*(ancestors[need] for need in needs))
    groups: dict[tuple[str, frozenset[str], frozenset[str]], list[str]] = {}
    for name in graph.order:
        stage = stage_of[name]
        before = frozenset(n for n in ancestors[name] if stage_of[n] != stage)
        after = frozenset(n for n in graph.order if name in ancestors[n] and stage_of[n] != stage)
        groups.setdefault((stage, before, after), []).append(name)
    number = {name: n for n, nodes in enumerate(groups.values()) for name in nodes}
    edges = {
        n: {number[ancestor] for name in nodes for ancestor in ancestors[name]} - {n}
        for n, nodes in enumerate(groups.values())
    }
    steps = [(stage, tuple(nodes)) for (stage, _, _), nodes in groups.items()]
    return [steps[n] for n in graphlib.TopologicalSorter(edges).static_order()]


def as_text(graph: Graph) -> str:
    """The plan as lines."""
    plan = graph.plan
    lines = [
        f"inputs: {', '.join(f'{name} {kind}' for name, kind in graph.inputs.items())}",
        f"output: {graph.output}",
    ]
    for stage in plan.stages.values():
        nodes = ", ".join(stage.nodes) or "no nodes"
        lines.append(f"deployment {stage.name} ({_resources(stage)}): {nodes} ({stage.reason})")
    for number, step in enumerate(plan.steps):
        after = f" after {', '.join(str(n) for n in step.after)}" if step.after else ""
        hop = "" if step.stage == ENTRY else ", one object there and one back for each batch"
        lines.append(f"step {number}{after}: {' -> '.join(step.nodes)} in {step.stage}{hop}")
    pairs = itertools.combinations(range(len(plan.steps)), 2)
    lines += [f"steps {a} and {b} run concurrently" for a, b in pairs if _independent(plan, a, b)]
    if unused := [name for name in graph.nodes if name not in graph.order]:
        lines.append(f"left out, not needed for the output: {', '.join(unused)}")
    return "\n".join(lines)


def _resources(stage: GraphStage) -> str:
    if stage.name == ENTRY:
        return "replicas as deployed"
    place = stage.placement
    gpus = f", {place.gpus:g} GPU" if place.gpus else ""
    minimum, maximum = replica_bounds(place.replicas)
    count = f"{minimum}" if minimum == maximum else f"{minimum} to {maximum}"
    return f"{count} x {place.cpus:g} CPU{gpus}"


def _independent(plan: ServingPlan, a: int, b: int) -> bool:
    reach = {b}
    for number in range(b, -1, -1):
        if number in reach:
            reach.update(plan.steps[number].after)
    return a not in reach


def as_mermaid(graph: Graph) -> str:
    """The plan as a flowchart: a box for each deployment, types of the inputs."""
    lines = ["flowchart LR"]
    lines += [f'    {name}(["{name}: {kind}"])' for name, kind in graph.inputs.items()]
    for number, stage in enumerate(graph.plan.stages.values()):
        if stage.nodes:
            lines.append(f'    subgraph stage{number}["{stage.name}"]')
            lines += [f"        {node}" for node in stage.nodes]
            lines.append("    end")
    lines += [f"    {need} --> {node}" for node in graph.order for need in graph.nodes[node].needs]
    lines.append(f'    {graph.output} --> answer_(["answer"])')
    return "\n".join(lines)
