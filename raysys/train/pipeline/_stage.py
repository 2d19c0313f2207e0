"""The worker of a pipeline stage: forward and backward of micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import compress
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
    """The identity, at the name and with the parameters of a layer."""

    def forward(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class _Piece:
    """Operations as a function of values from outside."""

    module: fx.GraphModule
    inputs: list[fx.Node]
    outputs: list[fx.Node]


@dataclass
class PendingMicroBatch:
    """A micro-batch between its forward and its backward pass; the last stage has its loss."""

    received: list[torch.Tensor]
    sent: list[torch.Tensor]
    graded: list[torch.Tensor]
    loss: torch.Tensor | None


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
        self._loss = traced.loss if traced.loss in set(stage.each.operations) else None
        outputs = [self._loss] if self._loss else [value.node for value in stage.each.sends]
        self._each = _piece(stage.each.operations, outputs, traced)
        needed = {*self._each.inputs, *(value.node for value in stage.once.sends)}
        outputs = [node for node in stage.once.operations if node in needed]
        self._once = _piece(stage.once.operations, outputs, traced)
        self._graded = {node for node in self._once.outputs if node in profile.graded}
        if compiled:
            self._each.module.compile()
        needed |= {*self._once.inputs}
        needed -= {value.node for value in stage.once.receives}
        nodes = [node for node in traced.graph.find_nodes(op="placeholder") if node in needed]
        self._arguments = {n: traced.arguments[n.name] for n in nodes if n.name in traced.arguments}
        self.tensors = {n: traced.tensors[n.name] for n in nodes if n.name in traced.tensors}
        # Saved buffers of other stages that this one reads.
        self.copies = {
            name: tensor
            for node, tensor in self.tensors.items()
            if (name := traced.names.get(node.name, "")) in traced.saved
            and name not in stage.tensor_names
        }
        mutated = profile.mutated.keys()
        self._changes = [
            node in self.tensors and bool(profile.storages[node] & mutated)
            for node in self._each.inputs
        ]
        # Buffers that the forward pass changes.
        self.changing = [self.tensors[node] for node in compress(self._each.inputs, self._changes)]
        self._changed: list[torch.Tensor] = []
        self._values: dict[fx.Node, torch.Tensor] = {}
        self._computed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, received: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the values of the parameters alone; returns those for the next stage."""
        self._values, self._computed = dict(self.tensors), []
        for value, tensor in zip(self.stage.once.receives, received, strict=True):
            self._values[value.node] = _leaf(tensor, value.graded)
        with self._autocast():
            results = self._once.module(*(self._values[node] for node in self._once.inputs))
        for node, tensor in zip(self._once.outputs, results, strict=True):
            # Accumulates all micro-batches' gradients before they go further back.
            self._values[node] = _leaf(tensor.detach(), node in self._graded)
            if node in self._graded:
                self._computed.append((tensor, self._values[node]))
        return [self._values[value.node].detach() for value in self.stage.once.sends]

    def forward(
        self, received: Sequence[torch.Tensor], batch: Batch, weight: float
    ) -> PendingMicroBatch:
        """Forward pass of a micro-batch, whose loss is weighted."""

        def recomputed(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            # Bound, not as arguments: those may not change in place.
            return checkpoint(partial(self._apply, inputs), use_reentrant=False)

        apply = recomputed if self._checkpointed else self._apply
        passed = self._pass(apply, received, batch, weight)
        for buffer, value in zip(self.changing, self._changed, strict=True):
            buffer.copy_(value)
        return passed

    def look(
        self, received: Sequence[torch.Tensor], batch: Batch, weight: float
    ) -> PendingMicroBatch:
        """The same, operation by operation, passing each layer's output to its twin in `holder`."""
        look = _Look(self._each.module, self.holder)
        return self._pass(lambda inputs: look.run(*inputs), received, batch, weight)

    def _pass(
        self,
        apply: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]],
        received: Sequence[torch.Tensor],
        batch: Batch,
        weight: float,
    ) -> PendingMicroBatch:
        stage = self.stage.each
        received = [_leaf(t, v.graded) for v, t in zip(stage.receives, received, strict=True)]
        values = {value.node: t for value, t in zip(stage.receives, received, strict=True)}
        every = self._values | values | {n: batch[name] for n, name in self._arguments.items()}
        inputs = self._copied([every[node] for node in self._each.inputs])
        with self._autocast():
            results = apply(inputs)
        # A value that skips this stage is passed on unchanged.
        values |= dict(zip(self._each.outputs, results, strict=True))
        if self._loss is not None:
            loss = values[self._loss] * weight
            return PendingMicroBatch(received, [], [loss], loss.detach())
        graded = [values[value.node] for value in stage.sends if value.graded]
        sent = [values[value.node].detach() for value in stage.sends]
        return PendingMicroBatch(received, sent, graded, None)

    def _apply(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # Copies per micro-batch and computation: backward comes after the next one's forward.
        own = self._copied(inputs)
        results: tuple[torch.Tensor, ...] = self._each.module(*own)
        self._changed = [*compress(own, self._changes)]
        return results

    def _copied(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies of the buffers that change; the other inputs as they are."""
        return [t.clone() if c else t for t, c in zip(inputs, self._changes, strict=True)]

    def backward(
        self, passed: PendingMicroBatch, gradients: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Backward pass from the gradients of the sent values; returns those of the received."""
        if passed.graded:  # The gradient of the loss is 1.
            torch.autograd.backward(passed.graded, gradients or None)
        return _gradients(self.stage.each.receives, passed.received)

    def end(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same for the values of `begin`, after all micro-batches."""
        sent = [value for value in self.stage.once.sends if value.graded]
        for value, gradient in zip(sent, gradients, strict=True):
            leaf = self._values[value.node]
            leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        through = [
            (results, leaf.grad) for results, leaf in self._computed if leaf.grad is not None
        ]
        if through:
            torch.autograd.backward(*zip(*through, strict=True))
        values = [self._values[value.node] for value in self.stage.once.receives]
        returned = _gradients(self.stage.once.receives, values)
        self._values, self._computed = {}, []
        return returned


class _Look(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, holder: torch.nn.Module) -> None:
        super().__init__(module)
        self._layers = dict(holder.named_modules())

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        layer = layer_of(n)
        # Only the outputs of a layer: a mask inside it may well be infinite.
        if layer and any(layer_of(user) != layer for user in n.users):
            self._layers[layer](value)
        return value


def layer_of(node: fx.Node) -> str:
    """Name of the innermost layer of an operation; empty outside of all."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _holder(stage: PipelineStage, traced: TracedModule) -> torch.nn.Module:
    """A module with the stage's own parameters, buffers and layers at their names."""
    holder = Layer()

    def at(path: str) -> torch.nn.Module:
        layer: torch.nn.Module = holder
        for part in path.split(".") if path else ():
            if part not in dict(layer.named_children()):
                layer.add_module(part, Layer())
            layer = layer.get_submodule(part)
        return layer

    for node in stage.once.operations + stage.each.operations:
        at(layer_of(node))
    places = {name: place for place, name in traced.names.items()}
    for name in stage.tensor_names:
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
    results = [node for node in dict.fromkeys(outputs) if node in own]
    graph.output(tuple(copies[node] for node in results))
    used = {str(node.target) for node in nodes if node.op == "get_attr"}
    root = torch.nn.ModuleDict({name: traced.modules[name] for name in used})
    return _Piece(fx.GraphModule(root, graph), inputs, results)


def _leaf(tensor: torch.Tensor, graded: bool) -> torch.Tensor:
    return tensor.requires_grad_() if graded and torch.is_grad_enabled() else tensor


def _gradients(values: list[StageValue], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.contiguous()
        for value, tensor in zip(values, tensors, strict=True)
        if value.graded
    ]
