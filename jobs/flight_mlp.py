"""A network for flight delays with a log-odds output per threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from jobs.flight_features import CODES, LATE, NUMBERS
from raysys.evaluate import binary_measures
from raysys.features import Binned, Featurizer, Numeric
from raysys.train import TrainingTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.train import StateDict

# The first is the target; the others are auxiliary targets for the distribution of the delay.
THRESHOLDS = (LATE, -15, -5, 5, 30, 60, 120)
_AUXILIARY_WEIGHT = 0.5
_MIN_MISSING_SHARE = 0.005  # of a number, for an input that flags missing values
_EMBEDDING_DIMS = (6, 2, 8)  # of carriers, origins and destinations

# Ranks flatten long tails, so the network also gets these numbers on their own scale.
_HEAVY_TAILED = (
    "origin_queue", "origin_wait", "all_queue", "carrier_queue", "region_queue", "all_24h_delay",
    "oc_3h_delay", "dest_24h_arr_delay", "origin_arr_3h_gain", "region_6h_gain", "dest_24h_gain",
    "origin_arr_3h_taxi", "flight_14d_arr_delay", "tail_slack", "tail_prev_delay", "hist_flight",
    "hist_route", "precip_3h",
)  # fmt: skip

FEATURIZER = Featurizer(
    [
        Binned(NUMBERS, n_bins=100, strategy="quantile", encode="ordinal"),
        Numeric(_HEAVY_TAILED, impute="mean", add_indicator=False, scale="standard"),
    ]
)


class DelayNetwork(nn.Module):
    """Two hidden layers over ranks, scaled numbers and embedded codes; log-odds per threshold."""

    def __init__(
        self, numbers: int, codes: tuple[int, ...], hidden: int = 384, dropout: float = 0.2
    ) -> None:
        """Create the network.

        Args:
            numbers: Number of columns of `FEATURIZER`.
            codes: Number of carriers, origins and destinations in training.
            hidden: Width of the hidden layers.
            dropout: Share of their outputs dropped in training.
        """
        super().__init__()
        self.register_buffer("middle", torch.zeros(len(NUMBERS)))
        self.register_buffer("spread", torch.ones(len(NUMBERS)))
        # Numbers missing so often that a flag can be learned.
        self.register_buffer("flagged", torch.zeros(len(NUMBERS)))
        # Row 0 is for codes unseen in training.
        self.embeddings = nn.ModuleList(
            nn.Embedding(1 + count, length)
            for count, length in zip(codes, _EMBEDDING_DIMS, strict=True)
        )
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.1)
            nn.init.zeros_(embedding.weight[0])
        width = numbers + len(NUMBERS) + sum(_EMBEDDING_DIMS)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(hidden, len(THRESHOLDS)),
        )  # fmt: skip

    def log_odds(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32 `(n, len(THRESHOLDS))`.

        Args:
            numbers: Outputs of `FEATURIZER`, float32 `(n, numbers)`: ranks from 0, -1 if missing,
                then scaled numbers.
            codes: int64 `(n, 3)`; -1 and codes unseen in training are unknown.
        """
        ranks, scaled = numbers[:, : len(NUMBERS)], numbers[:, len(NUMBERS) :]
        missing = ranks < 0
        ranks = ((ranks - self.middle) / self.spread).masked_fill(missing, 0.0)
        vectors = []
        for at, embedding in enumerate(self.embeddings):
            is_known = codes[:, at] < embedding.num_embeddings - 1
            vectors.append(embedding(torch.where(is_known, codes[:, at] + 1, 0)))
        inputs = [ranks, missing * self.flagged, scaled.clamp(-5, 5), *vectors]
        return self.layers(torch.cat(inputs, dim=1))

    def forward(
        self, numbers: torch.Tensor, codes: torch.Tensor, delay: torch.Tensor
    ) -> torch.Tensor:
        """Loss for arrival delays in minutes, float32 `(n,)`."""
        thresholds = torch.tensor(THRESHOLDS, dtype=delay.dtype, device=delay.device)
        weights = torch.full_like(thresholds, _AUXILIARY_WEIGHT)
        weights[0] = 1.0
        over = (delay[:, None] > thresholds).float()
        losses = functional.binary_cross_entropy_with_logits(
            self.log_odds(numbers, codes), over, reduction="none"
        )
        return (losses * weights).sum(dim=1).mean()

    @torch.no_grad()
    def late_log_odds(self, numbers: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Log-odds of a late arrival, float32 `(n,)`, computed in batches."""
        parts = [
            self.log_odds(torch.from_numpy(numbers[at:stop]), torch.from_numpy(codes[at:stop]))
            for at, stop in ((at, at + 16_384) for at in range(0, len(numbers), 16_384))
        ]
        return torch.cat([part[:, 0] for part in parts] or [torch.empty(0)]).numpy()


class DelayTask(TrainingTask):
    """Training on `train`, evaluation on `validation`.

    Both Tables have `FEATURIZER`'s columns, the codes, `arr_delay` and `late`.
    """

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        """Store the columns of both Tables as arrays."""
        train, validation = tables["train"], tables["validation"]
        self._numbers, self._codes = columns_of(train)
        self._scale = _scale_of(self._numbers[:, : len(NUMBERS)])
        self._delay = train["arr_delay"].to_numpy().astype(np.float32)
        self._validation = columns_of(validation)
        self._late = validation["late"].to_numpy()
        return len(self._delay)

    def build(self) -> DelayNetwork:
        """Create an untrained network with the scale of the training ranks."""
        code_counts = tuple(int(maximum) + 1 for maximum in self._codes.max(axis=0))
        network = DelayNetwork(self._numbers.shape[1], code_counts)
        for name, values in self._scale.items():
            network.get_buffer(name).copy_(torch.from_numpy(values))
        return network

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Inputs and delays of some flights."""
        arrays = {"numbers": self._numbers, "codes": self._codes, "delay": self._delay}
        return {name: torch.from_numpy(values[rows]) for name, values in arrays.items()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """ROC AUC and average precision on the validation month."""
        assert isinstance(module, DelayNetwork)
        log_odds = module.late_log_odds(*self._validation).astype(np.float64)
        metrics = binary_measures(self._late, 1 / (1 + np.exp(-log_odds)))
        return {name: metrics[name] for name in ("auc", "average_precision")}

    def predictions(self, module: nn.Module) -> pa.Table:
        """Probabilities and labels of some flights of the validation month."""
        assert isinstance(module, DelayNetwork)
        rows = np.linspace(0, len(self._late) - 1, 200).astype(np.int64)
        log_odds = module.late_log_odds(*(inputs[rows] for inputs in self._validation))
        probability = 1 / (1 + np.exp(-log_odds.astype(np.float64)))
        return pa.table({"probability": probability, "late": self._late[rows]})


def build_network(parameters: StateDict) -> DelayNetwork:
    """The network with trained parameters, in evaluation mode."""
    embeddings = [parameters[f"embeddings.{at}.weight"] for at in range(len(CODES))]
    width = parameters["layers.0.weight"].shape[1] - len(NUMBERS) - sum(_EMBEDDING_DIMS)
    network = DelayNetwork(
        width, tuple(len(rows) - 1 for rows in embeddings), len(parameters["layers.0.weight"])
    )
    network.load_state_dict(parameters)
    return network.eval()


def _scale_of(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Buffers of `DelayNetwork`, computed without missing ranks."""
    present = np.where(ranks < 0, np.nan, ranks)
    spread = np.nanstd(present, axis=0)
    return {
        "middle": np.nan_to_num(np.nanmean(present, axis=0)),
        "spread": np.where(spread > 0, spread, 1.0),
        "flagged": (ranks < 0).mean(axis=0) > _MIN_MISSING_SHARE,
    }


def columns_of(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the network: numbers float32 `(n, numbers)` and codes int64 `(n, 3)`."""
    names = [name for name in rows.column_names if name not in (*CODES, "arr_delay", "late")]
    numbers = np.empty((len(rows), len(names)), np.float32)
    for at, name in enumerate(names):
        numbers[:, at] = rows[name].to_numpy()
    return numbers, codes_of(np.stack([rows[name].to_numpy() for name in CODES], axis=1))


def codes_of(values: np.ndarray) -> np.ndarray:
    """Codes as int64, -1 for missing ones."""
    return np.where(np.isnan(values), -1, values).astype(np.int64)
