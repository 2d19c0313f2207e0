"""Candidates for people: what the towers find, less what is known to them."""

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
# Queries float32 (n, dim), and films to leave out for each, to the best other films int64
# (n, CANDIDATES) and their scores float32, best first; -inf where there are no more films.
Search = Callable[[np.ndarray, Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]


def build_towers(films: pa.Table, parameters: StateDict) -> Towers:
    """The towers with trained parameters, ready to ask."""
    genres, years = film_content(films)
    towers = Towers(genres, years, parameters["film.weight"].shape[1], 0.0, 0.0)
    towers.load_state_dict(parameters)
    return towers.eval()


def film_vectors(films: Table, parameters: StateDict) -> pa.Table:
    """What the index is built from: `id`, the film's row, and `vector`."""
    vectors = build_towers(films.to_arrow(), parameters).index_vectors()
    return vector_table(np.arange(len(vectors)), vectors)


def index_search(name: str) -> Search:
    """Search by a running index of the films' vectors."""
    find = IndexSearch(name, CANDIDATES)

    def search(
        queries: np.ndarray, left_out: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        filters = [f"id not in {films.tolist()}" if len(films) else "True" for films in left_out]
        films, distances = find.filtered(queries, np.array(filters, object))
        return films, 1 - distances

    return search


def exact_search(vectors: np.ndarray) -> Search:
    """Search over all vectors, by a matrix product."""

    def search(
        queries: np.ndarray, left_out: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ vectors.T
        for row, films in enumerate(left_out):
            scores[row, films] = -np.inf
        order = top_k(scores, CANDIDATES)
        return order, np.take_along_axis(scores, order, axis=1)

    return search


def candidates(
    known: FilmFeatures, towers: Towers, search: Search, people: np.ndarray, *, rated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best films for each person by the towers, without those known to them.

    Args:
        known: People and films up to a cut.
        towers: The trained towers.
        search: Over the films' vectors.
        people: int64 `(n,)`, rows of people.
        rated: Leave out all that a person has rated, else only their favourites.

    Returns:
        Films int64 `(n, CANDIDATES)` and scores float32 of the same shape, best first.
    """
    left_out = [known.known_films(person, rated=rated) for person in people]
    return search(towers.query_vectors(known.history[people]), left_out)
