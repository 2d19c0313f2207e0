"""TrialSession configurations of a training, and keeping what came out."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raysys.console import say
from raysys.errors import RaysysError, TrainError
from raysys.tune.throughput._decisions import Tried, another_round, faster, speed_ratio, with_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raysys.train import PreparedTrial, TrainSettings, TrialSession

SEEDS = 3
ROUND_S = 0.3
_LEAST_STEPS, _MOST_STEPS = 4, 200


@dataclass(frozen=True)
class Way:
    """A configuration that can take steps: its place among those tried, and whether it won."""

    place: int
    opened: PreparedTrial
    won: bool = True


class Bench:
    """Measures configurations in a session, within a time.

    Attributes:
        session: Where they are measured.
        defaults: Ready to take steps.
        tried: So far, the defaults first.
        notes: What was left out.
        samples: Trained on for each loss.
    """

    def __init__(
        self,
        name: str,
        session: TrialSession,
        *,
        ends: float,
        metric: str | None,
        sign: float,
        price_per_hour: float | None,
        plan: Callable[[], TrainSettings],
    ) -> None:
        self._name, self.session = name, session
        self._ends, self._metric, self._sign = ends, metric, sign
        self._price, self._plan = price_per_hour, plan
        self.tried: list[Tried] = []
        self.notes: list[str] = []
        self.samples = 0
        self._base_speeds: list[float] = []

    def start(self, settings: TrainSettings) -> None:
        """Measure the defaults' speed, under another strategy if they need one."""
        # Compiling may take minutes, and without the defaults there is nothing.
        limit = max(60.0, self.left()) + 240.0 * settings.compile
        try:
            opened = self.session.prepare(settings, timeout_s=limit)
        except TrainError as error:
            planned = self._plan()
            if planned.strategy == settings.strategy:
                raise
            self.notes.append(f"{settings.strategy} fails ({error}): began with {planned.strategy}")
            settings = planned
            opened = self.session.prepare(settings, timeout_s=limit)
        self.defaults = opened
        rounds = [self._round(opened) for _ in range(SEEDS)]
        self._base_speeds = [speed for speed, _ in rounds]
        speed = statistics.median(self._base_speeds)
        cpu_s = statistics.median(cpu for _, cpu in rounds)
        self.tried.append(self._figures(opened, speed, cpu_s))
        self.say(f"defaults: {speed:,.0f} samples/s")

    def measure(self, move: Mapping[str, Any], best: Way) -> Way | None:
        """Take steps in turns with the best so far.

        Returns:
            The changed configuration; None if it fails, or was measured before.
        """
        from raysys.train import TrainSettings

        values = self.tried[best.place].settings.model_dump() | dict(move)
        if values["strategy"] != "ddp":
            values["gradient_compression"] = "none"
        try:
            settings = TrainSettings.model_validate(values)
            if any(one.settings == settings for one in self.tried):
                return None
            opened = self.session.prepare(settings, timeout_s=max(10.0, self.left()))
            pairs, cpu_s = self._side_by_side(opened, best.opened)
        except (TrainError, ValidationError) as error:
            self._fail(values, error)
            return None
        speed = speed_ratio(pairs) * self.speed(best.place)
        self.tried.append(self._figures(opened, speed, cpu_s))
        self.say(f"{self.tried[-1].label}: {speed:,.0f} samples/s")
        return Way(len(self.tried) - 1, opened, faster(pairs))

    def again(self, place: int) -> Way | None:
        """Make a configuration that was measured ready to take steps; None if it now fails."""
        try:
            return Way(place, self.session.prepare(self.tried[place].settings))
        except TrainError as error:
            self._failed(place, error)
            return None

    def speed(self, place: int) -> float:
        """Samples per second; 0 of what failed."""
        return self.tried[place].samples_per_s or 0.0

    def confirm(self, place: int) -> None:
        """Measure once more, straight beside the defaults."""
        try:
            opened = self.session.prepare(self.tried[place].settings)
            pairs, _ = self._side_by_side(opened, self.defaults)
            self.session.close(opened)
        except TrainError as error:
            self._failed(place, error)
            return
        self._base_speeds += [theirs for _, theirs in pairs]
        base = statistics.median(self._base_speeds)
        # All were measured against the defaults, whose speed is known better now.
        drift = base / self.speed(0)
        self.tried = [
            self._at_speed(one, self.speed(at) * drift) for at, one in enumerate(self.tried)
        ]
        self.tried[place] = self._at_speed(self.tried[place], speed_ratio(pairs) * base)

    def _side_by_side(
        self, challenger: PreparedTrial, best: PreparedTrial
    ) -> tuple[list[tuple[float, float]], float]:
        pairs: list[tuple[float, float]] = []
        cpu = []
        while another_round(pairs):
            mine, cpu_s = self._round(challenger)
            theirs, _ = self._round(best)
            pairs.append((mine, theirs))
            cpu.append(cpu_s)
        return pairs, statistics.median(cpu)

    def _round(self, opened: PreparedTrial) -> tuple[float, float]:
        """Samples per second, and CPU-seconds of a million samples."""
        count = min(_MOST_STEPS, max(_LEAST_STEPS, math.ceil(ROUND_S / opened.step_s)))
        limit = 30.0 + 10 * count * opened.step_s
        measured = self.session.run_steps(opened, count, timeout_s=limit)
        batch = opened.settings.batch_size
        return batch / measured.step_s, measured.cpu_s / batch * 1e6

    def add_loss(self, at: int) -> bool:
        """Train with the next seed up to the loss.

        Returns:
            Whether that went well.
        """
        tried = self.tried[at]
        seed = self.defaults.settings.seed + len(tried.losses)
        settings = tried.settings.model_copy(update={"seed": seed})
        expected = self.samples / (tried.samples_per_s or 1.0)
        limit = 30.0 + max(5 * expected, 0.0 if at == 0 else min(60.0, self.left()))
        try:
            measured = self.session.train(
                settings, self.samples, evaluate=self._metric is not None, timeout_s=limit
            )
        except TrainError as error:
            if at == 0:
                raise
            self._failed(at, error)
            return False
        key = self._metric or "train_loss"
        if key not in measured:
            given = sorted(set(measured) - {"seconds", "samples", "memory_bytes"})
            raise RaysysError(f"the task measures {', '.join(given)}, not {key!r}: name one")
        losses = [*tried.losses, self._sign * measured[key]]
        self.tried[at] = with_loss(tried, losses, self.tried[0].losses or losses)
        if at == 0:
            self.tried[0] = with_loss(tried, losses, losses)
        self.say(f"{tried.label}: {key} {measured[key]:.5g} after {self.samples:,} samples")
        return True

    def _figures(self, opened: PreparedTrial, speed: float, cpu_s: float) -> Tried:
        values = opened.settings.model_dump()
        before = self.defaults.settings.model_dump()
        tried = Tried(
            opened.settings,
            {name: value for name, value in values.items() if value != before[name]},
            cpu_s=cpu_s,
            memory_bytes=opened.memory_bytes,
            start_s=opened.start_s,
        )
        return self._at_speed(tried, speed)

    def _at_speed(self, tried: Tried, speed: float) -> Tried:
        if tried.failed:
            return tried
        settings = tried.settings
        threads = 1 if self.session.machine.gpus else settings.threads_per_worker or 1
        held = settings.num_workers * threads / speed * 1e6
        cost = held if self._price is None else held * self._price / 3600
        return replace(tried, samples_per_s=speed, cost=cost)

    def _failed(self, place: int, error: TrainError) -> None:
        """Record that what worked before does so no longer."""
        tried = self.tried[place]
        self.tried[place] = replace(tried, failed=str(error), samples_per_s=None, loss=None)
        self.say(f"{tried.label}: {error}")

    def _fail(self, values: Mapping[str, Any], error: Exception) -> None:
        """RunState what does not work, under settings that may not even be valid."""
        from raysys.train import TrainSettings

        before = self.defaults.settings.model_dump()
        changed = {name: value for name, value in values.items() if value != before[name]}
        reason = str(error)
        if isinstance(error, ValidationError):
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        settings = TrainSettings.model_construct(**values)
        self.tried.append(Tried(settings, changed, failed=reason))
        self.say(f"{self.tried[-1].label}: {reason}")

    def left(self) -> float:
        return self._ends - time.monotonic()

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)

    def say(self, text: str) -> None:
        say(f"[{self._name}] {text}")
