"""Parameters that a loss does not depend on, for strategies that need a gradient of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional


def reached_parameters(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[bool]:
    """Whether the backward pass of a loss reaches each parameter.

    Walks the graph of the backward pass, about a microsecond for each operation. A parameter
    behind a checkpoint of PyTorch's older kind (`use_reentrant=True`) is not visible in it, so
    with such a checkpoint all count as used.
    """
    waiting: list[Any] = [loss.grad_fn]
    seen = set(waiting)
    reached = set()
    while waiting:
        function = waiting.pop()
        if type(function).__name__ == "CheckpointFunctionBackward":
            return [True] * len(parameters)
        inputs = function.next_functions
        if not inputs:  # it accumulates the gradient of a parameter
            reached.add(id(getattr(function, "variable", None)))
        for after, _ in inputs:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return [id(parameter) in reached for parameter in parameters]


def zero_term(parameter: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    """A zero that depends on a parameter, so that it gets a gradient of zeros."""
    if sparse:
        row = torch.zeros(1, dtype=torch.long, device=parameter.device)
        return functional.embedding(row, parameter, sparse=True).sum() * 0
    return parameter.flatten()[:1].sum() * 0
