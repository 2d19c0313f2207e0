"""A small task that every strategy can train: regression by SGD."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raysys.train import TrainingTask


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((self.layers(x)[:, 0] - y) ** 2).mean()


class Regression(TrainingTask):
    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        rows = tables["rows"]
        self.x = np.stack([rows[f"x{i}"].to_numpy() for i in range(4)], axis=1).astype(np.float32)
        self.y = rows["y"].to_numpy().astype(np.float32)
        return len(self.y)

    def build(self) -> nn.Module:
        return Regressor()

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.from_numpy(self.x[rows]), "y": torch.from_numpy(self.y[rows])}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return {"loss": float(module(torch.from_numpy(self.x), torch.from_numpy(self.y)))}


class Normalised(Regression):
    """With running statistics, which differ between workers."""

    def build(self) -> nn.Module:
        module = Regressor()
        module.layers.insert(1, nn.BatchNorm1d(16))
        return module


class Unused(Regression):
    """With a layer that no batch uses."""

    def build(self) -> nn.Module:
        module = Regressor()
        module.never = nn.Linear(3, 3)
        return module


class Branched(Regression):
    """With layers for rare examples: few batches, or parts of one, use them."""

    def build(self) -> nn.Module:
        return BranchedRegressor()


class BranchedRegressor(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.rare, self.rarest = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = self.layers(x)[:, 0]
        for least, layer in ((2.0, self.rare), (2.8, self.rarest)):
            chosen = x[:, 0] > least
            if chosen.any():
                output = output.index_add(0, chosen.nonzero()[:, 0], layer(x[chosen, :1])[:, 0])
        return ((output - y) ** 2).mean()


class Embedded(Regression):
    """An embedding with sparse gradients."""

    def build(self) -> nn.Module:
        return EmbeddedRegressor()


class EmbeddedRegressor(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 1, sparse=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        codes = (x[:, 1].abs() * 10).long().clamp(max=49)
        return ((self.layers(x)[:, 0] + self.embedding(codes)[:, 0] - y) ** 2).mean()


class Counting(nn.Module):
    """Extra state: a count of the forward passes in training."""

    passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return x

    def get_extra_state(self) -> dict[str, int]:
        return {"passes": self.passes}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.passes = state["passes"]


class Counted(Regression):
    """With a layer that has extra state, and a lazy one."""

    def build(self) -> nn.Module:
        module = Regressor()
        module.layers = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), Counting(), nn.LazyLinear(1))
        return module

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Regressor)
        return super().evaluate(module) | {"passes": module.layers[2].passes}


class SlowRegression(Regression):
    """Logs its steps, each of which takes 0.08 s, so that a test can interrupt it."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self._log("start")
        return super().prepare(tables)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        time.sleep(0.08)
        self._log("step")
        return super().batch(rows, rng)

    def _log(self, event: str) -> None:
        with self.log.open("a") as file:
            file.write(event + "\n")


def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 4))
    columns = {f"x{i}": x[:, i] for i in range(4)}
    return pa.table({**columns, "y": x @ [1.0, -2.0, 0.5, 3.0] + np.sin(3 * x[:, 0])})
