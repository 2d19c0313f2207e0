"""Features of people and their candidate films, in bulk and online."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from jobs.two_tower import HISTORY, favourites, film_content, latest

if TYPE_CHECKING:
    import pyarrow as pa

# Inputs of the ranker for a candidate, in this order.
FEATURES = (
    "rank",  # among the person's candidates by the towers; better than their scores
    "log_favourites",  # log1p of the number of people who favour the film
    "mean_rating",
    "together_1",  # similarity to the person's newest favourite, see `_together`
    "together_5",
    "together_20",
    "genre_match",  # share of its genres in the newest 20 favourites
    "year_gap_5",  # years from the mean release of the newest 5 favourites
    "year_distance_20",
    "history",  # number of favourites of the person
    "person_mean_rating",
    "days_since_first_rated",  # at the person's last known rating
    "years_since_release",
)
_DAY_S, _YEAR_S = 86_400.0, 31_556_952.0
_SHRINK = 5.0  # weight of the overall mean rating, in ratings


class FilmFeatures:
    """Ratings up to a cut as arrays.

    A person is a row of `people`, a film a row of the films' table.

    Attributes:
        people: User ids, int64 `(people,)`, ascending.
        history: Newest favourites of each person, int64 `(people, HISTORY)`, padded with -1.
    """

    def __init__(self, ratings: pa.Table, films: pa.Table, people: pa.Table, part: int) -> None:
        """Build the arrays.

        Args:
            ratings: Valid ratings with `positive` and `part`.
            films: Content and the columns `*_{part}` of this cut, by ascending movieId; `time`
                is the time of the first rating.
            people: Columns `*_{part}` of this cut; `time` is the time of the last rating.
            part: The cut, which excludes ratings from this part on: 1 for validation, 2 for test,
                3 for all ratings.
        """
        past = ratings.filter(np.asarray(ratings["part"]) < part)
        person, film, _ = favourites(past, films)
        self.people = np.unique(past["userId"].to_numpy())
        users, newest = latest(person, film)
        self.history = np.full((len(self.people), HISTORY), -1, np.int64)
        self.history[np.searchsorted(self.people, users)] = newest
        self.films = films.num_rows
        rows = np.searchsorted(self.people, person)
        self._favourites = self._pairs(rows, film)
        self._rated = self._pairs(
            np.searchsorted(self.people, past["userId"].to_numpy()),
            np.searchsorted(films["movieId"].to_numpy(), past["movieId"].to_numpy()),
        )
        self._count = _column(films, f"favourites_{part}")
        count, total = _column(films, f"ratings_{part}"), _column(films, f"rating_sum_{part}")
        overall = total.sum() / max(1.0, count.sum())
        self._mean = (total + _SHRINK * overall) / (count + _SHRINK)
        self._first_s = _column(films, f"time_{part}", np.inf)
        year = films["year"].to_numpy().astype(np.float32)
        self._year = np.where(np.isnan(year), np.nanmedian(year), year)
        shares, _ = film_content(films)
        self._genres = (shares > 0).astype(np.float32)
        order = np.argsort(people["userId"].to_numpy())
        person_rows = order[np.searchsorted(people["userId"].to_numpy()[order], self.people)]
        counts = _column(people, f"ratings_{part}")[person_rows]
        self._person_mean = _column(people, f"rating_sum_{part}")[person_rows] / counts
        self._until_s = _column(people, f"time_{part}")[person_rows]

    def rows(self, user_ids: np.ndarray) -> np.ndarray:
        """Rows of people by user id, int64 `(n,)`; -1 for unknown ids."""
        rows = np.searchsorted(self.people, user_ids).clip(max=len(self.people) - 1)
        return np.where(self.people[rows] == user_ids, rows, -1)

    def popular(self) -> np.ndarray:
        """All films by descending number of favourites, int64 `(films,)`."""
        return np.argsort(-self._count, kind="stable")

    def favourites_in_part(
        self, ratings: pa.Table, films: pa.Table, part: int
    ) -> dict[int, np.ndarray]:
        """Favourites in one part, int64 films, by the person's row."""
        person, film, parts = favourites(ratings, films)
        person, film = person[parts == part], film[parts == part]
        tested, first = np.unique(person, return_index=True)
        rows = self.rows(tested)
        return dict(zip(rows.tolist(), np.split(film, first[1:]), strict=True))

    def known_films(self, row: int, *, rated: bool) -> np.ndarray:
        """Films that a person has rated, or only their favourites."""
        matrix = self._rated if rated else self._favourites
        return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]

    def candidate_features(self, rows: np.ndarray, films: np.ndarray) -> np.ndarray:
        """Features of each candidate for each person.

        Args:
            rows: int64 `(n,)`, people.
            films: int64 `(n, c)`, by descending score of the towers.

        Returns:
            float32 `(n, c, len(FEATURES))`.
        """
        history = self.history[rows]
        together = [self._together(history[:, :span], films) for span in (1, 5, 20)]
        recent = history[:, :20]
        valid = (recent >= 0)[:, :, None]
        taste = (self._genres[recent] * valid).sum(axis=1) / valid.sum(axis=1).clip(min=1)
        genres = self._genres[films]
        match = np.einsum("ncg,ng->nc", genres, taste) / genres.sum(axis=2).clip(min=1)
        year, until = self._year[films], self._until_s[rows, None]
        shape = films.shape
        columns = (
            np.broadcast_to(np.arange(shape[1]), shape),
            np.log1p(self._count[films]),
            self._mean[films],
            *together,
            match,
            year - self._mean_year(history[:, :5]),
            np.abs(year - self._mean_year(recent)),
            np.broadcast_to((history >= 0).sum(axis=1)[:, None], shape),
            np.broadcast_to(self._person_mean[rows, None], shape),
            # A film without ratings so far counts as the newest.
            ((until - self._first_s[films]) / _DAY_S).clip(min=-1e4),
            1970 + until / _YEAR_S - year,
        )
        return np.stack(columns, axis=2).astype(np.float32)

    def _together(self, history: np.ndarray, films: np.ndarray) -> np.ndarray:
        """Mean cosine similarity of a candidate and favourites, by the people who favour them.

        Item-based neighbourhood of Sarwar et al., "Item-based Collaborative Filtering
        Recommendation Algorithms" (2001), for the candidates alone.
        """
        weight = 1 / np.sqrt(self._count + _SHRINK)
        valid = history >= 0
        row = np.repeat(np.arange(len(history)), valid.sum(axis=1))
        share = weight[history[valid]] / valid.sum(axis=1)[row]
        profile = sparse.csr_matrix(
            (share, (row, history[valid])), (len(history), self.films), dtype=np.float32
        )
        similarity = (profile @ self._favourites.T) @ self._favourites
        scores = np.asarray(similarity[np.arange(len(history))[:, None], films].todense())
        return scores * weight[films]

    def _pairs(self, rows: np.ndarray, films: np.ndarray) -> sparse.csr_matrix:
        ones = np.ones(len(rows), np.float32)
        return sparse.csr_matrix((ones, (rows, films)), (len(self.people), self.films))

    def _mean_year(self, history: np.ndarray) -> np.ndarray:
        valid = history >= 0
        count = np.where(valid.any(axis=1), valid.sum(axis=1), np.nan)
        return ((self._year[history] * valid).sum(axis=1) / count)[:, None]


def _column(table: pa.Table, name: str, missing: float = 0.0) -> np.ndarray:
    values = table[name].to_numpy().astype(np.float64)
    return np.where(np.isnan(values), missing, values)
