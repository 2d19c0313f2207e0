"""What is written to an open run, read back with MLflow's own client."""

import logging
import math
import pickle
import time
import uuid
from datetime import datetime
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import RaysysError, StorageError
from raysys.storage import Storage
from raysys.tracking import Runs, TrackedRun, open_run
from raysys.tracking._tracking_server import TrackingTarget


@pytest.fixture
def client(mlflow_database: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(mlflow_database)


@pytest.fixture
def run(storage: Storage) -> TrackedRun:
    return open_run(storage, uuid.uuid4().hex, "net")


def curve(client: mlflow.MlflowClient, run: TrackedRun, name: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in client.get_metric_history(run.run_id, name)]


def test_a_curve_longer_than_a_batch_comes_whole(
    client: mlflow.MlflowClient, run: TrackedRun
) -> None:
    values = np.random.default_rng(0).normal(size=2500)
    for step, value in enumerate(values):
        run.log({"loss": value, "samples_per_s": 10.0}, step=step)
    run.log_curve("epochs", list(values[:7]))
    run.end("FINISHED")
    assert curve(client, run, "loss") == list(enumerate(values))
    assert curve(client, run, "epochs") == list(enumerate(values[:7], 1))
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_points_are_written_without_a_flush(client: mlflow.MlflowClient, run: TrackedRun) -> None:
    run.log({"loss": 1.0}, step=3)
    until = time.monotonic() + 30
    while not curve(client, run, "loss"):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_is_not_finite_is_kept(client: mlflow.MlflowClient, run: TrackedRun) -> None:
    run.log_curve("loss", [1.0, math.nan, math.inf])
    run.end("FAILED", {"final": math.nan})
    (_, first), (_, second), (_, third) = curve(client, run, "loss")
    assert (first, math.isnan(second), third > 1e300) == (1.0, True, True)
    assert math.isnan(client.get_run(run.run_id).data.metrics["final"])


@pytest.mark.parametrize(
    ("given", "kept"),
    [("ndcg@10", "ndcg_10"), ("../up", "__up"), ("a//b", "a__b"), ("test: auc/1", "test: auc/1")],
)
def test_any_name_is_taken(
    client: mlflow.MlflowClient, run: TrackedRun, given: str, kept: str
) -> None:
    run.log({given: 1.0}, step=1)
    run.end("FINISHED", {f"{given} of all": 2.0})
    assert client.get_run(run.run_id).data.metrics == {kept: 1.0, f"{kept} of all": 2.0}


def test_results_do_not_bend_curves(client: mlflow.MlflowClient, run: TrackedRun) -> None:
    run.log_curve("loss", [3.0, 2.0])
    run.log_curve("auc", [0.6, 0.5])
    run.end("FINISHED", {"loss": 2.0, "auc": 0.6, "trees": 5})
    assert curve(client, run, "auc") == [(1, 0.6), (2, 0.5)]
    assert client.get_run(run.run_id).data.metrics == {
        "loss": 2.0, "auc": 0.5, "auc result": 0.6, "trees": 5.0,
    }  # fmt: skip


def test_a_continued_run_ends_with_its_latest_results(
    client: mlflow.MlflowClient, storage: Storage
) -> None:
    kind = uuid.uuid4().hex
    open_run(storage, kind, "net").end("FAILED", {"auc": 0.5, "same": 1.0})
    again = open_run(storage, kind, "net")
    again.end("FINISHED", {"auc": 0.4, "same": 1.0})
    assert client.get_run(again.run_id).data.metrics == {"auc": 0.4, "same": 1.0}
    assert len(curve(client, again, "same")) == 1


def test_a_run_is_written_to_from_where_it_was_sent(
    client: mlflow.MlflowClient, run: TrackedRun
) -> None:
    run.log_curve("loss", [3.0, 2.0])
    run.flush()
    sent: TrackedRun = pickle.loads(pickle.dumps(run))
    sent.log_curve("loss", [3.0, 2.0, 1.0])
    sent.flush()
    assert curve(client, run, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_meter_is_read_at_once_and_at_the_end(
    client: mlflow.MlflowClient, run: TrackedRun
) -> None:
    reads = iter([{"cpu_percent": 10.0}, {"cpu_percent": 20.0}])
    run.watch(lambda: next(reads))
    until = time.monotonic() + 30
    while not curve(client, run, "system/cpu_percent"):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1.1)  # the curve's steps are whole seconds
    run.end("FINISHED")
    values = [value for _, value in curve(client, run, "system/cpu_percent")]
    assert values == [10.0, 20.0]


def test_a_server_that_goes_away_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        run = TrackedRun(TrackingTarget("http://127.0.0.1:9", None, None), "0" * 32)
        run.watch(lambda: {"cpu_percent": 1.0})
        with caplog.at_level(logging.WARNING, "raysys.tracking"):
            run.log_curve("loss", [1.0, 2.0])
            run.flush()
            run.log_tags({"a": 1})
            run.log_rows("predictions", pa.table({"x": [1]}))
            run.end("FINISHED", {"auc": 0.5})
    assert "curves are buffered until MLflow accepts them" in caplog.text
    assert "2 points of curves" in caplog.text


def test_rows_are_read_back(
    storage: Storage, run: TrackedRun, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = pa.table({
        "id": [3, 1, None],
        "score": [0.25, math.nan, 1e-9],
        "title": ["é", "b", None],
        "films": [[1, 2], [], None],
        "at": [datetime(2013, 1, 1), None, None],
    })  # fmt: skip
    run.log_rows("predictions", rows)
    run.log_rows("nothing", rows.slice(0, 0))
    runs = Runs(storage)
    record = runs.find(run.run_id)
    kept = runs.rows(record, "predictions").to_pydict()
    assert kept == {
        **rows.to_pydict(), "score": [0.25, None, 1e-9], "at": ["2013-01-01 00:00:00", None, None],
    }  # fmt: skip
    assert runs.rows(record, "nothing").column_names == rows.column_names
    assert capfd.readouterr().err == ""  # no progress bars of MLflow
    with pytest.raises(RaysysError, match="sample 'other'; it has: nothing, predictions"):
        runs.rows(record, "other")
    (file,) = Path(storage.root).rglob("nothing.json")
    file.write_text('{"columns": [')
    with pytest.raises(StorageError, match=f"'nothing' of run '{record.name}' is damaged"):
        runs.rows(record, "nothing")


def test_of_many_rows_some_are_kept_at_even_distances(storage: Storage, run: TrackedRun) -> None:
    run.log_rows("predictions", pa.table({"x": range(5000)}))
    runs = Runs(storage)
    kept = np.array(runs.rows(runs.find(run.run_id), "predictions")["x"])
    assert (len(kept), kept[0], kept[-1]) == (1000, 0, 4999)
    assert (
        set(np.diff(kept)) == {5, 6} or set(np.diff(kept)) == {5, 4} or np.ptp(np.diff(kept)) <= 1
    )
