"""Replicas that follow the load: what decides, and that no request is lost on the way."""

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle, serve

from raysys.errors import RaysysError, ResourceError
from raysys.serve import Array, Autoscaling, Batching, Graph, undeploy
from raysys.serve._autoscaling import (
    LOAD,
    LoadEstimator,
    LoadPolicy,
    deployment_options,
    initial_replicas,
    required_replicas,
)
from tests.serve.conftest import Deployer
from tests.serve.serving import eventually, load

# --- what decides ---


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [([0.0], 0.0), ([0.35], 0.5), ([0.7, 0.7], 2.0), ([1.4], 2.0), ([1.4, 0.0, 0.0], 2.0)],
)
def test_replicas_are_as_many_as_share_the_load(loads: list[float], wanted: float) -> None:
    assert required_replicas(loads, target_utilization=0.7) == pytest.approx(wanted)


def test_the_policy_keeps_what_there_is_until_replicas_have_reported() -> None:
    policy = LoadPolicy(target_utilization=0.5)
    silent = SimpleNamespace(aggregated_metrics={}, target_num_replicas=3)
    assert policy(silent) == (3, {})
    heard = SimpleNamespace(aggregated_metrics={LOAD: {"a": 1.0, "b": 0.5}}, target_num_replicas=2)
    assert policy(heard) == (3.0, {})


def test_the_policy_runs_where_raysys_is_not() -> None:
    settings = deployment_options(Autoscaling(1, 4), 0)["autoscaling_config"]
    assert b"raysys.errors" not in settings.policy.get_serialized_policy_def()
    policy = cloudpickle.loads(settings.policy.get_serialized_policy_def())(target_utilization=0.5)
    context = SimpleNamespace(aggregated_metrics={LOAD: {"a": 1.0}}, target_num_replicas=1)
    assert policy(context) == (2.0, {})


def test_a_new_version_begins_with_the_replicas_of_the_old_one() -> None:
    assert [initial_replicas(Autoscaling(2, 5), running) for running in (0, 1, 3, 9)] == [
        2,
        2,
        3,
        5,
    ]
    assert initial_replicas(4, 1) == 4


@pytest.mark.parametrize("wrong", [(0, 2), (3, 2)])
def test_bounds_that_are_none_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(RaysysError, match="min_replicas must be at least 1"):
        Autoscaling(*wrong)


# --- what a replica says ---


def _after(meter: LoadEstimator, seconds: float, queued: int = 0) -> float:
    meter._since = time.monotonic() - seconds
    return meter.load(queued)


def test_a_batch_that_costs_the_same_for_any_rows_leaves_room_for_more() -> None:
    meter = LoadEstimator(max_batch_size=50)
    for rows in (1, 9, 1, 9):
        meter.batch(rows, 0.1)
    assert meter.row_s() == pytest.approx(0.1 / 50)
    assert _after(meter, 1.0) == pytest.approx(20 * 0.1 / 50, rel=0.05)


def test_rows_that_each_cost_the_same_leave_no_room() -> None:
    meter = LoadEstimator(max_batch_size=50)
    for rows in (2, 8, 4, 6):
        meter.batch(rows, 0.05 * rows)
    assert _after(meter, 1.0) == pytest.approx(1.0, rel=0.05)
    assert _after(meter, 1.0) == pytest.approx(0.0)


def test_batches_of_one_size_count_as_they_are() -> None:
    meter = LoadEstimator(max_batch_size=50)
    for _ in range(4):
        meter.batch(1, 0.1)
    assert _after(meter, 1.0) == pytest.approx(0.4, rel=0.05)


def test_a_queue_beyond_the_next_batch_is_load_too() -> None:
    meter = LoadEstimator(max_batch_size=10)
    meter.batch(10, 0.5)
    assert _after(meter, 1.0, queued=10) == pytest.approx(0.5, rel=0.05)
    assert _after(meter, 1.0, queued=30) == pytest.approx(1.0, rel=0.05)


# --- both together ---


def _slow(x: np.ndarray) -> dict[str, Any]:
    time.sleep(0.05)
    return {"x": x, "pid": np.full(len(x), os.getpid())}


def _slow_graph() -> Graph:
    return Graph(inputs={"x": Array("int64")}, nodes={"slow": _slow}, output="slow")


def _running(name: str, version: int) -> int:
    found = serve.status().applications[f"{name}-v{version}"].deployments["entry"]
    return found.replica_states.get("RUNNING", 0)


def test_replicas_come_and_go_with_the_load_and_no_request_fails(deployer: Deployer) -> None:
    scale = Autoscaling(1, 3, upscale_delay_s=0.5, downscale_delay_s=2.0)
    endpoint = deployer(
        "scaled", _slow_graph(), replicas=scale, batching=Batching(max_batch_size=2)
    )
    assert _running("scaled", endpoint.version) == 1
    with load(endpoint.url, lambda number: {"x": number}, clients=12) as running:
        eventually(lambda: _running("scaled", endpoint.version) > 1)
        eventually(lambda: len({r.json["pid"] for _, r in running.replies[-60:]}) > 1)
    assert [one["x"] for one in running.answers()] == [number for number, _ in running.replies]
    with load(endpoint.url, lambda number: {"x": number}, clients=1, pause_s=0.3) as quiet:
        eventually(lambda: _running("scaled", endpoint.version) == 1)
    assert quiet.answers()
    undeploy("scaled")


def test_the_most_must_fit_a_cluster_that_cannot_grow(deployer: Deployer) -> None:
    with pytest.raises(ResourceError, match=r"application 'vast' needs 32 CPUs"):
        deployer("vast", _slow_graph(), replicas=Autoscaling(1, 32), cpus_per_replica=1)
    with pytest.raises(RaysysError, match=r"may have 33 replicas: .* at most 32"):
        deployer("vast", _slow_graph(), replicas=Autoscaling(1, 33))
