import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost
from ray.util import placement_group_table

from raysys.data import Table
from raysys.train._xgboost_ray import train

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS, GROUP, PARTS = 800, 20, 4
FEATURES = ["a", "b", "c"]
TREES = {"max_depth": 3, "eta": 0.3, "tree_method": "hist", "nthread": 1}
TWO_ACTORS = {"num_actors": 2, "cpus_per_actor": 1, "verbose": False}


def _table(seed: int) -> pd.DataFrame:
    # Few distinct values, so that the bins of a feature do not depend on how its rows are split.
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.integers(0, 40, size=(ROWS, 3)), columns=FEATURES, dtype=float)
    table["group"] = np.arange(ROWS) // GROUP
    noisy = table["a"] / 20 + (table["b"] > 25) + rng.normal(0, 0.5, ROWS)
    table["label"] = noisy.round().clip(0, 4)
    return table


def _table_of(frame: pd.DataFrame) -> Table:
    table = Table.from_arrow(pa.Table.from_pandas(frame), rows_a_block=ROWS // PARTS)
    assert len(table.blocks) == PARTS, "not as many as rows / GROUP divides into whole groups"
    return table


def _local(table: pd.DataFrame, qid: str | None = None) -> xgboost.DMatrix:
    return xgboost.DMatrix(table[FEATURES], table["label"], qid=table[qid] if qid else None)


def _same_predictions(ours: xgboost.Booster, theirs: xgboost.Booster) -> None:
    data = _local(_table(seed=9))
    np.testing.assert_allclose(ours.predict(data), theirs.predict(data), rtol=1e-4, atol=1e-5)


def test_ranking_on_two_actors_gives_the_model_of_one_process() -> None:
    table = _table(seed=1)
    params = TREES | {"objective": "rank:ndcg", "eval_metric": "ndcg@5"}
    data = _table_of(table).to_dmatrix(label="label", group="group")
    metrics: dict[str, Any] = {}
    ours = train(
        params,
        data,
        num_boost_round=8,
        ray_params=TWO_ACTORS,
        evals=[(data, "train")],
        evals_result=metrics,
        verbose_eval=False,
    )

    local, local_metrics = _local(table, "group"), {}
    theirs = xgboost.train(
        params, local, 8, evals=[(local, "train")], evals_result=local_metrics, verbose_eval=False
    )
    _same_predictions(ours, theirs)
    np.testing.assert_allclose(
        metrics["train"]["ndcg@5"], local_metrics["train"]["ndcg@5"], rtol=1e-5
    )


def test_early_stopping_ends_in_the_round_in_which_it_ends_in_one_process() -> None:
    table, other = _table(seed=1), _table(seed=2)
    params = TREES | {"objective": "reg:squarederror", "eval_metric": "rmse"}
    metrics: dict[str, Any] = {}
    ours = train(
        params,
        _table_of(table).to_dmatrix(label="label", ignore=["group"]),
        num_boost_round=200,
        ray_params=TWO_ACTORS,
        evals=[(_table_of(other).to_dmatrix(label="label", ignore=["group"]), "other")],
        evals_result=metrics,
        early_stopping_rounds=3,
        verbose_eval=False,
    )

    local_metrics: dict[str, Any] = {}
    theirs = xgboost.train(
        params,
        _local(table),
        200,
        evals=[(_local(other), "other")],
        evals_result=local_metrics,
        early_stopping_rounds=3,
        verbose_eval=False,
    )
    assert ours.best_iteration == theirs.best_iteration < 190
    np.testing.assert_allclose(metrics["other"]["rmse"], local_metrics["other"]["rmse"], rtol=1e-5)
    _same_predictions(ours, theirs)


def _killer(marker: Path) -> xgboost.callback.TrainingCallback:
    class Killer(xgboost.callback.TrainingCallback):  # Local, hence pickled by value.
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            from xgboost_ray.session import get_actor_rank

            if get_actor_rank() == 1 and epoch == 6 and not marker.exists():
                marker.touch()
                time.sleep(3)  # The driver looks for checkpoints once a second.
                os.kill(os.getpid(), signal.SIGKILL)
            return False

    return Killer()


def test_training_goes_on_from_the_checkpoint_when_an_actor_is_killed(tmp_path: Path) -> None:
    table, marker = _table(seed=1), tmp_path / "killed"
    params = TREES | {"objective": "reg:squarederror"}
    data = _table_of(table).to_dmatrix(label="label", ignore=["group"])
    metrics: dict[str, Any] = {}
    ours = train(
        params,
        data,
        num_boost_round=12,
        ray_params=TWO_ACTORS | {"max_actor_restarts": 1, "checkpoint_frequency": 2},
        evals=[(data, "train")],
        evals_result=metrics,
        callbacks=[_killer(marker)],
        verbose_eval=False,
    )

    assert marker.exists()
    assert ours.num_boosted_rounds() == 12
    assert 0 < len(metrics["train"]["rmse"]) < 12, "not resumed from a checkpoint"
    _same_predictions(ours, xgboost.train(params, _local(table), 12))


def test_a_failed_training_gives_its_cpus_back() -> None:
    data = Table.from_arrow(pa.Table.from_pandas(_table(seed=1))).to_dmatrix(
        label="label", ignore=["group"]
    )
    with pytest.raises(RuntimeError, match="maximum number of shards is 1"):
        train(TREES, data, num_boost_round=1, ray_params=TWO_ACTORS)

    deadline = time.monotonic() + 20
    while any(group["state"] != "REMOVED" for group in placement_group_table().values()):
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(0.1)
