"""Workers and drivers are killed; the losses stay those of one process that nothing disturbs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import raysys
from raysys.data import Table
from raysys.errors import ResourceError, TrainError
from raysys.storage import Storage
from raysys.tracking import Runs
from raysys.train import EpochMetrics, FitResult, fit, train_in_process
from tests.train.driver import run, settings
from tests.train.tasks import Regression, SlowRegression, rows

pytestmark = pytest.mark.usefixtures("ray_cluster")
STEPS = 36
EVERY = 4  # steps between checkpoints


@pytest.fixture(scope="module")
def alone() -> list[EpochMetrics]:
    """What one process measures."""
    measured: list[EpochMetrics] = []
    train_in_process(
        Regression(), {"rows": rows()}, settings(), lambda epoch, _: measured.append(epoch)
    )
    assert measured[-1]["loss"] < 0.9 * measured[0]["loss"]
    return measured


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, Path]:
    """A run on two workers that nothing disturbs, and its folder."""
    folder = tmp_path_factory.mktemp("calm")
    return run(folder, slow=False), folder


def losses(history: list[EpochMetrics]) -> list[tuple[float, float]]:
    return [(epoch["train_loss"], epoch["loss"]) for epoch in history]


def status(folder: Path) -> list[str]:
    """Of the runs of the folder's name in MLflow."""
    found = Runs(Storage(folder)).newest(1000)
    return [one.status for one in found if one.name == folder.name]


def said(folder: Path, what: str) -> int:
    log = folder / "log"
    return log.read_text().split().count(what) if log.exists() else 0


def until(folder: Path, steps: int) -> None:
    """Wait until both workers together have begun so many steps."""
    end = time.monotonic() + 180
    while said(folder, "step") < steps:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.02)


def test_a_run_has_the_losses_of_one_process_and_leaves_its_newest_checkpoint(
    calm: tuple[FitResult, Path], alone: list[EpochMetrics]
) -> None:
    fitted, folder = calm
    for ours, wanted in zip(losses(fitted.history), losses(alone), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-4)
    left = {path.name for path in (folder / "training" / folder.name).iterdir()}
    assert left == {"plan.json", "progress.json", "done.json", "checkpoints"}
    (checkpoint,) = (folder / "training" / folder.name / "checkpoints").iterdir()
    assert checkpoint.name.startswith(f"{STEPS:010d}-")
    assert status(folder) == ["FINISHED"]
    handler = signal.getsignal(signal.SIGINT)
    assert not str(getattr(handler, "__module__", "")).startswith("ray.train")  # which took it


def test_a_finished_run_starts_nothing_and_refuses_other_steps(
    calm: tuple[FitResult, Path],
) -> None:
    fitted, folder = calm
    # A task that cannot even be pickled would show that a worker was started.
    task: Any = threading.Lock()
    again = fit(folder.name, task, {}, settings(strategy="zero2", num_workers=4), Storage(folder))
    assert again.history == fitted.history
    for name, value in fitted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(TrainError, match=r"epochs 12, now 13. Give this one another name"):
        fit(folder.name, task, {}, settings(epochs=13), Storage(folder))


def test_a_killed_worker_costs_the_steps_since_the_checkpoint_and_changes_no_bit(
    calm: tuple[FitResult, Path], tmp_path: Path
) -> None:
    def kill() -> None:
        until(tmp_path, 2 * 17)
        worker = next(tmp_path.glob("*.worker"))
        os.kill(int(worker.stem), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    disturbed = run(tmp_path, slow=True)
    killer.join()
    assert said(tmp_path, "start") == 4, "two workers, started twice"
    # One more may have been begun while the group was dying, and a checkpoint be under way.
    assert 2 * STEPS < said(tmp_path, "step") <= 2 * (STEPS + 2 * EVERY + 1)
    assert losses(disturbed.history) == losses(calm[0].history)
    for name, value in calm[0].state_dict().items():
        assert torch.equal(value, disturbed.parameters()[name])


def test_the_same_call_goes_on_after_its_driver_ended_under_another_strategy(
    alone: list[EpochMetrics], tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    for end, steps in ((signal.SIGKILL, 2 * 11), (signal.SIGINT, 2 * 11 + 2 * 14)):
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.train.driver", str(tmp_path)],
            cwd=Path(raysys.__file__).parents[1],
            env=environment,
            stderr=subprocess.PIPE,
        )
        until(tmp_path, steps)
        driver.send_signal(end)
        _, printed = driver.communicate(timeout=120)
        assert driver.returncode != 0
    assert b"KeyboardInterrupt" in printed
    before = said(tmp_path, "step")
    assert not (tmp_path / "training" / tmp_path.name / "done.json").exists()
    fitted = run(tmp_path, slow=True, strategy="zero3", num_workers=1)
    # From the second driver's last checkpoint: of the three, none began at the beginning.
    assert said(tmp_path, "step") - before <= STEPS - 16
    for ours, wanted in zip(losses(fitted.history), losses(alone), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-4)
    assert status(tmp_path) == ["FINISHED"]


class Exploding(SlowRegression):
    """Its second step has a loss that is no number, unless the file says that it is mended."""

    def batch(self, rows: Any, rng: Any) -> dict[str, torch.Tensor]:
        batch = super().batch(rows, rng)
        if said(self.log.parent, "step") > 1 and not (self.log.parent / "mended").exists():
            batch["y"] = batch["y"] / 0
        return batch


def test_a_step_that_cannot_be_taken_ends_the_run_after_one_restart_until_it_is_mended(
    tmp_path: Path,
) -> None:
    task, tables = Exploding(tmp_path / "log"), {"rows": Table.from_arrow(rows())}
    how = settings(num_workers=1, max_failures=3)
    with pytest.raises(TrainError, match="step 2: the loss is ") as raised:
        fit("mended", task, tables, how, Storage(tmp_path))
    assert raised.value.step == 2
    assert said(tmp_path, "start") == 1
    (tmp_path / "mended").touch()
    # No checkpoint depends on them yet, so other settings are taken.
    other = how.model_copy(update={"learning_rate": 0.01})
    assert len(fit("mended", task, tables, other, Storage(tmp_path)).history) == 12
    assert said(tmp_path, "start") == 2
    plan = json.loads((tmp_path / "training/mended/plan.json").read_text())
    assert plan["settings"]["learning_rate"] == 0.01


def test_more_workers_than_fit_are_refused_at_once(storage: Storage) -> None:
    with pytest.raises(ResourceError, match="needs 64 CPUs beside 1"):
        fit("big", Regression(), {}, settings(num_workers=64), storage)
