"""Gradient boosting on actors, fed from a Modin frame's partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from raysys import cluster
from raysys.errors import DataError

if TYPE_CHECKING:
    import xgboost


class BoostSettings(BaseModel):
    """How trees are grown (Chen & Guestrin, "XGBoost: A Scalable Tree Boosting System", 2016)."""

    objective: str = "rank:ndcg"
    rounds: int = Field(150, ge=1)
    actors: int = Field(2, ge=1)
    max_depth: int = Field(3, ge=1)
    learning_rate: float = Field(0.05, gt=0)
    min_child_weight: float = Field(0.2, ge=0)
    subsample: float = Field(0.8, gt=0, le=1)
    colsample_bytree: float = Field(0.5, gt=0, le=1)
    reg_lambda: float = Field(5.0, ge=0)
    seed: int = 0
    max_failures: int = Field(2, ge=0, description="actor restarts before the run gives up")

    def params(self) -> dict[str, Any]:
        """The same in XGBoost's terms, for one thread."""
        rest = self.model_dump(exclude={"rounds", "actors", "max_failures"})
        return {**rest, "tree_method": "hist", "nthread": 1, "verbosity": 0}


def boost(
    frame: Any, settings: BoostSettings, *, label: str, group: str | None = None
) -> xgboost.Booster:
    """Grow trees on `settings.actors` actors; each reads whole partitions of the frame.

    Args:
        frame: A Modin frame of float features, the label and, for ranking, the group. A group
            stands in one partition, and groups ascend within it.
        settings: Objective, size and sampling.
        label: Name of the label's column.
        group: Name of the column that says which rows are ranked against each other.

    Raises:
        DataError: The frame has fewer partitions than there are actors.
        ResourceError: The actors can never fit on the cluster.
    """
    from modin.distributed.dataframe.pandas import unwrap_partitions

    from raysys.train._xgboost_ray import dmatrix, train

    cluster.require("gradient boosting", cpus=settings.actors)
    partitions = unwrap_partitions(frame, axis=0)
    if len(partitions) < settings.actors:
        raise DataError(
            f"a frame of {len(partitions)} partitions cannot feed {settings.actors} actors: use "
            "fewer actors or partition the table further"
        )
    return train(
        settings.params(),
        dmatrix(partitions, label=label, **({"qid": group} if group else {})),
        num_boost_round=settings.rounds,
        ray_params={
            "num_actors": settings.actors,
            "cpus_per_actor": 1,
            "max_actor_restarts": settings.max_failures,
            "verbose": False,
        },
        verbose_eval=False,
    )
