"""Elastic training with Ray Train among other work: as many workers as there is room for.

Ray Train's own policy counts as free what other actors and tasks hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

from raysys.imports import lazy_import

state = lazy_import("ray._private.state")

_CPU = "CPU"
Amounts = Mapping[str, float]


class ElasticTrainer(TorchTrainer):
    """A `TorchTrainer` that may have fewer workers beside other actors and tasks.

    Args:
        headroom_cpus: CPUs of the cluster that workers beyond the minimum leave free.
    """

    def __init__(self, *args: Any, headroom_cpus: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._headroom_cpus = headroom_cpus

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            controller["scaling_policy"] = RoomPolicy(self.scaling_config, self._headroom_cpus)
        return super()._initialize_and_run_controller(**controller)


class RoomPolicy(ElasticScalingPolicy):
    """As many workers as there is room for, and the minimum at least.

    A running group grows when there was room for all of an interval, since it then starts again
    from its checkpoint. It shrinks only by the loss of a node.
    """

    def __init__(self, scaling_config: Any, headroom_cpus: float) -> None:
        super().__init__(scaling_config)
        self._headroom_cpus = headroom_cpus
        self._group: Any = None  # the worker group's state, once it was seen running
        self._unseen_workers = 0  # of a group that was started, and not seen yet
        self._since, self._room = 0.0, 0

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """A new group takes the place of the last one."""
        self._group, self._unseen_workers = None, resize_decision.num_workers

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """A group that could not start holds nothing; one that failed holds its place."""
        if isinstance(current_state, ReschedulingState):
            self._group, self._unseen_workers = None, 0

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start at once: the minimum waits in the cluster's queue, if it has to."""
        self._maybe_send_resource_request()
        return self._get_resize_decision(max(self._count_room(), self.scaling_config.min_workers))

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Grow into the room that was free at each look of an interval."""
        self._maybe_send_resource_request()
        now = time.monotonic()
        if self._group is None:
            self._since, self._room = now, self.scaling_config.max_workers
        self._group = worker_group_state
        self._room = min(self._room, self._count_room())
        if now - self._since < self.scaling_config.elastic_resize_monitor_interval_s:
            return NoopDecision()
        count, self._since, self._room = self._room, now, self.scaling_config.max_workers
        grows = count > worker_group_state.num_workers
        return self._get_resize_decision(count) if grows else NoopDecision()

    def _count_room(self) -> int:
        free = state.available_resources_per_node()
        own, moved = self._unseen_workers, 0
        if self._group is not None:
            own = sum(worker.metadata.node_id in free for worker in self._group.workers)
            # Places of workers on a lost node, for which Ray has reserved others.
            group = self._group.placement_group_handle.placement_group
            table = ray.util.placement_group_table(group)
            moved = sum(node in free for node in table.get("bundles_to_node_id", {}).values()) - own
        needs = self.scaling_config._resources_per_worker_not_none
        more = additional_workers(needs, free.values(), max(moved, 0), self._headroom_cpus)
        return min(own + more, self.scaling_config.max_workers)


def additional_workers(
    needs: Amounts, nodes: Iterable[Amounts], reserved: int, headroom_cpus: float
) -> int:
    """Number of workers that fit, beside the headroom.

    Args:
        needs: Resources of a worker.
        nodes: Free resources of each node.
        reserved: Workers with a place in reserve.
        headroom_cpus: CPUs to leave free on any node.
    """
    left, count = 0.0, reserved
    for node in nodes:
        fitting = min(int(node.get(key, 0.0) // need) for key, need in needs.items() if need)
        count, left = count + fitting, left + node.get(_CPU, 0.0) - fitting * needs[_CPU]
    while count > 0 and left < headroom_cpus:
        count, left = count - 1, left + needs[_CPU]
    return count
