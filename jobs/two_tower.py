"""Two-tower retrieval: a person's recent favourites and a film, as vectors of one space."""

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

HISTORY = 30  # favourites that the person's tower looks back on
_YEARS_A_BUCKET, _FIRST_YEAR, _YEAR_BUCKETS = 5, 1900, 30


class Towers(nn.Module):
    """Both towers, which share the films' vectors.

    A film is its own embedding plus those of its genres and its half-decade. A person is a
    network over three means of their favourites' vectors, weighted by learned decays that
    start short, middling and flat.
    """

    def __init__(
        self, genres: np.ndarray, years: np.ndarray, dim: int, dropout: float, drop_history: float
    ) -> None:
        """Make the towers.

        Args:
            genres: float32 `(films, genres)`, rows that sum to 1.
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
        """All films, `(films, dim)`, without their popularity."""
        every = torch.arange(self.films, device=self.genres.device)
        return self.film(every) + self.genre(self.genres) + self.year(self.years)

    def person_vectors(self, history: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        """People as `(n, dim)`, from favourites `(n, HISTORY)`, newest first, padded with -1."""
        there = (history >= 0).float()
        if self.training:
            there = there * (torch.rand_like(there) >= self.drop_history)
        weights = torch.exp(self.decay)[None] * there[:, None]
        weights = weights / (weights.sum(dim=2, keepdim=True) + 1e-6)
        means = weights @ functional.embedding(history.clamp(min=0), films)
        seen = self.dropout(means.flatten(1))
        return self.linear(seen) + self.hidden(seen)

    def forward(
        self, history: torch.Tensor, target: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        """Softmax loss of the film chosen next against a uniform sample of the others.

        The negatives' logits are raised by the logarithm of the sampling rate, so that the
        sum estimates that over all films (Bengio & Senécal, 2008).
        """
        films = self.film_vectors()
        people = self.person_vectors(history, films)
        # `embedding`, not indexing: the backward pass of the latter adds in any order.
        chosen = (people * functional.embedding(target, films)).sum(dim=1)
        chosen = chosen + self.popularity(target)[:, 0]
        others = (
            people @ functional.embedding(negatives, films).T + self.popularity(negatives)[:, 0]
        )
        others = others + float(np.log(self.films / len(negatives)))
        others = others.masked_fill(negatives[None] == target[:, None], -torch.inf)
        logits = torch.cat([chosen[:, None], others], dim=1)
        return functional.cross_entropy(logits, torch.zeros_like(target))

    @torch.no_grad()
    def index_vectors(self) -> np.ndarray:
        """float32 `(films, dim + 1)`: inner products with `query_vectors` are the scores."""
        return torch.cat([self.film_vectors(), self.popularity.weight], dim=1).numpy()

    @torch.no_grad()
    def query_vectors(self, history: np.ndarray) -> np.ndarray:
        """float32 `(n, dim + 1)` of people with this history."""
        people = self.person_vectors(torch.from_numpy(history), self.film_vectors())
        return torch.cat([people, torch.ones(len(people), 1)], dim=1).numpy()


@dataclass
class TwoTower(TrainingTask):
    """Predict each favourite of a person from those before it.

    Attributes:
        parts: Ratings with `part < parts` train; 1 is up to the validation cut, 2 to the test
            cut. With 1, the validation favourites measure the model.
    """

    parts: int = 1
    dim: int = 64
    dropout: float = 0.35
    drop_history: float = 0.2
    negatives: int = 2048

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        """Keep histories and targets of the `ratings`, genres and years of the `films`."""
        self._genres, self._years = film_content(tables["films"])
        person, film, part = favourites(tables["ratings"], tables["films"])
        known = part < self.parts
        self._target = film[known]
        self._history = histories(person[known], film[known])
        self._validation: tuple[np.ndarray, np.ndarray, list[np.ndarray]] | None = None
        if self.parts == 1:
            self._validation = _held_out(person, film, part)
        return len(self._target)

    def build(self) -> Towers:
        """Fresh towers."""
        return Towers(self._genres, self._years, self.dim, self.dropout, self.drop_history)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """History, target and negatives, the latter one sample for the whole global batch."""
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
        history, wanted, excluded = self._validation
        scores = module.query_vectors(history) @ module.index_vectors().T
        log_total = torch.logsumexp(torch.from_numpy(scores), dim=1).numpy()
        loss = (log_total[:, None] - np.take_along_axis(scores, wanted, axis=1)).mean()
        for row, films in enumerate(excluded):
            scores[row, films] = -np.inf
        ranked = top_k(scores, 20)
        return {
            "validation_loss": float(loss),
            "ndcg_at_10": float(ndcg(ranked, wanted, 10).mean()),
            "recall_at_20": float(recall(ranked, wanted, 20).mean()),
        }


def film_content(films: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Genre shares float32 `(films, genres)` and year buckets int64 `(films,)`."""
    lists = [text.split("|") for text in films["genres"].to_pylist()]
    names = sorted({name for names in lists for name in names})
    shares = np.zeros((len(lists), len(names)), np.float32)
    for row, of_film in enumerate(lists):
        shares[row, [names.index(name) for name in of_film]] = 1 / len(of_film)
    years = np.nan_to_num(films["year"].to_numpy())
    buckets = np.clip((years - _FIRST_YEAR) // _YEARS_A_BUCKET, 0, _YEAR_BUCKETS - 1)
    return shares, buckets.astype(np.int64)


def favourites(ratings: pa.Table, films: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Person, film (row of `films`) and part of each positive rating, in each person's order."""
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
    """Each person once, and their newest favourites, int64 `(people, HISTORY)`."""
    people, last = np.unique(person[::-1], return_index=True)
    last = len(person) - 1 - last
    newest = np.concatenate([film[last][:, None], histories(person, film)[last, :-1]], axis=1)
    return people, newest


def _held_out(
    person: np.ndarray, film: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """History, wanted films and known favourites of the people with a validation set."""
    held = part == 1
    tested = np.unique(person[held])
    people, newest = latest(person[part < 1], film[part < 1])
    wanted = np.stack([film[held & (person == one)] for one in tested])
    excluded = [film[(part < 1) & (person == one)] for one in tested]
    return newest[np.searchsorted(people, tested)], wanted, excluded
