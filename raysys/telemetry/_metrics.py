"""Kinds of metrics, in the Ray dashboard and in Prometheus beside Ray's own.

Prometheus shows them as `ray_raysys_...`: Ray puts its name before every metric, and the labels
`WorkerId`, `NodeAddress` and `SessionName` beside ours. A counter's series lives as long as its
node, so label values must be few: names of jobs, steps and applications, never ids of runs or
requests.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Bucket bounds, s: for requests and queries; for steps, epochs and other long work.
SHORT_S = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
LONG_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

_GAUGE_S = 1.0  # Ray reports no more often
_NAME = re.compile(r"raysys(_[a-z0-9]+)+")
_registry: dict[str, Metric] = {}


@dataclass(eq=False, repr=False)
class Metric:
    """A metric of this process; a no-op where Ray is not loaded and connected.

    Attributes:
        name: `raysys_<package>_<quantity>`, with the unit at its end; declared once in a process.
        help: Description, as Prometheus shows it.
        labels: Names of the labels that each value has.
        unit: Unit of the values.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    _exported: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RaysysError(
                f"malformed metric name {self.name!r}: use raysys_<package>_<quantity>, of a-z, "
                "0-9, _"
            )
        if self.name in _registry:
            raise RaysysError(f"metric {self.name!r} is declared twice: give one another name")
        _registry[self.name] = self

    @property
    def kind(self) -> str:
        """`counter`, `gauge` or `histogram`."""
        return type(self).__name__.lower()

    def _ray(self) -> Any:
        """Ray's metric, created at the first use in a connected process."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if self._exported is None:
            from ray.util import metrics

            create = getattr(metrics, type(self).__name__)
            self._exported = create(self.name, self.help, tag_keys=self.labels, **self._options())
        return self._exported

    def _options(self) -> dict[str, Any]:
        return {}

    def __reduce__(self) -> Any:
        return _declared, (self.name,)


class Counter(Metric):
    """A total that only grows; its name ends in `_total`."""

    def __post_init__(self) -> None:
        if not self.name.endswith("_total"):
            raise RaysysError(f"malformed counter name {self.name!r}: end it in _total")
        super().__post_init__()

    def inc(self, value: float = 1.0, labels: Mapping[str, str] | None = None) -> None:
        """Add to it; 0 adds nothing."""
        if value and (metric := self._ray()):
            metric.inc(float(value), labels)


@dataclass(eq=False, repr=False)
class Gauge(Metric):
    """A current value; the last one of each process counts.

    Ray 2.60 forgets a value that was not set again within two of its report intervals, so a thread
    sets all of them again, until the process ends or they are dropped.
    """

    _values: dict[tuple[str, ...], tuple[float, Mapping[str, str] | None]] = field(
        default_factory=dict, init=False
    )

    def set(self, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Set its value."""
        if metric := self._ray():
            metric.set(float(value), labels)
            self._values[self._key(labels)] = (float(value), labels)
            _refresh_gauges()

    def drop(self, labels: Mapping[str, str] | None = None) -> None:
        """Stop reporting a value: it leaves Prometheus soon after."""
        self._values.pop(self._key(labels), None)

    def refresh(self) -> None:
        """Set all values again."""
        if metric := self._ray():
            for value, labels in [*self._values.values()]:
                metric.set(value, labels)
        else:
            self._values.clear()  # of a cluster that this process has left

    def _key(self, labels: Mapping[str, str] | None) -> tuple[str, ...]:
        return tuple((labels or {}).get(key, "") for key in self.labels)


@dataclass(eq=False, repr=False)
class Histogram(Metric):
    """A distribution of values in buckets, whose upper ends are `boundaries`, above 0.

    Ray 2.60 sends counts of buckets only: `_sum` in Prometheus takes each value as the middle of
    its bucket, so take quantiles, not means.
    """

    boundaries: tuple[float, ...] = SHORT_S

    def observe(self, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Count a value."""
        if metric := self._ray():
            metric.observe(float(value), labels)

    def _options(self) -> dict[str, Any]:
        return {"boundaries": list(self.boundaries)}


def _declared(name: str) -> Metric:
    """The metric of a name in the process that unpickles it."""
    return _registry[name]


@functools.cache
def _refresh_gauges() -> None:
    def refresh() -> None:
        while True:
            time.sleep(_GAUGE_S)
            for metric in [*_registry.values()]:
                if isinstance(metric, Gauge):
                    metric.refresh()

    threading.Thread(target=refresh, name="raysys gauges", daemon=True).start()
