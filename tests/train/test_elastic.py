"""An elastic run has the workers that there is room for, and the losses of an undisturbed one."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import ReschedulingState

from raysys import cluster
from raysys.data import Table
from raysys.ray_internals import elastic
from raysys.storage import Storage
from raysys.train import EpochMetrics, _checkpoint, _fit, fit, train_in_process
from raysys.train._run_state import RunState
from tests.ports import free_ports
from tests.train.driver import settings
from tests.train.tasks import Regression, rows

STEPS, EPOCHS = 36, 12
RESUMED = [0, 8, 12, STEPS]  # first step of each group of workers
WAITS = {0: 9, 1: 5}  # group, and the number of its steps after which it waits to be replaced


class Observed(Regression):
    """Logs the rows of each step, and waits in the groups that the test replaces."""

    def __init__(self, log: Path) -> None:
        self.log, self.steps = log, 0

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        group = [len({line["group"] for line in lines(self.log)})]
        dist.broadcast_object_list(group)
        self.group, self.end = group[0], time.monotonic() + 90
        return super().prepare(tables)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        node = ray.get_runtime_context().get_node_id()
        line = {"group": self.group, "step": self.steps, "node": node, "rows": rows.tolist()}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        while self.steps >= WAITS.get(self.group, STEPS) and time.monotonic() < self.end:
            time.sleep(0.1)
        self.steps += 1
        return super().batch(rows, rng)


def lines(log: Path) -> list[dict[str, Any]]:
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.05)


@contextmanager
def second_node(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node of two CPUs that joins the cluster in a few seconds."""
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=2",
        f"--address={ray.get_runtime_context().gcs_address}", "--disable-usage-stats",
        "--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0",
        f"--dashboard-agent-listen-port={free_ports(1)[0]}",
    ]  # fmt: skip
    with (folder / "node.log").open("wb") as log:
        node = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            yield node
        finally:
            node.terminate()
            node.wait(30)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_grows_into_free_cpus_and_shrinks_with_a_lost_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_fit, "_RESIZE_S", 0.5)
    storage, log = Storage(tmp_path), tmp_path / "log"

    @ray.remote(num_cpus=1)
    class Busy:
        def ready(self) -> None: ...

    others = [Busy.remote() for _ in range(int(ray.available_resources()["CPU"]) - 1)]
    ray.get([other.ready.remote() for other in others])
    head = ray.get_runtime_context().get_node_id()

    def disturb(node: subprocess.Popen[bytes]) -> None:
        for group, workers in ((0, 1), (1, 3)):
            waiting = (group, WAITS[group])
            wait_until(
                lambda waiting=waiting, workers=workers: (
                    sum((line["group"], line["step"]) == waiting for line in lines(log)) == workers
                )
            )
            step = RESUMED[group + 1]
            wait_until(
                lambda step=step: (
                    _checkpoint.step_of(_checkpoint.newest(storage, "training/elastic")) == step
                )
            )
            if group == 0:
                ray.kill(others.pop())  # two CPUs of the new node
                ray.kill(others.pop())
            else:
                node.terminate()

    with second_node(tmp_path) as node:
        others.append(Busy.options(num_cpus=2).remote())  # fits the new node alone
        disturber = threading.Thread(target=disturb, args=[node])
        disturber.start()
        fitted = fit(
            "elastic", Observed(log), {"rows": Table.from_arrow(rows())},
            settings(min_workers=1, num_workers=4), storage,
        )  # fmt: skip
        disturber.join()
    for other in others:
        ray.kill(other)

    survivors = sum(
        (line["group"], line["step"], line["node"]) == (1, 0, head) for line in lines(log)
    )
    assert survivors in (1, 2)
    assert [epoch["workers"] for epoch in fitted.history] == [1, 1, 3, 3] + 8 * [survivors]
    printed = capfd.readouterr().out
    assert "[elastic] trains on 1 of 4 workers" in printed
    assert "[elastic] trains on 3 of 4 workers" in printed
    # Each row once in each epoch, but for the steps since the checkpoints.
    counts = np.zeros(1500, int)
    for line in lines(log):
        first, after = RESUMED[line["group"] : line["group"] + 2]
        if line["step"] < after - first:
            np.add.at(counts, line["rows"], 1)
    assert set(counts) == {EPOCHS}
    alone: list[EpochMetrics] = []
    train_in_process(
        Regression(), {"rows": rows()}, settings(), lambda epoch, _: alone.append(epoch)
    )
    for ours, expected in zip(fitted.history, alone, strict=True):
        assert ours["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("needs", "nodes", "reserved", "count"),
    [
        ({"CPU": 1}, [4], 0, 3),
        ({"CPU": 2}, [3, 3, 1], 0, 2),  # three CPUs are left, in parts
        ({"CPU": 2}, [2, 2], 0, 1),
        ({"CPU": 1}, [0], 1, 0),  # the place in reserve is the headroom
        ({"CPU": 1}, [1], 2, 2),
        ({"CPU": 1, "GPU": 1}, [8], 0, 0),
    ],
)
def test_workers_beyond_the_minimum_leave_a_cpu_free(
    needs: dict[str, float], nodes: list[float], reserved: int, count: int
) -> None:
    free = [{"CPU": cpus} for cpus in nodes]
    assert elastic.additional_workers(needs, free, reserved, headroom_cpus=1.0) == count


def test_a_run_in_a_trial_grows_no_further_than_its_reservation(storage: Storage) -> None:
    chosen = settings(min_workers=1, num_workers=8)
    with cluster.share(cluster.Resources(cpus=3, gpus=0)):
        trainer = _fit._trainer(RunState(storage, "trial"), Regression(), {}, chosen, "a")
    assert trainer.scaling_config.num_workers == (1, 3)


def test_a_group_grows_into_lasting_room_alone_and_restarts_in_its_own_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, places = {"a": {"CPU": 2.0}}, {0: "a", 1: "b", 2: "b"}
    cluster_state = SimpleNamespace(available_resources_per_node=lambda: free)
    monkeypatch.setattr(elastic, "state", cluster_state)
    monkeypatch.setattr(ray.util, "placement_group_table", lambda _: {"bundles_to_node_id": places})
    monkeypatch.setattr(elastic, "time", SimpleNamespace(monotonic=lambda: now))
    config = ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=20.0)
    policy = elastic.RoomPolicy(config, headroom_cpus=1.0)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=places[at])) for at in range(3)]
    handle, now = SimpleNamespace(placement_group=None), 0.0

    def look(count: int, at: float = 40.0) -> int | None:
        nonlocal now
        now = at
        group = SimpleNamespace(
            workers=workers[:count], num_workers=count, placement_group_handle=handle
        )
        decision = policy.make_decision_for_running_worker_group(group, None)
        return getattr(decision, "num_workers", None)

    def start() -> int:
        decision = policy.make_decision_for_non_running_worker_group()
        policy.before_controller_execute_resize_decision(decision)
        return decision.num_workers

    assert start() == 1
    places = {0: "a"}
    for at, cpus in ((0.0, 3.0), (10.0, 1.0), (20.0, 3.0), (30.0, 3.0)):  # a task came and went
        free["a"]["CPU"] = cpus
        assert look(1, at) is None
    assert look(1) == 3
    policy.before_controller_execute_resize_decision(SimpleNamespace(num_workers=3))
    free["a"]["CPU"] = 0.0
    assert start() == 3  # it fails before it is seen, and holds its place
    free["b"], places = {"CPU": 0.0}, {0: "a", 1: "b", 2: "b"}
    assert look(3) is None
    assert start() == 3
    assert look(3) is None
    del free["b"]  # lost
    assert start() == 1
    policy.after_controller_state_update(None, ReschedulingState(None))
    free["a"]["CPU"] = 3.0
    assert start() == 2
