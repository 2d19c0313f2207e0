"""Limits of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysys import cluster


@dataclass(frozen=True)
class SearchLimits:
    """Limits of a search beside its number of trials; the first that is reached ends it.

    Attributes:
        timeout_s: Wall clock, over all calls.
        cpu_hours: Logical CPUs held by trials and their nested workers, times hours.
        gpu_hours: GPUs held, times hours.
        max_failed_trials: Trials that may fail before the search gives up; a fifth of the
            trials, at least one, by default.
    """

    timeout_s: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    max_failed_trials: int | None = None

    @property
    def bounded(self) -> bool:
        """Whether any of them ends a search without failures."""
        return (self.timeout_s, self.cpu_hours, self.gpu_hours) != (None, None, None)

    def reached(self, seconds: float, trial_seconds: float, per_trial: cluster.Resources) -> bool:
        """Whether the budget is spent.

        Args:
            seconds: Wall clock of the search.
            trial_seconds: Wall clock of all its trials, summed.
            per_trial: Resources held by a trial.
        """
        hours = trial_seconds / 3600
        return (
            (self.timeout_s is not None and seconds >= self.timeout_s)
            or (self.cpu_hours is not None and hours * per_trial.cpus >= self.cpu_hours)
            or (self.gpu_hours is not None and hours * per_trial.gpus >= self.gpu_hours)
        )
