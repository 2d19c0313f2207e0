"""What came out when training itself was tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.tune.throughput._decisions import Tried, front

if TYPE_CHECKING:
    from raysys.train import TrainSettings


@dataclass(frozen=True)
class Throughput:
    """Configurations of training beside each other.

    Attributes:
        name: Of the search.
        tried: All that were measured, the defaults first.
        best: The recommended one; the defaults where nothing is better.
        reason: Why, in a sentence.
        metric: Which loss it is, after `samples` examples.
        samples: Trained on for each loss.
        seconds: That the search took.
        notes: What was left out, and why.
    """

    name: str
    tried: list[Tried]
    best: Tried
    reason: str
    metric: str
    samples: int
    seconds: float
    notes: list[str]

    @property
    def recommended(self) -> TrainSettings:
        """The best one's settings, ready for `train.fit`."""
        return self.best.settings

    @property
    def defaults(self) -> Tried:
        """The settings that were given, as measured."""
        return self.tried[0]

    @property
    def front(self) -> list[Tried]:
        """Those that no other one beats in samples per second, cost and loss; fastest first."""
        return front(self.tried)

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each that was measured."""
        return [_row(one) for one in self.tried]

    def table(self) -> str:
        """All that were measured as text, fastest first: * on the front, > recommended."""
        chosen = {id(one) for one in self.front}
        heads = ["", "samples/s", "cost", "CPU-s", self.metric, "MiB", "start s", "settings"]
        lines = [heads]
        for one in sorted(self.tried, key=lambda each: -(each.samples_per_s or 0.0)):
            mark = (">" if one is self.best else "") + ("*" if id(one) in chosen else "")
            if one.failed:
                lines.append([mark, *["-"] * 6, f"{one.label}: {one.failed}"])
                continue
            lines.append([
                mark, _said(one.samples_per_s, ",.0f"), _said(one.cost, ".4g"),
                _said(one.cpu_s, ".4g"), _said(one.loss, ".5g"),
                _said((one.memory_bytes or 0) / 2**20, ",.0f"), _said(one.start_s, ".1f"),
                one.label,
            ])  # fmt: skip
        widths = [max(len(line[place]) for line in lines) for place in range(len(heads) - 1)]
        return "\n".join(
            "  ".join([*map(str.rjust, line, widths), line[-1]]).rstrip() for line in lines
        )

    def plot(self, x: str = "samples_per_s", y: str = "loss") -> bytes:
        """All that were measured by two of their figures, with the front, as a PNG."""
        from raysys.tracking import plots

        return plots.front(
            f"{self.name}: {y} against {x}", self.rows(), x, y, [_row(one) for one in self.front]
        )

    def __str__(self) -> str:
        return "\n".join([self.table(), *self.notes, self.reason])


def _row(one: Tried) -> dict[str, Any]:
    figures = ("samples_per_s", "cost", "cpu_s", "loss", "memory_bytes", "start_s", "failed")
    return {**one.changed, **{name: getattr(one, name) for name in figures}}


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
