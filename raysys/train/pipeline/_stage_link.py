"""Tensors between neighbouring stages, sent and received while both compute."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raysys.train.pipeline._partition import StageValue

# Receives posted before they are needed: how far a neighbour may be ahead.
_AHEAD = 2

_Transfers = list[tuple[Any, torch.Tensor]]


class StageLink:
    """The link to one neighbour; each direction has a process group of its own.

    Both sides send and receive the same values in the same order. At either end of a pipeline
    nothing is sent, so the peer does not matter.
    """

    def __init__(self, peer: int, sending: Any, receiving: Any, device: str) -> None:
        self._peer, self._sending, self._receiving = peer, sending, receiving
        self._device = device
        self._under_way: deque[_Transfers] = deque()

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Begin to send; the tensors must not change until `finish`."""
        packed = [tensor.contiguous() for tensor in tensors]
        self._under_way.append(
            [(dist.isend(t, self._peer, group=self._sending), t) for t in packed]
        )
        # The neighbour has received these, or it could not have asked for later ones.
        while len(self._under_way) > 2 * _AHEAD + 1:
            _wait(self._under_way.popleft())

    def finish(self) -> None:
        """Wait until everything is sent."""
        while self._under_way:
            _wait(self._under_way.popleft())

    def receive(self, values: Sequence[StageValue], count: int = 1) -> Iterator[list[torch.Tensor]]:
        """Post receives of `count` micro-batches' values; waits for one at a time, new tensors."""
        posted = deque(self._post(values) for _ in range(min(count, _AHEAD)))

        def arriving() -> Iterator[list[torch.Tensor]]:
            for at in range(count):
                transfers = posted.popleft()
                if at + _AHEAD < count:
                    posted.append(self._post(values))
                yield _wait(transfers)

        return arriving()

    def _post(self, values: Sequence[StageValue]) -> _Transfers:
        empty = [torch.empty(v.shape, dtype=v.dtype, device=self._device) for v in values]
        return [(dist.irecv(t, self._peer, group=self._receiving), t) for t in empty]


def _wait(transfers: _Transfers) -> list[torch.Tensor]:
    for work, _ in transfers:
        work.wait()
    return [tensor for _, tensor in transfers]
