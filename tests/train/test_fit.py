"""Killed workers and drivers do not change the losses of a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

import raysys
from raysys.data import Table
from raysys.errors import DataError, ResourceError, TrainError
from raysys.models import ModelFiles, Predictor
from raysys.storage import Storage
from raysys.tracking import Runs
from raysys.train import EpochMetrics, FitResult, _fit, fit, train_in_process
from tests.train.driver import run, settings
from tests.train.tasks import Normalised, Regression, SlowRegression, rows

pytestmark = pytest.mark.usefixtures("ray_cluster")
STEPS = 36
EVERY = 4  # steps between checkpoints


@pytest.fixture(scope="module")
def alone() -> list[EpochMetrics]:
    """Metrics of one process."""
    measured: list[EpochMetrics] = []
    train_in_process(
        Regression(), {"rows": rows()}, settings(), lambda epoch, _: measured.append(epoch)
    )
    assert measured[-1]["loss"] < 0.9 * measured[0]["loss"]
    return measured


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, Path]:
    """An undisturbed run on two workers, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(folder, slow=False), folder


def losses(history: list[EpochMetrics]) -> list[tuple[float, float]]:
    return [(epoch["train_loss"], epoch["loss"]) for epoch in history]


def status(folder: Path) -> list[str]:
    """Status in MLflow of the runs with the folder's name."""
    runs = Runs(Storage(folder)).newest(1000)
    return [run.status for run in runs if run.name == folder.name]


def logged(folder: Path, event: str) -> int:
    log = folder / "log"
    return log.read_text().split().count(event) if log.exists() else 0


def wait_for_steps(folder: Path, steps: int) -> None:
    """Wait until both workers together have begun `steps` steps."""
    end = time.monotonic() + 180
    while logged(folder, "step") < steps:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.02)


def wait_for_workers_to_end(folder: Path) -> None:
    """Wait until no worker takes steps any more; each wrote its process id."""
    end = time.monotonic() + 60
    while any(psutil.pid_exists(int(worker.stem)) for worker in folder.glob("*.worker")):
        assert time.monotonic() < end, "workers of a driver that has ended go on"
        time.sleep(0.05)


def test_a_run_has_the_losses_of_one_process_and_keeps_its_newest_checkpoint(
    undisturbed: tuple[FitResult, Path], alone: list[EpochMetrics]
) -> None:
    fitted, folder = undisturbed
    for ours, expected in zip(losses(fitted.history), losses(alone), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)
    files = {path.name for path in (folder / "training" / folder.name).iterdir()}
    assert files == {
        "plan.json", "identity.json", "progress.json", "done.json", "checkpoints",
        "module.pickle",
    }  # fmt: skip
    (checkpoint,) = (folder / "training" / folder.name / "checkpoints").iterdir()
    assert checkpoint.name.startswith(f"{STEPS:010d}-")
    assert status(folder) == ["FINISHED"]
    handler = signal.getsignal(signal.SIGINT)
    assert not str(getattr(handler, "__module__", "")).startswith("ray.train")  # which replaced it


def test_the_trained_module_can_be_called_and_stored(
    undisturbed: tuple[FitResult, Path], tmp_path: Path
) -> None:
    fitted, _ = undisturbed
    module = fitted.module()
    assert not module.training
    table = rows()
    x = np.stack([table[f"x{number}"].to_numpy() for number in range(4)], axis=1)
    inputs = torch.tensor(x).float(), torch.tensor(table["y"].to_pylist())
    assert module(*inputs).item() == pytest.approx(fitted.history[-1]["loss"], rel=1e-5)
    with pytest.raises(DataError, match=r"Regressor.forward returns the loss: give it a method"):
        ModelFiles.of(fitted)
    ModelFiles.of(fitted, method="layers", inputs=list("abcd")).write(tmp_path)
    with torch.no_grad():
        expected = module.layers(inputs[0]).numpy()
    np.testing.assert_array_equal(Predictor(tmp_path)(x), expected)


def test_a_finished_run_starts_no_worker_and_refuses_other_settings_tasks_and_tables(
    undisturbed: tuple[FitResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, folder = undisturbed
    monkeypatch.setattr(_fit, "_run", lambda *_: pytest.fail("a worker is started"))
    task, tables, storage = Regression(), {"rows": Table.from_arrow(rows())}, Storage(folder)
    again = fit(folder.name, task, tables, settings(strategy="zero2", num_workers=4), storage)
    assert again.history == fitted.history
    for name, value in fitted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(TrainError, match=r"epochs 12, now 13. Give this one another name"):
        fit(folder.name, task, tables, settings(epochs=13), storage)
    with pytest.raises(TrainError, match=r'task "Regression \w+", now "Normalised \w+"'):
        fit(folder.name, Normalised(), tables, settings(), storage)
    more = {"rows": Table.concat([tables["rows"], tables["rows"]])}
    with pytest.raises(TrainError, match="other settings or data: tables "):
        fit(folder.name, task, more, settings(), storage)


def test_a_killed_worker_costs_the_steps_since_the_checkpoint_and_changes_nothing(
    undisturbed: tuple[FitResult, Path], tmp_path: Path
) -> None:
    def kill() -> None:
        wait_for_steps(tmp_path, 2 * 17)
        worker = next(tmp_path.glob("*.worker"))
        os.kill(int(worker.stem), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    disturbed = run(tmp_path, slow=True)
    killer.join()
    assert logged(tmp_path, "start") == 4, "two workers, started twice"
    # One more step may have begun while the group was dying, and a checkpoint been in progress.
    assert 2 * STEPS < logged(tmp_path, "step") <= 2 * (STEPS + 2 * EVERY + 1)
    assert losses(disturbed.history) == losses(undisturbed[0].history)
    for name, value in undisturbed[0].state_dict().items():
        assert torch.equal(value, disturbed.state_dict()[name])


def test_the_same_call_resumes_under_another_strategy_after_its_driver_died(
    alone: list[EpochMetrics], tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    for end, steps in ((signal.SIGKILL, 2 * 11), (signal.SIGINT, 2 * 11 + 2 * 14)):
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.train.driver", str(tmp_path), address],
            cwd=Path(raysys.__file__).parents[1],
            stderr=subprocess.PIPE,
        )
        wait_for_steps(tmp_path, steps)
        driver.send_signal(end)
        _, printed = driver.communicate(timeout=120)
        assert driver.returncode != 0
        wait_for_workers_to_end(tmp_path)
    assert b"KeyboardInterrupt" in printed
    before = logged(tmp_path, "step")
    assert not (tmp_path / "training" / tmp_path.name / "done.json").exists()
    fitted = run(tmp_path, slow=True, strategy="zero3", num_workers=1)
    # From the second driver's last checkpoint, not from the beginning.
    assert logged(tmp_path, "step") - before <= STEPS - 16
    for ours, expected in zip(losses(fitted.history), losses(alone), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)
    assert status(tmp_path) == ["FINISHED"]


class Exploding(SlowRegression):
    """Its second step has a non-finite loss."""

    def batch(self, rows: Any, rng: Any) -> dict[str, torch.Tensor]:
        batch = super().batch(rows, rng)
        if logged(self.log.parent, "step") > 1:
            batch["y"] = batch["y"] / 0
        return batch


class StartedError(Exception):
    """Workers would be started."""


def test_a_non_finite_loss_ends_the_run_and_other_settings_may_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, tables = Exploding(tmp_path / "log"), {"rows": Table.from_arrow(rows())}
    first = settings(num_workers=1, max_failures=3)
    with pytest.raises(TrainError, match="step 2: the loss is ") as raised:
        fit("exploding", task, tables, first, Storage(tmp_path))
    assert raised.value.step == 2
    assert logged(tmp_path, "start") == 1
    # No checkpoint depends on the settings yet, so other ones are accepted.
    other = first.model_copy(update={"learning_rate": 0.01})

    def start(*arguments: Any) -> None:
        raise StartedError(arguments[3].learning_rate)

    monkeypatch.setattr(_fit, "_run", start)
    with pytest.raises(StartedError, match=r"0\.01"):
        fit("exploding", task, tables, other, Storage(tmp_path))


class Wrong(SlowRegression):
    """Its second step fails on each worker, as it would on a new one."""

    def batch(self, rows: Any, rng: Any) -> dict[str, torch.Tensor]:
        batch = super().batch(rows, rng)
        if logged(self.log.parent, "step") > 2:
            raise KeyError("age")
        return batch


def test_an_error_that_all_workers_meet_ends_the_run_without_new_workers(tmp_path: Path) -> None:
    task, tables = Wrong(tmp_path / "log"), {"rows": Table.from_arrow(rows())}
    with pytest.raises(TrainError, match=r"^Wrong.batch failed: KeyError: 'age' at .*test_fit.py:"):
        fit("wrong", task, tables, settings(num_workers=2, max_failures=3), Storage(tmp_path))
    assert logged(tmp_path, "start") == 2


def test_more_workers_than_fit_are_refused_at_once(storage: Storage) -> None:
    with pytest.raises(ResourceError, match="needs 64 CPUs beside 1"):
        fit("big", Regression(), {}, settings(num_workers=64), storage)
