"""A boosting run through xgboost-ray's driver, which starts actors and replaces lost ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.errors import UnavailableError
from raysys.train.boosting._xgboost_ray_patches import driver, removed_placement_group

if TYPE_CHECKING:
    from raysys.storage import Storage
    from raysys.train.boosting._boosting_rounds import BoostPlan
    from raysys.train.boosting._sharded_matrix import ShardedMatrix


def train_on_actors(
    plan: BoostPlan,
    training: ShardedMatrix,
    validation: ShardedMatrix | None,
    *,
    name: str,
    num_actors: int,
    min_actors: int,
    max_actor_restarts: int,
    start: bytes | None = None,
    storage: Storage | None = None,
    checkpoint: str = "",
) -> bytes:
    """Train on actors, each with as many CPUs as the plan has threads.

    Args:
        plan: XGBoost's parameters and the number of rounds.
        training: Training rows.
        validation: Rows that are evaluated after each round.
        name: Name of the run in progress lines.
        num_actors: Number of actors.
        min_actors: Number of actors that continue while lost ones are replaced.
        max_actor_restarts: Restarts after lost actors before the run fails.
        start: Packed booster to continue from.
        storage: Storage of checkpoints, one every `plan.checkpoint_frequency` rounds.
        checkpoint: Storage path of the checkpoint.

    Returns:
        The packed booster.

    Raises:
        UnavailableError: Actors were lost more often than `max_actor_restarts`.
    """
    main, threads = driver(), plan.params["nthread"]
    try:
        with removed_placement_group():
            return main.train(
                {
                    "plan": plan, "name": name, "storage": storage, "checkpoint": checkpoint,
                    "tree_method": "hist", "nthread": threads,
                },
                training,
                plan.num_boost_round,
                evals=[(validation, "validation")] if validation is not None else [],
                ray_params=main.RayParams(
                    num_actors=num_actors,
                    cpus_per_actor=threads,
                    gpus_per_actor=0,
                    elastic_training=min_actors < num_actors,
                    max_failed_actors=num_actors - min_actors,
                    max_actor_restarts=max_actor_restarts,
                    checkpoint_frequency=plan.checkpoint_frequency,
                    verbose=False,
                ),
                xgb_model=start,
            )  # fmt: skip
    except RuntimeError as error:
        reason = error.__cause__ and error.__cause__.__cause__
        raise UnavailableError(f"boosting {name}: {error} The last reason: {reason}") from error
