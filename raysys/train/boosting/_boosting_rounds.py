"""Boosting round by round, so that an interrupted run ends with the same trees."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from raysys.imports import lazy_import

if TYPE_CHECKING:
    from xgboost import Booster, DMatrix

xgboost = lazy_import("xgboost")

VALIDATION = "validation"
_HISTORY = "raysys_history"  # an attribute of the booster
_MAXIMIZED = {"auc", "aucpr", "map", "ndcg", "pre"}


class EvalHistory(NamedTuple):
    """Validation metric after each round.

    Attributes:
        metric: XGBoost's name of the metric; empty without validation rows.
        values: Values, one a round.
    """

    metric: str
    values: list[float]

    @property
    def best_iteration(self) -> int:
        """First round, from 0, with the best value."""
        better = max if self.metric.partition("@")[0].rstrip("-") in _MAXIMIZED else min
        return self.values.index(better(self.values)) if self.values else 0

    def should_stop(self, early_stopping_rounds: int | None) -> bool:
        """Whether that many rounds have passed since the best one."""
        rounds = len(self.values) - 1 - self.best_iteration
        return early_stopping_rounds is not None and rounds >= early_stopping_rounds


@dataclass(frozen=True)
class BoostPlan:
    """Settings of a run that every actor needs, in XGBoost's terms."""

    params: dict[str, Any]
    num_boost_round: int
    early_stopping_rounds: int | None
    checkpoint_frequency: int


def run_rounds(
    plan: BoostPlan,
    training: DMatrix,
    validation: DMatrix | None,
    *,
    start: bytes | None = None,
    after_round: Callable[[Booster, EvalHistory], bool],
) -> bytes:
    """Add rounds to a booster, or to the packed `start`, until all are done or it stops early.

    The rows are those of this process, one of a collective. `after_round` is called with the
    booster and its history; True ends the run. Returns the booster and its history, packed.
    """
    history = unpack(start)[1] if start else EvalHistory("", [])
    cache = [training, validation] if validation is not None else [training]
    booster = xgboost.Booster(plan.params, cache, model_file=bytearray(start) if start else None)
    sampled = any(plan.params[name] < 1 for name in plan.params if "sample" in name)
    for iteration in range(booster.num_boosted_rounds(), plan.num_boost_round):
        if history.should_stop(plan.early_stopping_rounds):
            break
        if sampled:
            # The state of the column sampler continues from round to round and is not part of a
            # model. A new one starts from the seed and the round's number, as everywhere else.
            booster.load_config(booster.save_config())
        booster.update(training, iteration)
        if validation is not None:
            text = booster.eval_set([(validation, VALIDATION)], iteration)
            name, _, value = text.rpartition(":")
            metric = name.rpartition(f"{VALIDATION}-")[2]
            history = EvalHistory(metric, [*history.values, float(value)])
        if after_round(booster, history):
            break
    return pack(booster, history)


def pack(booster: Booster, history: EvalHistory) -> bytes:
    """A booster with its history as bytes in XGBoost's UBJSON."""
    booster.set_attr(**{_HISTORY: json.dumps(history)})
    return bytes(booster.save_raw("ubj"))


def unpack(data: bytes) -> tuple[Booster, EvalHistory]:
    """The booster and history that were packed."""
    booster = xgboost.Booster(model_file=bytearray(data))
    return booster, EvalHistory(*json.loads(booster.attr(_HISTORY) or '["", []]'))


def progress_line(name: str, history: EvalHistory, rounds: int, num_boost_round: int) -> str:
    """Progress of a run."""
    value = f": validation {history.metric} {history.values[-1]:.4f}" if history.values else ""
    return f"[{name}] round {rounds} of {num_boost_round}{value}"
