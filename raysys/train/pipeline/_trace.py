"""Trace of a module as one flat graph of tensor operations, for a pipeline to cut."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_unflatten

from raysys.errors import TrainError
from raysys.train._module import aliases_of, extra_state_of, tensors_of

if TYPE_CHECKING:
    from raysys.train._task import Batch

_REMEDY = "train with zero3 or fsdp, which spread any module"
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class TracedModule:
    """The graph of `forward` in training.

    Attributes:
        graph: Operations in the order of the trace. Its placeholders are the tensors below.
        modules: Bodies of blocks such as `torch.no_grad()`, by the names that the graph uses.
        tensors: Parameters, buffers and constants of the module by placeholder.
        names: First name of a parameter or buffer in the module, by placeholder.
        saved: Names in the `state_dict`.
        arguments: Argument of `forward` by placeholder.
        loss: Node of the result.
    """

    graph: fx.Graph
    modules: dict[str, torch.nn.Module]
    tensors: dict[str, torch.Tensor]
    names: dict[str, str]
    saved: frozenset[str]
    arguments: dict[str, str]
    loss: fx.Node


def trace(module: torch.nn.Module, example: Batch) -> TracedModule:
    """Trace a module in training mode, without computing anything.

    Args:
        module: Module with a `forward(**batch)` that returns a mean loss; it does not change.
        example: A batch with the shapes, dtypes and device of all later ones.

    Raises:
        TrainError: The result depends on Python branches on the data, on gradients defined by
            Python functions, or is not a single loss.
    """
    if extra := next(iter(extra_state_of(module)), None):
        raise _untraceable(module, f"{extra} would be lost")
    _refuse_own_gradients(module, example)
    try:
        exported = torch.export.export(module.train(), (), dict(example), strict=False)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise _untraceable(module, f"{type(error).__name__}: {reason}") from error
    signature, graph = exported.graph_signature, exported.graph
    results = next(node for node in graph.nodes if node.op == "output").args[0]
    if len(results) != 1 or results[0].meta["val"].numel() != 1:
        raise _untraceable(module, f"forward returns {len(results)} values, not one mean loss")
    _, keywords = tree_unflatten(list(signature.user_inputs), exported.call_spec.in_spec)
    saved = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: dict[str, torch.Tensor] = {
        place: operator.attrgetter(name)(module) for place, name in saved.items()
    }
    for place, name in signature.inputs_to_lifted_tensor_constants.items():
        tensors[place] = exported.constants[name]
    first = aliases_of(module)
    traced = TracedModule(
        graph=graph,
        modules=dict(exported.graph_module.named_children()),
        tensors=tensors,
        names={place: first.get(name, name) for place, name in saved.items()},
        saved=frozenset(tensors_of(module)),
        arguments={place: name for name, place in keywords.items()},
        loss=results[0],
    )
    _tidy(graph)
    _share(traced)
    return traced


def _untraceable(module: torch.nn.Module, reason: str) -> TrainError:
    return TrainError(f"a pipeline cannot cut {type(module).__name__}: {reason}; {_REMEDY}")


class _Hooks(TorchFunctionMode):
    """Notices hooks on gradients, which a trace would lose."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if getattr(func, "__name__", "") == "register_hook":
            self.seen = True
        return func(*args, **(kwargs or {}))


def _refuse_own_gradients(module: torch.nn.Module, example: Batch) -> None:
    """Refuse gradients defined by Python functions, which a trace of the forward pass loses."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    hooked = [name for name, tensor in own.items() if tensor._backward_hooks]
    if hooked:
        raise _untraceable(module, f"{hooked[0]} has a hook on its gradient, which would be lost")
    hooks = _Hooks()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        tensors = {name: fake.from_tensor(tensor) for name, tensor in own.items()}
        batch = {name: fake.from_tensor(tensor) for name, tensor in example.items()}
        try:
            with hooks:
                loss = torch.func.functional_call(module.train(), tensors, (), batch)
        except Exception:
            return  # The trace has the better message.
    if hooks.seen:
        raise _untraceable(module, "forward puts a hook on a gradient, which would be lost")
    if not getattr(loss, "requires_grad", False):
        raise _untraceable(module, "its loss depends on no parameter that is trained")
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        function = waiting.pop()
        if isinstance(function, torch.autograd.function.BackwardCFunction):
            name = type(function).__name__.removesuffix("Backward")
            raise _untraceable(
                module, f"{name} is a torch.autograd.Function, whose backward would be lost"
            )
        for after, _ in function.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)


def _tidy(graph: fx.Graph) -> None:
    """Remove mere checks, and move the parts of a result right behind it."""
    for node in list(graph.nodes):
        if node.target is _ATEN._assert_tensor_metadata.default or (
            node.target is _ATEN.copy_.default and _origin(node.args[1]) is node.args[0]
        ):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is _ATEN.detach_.default:  # of a new constant
            node.target = _ATEN.detach.default
        elif node.target is operator.getitem:
            node.args[0].append(node)


def _origin(node: fx.Node) -> fx.Node:
    """The node of the tensor that an in-place operation returns."""
    while isinstance(node.target, torch._ops.OpOverload):
        first = node.target._schema.arguments[0]
        if first.alias_info is None or not first.alias_info.is_write:
            break
        node = node.args[0]
    return node


def _share(traced: TracedModule) -> None:
    """Give a tensor that has several names one placeholder."""
    first: dict[int, fx.Node] = {}
    for node in traced.graph.find_nodes(op="placeholder"):
        if node.name in traced.tensors:
            same = first.setdefault(id(traced.tensors[node.name]), node)
            if same is not node:
                node.replace_all_uses_with(same)
                traced.graph.erase_node(node)
                del traced.tensors[node.name], traced.names[node.name]
