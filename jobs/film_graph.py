"""The serving graph: a person's id in, films that they have not seen out."""

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
    """Who wants films, and how many."""

    user_id: int = Field(description="userId of the ratings")
    k: int = Field(10, ge=1, le=CANDIDATES, description="films wanted")


class Film(BaseModel):
    """A recommended film; a higher score stands higher, within one answer."""

    movie_id: int
    title: str
    year: int | None
    genres: list[str]
    score: float


class RecommendResponse(BaseModel):
    """Films that the person has not rated, best first."""

    user_id: int
    known_user: bool = Field(description="false: nothing is known of them; films are popular ones")
    films: list[Film]


SIGNATURE = {
    "request": RecommendRequest.model_json_schema(),
    "response": RecommendResponse.model_json_schema(),
}


class FilmGraph:
    """The nodes of the graph, over one stored model.

    Features of the person -> user tower -> index -> features of the candidates -> ranker ->
    films not seen yet.
    """

    def __init__(self, model: Path, index: str, *, part: int, rated: bool) -> None:
        """Load a model.

        Args:
            model: The folder of the stored model.
            index: Name of the running index of the films' vectors.
            part: The cut up to which ratings are known, see `FilmFeatures`.
            rated: Leave out all that a person has rated, else only their favourites.
        """
        self._films = pq.read_table(model / "films.parquet")
        ratings, people = (
            pq.read_table(model / f"{name}.parquet") for name in ("ratings", "people")
        )
        self.known = FilmFeatures(ratings, self._films, people, part)
        parameters = torch.load(model / "towers.pt", weights_only=True)
        self._towers, self._rated = build_towers(self._films, parameters), rated
        self._search = index_search(index)
        self._ranker = xgboost.Booster(model_file=model / "ranker.ubj")
        self._ranker.set_param({"nthread": 1})
        self._popular = self.known.popular()[:CANDIDATES]
        self._columns = {
            name: self._films[name].to_pylist() for name in ("movieId", "title", "year", "genres")
        }

    def person(self, user_id: np.ndarray) -> np.ndarray:
        """Rows of people, -1 for who is not known."""
        return self.known.rows(user_id)

    def retrieved(self, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates by the towers; people that nothing is known of get the popular films."""
        films = np.tile(self._popular, (len(person), 1))
        scores = np.zeros(films.shape, np.float32)
        there = person >= 0
        if there.any():
            films[there], scores[there] = candidates(
                self.known, self._towers, self._search, person[there], rated=self._rated
            )
        return films, scores

    def features(self, person: np.ndarray, retrieved: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The candidates' features; those of unknown people stay zero."""
        films, _ = retrieved
        there = person >= 0
        known = self.known.candidate_features(person[there], films[there])
        every = np.zeros((*films.shape, known.shape[2]), np.float32)
        every[there] = known
        return every

    def ranked(
        self, person: np.ndarray, retrieved: tuple[np.ndarray, np.ndarray], features: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Films `(n, CANDIDATES)` by the ranker's score, and the scores."""
        films, found = retrieved
        count, width, _ = features.shape
        scores = self._ranker.inplace_predict(features.reshape(count * width, -1))
        scores = np.where((person >= 0)[:, None], scores.reshape(count, width), -np.arange(width))
        scores = np.where(np.isneginf(found), -np.inf, scores)  # fewer films than candidates
        order = top_k(scores, width)
        return np.take_along_axis(films, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def answer(
        self,
        user_id: np.ndarray,
        k: np.ndarray,
        person: np.ndarray,
        ranked: tuple[np.ndarray, np.ndarray],
    ) -> list[dict[str, Any]]:
        """One answer a request, in the form of `RecommendResponse`."""
        return [
            {
                "user_id": int(user),
                "known_user": bool(row >= 0),
                "films": [
                    self._film(film, score)
                    for film, score in zip(films[:wanted], scores, strict=False)
                    if score > -np.inf
                ],
            }
            for user, wanted, row, films, scores in zip(user_id, k, person, *ranked, strict=True)
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
    """Fill a model's folder with what `FilmGraph` loads."""
    for name, table in tables.items():
        pq.write_table(table.to_arrow(), folder / f"{name}.parquet")
    torch.save(parameters, folder / "towers.pt")
    (folder / "ranker.ubj").write_bytes(ranker)


def build_graph(films: FilmGraph | LazyObject, output: str = "answer") -> Graph:
    """The graph over a model, or over one that each replica loads; "ranked" ends it at scores."""
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
    """The graph that is served: all that is known, every rated film left out."""
    return build_graph(LazyModel(FilmGraph, storage, model, index.name, part=NOW, rated=True))


def measure(
    block: pa.Table,
    tables: Mapping[str, Table],
    storage: Storage,
    model: StoredModel,
    index: VectorIndex,
) -> pa.Table:
    """The test set's measures of the people of a block that have one, with and without ranker."""
    films = FilmGraph(model.fetch(storage), index.name, part=TEST, rated=False)
    known = films.known
    wanted = known.favourites_in_part(
        tables["ratings"].to_arrow(), tables["films"].to_arrow(), TEST
    )
    rows = np.intersect1d(known.rows(block["userId"].to_numpy()), list(wanted))
    batch = {"user_id": known.people[rows], "k": np.full(len(rows), CANDIDATES)}
    graph = build_graph(films, output="ranked")
    values = graph.run(graph.order, graph.check_columns(batch))
    relevant = np.stack([wanted[row] for row in rows]) if len(rows) else np.empty((0, 1), int)
    columns = {}
    for node in ("retrieved", "ranked"):
        found, _ = values[node]
        columns[f"{node}_ndcg_at_10"] = ndcg(found, relevant, 10)
        columns[f"{node}_recall_at_20"] = recall(found, relevant, 20)
    return pa.table(columns)
