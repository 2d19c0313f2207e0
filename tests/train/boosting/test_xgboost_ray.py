"""Boosting through lost actors and a lost driver ends with the trees of an undisturbed run."""

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
from raysys.train.boosting._grow_trees import GrowPlan, grow, unpacked

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Rows and columns are drawn, so that a run that begins its draws anew grows other trees.
SAMPLED = {"subsample": 0.7, "colsample_bytree": 0.6, "colsample_bynode": 0.8}
SETTINGS: dict[str, Any] = {
    "objective": "binary:logistic", "rounds": 400, "max_depth": 4, "checkpoint_rounds": 5,
}  # fmt: skip


def arrays(rows: int = 40_000) -> dict[str, np.ndarray]:
    """Features of few distinct values, so that their bins do not depend on who has which rows."""
    rng = np.random.default_rng(5)
    columns = {f"x{at}": rng.integers(0, 30, rows).astype(np.float32) for at in range(8)}
    noisy = columns["x0"] * columns["x1"] / 200 + columns["x2"] / 10 + rng.normal(0, 1, rows)
    return {**columns, "y": (noisy > 2.5).astype(np.int8)}


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.from_arrow(pa.table(arrays()), rows_a_block=10_000)


def test_a_booster_that_goes_on_from_a_checkpoint_draws_the_same_rows_and_columns() -> None:
    columns = arrays(5000)
    features = np.stack([columns[name] for name in columns if name != "y"], axis=1)
    settings = BoostSettings(**(SETTINGS | SAMPLED | {"rounds": 20, "patience": 50}))
    plan = GrowPlan(settings.params(), settings.rounds, settings.patience, 5)

    def rows() -> xgboost.QuantileDMatrix:
        return xgboost.QuantileDMatrix(features, columns["y"], nthread=1)

    whole = grow(plan, rows(), rows(), after_round=lambda *_: False)
    half = grow(plan, rows(), rows(), after_round=lambda b, _: b.num_boosted_rounds() == 9)
    assert unpacked(half)[0].num_boosted_rounds() == 9
    went_on = grow(plan, rows(), rows(), start=half, after_round=lambda *_: False)
    assert unpacked(went_on)[0].get_dump(with_stats=True) == unpacked(whole)[0].get_dump(
        with_stats=True
    )
    assert unpacked(went_on)[1] == unpacked(whole)[1]
    assert len(unpacked(whole)[1].values) == 20


@contextmanager
def killing_an_actor(storage: Storage, checkpoint: str) -> Iterator[list[int]]:
    """Once a checkpoint is there, `kill -9` an actor; gives its pid."""
    killed: list[int] = []

    def work() -> None:
        while storage.read_bytes(checkpoint) is None:
            time.sleep(0.02)
        growing = [
            process.pid
            for process in psutil.Process().children(recursive=True)
            if process.cmdline()[:1] == ["ray::Actor.train"]
        ]
        pid = max(growing)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield killed
    thread.join(timeout=5)


@pytest.fixture(scope="module")
def undisturbed(table: Table) -> list[str]:
    """The trees of a run that nothing happens to."""
    return boost(table, BoostSettings(**SETTINGS, **SAMPLED), label="y").booster.get_dump()


def test_a_killed_actor_is_replaced_and_the_trees_are_those_of_an_undisturbed_run(
    table: Table, undisturbed: list[str], storage: Storage
) -> None:
    with killing_an_actor(storage, "boosting/killed/checkpoint.ubj") as killed:
        ours = boost(
            table, BoostSettings(**SETTINGS, **SAMPLED), label="y", name="killed", storage=storage
        )
    assert len(killed) == 1
    assert ours.booster.get_dump() == undisturbed
    assert not storage.exists("boosting/killed/checkpoint.ubj")
    deadline = time.monotonic() + 20
    while any(group["state"] != "REMOVED" for group in placement_group_table().values()):
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(0.1)


def test_the_living_take_over_the_rows_of_a_lost_actor_and_go_on(
    table: Table, storage: Storage
) -> None:
    settings = BoostSettings(**SETTINGS, min_actors=1)
    with killing_an_actor(storage, "boosting/elastic/checkpoint.ubj") as killed:
        ours = boost(table, settings, label="y", name="elastic", storage=storage)
    assert len(killed) == 1
    assert ours.rounds == SETTINGS["rounds"]
    # Nothing is drawn and no row is lost: the trees of one process, but for rounding.
    columns = arrays()
    features = np.stack([columns[name] for name in columns if name != "y"], axis=1)
    alone = xgboost.train(
        settings.params(), xgboost.QuantileDMatrix(features, columns["y"], nthread=1), 400
    )
    found = ours.predict_batch(columns)["probability_1"]
    difference = np.abs(found - alone.inplace_predict(features))
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
from tests.train.test_xgboost_ray import SAMPLED, SETTINGS, arrays
cluster.connect({address!r})
table = Table.from_arrow(pa.table(arrays()), rows_a_block=10_000)
settings = BoostSettings(**SETTINGS, **SAMPLED)
boost(table, settings, label="y", name="lost", storage=Storage({root!r}))
"""


def test_after_a_killed_driver_the_same_call_ends_with_the_trees_of_an_undisturbed_run(
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
    before = unpacked(storage.read_bytes("boosting/lost/checkpoint.ubj") or b"")[0]
    assert 0 < before.num_boosted_rounds() < SETTINGS["rounds"]
    assert not storage.exists("boosting/lost/model")
    ours = boost(
        table, BoostSettings(**SETTINGS, **SAMPLED), label="y", name="lost", storage=storage
    )
    assert ours.booster.get_dump() == undisturbed
