"""Parameters that a loss does not depend on, for strategies that need a gradient of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def used_parameters(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[bool]:
    """Whether each parameter has a gradient, or gets one in the loss's backward pass.

    Walks the graph of the backward pass, about a microsecond for each operation. A parameter
    behind a checkpoint of PyTorch's older kind (`use_reentrant=True`) is not visible in it, so
    with such a checkpoint all count as used.
    """
    seen, waiting = set(), [loss.grad_fn]
    reached = set()
    while waiting:
        function = waiting.pop()
        if function.name() == "CheckpointFunctionBackward":
            return [True] * len(parameters)
        variable = getattr(function, "variable", None)  # of the node that accumulates a gradient
        if variable is not None:
            reached.add(id(variable))
        for after, _ in function.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return [id(p) in reached or p.grad is not None for p in parameters]


def zero_term(parameter: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    """A zero that depends on a parameter, so that it gets a gradient of zeros."""
    if sparse:
        row = torch.zeros(1, dtype=torch.long, device=parameter.device)
        return functional.embedding(row, parameter, sparse=True).sum() * 0
    return parameter.flatten()[:1].sum() * 0
