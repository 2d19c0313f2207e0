"""Search spaces as plain values."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Float:
    """A real number from `low` to `high`, evenly spread or evenly spread in its logarithm."""

    low: float
    high: float
    log: bool = False

    def domain(self) -> Any:
        """The same in Ray Tune's terms."""
        from ray import tune

        return (tune.loguniform if self.log else tune.uniform)(self.low, self.high)


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False

    def domain(self) -> Any:
        """The same in Ray Tune's terms."""
        from ray import tune

        return (tune.lograndint if self.log else tune.randint)(self.low, self.high + 1)


@dataclass(frozen=True)
class Choice:
    """One of some values without an order."""

    values: tuple[Any, ...]

    def domain(self) -> Any:
        """The same in Ray Tune's terms."""
        from ray import tune

        return tune.choice(list(self.values))
