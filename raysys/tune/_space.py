"""Search spaces."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysys.errors import RaysysError
from raysys.imports import lazy_import

qmc = lazy_import("scipy.stats.qmc")


@dataclass(frozen=True)
class _Range:
    """Numbers from `low` to `high`, uniform or log-uniform."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise RaysysError(f"{self} is empty: give low <= high")
        if self.log and self.low <= 0:
            raise RaysysError(f"{self} has no logarithm at its low end: give low > 0, or log=False")

    def _points(self, count: int) -> list[float]:
        """Evenly spaced values that include both ends exactly; the middle for a count of 1."""
        shares = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
        values = [self._at(share, self.low, self.high) for share in shares]
        # The logarithm is inexact.
        return [self.low, *values[1:-1], self.high] if count > 1 else values

    def _at(self, share: float, low: float, high: float) -> float:
        """The value at a share of the way from one number to another."""
        if not self.log:
            return low + (high - low) * share
        return math.exp(math.log(low) + (math.log(high) - math.log(low)) * share)


@dataclass(frozen=True)
class Float(_Range):
    """A real number from `low` to `high`, uniform or log-uniform."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int | np.number) and bool(self.low <= value <= self.high)

    def points(self, count: int) -> list[float]:
        """`count` evenly spaced values from `low` to `high`."""
        return [float(value) for value in self._points(count)]

    def quantile(self, share: float) -> float:
        """The value below which a share of the domain lies, 0 to 1."""
        value = self._at(share, self.low, self.high)
        return min(max(value, self.low), self.high) if self.log else value


@dataclass(frozen=True)
class Integer(_Range):
    """An integer from `low` to `high`, both included, uniform or log-uniform."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | np.integer) and bool(self.low <= value <= self.high)

    def points(self, count: int) -> list[int]:
        """At most `count` evenly spaced values from `low` to `high`."""
        return sorted({round(value) for value in self._points(count)})

    def quantile(self, share: float) -> int:
        """The value below which a share of the domain lies, 0 to 1."""
        value = round(self._at(share, self.low - 0.5, self.high + 0.5))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of several unordered values, which JSON can hold; lists as tuples."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise RaysysError("Choice has no values: give at least one")

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def points(self, count: int) -> list[Any]:
        """All values."""
        return list(self.values)

    def quantile(self, share: float) -> Any:
        """The value that a share of the values precede, 0 to 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Domain = Float | Integer | Choice
Space = dict[str, Domain]


def random_params(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Independent random parameters."""
    return {name: domain.quantile(rng.random()) for name, domain in space.items()}


def sobol_params(space: Space, number: int, seed: int) -> dict[str, Any]:
    """Parameters that cover the space evenly: its middle, then the points of Sobol's sequence."""
    shares = [0.5] * len(space)
    if number:
        shares = qmc.Sobol(len(space), seed=seed).fast_forward(number).random(1)[0].tolist()
    return {
        name: domain.quantile(share)
        for (name, domain), share in zip(space.items(), shares, strict=True)
    }


def n_startup_trials(space: Space) -> int:
    """Number of trials before a model is used: two more than there are parameters."""
    return len(space) + 2


def grid(space: Space, points: int) -> Iterator[dict[str, Any]]:
    """Every combination of the domains' points."""
    columns = [domain.points(points) for domain in space.values()]
    for cell in itertools.product(*columns):
        yield dict(zip(space, cell, strict=True))


def params_from_json(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters decoded from JSON, with the types of their domains."""
    return {name: _typed(space.get(name), value) for name, value in params.items()}


def check_params(source: str, params: Mapping[str, Any], space: Space) -> None:
    """Refuse parameters outside a space.

    Raises:
        RaysysError: A name is not in the space, or a value not in its domain.
    """
    for name, value in params.items():
        if name not in space:
            raise RaysysError(f"{source}: unknown parameter {name!r}, not in {sorted(space)}")
        if value not in space[name]:
            raise RaysysError(f"{source}: {name} = {value!r} is not in {space[name]}")


def _typed(domain: Domain | None, value: Any) -> Any:
    if isinstance(domain, Float) and isinstance(value, int):
        return float(value)
    if isinstance(domain, Choice) and isinstance(value, list):
        return _tuples(value)
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
