"""What the training benchmarks train: language models of any size, and a clock around a task."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from raysys.train import TrainingTask

if TYPE_CHECKING:
    from raysys.train import Batch


class LanguageModel(nn.Module):
    """A small transformer that predicts the next token."""

    def __init__(self, tokens: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(1, width // 64), 4 * width, dropout=0.0, batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.out = nn.Linear(width, tokens)
        mask = torch.full((length, length), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        seen = self.embedding(text[:, :-1]) + self.position
        for layer in self.layers:
            seen = layer(seen, src_mask=self.mask)
        logits = self.out(seen)
        return functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


@dataclass
class LanguageTask(TrainingTask):
    """The next byte of a text.

    Attributes:
        width: Of the layers.
        layers: Their number.
        length: Bytes that are seen.
        tokens: Rows of the embedding; more than 256 make it larger and no better.
    """

    width: int = 128
    layers: int = 4
    length: int = 32
    tokens: int = 256

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self.text = tables["text"]["byte"].to_numpy()
        return len(self.text) // self.length - 1

    def build(self) -> nn.Module:
        return LanguageModel(self.tokens, self.width, self.layers, self.length)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        at = rows[:, None] * self.length + np.arange(self.length + 1)
        return {"text": torch.from_numpy(self.text[at].astype(np.int64))}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        rows = np.arange(64)
        return {"loss": float(module(**self.batch(rows, np.random.default_rng(0))))}


def text(megabytes: float = 1.0) -> pa.Table:
    """English of this machine: what Python's own modules say of themselves, byte by byte."""
    folder = Path(os.__file__).parent
    found = b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
    size = int(megabytes * 1e6)
    return pa.table({"byte": np.frombuffer(found[:size], np.uint8)})


@dataclass
class Clocked(TrainingTask):
    """Another task, with the time of each call of `batch` in a file of the process."""

    inner: TrainingTask
    folder: Path

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self._file = (self.folder / f"{os.getpid()}.times").open("a", buffering=1)
        return self.inner.prepare(tables)

    def build(self) -> nn.Module:
        return self.inner.build()

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        self._file.write(f"{time.time():.6f}\n")
        return self.inner.batch(rows, rng)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return self.inner.evaluate(module)


def times(folder: Path) -> list[np.ndarray]:
    """The times of each process."""
    return [np.loadtxt(file, ndmin=1) for file in folder.glob("*.times")]
