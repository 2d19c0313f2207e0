"""Every strategy takes the steps of one process, and reads checkpoints of any other."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysys.errors import TrainError
from raysys.storage import Storage
from raysys.train import EpochMetrics, StateDict, TrainSettings
from raysys.train._checkpoint import CheckpointWriter, TrainingProgress, newest, opened
from raysys.train._loop import run_steps
from raysys.train._module import built_module, load_extra_state
from raysys.train.strategies._registry import make_strategy
from raysys.train.strategies._strategy import SingleDeviceStrategy, Strategy
from tests.train import tasks
from tests.train.tasks import rows

STEPS = 12
HALF = 5  # steps before a checkpoint: in the middle of the second epoch
BATCH = 375  # four steps an epoch
STRATEGIES = ("ddp", "fsdp", "pipeline", "zero1", "zero2", "zero3")


def settings(strategy: str, **changed: Any) -> TrainSettings:
    return TrainSettings.model_validate({
        "strategy": strategy, "max_steps": STEPS, "epochs": 3, "batch_size": BATCH - BATCH % 12,
        "learning_rate": 0.02, "weight_decay": 0.1, "evaluate": False, **changed,
    })  # fmt: skip


class StoppedError(Exception):
    pass


class Recorder:
    def __init__(self, strategy: Strategy, stop: int, checkpoints: CheckpointWriter | None) -> None:
        self.strategy, self.stop, self.checkpoints = strategy, stop, checkpoints
        self.history: list[EpochMetrics] = []

    def on_epoch_end(self, measured: EpochMetrics, parameters: StateDict) -> None:
        self.history.append(measured)

    def on_step_end(
        self, progress: TrainingProgress, loss: float, point: Mapping[str, float] | None
    ) -> None:
        if progress.step == self.stop:
            if self.checkpoints:
                self.checkpoints.save(self.strategy, progress)
                self.checkpoints.wait()
            raise StoppedError


def trained(
    run_settings: TrainSettings,
    storage: Storage | None = None,
    *,
    stop: int = STEPS,
    save: str | None = None,
    load: str | None = None,
    alone: bool = False,
    task_name: str = "Regression",
) -> tuple[StateDict, list[float], float | None]:
    """StateDict (of rank 0), the losses of the epochs that ended, and the last norm."""
    task = getattr(tasks, task_name)()
    examples = task.prepare({"rows": rows()})
    if alone:
        module = built_module(task, run_settings.seed, examples)
        strategy: Strategy = SingleDeviceStrategy(module, run_settings, "cpu")
        strategy.start()  # type: ignore[attr-defined]
    else:
        module = built_module(task, run_settings.seed, examples)
        strategy = make_strategy(task, module, run_settings, "cpu", examples)
    rank, world = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    progress = TrainingProgress()
    if storage and load:
        name = newest(storage, load)
        assert name
        with opened(storage, load, name) as saved:
            strategy.load_tensor_states(saved.read, saved.progress.step)
            load_extra_state(strategy.inner, saved.extra_state)
            progress = saved.progress
    checkpoints = None
    if storage and save:
        checkpoints = CheckpointWriter(storage, save, attempt="a", rank=rank, world=world)
    recorder = Recorder(strategy, stop, checkpoints)
    with contextlib.suppress(StoppedError):
        run_steps(task, run_settings, strategy, examples, progress, recorder, rank=rank)
    return (
        strategy.full_state_dict(),
        [epoch["train_loss"] for epoch in recorder.history],
        strategy.grad_norm,
    )


def worker(rank: int, world: int, port: int, folder: str, plan: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train does
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    storage = Storage(folder)
    for item in plan:
        name, error, result = item.pop("name"), None, None
        chosen = settings(**item.pop("settings"), num_workers=world)
        try:
            # Also without a GPU, so that the ways of DeepSpeed's offload are taken.
            with mock.patch.object(Strategy, "offloads", chosen.cpu_offload):
                result = trained(chosen, storage, **item)
        except TrainError as caught:
            error = (str(caught), caught.step, caught.layer)
        if rank == 0:
            torch.save({"result": result, "error": error}, Path(folder) / f"{name}.result")
        dist.barrier()
    dist.destroy_process_group()


def spawned(folder: Path, world: int, plan: list[dict[str, Any]]) -> dict[str, Any]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (world, port, str(folder), plan), nprocs=world)
    return {
        item["name"]: torch.load(folder / f"{item['name']}.result", weights_only=True)
        for item in plan
    }


def assert_same(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """All runs of two processes, in one start of them."""
    folder = tmp_path_factory.mktemp("strategies")
    plan: list[dict[str, Any]] = []
    for strategy in STRATEGIES:
        plan += [
            {"name": strategy, "settings": {"strategy": strategy}},
            {
                "name": f"{strategy}-accumulated",
                "settings": {
                    "strategy": strategy, "gradient_accumulation_steps": 3, "max_grad_norm": 0.5,
                },
            },
            {
                "name": f"{strategy}-half", "settings": {"strategy": strategy}, "stop": HALF,
                "save": f"{strategy}-half",
            },
        ]  # fmt: skip
    # Each resumed under its own strategy and under the next one.
    for at, strategy in enumerate(STRATEGIES):
        after = STRATEGIES[(at + 1) % len(STRATEGIES)]
        for resumed in (strategy, after):
            plan.append({
                "name": f"{strategy}-to-{resumed}", "settings": {"strategy": resumed},
                "load": f"{strategy}-half",
            })  # fmt: skip
        plan.append({
            "name": f"{strategy}-unused", "settings": {"strategy": strategy}, "task_name": "Unused",
        })  # fmt: skip
    for strategy in ("zero1", "zero2", "zero3"):
        offloaded, path = {"strategy": strategy, "cpu_offload": True}, f"{strategy}-offloaded"
        plan += [
            {
                "name": path,
                "settings": {**offloaded, "gradient_accumulation_steps": 3, "max_grad_norm": 0.5},
            },
            {"name": f"{path}-half", "settings": offloaded, "stop": HALF, "save": path},
            {"name": f"{path}-rest", "settings": offloaded, "load": path},
        ]
    for task_name in ("Normalised", "Embedded", "Counted"):
        for name, rest in (
            ("whole", {}),
            ("half", {"stop": HALF, "save": task_name}),
            ("rest", {"load": task_name}),
        ):
            plan.append({
                "name": f"{task_name}-{name}", "settings": {"strategy": "ddp"},
                "task_name": task_name, **rest,
            })  # fmt: skip
    plan.append({
        "name": "Branched", "settings": {"strategy": "ddp", "gradient_accumulation_steps": 3},
        "task_name": "Branched",
    })  # fmt: skip
    plan.append({
        "name": "sgd", "settings": {"strategy": "ddp", "optimizer": "sgd"},
        "task_name": "Embedded",
    })  # fmt: skip
    # ZeRO 3 leaves a patched PyTorch behind, which a pipeline's trace does not see through.
    plan.sort(key=lambda item: "zero" in item["settings"]["strategy"] + item.get("load", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        return spawned(folder, 2, plan), folder


def test_no_strategy_compiles_an_extension(two: tuple[dict[str, Any], Path]) -> None:
    assert not (two[1] / "extensions").exists()


@pytest.fixture(scope="module")
def alone() -> tuple[StateDict, list[float], float | None]:
    return trained(settings("ddp", num_workers=1), alone=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_take_the_steps_of_one_process(strategy: str, two: Any, alone: Any) -> None:
    parameters, losses, _ = two[0][strategy]["result"]
    assert_same(parameters, alone[0])
    assert losses == pytest.approx(alone[1], rel=1e-5)


@pytest.fixture(scope="module")
def clipped() -> tuple[StateDict, list[float], float | None]:
    return trained(settings("ddp", num_workers=1, max_grad_norm=0.5), alone=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_micro_batches_and_clipping_match_one_process(
    strategy: str, two: Any, clipped: Any
) -> None:
    parameters, losses, norm = two[0][f"{strategy}-accumulated"]["result"]
    assert_same(parameters, clipped[0])
    assert losses == pytest.approx(clipped[1], rel=1e-5)
    assert norm == pytest.approx(clipped[2], rel=1e-4)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_offloaded_state_takes_the_same_steps_and_is_restored(
    strategy: str, two: Any, alone: Any, clipped: Any
) -> None:
    parameters, losses, norm = two[0][f"{strategy}-offloaded"]["result"]
    assert_same(parameters, clipped[0])
    assert losses == pytest.approx(clipped[1], rel=1e-5)
    assert norm == pytest.approx(clipped[2], rel=1e-4)
    assert_same(two[0][f"{strategy}-offloaded-rest"]["result"][0], alone[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_resumes_under_its_own_and_another_strategy(
    strategy: str, two: Any, alone: Any
) -> None:
    results = {k: v for k, v in two[0].items() if k.startswith(f"{strategy}-to-")}
    assert len(results) == 2
    for result in results.values():
        assert_same(result["result"][0], alone[0])
        assert result["result"][1] == pytest.approx(alone[1][1:], rel=1e-5)


def test_a_checkpoint_of_two_workers_resumes_with_one_and_with_three(two: Any, alone: Any) -> None:
    storage = Storage(two[1])
    for strategy in ("zero3", "pipeline", "fsdp"):
        parameters, _, _ = trained(
            settings("ddp", num_workers=1), storage, load=f"{strategy}-half", alone=True
        )
        assert_same(parameters, alone[0])
    plan = [
        {"name": f"three-{after}", "settings": {"strategy": after}, "load": f"{before}-half"}
        for before, after in (
            ("zero3", "zero3"),
            ("zero3", "ddp"),
            ("ddp", "zero1"),
            ("ddp", "fsdp"),
        )
    ]
    for result in spawned(two[1], 3, plan).values():
        assert_same(result["result"][0], alone[0])


@pytest.mark.parametrize("task_name", ["Normalised", "Embedded", "Counted"])
def test_statistics_sparse_momenta_and_extra_state_are_restored(task_name: str, two: Any) -> None:
    whole, rest = (two[0][f"{task_name}-{name}"]["result"][0] for name in ("whole", "rest"))
    extra = "layers.2._extra_state"
    assert whole.pop(extra, None) == rest.pop(extra, None)
    assert_same(rest, whole)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_layer_that_no_batch_uses_changes_nothing_else(
    strategy: str, two: Any, alone: Any
) -> None:
    parameters, losses, _ = two[0][f"{strategy}-unused"]["result"]
    assert_same({k: v for k, v in parameters.items() if not k.startswith("never")}, alone[0])
    assert losses == pytest.approx(alone[1], rel=1e-5)


def test_layers_that_few_batches_use_are_trained_as_in_one_process(two: Any) -> None:
    one_process = trained(settings("ddp", num_workers=1), alone=True, task_name="Branched")
    assert_same(two[0]["Branched"]["result"][0], one_process[0])


@pytest.mark.parametrize(("name", "optimizer"), [("Embedded-whole", "adamw"), ("sgd", "sgd")])
def test_sparse_gradients_are_averaged_over_the_workers(
    name: str, optimizer: str, two: Any
) -> None:
    alone = settings("ddp", num_workers=1, optimizer=optimizer)
    one_process = trained(alone, alone=True, task_name="Embedded")
    assert_same(two[0][name]["result"][0], one_process[0])
