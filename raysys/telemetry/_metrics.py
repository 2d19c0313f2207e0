"""Metrics in the Ray dashboard and in Prometheus, beside Ray's own.

Prometheus shows them as `ray_raysys_...`: Ray puts its name before every metric, and the labels
`WorkerId`, `NodeAddress` and `SessionName` beside ours. A counter's
series lives as long as its node, so label values must be few: names of jobs, steps and
applications, never ids of runs or requests.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Seconds that requests and queries take; and steps, epochs and other long work.
SHORT_S = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
LONG_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

_GAUGE_S = 1.0  # Ray reports no more often
_NAME = re.compile(r"raysys(_[a-z0-9]+)+")
_lock = threading.Lock()
_known: dict[str, Any] = {}
_Made = TypeVar("_Made", bound="Metric")


class Metric:
    """One metric of this process; nothing happens where Ray is not loaded and connected."""

    def __init__(
        self, name: str, description: str, tag_keys: tuple[str, ...], bounds: tuple[float, ...] = ()
    ) -> None:
        if not _NAME.fullmatch(name):
            raise RaysysError(
                f"a metric may not be called {name!r}: raysys_<package>_<what>, of a-z, 0-9 and _"
            )
        self.name, self.description = name, description
        self.tag_keys, self.bounds = tag_keys, bounds
        self._made: Any = None

    def _ray(self) -> Any:
        """Ray's metric, made at the first use of a connected process."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Any:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return _again, (type(self), self.name, self.description, self.tag_keys, self.bounds)


class Counter(Metric):
    """What only grows; its name ends in `_total`."""

    def __init__(
        self, name: str, description: str, tag_keys: tuple[str, ...], bounds: tuple[float, ...] = ()
    ) -> None:
        super().__init__(name, description, tag_keys, bounds)
        if not name.endswith("_total"):
            raise RaysysError(f"a counter's name ends in _total; {name!r} was given")

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Add to it; 0 adds nothing."""
        if value and (metric := self._ray()):
            metric.inc(float(value), tags)

    def _make(self) -> Any:
        from ray.util import metrics

        return metrics.Counter(self.name, self.description, self.tag_keys)


class Gauge(Metric):
    """What stands at a value; the last one of each process counts.

    Ray 2.60 forgets a value that was not set again within two of its report intervals, so a thread
    sets all of them again, until the process ends or they are dropped.
    """

    def __init__(
        self, name: str, description: str, tag_keys: tuple[str, ...], bounds: tuple[float, ...] = ()
    ) -> None:
        super().__init__(name, description, tag_keys, bounds)
        self._values: dict[tuple[str, ...], tuple[float, Mapping[str, str] | None]] = {}

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Put it at a value."""
        if metric := self._ray():
            metric.set(float(value), tags)
            self._values[self._key(tags)] = (float(value), tags)
            _keep_gauges()

    def drop(self, tags: Mapping[str, str] | None = None) -> None:
        """Let a value go: it is gone from Prometheus soon after."""
        self._values.pop(self._key(tags), None)

    def set_again(self) -> None:
        """Set all values again."""
        if metric := self._ray():
            for value, tags in [*self._values.values()]:
                metric.set(value, tags)
        else:
            self._values.clear()  # of a cluster that this process has left

    def _key(self, tags: Mapping[str, str] | None) -> tuple[str, ...]:
        return tuple((tags or {}).get(key, "") for key in self.tag_keys)

    def _make(self) -> Any:
        from ray.util import metrics

        return metrics.Gauge(self.name, self.description, self.tag_keys)


class Histogram(Metric):
    """How often what values come.

    Ray 2.60 sends counts of buckets only: `_sum` in Prometheus takes each value as the middle of
    its bucket, so take quantiles, not means.
    """

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Note a value."""
        if metric := self._ray():
            metric.observe(float(value), tags)

    def _make(self) -> Any:
        from ray.util import metrics

        return metrics.Histogram(self.name, self.description, list(self.bounds), self.tag_keys)


def counter(name: str, description: str, tag_keys: Sequence[str] = ()) -> Counter:
    """The process's counter of a name, made once.

    Args:
        name: `raysys_<package>_<what>_total`.
        description: What is counted, in words, with its unit.
        tag_keys: Labels that each value has; their values are few.

    Raises:
        RaysysError: The name is none, or belongs to another metric.
    """
    return _once(Counter(name, description, tuple(tag_keys)))


def gauge(name: str, description: str, tag_keys: Sequence[str] = ()) -> Gauge:
    """The process's gauge of a name, made once; see `counter`."""
    return _once(Gauge(name, description, tuple(tag_keys)))


def histogram(
    name: str,
    description: str,
    tag_keys: Sequence[str] = (),
    *,
    boundaries: Sequence[float] = SHORT_S,
) -> Histogram:
    """The process's histogram of a name, made once; see `counter`.

    Args:
        name: With its unit at the end: `_seconds`, `_bytes`, `_rows`.
        description: What is measured.
        tag_keys: Labels that each value has.
        boundaries: Upper ends of the buckets, above 0; `SHORT_S` and `LONG_S` are for seconds.
    """
    return _once(Histogram(name, description, tuple(tag_keys), tuple(boundaries)))


def _once(metric: _Made) -> _Made:
    with _lock:
        known = _known.setdefault(metric.name, metric)
    if isinstance(known, type(metric)) and known.tag_keys == metric.tag_keys:
        return known
    raise RaysysError(
        f"{metric.name} is a {type(known).__name__} with labels {known.tag_keys}; it was asked for "
        f"as a {type(metric).__name__} with {metric.tag_keys}: give one of them another name"
    )


@functools.cache
def _keep_gauges() -> None:
    def keep() -> None:
        while True:
            time.sleep(_GAUGE_S)
            for metric in [*_known.values()]:
                if isinstance(metric, Gauge):
                    metric.set_again()

    threading.Thread(target=keep, name="raysys gauges", daemon=True).start()


def _again(kind: type[_Made], *made_of: Any) -> _Made:
    """What a metric is in another process."""
    return _once(kind(*made_of))
