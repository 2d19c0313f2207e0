"""A model's counts, as the statistics extension of the Open Inference Protocol has them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysys.serve.http._server import Respond


class ModelStatistics:
    """The counts of one model in this process; the gateway adds up those of all replicas."""

    def __init__(self) -> None:
        self._last_ms = self._rows = self._batches = 0
        # Number and nanoseconds: of requests by outcome, and of batches by number of rows.
        self._stages: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._sizes: dict[int, list[int]] = defaultdict(lambda: [0, 0])

    def counting(self, respond: Respond) -> Respond:
        """A `respond` that counts the request and its time from now on."""
        started = time.perf_counter_ns()

        def respond_counted(
            status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None
        ) -> None:
            ns = time.perf_counter_ns() - started
            _add(self._stages["success" if status == 200 else "fail"], 1, ns)
            if headers and "x-cache" in headers:
                _add(self._stages["cache_hit"], 1, ns)
            respond(status, kind, body, headers)

        return respond_counted

    def batch(self, rows: int, seconds: float, waits_s: Sequence[float]) -> None:
        """Count a batch, and the waiting times of its requests."""
        requests, ns = len(waits_s), int(1e9 * seconds)
        self._last_ms = int(1000 * time.time())
        self._rows += rows
        self._batches += 1
        _add(self._stages["queue"], requests, int(1e9 * sum(waits_s)))
        _add(self._stages["compute_infer"], requests, requests * ns)
        _add(self._sizes[rows], 1, ns)

    def counts(self) -> dict[str, Any]:
        """The counts so far, for `raysys.gateway`."""
        return {
            "last_inference": self._last_ms,
            "inference_count": self._rows,
            "execution_count": self._batches,
            "stages": {name: tuple(pair) for name, pair in self._stages.items()},
            "sizes": {size: tuple(pair) for size, pair in self._sizes.items()},
        }


def _add(pair: list[int], count: int, ns: int) -> None:
    pair[0] += count
    pair[1] += ns
