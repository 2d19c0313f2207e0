"""Trying settings in worker processes that stay: speed side by side, loss by short runs."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysys import cluster
from raysys.errors import TrainError
from raysys.train.trials._process_group import START_S, Gang

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from raysys.data import Table
    from raysys.train._settings import TrainSettings
    from raysys.train._task import TrainingTask

_GPU_SHARE = 0.1  # of a GPU for each process, so that those of several groups can stay


@dataclass(frozen=True)
class Machine:
    """What the workers found.

    Attributes:
        examples: That the task's `prepare` counted.
        cpus: That the workers of one try may use together.
        gpus: Of the cluster.
        bf16: The hardware computes in bfloat16.
    """

    examples: int
    cpus: int
    gpus: int
    bf16: bool


@dataclass(frozen=True)
class Opened:
    """Settings that are ready to take steps.

    Attributes:
        key: Names them to the session.
        settings: As given.
        step_s: Of a step, from a few.
        start_s: Until the first step was taken, beside that step; compiling counts.
        memory_bytes: That a worker holds at most.
    """

    key: int
    settings: TrainSettings
    step_s: float
    start_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Round:
    """Some steps of one setting.

    Attributes:
        step_s: The median step.
        cpu_s: CPU-seconds of a step, of all workers together.
    """

    step_s: float
    cpu_s: float


class Measuring:
    """A session that tries settings of a task in worker processes that stay.

    There is one process group for each number of workers, started when it is first needed; only
    one of them works at a time. Settings that fail, or workers that die or hang, end that try
    with a TrainError and nothing else.

    Example:
        with train.Measuring(task, tables, settings) as session:
            one, two = session.open(settings), session.open(other)
            for _ in range(3):  # side by side, so that a slow minute harms both
                print(session.steps(one, 20).step_s, session.steps(two, 20).step_s)
            print(session.train(other, samples=100_000, measure=True)["validation_loss"])
    """

    def __init__(
        self,
        task: TrainingTask,
        tables: Mapping[str, Table],
        settings: TrainSettings,
        *,
        cpus: int | None = None,
        workers: int | None = None,
    ) -> None:
        """Reserve what the largest try needs, and start the first group.

        Args:
            task: What is trained.
            tables: Given to its `prepare` in each process.
            settings: Whose workers are started first.
            cpus: That any try may use, workers times threads; as many as the settings by default.
            workers: The most that any try may have; those of the settings by default.

        Raises:
            ResourceError: The workers do not fit on the cluster.
            TrainError: The task's `prepare` fails.
        """
        workers = workers or settings.workers
        cpus = cpus or workers * (settings.threads or 1)
        self._task, self._tables, self._workers = task, dict(tables), workers
        self._gpu = cluster.limits().gpus >= workers
        each = math.ceil(cpus / workers)
        cluster.require(
            "trying training settings",
            cpus=each * workers,
            gpus=float(workers) if self._gpu else 0.0,
        )
        bundle = {"CPU": float(each), **({"GPU": 1.0} if self._gpu else {})}
        self._group = placement_group([bundle] * workers, strategy="PACK")
        self._gangs: dict[int, Gang] = {}
        self._keys = itertools.count()
        self._opened: dict[int, tuple[Gang, int]] = {}  # and the key that the gang knows
        try:
            ray.get(self._group.ready(), timeout=START_S)
            first = self._gang(settings.workers)
        except BaseException as error:
            self.shutdown()
            if isinstance(error, ray.exceptions.GetTimeoutError):
                raise TrainError(
                    f"{each * workers} CPUs to try settings on did not become free in "
                    f"{START_S:g} s: end what holds them"
                ) from None
            raise
        known = first.facts
        self.machine = Machine(
            examples=known["examples"],
            cpus=cpus,
            gpus=int(cluster.resources().gpus) if self._gpu else 0,
            bf16=known["bf16"],
        )

    def open(self, settings: TrainSettings, *, timeout_s: float = 60.0) -> Opened:
        """Make the settings ready to take steps.

        Raises:
            TrainError: They do not work, need more than their `memory_bytes`, or time is up.
        """
        key = next(self._keys)
        gang = self._gang(settings.workers)
        answers = gang.ask("open", timeout_s, key, settings)
        memory = int(max(answer["memory_bytes"] for answer in answers))
        opened = Opened(
            key=key,
            settings=settings,
            step_s=max(answer["step_s"] for answer in answers),
            start_s=max(answer["start_s"] for answer in answers),
            memory_bytes=memory,
        )
        self._opened[key] = gang, key
        if settings.memory_bytes and memory > settings.memory_bytes:
            self.close(opened)
            raise TrainError(
                f"a worker holds {memory / 2**20:,.0f} MiB, more than "
                f"memory_bytes={settings.memory_bytes}"
            )
        return opened

    def steps(self, opened: Opened, count: int, *, timeout_s: float = 60.0) -> Round:
        """Take steps, with a learning rate of 0.

        Raises:
            TrainError: They fail, or time is up.
        """
        gang, key = self._opened[opened.key]
        if gang.lost:
            # Its workers were lost over other settings since.
            again = self.open(opened.settings, timeout_s=timeout_s)
            self._opened[opened.key] = gang, key = self._opened.pop(again.key)
        answers = gang.ask("steps", timeout_s, key, count)
        # Workers wait for each other in every step: the first one's clock is that of all.
        seconds = statistics.median(answers[0][0])
        return Round(seconds, sum(cpu for _, cpu in answers) / count)

    def close(self, opened: Opened) -> None:
        """Forget settings."""
        gang, key = self._opened.pop(opened.key)
        if not gang.lost:
            gang.ask("close", START_S, key)

    def train(
        self, settings: TrainSettings, samples: int, *, measure: bool, timeout_s: float = 120.0
    ) -> dict[str, float]:
        """Train from the beginning through a whole schedule of so many samples.

        All settings of one seed see the same examples in the same order. The steps are those of
        `fit` with `max_steps` of `samples // batch_size`.

        Args:
            settings: Whose `epochs`, `max_steps` and `evaluate` rest.
            samples: To train on.
            measure: Call the task's `evaluate` at the end.
            timeout_s: Until the workers are given up.

        Returns:
            `train_loss` of the last quarter of the steps, `samples` trained on, `memory_bytes` of
            a worker at most, `seconds` and what `evaluate` measured.

        Raises:
            TrainError: The training fails, or time is up.
        """
        started = time.perf_counter()
        answers = self._gang(settings.workers).ask("train", timeout_s, settings, samples, measure)
        seconds = time.perf_counter() - started
        memory = max(answer["memory_bytes"] for answer in answers)
        return {**answers[0], "memory_bytes": memory, "seconds": seconds}

    def shutdown(self) -> None:
        """End the processes and give back what was reserved."""
        for gang in self._gangs.values():
            gang.end()
        self._gangs.clear()
        remove_placement_group(self._group)

    def __enter__(self) -> Measuring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _gang(self, workers: int) -> Gang:
        gang = self._gangs.get(workers)
        if gang is None or gang.lost:
            if workers > self._workers:
                raise TrainError(
                    f"workers={workers}, and this session has room for {self._workers}: open it "
                    "with more"
                )
            gang = Gang(self._make, workers)
            self._gangs[workers] = gang
        return gang

    def _make(self, rank: int, world: int) -> Any:
        """A worker's actor, on the bundle that has its share of the reserved CPUs."""
        from raysys.train.trials._worker import Worker

        place = PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=rank * self._workers // world
        )
        options = {"num_cpus": 0, "scheduling_strategy": place, "max_restarts": 0}
        if self._gpu:
            options["num_gpus"] = _GPU_SHARE
        actor = ray.remote(Worker).options(**options)
        return actor.remote(self._task, self._tables, rank, world, self._gpu)
