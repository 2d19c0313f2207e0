"""Throughput search: its decisions, and one real search."""

import itertools
import math
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys import train, tune
from raysys.data import Table
from raysys.errors import RaysysError, ResourceError, TrainError
from raysys.storage import Storage
from raysys.train import TrainSettings
from raysys.tune import ThroughputTrial
from raysys.tune.throughput._candidates import default_space, has_no_effect, moves
from raysys.tune.throughput._decisions import (
    faster,
    needs_another_round,
    promising_batches,
    recommend,
)
from raysys.tune.throughput._result import throughput_front, with_losses
from tests.train.tasks import Regression, rows

DEFAULTS = TrainSettings(batch_size=100, epochs=2, learning_rate=0.02, optimizer="adamw")
SAMPLES = 1500


def trial(speed: float, loss: float, cost: float = 1.0, **more: Any) -> ThroughputTrial:
    changed = {"batch_size": speed} if speed != 100 else {}
    return ThroughputTrial(DEFAULTS, changed, samples_per_s=speed, cost=cost, loss=loss, **more)


def test_the_front_is_the_undominated_trials_fastest_first() -> None:
    cheap, balanced, fast = trial(1, 1, cost=1), trial(2, 2, cost=2), trial(3, 2, cost=3)
    failed = ThroughputTrial(DEFAULTS, {"num_workers": 9}, error="no room")
    dominated = [trial(2, 3, cost=2), trial(1, 1, cost=2)]
    assert throughput_front([cheap, *dominated, failed, fast, balanced]) == [fast, balanced, cheap]


def test_the_fastest_with_an_acceptable_loss_is_recommended() -> None:
    noise = (1.00, 1.02, 0.98)
    defaults = trial(100, 1.0, losses=noise)
    fast = with_losses(trial(300, 0, losses=()), [1.30, 1.32, 1.28], noise)
    sound = with_losses(trial(200, 0), [1.001, 1.019, 0.981], noise)
    slow = with_losses(trial(150, 0), noise, noise)
    best, reason = recommend([defaults, fast, sound, slow], 1e6)
    assert best is sound
    assert "2.00 times" in reason
    # A long start pays off in a long run only.
    compiled = with_losses(trial(400, 0, start_s=60.0), noise, noise)
    trials = [defaults, sound, compiled]
    assert recommend(trials, 10_000)[0] is sound
    assert recommend(trials, 10_000_000)[0] is compiled
    assert recommend([defaults, fast], 1e6)[0] is defaults


def test_losses_are_compared_seed_by_seed() -> None:
    # Seeds differ by 2, the configurations by 0.1 under each: a significant difference.
    defaults = trial(100, 3.0, losses=(1.0, 3.0, 5.0))
    worse = with_losses(trial(200, 0), [1.1, 3.1, 5.1], defaults.losses)
    assert recommend([defaults, worse], 1e6)[0] is defaults
    # With the first seed alone, the mean is shifted by its difference.
    assert with_losses(trial(200, 0), [1.1], defaults.losses).loss == pytest.approx(3.1)


def test_doubtful_comparisons_get_more_rounds() -> None:
    def compare(draws: Any) -> tuple[int, bool]:
        pairs: list[tuple[float, float]] = []
        while needs_another_round(pairs):
            pairs.append((next(draws), 1.0))
        return len(pairs), faster(pairs)

    assert compare(iter([0.5, 0.4])) == (2, False)
    assert compare(itertools.repeat(1.5)) == (4, True)
    assert compare(itertools.cycle([1.2, 0.9])) == (9, False)
    # A single slow round does not decide.
    assert compare(itertools.chain([0.3], itertools.repeat(1.3))) == (9, True)


def test_batches_are_promising_by_a_linear_model_of_the_step() -> None:
    fixed, per_example = 0.008, 1e-5

    def seconds(batch: int) -> float:
        return fixed + per_example * batch

    step_times = [(500, seconds(500)), (2000, seconds(2000))]
    speedups = promising_batches([1000, 2000, 4000], step_times)
    now = 500 / seconds(500)
    assert speedups == pytest.approx({b: b / seconds(b) / now for b in (1000, 2000, 4000)})
    # Without fixed costs larger batches gain nothing.
    assert promising_batches([1000], [(500, 0.5), (2000, 2.0)]) == {}


def test_the_space_follows_the_machine() -> None:
    machine = train.Machine(examples=1000, cpus=4, gpus=0, bf16=False)
    space = default_space(DEFAULTS, machine)
    assert "precision" not in space
    assert space["batch_size"] == [200, 400, 800]
    shapes = [
        (m["num_workers"], m["threads_per_worker"])
        for m in moves(space, machine, DEFAULTS)
        if "num_workers" in m
    ]
    assert set(shapes) == {
        (w, t) for w in (1, 2, 4) for t in (1, 2, 4) if w * t <= 4
    }  # fmt: skip
    assert has_no_effect({"precision": "fp32"}, DEFAULTS, machine)
    assert has_no_effect({"num_workers": 2, "threads_per_worker": 1}, DEFAULTS, machine)
    gpus = train.Machine(examples=1000, cpus=4, gpus=2, bf16=True)
    assert "threads_per_worker" not in default_space(DEFAULTS, gpus)
    assert has_no_effect({"precision": "bf16"}, DEFAULTS, gpus)


def test_a_space_of_unknown_settings_is_refused(storage: Storage) -> None:
    with pytest.raises(RaysysError, match="cannot tune momentum"):
        tune.tune_throughput("x", Regression(), {}, DEFAULTS, storage, space={"momentum": [0.9]})
    with pytest.raises(RaysysError, match="list of values"):
        tune.tune_throughput("x", Regression(), {}, DEFAULTS, storage, space={"num_workers": []})


def test_a_space_too_large_for_the_cluster_is_refused(ray_cluster: None, storage: Storage) -> None:
    with pytest.raises(ResourceError, match="needs 64 CPUs"):
        tune.tune_throughput("x", Regression(), {}, DEFAULTS, storage, space={"num_workers": [64]})


@pytest.fixture(scope="module")
def result(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tune.ThroughputResult:
    """One real search, as worker processes take long to start."""
    tables = {"rows": Table.load(rows)}
    space = {"num_workers": [1, 2], "gradient_accumulation_steps": [200], "batch_size": [400]}
    return tune.tune_throughput(
        "real", Regression(), tables, DEFAULTS, Storage(tmp_path_factory.mktemp("storage")),
        loss_samples=SAMPLES, metric="loss", space=space, timeout_s=600.0,
    )  # fmt: skip


def plain(settings: TrainSettings) -> float:
    """Loss of a run in one process."""
    epochs: list[dict[str, float]] = []
    shorter = settings.model_copy(
        update={"max_steps": SAMPLES // settings.batch_size, "epochs": 2, "seed": DEFAULTS.seed}
    )
    train.train_in_process(
        Regression(), {"rows": rows()}, shorter, lambda epoch, _: epochs.append(epoch)
    )
    return epochs[-1]["loss"]


def test_losses_are_those_of_plain_runs(result: tune.ThroughputResult) -> None:
    assert result.loss_samples == SAMPLES
    trials = [trial for trial in result.trials if trial.losses]
    assert len(trials) >= 2
    for trial in trials:
        assert trial.losses[0] == pytest.approx(plain(trial.settings), rel=1e-4)


def test_a_failure_is_recorded_with_its_reason(result: tune.ThroughputResult) -> None:
    (failed,) = [trial for trial in result.trials if trial.error]
    assert failed.changed["gradient_accumulation_steps"] == 200
    assert failed.error
    assert failed.error in result.table()
    assert f"{len(result.trials)} trials (1 failed)" in repr(result)
    assert result._repr_html_().count("<tr>") == len(result.trials) + 1


def test_a_result_has_the_figures_of_every_trial(result: tune.ThroughputResult) -> None:
    labels = [trial.label for trial in result.trials]
    assert labels[0] == "defaults"
    assert "num_workers=1" in str(labels)
    assert any("batch_size=400" in label for label in labels)
    for trial in result.trials:
        if not trial.error:
            assert trial.samples_per_s
            cpus = trial.settings.num_workers * (trial.settings.threads_per_worker or 1)
            assert trial.cost == pytest.approx(cpus * 1e6 / trial.samples_per_s)
            assert trial.memory_bytes
            assert 50e6 < trial.memory_bytes < 4e9
    assert result.best_trial in result.trials
    assert result.best_trial.run_s(3000) <= result.defaults.run_s(3000)
    assert result.plot().startswith(b"\x89PNG")


def test_the_recommended_settings_train(result: tune.ThroughputResult) -> None:
    settings = result.best_settings
    assert settings.epochs == DEFAULTS.epochs
    assert math.isfinite(plain(settings))
    assert np.isfinite(result.best_trial.loss or math.nan)


def test_a_dead_worker_ends_one_trial_only(ray_cluster: None) -> None:
    class Dying(Regression):
        def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
            if len(rows) == 13:
                os._exit(1)
            return super().batch(rows, rng)

    tables = {"rows": Table.load(rows)}
    settings = DEFAULTS.model_copy(update={"num_workers": 1})
    with train.TrialSession(Dying(), tables, settings) as session:
        opened = session.prepare(settings)
        with pytest.raises(TrainError, match="a worker died"):
            session.prepare(settings.model_copy(update={"batch_size": 13}))
        assert session.run_steps(opened, 4).step_s > 0
        assert session.machine.examples == len(pa.table(rows()))
