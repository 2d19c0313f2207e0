"""The patched driver of xgboost-ray: its internals, and plain xgboost-ray beside it."""

import inspect
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import xgboost
import xgboost_ray
from xgboost_ray import RayParams, elastic, main

from raysys.data import Table
from raysys.train import BoostSettings, boost
from raysys.train.boosting import _xgboost_ray_patches as patches
from raysys.train.boosting._actor import BoostActor

VERSIONS = f"{xgboost_ray.__version__}, XGBoost {xgboost.__version__}, Ray {ray.__version__}"
MOVED = (
    f"other internals than raysys patches (xgboost-ray {VERSIONS}): {{}}. "
    "Check raysys/train/boosting/_xgboost_ray_patches.py against them"
)


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (main._start_rabit_tracker, ["num_workers"]),
        (main._stop_rabit_tracker, ["rabit_process"]),
        (main._handle_queue, ["queue", "checkpoint", "callback_returns"]),
        (main.placement_group, ["bundles", "strategy"]),
        (xgboost.RabitTracker, ["n_workers", "host_ip", "sortby"]),
        (xgboost.RabitTracker.wait_for, ["timeout"]),
        (xgboost.RabitTracker.free, []),
        (xgboost.RabitTracker.worker_args, []),
        (main.RayXGBoostActor, parameters(BoostActor)),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_replaced_functions_have_the_expected_parameters(
    function: Any, expected: list[str]
) -> None:
    missing = [name for name in expected if name not in parameters(function)]
    assert not missing, MOVED.format(f"{function.__qualname__} has no parameters {missing}")


def test_the_driver_uses_what_is_replaced() -> None:
    for module, text in (
        (main, "actor_cls = _RemoteRayXGBoostActor.options("),
        (main, "rabit_process, rabit_args = _start_rabit_tracker(alive_actors)"),
        (main, "_stop_rabit_tracker(rabit_process)"),
        (main, "pg = placement_group(bundles, strategy=strategy)"),
        (main, "boost_rounds_left -= checkpoint.iteration + 1"),
        (main, 'kwargs["xgb_model"] = pickle.loads(_training_state.checkpoint.value)'),
        (main, "from xgboost_ray.elastic import ("),
        (elastic, "from xgboost_ray.main import ("),
        (elastic, "ENV.ELASTIC_RESTART_RESOURCE_CHECK_S"),
        (elastic, "ENV.ELASTIC_RESTART_GRACE_PERIOD_S"),
    ):
        assert text in inspect.getsource(module), MOVED.format(f"{module.__name__}: no {text!r}")
    called = [name for name in dir(BoostActor) if not name.startswith("_")]
    missing = [name for name in called if not hasattr(main.RayXGBoostActor, name)]
    assert not missing, MOVED.format(f"RayXGBoostActor has no {missing}")


@pytest.mark.usefixtures("ray_cluster")
def test_plain_xgboost_ray_trains_a_table_after_boost(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 30, size=(400, 3)).astype(np.float32)
    columns = {f"x{n}": features[:, n] for n in range(3)}
    rows = pa.table({**columns, "y": (features[:, 0] > 12).astype(np.float32)})
    table = Table.from_arrow(rows, rows_per_block=100)
    originals, settings = dict(vars(main)), vars(main.ENV).copy()

    ours = boost(table, BoostSettings(objective="binary:logistic", num_boost_round=3), label="y")
    assert ours.num_boosted_rounds == 3
    changed = [name for name, value in originals.items() if getattr(main, name) is not value]
    assert not changed
    assert vars(main.ENV) == settings
    assert elastic._create_actor is main._create_actor

    params = {"objective": "binary:logistic", "tree_method": "hist", "base_score": 0.5}
    for name in ("_start_rabit_tracker", "_stop_rabit_tracker"):
        # With its own tracker the release fails on XGBoost 3.
        monkeypatch.setattr(main, name, getattr(patches, name))
    booster = xgboost_ray.train(
        params, table.to_dmatrix(label="y"), 3,
        ray_params=RayParams(num_actors=2, cpus_per_actor=1, max_actor_restarts=0),
    )  # fmt: skip
    local = xgboost.train(params, xgboost.DMatrix(features, rows["y"].to_numpy()), 3)
    np.testing.assert_allclose(
        booster.inplace_predict(features), local.inplace_predict(features), rtol=1e-4
    )
