"""Runs whose driver was lost, and databases that are damaged."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import mlflow
import pytest

from raysys.errors import StorageError, UnavailableError
from raysys.storage import Storage
from raysys.tracking import Runs, open_run, run_status
from raysys.tracking._tracked_run import ALIVE, LOST_S

OPENED = """
import sys, time
from raysys.storage import Storage
from raysys.tracking import open_run
storage = Storage(sys.argv[1])
open_run(storage, sys.argv[2], "net").nest(Storage(storage.uri("runs/net")))
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def client(mlflow_database: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(mlflow_database)


def let_pass(client: mlflow.MlflowClient, run_id: str, seconds: float) -> int:
    """Make a run's last sign of life older; its time in Unix ms."""
    alive_ms = int(client.get_run(run_id).data.tags[ALIVE]) - int(seconds * 1000)
    client.set_tag(run_id, ALIVE, str(alive_ms))
    return alive_ms


def test_a_run_that_was_killed_ends_with_its_last_sign_of_life(
    client: mlflow.MlflowClient, storage: Storage
) -> None:
    experiment = uuid.uuid4().hex
    command = [sys.executable, "-c", OPENED, storage.root, experiment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "open\n"
        driver.send_signal(signal.SIGKILL)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    folder = Storage(storage.uri("runs/net"))
    assert run_status(folder) == "RUNNING"
    alive_ms = let_pass(client, run.info.run_id, LOST_S)
    assert run_status(folder) == "KILLED"
    (record,) = [one for one in Runs(storage).newest(100) if one.experiment == experiment]
    assert record.status == "KILLED"
    assert record.seconds == (alive_ms - run.info.start_time) / 1000
    ended = client.get_run(run.info.run_id).info  # in MLflow's own pages as well
    assert (ended.status, ended.end_time) == ("KILLED", alive_ms)
    again = open_run(storage, experiment, "net")
    assert again.run_id == run.info.run_id
    assert run_status(folder) == "RUNNING"


def test_a_run_that_waits_long_or_was_suspended_runs(
    client: mlflow.MlflowClient, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysys.tracking._tracked_run._SIGN_EVERY_S", 0.0)
    run = open_run(storage, uuid.uuid4().hex, "net")

    def signed_within(seconds: float) -> None:
        alive_ms, until = let_pass(client, run.run_id, 3600), time.monotonic() + seconds
        while int(client.get_run(run.run_id).data.tags[ALIVE]) == alive_ms:
            assert time.monotonic() < until
            time.sleep(0.1)

    signed_within(30)
    assert Runs(storage).find(run.run_id).status == "RUNNING"
    client.set_terminated(run.run_id, "KILLED")  # by a reader, while this process was suspended
    monkeypatch.setattr("raysys.tracking._tracked_run.LOST_S", -1.0)
    signed_within(30)
    assert Runs(storage).find(run.run_id).status == "RUNNING"
    run.end("FINISHED")
    assert Runs(storage).find(run.run_id).status == "FINISHED"


def test_runs_of_other_programs_are_left_alone(
    client: mlflow.MlflowClient, storage: Storage
) -> None:
    other = client.create_run("0", start_time=1, run_name="by hand")
    assert Runs(storage).find(other.info.run_id).status == "RUNNING"


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("not a database\n" * 1000)
    else:
        path.write_bytes(content[:100] + os.urandom(4096) + content[4196:])


@pytest.mark.parametrize("kind", ["cut off", "text", "scrambled"])
def test_a_damaged_database_is_one_sentence_at_once(
    kind: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    file = Path(storage.root, "mlflow.db")
    file.parent.mkdir(exist_ok=True)
    with sqlite3.connect(file) as database:
        for table in range(50):
            database.execute(f"CREATE TABLE runs_{table} (name TEXT PRIMARY KEY)")
    database.close()
    damage(file, kind)
    said = f"MLflow's database {file} is damaged .*: restore it from a backup, or move it away"
    for action in (lambda: open_run(storage, "training", "net"), lambda: Runs(storage)):
        with pytest.raises(StorageError, match=said) as caught:
            action()
        assert "\n" not in str(caught.value)
        assert "SQL:" not in str(caught.value)


def test_a_damaged_table_of_a_database_is_one_sentence(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    whole = Storage(storage.uri("whole"))
    open_run(whole, "training", "net").end("FINISHED")
    content = bytearray(Path(whole.root, "mlflow.db").read_bytes())
    with sqlite3.connect(Path(whole.root, "mlflow.db")) as database:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'runs'"
        ((page,),) = database.execute(query)
        ((size,),) = database.execute("PRAGMA page_size")
    database.close()
    content[(page - 1) * size : page * size] = os.urandom(size)
    file = Path(storage.root, "mlflow.db")
    file.write_bytes(content)
    with pytest.raises(StorageError, match=f"{file} cannot be used .*: restore it from") as caught:
        open_run(storage, "training", "net")
    assert "\n" not in str(caught.value)


def test_a_database_that_another_process_keeps_locked_is_said(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("raysys.tracking._tracking_server._LOCKED_S", 0.2)
    open_run(storage, "training", "net").end("FINISHED")
    file = Path(storage.root, "mlflow.db")
    with sqlite3.connect(file) as database:
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match=f"{file} is locked by another process: end it"):
            open_run(storage, "training", "other")
    database.close()
    open_run(storage, "training", "other").end("FINISHED")


HALF_DONE = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")  # so that changed pages reach the file early
database.execute("BEGIN")
database.execute("CREATE TABLE half (text TEXT)")
for _ in range(2000):
    database.execute("INSERT INTO half VALUES (?)", ["x" * 1000])
os._exit(1)
"""


def test_what_a_killed_writer_left_half_done_is_not_damage(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    file = Path(storage.root, "mlflow.db")
    file.parent.mkdir(exist_ok=True)
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE whole (text TEXT)")
    database.close()
    subprocess.run([sys.executable, "-c", HALF_DONE, file], check=False)
    assert file.with_name("mlflow.db-journal").exists()
    open_run(storage, "training", "net").end("FINISHED")
    with sqlite3.connect(file) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert {"whole", "runs"} <= names
    assert "half" not in names


def test_a_database_may_be_named_relative_to_the_working_directory(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///relative.db")
    sqlite3.connect("relative.db").execute("CREATE TABLE whole (text TEXT)")
    open_run(storage, "training", "net").end("FINISHED")
    assert (tmp_path / "relative.db").stat().st_size > 100_000


def test_a_database_that_is_away_is_said_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ray:hunter2@127.0.0.1:9/mlflow")
    said = r"MLflow at postgresql://ray:\*\*\*@127.0.0.1:9/mlflow does not answer .*refused"
    with pytest.raises(UnavailableError, match=said):
        open_run(storage, "training", "net")


def test_a_folder_of_a_run_that_is_gone_names_the_way_out(
    client: mlflow.MlflowClient, storage: Storage
) -> None:
    run = open_run(storage, uuid.uuid4().hex, "job")
    folder = Storage(storage.uri("runs/job"))
    run.nest(folder)
    Path(folder.root, "tracking.json").write_text(
        Path(folder.root, "tracking.json").read_text().replace(run.run_id, "0" * 32)
    )
    with pytest.raises(StorageError, match=rf"remove {folder.uri('tracking.json')}"):
        open_run(folder, "training", "net")
