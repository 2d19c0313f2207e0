"""Samplers that a search can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from raysys.tune._search_result import SearchResult


@dataclass(frozen=True)
class Grid:
    """Every combination of the values of Choices and `points` of each range, in random order."""

    points: int = 3


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
