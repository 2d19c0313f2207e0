"""Tensors between neighbouring stages, sent and received while both compute."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.train.pipeline._partition import StageValue

# Receives posted before they are needed: how far a neighbour may be ahead.
_AHEAD = 2


class StageLink:
    """The link to one neighbour; each direction has a process group of its own.

    Both sides send and receive the same values in the same order. At either end of a pipeline
    nothing is sent, so the peer does not matter.
    """

    def __init__(self, peer: int, sending: Any, receiving: Any, device: str) -> None:
        self._peer, self._sending, self._receiving = peer, sending, receiving
        self._device = device
        self._under_way: deque[list[tuple[Any, torch.Tensor]]] = deque()

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Begin to send; the tensors must not change until `finish`."""
        packed = [tensor.contiguous() for tensor in tensors]
        self._under_way.append(
            [(dist.isend(t, self._peer, group=self._sending), t) for t in packed]
        )
        # The neighbour has received these, or it could not have asked for later ones.
        while len(self._under_way) > 2 * _AHEAD + 1:
            self._finish_oldest()

    def finish(self) -> None:
        """Wait until everything is sent."""
        while self._under_way:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        for work, _ in self._under_way.popleft():
            work.wait()

    def receive(self, values: Sequence[StageValue], count: int = 1) -> Incoming:
        """Post receives for the values of `count` micro-batches."""
        return Incoming(self._peer, self._receiving, self._device, values, count)


class Incoming:
    """Incoming values, micro-batch after micro-batch."""

    def __init__(
        self, peer: int, group: Any, device: str, values: Sequence[StageValue], count: int
    ) -> None:
        self._peer, self._group, self._device, self._values = peer, group, device, values
        self._left = count
        self._posted: deque[list[tuple[Any, torch.Tensor]]] = deque()
        for _ in range(_AHEAD):
            self._post()

    def next(self) -> list[torch.Tensor]:
        """Wait for those of the next micro-batch, as new tensors."""
        arriving = self._posted.popleft()
        self._post()
        for work, _ in arriving:
            work.wait()
        return [tensor for _, tensor in arriving]

    def _post(self) -> None:
        if self._left:
            self._left -= 1
            empty = [
                torch.empty(value.shape, dtype=value.dtype, device=self._device)
                for value in self._values
            ]
            self._posted.append([(dist.irecv(t, self._peer, group=self._group), t) for t in empty])
