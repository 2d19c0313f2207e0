"""Gradient boosting on actors that read a Table's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from raysys import cluster, tracking
from raysys.arguments import checked
from raysys.console import say
from raysys.errors import DataError
from raysys.identity import RunIdentity
from raysys.imports import lazy_import
from raysys.settings import Settings
from raysys.train.boosting._boost_inputs import BoostInputs
from raysys.train.boosting._boosted_model import BoostedModel
from raysys.train.boosting._boosting_rounds import progress_line, unpack
from raysys.train.boosting._feature_columns import FeatureColumns, Objective

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train.boosting._table_summary import ClassWeights

xgboost = lazy_import("xgboost")

# Settings that may change when a run is resumed.
_NOT_IDENTITY = {"num_actors", "min_actors", "max_actor_restarts", "checkpoint_frequency"}


class BoostSettings(Settings):
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
    quantile_alpha: float | None = Field(
        None, gt=0, lt=1, description="quantile of reg:quantileerror and of the metric quantile"
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
    def _agree(self) -> BoostSettings:
        quantile = self.objective == "reg:quantileerror" or self.eval_metric == "quantile"
        if quantile and self.quantile_alpha is None:
            raise ValueError(
                "reg:quantileerror and the metric quantile need quantile_alpha, such as 0.9"
            )
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


@checked
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
    run = _NamedRun(name, storage) if name and storage else None
    if run and storage:
        facts = {**settings.model_dump(exclude=_NOT_IDENTITY), **inputs.identity()}
        RunIdentity(facts).claim(storage, run.folder, f"boosting {name!r}", error=DataError)
        if finished := run.result():
            return finished
    title = name or "boosting"
    data = train_on_actors(
        inputs, settings, title,
        start=storage.read_bytes(run.checkpoint) if run and storage else None,
        storage=storage, checkpoint=run.checkpoint if run else "",
    )  # fmt: skip
    booster, history = unpack(data)
    say(progress_line(title, history, booster.num_boosted_rounds(), settings.num_boost_round))
    if settings.early_stopping_rounds:
        booster = booster[: history.best_iteration + 1]
    model = BoostedModel(
        booster, inputs.encoding, settings.objective, history.metric, history.values
    )
    if run and storage and name:
        run.finish(model)
        tables = {"train": table} | ({"validation": validation} if validation is not None else {})
        tracked = tracking.open_run(
            storage, "boosting", name, settings=settings.model_dump(), tables=tables
        )
        if model.history:
            tracked.log_curve(f"validation {model.metric}", model.history)
        tracked.end("FINISHED", {"num_boosted_rounds": float(model.num_boosted_rounds)})
    return model


class _NamedRun:
    """Files of a run that outlives its driver, under the storage root in `boosting/<name>`."""

    def __init__(self, name: str, storage: Storage) -> None:
        self._storage, self.folder = storage, f"boosting/{name}"
        self.checkpoint = f"{self.folder}/checkpoint.ubj"

    def result(self) -> BoostedModel | None:
        """The stored model of a finished run."""
        path = f"{self.folder}/model"
        return BoostedModel.load(self._storage.fetch(path)) if self._storage.exists(path) else None

    def finish(self, model: BoostedModel) -> None:
        """Store the model and remove the checkpoint."""
        with self._storage.new_dir(f"{self.folder}/model") as folder:
            model.save(folder)
        if self._storage.exists(self.checkpoint):
            self._storage.remove(self.checkpoint)


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
