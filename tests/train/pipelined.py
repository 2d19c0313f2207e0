"""Modules for tests of pipelines, and the processes that train them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from jobs.two_tower import HISTORY, Towers
from raysys.errors import TrainError
from raysys.train import Batch, TrainSettings
from raysys.train._divergence import divergence_error
from raysys.train.pipeline._pipeline_strategy import PipelineStrategy
from raysys.train.strategies._strategy import (
    MicroBatch,
    NotFiniteError,
    SingleDeviceStrategy,
    TensorState,
)

MICRO = 4
STEPS = 3


class Skipping(nn.Module):
    """The first layer's output skips to the last; a buffer is read at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8))
        self.first = nn.Linear(8, 16)
        self.middle = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
        self.last = nn.Linear(16, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = self.first(x * self.scale).relu()
        last = self.last(self.middle(first).tanh() + first)
        return functional.mse_loss(last[:, 0] * self.scale.mean(), y)


class Tied(nn.Module):
    """A language model whose embedding is its last layer too, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.places = nn.Parameter(0.1 * torch.randn(6, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=self.places.dtype)
        seen = self.layers(self.tokens(ids) + self.places, mask=mask, is_causal=True)
        return functional.cross_entropy(self.head(seen).flatten(0, 1), target.flatten())


class Normed(nn.Module):
    """Running statistics, a count that the output depends on, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.frozen = nn.Linear(8, 16).requires_grad_(False)
        self.layers = nn.Sequential(
            nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True),
            nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fixed = self.frozen(x)
        self.calls += 1
        counted = self.layers[0](fixed) * self.calls
        return functional.mse_loss(self.layers[1:](counted)[:, 0], y)


def towers() -> nn.Module:
    rng = np.random.default_rng(0)
    genres = rng.dirichlet(np.ones(5), 40).astype(np.float32)
    return Towers(genres, rng.integers(0, 30, 40), 8, 0.0, 0.0)


def numbers(rng: np.random.Generator) -> Batch:
    x = torch.from_numpy(rng.normal(size=(8, 8)))
    return {"x": x, "y": x.sum(1).sin()}


def sentences(rng: np.random.Generator) -> Batch:
    ids = torch.from_numpy(rng.integers(0, 50, (4, 7)))
    return {"ids": ids[:, :-1].contiguous(), "target": ids[:, 1:].contiguous()}


def people(rng: np.random.Generator) -> Batch:
    return {
        "history": torch.from_numpy(rng.integers(-1, 40, (8, HISTORY))),
        "target": torch.from_numpy(rng.integers(0, 40, 8)),
        "negatives": torch.from_numpy(rng.choice(40, 12, replace=False)),
    }


@dataclass(frozen=True)
class Case:
    build: Any
    batch: Any
    world: int = 2
    stages: int = 2
    settings: dict[str, Any] = field(default_factory=dict)

    def train_settings(self) -> TrainSettings:
        return TrainSettings.model_validate({
            "strategy": "pipeline", "num_workers": self.world, "num_stages": self.stages,
            "gradient_accumulation_steps": MICRO, "batch_size": 64, "learning_rate": 0.02,
            **self.settings,
        })  # fmt: skip

    def module(self) -> nn.Module:
        torch.manual_seed(1)
        # With float32, Adam would make steps of rounding errors where a gradient is 0 in theory.
        return self.build().double()

    def micro(self, step: int, replica: int) -> list[MicroBatch]:
        """Micro-batches of one replica; the weights of all replicas have the mean 1 / MICRO."""
        rng = np.random.default_rng([step, replica])
        weights = np.linspace(0.5, 1.5, MICRO) / MICRO
        return [MicroBatch(self.batch(rng), float(weight)) for weight in weights]


CASES = {
    "skipping, 3 stages": Case(Skipping, numbers, world=3, stages=3),
    "tied, clipped": Case(Tied, sentences, settings={"max_grad_norm": 0.3}),
    "tied, lamb": Case(Tied, sentences, settings={"optimizer": "lamb"}),
    "towers": Case(towers, people),
    "normed": Case(Normed, numbers, settings={"optimizer": "sgd"}),
    "normed, recomputed": Case(Normed, numbers, settings={"activation_checkpointing": True}),
    "skipping, 2 x 2": Case(Skipping, numbers, world=4, settings={"max_grad_norm": 0.5}),
}


def work(rank: int, folder: Path) -> None:
    """One of four processes; each case is trained by `world` of them."""
    torch.set_num_threads(1)
    for world in sorted({case.world for case in CASES.values()}):
        if rank < world:
            store = dist.FileStore(str(folder / f"store{world}"), world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
            for name, case in CASES.items():
                if case.world == world:
                    torch.save(_train(case, folder / f"{name}.plain"), folder / f"{name}.{rank}")
            if world == 2:
                torch.save(_train_spoiled(), folder / f"spoiled.{rank}")
            dist.destroy_process_group()


def _train(case: Case, plain: Path) -> dict[str, Any]:
    start: dict[str, TensorState] = torch.load(plain)
    pipeline = PipelineStrategy(
        case.module(), case.train_settings(), "cpu", case.batch(np.random.default_rng(0))
    )
    replica = pipeline.data_shard[0]
    rates = [0.02 / (step + 1) for step in range(STEPS)]
    results: dict[str, Any] = {
        "losses": [pipeline.step(case.micro(at, replica), rates[at]) for at in range(STEPS)],
        "norm": pipeline.grad_norm,
        "states": {name: _copied(state) for name, state in pipeline.tensor_states()},
        "parameters": _copied(pipeline.full_state_dict()),
        "bytes": sum(p.nbytes for p in pipeline.inner.parameters()),
    }
    pipeline.load_tensor_states(lambda name: dict(start[name]), 1)
    results["resumed"] = [
        pipeline.step(case.micro(at, replica), rates[at]) for at in range(1, STEPS)
    ]
    return results


def _train_spoiled() -> dict[str, Any]:
    """Results of a batch with a missing number, and of one of another shape."""
    case = CASES["skipping, 3 stages"]
    settings = case.train_settings().model_copy(update={"num_workers": 2, "num_stages": 2})
    pipeline = PipelineStrategy(
        case.module(), settings, "cpu", case.batch(np.random.default_rng(0))
    )
    before = _copied(dict(pipeline.inner.named_parameters()))
    micro = case.micro(0, 0)
    micro[1].batch["x"][0, 0] = torch.nan
    results: dict[str, Any] = {}
    try:
        pipeline.step(micro, 0.1)
    except NotFiniteError as error:
        results["refused"] = str(error)
        results["divergence_error"] = divergence_error(pipeline, micro, 7, str(error)).layer
    results["changed"] = [
        name
        for name, value in pipeline.inner.named_parameters()
        if not torch.equal(value, before[name])
    ]
    odd = MicroBatch({name: value[:3] for name, value in micro[0].batch.items()}, 0.5)
    try:
        pipeline.step([odd], 0.1)
    except TrainError as error:
        results["odd"] = str(error)
    return results


def train_alone(case: Case) -> tuple[SingleDeviceStrategy, list[float], dict[str, TensorState]]:
    """One process with the micro-batches of all replicas; its state after the first step too."""
    plain = SingleDeviceStrategy(case.module(), case.train_settings(), "cpu")
    plain.start()
    replicas = case.world // case.stages
    losses, after = [], {}
    for at in range(STEPS):
        micro = [part for replica in range(replicas) for part in case.micro(at, replica)]
        micro = [MicroBatch(part.batch, part.weight / replicas) for part in micro]
        losses.append(plain.step(micro, 0.02 / (at + 1)))
        after = after or {name: _copied(state) for name, state in plain.tensor_states()}
    return plain, losses, after


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def merged(parts: Iterable[dict[str, TensorState]]) -> dict[str, TensorState]:
    """State of all workers; nothing twice."""
    full: dict[str, TensorState] = {}
    for part in parts:
        assert not full.keys() & part.keys()
        full |= part
    return full
