"""The compiler: which nodes share a deployment, and in what order a batch passes through them."""

from __future__ import annotations

import graphlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysys.serve._autoscaling import Scale, bounds
from raysys.serve._nodes import Placement

if TYPE_CHECKING:
    from raysys.serve._graph import Graph

ENTRY = "entry"


@dataclass(frozen=True)
class Stage:
    """A deployment: nodes that are fused into one replica.

    Attributes:
        name: `ENTRY` for the one that requests come to, else its nodes' names.
        placement: Hardware and scale.
        nodes: In running order.
        why: What made it a deployment of its own.
    """

    name: str
    placement: Placement
    nodes: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Step:
    """Nodes of one stage that run in one go: one object there, one back.

    Attributes:
        stage: The stage's name.
        nodes: In running order.
        needs: Inputs and other steps' nodes that travel there.
        gives: Nodes whose values other steps want; the graph's output is among the last one's.
        after: Numbers of the steps that must have ended.
    """

    stage: str
    nodes: tuple[str, ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Stages by name, and the steps that a batch takes; steps that wait for nothing run at once."""

    stages: dict[str, Stage]
    steps: tuple[Step, ...]

    @property
    def hops(self) -> int:
        """Calls of other deployments that a batch makes."""
        return sum(step.stage != ENTRY for step in self.steps)

    @property
    def in_flight(self) -> int:
        """Batches that the entry keeps under way, so that no deployment waits for another."""
        return 1 + self.hops


def compile_plan(graph: Graph) -> Plan:
    """Fuse nodes of equal placement; cut the order into as few steps as their edges allow."""
    members: dict[tuple[Placement, str], list[str]] = {}
    entry: list[str] = []
    for name in graph.order:
        placement = graph.nodes[name].placement
        if placement is None:
            entry.append(name)
        else:
            key = (placement, name if placement.isolated else "")
            members.setdefault(key, []).append(name)
    stages = {ENTRY: Stage(ENTRY, Placement(), tuple(entry), "takes requests and batches them")}
    for (placement, _), fused in members.items():
        title = "-".join(fused)
        title += "-node" * (title == ENTRY)
        why = "isolated" if placement.isolated else "asks for its own hardware and scale"
        stages[title] = Stage(title, placement, tuple(fused), why)
    stage_of = {node: stage.name for stage in stages.values() for node in stage.nodes}
    cuts = _cut(graph, stage_of)
    made_in = {node: number for number, (_, nodes) in enumerate(cuts) for node in nodes}
    wanted = {graph.output}
    for number, (_, nodes) in enumerate(cuts):
        outside = (need for node in nodes for need in graph.nodes[node].needs)
        wanted.update(need for need in outside if made_in.get(need, number) != number)
    steps = []
    for number, (stage, nodes) in enumerate(cuts):
        needs = dict.fromkeys(
            need
            for node in nodes
            for need in graph.nodes[node].needs
            if made_in.get(need) != number
        )
        after = sorted({made_in[need] for need in needs if need in made_in})
        gives = tuple(node for node in nodes if node in wanted)
        steps.append(Step(stage, nodes, tuple(needs), gives, tuple(after)))
    return Plan(stages, tuple(steps))


def _cut(graph: Graph, stage_of: dict[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Steps as (stage, nodes), in running order.

    Nodes of a stage that wait for the same nodes elsewhere, and that the same nodes elsewhere
    wait for, go together: then no node waits for a neighbour in its step that it does not need,
    and steps cannot wait for each other in a circle.
    """
    before: dict[str, set[str]] = {}
    for name in graph.order:
        needs = [need for need in graph.nodes[name].needs if need in graph.nodes]
        before[name] = set(needs).union(*(before[need] for need in needs))
    kinds: dict[tuple[str, frozenset[str], frozenset[str]], list[str]] = {}
    for name in graph.order:
        here = stage_of[name]
        waits = frozenset(n for n in before[name] if stage_of[n] != here)
        awaited = frozenset(n for n in graph.order if name in before[n] and stage_of[n] != here)
        kinds.setdefault((here, waits, awaited), []).append(name)
    number = {name: n for n, nodes in enumerate(kinds.values()) for name in nodes}
    edges = {
        n: {number[b] for name in nodes for b in before[name]} - {n}
        for n, nodes in enumerate(kinds.values())
    }
    steps = [(stage, tuple(nodes)) for (stage, _, _), nodes in kinds.items()]
    return [steps[n] for n in graphlib.TopologicalSorter(edges).static_order()]


def as_text(graph: Graph) -> str:
    """The plan as lines."""
    plan = graph.plan
    lines = [
        f"inputs: {', '.join(f'{name} {kind}' for name, kind in graph.inputs.items())}",
        f"output: {graph.output}",
    ]
    for stage in plan.stages.values():
        place = stage.placement
        hardware = f"{place.cpus:g} CPU" + (f", {place.gpus:g} GPU" if place.gpus else "")
        scale = (
            "replicas as deployed"
            if stage.name == ENTRY
            else f"{_count(place.replicas)} x {hardware}"
        )
        held = ", ".join(stage.nodes) or "no node"
        lines.append(f"deployment {stage.name} ({scale}): {held} ({stage.why})")
    for number, step in enumerate(plan.steps):
        after = f" after {', '.join(str(n) for n in step.after)}" if step.after else ""
        hop = "" if step.stage == ENTRY else ", one object there and one back for each batch"
        lines.append(f"step {number}{after}: {' -> '.join(step.nodes)} in {step.stage}{hop}")
    pairs = itertools.combinations(range(len(plan.steps)), 2)
    lines += [f"steps {a} and {b} run at once" for a, b in pairs if _independent(plan, a, b)]
    unused = [name for name in graph.nodes if name not in graph.order]
    if unused:
        lines.append(f"left out, since the output needs nothing of them: {', '.join(unused)}")
    return "\n".join(lines)


def _count(replicas: int | Scale) -> str:
    least, most = bounds(replicas)
    return f"{least}" if least == most else f"{least} to {most}"


def _independent(plan: Plan, a: int, b: int) -> bool:
    reach = {b}
    for number in range(b, -1, -1):
        if number in reach:
            reach.update(plan.steps[number].after)
    return a not in reach


def as_mermaid(graph: Graph) -> str:
    """The plan as a flowchart: a box for each deployment, types along the edges from inputs."""
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
