"""Typed groups of a search's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from raysys import cluster
from raysys.arguments import checked
from raysys.errors import RaysysError, ResourceError

if TYPE_CHECKING:
    from raysys.tune._search_result import SearchResult

_NOTHING = cluster.Resources(cpus=0, gpus=0)


@checked
@dataclass(frozen=True)
class Grid:
    """Every combination of the values of Choices and `points` of each range, in random order."""

    points: int = 3


@checked
@dataclass(frozen=True)
class Population:
    """Population-based training (Jaderberg et al., 2017).

    `size` members train side by side. After each `every` rounds a member of the worst quarter
    continues from the checkpoint of one of the best quarter, with perturbed parameters; the
    others continue from their own. Each such stretch is a trial, which starts from its parent's
    checkpoint: the objective has to call `report.resume()` and to save.
    """

    size: int = 8
    every: int = 1


SamplerName = Literal["random", "tpe", "gp", "bohb"]


@checked
@dataclass(frozen=True)
class Sampler:
    """How a search proposes parameters.

    Attributes:
        method: "tpe" (Parzen estimators), "gp" (Gaussian process), "random" and `Grid` with
            asynchronous successive halving; "bohb" (Parzen estimators in Hyperband's brackets);
            `Population` (population-based training).
        seed: Seed of the proposals.
        enqueue: Parameters of the first trial, so that a small budget is never worse than they.
        warm_start: Earlier searches to learn from: names in the same storage, folders, or their
            results. Their trials inform "tpe", "gp" and "bohb"; a population starts with the best.
            Trials outside the space are left out.

    Raises:
        RaysysError: The method is unknown.
    """

    method: SamplerName | Grid | Population = "tpe"
    seed: int = 0
    enqueue: Mapping[str, Any] = field(default_factory=dict)
    warm_start: Sequence[str | SearchResult] = ()

    def __post_init__(self) -> None:
        names = get_args(SamplerName)
        if not isinstance(self.method, Grid | Population) and self.method not in names:
            raise RaysysError(
                f"unknown sampler {self.method!r}: choose one of {', '.join(names)}, Grid(...) "
                "and Population(...)"
            )
        if self.warm_start and (self.method == "random" or isinstance(self.method, Grid)):
            raise RaysysError(
                f"sampler {self.method!r} learns nothing from earlier searches: leave warm_start "
                "out, or use 'tpe', 'gp', 'bohb' or Population(...)"
            )


@checked
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
        """Whether the budget is spent, by the wall clock of the search and of all its trials."""
        hours = trial_seconds / 3600
        return (
            (self.timeout_s is not None and seconds >= self.timeout_s)
            or (self.cpu_hours is not None and hours * per_trial.cpus >= self.cpu_hours)
            or (self.gpu_hours is not None and hours * per_trial.gpus >= self.gpu_hours)
        )


@checked
@dataclass(frozen=True)
class TrialResources:
    """Resources of each trial, and the number of trials at a time.

    Attributes:
        cpus: Logical CPUs, and threads, of a trial's process; 0 for one that only waits for the
            work that it starts.
        gpus: GPUs of a trial's process.
        nested: Cluster resources that training inside a trial may request beside them.
        max_concurrent: Trials at a time. With one the search is reproducible, interrupted or not:
            what is proposed and stopped depends on the trials that have reported.
    """

    cpus: float = 2.0
    gpus: float = 0.0
    nested: cluster.Resources = _NOTHING
    max_concurrent: int = 1

    @property
    def total(self) -> cluster.Resources:
        """A trial's own and nested resources."""
        return cluster.Resources(self.cpus + self.nested.cpus, self.gpus + self.nested.gpus)

    def require(self, name: str) -> None:
        """Check that the trials of a search fit on the cluster with all that they start.

        Raises:
            ResourceError: They would wait for each other's workers forever.
        """
        total, count, nested = self.total, self.max_concurrent, self.nested
        parts = f" ({self.cpus:g} + {nested.cpus:g} nested)" if nested.cpus or nested.gpus else ""
        purpose = f"search {name!r}, {count} at a time with {total.cpus:g} CPUs{parts} each,"
        try:
            cluster.require(purpose, cpus=count * total.cpus, gpus=count * total.gpus)
        except ResourceError as error:
            have = cluster.resources()
            fits = int((have.cpus - cluster.HEADROOM_CPUS) // total.cpus) if total.cpus else count
            if total.gpus:
                fits = min(fits, int(have.gpus // total.gpus))
            remedy = f"max_concurrent={fits} fits" if fits > 0 else "not even one trial fits"
            if fits <= 0 and nested.cpus and self.cpus:
                remedy += ": cpus=0 is enough for one that waits for the work that it starts"
            raise ResourceError(f"{error}. Of these trials {remedy}") from None
