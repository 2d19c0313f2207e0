"""Gradient boosting on actors, fed from a Table's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from raysys import cluster, tracking
from raysys.console import say
from raysys.errors import DataError
from raysys.train.boosting._boosted import Boosted
from raysys.train.boosting._columns import Columns, Objective
from raysys.train.boosting._grow_trees import GrowPlan, progress_line, unpacked
from raysys.train.boosting._prepare import Inputs
from raysys.train.boosting._resumable_run import NamedRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train.boosting._survey import ClassWeights

# A run that is resumed may have other values of these.
_FREE = {"actors", "min_actors", "max_failures", "checkpoint_rounds"}


class BoostSettings(BaseModel, extra="forbid"):
    """How trees are grown (Chen & Guestrin, "XGBoost: A Scalable Tree Boosting System", 2016)."""

    objective: Objective = Field(description="what labels are, and the loss of a prediction")
    rounds: int = Field(100, ge=1)
    actors: int = Field(2, ge=1, description="processes of one thread")
    min_actors: int | None = Field(
        None, ge=1, description="how many go on while lost ones are replaced; all if none"
    )
    max_depth: int = Field(6, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    min_child_weight: float = Field(1.0, ge=0)
    subsample: float = Field(1.0, gt=0, le=1)
    colsample_bytree: float = Field(1.0, gt=0, le=1)
    colsample_bynode: float = Field(1.0, gt=0, le=1)
    max_bin: int = Field(256, ge=2, description="bins of a feature's values")
    reg_lambda: float = Field(1.0, ge=0)
    eval_metric: str | None = Field(None, description="of validation; the objective's own if none")
    patience: int = Field(
        0, ge=0, description="rounds without a gain before growing ends; 0: never"
    )
    seed: int = 0
    max_failures: int = Field(2, ge=0, description="actor restarts before the run gives up")
    checkpoint_rounds: int = Field(10, ge=1, description="rounds that a failure costs at most")

    @model_validator(mode="after")
    def _fewer_than_all(self) -> BoostSettings:
        if self.min_actors and self.min_actors > self.actors:
            raise ValueError(f"min_actors={self.min_actors} is more than actors={self.actors}")
        return self

    def params(self) -> dict[str, Any]:
        """The same in XGBoost's terms, for one thread."""
        rest = self.model_dump(exclude={"rounds", "patience", *_FREE})
        rest = {name: value for name, value in rest.items() if value is not None}
        # Else a booster that goes on from a checkpoint would draw other rows and columns.
        seeded = {"seed_per_iteration": True}
        return {**rest, **seeded, "tree_method": "hist", "nthread": 1, "verbosity": 0}


def boost(
    table: Table,
    settings: BoostSettings,
    *,
    label: str,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    group: str | None = None,
    weight: str | None = None,
    class_weights: ClassWeights | None = None,
    validation: Table | None = None,
    name: str | None = None,
    storage: Storage | None = None,
) -> Boosted:
    """Grow trees on `settings.actors` actors, each of which maps its share of the Table's blocks.

    A lost actor is replaced, and growing goes on from the last checkpoint. With
    `settings.min_actors` it does so at once: the living take over the rows of the lost, and hand
    them back when these have been replaced.

    With a name, a second call with it goes on from the last checkpoint on the storage root, and
    one after the end gives the stored trees. Both are the trees of an undisturbed run, if the
    number of actors is the same.

    Args:
        table: Features, the label and what else is named below.
        settings: Objective, size and sampling.
        label: The label's column: for classes any values, otherwise numbers.
        features: The columns to learn from; all others without it.
        categorical: Integer columns whose values are categories. Text and dictionaries always are.
        group: For ranking, the column that says which rows are ranked against each other. They
            stand together, in one block.
        weight: A column of rows' weights.
        class_weights: The weight of each class, or "balanced": rows / (classes * the class's rows).
        validation: Rows to measure after each round; with `settings.patience` growing ends
            when they no longer gain, and the booster is cut at its best round.
        name: The run's name, for a run that can be resumed.
        storage: Where a named run keeps its checkpoints and its end, under `boosting/<name>`.

    Raises:
        DataError: The Tables do not fit the objective or each other, or the name is that of a run
            of other settings or data.
        ResourceError: The actors can never fit on the cluster.
        UnavailableError: Actors were lost more often than `settings.max_failures`.
    """
    from raysys.train.boosting._matrix_shards import Shares
    from raysys.train.boosting._xgboost_ray import train

    cluster.require("gradient boosting", cpus=settings.actors)
    if settings.patience and validation is None:
        raise DataError("patience needs a validation Table: give one, or leave patience out")
    if (name is None) != (storage is None):
        raise DataError(f"name={name!r}, storage={storage!r}: a run to resume needs both")
    _check_params(settings)
    columns = Columns.of(
        table.schema, settings.objective,
        label=label, group=group, weight=weight, features=features, categorical=categorical,
    )  # fmt: skip
    inputs = Inputs(table, validation, columns, settings.objective, settings.actors, class_weights)
    run = NamedRun(name, storage) if name and storage else None
    if run:
        run.claim({**settings.model_dump(exclude=_FREE), **inputs.described()})
        if ended := run.result():
            return ended
    title = name or "boosting"
    plan = GrowPlan(
        settings.params(), settings.rounds, settings.patience, settings.checkpoint_rounds
    )
    training = Shares(inputs.training)
    if cluster.resources().cpus < 2 * settings.actors:
        training.prepared  # noqa: B018  else read while the actors start, beside them
    booster, history = unpacked(train(
        plan,
        training,
        Shares(inputs.validation, mixed=True) if validation is not None else None,
        name=title,
        actors=settings.actors,
        min_actors=settings.min_actors or settings.actors,
        max_failures=settings.max_failures,
        start=run.start() if run else None,
        storage=storage,
        checkpoint=run.checkpoint if run else "",
    ))  # fmt: skip
    say(progress_line(title, history, booster.num_boosted_rounds(), settings.rounds))
    if settings.patience:
        booster = booster[: history.best + 1]
    boosted = Boosted(booster, inputs.coding, history.metric, history.values)
    if run and storage and name:
        run.finish(boosted)
        tracked = tracking.open_run(
            storage, "boosting", name, settings=settings.model_dump(),
            tables={"train": table} | ({"validation": validation} if validation else {}),
        )  # fmt: skip
        if history.values:
            tracked.log_curve(f"validation {history.metric}", history.values)
        tracked.end("FINISHED", {"rounds": float(boosted.rounds)})
    return boosted


def _check_params(settings: BoostSettings) -> None:
    """Let XGBoost refuse here what it would refuse in every actor."""
    import xgboost

    params = settings.params()
    if settings.objective == "multi:softprob":
        params["num_class"] = 3
    rows = xgboost.DMatrix(
        np.zeros((2, 1)), [0, 1], qid=[0, 0] if settings.objective.startswith("rank") else None
    )
    try:
        xgboost.Booster(params, [rows]).eval(rows)
    except xgboost.core.XGBoostError as error:
        said = str(error).partition("Stack trace")[0].rpartition("] ")[2].strip()
        raise DataError(f"XGBoost refuses the settings: {said}") from error
