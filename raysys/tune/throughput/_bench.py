"""Measurements of training configurations within a time limit."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raysys.console import say
from raysys.errors import RaysysError, SettingsError, TrainError
from raysys.train import TrainSettings
from raysys.tune.throughput._decisions import faster, needs_another_round, speed_ratio
from raysys.tune.throughput._result import ThroughputTrial, with_losses

if TYPE_CHECKING:
    from raysys.train import PreparedTrial, TrialSession

SEEDS = 3
ROUND_S = 0.3
_MIN_STEPS, _MAX_STEPS = 4, 200


@dataclass(frozen=True)
class Contender:
    """A configuration that is ready to take steps, and whether it was faster than the incumbent."""

    index: int
    opened: PreparedTrial
    faster: bool = True


@dataclass(kw_only=True)
class ThroughputBench:
    """Measures configurations in a session, within a time limit.

    Attributes:
        deadline: End of the search, by `time.monotonic`.
        metric: Metric of the task's `evaluate`; None for the training loss.
        sign: -1 for a metric that is maximized.
        price_per_hour: Price of a CPU or GPU.
        plan: Settings with a strategy that fits, for defaults that do not.
        trials: Measured configurations, the defaults first.
        notes: Configurations left out, with the reasons.
        loss_samples: Samples trained on for each loss.
    """

    name: str
    session: TrialSession
    deadline: float
    metric: str | None
    sign: float
    price_per_hour: float | None
    plan: Callable[[], TrainSettings]
    trials: list[ThroughputTrial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loss_samples: int = 0

    def start(self, settings: TrainSettings) -> None:
        """Measure the speed of `defaults`: the settings, under another strategy if theirs fails."""
        # Compiling may take minutes, and nothing can be measured without the defaults.
        limit = max(60.0, self.remaining_s()) + 240.0 * settings.compile
        try:
            opened = self.session.prepare(settings, timeout_s=limit)
        except TrainError as error:
            planned = self.plan()
            if planned.strategy == settings.strategy:
                raise
            self.notes.append(f"{settings.strategy} fails ({error}): using {planned.strategy}")
            opened = self.session.prepare(planned, timeout_s=limit)
        self.defaults = opened
        rounds = [self._round(opened) for _ in range(SEEDS)]
        self._default_speeds = [speed for speed, _ in rounds]
        speed = statistics.median(self._default_speeds)
        self.trials.append(self._trial(opened, speed, statistics.median(cpu for _, cpu in rounds)))
        self.say(f"defaults: {speed:,.0f} samples/s")

    def measure(self, move: Mapping[str, Any], incumbent: Contender) -> Contender | None:
        """A changed configuration, which takes steps in turns with the incumbent.

        None if it fails, or was measured before.
        """
        values = self.trials[incumbent.index].settings.model_dump() | dict(move)
        if values["strategy"] != "ddp":
            values["gradient_compression"] = "none"
        try:
            settings = TrainSettings(**values)
            if any(trial.settings == settings for trial in self.trials):
                return None
            opened = self.session.prepare(settings, timeout_s=max(10.0, self.remaining_s()))
            pairs, cpu_s = self._side_by_side(opened, incumbent.opened)
        except (TrainError, SettingsError) as error:
            self._add_failure(values, error)
            return None
        speed = speed_ratio(pairs) * self.speed(incumbent.index)
        self.trials.append(self._trial(opened, speed, cpu_s))
        self.say(f"{self.trials[-1].label}: {speed:,.0f} samples/s")
        return Contender(len(self.trials) - 1, opened, faster(pairs))

    def reopen(self, index: int) -> Contender | None:
        """Make a measured configuration ready to take steps; None if it now fails."""
        try:
            return Contender(index, self.session.prepare(self.trials[index].settings))
        except TrainError as error:
            self._mark_failed(index, error)
            return None

    def speed(self, index: int) -> float:
        """Samples per second of a trial; 0 if it failed."""
        return self.trials[index].samples_per_s or 0.0

    def confirm(self, index: int) -> None:
        """Measure a trial once more, directly beside the defaults."""
        try:
            opened = self.session.prepare(self.trials[index].settings)
            pairs, _ = self._side_by_side(opened, self.defaults)
            self.session.close(opened)
        except TrainError as error:
            self._mark_failed(index, error)
            return
        self._default_speeds += [default_speed for _, default_speed in pairs]
        base = statistics.median(self._default_speeds)
        # All speeds are relative to the defaults', which is now measured better.
        drift = base / self.speed(0)
        self.trials = [
            self._at_speed(trial, self.speed(at) * drift) for at, trial in enumerate(self.trials)
        ]
        self.trials[index] = self._at_speed(self.trials[index], speed_ratio(pairs) * base)

    def _side_by_side(
        self, challenger: PreparedTrial, incumbent: PreparedTrial
    ) -> tuple[list[tuple[float, float]], float]:
        """Speeds of both, round by round, and the challenger's CPU-seconds a million samples."""
        pairs: list[tuple[float, float]] = []
        cpu = []
        while needs_another_round(pairs):
            speed, cpu_s = self._round(challenger)
            pairs.append((speed, self._round(incumbent)[0]))
            cpu.append(cpu_s)
        return pairs, statistics.median(cpu)

    def _round(self, opened: PreparedTrial) -> tuple[float, float]:
        """Samples per second, and CPU-seconds of a million samples."""
        count = min(_MAX_STEPS, max(_MIN_STEPS, math.ceil(ROUND_S / opened.step_s)))
        limit = 30.0 + 10 * count * opened.step_s
        measured = self.session.run_steps(opened, count, timeout_s=limit)
        batch = opened.settings.batch_size
        return batch / measured.step_s, measured.cpu_s / batch * 1e6

    def add_loss(self, index: int) -> bool:
        """Train a trial with its next seed and record the loss; False if the training failed.

        Raises:
            TrainError: The training of the defaults failed.
            RaysysError: The task does not measure the metric.
        """
        trial = self.trials[index]
        seed = self.defaults.settings.seed + len(trial.losses)
        settings = trial.settings.model_copy(update={"seed": seed})
        expected = self.loss_samples / (trial.samples_per_s or 1.0)
        limit = 30.0 + max(5 * expected, min(60.0, self.remaining_s()) if index else 0.0)
        try:
            metrics = self.session.train(
                settings, self.loss_samples, evaluate=self.metric is not None, timeout_s=limit
            )
        except TrainError as error:
            if index == 0:
                raise
            self._mark_failed(index, error)
            return False
        key = self.metric or "train_loss"
        if key not in metrics:
            names = sorted(set(metrics) - {"seconds", "samples", "memory_bytes"})
            raise RaysysError(f"the task measures {', '.join(names)}, not {key!r}: name one")
        losses = [*trial.losses, self.sign * metrics[key]]
        base = self.trials[0].losses if index else losses
        self.trials[index] = with_losses(trial, losses, base or losses)
        self.say(f"{trial.label}: {key} {metrics[key]:.5g} after {self.loss_samples:,} samples")
        return True

    def _trial(self, opened: PreparedTrial, speed: float, cpu_s: float) -> ThroughputTrial:
        changes = self._changes(opened.settings.model_dump())
        trial = ThroughputTrial(
            opened.settings, changes, cpu_s=cpu_s, memory_bytes=opened.memory_bytes,
            start_s=opened.start_s,
        )  # fmt: skip
        return self._at_speed(trial, speed)

    def _changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        defaults = self.defaults.settings.model_dump()
        return {name: value for name, value in values.items() if value != defaults[name]}

    def _at_speed(self, trial: ThroughputTrial, speed: float) -> ThroughputTrial:
        if trial.error:
            return trial
        settings = trial.settings
        threads = 1 if self.session.machine.gpus else settings.threads_per_worker or 1
        price_per_s = 1.0 if self.price_per_hour is None else self.price_per_hour / 3600
        cost = settings.num_workers * threads / speed * 1e6 * price_per_s
        return replace(trial, samples_per_s=speed, cost=cost)

    def _mark_failed(self, index: int, error: TrainError) -> None:
        """Record that a configuration that worked before now fails."""
        trial = self.trials[index]
        self.trials[index] = replace(trial, error=str(error), samples_per_s=None, loss=None)
        self.say(f"{trial.label}: {error}")

    def _add_failure(self, values: Mapping[str, Any], error: Exception) -> None:
        """Record a configuration that fails, perhaps as its settings are invalid."""
        reason = str(error).removeprefix("TrainSettings: ")
        settings = TrainSettings.model_construct(**values)
        self.trials.append(ThroughputTrial(settings, self._changes(values), error=reason))
        self.say(f"{self.trials[-1].label}: {reason}")

    def remaining_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)

    def say(self, text: str) -> None:
        """Write a progress line."""
        say(f"[{self.name}] {text}")
