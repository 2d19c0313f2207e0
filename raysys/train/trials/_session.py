"""Trials of settings in worker processes that stay: speed side by side, loss by short runs."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysys import cluster
from raysys.arguments import checked
from raysys.errors import TrainError
from raysys.train.trials._worker_group import START_S, WorkerGroup

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train._settings import TrainSettings
    from raysys.train._task import TrainingTask

_GPU_SHARE = 0.1  # of a GPU per process, so that the processes of several groups fit


@dataclass(frozen=True)
class Machine:
    """Facts about the workers' hardware and data.

    Attributes:
        examples: Number of training examples.
        cpus: CPUs of all workers of a trial together.
        gpus: GPUs of the cluster.
        bf16: Whether the hardware computes in bfloat16.
    """

    examples: int
    cpus: int
    gpus: int
    bf16: bool


@dataclass(frozen=True)
class PreparedTrial:
    """Settings that are ready to take steps.

    Attributes:
        key: Number within the session.
        settings: The settings.
        step_s: Time of a step, estimated from a few.
        start_s: Time before the first step, such as for compiling.
        memory_bytes: Peak memory of a worker.
    """

    key: int
    settings: TrainSettings
    step_s: float
    start_s: float
    memory_bytes: int


@dataclass(frozen=True)
class TrialRound:
    """Timing of some steps.

    Attributes:
        step_s: Median time of a step.
        cpu_s: CPU-seconds of a step, over all workers.
    """

    step_s: float
    cpu_s: float


class TrialSession:
    """A session that tries settings of a task in worker processes that stay.

    There is one process group for each number of workers, started at its first use; one of them
    works at a time. Settings that fail, or workers that die or hang, end that trial alone with a
    TrainError.

    Example:
        with train.TrialSession(task, tables, settings) as session:
            first, second = session.prepare(settings), session.prepare(candidate)
            for _ in range(3):  # side by side, so that a slow minute harms both
                print(session.run_steps(first, 20).step_s, session.run_steps(second, 20).step_s)
            print(session.train(candidate, samples=100_000, evaluate=True)["validation_loss"])
    """

    @checked
    def __init__(
        self,
        task: TrainingTask,
        tables: Mapping[str, Table],
        settings: TrainSettings,
        *,
        max_cpus: int | None = None,
        max_workers: int | None = None,
    ) -> None:
        """Reserve resources for the largest trial, and start the first group.

        Args:
            task: Task to train.
            tables: Tables for the task's `prepare`, in each process.
            settings: Settings with the number of workers to start.
            max_cpus: CPUs of a trial, workers times threads; by default those of the settings.
            max_workers: Workers of a trial; by default those of the settings.

        Raises:
            ResourceError: The workers do not fit on the cluster.
            TrainError: The task's `prepare` fails.
        """
        self._max_workers = max_workers or settings.num_workers
        max_cpus = max_cpus or self._max_workers * (settings.threads_per_worker or 1)
        self._task, self._tables = task, dict(tables)
        self._gpu = cluster.limits().gpus >= self._max_workers
        cpus_per_worker = math.ceil(max_cpus / self._max_workers)
        reserved = cpus_per_worker * self._max_workers
        gpus_reserved = float(self._max_workers) if self._gpu else 0.0
        cluster.require("trying training settings", cpus=reserved, gpus=gpus_reserved)
        bundle = {"CPU": float(cpus_per_worker), **({"GPU": 1.0} if self._gpu else {})}
        self._placement_group = placement_group([bundle] * self._max_workers, strategy="PACK")
        self._groups: dict[int, WorkerGroup] = {}
        self._keys = itertools.count()
        # The group of a prepared trial, and its key there.
        self._prepared: dict[int, tuple[WorkerGroup, int]] = {}
        try:
            ray.get(self._placement_group.ready(), timeout=START_S)
            facts = self._group(settings.num_workers).facts
        except BaseException as error:
            self.shutdown()
            if isinstance(error, ray.exceptions.GetTimeoutError):
                raise TrainError(
                    f"{reserved} CPUs for trials did not become free within {START_S:g} s: "
                    "stop other work, or give fewer workers"
                ) from None
            raise
        gpus = int(cluster.resources().gpus) if self._gpu else 0
        self.machine = Machine(facts["examples"], max_cpus, gpus, facts["bf16"])

    def prepare(self, settings: TrainSettings, *, timeout_s: float = 60.0) -> PreparedTrial:
        """Make the settings ready to take steps.

        Raises:
            TrainError: They fail, need more than `memory_limit_bytes`, or time out.
        """
        key = next(self._keys)
        group = self._group(settings.num_workers)
        answers = group.ask("prepare", timeout_s, key, settings)
        slowest = {name: max(answer[name] for answer in answers) for name in answers[0]}
        memory = int(slowest["memory_bytes"])
        trial = PreparedTrial(key, settings, slowest["step_s"], slowest["start_s"], memory)
        self._prepared[key] = group, key
        if settings.memory_limit_bytes and memory > settings.memory_limit_bytes:
            self.close(trial)
            raise TrainError(
                f"a worker needs {memory / 2**20:,.0f} MiB, more than "
                f"memory_limit_bytes={settings.memory_limit_bytes}"
            )
        return trial

    def run_steps(self, trial: PreparedTrial, count: int, *, timeout_s: float = 60.0) -> TrialRound:
        """Take steps, with a learning rate of 0.

        Raises:
            TrainError: They fail or time out.
        """
        group, key = self._prepared[trial.key]
        if group.lost:  # in a later trial
            again = self.prepare(trial.settings, timeout_s=timeout_s)
            self._prepared[trial.key] = group, key = self._prepared.pop(again.key)
        answers = group.ask("run_steps", timeout_s, key, count)
        # Workers wait for each other in every step, so rank 0's clock is that of all.
        seconds = statistics.median(answers[0][0])
        return TrialRound(seconds, sum(cpu for _, cpu in answers) / count)

    def close(self, trial: PreparedTrial) -> None:
        """Free the memory of a trial."""
        group, key = self._prepared.pop(trial.key)
        if not group.lost:
            group.ask("close", START_S, key)

    def train(
        self, settings: TrainSettings, samples: int, *, evaluate: bool, timeout_s: float = 120.0
    ) -> dict[str, float]:
        """Train from the beginning through a whole schedule.

        All settings of one seed see the same examples in the same order. The steps are those of
        `fit` with `max_steps` of `samples // batch_size`.

        Args:
            settings: Settings; `epochs`, `max_steps` and `evaluate` are ignored.
            samples: Number of samples to train on.
            evaluate: Whether to call the task's `evaluate` at the end.
            timeout_s: Time limit of the training.

        Returns:
            `train_loss` of the last quarter of the steps, `samples` trained on, peak
            `memory_bytes` of a worker, `seconds`, and the results of `evaluate`.

        Raises:
            TrainError: The training fails or times out.
        """
        started = time.perf_counter()
        group = self._group(settings.num_workers)
        answers = group.ask("train", timeout_s, settings, samples, evaluate)
        seconds = time.perf_counter() - started
        memory = max(answer["memory_bytes"] for answer in answers)
        return {**answers[0], "memory_bytes": memory, "seconds": seconds}

    def shutdown(self) -> None:
        """End the processes and release the reserved resources."""
        for group in self._groups.values():
            group.end()
        self._groups.clear()
        remove_placement_group(self._placement_group)

    def __enter__(self) -> TrialSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        machine = getattr(self, "machine", "starting")
        return f"TrialSession({machine}, {len(self._prepared)} prepared trials)"

    def _group(self, num_workers: int) -> WorkerGroup:
        group = self._groups.get(num_workers)
        if group is None or group.lost:
            if num_workers > self._max_workers:
                raise TrainError(
                    f"num_workers={num_workers}, and the session has room for "
                    f"max_workers={self._max_workers}: give the session more"
                )
            group = self._groups[num_workers] = WorkerGroup(self._start, num_workers)
        return group

    def _start(self, rank: int, world: int) -> Any:
        """A worker's actor, on the bundle that has its share of the reserved CPUs."""
        from raysys.train.trials._worker import TrialWorker

        place = PlacementGroupSchedulingStrategy(
            self._placement_group, placement_group_bundle_index=rank * self._max_workers // world
        )
        options = {"num_cpus": 0, "scheduling_strategy": place, "max_restarts": 0}
        if self._gpu:
            options["num_gpus"] = _GPU_SHARE
        actor = ray.remote(TrialWorker).options(**options)
        return actor.remote(self._task, self._tables, rank, world, self._gpu)
