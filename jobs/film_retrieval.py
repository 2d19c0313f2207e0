"""Retrieval of candidate films with the towers, without films known to the person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jobs.two_tower import Towers, film_content
from raysys.evaluate import top_k
from raysys.index import vector_table
from raysys.serve import IndexSearch

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.film_features import FilmFeatures
    from raysys.data import Table
    from raysys.train import StateDict

CANDIDATES = 100
# Maps queries float32 (n, dim) and the films to exclude for each to the best films int64
# (n, CANDIDATES) and their scores float32, best first; -inf after the last film.
Search = Callable[[np.ndarray, Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]


def build_towers(films: pa.Table, parameters: StateDict) -> Towers:
    """The towers with trained parameters, in evaluation mode."""
    genres, years = film_content(films)
    towers = Towers(genres, years, parameters["film.weight"].shape[1], 0.0, 0.0)
    towers.load_state_dict(parameters)
    return towers.eval()


def film_vectors(films: Table, parameters: StateDict) -> pa.Table:
    """Input of the index: `id`, the film's row, and `vector`."""
    vectors = build_towers(films.to_arrow(), parameters).index_vectors()
    return vector_table(np.arange(len(vectors)), vectors)


def index_search(name: str) -> Search:
    """Search with a running index of the films' vectors."""
    index = IndexSearch(name, CANDIDATES)

    def search(
        queries: np.ndarray, excluded: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        filters = [f"id not in {films.tolist()}" if len(films) else "True" for films in excluded]
        films, distances = index.filtered(queries, np.array(filters, object))
        return films, 1 - distances

    return search


def exact_search(vectors: np.ndarray) -> Search:
    """Exact search with a matrix product."""

    def search(
        queries: np.ndarray, excluded: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ vectors.T
        for row, films in enumerate(excluded):
            scores[row, films] = -np.inf
        order = top_k(scores, CANDIDATES)
        return order, np.take_along_axis(scores, order, axis=1)

    return search


def candidates(
    features: FilmFeatures, towers: Towers, search: Search, people: np.ndarray, *, rated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The towers' best films for each person, without the films known to them.

    Args:
        features: People and films up to a cut.
        towers: The trained towers.
        search: Search over the films' vectors.
        people: Rows of people, int64 `(n,)`.
        rated: Exclude all films that a person has rated, not only their favourites.

    Returns:
        Films int64 `(n, CANDIDATES)` and scores float32 of the same shape, best first.
    """
    excluded = [features.known_films(person, rated=rated) for person in people]
    return search(towers.query_vectors(features.history[people]), excluded)
