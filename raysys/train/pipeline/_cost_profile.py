"""Cost and side effects of each operation of a traced module, on fake tensors."""

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

# For one core, and for one GPU in bfloat16; only the ratios matter.
_FLOPS_A_SECOND = {"cpu": 60e9, "cuda": 300e12}
_BYTES_A_SECOND = {"cpu": 15e9, "cuda": 2e12}
_OPERATION_S = {"cpu": 4e-6, "cuda": 1e-5}
_RANDOM_FACTOR = {"cpu": 10, "cuda": 1}  # a CPU draws numbers one by one
_NORMS = ("batch_norm", "instance_norm")  # change their statistics without declaring it
_BACKWARD = 2  # times the forward pass: with respect to the input and to the parameter
# Passes over a parameter's bytes: its gradient is computed and accumulated in each micro-batch;
# an optimizer reads and writes two moments and the parameter once a step.
_PARAMETER_PASSES, _OPTIMIZER_PASSES = 3, 8


@dataclass
class CostProfile:
    """Costs by node of a traced graph.

    Attributes:
        accumulate: Micro-batches that share the cost of an optimizer step.
        values: Outputs of the node, fake tensors.
        seconds: Estimated time of the node, forward and backward, in one micro-batch.
        storages: Memory that the node reads or returns.
        graded: Nodes whose value gets a gradient.
        mutated: Last node that changes a piece of memory in place.
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
        traced: Traced module.
        example: Batch that it was traced with.
        autocast: Context of the forward pass, which decides dtypes.
        accumulate: Micro-batches that share the cost of an optimizer step.
    """
    costs = CostProfile(accumulate)
    module = fx.GraphModule(torch.nn.ModuleDict(traced.modules), traced.graph)
    placeholders = traced.graph.find_nodes(op="placeholder")
    values = traced.tensors | {place: example[name] for place, name in traced.arguments.items()}
    with FakeTensorMode() as fake:
        inputs = [fake.from_tensor(values[node.name]) for node in placeholders]
        run = _Run(module, costs)
        with run.counter, autocast():
            run.run(*inputs)
        reached = [
            node
            for node, value in run.env.items()
            if isinstance(value, torch.Tensor) and value.requires_grad
        ]
        tensors = [run.env[node] for node in reached]
        grads = torch.autograd.grad(run.env[traced.loss], tensors, allow_unused=True)
        costs.graded = {n for n, grad in zip(reached, grads, strict=True) if grad is not None}
    passes = _PARAMETER_PASSES + _OPTIMIZER_PASSES / accumulate
    for node in costs.graded.intersection(placeholders):
        tensor = costs.values[node]
        costs.seconds[node] = passes * tensor.nbytes / _BYTES_A_SECOND[tensor.device.type]
    return costs


class _Run(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, profile: CostProfile) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.profile = profile
        self.counter = FlopCounterMode(display=False)

    def run_node(self, n: fx.Node) -> Any:
        arguments = [(node, self.env[node]) for node in n.all_input_nodes]
        inputs = [t for _, value in arguments for t in _tensors(value)]
        versions = [tensor._version for tensor in inputs]
        flops = self.counter.get_total_flops()
        value = super().run_node(n)
        flops = self.counter.get_total_flops() - flops
        outputs = list(_tensors(value))
        costs = self.profile
        costs.values[n] = value
        costs.storages[n] = {_storage(tensor) for tensor in (*inputs, *outputs)}
        if n.op == "call_function":
            costs.seconds[n] = _seconds(n, inputs, outputs, flops)
        changed = [t for t, version in zip(inputs, versions, strict=True) if t._version != version]
        if any(norm in str(op) for op in _operators(n) for norm in _NORMS):
            changed += [t for m, t in arguments if m.op == "placeholder" and not t.requires_grad]
        costs.mutated |= {_storage(tensor): n for tensor in changed}
        return value


def _seconds(
    node: fx.Node, inputs: list[torch.Tensor], outputs: list[torch.Tensor], flops: int
) -> float:
    kind = outputs[0].device.type if outputs else "cpu"
    read = {_storage(tensor) for tensor in inputs}
    fresh = [tensor for tensor in outputs if _storage(tensor) not in read]
    seconds = flops / _FLOPS_A_SECOND[kind] + _OPERATION_S[kind]
    if fresh and node.target is not operator.getitem:
        # A lookup of rows reads as much as it returns.
        written = sum(tensor.nbytes for tensor in fresh)
        moved = written + sum(min(tensor.nbytes, 2 * written) for tensor in inputs)
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
