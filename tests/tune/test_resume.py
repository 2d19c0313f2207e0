"""kill -9 of the driver in the middle of a trial; the same call goes on."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import raysys
from raysys.storage import Storage
from raysys.tune import Found
from tests.tune import resumable

pytestmark = pytest.mark.usefixtures("ray_cluster")


def told(found: Found) -> list[tuple[object, ...]]:
    return [
        (trial.number, trial.settings, trial.state, [one["total"] for one in trial.rounds])
        for trial in found.trials
    ]


def test_a_search_goes_on_after_its_driver_was_killed(tmp_path: Path) -> None:
    cut, log = tmp_path / "cut", tmp_path / "log"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.tune.resumable", str(cut), str(log)],
        cwd=Path(raysys.__file__).parents[1],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saved = cut / "searches/sums/trials/00002/round-00002"
    end = time.monotonic() + 120
    while not saved.exists():
        assert driver.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < end, "the search did not get as far as its third trial"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    found = resumable.run(Storage(cut), log)
    assert told(found) == told(resumable.run(Storage(tmp_path / "whole"), tmp_path / "other"))

    ran = Counter(log.read_text().splitlines())
    repeated = {line for line, count in ran.items() if count > 1}
    # Of the round that was running, and one more before the trial's process was gone.
    killed = repr(found.trials[2].settings["x"])
    assert repeated <= {f"{killed} 3", f"{killed} 4"}
    assert ran.keys() >= {f"{killed} {round_}" for round_ in range(1, 4)}
    assert len(ran) == sum(trial.done for trial in found.trials)
    with found.checkpoint.as_directory() as folder:
        assert float((Path(folder) / "total").read_text()) == found.score
