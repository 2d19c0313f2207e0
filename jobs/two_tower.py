"""Two-tower retrieval: vectors of people, from their recent favourites, and of films."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from raysys.evaluate import ndcg, recall, top_k
from raysys.train import TrainingTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

HISTORY = 30  # favourites in the input of the person's tower
_YEARS_PER_BUCKET, _FIRST_YEAR, _YEAR_BUCKETS = 5, 1900, 30


class Towers(nn.Module):
    """Both towers, which share the films' vectors.

    A film's vector is the sum of its own embedding and those of its genres and its half-decade. A
    person's vector is a network of three means of their favourites' vectors, weighted by learned
    decays, initially short, medium and flat.
    """

    def __init__(
        self, genres: np.ndarray, years: np.ndarray, dim: int, dropout: float, drop_history: float
    ) -> None:
        """Create the towers.

        Args:
            genres: float32 `(films, genres)`; each row sums to 1.
            years: int64 `(films,)`, bucket of the year of release.
            dim: Length of the vectors.
            dropout: Share of the person's inputs dropped in training.
            drop_history: Share of favourites dropped in training.
        """
        super().__init__()
        self.films = len(genres)
        self.drop_history = drop_history
        self.film = nn.Embedding(self.films, dim)
        self.genre = nn.Linear(genres.shape[1], dim, bias=False)
        self.year = nn.Embedding(_YEAR_BUCKETS, dim)
        self.popularity = nn.Embedding(self.films, 1)
        for layer, spread in ((self.film, 0.05), (self.genre, 0.02), (self.year, 0.02)):
            nn.init.normal_(layer.weight, std=spread)
        nn.init.zeros_(self.popularity.weight)
        ages = torch.arange(HISTORY, dtype=torch.float32)
        self.decay = nn.Parameter(torch.stack([-ages / length for length in (1.5, 8.0, 1000.0)]))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(3 * dim, dim)
        self.hidden = nn.Sequential(nn.Linear(3 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.register_buffer("genres", torch.from_numpy(genres), persistent=False)
        self.register_buffer("years", torch.from_numpy(years), persistent=False)

    def film_vectors(self) -> torch.Tensor:
        """Vectors of all films, `(films, dim)`, without popularity."""
        films = torch.arange(self.films, device=self.genres.device)
        return self.film(films) + self.genre(self.genres) + self.year(self.years)

    def person_vectors(self, history: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        """Vectors of people `(n, dim)`, from favourites `(n, HISTORY)` padded with -1."""
        present = (history >= 0).float()
        if self.training:
            present = present * (torch.rand_like(present) >= self.drop_history)
        weights = torch.exp(self.decay)[None] * present[:, None]
        weights = weights / (weights.sum(dim=2, keepdim=True) + 1e-6)
        means = weights @ functional.embedding(history.clamp(min=0), films)
        inputs = self.dropout(means.flatten(1))
        return self.linear(inputs) + self.hidden(inputs)

    def forward(
        self, history: torch.Tensor, target: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        """Sampled softmax loss of the next favourite against uniformly sampled negatives.

        The negatives' logits are increased by the logarithm of the inverse sampling rate, so that
        their sum estimates the sum over all films (Bengio & Senécal, 2008).
        """
        films = self.film_vectors()
        people = self.person_vectors(history, films)
        # `embedding`, not indexing, whose backward pass is not deterministic.
        positive = (people * functional.embedding(target, films)).sum(dim=1)
        positive = positive + self.popularity(target)[:, 0]
        negative = (
            people @ functional.embedding(negatives, films).T + self.popularity(negatives)[:, 0]
        )
        negative = negative + float(np.log(self.films / len(negatives)))
        negative = negative.masked_fill(negatives[None] == target[:, None], -torch.inf)
        logits = torch.cat([positive[:, None], negative], dim=1)
        return functional.cross_entropy(logits, torch.zeros_like(target))

    @torch.no_grad()
    def index_vectors(self) -> np.ndarray:
        """Index vectors, float32 `(films, dim + 1)`; scores are inner products with queries."""
        return torch.cat([self.film_vectors(), self.popularity.weight], dim=1).numpy()

    @torch.no_grad()
    def query_vectors(self, history: np.ndarray) -> np.ndarray:
        """Query vectors of people, float32 `(n, dim + 1)`, from histories `(n, HISTORY)`."""
        people = self.person_vectors(torch.from_numpy(history), self.film_vectors())
        return torch.cat([people, torch.ones(len(people), 1)], dim=1).numpy()


@dataclass
class TwoTower(TrainingTask):
    """Prediction of each favourite of a person from the earlier ones.

    Attributes:
        parts: Train on ratings with `part < parts`: 1 up to the validation cut, 2 up to the test
            cut. With 1, `evaluate` uses the validation favourites.
    """

    parts: int = 1
    dim: int = 64
    dropout: float = 0.35
    drop_history: float = 0.2
    negatives: int = 2048

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        """Store histories and targets from `ratings`, genres and years from `films`."""
        self._genres, self._years = film_content(tables["films"])
        person, film, part = favourites(tables["ratings"], tables["films"])
        past = part < self.parts
        self._target = film[past]
        self._history = histories(person[past], film[past])
        self._validation: tuple[np.ndarray, np.ndarray, list[np.ndarray]] | None = None
        if self.parts == 1:
            self._validation = _held_out(person, film, part)
        return len(self._target)

    def build(self) -> Towers:
        """Create untrained towers."""
        return Towers(self._genres, self._years, self.dim, self.dropout, self.drop_history)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Histories, targets and negatives; one sample of negatives for the global batch."""
        films = len(self._genres)
        negatives = rng.choice(films, size=min(self.negatives, films), replace=False)
        return {
            "history": torch.from_numpy(self._history[rows]),
            "target": torch.from_numpy(self._target[rows]),
            "negatives": torch.from_numpy(negatives),
        }

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Loss over all films, NDCG@10 and Recall@20 on the validation favourites."""
        if self._validation is None or not isinstance(module, Towers):
            return {}
        history, relevant, excluded = self._validation
        scores = module.query_vectors(history) @ module.index_vectors().T
        log_total = torch.logsumexp(torch.from_numpy(scores), dim=1).numpy()
        loss = (log_total[:, None] - np.take_along_axis(scores, relevant, axis=1)).mean()
        for row, films in enumerate(excluded):
            scores[row, films] = -np.inf
        ranked = top_k(scores, 20)
        return {
            "validation_loss": float(loss),
            "ndcg_at_10": float(ndcg(ranked, relevant, 10).mean()),
            "recall_at_20": float(recall(ranked, relevant, 20).mean()),
        }


def film_content(films: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Genre shares float32 `(films, genres)` and year buckets int64 `(films,)`."""
    lists = [text.split("|") for text in films["genres"].to_pylist()]
    names = sorted({name for names in lists for name in names})
    shares = np.zeros((len(lists), len(names)), np.float32)
    for row, genres in enumerate(lists):
        shares[row, [names.index(name) for name in genres]] = 1 / len(genres)
    years = np.nan_to_num(films["year"].to_numpy())
    buckets = np.clip((years - _FIRST_YEAR) // _YEARS_PER_BUCKET, 0, _YEAR_BUCKETS - 1)
    return shares, buckets.astype(np.int64)


def favourites(ratings: pa.Table, films: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Person, film (row of `films`) and part of each positive rating, by person and time."""
    positive = ratings.filter(ratings["positive"])
    person, movie = positive["userId"].to_numpy(), positive["movieId"].to_numpy()
    order = np.lexsort((movie, positive["timestamp"].to_numpy(), person))
    film = np.searchsorted(films["movieId"].to_numpy(), movie[order])
    return person[order], film, positive["part"].to_numpy()[order]


def histories(person: np.ndarray, film: np.ndarray) -> np.ndarray:
    """Favourites before each row, int64 `(n, HISTORY)`, newest first, padded with -1."""
    before = np.full((len(person), HISTORY), -1, np.int64)
    for age in range(1, HISTORY + 1):
        same = person[age:] == person[:-age]
        before[age:, age - 1][same] = film[:-age][same]
    return before


def latest(person: np.ndarray, film: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct people and their newest favourites, int64 `(people, HISTORY)`."""
    people, last = np.unique(person[::-1], return_index=True)
    last = len(person) - 1 - last
    newest = np.concatenate([film[last][:, None], histories(person, film)[last, :-1]], axis=1)
    return people, newest


def _held_out(
    person: np.ndarray, film: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Histories, relevant films and earlier favourites of the people with a validation set."""
    validation = part == 1
    tested = np.unique(person[validation])
    people, newest = latest(person[part < 1], film[part < 1])
    relevant = np.stack([film[validation & (person == user)] for user in tested])
    excluded = [film[(part < 1) & (person == user)] for user in tested]
    return newest[np.searchsorted(people, tested)], relevant, excluded
