"""What is opened, continued and nested, read back with MLflow's own client."""

import dataclasses
import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from pydantic import BaseModel

from raysys.errors import StorageError, UnavailableError
from raysys.storage import Storage
from raysys.tracking import git_commit, open_run, tracking_uri


@pytest.fixture
def client(mlflow_database: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(mlflow_database)


@pytest.fixture
def kind() -> str:
    """An experiment of the test's own in the database that all share."""
    return uuid.uuid4().hex


def test_settings_code_and_data_can_be_searched(
    client: mlflow.MlflowClient, storage: Storage, kind: str
) -> None:
    class Optimizer(BaseModel):
        rate: float = 0.1

    @dataclasses.dataclass
    class Task:
        width: int = 8

    table = SimpleNamespace(lineage=SimpleNamespace(id="abc", rows=None, fingerprint="f00"))
    settings = {"seed": 7, "optimizer": Optimizer(), "task": Task(), "a": {"b": {"c": [1, 2]}}}
    run = open_run(
        storage, kind, "m", settings=settings, tables={"train": table, "test": "f01"},
        tags={"strategy": "ddp"},
    )  # fmt: skip
    run.end("FINISHED")
    where = [client.get_experiment_by_name(kind).experiment_id]
    wanted = (
        "params.seed = '7' AND params.`optimizer.rate` = '0.1' AND params.`task.width` = '8' "
        "AND params.`a.b.c` = '[1, 2]' AND tags.`data.train.fingerprint` = 'f00' "
        "AND tags.`data.train.lineage` = 'abc' AND tags.`data.test.fingerprint` = 'f01' "
        "AND tags.strategy = 'ddp'"
    )
    (found,) = client.search_runs(where, wanted)
    assert (found.info.run_id, found.info.run_name) == (run.run_id, "m")
    assert "data.train.rows" not in found.data.tags
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert found.data.tags["mlflow.source.git.commit"] == git_commit()
    assert git_commit().startswith(head.strip())
    import torch

    assert found.data.tags["package.torch"] == torch.__version__


def test_more_settings_and_tags_than_mlflow_takes_at_once(
    client: mlflow.MlflowClient, storage: Storage, kind: str
) -> None:
    many = {f"s{number} (%)": "x" * number * 40 for number in range(230)}
    data = client.get_run(open_run(storage, kind, "m", settings=many, tags=many).run_id).data
    assert len(data.params) == 230
    assert data.params["s100 ___"] == "x" * 4000
    assert len(data.params["s229 ___"]) == len(data.tags["s229 ___"]) == 5000


def test_a_run_whose_driver_died_is_continued(
    client: mlflow.MlflowClient, storage: Storage, kind: str
) -> None:
    first = open_run(storage, kind, "it's", settings={"workers": 2, "rate": 1})
    for step in range(1, 6):
        first.log({"loss": 1 / step}, step)
    first.flush()
    second = open_run(storage, kind, "it's", settings={"workers": 4, "rate": 1, "new": 5})
    assert second.run_id == first.run_id
    for step in range(4, 9):  # from the checkpoint of step 3 on, with another last bit
        second.log({"loss": 1 / step + 1e-9, "late": step}, step)
    second.flush()
    points = [(one.step, one.value) for one in client.get_metric_history(first.run_id, "loss")]
    assert sorted(points) == [(step, 1 / step + (1e-9 if step > 5 else 0)) for step in range(1, 9)]
    assert len(client.get_metric_history(first.run_id, "late")) == 5
    found = client.get_run(first.run_id)
    assert found.data.params == {"workers": "2", "rate": "1", "new": "5"}
    assert found.data.tags["now.workers"] == "4"
    assert "now.rate" not in found.data.tags


def test_what_is_another_run(client: mlflow.MlflowClient, storage: Storage, kind: str) -> None:
    def opened(name: str, rate: int, **more: bool) -> str:
        run = open_run(storage, kind, name, settings={"rate": rate}, **more)
        run.log({"loss": 1.0}, 1)
        run.end("FINISHED", {"auc": 0.5})
        return run.run_id

    first = opened("m", 1)
    assert opened("n", 1) != first
    assert opened("m", 1) == first  # submitted again, as it was
    assert client.get_run(first).info.status == "FINISHED"
    changed = opened("m", 2)
    assert changed != first
    lost = open_run(storage, kind, "m", settings={"rate": 2})
    assert lost.run_id == changed
    assert client.get_run(changed).info.status == "RUNNING"
    anew = open_run(storage, kind, "m", settings={"rate": 2}, fresh=True)
    assert anew.run_id != changed
    assert client.get_run(changed).info.status == "KILLED"
    # Nothing stands in it yet that beginning anew would double.
    assert open_run(storage, kind, "m", fresh=True).run_id == anew.run_id


def test_the_folder_of_a_run_makes_parts_of_it(
    client: mlflow.MlflowClient, storage: Storage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_run(storage, kind, "job")
    folder, deeper = Storage(storage.uri("runs/job")), Storage(storage.uri("runs/job/search"))
    job.nest(folder)
    search = open_run(folder, "search", "rate")
    search.nest(deeper)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # a process that knows the folder alone
    trial = open_run(deeper, "trial", "0")
    again = open_run(deeper, "trial", "0")
    top = {run.run_id: client.get_run(run.run_id) for run in (job, search, trial)}
    assert again.run_id == trial.run_id
    assert top[search.run_id].data.tags["mlflow.parentRunId"] == job.run_id
    assert top[trial.run_id].data.tags["mlflow.parentRunId"] == search.run_id
    assert "mlflow.parentRunId" not in top[job.run_id].data.tags
    assert len({run.info.experiment_id for run in top.values()}) == 1
    assert not list(Path(storage.root).rglob("*.db"))


def test_parts_of_two_jobs_are_two_runs(storage: Storage, kind: str) -> None:
    found = set()
    for name in ("one", "two"):
        folder = Storage(storage.uri(f"runs/{name}"))
        open_run(storage, kind, name).nest(folder)
        found.add(open_run(folder, "training", "net").run_id)
    assert len(found) == 2


OPENED = """
import os, signal, sys
from raysys.storage import Storage
from raysys.tracking import open_run
run = open_run(Storage(sys.argv[1]), "training", "net")
run.log_curve(f"loss {sys.argv[2]}", [3.0, 2.0, 1.0])
run.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_two_processes_make_one_local_database_and_one_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPENED, storage.root, which], stderr=subprocess.PIPE
        )
        for which in "ab"
    ]
    for process in started:
        said = process.communicate(timeout=150)[1]
        assert process.returncode == -signal.SIGKILL, said.decode()
    uri = f"sqlite:///{storage.root}/mlflow.db"
    assert tracking_uri(storage) == uri
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert run.info.status == "RUNNING"
    for which in "ab":
        history = client.get_metric_history(run.info.run_id, f"loss {which}")
        assert [(one.step, one.value) for one in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    run_again = open_run(storage, "training", "net")
    assert run_again.run_id == run.info.run_id
    run_again.end("FINISHED")


def test_a_password_is_written_nowhere(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from raysys.tracking._tracking_server import target_of, write_pointer

    secret = "postgresql://ray:hunter2@host/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    folder = Storage(storage.uri("runs/a"))
    write_pointer(folder, target_of(storage), "0" * 32)
    assert "hunter2" not in (Path(folder.root) / "tracking.json").read_text()
    assert target_of(folder).uri == secret
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ray:hunter2@other/mlflow")
    assert target_of(folder).uri == "postgresql://ray:***@host/mlflow"


def test_a_remote_root_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(StorageError, match="is not set: set it to an MLflow server"):
        open_run(Storage("mock:///bucket"), "training", "net")


def test_a_server_that_is_away_is_said_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ray:hunter2@127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"MLflow at http://ray:\*\*\*@127.0.0.1:9 does not"):
        open_run(storage, "training", "net")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://no.such")
    with pytest.raises(UnavailableError, match="does not answer"):
        open_run(storage, "training", "net")


def test_a_deleted_experiment_is_said(
    client: mlflow.MlflowClient, storage: Storage, kind: str
) -> None:
    open_run(storage, kind, "net").end("FINISHED")
    number = client.get_experiment_by_name(kind).experiment_id
    client.delete_experiment(number)
    with pytest.raises(StorageError, match=f"mlflow experiments restore --experiment-id {number}"):
        open_run(storage, kind, "net")


def test_files_of_runs_stand_under_the_root(storage: Storage, kind: str) -> None:
    import pyarrow as pa

    run = open_run(storage, kind, "net")
    run.log_rows("predictions", pa.table({"x": [1]}))
    (file,) = Path(storage.root, "mlflow").rglob("predictions.json")
    assert json.loads(file.read_text()) == {"columns": ["x"], "data": [[1]]}
