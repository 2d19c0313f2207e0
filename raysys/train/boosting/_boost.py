"""Gradient boosting on actors that read a Table's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from raysys import cluster, tracking
from raysys.console import say
from raysys.errors import DataError
from raysys.imports import lazy_import
from raysys.train.boosting._boost_inputs import BoostInputs
from raysys.train.boosting._boosted_model import BoostedModel
from raysys.train.boosting._boosting_rounds import BoostPlan, progress_line, unpack
from raysys.train.boosting._feature_columns import FeatureColumns, Objective
from raysys.train.boosting._resumable_run import ResumableBoost

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train.boosting._table_summary import ClassWeights

xgboost = lazy_import("xgboost")

# Settings that may change when a run is resumed.
_NOT_IDENTITY = {"num_actors", "min_actors", "max_actor_restarts", "checkpoint_frequency"}


class BoostSettings(BaseModel, extra="forbid"):
    """Training parameters in XGBoost's and xgboost-ray's words.

    (Chen & Guestrin, "XGBoost: A Scalable Tree Boosting System", 2016.)
    """

    objective: Objective = Field(description="type of the labels, and the loss")
    num_boost_round: int = Field(100, ge=1)
    num_actors: int = Field(2, ge=1, description="processes of one thread")
    min_actors: int | None = Field(
        None, ge=1, description="actors that continue while lost ones are replaced; default all"
    )
    max_depth: int = Field(6, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    min_child_weight: float = Field(1.0, ge=0)
    subsample: float = Field(1.0, gt=0, le=1)
    colsample_bytree: float = Field(1.0, gt=0, le=1)
    colsample_bynode: float = Field(1.0, gt=0, le=1)
    max_bin: int = Field(256, ge=2, description="bins of a feature's values")
    reg_lambda: float = Field(1.0, ge=0)
    eval_metric: str | None = Field(
        None, description="metric of the validation rows; default the objective's own"
    )
    early_stopping_rounds: int | None = Field(
        None, ge=1, description="rounds without a better metric after which training stops"
    )
    seed: int = 0
    max_actor_restarts: int = Field(2, ge=0, description="actor restarts before the run fails")
    checkpoint_frequency: int = Field(
        10, ge=1, description="rounds between checkpoints: the most that a failure costs"
    )

    @model_validator(mode="after")
    def _check_min_actors(self) -> BoostSettings:
        if self.min_actors and self.min_actors > self.num_actors:
            raise ValueError(
                f"min_actors={self.min_actors} is more than num_actors={self.num_actors}"
            )
        return self

    def params(self) -> dict[str, Any]:
        """Parameters of `xgboost.train`, for one thread."""
        excluded = {"num_boost_round", "early_stopping_rounds", *_NOT_IDENTITY}
        params = self.model_dump(exclude=excluded, exclude_none=True)
        # Without it a booster that continues from a checkpoint draws other rows and columns.
        seeded = {"seed_per_iteration": True}
        return {**params, **seeded, "tree_method": "hist", "nthread": 1, "verbosity": 0}


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
) -> BoostedModel:
    """Train XGBoost on `settings.num_actors` actors, each of which reads a shard of the blocks.

    A lost actor is replaced, and training resumes from the last checkpoint. With
    `settings.min_actors` it resumes at once: the living actors take over the rows of the lost
    ones, and hand them back when these have been replaced.

    With a name, a second call resumes from the last checkpoint on the storage root, or returns
    the stored model of a finished run. The trees are those of an undisturbed run with the same
    number of actors.

    Args:
        table: Training rows.
        settings: Parameters of XGBoost and of the actors.
        label: Label column: any values for classes, otherwise numbers.
        features: Feature columns; by default all columns without a role.
        categorical: Integer features that are categories. Text and dictionaries always are.
        group: Ranking: column of the query groups. The rows of a group are contiguous, in one
            block.
        weight: Column of row weights.
        class_weights: Weight of each class, or "balanced": rows / (classes * rows of the class).
        validation: Rows to evaluate after each round; with `settings.early_stopping_rounds`
            training stops when the metric no longer gets better, and the booster is cut at its
            best round.
        name: Name of a run that can be resumed.
        storage: Storage of a named run's checkpoints and model, under `boosting/<name>`.

    Raises:
        DataError: The Tables do not fit the objective or each other, or a run of this name has
            other settings or data.
        ResourceError: The cluster is too small for the actors.
        UnavailableError: Actors were lost more often than `settings.max_actor_restarts`.
    """
    from raysys.train.boosting._sharded_matrix import ShardedMatrix
    from raysys.train.boosting._train_on_actors import train_on_actors

    cluster.require("gradient boosting", cpus=settings.num_actors)
    if settings.early_stopping_rounds and validation is None:
        raise DataError(
            f"early_stopping_rounds={settings.early_stopping_rounds} without a validation Table: "
            "pass one, or leave early_stopping_rounds out"
        )
    if (name is None) != (storage is None):
        raise DataError(f"name={name!r}, storage={storage!r}: a resumable run needs both")
    _check_params(settings)
    columns = FeatureColumns.of(
        table.schema, settings.objective,
        label=label, group=group, weight=weight, features=features, categorical=categorical,
    )  # fmt: skip
    inputs = BoostInputs(
        table, validation, columns, settings.objective, settings.num_actors, class_weights
    )
    run = ResumableBoost(name, storage) if name and storage else None
    if run:
        run.check_identity({**settings.model_dump(exclude=_NOT_IDENTITY), **inputs.identity()})
        if finished := run.result():
            return finished
    title = name or "boosting"
    plan = BoostPlan(
        settings.params(),
        settings.num_boost_round,
        settings.early_stopping_rounds,
        settings.checkpoint_frequency,
    )
    training = ShardedMatrix(inputs.training)
    if cluster.resources().cpus < 2 * settings.num_actors:
        training.source()  # otherwise prepared while the actors start, beside them
    data = train_on_actors(
        plan,
        training,
        ShardedMatrix(inputs.validation, interleaved=True) if validation is not None else None,
        name=title,
        num_actors=settings.num_actors,
        min_actors=settings.min_actors or settings.num_actors,
        max_actor_restarts=settings.max_actor_restarts,
        start=run.last_checkpoint() if run else None,
        storage=storage,
        checkpoint=run.checkpoint if run else "",
    )
    booster, history = unpack(data)
    say(progress_line(title, history, booster.num_boosted_rounds(), settings.num_boost_round))
    if settings.early_stopping_rounds:
        booster = booster[: history.best_iteration + 1]
    model = BoostedModel(
        booster, inputs.encoding, settings.objective, history.metric, history.values
    )
    if run and storage and name:
        run.finish(model)
        _track(model, settings, table, validation, name, storage)
    return model


def _track(
    model: BoostedModel,
    settings: BoostSettings,
    table: Table,
    validation: Table | None,
    name: str,
    storage: Storage,
) -> None:
    tables = {"train": table} | ({"validation": validation} if validation is not None else {})
    tracked = tracking.open_run(
        storage, "boosting", name, settings=settings.model_dump(), tables=tables
    )
    if model.history:
        tracked.log_curve(f"validation {model.metric}", model.history)
    tracked.end("FINISHED", {"num_boosted_rounds": float(model.num_boosted_rounds)})


def _check_params(settings: BoostSettings) -> None:
    """Refuse parameters here that XGBoost would refuse in every actor."""
    params = settings.params()
    if settings.objective == "multi:softprob":
        params["num_class"] = 3
    qid = [0, 0] if settings.objective.startswith("rank") else None
    rows = xgboost.DMatrix(np.zeros((2, 1)), [0, 1], qid=qid)
    try:
        xgboost.Booster(params, [rows]).eval(rows)
    except xgboost.core.XGBoostError as error:
        reason = str(error).partition("Stack trace")[0].rpartition("] ")[2].strip()
        raise DataError(f"invalid settings: XGBoost refuses them: {reason}") from error
