"""Results of steps read after their run."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.data import Table
from raysys.errors import RaysysError, StorageError
from raysys.storage import Storage
from raysys.workflow import runs
from raysys.workflow._step_results import save
from tests.workflow import steps

RUN = "films-20261130-120000-ab12"


@pytest.fixture
def recorded(storage: Storage) -> Storage:
    """A run with a result of one step, a failed step and a waiting one."""
    write(storage, RUN, {"load": "done", "train towers": "failed", "serve": "waiting"})
    save(storage, "steps/films/load/key-load/result", {"rows": [1, 2]})
    return storage


def write(storage: Storage, run: str, states: dict[str, str]) -> None:
    entries: list[dict[str, Any]] = [
        {"name": name, "state": state, "key": f"key-{name}"} for name, state in states.items()
    ]
    for entry in entries:
        if entry["state"] == "failed":
            entry["error"] = "ValueError: no rows"
    storage.write_json(f"runs/{run}/run.json", {"id": run, "job": "films", "steps": entries})


def test_a_result_is_read_by_the_names_of_run_and_step(recorded: Storage) -> None:
    for run in (RUN, "films-2026", SimpleNamespace(name=RUN)):
        assert runs.result(run, "load", recorded) == {"rows": [1, 2]}
    states = {"load": "done", "train towers": "failed", "serve": "waiting"}
    assert runs.steps(RUN, recorded) == states


def test_unknown_names_and_missing_results_are_said(recorded: Storage) -> None:
    for run, step, message in (
        (RUN, "train tower", r"no step 'train tower' \(did you mean 'train towers'\?\); its steps"),
        (RUN, "train towers", "has no result, it is failed: ValueError: no rows; .*: 'load'"),
        (RUN, "serve", "has no result, it is waiting; steps with one: 'load'"),
        ("filns-20261130-120000-ab12", "load", rf"no run '.*' \(did you mean '{RUN}'\?\)"),
    ):
        with pytest.raises(RaysysError, match=message):
            runs.result(run, step, recorded)
    write(recorded, "films-20261130-130000-0000", {"load": "done"})
    with pytest.raises(RaysysError, match=r"2 runs match 'films', the newest: films-20261130-13"):
        runs.result("films", "load", recorded)
    recorded.remove("steps/films/load/key-load/result")
    with pytest.raises(StorageError, match=r"it was removed\. Run the job again"):
        runs.result(RUN, "load", recorded)


def test_a_result_of_code_that_is_not_there_says_so(
    recorded: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(recorded, "steps/films/load/key-load/result", steps.Config)
    monkeypatch.setitem(sys.modules, steps.__name__, None)  # as in another folder
    with pytest.raises(RaysysError, match=r"'load' needs code that this process cannot import"):
        runs.result(RUN, "load", recorded)


@pytest.mark.usefixtures("ray_cluster")
def test_tables_and_objects_are_read_without_a_cluster(recorded: Storage, tmp_path: Path) -> None:
    rows = pa.table({"x": range(5), "name": list("abcde")})
    value = {"table": Table.from_arrow(rows, 2), "held": ray.put(np.arange(3))}
    save(recorded, "steps/films/load/key-load/result", value)
    code = (
        "import ray\nfrom raysys.storage import Storage\nfrom raysys.workflow import runs\n"
        f"value = runs.result({RUN!r}, 'load', Storage({recorded.root!r}))\n"
        "print(value['table'].to_arrow().to_pydict(), value['held'].tolist(), ray.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{rows.to_pydict()} [0, 1, 2] False"
