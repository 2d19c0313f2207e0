"""Gradient boosting on actors, fed from a Table's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from raysys import cluster
from raysys.errors import DataError

if TYPE_CHECKING:
    import xgboost

    from raysys.data import Table


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
    colsample_bynode: float = Field(1.0, gt=0, le=1)
    max_bin: int = Field(256, ge=2, description="bins of a feature's values")
    reg_lambda: float = Field(5.0, ge=0)
    eval_metric: str | None = Field(None, description="of validation; the objective's own if none")
    patience: int = Field(
        0, ge=0, description="rounds without a gain before growing ends; 0: never"
    )
    seed: int = 0
    max_failures: int = Field(2, ge=0, description="actor restarts before the run gives up")

    def params(self) -> dict[str, Any]:
        """The same in XGBoost's terms, for one thread."""
        rest = self.model_dump(exclude={"rounds", "actors", "patience", "max_failures"})
        rest = {name: value for name, value in rest.items() if value is not None}
        return {**rest, "tree_method": "hist", "nthread": 1, "verbosity": 0}


def boost(
    table: Table,
    settings: BoostSettings,
    *,
    label: str,
    group: str | None = None,
    validation: Table | None = None,
) -> xgboost.Booster:
    """Grow trees on `settings.actors` actors; each maps whole blocks of the Table.

    Args:
        table: Numeric features, the label and, for ranking, the group. A group stands in one
            block, and groups ascend within it.
        settings: Objective, size and sampling.
        label: Name of the label's column.
        group: Name of the column that says which rows are ranked against each other.
        validation: Rows to measure after each round; with `settings.patience` growing ends
            when they no longer gain, and the booster is cut at its best round.

    Raises:
        DataError: A Table has fewer blocks than there are actors.
        ResourceError: The actors can never fit on the cluster.
    """
    from raysys.train._xgboost_ray import train

    cluster.require("gradient boosting", cpus=settings.actors)
    if settings.patience and validation is None:
        raise DataError("patience needs a validation Table: give one, or leave patience out")
    for one in (table, *([validation] if validation else ())):
        if len(one.blocks) < settings.actors:
            raise DataError(
                f"a Table of {len(one.blocks)} blocks cannot feed {settings.actors} actors: use "
                f"fewer actors, or deal the rows out anew: table.repartition({settings.actors}), "
                "or partition_by the group"
            )
    measured: dict[str, Any] = {"early_stopping_rounds": settings.patience or None}
    if validation:
        measured["evals"] = [(validation.to_dmatrix(label=label, group=group), "validation")]
    booster = train(
        settings.params(),
        table.to_dmatrix(label=label, group=group),
        num_boost_round=settings.rounds,
        ray_params={
            "num_actors": settings.actors,
            "cpus_per_actor": 1,
            "max_actor_restarts": settings.max_failures,
            "verbose": False,
        },
        verbose_eval=False,
        **measured,
    )
    return booster[: booster.best_iteration + 1] if settings.patience else booster
