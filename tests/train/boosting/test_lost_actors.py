"""Runs that lose actors or their driver end with the trees of an undisturbed run."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import xgboost
from ray.util import placement_group_table

from raysys.data import Table
from raysys.storage import Storage
from raysys.train import BoostSettings, boost
from raysys.train.boosting._boosting_rounds import BoostPlan, run_rounds, unpack

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Rows and columns are sampled: a run that restarted its sampler would have other trees.
SAMPLED = {"subsample": 0.7, "colsample_bytree": 0.6, "colsample_bynode": 0.8}
SETTINGS: dict[str, Any] = {
    "objective": "binary:logistic", "num_boost_round": 400, "max_depth": 4,
    "checkpoint_frequency": 5,
}  # fmt: skip


def arrays(rows: int = 40_000) -> dict[str, np.ndarray]:
    """Features of few distinct values, so that their bins do not depend on who has which rows."""
    rng = np.random.default_rng(5)
    columns = {f"x{at}": rng.integers(0, 30, rows).astype(np.float32) for at in range(8)}
    noisy = columns["x0"] * columns["x1"] / 200 + columns["x2"] / 10 + rng.normal(0, 1, rows)
    return {**columns, "y": (noisy > 2.5).astype(np.int8)}


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.from_arrow(pa.table(arrays()), rows_per_block=10_000)


def test_a_booster_resumed_from_a_checkpoint_samples_the_same_rows_and_columns() -> None:
    columns = arrays(5000)
    features = np.stack([columns[name] for name in columns if name != "y"], axis=1)
    settings = BoostSettings(
        **(SETTINGS | SAMPLED | {"num_boost_round": 20, "early_stopping_rounds": 50})
    )
    plan = BoostPlan(settings.params(), settings.num_boost_round, settings.early_stopping_rounds, 5)

    def rows() -> xgboost.QuantileDMatrix:
        return xgboost.QuantileDMatrix(features, columns["y"], nthread=1)

    whole = run_rounds(plan, rows(), rows(), after_round=lambda *_: False)
    half = run_rounds(plan, rows(), rows(), after_round=lambda b, _: b.num_boosted_rounds() == 9)
    assert unpack(half)[0].num_boosted_rounds() == 9
    resumed = run_rounds(plan, rows(), rows(), start=half, after_round=lambda *_: False)
    assert unpack(resumed)[0].get_dump(with_stats=True) == unpack(whole)[0].get_dump(
        with_stats=True
    )
    assert unpack(resumed)[1] == unpack(whole)[1]
    assert len(unpack(whole)[1].values) == 20


@contextmanager
def killing_an_actor(storage: Storage, checkpoint: str) -> Iterator[list[int]]:
    """`kill -9` an actor once a checkpoint is written; yields its pid."""
    killed: list[int] = []

    def work() -> None:
        while storage.read_bytes(checkpoint) is None:
            time.sleep(0.02)
        training = [
            process.pid
            for process in psutil.Process().children(recursive=True)
            if process.cmdline()[:1] == ["ray::BoostActor.train"]
        ]
        pid = max(training)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield killed
    thread.join(timeout=5)


@pytest.fixture(scope="module")
def undisturbed(table: Table) -> list[str]:
    """Trees of a run without failures."""
    return boost(table, BoostSettings(**SETTINGS, **SAMPLED), label="y").booster.get_dump()


def test_a_killed_actor_is_replaced_and_the_trees_are_those_of_an_undisturbed_run(
    table: Table, undisturbed: list[str], storage: Storage
) -> None:
    with killing_an_actor(storage, "boosting/killed/checkpoint.ubj") as killed:
        model = boost(
            table, BoostSettings(**SETTINGS, **SAMPLED), label="y", name="killed", storage=storage
        )
    assert len(killed) == 1
    assert model.booster.get_dump() == undisturbed
    assert not storage.exists("boosting/killed/checkpoint.ubj")
    deadline = time.monotonic() + 20
    while any(group["state"] != "REMOVED" for group in placement_group_table().values()):
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(0.1)


def test_the_living_actors_take_over_the_rows_of_a_lost_one(table: Table, storage: Storage) -> None:
    settings = BoostSettings(**SETTINGS, min_actors=1)
    with killing_an_actor(storage, "boosting/elastic/checkpoint.ubj") as killed:
        model = boost(table, settings, label="y", name="elastic", storage=storage)
    assert len(killed) == 1
    assert model.num_boosted_rounds == SETTINGS["num_boost_round"]
    # Without sampling and with all rows: the trees of one process, but for rounding.
    columns = arrays()
    features = np.stack([columns[name] for name in columns if name != "y"], axis=1)
    alone = xgboost.train(
        settings.params(), xgboost.QuantileDMatrix(features, columns["y"], nthread=1), 400
    )
    predicted = model.predict_batch(columns)["probability_1"]
    difference = np.abs(predicted - alone.inplace_predict(features))
    assert np.quantile(difference, 0.99) < 1e-2
    assert difference.mean() < 2e-3


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import pyarrow as pa
from raysys import cluster
from raysys.data import Table
from raysys.storage import Storage
from raysys.train import BoostSettings, boost
from tests.train.boosting.test_lost_actors import SAMPLED, SETTINGS, arrays
cluster.connect({address!r})
table = Table.from_arrow(pa.table(arrays()), rows_per_block=10_000)
settings = BoostSettings(**SETTINGS, **SAMPLED)
boost(table, settings, label="y", name="lost", storage=Storage({root!r}))
"""


def test_after_a_killed_driver_the_same_call_resumes_the_run(
    table: Table, undisturbed: list[str], storage: Storage
) -> None:
    address = ray.get_runtime_context().gcs_address
    tests = str(Path(__file__).parents[3])
    code = DRIVER.format(tests=tests, address=address, root=storage.root)
    driver = subprocess.Popen([sys.executable, "-c", code])
    try:
        while storage.read_bytes("boosting/lost/checkpoint.ubj") is None:
            assert driver.poll() is None, "the driver ended before a checkpoint was written"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    before = unpack(storage.read_bytes("boosting/lost/checkpoint.ubj") or b"")[0]
    assert 0 < before.num_boosted_rounds() < SETTINGS["num_boost_round"]
    assert not storage.exists("boosting/lost/model")
    model = boost(
        table, BoostSettings(**SETTINGS, **SAMPLED), label="y", name="lost", storage=storage
    )
    assert model.booster.get_dump() == undisturbed
