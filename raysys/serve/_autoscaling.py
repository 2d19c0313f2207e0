"""Replica autoscaling: the user's bounds, and the policy that follows the load."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Sequence

serve_config = lazy_import("ray.serve.config")

LOAD = "raysys_load"
_REPORT_S = 2.0
_LOOK_BACK_S = 8.0


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
    """The options of a Serve deployment.

    Args:
        replicas: Number of replicas.
        running: Running replicas of the old version; the new version starts with as many.
    """
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    with warnings.catch_warnings():
        # Its successor is an environment variable of every replica.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = serve_config.AutoscalingConfig(
            min_replicas=replicas.min_replicas,
            max_replicas=replicas.max_replicas,
            initial_replicas=initial_replicas(replicas, running),
            metrics_interval_s=_REPORT_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
            policy=serve_config.AutoscalingPolicy(
                policy_function=LoadPolicy,
                policy_kwargs={"target_utilization": replicas.target_utilization},
            ),
        )
    return {"num_replicas": "auto", "autoscaling_config": config}
