"""A boosting run through xgboost-ray's driver, which starts actors and replaces lost ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xgboost_ray import RayDMatrix

from raysys import cluster
from raysys.errors import UnavailableError
from raysys.train.boosting._boosting_rounds import VALIDATION, BoostPlan
from raysys.train.boosting._shard_assignment import ShardAssignment
from raysys.train.boosting._xgboost_ray_patches import driver, removed_placement_group

if TYPE_CHECKING:
    from raysys.storage import Storage
    from raysys.train.boosting._boost import BoostSettings
    from raysys.train.boosting._boost_inputs import BoostInputs, ShardSource


class ShardedMatrix(RayDMatrix):  # type: ignore[misc,unused-ignore]
    """Rows of a Table; an actor receives it as a `ShardAssignment`."""

    def __init__(self, prepare: Callable[[], ShardSource], *, interleaved: bool = False) -> None:
        """Rows that `prepare` returns when they are first needed."""
        self._uid = uuid.uuid4().int
        self._prepare, self._interleaved = prepare, interleaved
        self._source: ShardSource | None = None
        self._positions: dict[int, int] = {}
        self.loaded, self.distributed = False, True

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardAssignment, (self._uid, self.source(), self._interleaved, self._positions)

    def source(self) -> ShardSource:
        """The rows, prepared at the first call."""
        if self._source is None:
            self._source = self._prepare()
        return self._source

    @property
    def has_label(self) -> bool:
        """Always true; xgboost-ray's driver asks."""
        return True

    def assert_enough_shards_for_actors(self, num_actors: int) -> None:
        """Nothing: the number of rows is checked where they are prepared."""

    def assign_shards_to_actors(self, actors: Sequence[Any]) -> bool:
        """Assign the rows to the living actors, which have been asked to start."""
        living = [rank for rank, actor in enumerate(actors) if actor is not None]
        self._positions = {rank: position for position, rank in enumerate(living)}
        self.source()  # in this process, while the actors start
        return True


def train_on_actors(
    inputs: BoostInputs, settings: BoostSettings, name: str, *,
    start: bytes | None, storage: Storage | None, checkpoint: str,
) -> bytes:  # fmt: skip
    """The packed booster of actors of one thread and one CPU each.

    They continue from the packed `start`, and write checkpoints to the path `checkpoint`.

    Raises:
        UnavailableError: Actors were lost more often than `max_actor_restarts`.
    """
    num_actors, min_actors = settings.num_actors, settings.min_actors or settings.num_actors
    plan = BoostPlan(
        settings.params(), settings.num_boost_round, settings.early_stopping_rounds,
        settings.checkpoint_frequency,
    )  # fmt: skip
    training, evals = ShardedMatrix(inputs.training), []
    if inputs.validation_table is not None:
        evals = [(ShardedMatrix(inputs.validation, interleaved=True), VALIDATION)]
    if cluster.resources().cpus < 2 * num_actors:
        training.source()  # otherwise prepared while the actors start, beside them
    main = driver()
    try:
        with removed_placement_group():
            return main.train(
                {
                    "plan": plan, "name": name, "storage": storage, "checkpoint": checkpoint,
                    "tree_method": "hist", "nthread": 1,
                },
                training,
                plan.num_boost_round,
                evals=evals,
                ray_params=main.RayParams(
                    num_actors=num_actors, cpus_per_actor=1, gpus_per_actor=0,
                    elastic_training=min_actors < num_actors,
                    max_failed_actors=num_actors - min_actors,
                    max_actor_restarts=settings.max_actor_restarts,
                    checkpoint_frequency=plan.checkpoint_frequency,
                    verbose=False,
                ),
                xgb_model=start,
            )  # fmt: skip
    except RuntimeError as error:
        reason = error.__cause__ and error.__cause__.__cause__
        raise UnavailableError(f"boosting {name}: {error} The last reason: {reason}") from error
