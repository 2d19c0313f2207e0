"""kill -9 of the driver in the middle of a trial; the same call resumes the search."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import ray

import raysys
from raysys.storage import Storage
from raysys.tune import SearchResult
from tests.tune import resumable

pytestmark = pytest.mark.usefixtures("ray_cluster")


def facts(result: SearchResult) -> list[tuple[object, ...]]:
    return [
        (trial.number, trial.params, trial.state, [metrics["total"] for metrics in trial.rounds])
        for trial in result.trials
    ]


def test_a_search_resumes_after_its_driver_was_killed(tmp_path: Path) -> None:
    killed, log = tmp_path / "killed", tmp_path / "log"
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.tune.resumable", str(killed), str(log), address],
        cwd=Path(raysys.__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saved = killed / "searches/sums/trials/00002/round-00002"
    end = time.monotonic() + 120
    while not saved.exists():
        assert driver.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < end, "the search did not get as far as its third trial"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    result = resumable.run(Storage(killed), log)
    uninterrupted = resumable.run(Storage(tmp_path / "uninterrupted"), tmp_path / "second log")
    assert facts(result) == facts(uninterrupted)

    ran = Counter(log.read_text().splitlines())
    repeated = {line for line, count in ran.items() if count > 1}
    # The round that was running, and one more before the trial's process ended.
    x = repr(result.trials[2].params["x"])
    assert repeated <= {f"{x} 3", f"{x} 4"}
    assert ran.keys() >= {f"{x} {round_}" for round_ in range(1, 4)}
    assert len(ran) == sum(trial.last_round for trial in result.trials)
    checkpoint = result.checkpoint()
    assert checkpoint
    with checkpoint.as_directory() as folder:
        assert float((Path(folder) / "total").read_text()) == result.best_value
