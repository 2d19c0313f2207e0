from typing import Any

import pytest

from raysys.cluster import Resources, can_grow, limits, resources
from raysys.cluster._resources import max_resources


def _config(max_workers: int = 10, **workers: dict[str, Any]) -> dict[str, Any]:
    head = {"head": {"resources": {"CPU": 2}}}
    return {
        "head_node_type": "head",
        "max_workers": max_workers,
        "available_node_types": head | workers,
    }


def test_the_limit_is_the_sum_over_all_worker_types() -> None:
    cpu = {"resources": {"CPU": 4}, "max_workers": 3}
    gpu = {"resources": {"CPU": 8, "GPU": 2}, "max_workers": 2}
    assert max_resources(_config(cpu=cpu, gpu=gpu)) == Resources(2 + 3 * 4 + 2 * 8, 4)


def test_max_workers_bounds_the_workers_of_all_types_together() -> None:
    cpu = {"resources": {"CPU": 4}}
    gpu = {"resources": {"CPU": 8, "GPU": 2}, "max_workers": 2}
    assert max_resources(_config(3, cpu=cpu, gpu=gpu)) == Resources(2 + 2 * 8 + 4, 4)


def test_a_cluster_without_workers_does_not_grow() -> None:
    assert max_resources(_config()) is None
    assert max_resources(_config(0, cpu={"resources": {"CPU": 4}})) is None


@pytest.mark.usefixtures("ray_cluster")
def test_limits_without_an_autoscaler_are_the_current_resources() -> None:
    assert not can_grow()
    assert limits() == resources()
