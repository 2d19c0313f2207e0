"""Stages on several processes take the steps of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from raysys.train.strategies._strategy import MicroBatch, SingleDeviceStrategy, TensorState
from tests.train.pipelined import CASES, STEPS, merged, train_alone, work

Trained = dict[str, tuple[SingleDeviceStrategy, list[float], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    """All cases, in one process and in several."""
    plain = {}
    for name, case in CASES.items():
        plain[name] = train_alone(case)
        torch.save(plain[name][2], folder / f"{name}.plain")
    mp.spawn(work, (folder,), nprocs=4)
    return {
        name: (
            plain[name][0],
            plain[name][1],
            [torch.load(folder / f"{name}.{rank}") for rank in range(case.world)],
        )
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_takes_the_steps_of_one_process(name: str, trained: Trained) -> None:
    plain, losses, workers = trained[name]
    for worker in workers:
        assert worker["losses"] == pytest.approx(losses, rel=1e-6)
        assert worker["norm"] == (plain.grad_norm and pytest.approx(plain.grad_norm, rel=1e-9))
    expected = plain.full_state_dict()
    assert workers[0]["parameters"].keys() == expected.keys()
    assert not any(worker["parameters"] for worker in workers[1:])
    for key, value in expected.items():
        torch.testing.assert_close(workers[0]["parameters"][key], value, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_one_process_resumes_a_pipeline(name: str, trained: Trained) -> None:
    plain, _, workers = trained[name]
    case = CASES[name]
    full = merged(worker["states"] for worker in workers)
    expected: dict[str, TensorState] = dict(plain.tensor_states())
    assert {n: set(state) for n, state in full.items()} == {
        n: set(state) for n, state in expected.items()
    }
    resumed = SingleDeviceStrategy(case.module(), case.train_settings(), "cpu")
    resumed.start()
    resumed.load_tensor_states(lambda key: dict(full[key]), STEPS)
    micro = [MicroBatch(part.batch, part.weight) for part in case.micro(STEPS, 0)]
    assert resumed.step(micro, 0.01) == pytest.approx(plain.step(micro, 0.01), rel=1e-6)
    for key, value in plain.full_state_dict().items():
        torch.testing.assert_close(resumed.full_state_dict()[key], value, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_resumes_one_process(name: str, trained: Trained) -> None:
    _, losses, workers = trained[name]
    for worker in workers:
        assert worker["resumed"] == pytest.approx(losses[1:], rel=1e-6)


def test_a_worker_has_the_parameters_of_its_stage_alone(trained: Trained) -> None:
    plain, _, workers = trained["tied, clipped"]
    total = sum(p.nbytes for p in plain.inner.parameters())
    assert sum(worker["bytes"] for worker in workers) == total
    assert max(worker["bytes"] for worker in workers) < 0.7 * total


@pytest.mark.usefixtures("trained")
def test_a_non_finite_loss_stops_all_workers_and_names_the_layer(folder: Path) -> None:
    for rank in range(2):
        results = torch.load(folder / f"spoiled.{rank}")
        assert results["refused"] == "the loss is nan"
        assert results["divergence_error"] == "first"
        assert results["changed"] == []


@pytest.mark.usefixtures("trained")
def test_micro_batches_of_another_shape_are_refused(folder: Path) -> None:
    for rank in range(2):
        message = torch.load(folder / f"spoiled.{rank}")["odd"]
        assert "x is torch.float64 (3, 8), expected torch.float64 (8, 8)" in message
        assert "multiple of gradient_accumulation_steps" in message
