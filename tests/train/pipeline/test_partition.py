"""Optimal cuts, compared with all; modules that cannot be cut are refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from raysys.errors import TrainError
from raysys.train.pipeline._cost_profile import profile
from raysys.train.pipeline._partition import PipelineStage, choose_cuts, partition
from raysys.train.pipeline._trace import trace

Batch = dict[str, torch.Tensor]


def slowest(seconds: np.ndarray, between: np.ndarray, edges: list[int]) -> float:
    sent = [0.0, *between[edges[1:-1]], 0.0]
    parts = itertools.pairwise(edges)
    return max(seconds[i:j].sum() + sent[at] + sent[at + 1] for at, (i, j) in enumerate(parts))


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_optimal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, stages = 11, int(rng.integers(2, 5))
    seconds, between = rng.exponential(1, count), rng.exponential(0.3, count)
    between[rng.random(count) < 0.2] = np.inf
    needed = (rng.random(count) < 0.5).astype(float)
    every = []
    for cuts in itertools.combinations(range(1, count), stages - 1):
        edges = [0, *cuts, count]
        if all(needed[i:j].any() for i, j in itertools.pairwise(edges)):
            time = slowest(seconds, between, edges)
            if np.isfinite(time):
                every.append((time, between[list(cuts)].sum()))
    cuts = choose_cuts(seconds, between, needed, stages)
    if not every:
        assert cuts is None
        return
    assert cuts is not None
    fastest = min(time for time, _ in every)
    near = [sent for time, sent in every if time <= 1.03 * fastest]
    assert slowest(seconds, between, [0, *cuts, count]) <= 1.03 * fastest
    assert between[cuts].sum() == pytest.approx(min(near))


def cut(module: nn.Module, batch: Batch, stages: int = 2) -> list[PipelineStage]:
    traced = trace(module, batch)
    return partition(traced, profile(traced, batch), stages)


class Chain(nn.Module):
    """Layers of one width, with all costs in matrix products."""

    def __init__(self, layers: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_equal_layers_are_divided_equally(stages: int) -> None:
    parts = cut(Chain(12), {"x": torch.zeros(4096, 64)}, stages)
    names = [name for stage in parts for name in stage.tensor_names]
    assert names == [f"layers.{at}.{kind}" for at in range(12) for kind in ("weight", "bias")]
    assert {len(stage.tensor_names) for stage in parts} == {2 * 12 // stages}
    for stage in parts[1:]:
        assert [value.shape for value in stage.each.receives] == [(4096, 64)]


class Uneven(nn.Module):
    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.table = nn.Embedding(30, 64)
        self.mix = nn.Linear(64, 64)
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.change == "parameter":
            with torch.no_grad():
                self.mix.weight.mul_(0.99)
        rows = self.mix(self.table.weight)
        x = functional.embedding(ids, rows)
        mask = (ids > 3).float()[:, None]
        if self.change == "argument":
            y.add_(1)
        if self.change == "buffer":
            self.seen += 1
            x = x * self.seen
        if self.change == "branch" and x.sum() > 0:
            x = -x
        if self.change == "hook":
            x.register_hook(lambda gradient: -gradient)
        if self.change == "function":
            x = Reversed.apply(x)
        x = self.layers(x) * mask
        if self.change == "buffer":
            x = x / self.seen
        if self.change == "vector":
            return x.mean(1)
        return functional.mse_loss(x @ rows.T * mask, y)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


BATCH = {"ids": torch.arange(256) % 30, "y": torch.zeros(256, 30)}


def test_values_of_parameters_are_sent_once_and_the_batch_never() -> None:
    first, last = cut(Uneven(), BATCH)
    assert [value.shape for value in last.once.receives] == [(30, 64)]
    assert [value.shape for value in last.each.receives] == [(256, 64)]
    assert all(value.graded for value in (*last.once.receives, *last.each.receives))
    assert "table.weight" in first.tensor_names
    assert not set(first.tensor_names) & set(last.tensor_names)


def test_all_operations_on_a_changing_buffer_share_a_stage() -> None:
    stages = cut(Uneven("buffer"), BATCH)
    reading = [
        at
        for at, stage in enumerate(stages)
        for node in stage.each.operations
        if "add_" in str(node.args)
    ]
    assert len(reading) == 2
    assert len(set(reading)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("argument", "forward changes y in place"),
        ("parameter", r"forward changes mix\.weight in place"),
        ("branch", "cannot cut Uneven: GuardOnDataDependent.*zero3 or fsdp"),
        ("hook", "puts a hook on a gradient"),
        ("function", r"Reversed is a torch\.autograd\.Function"),
        ("vector", "not one mean loss"),
    ],
)
def test_modules_that_stages_would_change_are_refused(change: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        cut(Uneven(change), BATCH)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(TrainError, match="cannot be cut into 4 stages"):
        cut(Chain(3), {"x": torch.zeros(8, 64)}, 4)
