"""Replica autoscaling: the user's bounds, the load of a replica, and the policy."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysys.arguments import checked
from raysys.errors import RaysysError
from raysys.imports import lazy_import

serve_config = lazy_import("ray.serve.config")

LOAD = "raysys_load"
_REPORT_S = 2.0
_LOOK_BACK_S = 8.0
_FORGET = 0.98  # weight of earlier batches after each batch
_QUEUE_S = 1.0  # queued work of this many seconds adds a load of 1


@checked
@dataclass(frozen=True)
class Autoscaling:
    """A number of replicas that follows the load.

    A replica's load is the share of its time that full batches would need for the rows that it
    answers, plus the seconds of work in its queue. Replicas are added until the load of each is
    `target_utilization`, and with them nodes, on a cluster that autoscales. A replica that is
    removed answers its pending requests first.

    Attributes:
        min_replicas: Minimum number of replicas, at least 1.
        max_replicas: Maximum number of replicas.
        target_utilization: Target load of a replica, between 0 and 1, exclusive.
        upscale_delay_s: Seconds of high load before replicas are added.
        downscale_delay_s: Seconds of low load before replicas are removed.
    """

    min_replicas: int
    max_replicas: int
    target_utilization: float = 0.7
    upscale_delay_s: float = 3.0
    downscale_delay_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise RaysysError(
                f"Autoscaling({self.min_replicas}, {self.max_replicas}): min_replicas must be at "
                "least 1, and max_replicas at least min_replicas"
            )
        if not 0 < self.target_utilization < 1:
            raise RaysysError(
                f"Autoscaling(target_utilization={self.target_utilization:g}): give a value "
                "between 0 and 1, exclusive"
            )


class LoadEstimator:
    """Estimates a replica's load: the work done, as if in full batches, per second.

    A batch's time is modelled as a fixed part and a part per row, by least squares over the latest
    batches. So a graph that spends half of its time on single rows has a load below 0.5 if it could
    process many rows in the same time.
    """

    def __init__(self, max_batch_size: int, in_flight: int = 1) -> None:
        self._max_batch_size, self._in_flight = max_batch_size, in_flight
        self._lock = threading.Lock()
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0
        self._done, self._since = 0, time.monotonic()

    def batch(self, rows: int, seconds: float) -> None:
        """Record a batch."""
        with self._lock:
            self._done += rows
            self._weight = _FORGET * self._weight + 1
            self._rows = _FORGET * self._rows + rows
            self._seconds = _FORGET * self._seconds + seconds
            self._squares = _FORGET * self._squares + rows * rows
            self._products = _FORGET * self._products + rows * seconds

    def row_s(self) -> float:
        """Seconds per row of a full batch; 0 before the first batch."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        if variance > 1e-3 * rows * rows:
            covariance = self._products / self._weight - rows * seconds
            slope = min(max(0.0, covariance / variance), seconds / rows)
        else:  # batches of equal size cannot separate the two parts: assume the larger cost
            slope = seconds / rows
        return slope + (seconds - slope * rows) / self._max_batch_size

    def load(self, queued: int = 0) -> float:
        """The load since the last call, with the queued rows: 1 is full, more means a queue."""
        with self._lock:
            now = time.monotonic()
            row_s, done, past_s = self.row_s(), self._done, now - self._since
            self._done, self._since = 0, now
        if math.isclose(past_s, 0.0):
            return 0.0
        excess = max(0, queued - self._max_batch_size)
        return (done * row_s / past_s + excess * row_s / _QUEUE_S) / self._in_flight


class LoadPolicy:
    """Autoscaling policy of Ray Serve's controller; pickled to it, so it depends on little."""

    def __init__(self, target_utilization: float) -> None:
        self._target_utilization = target_utilization

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The required number of replicas; Serve applies delays and bounds."""
        loads = (context.aggregated_metrics or {}).get(LOAD, {})
        if not loads:
            return context.target_num_replicas, {}
        return required_replicas(list(loads.values()), self._target_utilization), {}


def required_replicas(loads: Sequence[float], target_utilization: float) -> float:
    """Number of replicas that brings the load of each to the target."""
    return sum(loads) / target_utilization


def replica_bounds(replicas: int | Autoscaling) -> tuple[int, int]:
    """Minimum and maximum number of replicas."""
    if isinstance(replicas, int):
        return replicas, replicas
    return replicas.min_replicas, replicas.max_replicas


def initial_replicas(replicas: int | Autoscaling, running: int) -> int:
    """Number of replicas that a new version starts with, given those of the old version."""
    minimum, maximum = replica_bounds(replicas)
    return min(maximum, max(minimum, running))


def deployment_options(replicas: int | Autoscaling, running: int) -> dict[str, Any]:
    """The options of a Serve deployment that starts with the old version's `running` replicas."""
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    with warnings.catch_warnings():
        # Its successor is an environment variable of every replica.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = serve_config.AutoscalingConfig(
            min_replicas=replicas.min_replicas, max_replicas=replicas.max_replicas,
            initial_replicas=initial_replicas(replicas, running),
            metrics_interval_s=_REPORT_S, look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=replicas.upscale_delay_s, downscale_delay_s=replicas.downscale_delay_s,
            policy=serve_config.AutoscalingPolicy(
                policy_function=LoadPolicy,
                policy_kwargs={"target_utilization": replicas.target_utilization},
            ),
        )  # fmt: skip
    return {"num_replicas": "auto", "autoscaling_config": config}
