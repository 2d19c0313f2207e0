"""Growing trees round by round, so that a run that was cut off ends with the same ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import xgboost

VALIDATION = "validation"
_HISTORY = "raysys_history"  # an attribute of the booster
_MAXIMIZED = {"auc", "aucpr", "map", "ndcg", "pre"}


class History(NamedTuple):
    """A metric of the validation rows after each round; without any, no name and no values."""

    metric: str
    values: list[float]

    @property
    def best(self) -> int:
        """The first round, from 0, with the best value."""
        better = max if self.metric.partition("@")[0].rstrip("-") in _MAXIMIZED else min
        return self.values.index(better(self.values)) if self.values else 0

    def exhausted(self, patience: int) -> bool:
        """Whether so many rounds have passed since the best one."""
        return bool(patience) and len(self.values) - 1 - self.best >= patience


@dataclass(frozen=True)
class GrowPlan:
    """What every actor must know of a run."""

    params: dict[str, Any]
    rounds: int
    patience: int
    checkpoint_rounds: int


def grow(
    plan: GrowPlan,
    training: xgboost.DMatrix,
    validation: xgboost.DMatrix | None,
    *,
    start: bytes | None = None,
    after_round: Callable[[xgboost.Booster, History], bool],
) -> bytes:
    """Add rounds to a booster until there are as many as planned or the patience ends.

    Args:
        plan: XGBoost's parameters and the rounds.
        training: This process's rows; other processes of a collective have others.
        validation: Rows to measure on, None for none.
        start: A booster that `packed` made, to go on with.
        after_round: Called with the booster and its history; True ends the growing.

    Returns:
        The booster and its history, packed.
    """
    import xgboost

    history = unpacked(start)[1] if start else History("", [])
    cache = [training, validation] if validation is not None else [training]
    booster = xgboost.Booster(plan.params, cache, model_file=bytearray(start) if start else None)
    sampled = any(plan.params[name] < 1 for name in plan.params if "sample" in name)
    for number in range(booster.num_boosted_rounds(), plan.rounds):
        if history.exhausted(plan.patience):
            break
        if sampled:
            # The state of the columns' sampler goes on from round to round and is not part of a
            # model. Made anew, it starts from the seed and the round's number, as everywhere else.
            booster.load_config(booster.save_config())
        booster.update(training, number)
        if validation is not None:
            history = _measured(booster, validation, number, history)
        if after_round(booster, history):
            break
    return packed(booster, history)


def packed(booster: xgboost.Booster, history: History) -> bytes:
    """A booster with its history as bytes in XGBoost's UBJSON."""
    booster.set_attr(**{_HISTORY: json.dumps(history)})
    return bytes(booster.save_raw("ubj"))


def unpacked(data: bytes) -> tuple[xgboost.Booster, History]:
    """What `packed` was given."""
    import xgboost

    booster = xgboost.Booster(model_file=bytearray(data))
    return booster, History(*json.loads(booster.attr(_HISTORY) or '["", []]'))


def _measured(
    booster: xgboost.Booster, rows: xgboost.DMatrix, number: int, history: History
) -> History:
    text = booster.eval_set([(rows, VALIDATION)], number)
    name, _, value = text.rpartition(":")
    metric = name.rpartition(f"{VALIDATION}-")[2]
    return History(metric, [*history.values, float(value)])


def progress_line(name: str, history: History, done: int, rounds: int) -> str:
    """How far a run is."""
    measured = f": validation {history.metric} {history.values[-1]:.4f}" if history.values else ""
    return f"[{name}] round {done} of {rounds}{measured}"
