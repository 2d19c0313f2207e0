"""What each operation of a traced module costs and changes, found without computing it."""

from __future__ import annotations

import contextlib
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raysys.train._task import Batch
    from raysys.train.pipeline._trace import TracedModule

# Of one core, and of one GPU in bfloat16: what matters are the ratios.
_FLOPS_A_SECOND = {"cpu": 60e9, "cuda": 300e12}
_BYTES_A_SECOND = {"cpu": 15e9, "cuda": 2e12}
_OPERATION_S = {"cpu": 4e-6, "cuda": 1e-5}
_RANDOM_FACTOR = {"cpu": 10, "cuda": 1}  # a CPU draws numbers one by one
_NORMS = ("batch_norm", "instance_norm")  # change their statistics without saying so
_BACKWARD = 2  # times the forward pass: with respect to the input and to the parameter
# Of a parameter's bytes: its gradient is made and added to what there is in each micro-batch;
# an optimizer reads and writes two moments and the parameter once a step.
_PARAMETER_PASSES, _OPTIMIZER_PASSES = 3, 8


@dataclass
class CostProfile:
    """By node of a traced graph.

    Attributes:
        accumulate: Micro-batches that share the cost of an optimizer step.
        values: What the node gives, as fake tensors with shape, dtype and device.
        seconds: Estimated time of the node, forward and backward, in one micro-batch.
        storages: Memory that the node reads or gives.
        graded: Nodes whose value gets a gradient.
        mutated: The last node that changes a piece of memory in place.
    """

    accumulate: int = 1
    values: dict[fx.Node, Any] = field(default_factory=dict)
    seconds: dict[fx.Node, float] = field(default_factory=dict)
    storages: dict[fx.Node, set[int]] = field(default_factory=dict)
    graded: set[fx.Node] = field(default_factory=set)
    mutated: dict[int, fx.Node] = field(default_factory=dict)


def profile(
    traced: TracedModule,
    example: Batch,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    accumulate: int = 1,
) -> CostProfile:
    """Run a graph forward and backward on fake tensors.

    Args:
        traced: The graph.
        example: The batch that it was traced with.
        autocast: Makes the context of the forward pass, which decides dtypes.
        accumulate: Micro-batches that share the cost of an optimizer step.
    """
    found = CostProfile(accumulate)
    module = fx.GraphModule(torch.nn.ModuleDict(traced.modules), traced.graph)
    with FakeTensorMode() as fake:
        inputs = [
            fake.from_tensor(
                traced.tensors[node.name]
                if node.name in traced.tensors
                else example[traced.arguments[node.name]]
            )
            for node in traced.graph.find_nodes(op="placeholder")
        ]
        run = _Run(module, found)
        with run.counter, autocast():
            run.run(*inputs)
        _gradients(run, traced, found)
    for node in traced.graph.find_nodes(op="placeholder"):
        tensor = found.values[node]
        if node in found.graded:
            passes = _PARAMETER_PASSES + _OPTIMIZER_PASSES / accumulate
            found.seconds[node] = passes * tensor.nbytes / _BYTES_A_SECOND[tensor.device.type]
    return found


def _gradients(run: _Run, traced: TracedModule, found: CostProfile) -> None:
    wanted = [
        node
        for node, value in run.env.items()
        if isinstance(value, torch.Tensor) and value.requires_grad
    ]
    grads = torch.autograd.grad(
        run.env[traced.loss], [run.env[node] for node in wanted], allow_unused=True
    )
    found.graded = {node for node, grad in zip(wanted, grads, strict=True) if grad is not None}


class _Run(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, found: CostProfile) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found = found
        self.counter = FlopCounterMode(display=False)

    def run_node(self, n: fx.Node) -> Any:
        given = [(node, self.env[node]) for node in n.all_input_nodes]
        inputs = [t for _, value in given for t in _tensors(value)]
        versions = [tensor._version for tensor in inputs]
        flops = self.counter.get_total_flops()
        value = super().run_node(n)
        flops = self.counter.get_total_flops() - flops
        outputs = list(_tensors(value))
        found = self.found
        found.values[n] = value
        found.storages[n] = {_storage(tensor) for tensor in (*inputs, *outputs)}
        if n.op == "call_function":
            found.seconds[n] = _seconds(n, inputs, outputs, flops)
        quiet = _changes_quietly(n, self.module)
        for tensor, version in zip(inputs, versions, strict=True):
            if tensor._version != version:
                self._mutates(n, tensor)
        for node, given_value in given:
            if quiet and node.op == "placeholder" and not given_value.requires_grad:
                self._mutates(n, given_value)
        return value

    def _mutates(self, n: fx.Node, tensor: torch.Tensor) -> None:
        self.found.mutated[_storage(tensor)] = n


def _seconds(
    node: fx.Node, inputs: list[torch.Tensor], outputs: list[torch.Tensor], flops: int
) -> float:
    kind = outputs[0].device.type if outputs else "cpu"
    read = {_storage(tensor) for tensor in inputs}
    made = [tensor for tensor in outputs if _storage(tensor) not in read]
    seconds = flops / _FLOPS_A_SECOND[kind] + _OPERATION_S[kind]
    if made and node.target is not operator.getitem:
        # What looks rows up reads as much as it gives.
        most = sum(tensor.nbytes for tensor in made)
        moved = most + sum(min(tensor.nbytes, 2 * most) for tensor in inputs)
        if is_random(node):
            moved *= _RANDOM_FACTOR[kind]
        seconds += moved / _BYTES_A_SECOND[kind]
    graded = any(tensor.requires_grad for tensor in outputs)
    return seconds * (1 + _BACKWARD * graded)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def is_random(node: fx.Node) -> bool:
    """Whether an operation, or one inside a block that it runs, draws random numbers."""
    return any(torch.Tag.nondeterministic_seeded in op.tags for op in _operators(node))


def _changes_quietly(node: fx.Node, module: torch.nn.Module) -> bool:
    return any(norm in str(op) for op in _operators(node) for norm in _NORMS)


def _operators(node: fx.Node) -> Iterator[torch._ops.OpOverload]:
    if isinstance(node.target, torch._ops.OpOverload):
        yield node.target
    owner = node.graph.owning_module
    for inner in node.all_input_nodes:
        if inner.op == "get_attr" and owner is not None:
            body = getattr(owner, str(inner.target))
            if isinstance(body, fx.GraphModule):
                for within in body.graph.nodes:
                    yield from _operators(within)
