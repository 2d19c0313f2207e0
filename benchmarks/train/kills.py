"""kill -9 of a training worker, of a node and of the driver, each at a random step.

Every run is of a driver's own process on a cluster of a head and two nodes, all on this machine.
It is disturbed once, and its losses are held against those of a run that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch.distributed as dist

from benchmarks._figures import Report, run
from benchmarks.train.tasks import LanguageTask, text
from raysys.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.train import Batch

_STEPS, _CHECKPOINT_STEPS = 200, 20
_STEP_S = 0.03  # at least, so that a run lasts longer than it takes to aim
_LIMIT_S = 300.0
_PAUSE_S = 0.02


@dataclass
class Watched(LanguageTask):
    """Writes down when rank 0 begins which step; a step is known by its examples."""

    folder: Path = Path()

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        (self.folder / f"{os.getpid()}.worker").touch()
        self._file = (self.folder / "steps").open("a", buffering=1)
        return super().prepare(tables)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        if dist.get_rank() == 0:
            self._file.write(f"{time.time():.3f} {'-'.join(map(str, rows))}\n")
        time.sleep(_STEP_S)
        return super().batch(rows, rng)


@dataclass
class Run:
    """A training run and what is seen of it from outside."""

    folder: Path
    strategy: str
    address: str
    driver: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the driver; a second time, it goes on."""
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.driver = subprocess.Popen(
            [
                sys.executable, "-m", "benchmarks.train.kills", "--driver",
                json.dumps([str(self.folder), self.strategy, self.address]),
            ],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "driver.log").open("ab"),
            env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"},
        )  # fmt: skip

    def steps(self) -> list[tuple[float, str]]:
        """When which step was begun."""
        file = self.folder / "steps"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(float(line.split()[0]), line.split()[1]) for line in lines if " " in line]

    def workers(self) -> list[int]:
        """Process ids of the living training workers."""
        found = [int(file.stem) for file in self.folder.glob("*.worker")]
        return [pid for pid in found if psutil.pid_exists(pid)]

    def losses(self) -> np.ndarray | None:
        """Of each epoch; None if the run did not end."""
        done = Storage(self.folder).read_bytes("training/kills/done.json")
        if done is None:
            return None
        return np.array([epoch["train_loss"] for epoch in json.loads(done)["history"]])

    def wait(self) -> bool:
        """Whether the driver ended well in time."""
        try:
            return self.driver.wait(_LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()
            return False


class Nodes:
    """A head, and two nodes that each have room for both workers."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.address: str = self._cluster.address
        self._nodes = [self._add(), self._add()]

    def kill_one_of(self, pids: list[int]) -> None:
        """SIGKILL to the raylet of a node with a worker, and a new node beside those that stay."""
        parents = {psutil.Process(pid).ppid() for pid in pids}
        node = next(one for one in self._nodes if _raylet(one) in parents)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())

    def stop(self) -> None:
        """End all its processes."""
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=200 << 20)


def measure(report: Report, quick: bool) -> None:
    """Disturb 20 runs, in quick 3."""
    rng = random.Random(0)
    kinds = ["worker", "node", "driver"]
    plan = [(kinds[at % 3], ("ddp", "zero3")[at // 3 % 2]) for at in range(3 if quick else 20)]
    nodes = Nodes()
    try:
        calm = {name: _run(nodes, name) for name in sorted({strategy for _, strategy in plan})}
        disturbed = [(kind, name, _run(nodes, name, kind, rng)) for kind, name in plan]
    finally:
        nodes.stop()
    ended, apart, repeated, seconds = 0, [], [], []
    for kind, strategy, (losses, steps, killed) in disturbed:
        wanted, order, _ = calm[strategy]
        if losses is None or wanted is None:
            continue
        ended += 1
        apart.append(float(np.abs(losses / wanted - 1).max()))
        number = {name: at for at, (_, name) in enumerate(order)}
        before = max(number[name] for at, name in steps if at <= killed)
        after = [(at, number[name]) for at, name in steps if at > killed]
        # A group that was not yet gone may have begun another step.
        first = min(step for _, step in after)
        repeated.append(before - first + 1)
        seconds.append(next(at for at, step in after if step > before and at > killed + 1) - killed)
        print(f"{kind}, {strategy}: {repeated[-1]} steps again, {seconds[-1]:.1f} s", flush=True)
    report.add("kill -9 of workers, nodes, drivers in turn", len(disturbed), "runs")
    report.add("  that ended", ended, "runs", above=len(disturbed) - 0.5)
    report.add("  losses, largest relative difference", max(apart), "", below=1e-4)
    # A checkpoint that was being written when the kill came is none.
    report.add(
        f"  steps taken again, a checkpoint every {_CHECKPOINT_STEPS}, at most", max(repeated),
        "steps", below=2 * _CHECKPOINT_STEPS,
    )  # fmt: skip
    for name in kinds:
        of = [s for s, (kind, *_) in zip(seconds, disturbed, strict=False) if kind == name]
        report.add(f"  {name}: from kill to first new step, median", statistics.median(of), "s")


_Seen = tuple[np.ndarray | None, list[tuple[float, str]], float]


def _run(nodes: Nodes, strategy: str, kind: str = "", rng: random.Random | None = None) -> _Seen:
    """Losses, when which step was begun, and when the kill came."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), strategy, nodes.address)
        run.start()
        killed = 0.0
        if rng:
            _wait_for(run, rng.randrange(5, _STEPS - 20))
            time.sleep(rng.random() * _STEP_S)
            killed = time.time()
            if kind == "worker":
                os.kill(rng.choice(run.workers()), signal.SIGKILL)
            elif kind == "node":
                nodes.kill_one_of(run.workers())
            else:
                run.driver.kill()
                run.driver.wait()
                run.start()
        ended = run.wait()
        if not ended:
            print((run.folder / "driver.log").read_text()[-4000:], flush=True)
        return run.losses() if ended else None, run.steps(), killed


def _wait_for(run: Run, step: int) -> None:
    end = time.monotonic() + _LIMIT_S
    while len(run.steps()) < step:
        if run.driver.poll() is not None or time.monotonic() > end:
            raise RuntimeError((run.folder / "driver.log").read_text()[-4000:])
        time.sleep(_PAUSE_S)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _drive(folder: str, strategy: str, address: str) -> None:
    """The driver: the same call, whether the run is new or goes on."""
    from raysys import cluster, train
    from raysys.data import Table

    cluster.connect(address)
    settings = train.TrainSettings.model_validate({
        "strategy": strategy, "batch_size": 16, "epochs": 100, "max_steps": _STEPS,
        "checkpoint_steps": _CHECKPOINT_STEPS, "evaluate": False, "threads_per_worker": 1,
    })  # fmt: skip
    task = Watched(width=64, layers=2, folder=Path(folder))
    table = Table.from_arrow(text(0.03))
    train.fit("kills", task, {"text": table}, settings, Storage(folder))


def main() -> None:
    """Run it alone."""
    if sys.argv[1:2] == ["--driver"]:
        _drive(*json.loads(sys.argv[2]))
        return
    run(__doc__, measure)


if __name__ == "__main__":
    main()
