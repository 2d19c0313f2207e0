"""The commands that README names, against a real head of their own."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys import audit, cli, cluster
from raysys.errors import RaysysError
from raysys.storage import Storage
from tests.heads import BIN, head_of, place_for_a_head

ROOT = Path(__file__).parents[2]
JOBS = {
    "hello.py": "import sys; print('hello', *sys.argv[1:])",
    "greedy.py": "DEMAND = {'gpus': 8}\nprint('never')",
    "connected.py": "from raysys import cluster; cluster.connect(); print('connected')",
    "address.py": """
import json, os, ray, sys

@ray.remote(num_cpus=0)
class Replica:
    def log(self, message):
        line = {"time": "noon", "level": "ERROR", "message": message}
        print(json.dumps(line), file=sys.stderr, flush=True)

ray.init()
port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
replica = Replica.options(name="SERVE_REPLICA::films-v1#entry#1").remote()
ray.get(replica.log.remote(f"of {port}"))
print("cluster", port, os.environ["RAYSYS_STORAGE"])
""",
    "seven.py": "import sys; sys.exit(7)",
    "killed.py": "import os; os.kill(os.getpid(), 9)",
    "waiting.py": """
import time
from pydantic import BaseModel
from raysys.workflow import Job, run_job

class Config(BaseModel):
    pass

def wait(run):
    print("begun", flush=True)
    time.sleep(600)

def make_job(config):
    job = Job("waiting", config)
    job.step(wait)
    return job

if __name__ == "__main__":
    run_job(make_job, Config)
""",
    "endless.py": "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.1)",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with place_for_a_head(tmp_path_factory.mktemp("cli")) as env:
        yield env


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder with jobs."""
    folder = tmp_path_factory.mktemp("work")
    for name, code in JOBS.items():
        (folder / name).write_text(code)
    return folder


def call(
    env: dict[str, str], *command: str | Path, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=240)


def head(env: dict[str, str]) -> cluster.Head:
    running = head_of(env)
    assert running
    return running


def lines(env: dict[str, str], action: str) -> list[audit.AuditEntry]:
    return list(audit.read(Storage(env["RAYSYS_STORAGE"]), action=action))


def test_submit_starts_a_head_and_streams_the_job(environment: dict[str, str]) -> None:
    done = call(environment, BIN / "raysys", "submit", "jobs/recommender.py", "--", "--help")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--strategy {ddp,fsdp,zero1,zero2,zero3,pipeline}" in done.stdout
    assert head(environment).dashboard_url in done.stdout
    assert [line.subject for line in lines(environment, "up")] == [head(environment).address]
    assert f"started a Ray head at {head(environment).address}; `raysys down`" in done.stderr


def test_the_dashboard_wants_the_token(environment: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head(environment).dashboard_url}/api/jobs/", timeout=30)
    assert refused.value.code in (401, 403)


def test_another_folder_needs_the_address_and_the_token(
    environment: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    token = call(environment, BIN / "ray", "get-auth-token").stdout.strip()
    file = tmp_path / "token"
    file.write_text(token)
    bare = {"PATH": environment["PATH"], "HOME": str(tmp_path),
            "RAY_ADDRESS": head(environment).dashboard_url}  # fmt: skip
    submit = (BIN / "raysys", "submit", "hello.py", "--", "--k", "10")
    for access in ({"RAY_AUTH_TOKEN": token}, {"RAY_AUTH_TOKEN_PATH": str(file)}):
        done = call(bare | access, *submit, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "\nhello --k 10\n" in done.stdout
        assert token not in done.stdout + done.stderr
    jobs = call(environment, BIN / "raysys", "jobs").stdout
    without = call(bare, *submit, cwd=folder)
    assert without.returncode == 1
    assert "none is set: set RAY_AUTH_TOKEN" in without.stderr
    wrong = call(bare | {"RAY_AUTH_TOKEN": "0" * 64}, *submit, cwd=folder)
    assert wrong.returncode == 1
    assert "rejects the token" in wrong.stderr
    after = call(environment, BIN / "raysys", "jobs").stdout
    assert after.count("hello-") == jobs.count("hello-") == 2


def test_a_failing_job_is_one_line_and_a_status(environment: dict[str, str]) -> None:
    flags = ["--", "--ratings", "/no/such/file.csv", "--storage", environment["RAYSYS_STORAGE"]]
    done = call(environment, BIN / "raysys", "submit", "jobs/recommender.py", *flags)
    assert done.returncode == 1
    assert "error: step 'etl': /no/such/file.csv: no such file" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1


def test_the_status_of_a_job_is_that_of_its_submission(
    environment: dict[str, str], folder: Path
) -> None:
    submit = (BIN / "raysys", "submit")
    seven = call(environment, *submit, "seven.py", cwd=folder)
    assert seven.returncode == 7
    assert seven.stderr.count("error:") == 1
    assert call(environment, *submit, "killed.py", cwd=folder).returncode == 128 + 9


def test_a_process_of_this_machine_joins_the_head_by_default_and_by_the_dashboards_url(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import os, ray\nfrom raysys import cluster\ncluster.connect()\n"
        "print(ray.get(ray.remote(lambda: os.environ['RAYSYS_STORAGE']).remote()))"
    )
    own = environment | {"RAYSYS_STORAGE": str(tmp_path)}  # the head was started with another
    own.pop("RAY_AUTH_MODE")
    url = head(environment).dashboard_url
    for address in ({}, {"RAY_ADDRESS": url}):
        done = call(own | address, sys.executable, "-c", code, cwd=tmp_path)
        assert done.stdout == f"{tmp_path}\n", done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("raysys:")]
        assert line == f"raysys: joined the Ray cluster at {head(environment).address} " \
            f"(dashboard {url})"  # fmt: skip


def test_two_heads_on_a_machine_run_their_own_jobs_and_show_their_own_logs(
    environment: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    raysys = BIN / "raysys"
    with place_for_a_head(tmp_path / "second") as second, ThreadPoolExecutor() as threads:
        assert call(second, raysys, "up").returncode == 0

        def submit(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
            return call(env, raysys, "submit", "address.py", cwd=folder)

        heads = (second, environment)
        for env, done in zip(heads, threads.map(submit, heads), strict=True):
            assert done.returncode == 0, done.stdout + done.stderr
            port = head(env).address.rpartition(":")[2]
            assert f"cluster {port} {env['RAYSYS_STORAGE']}\n" in done.stdout
            dashboard = cluster.Dashboard(head(env).dashboard_url)
            assert cluster.application_log(dashboard, "films") == [f"noon v1 ERROR of {port}"]
        elsewhere = second | {"RAYSYS_STORAGE": str(tmp_path / "other")}
        address = head(second).address
        assert call(elsewhere, raysys, "down").stdout == f"stopped the Ray head at {address}\n"
        assert head_of(second) is None
    assert head_of(environment)


def test_ray_job_submit_by_hand_works_as_well(environment: dict[str, str], folder: Path) -> None:
    env = {**environment, "RAY_ADDRESS": head(environment).dashboard_url}
    before = len(lines(environment, "job.submit"))
    command = ("job", "submit", "--working-dir", ".", "--", "python", "-m", "connected")
    done = call(env, BIN / "ray", *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "connected" in done.stdout
    assert len(lines(environment, "job.submit")) == before
    started = lines(environment, "job.start")[-1]  # raysys was not asked, and still knows
    assert started.subject in done.stdout


def test_a_demand_that_cannot_fit_is_refused_before_anything_runs(
    environment: dict[str, str], folder: Path
) -> None:
    before = len(lines(environment, "job"))
    declared = call(environment, BIN / "raysys", "submit", "greedy.py", cwd=folder)
    assert declared.returncode == 1
    assert "greedy.py needs 0 CPUs and 8 GPUs; the cluster has" in declared.stderr
    said = call(environment, BIN / "raysys", "submit", "hello.py", "--cpus", "999", cwd=folder)
    assert said.returncode == 1
    assert "hello.py needs 999 CPUs" in said.stderr
    assert len(lines(environment, "job")) == before


def test_a_job_is_left_running_listed_followed_and_stopped(
    environment: dict[str, str], folder: Path
) -> None:
    raysys = BIN / "raysys"
    done = call(environment, raysys, "submit", "endless.py", "--no-wait", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "is running; follow it with `raysys logs endless-" in done.stdout
    following = subprocess.Popen(
        [raysys, "logs", "endl", "--follow"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert following.stdout
    while "begun" not in following.stdout.readline():
        assert following.poll() is None
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=30)[0]
    assert "is running; follow it" in said
    assert following.returncode == 0
    status = call(environment, raysys, "status").stdout
    assert "endless-" in status.partition("active jobs:")[2]
    listed = call(environment, raysys, "jobs").stdout
    (row,) = [line for line in listed.splitlines() if line.startswith("endless-")]
    assert " RUNNING " in row
    stopped = call(environment, raysys, "stop", "endless-")
    assert stopped.stdout.strip().endswith(": STOPPED")
    assert [line.action for line in lines(environment, "job.stop")] == ["job.stop"]
    again = call(environment, raysys, "stop", "endless-")
    assert "has ended already: STOPPED" in again.stdout
    assert call(environment, raysys, "logs", "endless-").stdout.endswith("begun\n")
    many = call(environment, raysys, "logs", "h")
    assert many.returncode == 1
    assert "'h' begins the ids of 2 jobs: hello-" in many.stderr
    assert "no job's id begins with 'x'" in call(environment, raysys, "stop", "x").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_as_killed_with_its_status(
    number: int, environment: dict[str, str], folder: Path
) -> None:
    with subprocess.Popen(
        [BIN / "raysys", "run", "waiting.py"], env=environment, cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout
        while "begun" not in (line := running.stdout.readline()):
            assert line
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal does
        else:
            running.send_signal(number)
        said = running.communicate(timeout=60)[0]
    assert running.returncode == 128 + number
    assert "killed: 1 running" in said
    assert not re.search(r"Traceback|SIG|@ 0x", said)
    runs = Storage(environment["RAYSYS_STORAGE"]).names("runs")
    name = max(run for run in runs if run.startswith("waiting-"))
    assert f"{name}: killed\n" in call(environment, BIN / "raysys", "steps", name).stdout
    listed = call(environment, BIN / "raysys", "runs").stdout
    (row,) = [line for line in listed.splitlines() if line.startswith(name)]
    assert " KILLED " in row


def test_doctor_finds_the_local_head_well(environment: dict[str, str]) -> None:
    done = call(environment, BIN / "raysys", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {
        line[6:].partition(":")[0]: line[:5].strip()
        for line in done.stdout.splitlines()
        if not line.startswith(" ")
    }
    assert list(verdicts) == [
        "dashboard", "GCS", "authentication", "token", "clock", "jobs",
        "versions", "object store", "disk", "GPUs", "storage", "MLflow",
    ]  # fmt: skip
    assert set(verdicts.values()) <= {"ok", "warn"}


def test_doctor_fails_where_the_token_is_wrong_or_nothing_answers(
    environment: dict[str, str],
) -> None:
    address = {"RAY_ADDRESS": head(environment).dashboard_url}
    wrong = call(environment | address | {"RAY_AUTH_TOKEN": "0" * 64}, BIN / "raysys", "doctor")
    assert wrong.returncode == 1
    assert "fail  token: RAY_AUTH_TOKEN: the cluster answers 403" in wrong.stdout
    away = call(environment | {"RAY_ADDRESS": "http://127.0.0.1:9"}, BIN / "raysys", "doctor")
    assert away.returncode == 1
    assert "fail  dashboard: 127.0.0.1:9 does not answer" in away.stdout


def test_a_job_is_scheduled_for_each_start_of_a_cluster(
    environment: dict[str, str], folder: Path
) -> None:
    command = (BIN / "raysys", "schedule", "add", "boot", "@reboot", "hello.py")
    done = call(environment, *command, "--", "again", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "boot: `python -m hello again` next at the next start of a cluster" in done.stdout


def test_down_ends_the_head_and_only_once(environment: dict[str, str]) -> None:
    dashboard = head(environment).dashboard_url
    assert "stopped" in call(environment, BIN / "raysys", "down").stdout
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(dashboard, timeout=30)
    assert "nothing to stop" in call(environment, BIN / "raysys", "down").stdout
    assert len(lines(environment, "down")) == 1
    gone = call(environment, BIN / "raysys", "status")
    assert gone.returncode == 1
    assert "there is no cluster: start one on this machine with `raysys up`" in gone.stderr


def test_a_submission_that_is_refused_leaves_no_head(
    environment: dict[str, str], folder: Path
) -> None:
    refused = call(environment, BIN / "raysys", "submit", "greedy.py", cwd=folder)
    assert "greedy.py needs 0 CPUs and 8 GPUs" in refused.stderr
    assert head_of(environment) is None


def test_a_new_head_takes_up_the_schedules_of_its_root(environment: dict[str, str]) -> None:
    up = call(environment, BIN / "raysys", "up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "boot: @reboot" in up.stdout
    end, status = time.monotonic() + 60, ""
    while " SUCCEEDED " not in status:
        assert time.monotonic() < end, status
        listed = call(environment, BIN / "raysys", "jobs").stdout.splitlines()
        status = "".join(line for line in listed if line.startswith("boot-"))
    assert "hello again" in call(environment, BIN / "raysys", "logs", "boot-").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.v2.py", "train.v2.py: a job is imported as a module.*, for example to train_v2.py"),
        ("v1.2/job.py", "for example to v1_2/job.py"),
        ("job.txt", "a file NAME.py"),
    ],
)
def test_a_job_that_is_not_a_module_is_refused_with_a_name_for_it(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    for command in (["submit"], ["run"], ["schedule", "add", "nightly", "0 2 * * *"]):
        done = CliRunner().invoke(cli.app, [*command, name])
        assert isinstance(done.exception, RaysysError)
        assert re.search(message, str(done.exception))


@pytest.mark.parametrize(
    "command", [["runs"], ["runs", "show", "x"], ["steps"], ["audit"], ["key", "list"], ["prune"],
                ["lineage", "x"], ["key", "revoke", "x"], ["down"]],
)  # fmt: skip
def test_commands_name_a_root_that_cannot_be_used(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path / "file"))
    done = CliRunner().invoke(cli.app, command)
    assert isinstance(done.exception, RaysysError)
    assert f"{tmp_path}/file cannot be used: it is a file" in str(done.exception)


def test_nothing_starts_for_a_job_whose_folder_or_root_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # without a head
    monkeypatch.setattr("raysys.cluster._local_head._starting", pytest.fail)
    (tmp_path / "hello.py").touch()
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path / "hello.py"))
    for command in (["up"], ["submit", "hello.py"]):
        done = CliRunner().invoke(cli.app, command)
        assert "hello.py cannot be used: it is a file" in str(done.exception)
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path / "storage"))
    (tmp_path / "queue.py").touch()
    for command in (["submit"], ["run"]):
        done = CliRunner().invoke(cli.app, [*command, "hello.py"])
        assert "queue.py hides the module 'queue' of Python's" in str(done.exception)


@pytest.mark.parametrize(
    ("job", "message"),
    [("jobs/nothing.py", "jobs/nothing.py: no such file"), ("/proc/version", "below this folder")],
)
def test_a_job_that_is_no_file_of_this_folder_is_named(job: str, message: str) -> None:
    done = CliRunner().invoke(cli.app, ["submit", job])
    assert isinstance(done.exception, RaysysError)
    assert message in str(done.exception)


@pytest.mark.parametrize("flags", ["--strategy zero2", "--compare", "--ratings FILE"])
def test_make_demo_passes_its_flags_on(flags: str) -> None:
    made = subprocess.run(
        ["make", "-n", "demo", f"ARGS={flags}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"jobs/recommender.py -- --verbose {flags}\n" in made.stdout
