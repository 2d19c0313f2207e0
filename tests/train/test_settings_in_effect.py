"""Each setting that only changes speed or memory does what it says."""

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from raysys.train import Batch, TrainSettings
from raysys.train._loader import micro_batches
from raysys.train._module import built_module
from raysys.train._settings import GPU_BACKEND
from raysys.train.strategies import _data_parallel, _zero
from raysys.train.strategies._registry import make_strategy
from raysys.train.strategies._strategy import Strategy
from tests.train.tasks import Regression, rows

HAS_GPU = torch.cuda.is_available()


class Wide(Regression):
    """A weight of full rank, and the dtype that its layer computes in."""

    def build(self) -> nn.Module:
        return WideNet()


class WideNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = self.weights(x)
        self.dtype = output.dtype
        targets = y[:, None] * torch.arange(32) / 32
        return (output.float() - torch.sin(targets)).square().mean()


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    backend = GPU_BACKEND if HAS_GPU else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stepped(steps: int, **settings: Any) -> tuple[Strategy, list[torch.Tensor]]:
    """A strategy after some steps, and the gradients of its square weight in each."""
    chosen = TrainSettings.model_validate({"num_workers": 1, "batch_size": 64, **settings})
    task = Wide()
    examples = task.prepare({"rows": rows()})
    strategy = make_strategy(task, built_module(task, 0, examples), chosen, "cpu", examples)
    gradients: list[torch.Tensor] = []
    optimizer: torch.optim.Optimizer = strategy.optimizer  # type: ignore[attr-defined]
    weight = strategy.inner.weights[2].weight  # type: ignore[index, union-attr]
    optimizer.register_step_pre_hook(lambda *_: gradients.append(weight.grad.clone()))  # type: ignore[union-attr]
    batches = micro_batches(
        task, chosen, examples, data_shard=(0, 1), steps=range(steps), device="cpu"
    )
    for micro in batches:
        strategy.step(micro, 0.01)
    return strategy, gradients


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32)],
)
def test_precision_is_that_of_the_layers_and_not_of_the_parameters(
    precision: str, dtype: torch.dtype
) -> None:
    strategy, gradients = stepped(1, precision=precision)
    assert strategy.inner.dtype is dtype
    assert gradients[0].dtype is torch.float32
    assert {p.dtype for p in strategy.inner.parameters()} == {torch.float32}


def test_fp16_compression_sends_half_of_each_gradient() -> None:
    (plain,), (half,) = stepped(1)[1], stepped(1, gradient_compression="fp16")[1]
    assert torch.equal(half, plain.half().float())
    assert not torch.equal(half, plain)


def test_powersgd_sends_gradients_of_rank_4_after_ten_steps() -> None:
    ranks = [int(torch.linalg.matrix_rank(g, rtol=1e-4)) for g in stepped(
        14, gradient_compression="powersgd"
    )[1]]  # fmt: skip
    assert min(ranks[:10]) > 4
    assert max(ranks[10:]) <= 4


def test_a_compiled_module_runs_as_one_graph_with_the_same_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Generating code takes most of a minute, and is PyTorch's.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    compiled = stepped(2, compile=True)[1]
    assert counts["unique_graphs"] == 1
    for ours, plain in zip(compiled, stepped(2)[1], strict=True):
        torch.testing.assert_close(ours, plain)
    torch.compiler.reset()


def test_prefetched_batches_are_prepared_ahead_in_another_thread() -> None:
    made: list[str] = []

    class Observed(Regression):
        def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
            made.append(threading.current_thread().name)
            enough.set() if len(made) == 4 else None
            return super().batch(rows, rng)

    enough, task = threading.Event(), Observed()
    settings = TrainSettings(num_workers=1, batch_size=100, prefetch_batches=3)
    batches = micro_batches(
        task, settings, task.prepare({"rows": rows()}),
        data_shard=(0, 1), steps=range(9), device="cpu",
    )  # fmt: skip
    next(batches)
    assert enough.wait(10), "three batches wait while the first is used"
    assert threading.current_thread().name not in made
    assert len(list(batches)) == 8
    assert len(made) == 9


@pytest.mark.parametrize(
    ("strategy", "device", "offloaded"),
    [
        ("zero1", "cuda", {"offload_optimizer"}),
        ("zero2", "cuda:0", {"offload_optimizer"}),
        ("zero3", "cuda", {"offload_optimizer", "offload_param"}),
        ("zero3", "cpu", set()),
    ],
)
def test_zero_offloads_from_a_gpu(
    strategy: str, device: str, offloaded: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = []

    class StoppedError(Exception):
        pass

    def initialize(config: dict[str, Any], **_: Any) -> None:
        configs.append(config["zero_optimization"])
        raise StoppedError

    operators = SimpleNamespace(__compatible_ops__={})
    fake = SimpleNamespace(ops=operators, initialize=initialize)
    monkeypatch.setattr(_zero, "deepspeed", fake)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for cpu_offload in (True, False):
        settings = TrainSettings(strategy=strategy, cpu_offload=cpu_offload)  # type: ignore[arg-type]
        with pytest.raises(StoppedError):
            _zero.ZeroStrategy(WideNet(), settings, device, stage=int(strategy[-1]))
    offloading, plain = configs
    assert {key for key in offloading if key.startswith("offload")} == offloaded
    assert all(offloading[key] == {"device": "cpu"} for key in offloaded)
    assert not {key for key in plain if key.startswith("offload")}


@pytest.mark.parametrize(
    ("cpu_offload", "device", "kind"),
    [
        (True, "meta", CPUOffloadPolicy),
        (False, "meta", OffloadPolicy),
        (True, "cpu", OffloadPolicy),
    ],
)
def test_fsdp_offloads_all_parameters_from_a_device(
    cpu_offload: bool, device: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = []

    def fully_shard(module: nn.Module, mesh: Any, offload_policy: OffloadPolicy) -> None:
        policies.append(offload_policy)

    monkeypatch.setattr(_data_parallel, "fully_shard", fully_shard)
    monkeypatch.setattr(_data_parallel, "init_device_mesh", lambda *_: None)
    settings = TrainSettings(strategy="fsdp", cpu_offload=cpu_offload)
    _data_parallel.FSDPStrategy(WideNet(), settings, device)
    assert len(policies) > 1, "blocks, and the rest of the module"
    assert {type(policy) for policy in policies} == {kind}


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["fsdp", "zero2"])
def test_offloaded_training_on_a_gpu_takes_the_same_steps_in_less_of_its_memory(
    strategy: str,
) -> None:
    def steps(cpu_offload: bool) -> tuple[list[float], dict[str, torch.Tensor], set[str]]:
        settings = TrainSettings.model_validate({
            "num_workers": 1, "batch_size": 64, "strategy": strategy, "cpu_offload": cpu_offload,
            "max_grad_norm": 0.5, "precision": "fp32",
        })  # fmt: skip
        task = Wide()
        examples = task.prepare({"rows": rows()})
        ours = make_strategy(task, built_module(task, 0, examples), settings, "cuda:0", examples)
        batches = micro_batches(
            task, settings, examples, data_shard=(0, 1), steps=range(5), device="cuda:0"
        )
        losses = [ours.step(micro, 0.01) for micro in batches]
        optimizer: Any = ours.engine.optimizer if strategy == "zero2" else ours.optimizer  # type: ignore[attr-defined]
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        return losses, ours.full_state_dict(), {moment.device.type for moment in moments}

    losses, parameters, devices = steps(cpu_offload=True)
    expected, same, plain_devices = steps(cpu_offload=False)
    assert (devices, plain_devices) == ({"cpu"}, {"cuda"})
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(parameters, same, rtol=1e-3, atol=1e-5)
