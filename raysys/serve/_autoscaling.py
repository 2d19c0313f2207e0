"""How many replicas an application has: what its user allows, and what its load asks for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOAD = "raysys_load"
_REPORT_S = 2.0
_LOOK_BACK_S = 8.0


@dataclass(frozen=True)
class Scale:
    """Replicas that come and go with the load.

    A replica's load is the share of its time that full batches would need for the rows that it
    answers, and the seconds that the rows of its queue will take. Replicas are added until each
    has a load of `busy`, and on a cluster that can grow, nodes for them. One that is not needed
    any more answers what it has before it goes.

    Attributes:
        least: Replicas at least, one or more.
        most: Replicas at most.
        busy: Load of a replica that is wanted, above 0 and below 1.
        up_after_s: How long the load asks for more before they come.
        down_after_s: How long it asks for fewer before they go.
    """

    least: int
    most: int
    busy: float = 0.7
    up_after_s: float = 3.0
    down_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise RaysysError(
                f"Scale({self.least}, {self.most}): give the least replicas, 1 or more, then the "
                "most, no fewer"
            )
        if not 0 < self.busy < 1:
            raise RaysysError(f"Scale(busy={self.busy:g}): give a load above 0 and below 1")


class LoadPolicy:
    """What Ray Serve's controller asks how many replicas there should be.

    It travels to the controller by value, and uses nothing of raysys there.
    """

    def __init__(self, busy: float) -> None:
        self._busy = busy

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The replicas that the load asks for; Serve adds delays and bounds."""
        loads = (context.aggregated_metrics or {}).get(LOAD, {})
        if not loads:
            return context.target_num_replicas, {}
        return replicas_wanted(list(loads.values()), self._busy), {}


def replicas_wanted(loads: Sequence[float], busy: float) -> float:
    """Replicas among which the loads of all make a load of `busy` each."""
    return sum(loads) / busy


def bounds(replicas: int | Scale) -> tuple[int, int]:
    """The least and the most."""
    return (replicas, replicas) if isinstance(replicas, int) else (replicas.least, replicas.most)


def options(replicas: int | Scale, running: int) -> dict[str, Any]:
    """The same as Serve's options of a deployment.

    Args:
        replicas: That are wanted.
        running: Of the version that is replaced; the next one begins with as many.
    """
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    with warnings.catch_warnings():
        # Its successor is an environment variable of every replica.
        warnings.simplefilter("ignore", DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=replicas.least,
            max_replicas=replicas.most,
            initial_replicas=begin(replicas, running),
            metrics_interval_s=_REPORT_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=replicas.up_after_s,
            downscale_delay_s=replicas.down_after_s,
            policy=AutoscalingPolicy(
                policy_function=LoadPolicy, policy_kwargs={"busy": replicas.busy}
            ),
        )
    return {"num_replicas": "auto", "autoscaling_config": scaling}


def begin(replicas: int | Scale, running: int) -> int:
    """Replicas that a version starts with, where the one before has `running`."""
    least, most = bounds(replicas)
    return min(most, max(least, running))
