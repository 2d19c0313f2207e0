"""Candidates for people: what the towers find, less what is known to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jobs.two_tower import Towers, film_content
from raysys.evaluate import top_k

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.film_features import FilmFeatures
    from raysys.data import Table
    from raysys.train import Parameters

CANDIDATES = 100
# Queries float32 (n, dim) and k to ids int64 (n, k) and scores float32 (n, k), best first.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def build_towers(films: pa.Table, parameters: Parameters) -> Towers:
    """The towers with trained parameters, ready to ask."""
    genres, years = film_content(films)
    towers = Towers(genres, years, parameters["film.weight"].shape[1], 0.0, 0.0)
    towers.load_state_dict(parameters)
    return towers.eval()


def film_vectors(films: Table, parameters: Parameters) -> pa.Table:
    """What the index is built from: `id`, the film's row, and `vector`."""
    import pyarrow as pa

    vectors = build_towers(films.arrow(), parameters).index_vectors()
    flat = pa.array(vectors.ravel())
    return pa.table(
        {
            "id": np.arange(len(vectors)),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )


def exact_search(vectors: np.ndarray) -> Search:
    """Search over all vectors, by a matrix product."""

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ vectors.T
        order = top_k(scores, k)
        return order, np.take_along_axis(scores, order, axis=1)

    return search


def candidates(
    known: FilmFeatures, towers: Towers, search: Search, rows: np.ndarray, *, rated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best films for each person by the towers, without those known to them.

    Args:
        known: People and films up to a cut.
        towers: The trained towers.
        search: Over the films' vectors.
        rows: int64 `(n,)`, people.
        rated: Leave out all that a person has rated, else only their favourites.

    Returns:
        Films int64 `(n, CANDIDATES)` and scores float32 of the same shape, best first.
    """
    left_out = [known.known_films(row, rated=rated) for row in rows]
    most = max((len(films) for films in left_out), default=0)
    found, scores = search(towers.query_vectors(known.history[rows]), CANDIDATES + most)
    for row, films in enumerate(left_out):
        scores[row, np.isin(found[row], films)] = -np.inf
    order = top_k(scores, CANDIDATES)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)
