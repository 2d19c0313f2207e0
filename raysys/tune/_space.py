"""Search spaces as plain values."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Float:
    """A real number from `low` to `high`, evenly spread or evenly spread in its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int | np.number) and bool(self.low <= value <= self.high)

    def points(self, count: int) -> list[float]:
        """So many values from `low` to `high`, at even distances."""
        return [float(value) for value in _points(self, count)]

    def at(self, share: float) -> float:
        """The value below which so much of the domain lies, 0 to 1."""
        if not self.log:
            return self.low + (self.high - self.low) * share
        low, high = math.log(self.low), math.log(self.high)
        return min(max(math.exp(low + (high - low) * share), self.low), self.high)


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | np.integer) and bool(self.low <= value <= self.high)

    def points(self, count: int) -> list[int]:
        """At most so many values from `low` to `high`, at even distances."""
        return sorted({round(value) for value in _points(self, count)})

    def at(self, share: float) -> int:
        """The value below which so much of the domain lies, 0 to 1."""
        low, high = self.low - 0.5, self.high + 0.5
        if self.log:
            low, high = math.log(low), math.log(high)
        value = low + (high - low) * share
        value = math.exp(value) if self.log else value
        return min(max(round(value), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values without an order; values that JSON can hold, lists as tuples."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise RaysysError("Choice has no values: give at least one")

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def points(self, count: int) -> list[Any]:
        """All values, whatever the count."""
        return list(self.values)

    def at(self, share: float) -> Any:
        """The value that so much of all come before, 0 to 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Domain = Float | Integer | Choice
Space = dict[str, Domain]


def sample(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Independent random settings."""
    return {name: domain.at(rng.random()) for name, domain in space.items()}


def spread(space: Space, number: int, seed: int) -> dict[str, Any]:
    """Settings that leave no part of the space out: its middle, then Sobol's points."""
    from scipy.stats.qmc import Sobol

    if number == 0:
        return {name: domain.at(0.5) for name, domain in space.items()}
    shares = Sobol(len(space), seed=seed).fast_forward(number).random(1)[0].tolist()
    return {n: domain.at(share) for (n, domain), share in zip(space.items(), shares, strict=True)}


def enough(space: Space) -> int:
    """How many trials a model needs at least: more than there are settings."""
    return len(space) + 2


def grid(space: Space, points: int) -> Iterator[dict[str, Any]]:
    """Each combination of the domains' points."""
    columns = [domain.points(points) for domain in space.values()]
    for cell in itertools.product(*columns):
        yield dict(zip(space, cell, strict=True))


def of_json(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were written as JSON, with the types of their domains; others as they are."""
    return {name: _typed(space.get(name), value) for name, value in settings.items()}


def check_settings(what: str, settings: Mapping[str, Any], space: Space) -> None:
    """Refuse settings that a space does not have.

    Raises:
        RaysysError: A name or a value is not of the space.
    """
    for name, value in settings.items():
        if name not in space:
            raise RaysysError(f"{what} name {name!r}, and the space has {sorted(space)}")
        if value not in space[name]:
            raise RaysysError(f"{what} give {name} = {value!r}, which is not in {space[name]}")


def _typed(domain: Domain | None, value: Any) -> Any:
    if isinstance(domain, Float) and isinstance(value, int):
        return float(value)
    if isinstance(domain, Choice) and isinstance(value, list):
        return _tuples(value)
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _check_range(domain: Float | Integer) -> None:
    if not domain.low <= domain.high:
        raise RaysysError(f"{domain} is empty: give low <= high")
    if domain.log and domain.low <= 0:
        raise RaysysError(f"{domain} has no logarithm at its low end: give low > 0, or log=False")


def _points(domain: Float | Integer, count: int) -> list[float]:
    """At even distances, both ends hit exactly; the middle for a single one."""
    low, high = float(domain.low), float(domain.high)
    if domain.log:
        low, high = math.log(low), math.log(high)
    shares = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
    values = [low + (high - low) * share for share in shares]
    values = [math.exp(value) for value in values] if domain.log else values
    # Logarithms round, and neither end may be missed.
    return [domain.low, *values[1:-1], domain.high] if count > 1 else values
