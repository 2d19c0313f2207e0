"""Tuning of the training itself: what is decided, and one real search."""

import itertools
import math
import os
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys import train, tune
from raysys.data import Table
from raysys.errors import RaysysError, ResourceError, TrainError
from raysys.storage import Storage
from raysys.train import TrainSettings
from raysys.tune.throughput._candidates import default_space, moves, useless
from raysys.tune.throughput._decisions import (
    Tried,
    another_round,
    faster,
    front,
    promising_batches,
    recommend,
    with_loss,
)
from tests.train.tasks import Regression, rows

DEFAULTS = TrainSettings(batch_size=100, epochs=2, learning_rate=0.02, optimizer="adamw")
SAMPLES = 1500


def tried(speed: float, loss: float, cost: float = 1.0, **more: Any) -> Tried:
    changed = {"batch_size": speed} if speed != 100 else {}
    return Tried(DEFAULTS, changed, samples_per_s=speed, cost=cost, loss=loss, **more)


def test_the_front_is_that_of_brute_force() -> None:
    draw = random.Random(0)
    points = [
        tried(draw.randint(1, 9), draw.randint(1, 9), cost=draw.randint(1, 9)) for _ in range(60)
    ]
    points.append(Tried(DEFAULTS, {"num_workers": 9}, failed="no room"))

    def beats(one: Tried, other: Tried) -> bool:
        better = [one.samples_per_s > other.samples_per_s, one.cost < other.cost,
                  one.loss < other.loss]  # fmt: skip
        worse = [one.samples_per_s < other.samples_per_s, one.cost > other.cost,
                 one.loss > other.loss]  # fmt: skip
        return any(better) and not any(worse)

    known = points[:-1]
    wanted = [one for one in known if not any(beats(other, one) for other in known)]
    found = front(points)
    assert {id(one) for one in found} == {id(one) for one in wanted}
    speeds = [one.samples_per_s for one in found]
    assert speeds == sorted(speeds, reverse=True)


def test_the_fastest_whose_loss_is_no_worse_is_recommended() -> None:
    noise = (1.00, 1.02, 0.98)
    defaults = tried(100, 1.0, losses=noise)
    fast = with_loss(tried(300, 0, losses=()), [1.30, 1.32, 1.28], noise)
    sound = with_loss(tried(200, 0), [1.001, 1.019, 0.981], noise)
    slow = with_loss(tried(150, 0), noise, noise)
    best, reason = recommend([defaults, fast, sound, slow], 1e6)
    assert best is sound
    assert "2.00 times" in reason
    # What takes long to start earns it in a long run only.
    compiled = with_loss(tried(400, 0, start_s=60.0), noise, noise)
    everything = [defaults, sound, compiled]
    assert recommend(everything, 10_000)[0] is sound
    assert recommend(everything, 10_000_000)[0] is compiled
    assert recommend([defaults, fast], 1e6)[0] is defaults


def test_losses_are_compared_seed_by_seed() -> None:
    # Seeds differ by 2, the two configurations by 0.1 under each: worse beyond doubt.
    defaults = tried(100, 3.0, losses=(1.0, 3.0, 5.0))
    worse = with_loss(tried(200, 0), [1.1, 3.1, 5.1], defaults.losses)
    assert recommend([defaults, worse], 1e6)[0] is defaults
    # Of the first seed alone, the mean is what the others would be shifted by as much.
    assert with_loss(tried(200, 0), [1.1], defaults.losses).loss == pytest.approx(3.1)


def test_doubtful_comparisons_get_more_rounds() -> None:
    def rounds_of(draws: Any) -> tuple[int, bool]:
        pairs: list[tuple[float, float]] = []
        while another_round(pairs):
            pairs.append((next(draws), 1.0))
        return len(pairs), faster(pairs)

    assert rounds_of(iter([0.5, 0.4])) == (2, False)
    assert rounds_of(itertools.repeat(1.5)) == (4, True)
    assert rounds_of(itertools.cycle([1.2, 0.9])) == (9, False)
    # One slow round of the machine does not decide.
    assert rounds_of(itertools.chain([0.3], itertools.repeat(1.3))) == (9, True)


def test_batches_are_promising_as_far_as_a_line_says() -> None:
    fixed, each = 0.008, 1e-5

    def seconds(batch: int) -> float:
        return fixed + each * batch

    known = [(500, seconds(500)), (2000, seconds(2000))]
    found = promising_batches([1000, 2000, 4000], known)
    now = 500 / seconds(500)
    assert found == pytest.approx({b: b / seconds(b) / now for b in (1000, 2000, 4000)})
    # Where every example costs the same there is nothing to gain.
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
    assert useless({"precision": "fp32"}, DEFAULTS, machine)
    assert useless({"num_workers": 2, "threads_per_worker": 1}, DEFAULTS, machine)
    gpus = train.Machine(examples=1000, cpus=4, gpus=2, bf16=True)
    assert "threads_per_worker" not in default_space(DEFAULTS, gpus)
    assert useless({"precision": "bf16"}, DEFAULTS, gpus)


def test_a_space_of_unknown_settings_is_refused(storage: Storage) -> None:
    with pytest.raises(RaysysError, match="cannot try momentum"):
        tune.tune_throughput("x", Regression(), {}, DEFAULTS, storage, space={"momentum": [0.9]})
    with pytest.raises(RaysysError, match="list of values"):
        tune.tune_throughput("x", Regression(), {}, DEFAULTS, storage, space={"num_workers": []})


def test_what_does_not_fit_is_refused_before_anything_starts(
    ray_cluster: None, storage: Storage
) -> None:
    with pytest.raises(ResourceError, match="needs 64 CPUs"):
        tune.tune_throughput("x", Regression(), {}, DEFAULTS, storage, space={"num_workers": [64]})


@pytest.fixture(scope="module")
def found(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tune.Throughput:
    """One real search; worker processes take long to start."""
    tables = {"rows": Table.load(rows)}
    space = {"num_workers": [1, 2], "gradient_accumulation_steps": [200], "batch_size": [400]}
    return tune.tune_throughput(
        "real", Regression(), tables, DEFAULTS, Storage(tmp_path_factory.mktemp("storage")),
        samples=SAMPLES, metric="loss", space=space, budget_s=600.0,
    )  # fmt: skip


def plain(settings: TrainSettings) -> float:
    """The loss of a run in one process."""
    measured: list[dict[str, float]] = []
    shorter = settings.model_copy(
        update={"max_steps": SAMPLES // settings.batch_size, "epochs": 2, "seed": DEFAULTS.seed}
    )
    train.train_in_process(
        Regression(), {"rows": rows()}, shorter, lambda epoch, _: measured.append(epoch)
    )
    return measured[-1]["loss"]


def test_losses_are_those_of_plain_runs(found: tune.Throughput) -> None:
    assert found.samples == SAMPLES
    with_losses = [one for one in found.tried if one.losses]
    assert len(with_losses) >= 2
    for one in with_losses:
        assert one.losses[0] == pytest.approx(plain(one.settings), rel=1e-4)


def test_a_failure_is_recorded_with_its_reason(found: tune.Throughput) -> None:
    failed = [one for one in found.tried if one.failed]
    assert [one.changed["gradient_accumulation_steps"] for one in failed] == [200]
    assert failed[0].failed
    assert failed[0].failed in found.table()


def test_a_search_measures_chooses_and_is_recorded(found: tune.Throughput) -> None:
    labels = [one.label for one in found.tried]
    assert labels[0] == "defaults"
    assert "num_workers=1" in str(labels)
    assert any("batch_size=400" in label for label in labels)
    for one in found.tried:
        if not one.failed:
            assert one.samples_per_s
            held = one.settings.num_workers * (one.settings.threads_per_worker or 1)
            assert one.cost == pytest.approx(held * 1e6 / one.samples_per_s)
            assert one.memory_bytes
            assert 50e6 < one.memory_bytes < 4e9
    assert found.best in found.tried
    assert found.best.run_s(3000) <= found.defaults.run_s(3000)
    assert found.plot().startswith(b"\x89PNG")


def test_the_recommended_settings_train(found: tune.Throughput) -> None:
    recommended = found.recommended
    assert recommended.epochs == DEFAULTS.epochs
    assert math.isfinite(plain(recommended))
    assert np.isfinite(found.best.loss or math.nan)


def test_a_dead_worker_ends_one_try_only(ray_cluster: None) -> None:
    class Dying(Regression):
        def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
            if len(rows) == 13:
                os._exit(1)
            return super().batch(rows, rng)

    tables = {"rows": Table.load(rows)}
    one = DEFAULTS.model_copy(update={"num_workers": 1})
    with train.TrialSession(Dying(), tables, one) as session:
        opened = session.prepare(one)
        with pytest.raises(TrainError, match="a worker died"):
            session.prepare(one.model_copy(update={"batch_size": 13}))
        assert session.run_steps(opened, 4).step_s > 0
        assert session.machine.examples == len(pa.table(rows()))
