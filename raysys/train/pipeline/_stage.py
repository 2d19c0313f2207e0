"""One stage of a pipeline at work: forward and backward of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

    from raysys.train._task import Batch
    from raysys.train.pipeline._cost_profile import CostProfile
    from raysys.train.pipeline._partition import PipelineStage, StageValue
    from raysys.train.pipeline._trace import TracedModule


class Layer(torch.nn.Module):
    """Stands at a layer's name, holds its parameters and gives back what it is given."""

    def forward(self, given: Any) -> Any:
        return given


@dataclass(frozen=True)
class _Piece:
    """Operations as a function of what is made elsewhere."""

    module: fx.GraphModule
    inputs: list[fx.Node]
    outputs: list[fx.Node]


@dataclass
class PendingMicroBatch:
    """A micro-batch that has gone forward and waits for its gradients."""

    received: list[torch.Tensor]
    sent: list[torch.Tensor]
    graded: list[torch.Tensor]


class StageWorker:
    """A stage with its tensors.

    In a step: `begin` once, `forward` and `backward` for each micro-batch, `end` once.
    """

    def __init__(
        self,
        stage: PipelineStage,
        traced: TracedModule,
        profile: CostProfile,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
        *,
        checkpointed: bool,
        compiled: bool,
    ) -> None:
        self.stage = stage
        self.holder = _holder(stage, traced)
        self._autocast, self._checkpointed = autocast, checkpointed
        self._loss = traced.loss if traced.loss in set(stage.each) else None
        kept = [self._loss] if self._loss else []
        self._each = _piece(stage.each, [v.node for v in stage.sends_each] + kept, traced)
        wanted = {value.node for value in stage.sends_once} | set(self._each.inputs)
        self._once = _piece(stage.once, [n for n in stage.once if n in wanted], traced)
        self._graded = {node for node in self._once.outputs if node in profile.graded}
        if compiled:
            self._each.module.compile()
        read = {*self._each.inputs, *self._once.inputs}
        self._arguments = {n: traced.arguments[n.name] for n in read if n.name in traced.arguments}
        self._held = {
            node: tensor
            for node in traced.graph.find_nodes(op="placeholder")
            if (tensor := traced.tensors.get(node.name)) is not None
            and (node in read or node in wanted)
            and node not in {value.node for value in stage.receives_once}
        }
        # Saved buffers of other stages that this one reads.
        self.copies = {
            name: tensor
            for node, tensor in self._held.items()
            if (name := traced.names.get(node.name, "")) in traced.saved and name not in stage.holds
        }
        self._changing = {
            node for node in self._held if profile.storages[node] & profile.mutated.keys()
        }
        # Buffers that the forward pass changes.
        self.changing = [self._held[n] for n in self._each.inputs if n in self._changing]
        self._changed: list[torch.Tensor] = []
        self._known: dict[fx.Node, torch.Tensor] = {}
        self._made: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that the stage reads, buffers of other stages among it."""
        return list(self._held.values())

    def begin(self, received: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute what the parameters alone decide; returns what the next stage needs of it."""
        self._known, self._made = dict(self._held), []
        for value, tensor in zip(self.stage.receives_once, received, strict=True):
            self._known[value.node] = _leaf(tensor, value.graded)
        with self._autocast():
            made = self._once.module(*(self._known[node] for node in self._once.inputs))
        for node, tensor in zip(self._once.outputs, made, strict=True):
            # All micro-batches' gradients are gathered here before they go further back.
            self._known[node] = _leaf(tensor.detach(), node in self._graded)
            if node in self._graded:
                self._made.append((tensor, self._known[node]))
        return [self._known[value.node].detach() for value in self.stage.sends_once]

    def forward(
        self, received: Sequence[torch.Tensor], batch: Batch, weight: float
    ) -> tuple[PendingMicroBatch, torch.Tensor | None]:
        """Send a micro-batch through; the last stage gives its weighted loss too."""
        known, inputs = self._inputs(received, batch)
        with self._autocast():
            if self._checkpointed:
                # Not as arguments, which may not change in place.
                made = checkpoint(partial(self._apply, inputs), use_reentrant=False)
            else:
                made = self._apply(inputs)
        for buffer, value in zip(self.changing, self._changed, strict=True):
            buffer.copy_(value)
        return self._passed(known, made, weight)

    def look(
        self, received: Sequence[torch.Tensor], batch: Batch, weight: float
    ) -> tuple[PendingMicroBatch, torch.Tensor | None]:
        """The same, one operation after the other; layers of `holder` are given what they give."""
        known, inputs = self._inputs(received, batch)
        with self._autocast():
            made = _Look(self._each.module, self.holder).run(*inputs)
        return self._passed(known, made, weight)

    def _apply(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # Of its own for each micro-batch, and for each time that it is computed: backward comes
        # when the next has gone forward.
        own = [
            tensor.clone() if node in self._changing else tensor
            for node, tensor in zip(self._each.inputs, inputs, strict=True)
        ]
        made = self._each.module(*own)
        self._changed = [
            tensor
            for node, tensor in zip(self._each.inputs, own, strict=True)
            if node in self._changing
        ]
        return made

    def _inputs(
        self, received: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[dict[fx.Node, torch.Tensor], list[torch.Tensor]]:
        known = {
            value.node: _leaf(tensor, value.graded)
            for value, tensor in zip(self.stage.receives_each, received, strict=True)
        }
        every = self._known | known | {n: batch[name] for n, name in self._arguments.items()}
        inputs = [
            every[node].clone() if node in self._changing else every[node]
            for node in self._each.inputs
        ]
        return known, inputs

    def _passed(
        self, known: dict[fx.Node, torch.Tensor], made: Sequence[torch.Tensor], weight: float
    ) -> tuple[PendingMicroBatch, torch.Tensor | None]:
        given = [known[value.node] for value in self.stage.receives_each]
        # What skips this stage is passed on as it came.
        known |= dict(zip(self._each.outputs, made, strict=True))
        sent = [known[value.node] for value in self.stage.sends_each]
        if self._loss is None:
            graded = [t for v, t in zip(self.stage.sends_each, sent, strict=True) if v.graded]
            return PendingMicroBatch(given, [tensor.detach() for tensor in sent], graded), None
        loss = known[self._loss] * weight
        return PendingMicroBatch(given, [], [loss]), loss.detach()

    def backward(
        self, passed: PendingMicroBatch, gradients: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Take the gradients of what was sent; returns those of what was received."""
        if passed.graded:  # The loss has no gradient but 1.
            torch.autograd.backward(passed.graded, gradients or None)
        return _gradients(self.stage.receives_each, passed.received)

    def end(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same for what `begin` sent and received, when all micro-batches are through."""
        sent = [value for value in self.stage.sends_once if value.graded]
        for value, gradient in zip(sent, gradients, strict=True):
            leaf = self._known[value.node]
            leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        through = [(made, leaf.grad) for made, leaf in self._made if leaf.grad is not None]
        if through:
            torch.autograd.backward(*zip(*through, strict=True))
        known = [self._known[value.node] for value in self.stage.receives_once]
        returned = _gradients(self.stage.receives_once, known)
        self._known, self._made = {}, []
        return returned


class _Look(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, holder: torch.nn.Module) -> None:
        super().__init__(module)
        self._layers = dict(holder.named_modules())

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        layer = layer_of(n)
        # What leaves a layer is its output; a mask inside it may well be infinite.
        if layer and any(layer_of(user) != layer for user in n.users):
            self._layers[layer](value)
        return value


def layer_of(node: fx.Node) -> str:
    """Name of the innermost layer that an operation stands in; empty outside of all."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _holder(stage: PipelineStage, traced: TracedModule) -> torch.nn.Module:
    """A module with the stage's own parameters and buffers at their names, and its layers."""
    holder = Layer()

    def at(path: str) -> torch.nn.Module:
        layer: torch.nn.Module = holder
        for part in path.split(".") if path else ():
            if part not in dict(layer.named_children()):
                layer.add_module(part, Layer())
            layer = layer.get_submodule(part)
        return layer

    for node in (*stage.once, *stage.each):
        at(layer_of(node))
    places = {name: place for place, name in traced.names.items()}
    for name in stage.holds:
        path, _, last = name.rpartition(".")
        tensor = traced.tensors[places[name]]
        if isinstance(tensor, torch.nn.Parameter):
            at(path).register_parameter(last, tensor)
        else:
            at(path).register_buffer(last, tensor, persistent=name in traced.saved)
    return holder


def _piece(nodes: list[fx.Node], outputs: list[fx.Node], traced: TracedModule) -> _Piece:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    own = set(nodes)
    inputs = list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in own))
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    made = [node for node in dict.fromkeys(outputs) if node in own]
    graph.output(tuple(copies[node] for node in made))
    used = {str(node.target) for node in nodes if node.op == "get_attr"}
    root = torch.nn.ModuleDict({name: traced.modules[name] for name in used})
    return _Piece(fx.GraphModule(root, graph), inputs, made)


def _leaf(tensor: torch.Tensor, graded: bool) -> torch.Tensor:
    return tensor.requires_grad_() if graded and torch.is_grad_enabled() else tensor


def _gradients(values: list[StageValue], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.contiguous()
        for value, tensor in zip(values, tensors, strict=True)
        if value.graded
    ]
