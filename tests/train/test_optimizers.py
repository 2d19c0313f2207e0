"""Optimizers against their papers' formulas in NumPy, and sharded against unsharded."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from raysys.train import TrainSettings
from raysys.train._optimizers import STATE_KEYS, make_optimizer
from raysys.train._settings import OptimizerName

RATES = (0.1, 0.2, 0.05)  # of three steps
DECAY = 0.1


def settings(
    kind: OptimizerName, learning_rate: float, weight_decay: float, momentum: float
) -> TrainSettings:
    return TrainSettings(
        optimizer=kind, learning_rate=learning_rate, weight_decay=weight_decay, momentum=momentum
    )


def norm(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).sum()))


def adam(gradients: np.ndarray, eps: float) -> np.ndarray:
    """The last gradient over its spread, from the unrolled moments, corrected for their start."""
    last = len(gradients)
    first = sum(0.1 * 0.9 ** (last - 1 - at) * g for at, g in enumerate(gradients))
    second = sum(0.001 * 0.999 ** (last - 1 - at) * g**2 for at, g in enumerate(gradients))
    return (first / (1 - 0.9**last)) / (np.sqrt(second / (1 - 0.999**last)) + eps)


def by_formula(kind: str, w: np.ndarray, gradients: np.ndarray, momentum: float) -> np.ndarray:
    moved = np.zeros_like(w)
    for at, (rate, g) in enumerate(zip(RATES, gradients, strict=True)):
        decay = DECAY if w.ndim > 1 else 0.0
        if kind == "adamw":
            w = w - rate * (adam(gradients[: at + 1], 1e-8) + DECAY * w)
        elif kind == "sgd":
            moved = momentum * moved + g + DECAY * w
            w = w - rate * moved
        elif kind == "lars":
            local = 0.001 * norm(w) / (norm(g) + decay * norm(w)) if w.ndim > 1 else 1.0
            moved = momentum * moved + rate * local * (g + decay * w)
            w = w - moved
        else:
            step = adam(gradients[: at + 1], 1e-6) + decay * w
            trust = norm(w) / norm(step) if w.ndim > 1 else 1.0
            w = w - rate * trust * step
    return w


@pytest.mark.parametrize("kind", STATE_KEYS)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_three_steps_match_the_formula(kind: str, momentum: float) -> None:
    rng = np.random.default_rng(0)
    start = {"weight": rng.normal(size=(3, 4)), "deep": rng.normal(size=(2, 3, 2)),
             "bias": rng.normal(size=5), "scale": np.array(0.7)}  # fmt: skip
    gradients = {name: rng.normal(size=(3, *value.shape)) for name, value in start.items()}
    parameters = {name: nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = make_optimizer(parameters.items(), settings(kind, 9.0, DECAY, momentum))
    for at, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][at])
        optimizer.step()
    for name, parameter in parameters.items():
        expected = by_formula(kind, start[name], gradients[name], momentum)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9, err_msg=name)
        state = optimizer.state[parameter]
        keys = STATE_KEYS[kind] if momentum or kind in ("adamw", "lamb") else ()
        assert [key for key in STATE_KEYS[kind] if key in state] == list(keys)
        assert {state[key].shape for key in keys} <= {parameter.shape}


@pytest.mark.parametrize("kind", ["lars", "lamb"])
def test_without_a_norm_the_trust_ratio_is_1(kind: str) -> None:
    zero = nn.Parameter(torch.zeros(2, 2))
    still = nn.Parameter(torch.ones(2, 2))
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer(
        [("zero", zero), ("still", still), ("unused", unused)], settings(kind, 0.5, 0.0, 0.0)
    )
    zero.grad, still.grad = torch.tensor([[3.0, 0.0], [0.0, -4.0]]), torch.zeros(2, 2)
    optimizer.step()
    # Adam's first step is the gradient's sign.
    expected = [[1.5, 0.0], [0.0, -2.0]] if kind == "lars" else [[0.5, 0.0], [0.0, -0.5]]
    torch.testing.assert_close(zero.detach(), -torch.tensor(expected), rtol=1e-5, atol=0)
    assert bool((still == 1).all())
    assert bool((unused == 1).all())


def test_lamb_moves_in_proportion_to_the_weights_at_any_gradient_scale() -> None:
    moved = []
    for weight, gradient in ((1.0, 1.0), (1.0, 1000.0), (5.0, 1.0)):
        parameter = nn.Parameter(weight * torch.ones(4, 4))
        optimizer = make_optimizer([("weight", parameter)], settings("lamb", 0.01, 0.0, 0.0))
        parameter.grad = gradient * torch.ones(4, 4)
        optimizer.step()
        moved.append(float((weight - parameter.detach()).norm()))
    assert moved == pytest.approx([0.04, 0.04, 0.2], rel=1e-4)


def trained(kind: str, *, sharded: bool) -> dict[str, torch.Tensor]:
    """Full parameters and optimizer state after four steps on the same batches."""
    torch.manual_seed(0)
    # Rows that do not divide between two processes, and one row.
    module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    if sharded:
        from torch.distributed.fsdp import fully_shard

        fully_shard(module[0])
        fully_shard(module)
    optimizer = make_optimizer(module.named_parameters(), settings(kind, 0.5, DECAY, 0.9))
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(8, 6, generator=generator)
        optimizer.zero_grad()
        ((module(x) - x.sum(dim=1, keepdim=True)) ** 2).mean().backward()
        optimizer.step()
    tensors = {}
    for name, parameter in module.named_parameters():
        states = {key: optimizer.state[parameter][key] for key in STATE_KEYS[kind]}
        for key, tensor in {"value": parameter.detach(), **states}.items():
            tensors[f"{name}.{key}"] = tensor.full_tensor() if sharded else tensor
    return tensors


def _in_two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    states = {kind: trained(kind, sharded=True) for kind in STATE_KEYS}
    if rank == 0:
        torch.save(states, f"{folder}/states.pt")
    dist.destroy_process_group()


def test_sharded_parameters_take_the_steps_of_full_ones(tmp_path: Path) -> None:
    multiprocessing.spawn(_in_two_processes, (str(tmp_path),), nprocs=2)
    sharded = torch.load(tmp_path / "states.pt")
    for kind in STATE_KEYS:
        full = trained(kind, sharded=False)
        assert sharded[kind].keys() == full.keys()
        for name, tensor in full.items():
            torch.testing.assert_close(
                sharded[kind][name], tensor, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}"
            )
