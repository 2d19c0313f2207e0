"""The serving graph: from a person's id to films that they have not rated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xgboost
from pydantic import BaseModel, Field

from jobs.film_etl import NOW, TEST
from jobs.film_features import FilmFeatures
from jobs.film_retrieval import CANDIDATES, build_towers, candidates, index_search
from raysys.evaluate import ndcg, recall, top_k
from raysys.serve import Graph, LazyModel, LazyObject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from raysys.data import Table
    from raysys.index import VectorIndex
    from raysys.models import StoredModel
    from raysys.storage import Storage
    from raysys.train import StateDict


class RecommendRequest(BaseModel):
    """A person, and the number of films."""

    user_id: int = Field(description="userId in the ratings")
    k: int = Field(10, ge=1, le=CANDIDATES, description="number of films")


class Film(BaseModel):
    """A recommended film; scores are comparable within a response."""

    movie_id: int
    title: str
    year: int | None
    genres: list[str]
    score: float


class RecommendResponse(BaseModel):
    """Films that the person has not rated, best first."""

    user_id: int
    known_user: bool = Field(description="false for a user without ratings: popular films")
    films: list[Film]


SIGNATURE = {
    "request": RecommendRequest.model_json_schema(),
    "response": RecommendResponse.model_json_schema(),
}


class FilmGraph:
    """Nodes of the graph over a stored model.

    Features of the person -> user tower -> index -> features of the candidates -> ranker ->
    films not rated yet.
    """

    def __init__(self, model: Path, index: str, *, part: int, rated: bool) -> None:
        """Load a model.

        Args:
            model: The folder of the stored model.
            index: Name of the running index of the films' vectors.
            part: Cut of the ratings, see `FilmFeatures`.
            rated: Exclude all films that a person has rated, not only their favourites.
        """
        self._films = pq.read_table(model / "films.parquet")
        ratings, people = (
            pq.read_table(model / f"{name}.parquet") for name in ("ratings", "people")
        )
        self.features_at_cut = FilmFeatures(ratings, self._films, people, part)
        parameters = torch.load(model / "towers.pt", weights_only=True)
        self._towers, self._rated = build_towers(self._films, parameters), rated
        self._search = index_search(index)
        self._ranker = xgboost.Booster(model_file=model / "ranker.ubj")
        self._ranker.set_param({"nthread": 1})
        self._popular = self.features_at_cut.popular()[:CANDIDATES]
        self._columns = {
            name: self._films[name].to_pylist() for name in ("movieId", "title", "year", "genres")
        }

    def person(self, user_id: np.ndarray) -> np.ndarray:
        """Rows of people, -1 for unknown ids."""
        return self.features_at_cut.rows(user_id)

    def retrieved(self, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates of the towers; popular films for unknown people."""
        films = np.tile(self._popular, (len(person), 1))
        scores = np.zeros(films.shape, np.float32)
        is_known = person >= 0
        if is_known.any():
            people = person[is_known]
            films[is_known], scores[is_known] = candidates(
                self.features_at_cut, self._towers, self._search, people, rated=self._rated
            )
        return films, scores

    def features(self, person: np.ndarray, retrieved: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Features of the candidates; zero for unknown people."""
        films, _ = retrieved
        is_known = person >= 0
        values = self.features_at_cut.candidate_features(person[is_known], films[is_known])
        features = np.zeros((*films.shape, values.shape[2]), np.float32)
        features[is_known] = values
        return features

    def ranked(
        self, person: np.ndarray, retrieved: tuple[np.ndarray, np.ndarray], features: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Films `(n, CANDIDATES)` by descending score of the ranker, and the scores."""
        films, retrieval_scores = retrieved
        count, width, _ = features.shape
        scores = self._ranker.inplace_predict(features.reshape(count * width, -1))
        scores = np.where((person >= 0)[:, None], scores.reshape(count, width), -np.arange(width))
        # The retrieval has fewer films than candidates.
        scores = np.where(np.isneginf(retrieval_scores), -np.inf, scores)
        order = top_k(scores, width)
        return np.take_along_axis(films, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def answer(
        self,
        user_id: np.ndarray,
        k: np.ndarray,
        person: np.ndarray,
        ranked: tuple[np.ndarray, np.ndarray],
    ) -> list[dict[str, Any]]:
        """Responses, in the form of `RecommendResponse`."""
        return [
            {
                "user_id": int(user),
                "known_user": bool(row >= 0),
                "films": [
                    self._film(film, score)
                    for film, score in zip(films[:count], scores, strict=False)
                    if score > -np.inf
                ],
            }
            for user, count, row, films, scores in zip(user_id, k, person, *ranked, strict=True)
        ]

    def _film(self, film: int, score: float) -> dict[str, Any]:
        year = self._columns["year"][film]
        return {
            "movie_id": self._columns["movieId"][film],
            "title": self._columns["title"][film],
            "year": None if year is None or year != year else int(year),
            "genres": self._columns["genres"][film].split("|"),
            "score": float(score),
        }


def write_model(
    tables: Mapping[str, Table], parameters: StateDict, ranker: bytes, folder: Path
) -> None:
    """Write the files that `FilmGraph` loads into a model's folder."""
    for name, table in tables.items():
        pq.write_table(table.to_arrow(), folder / f"{name}.parquet")
    torch.save(parameters, folder / "towers.pt")
    (folder / "ranker.ubj").write_bytes(ranker)


def build_graph(films: FilmGraph | LazyObject, output: str = "answer") -> Graph:
    """The graph over a model that is loaded, or loaded by each replica; "ranked" ends at scores."""
    return Graph(
        inputs=RecommendRequest,
        nodes={
            "person": films.person,
            "retrieved": films.retrieved,
            "features": films.features,
            "ranked": films.ranked,
            "answer": films.answer,
        },
        output=output,
        response=RecommendResponse,
    )


def endpoint_graph(storage: Storage, model: StoredModel, index: VectorIndex) -> Graph:
    """The served graph: uses all ratings, and excludes all rated films."""
    return build_graph(LazyModel(FilmGraph, storage, model, index.name, part=NOW, rated=True))


def measure(
    block: pa.Table,
    tables: Mapping[str, Table],
    storage: Storage,
    model: StoredModel,
    index: VectorIndex,
) -> pa.Table:
    """Metrics of the people of a block that have a test set, with and without the ranker."""
    films = FilmGraph(model.fetch(storage), index.name, part=TEST, rated=False)
    features = films.features_at_cut
    favourites = features.favourites_in_part(
        tables["ratings"].to_arrow(), tables["films"].to_arrow(), TEST
    )
    rows = np.intersect1d(features.rows(block["userId"].to_numpy()), list(favourites))
    batch = {"user_id": features.people[rows], "k": np.full(len(rows), CANDIDATES)}
    graph = build_graph(films, output="ranked")
    values = graph.run(graph.order, graph.check_columns(batch))
    relevant = np.stack([favourites[row] for row in rows]) if len(rows) else np.empty((0, 1), int)
    columns = {}
    for node in ("retrieved", "ranked"):
        ranked, _ = values[node]
        columns[f"{node}_ndcg_at_10"] = ndcg(ranked, relevant, 10)
        columns[f"{node}_recall_at_20"] = recall(ranked, relevant, 20)
    return pa.table(columns)
