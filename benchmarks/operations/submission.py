"""From `raysys submit` in another folder to the first line that the job itself says."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks._figures import Report

RAYSYS = str(Path(sys.executable).parent / "raysys")
TREE = Path(__file__).parents[2]
_TIMEOUT_S = 300
LEFT_BEHIND = (".git", ".venv", ".raysys", "__pycache__", ".*_cache", "*.egg-info")
# Said by `raysys submit` and by Ray before the job says anything.
_NOT_THE_JOBS = re.compile(
    r"dashboard: |job: |.* INFO |.*Runtime env is setting up|Running entrypoint for job |$"
)
_MARK = "import time; print(f'said at {time.time()}', flush=True)\n"


def first_line(report: Report, quick: bool) -> None:
    """The flagship job's first line, and where the seconds before it go."""
    repeats = 1 if quick else 3
    with tempfile.TemporaryDirectory(prefix="raysys-operations-") as folder:
        place = Path(folder)
        tree = place / "elsewhere"
        shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        with head(place) as environment:
            _compare(report, environment, tree, repeats)


def _compare(report: Report, environment: dict[str, str], tree: Path, repeats: int) -> None:
    jobs: dict[str, list[float]] = {"the recommender": [], "a job that imports nothing": []}
    new = []
    for number in range(repeats):
        (tree / "jobs" / "mark.py").write_text(f"# {number}\n{_MARK}")  # a tree not sent before
        new.append(_seconds(environment, tree, "jobs/mark.py"))
        for name, values in zip(jobs, jobs.values(), strict=True):
            job = "jobs/mark.py" if "nothing" in name else "jobs/recommender.py"
            values.append(_seconds(environment, tree, job))
    name = "submit to first line"
    flagship = statistics.median(jobs["the recommender"])
    nothing = statistics.median(jobs["a job that imports nothing"])
    report.add(f"{name}: the recommender", flagship, "s", below=15)
    report.add(f"{name}: a job that imports nothing", nothing, "s")
    report.add(f"{name}: the same, a tree that was not sent before", statistics.median(new), "s")
    command = [RAYSYS, "submit", "--help"]
    report.add("of it: start of the command", _run_s(command, environment, tree), "s")
    command = [sys.executable, "-c", "import ray.job_submission"]
    report.add("of it: import of Ray's client", _run_s(command, environment, tree), "s")
    command = [sys.executable, "-c", "import jobs.recommender"]
    report.add("of it: imports of the recommender", _run_s(command, environment, tree), "s")


@contextmanager
def head(place: Path) -> Iterator[dict[str, str]]:
    """A head of its own; what another machine's user has: the address and the token."""
    token = secrets.token_hex(32)
    bare = {"PATH": f"{Path(RAYSYS).parent}{os.pathsep}{os.environ['PATH']}"}
    own = {
        **bare, "HOME": str(place / "owner"), "RAY_AUTH_TOKEN": token,
        "RAY_TMPDIR": os.environ["RAY_TMPDIR"],
        "RAYSYS_STORAGE": str(place / "storage"),
    }  # fmt: skip
    subprocess.run([RAYSYS, "up"], env=own, check=True, capture_output=True)
    try:
        status = subprocess.run(
            [RAYSYS, "status"], env=own, check=True, capture_output=True, text=True
        )
        address = status.stdout.splitlines()[0].removeprefix("dashboard: ")
        # The agent starts jobs, and comes up some seconds after the dashboard.
        submit = [RAYSYS, "submit", "ready.py"]
        (place / "empty").mkdir()
        (place / "empty" / "ready.py").write_text("print('ready')")
        subprocess.run(submit, env=own, cwd=place / "empty", check=True, capture_output=True)
        yield {**bare, "HOME": str(place / "user"), "RAY_AUTH_TOKEN": token, "RAY_ADDRESS": address}
    finally:
        subprocess.run([RAYSYS, "down"], env=own, check=False, capture_output=True)


def _seconds(environment: dict[str, str], tree: Path, job: str) -> float:
    """From the command's start to the job's first line; then the job is stopped."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [RAYSYS, "submit", job], env=environment, cwd=tree, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    submitted, said, taken = "", [], 0.0
    for line in process.stdout:
        said.append(line)
        if line.startswith("job: "):
            submitted = line.split()[1]
        if not _NOT_THE_JOBS.match(line):
            taken = time.perf_counter() - started
            break
    if not taken or line.startswith(("error", "Traceback")):
        raise RuntimeError(f"{job} said nothing of its own:\n{''.join(said)}")
    print(f"  {job}: {taken:.1f} s to {line.strip()[:60]!r}", flush=True)
    stop = [RAYSYS, "stop", submitted]
    subprocess.run(stop, env=environment, cwd=tree, check=True, capture_output=True)
    process.communicate(timeout=_TIMEOUT_S)
    return taken


def _run_s(command: list[str], environment: dict[str, str], tree: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True)
    return time.perf_counter() - started
