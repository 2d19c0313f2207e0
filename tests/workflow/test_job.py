"""Jobs of steps on a cluster: runs, skipped steps, retries and records."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import ray

from raysys.cluster import Resources
from raysys.errors import DataError, RaysysError, ResourceError, StepError
from raysys.identity._code_digest import forget_sources
from raysys.storage import Storage
from raysys.workflow import Job, draw_record
from raysys.workflow._step_results import load
from tests.workflow import steps
from tests.workflow.steps import Config, counted

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def ran(tmp_path: Path) -> str:
    folder = tmp_path / "ran"
    folder.mkdir()
    return str(folder)


def chain(storage: Storage, ran: str, n: int = 4) -> Job:
    job = Job("chained_job", Config(), storage)
    made = job.step(steps.make, ran, n)
    product = job.step(steps.tripled, ran, made["table"])
    job.step(steps.total, ran, made, product=product)
    return job


def record(job: Job) -> dict:
    return json.loads(Path(job.storage.uri(f"runs/{job.run_id}/run.json")).read_text())


def states(job: Job) -> list[str]:
    return [step["state"] for step in record(job)["steps"]]


def test_a_second_run_takes_every_result_from_the_first(
    storage: Storage, ran: str, mlflow_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = chain(storage, ran)
    first.run()
    said = capsys.readouterr().out
    assert "object store" not in said
    lines = (r"\[make\] \.\.\.", "numbers: 4 rows", "made\n", r"\[make\] \d+\.\d s\n")
    places = [re.search(line, said).start() for line in lines]
    assert places == sorted(places)  # lines of the step, brought to the driver
    second = chain(storage, ran)
    second.run(verbose=True)
    assert counted(ran) == {"make": 1, "tripled": 1, "total": 1}
    assert states(first) == ["done"] * 3
    assert states(second) == ["skipped"] * 3
    assert second.progress["total"].result == first.progress["total"].result
    one, two = record(first), record(second)
    assert two["metrics"] == one["metrics"] == {"rows": 4}
    assert two["facts"]["tables"]["numbers"]["rows"] == 4
    assert {step["run"] for step in two["steps"]} == {first.run_id}
    client = mlflow.MlflowClient(mlflow_database)
    where = [client.get_experiment_by_name("chained_job").experiment_id]
    (found,) = client.search_runs(where, f"attributes.run_name = '{second.run_id}'")
    assert found.info.status == "FINISHED"
    assert found.data.metrics["rows"] == 4
    assert found.data.metrics["sum"] == 18
    assert found.data.params == {"seed": "3", "rate": "0.5"}
    assert found.data.tags["data.numbers.rows"] == "4"


def test_a_changed_parameter_runs_the_step_and_its_dependents_again(
    storage: Storage, ran: str
) -> None:
    chain(storage, ran).run()
    changed = chain(storage, ran, n=5)
    changed.run()
    assert states(changed) == ["done"] * 3


def test_a_step_runs_again_when_code_that_it_names_changes(
    storage: Storage, ran: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(storage, ran).run()
    read_text = Path.read_text

    def edited(path: Path) -> str:
        text = read_text(path)
        is_edited = path == Path(steps.__file__)
        return text.replace("FACTOR = 3", "FACTOR = 4") if is_edited else text

    monkeypatch.setattr(Path, "read_text", edited)
    forget_sources()
    again = chain(storage, ran)
    again.run()
    assert states(again) == ["skipped", "done", "skipped"]  # the worker still multiplies by 3
    monkeypatch.undo()
    forget_sources()


def test_partials_and_objects_run_again_when_what_they_hold_changes(
    storage: Storage, ran: str
) -> None:
    def scaled(by: int, more: int) -> Job:
        job = Job("scaled_job", Config(), storage)
        first = job.step(steps.Scaled(by), ran, 2)
        second = functools.partial(steps.Scaled(10), more=more)
        second.__name__ = "second"  # type: ignore[attr-defined]
        job.step(second, ran, first)
        job.run()
        return job

    results = []
    for more in (1, 2):
        job = scaled(3, more)
        results.append((states(job), load(storage, job.progress["second"].result)))
    assert results == [(["done", "done"], 61), (["skipped", "done"], 62)]


def test_from_runs_a_step_and_its_dependents_again(storage: Storage, ran: str) -> None:
    chain(storage, ran).run()
    again = chain(storage, ran)
    again.run("tripled")
    assert states(again) == ["skipped", "done", "done"]
    with pytest.raises(RaysysError, match="no step 'triple'; there are 'make', 'tripled'"):
        chain(storage, ran).run("triple")


@pytest.mark.parametrize("how", ["dies", "hangs", "raises ConnectionError"])
def test_a_lost_step_is_retried(
    how: str, storage: Storage, ran: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job("lossy_job", Config(), storage)
    step = job.step(steps.fail_once, ran, how)
    step.options(timeout_s=5 if how == "hangs" else None)
    job.run()
    assert counted(ran) == {"fail once": 2}
    said = capsys.readouterr().out
    assert "failure 1 of max_retries=2" in said
    if how == "hangs":
        assert "took longer than timeout_s=5" in said


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("KeyError", "KeyError: 'b' at tests/workflow/steps.py:"),
        ("ray", "KeyError: 'b' at tests/workflow/steps.py:"),
        ("OddError", "OddError: 7: an odd error at tests/workflow/steps.py:"),
        ("SystemExit", "SystemExit: no film left at tests/workflow/steps.py:"),
    ],
)
def test_a_failed_step_is_told_once_and_in_one_line(
    how: str, line: str, storage: Storage, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Job("wrong_job", Config(), storage)
    job.step(steps.go_wrong, how)
    with pytest.raises(StepError) as raised:
        job.run()
    (note,) = raised.value.__notes__
    source = Path(steps.__file__).read_text().splitlines()
    place = raised.value.line.removeprefix(line)
    assert source[int(place) - 1].strip() in note
    assert how in source[int(place) - 2] or how == "ray"
    said = "".join(capfd.readouterr())
    assert said.count(f"[go wrong] failed: {line}{place}\n") == said.count(line) == 1
    assert "Traceback" not in said
    assert "\x1b" not in said + note
    assert "worker.py" not in note or how == "ray"
    assert f"`raysys steps {job.run_id}` prints the traceback" in said
    (step,) = record(job)["steps"]
    assert (step["error"], step["traceback"]) == (raised.value.line, note)
    assert draw_record(record(job)).endswith(note)


def test_a_lost_step_without_retries_fails(
    storage: Storage, ran: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Job("lost_job", Config(), storage)
    job.step(steps.fail_once, ran, "dies").options(max_retries=0)
    with pytest.raises(StepError, match="step 'fail once': its process was killed, ran out of"):
        job.run()
    said = "".join(capfd.readouterr())
    assert said.count("killed") == 1
    assert "\x1b" not in said


def test_a_failed_job_resumes_at_the_failed_step(
    storage: Storage, ran: str, mlflow_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> Job:
        job = Job("failing_job", Config(), storage)
        made = job.step(steps.make, ran, 2)
        job.on_failure(made, lambda _: steps.close(ran))
        job.step(steps.tripled, ran, made["table"])
        job.step(steps.refuse, ran)
        return job

    job = failing()
    with pytest.raises(DataError, match="the file is empty"):
        job.run()
    said = capsys.readouterr().out
    assert said.count("the file is empty") == 1
    assert "[refuse] failed: DataError: the file is empty: give another\n" in said
    assert "the same command resumes at [refuse]" in said
    known = record(job)
    assert known["status"] == "FAILED"
    assert known["steps"][-1]["error"] == "DataError: the file is empty: give another"
    client = mlflow.MlflowClient(mlflow_database)
    (found,) = client.search_runs([client.get_experiment_by_name("failing_job").experiment_id])
    assert (found.info.run_name, found.info.status) == (job.run_id, "FAILED")
    with pytest.raises(DataError):
        failing().run()
    assert counted(ran) == {"make": 1, "closed": 1, "tripled": 1, "refuse": 2}


def test_a_demand_beyond_the_cluster_is_refused_at_once(storage: Storage, ran: str) -> None:
    job = chain(storage, ran)
    job.steps["total"].options(resources=Resources(cpus=1000, gpus=0))
    with pytest.raises(ResourceError, match="step 'total' needs 1000 CPUs"):
        job.run()
    assert counted(ran) == {}


def test_names_and_options_are_checked(storage: Storage, ran: str) -> None:
    job = chain(storage, ran)
    with pytest.raises(RaysysError, match="two steps 'make'"):
        job.step(steps.make, ran, 1)
    with pytest.raises(RaysysError, match="unknown option 'timeout'; there are resources"):
        job.steps["make"].options(timeout=3)
    with pytest.raises(RaysysError, match="a step of another job: 'make'"):
        Job("other", Config(), storage).step(steps.tripled, ran, job.steps["make"])
    with pytest.raises(RaysysError, match="use its items by name"):
        _, _ = job.steps["make"]


def test_the_steps_are_drawn(storage: Storage, ran: str) -> None:
    job = chain(storage, ran)
    job.progress["make"].state = "done"
    assert job.diagram().splitlines() == [
        "✓ make     done",
        "· tripled  waiting            <- make",
        "· total    waiting            <- make, tripled",
    ]
    drawn = job.diagram("mermaid").splitlines()
    assert drawn[0] == "flowchart TD"
    assert '    s1["tripled<br/>waiting"]' in drawn
    assert "    s0 --> s1" in drawn
    assert "    class s0 done" in drawn


def test_unchanged_steps_are_drawn_as_skipped_and_still_looked_up_by_a_run(
    storage: Storage, ran: str
) -> None:
    chain(storage, ran).run()
    job = chain(storage, ran)
    drawn = job.diagram().splitlines()
    assert [line.split()[:3] for line in drawn] == [
        ["=", "make", "skipped"], ["=", "tripled", "skipped"], ["=", "total", "skipped"],
    ]  # fmt: skip
    assert {progress.state for progress in job.progress.values()} == {"waiting"}


SCRIPT = """
from pydantic import BaseModel
from raysys import workflow

class Config(BaseModel):
    rows: int = 3

def double(n):
    return 2 * n

def compute(run, n: int) -> int:
    print("computed", double(n))
    return double(n)

def make_job(config):
    job = workflow.Job("scripted", config)
    job.step(compute, config.rows)
    return job

if __name__ == "__main__":
    workflow.run_job(make_job, Config)
"""


def test_a_script_runs_its_own_job(storage: Storage, tmp_path: Path) -> None:
    script = tmp_path / "a_script.py"
    script.write_text(SCRIPT)
    env = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYSYS_STORAGE": storage.root,
    }

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(str(script), "--steps").strip() == "· compute  waiting"
    assert "computed 6" in run(str(script))
    assert "[compute] unchanged since run scripted-" in run("-m", "a_script")
    assert "computed 8" in run(str(script), "--rows", "4")


def test_a_damaged_result_or_record_is_computed_again(
    storage: Storage, ran: str, mlflow_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = chain(storage, ran)
    first.run()
    total = first.progress["total"].result
    folders = {step.parent.name: step for step in Path(storage.uri("steps")).glob("*/*/*")}
    (folders["total"] / "result" / "value.pickle").write_bytes(b"cut")
    record_file = folders["tripled"] / "step.json"
    record_file.write_bytes(record_file.read_bytes()[:100])
    second = chain(storage, ran)
    second.run()
    assert counted(ran) == {"make": 1, "tripled": 2, "total": 2}
    assert states(second) == ["skipped", "done", "done"]
    assert second.progress["total"].result == total
    said = capsys.readouterr().out
    assert "[tripled] its stored result cannot be used, and is computed again" in said
    assert "[total] its stored result cannot be used, and is computed again" in said
