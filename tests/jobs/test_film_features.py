"""Features at a cut do not depend on later ratings."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jobs.film_etl import NOW, TEST, VALIDATION, columns_of_cuts, split_by_time
from jobs.film_features import FEATURES, FilmFeatures
from jobs.film_retrieval import candidates, exact_search
from jobs.two_tower import HISTORY, Towers, TwoTower, film_content


def tables(ratings: pd.DataFrame) -> tuple[pa.Table, pa.Table, pa.Table]:
    split = split_by_time(pa.Table.from_pandas(ratings, preserve_index=False))
    frame = columns_of_cuts(split).to_pandas()
    sums = {c: "sum" for c in frame if c[:-2] in ("ratings", "favourites", "rating_sum")}
    times = [c for c in frame if c.startswith("time_")]
    content = dict.fromkeys(("title", "year", "genres"), "first")
    films = frame.groupby("movieId", as_index=False).agg(
        {**content, **sums, **dict.fromkeys(times, "min")}
    )
    people = frame.groupby("userId", as_index=False).agg({**sums, **dict.fromkeys(times, "max")})
    return split, pa.Table.from_pandas(films), pa.Table.from_pandas(people)


def ratings_of_people(people: int = 20, films: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        {
            "userId": user,
            "movieId": movie,
            "timestamp": 1000 * place,
            "rating": float(rng.choice([2.0, 4.0, 5.0])),
            "title": f"film {movie}",
            "year": 1980.0 + movie % 40,
            "genres": "Drama|Comedy" if movie % 3 else "Drama",
        }
        for user in range(people)
        for place, movie in enumerate(rng.permutation(films)[:40])
    ]
    return pd.DataFrame(rows)


def features(ratings: pd.DataFrame, users: np.ndarray, films: np.ndarray, cut: int) -> np.ndarray:
    films_at_cut = FilmFeatures(*tables(ratings), part=cut)
    return films_at_cut.candidate_features(
        films_at_cut.rows(users), np.tile(films, (len(users), 1))
    )


@pytest.mark.parametrize("cut", [VALIDATION, TEST])
def test_features_at_a_cut_ignore_every_later_rating(cut: int) -> None:
    ratings = ratings_of_people()
    split = split_by_time(pa.Table.from_pandas(ratings, preserve_index=False)).to_pandas()
    later = split[split["part"] >= cut]
    assert len(later) >= 100
    changed = ratings.merge(later[["userId", "movieId", "part"]], how="left")
    # The values and times of later ratings must not matter. Their number is unchanged, since the
    # split itself is counted from the end.
    low = changed["part"].notna() & (changed["rating"] < 4)
    changed.loc[low, "rating"] = 0.5
    high = changed["part"].notna() & (changed["rating"] >= 4)
    changed.loc[high, "rating"] = 9 - changed.loc[high, "rating"]
    changed.loc[changed["part"].notna(), "timestamp"] += 500_000
    users, films = np.unique(ratings["userId"]), np.arange(60)
    before, after = (features(frame, users, films, cut) for frame in (ratings, changed))
    assert before.shape == (len(users), 60, len(FEATURES))
    assert np.array_equal(before, after)
    # Earlier ratings do matter.
    changed.loc[changed["part"].isna(), "timestamp"] += 7 * 86_400
    assert not np.array_equal(before, features(changed, users, films, cut))


def test_history_is_newest_first_and_padded() -> None:
    ratings = ratings_of_people()
    split, films, people = tables(ratings)
    films_at_cut = FilmFeatures(split, films, people, part=VALIDATION)
    frame = split.to_pandas()
    favourites = frame[(frame["userId"] == 7) & frame["positive"] & (frame["part"] < VALIDATION)]
    expected = favourites.sort_values(["timestamp", "movieId"])["movieId"].to_numpy()[::-1][
        :HISTORY
    ]
    row = films_at_cut.history[films_at_cut.rows(np.array([7]))[0]]
    assert np.array_equal(row[row >= 0], expected)
    assert (row[len(expected) :] == -1).all()


def test_unknown_people_have_no_row() -> None:
    films_at_cut = FilmFeatures(*tables(ratings_of_people()), part=VALIDATION)
    assert films_at_cut.rows(np.array([3, 999, -1])).tolist() == [3, -1, -1]


def test_the_towers_train_and_validate_on_ratings_before_the_cut() -> None:
    ratings = ratings_of_people()
    split, films, _ = tables(ratings)
    task = TwoTower(VALIDATION)
    examples = task.prepare({"ratings": split, "films": films})
    frame = split.to_pandas()
    assert examples == (frame["positive"] & (frame["part"] < VALIDATION)).sum()
    assert task._validation is not None
    history, targets, _ = task._validation
    for user in range(20):
        likes = frame[(frame["userId"] == user) & frame["positive"]]
        assert set(targets[user]) == set(likes[likes["part"] == 1]["movieId"])
        assert set(history[user]) - {-1} <= set(likes[likes["part"] == 0]["movieId"])


def test_known_films_among_the_candidates_have_infinite_negative_scores() -> None:
    split, films, people = tables(ratings_of_people())
    films_at_cut = FilmFeatures(split, films, people, part=NOW)
    content = film_content(films)
    towers = Towers(*content, 8, 0.0, 0.0).eval()
    rows = films_at_cut.rows(np.arange(20))
    search = exact_search(towers.index_vectors())
    retrieved, scores = candidates(films_at_cut, towers, search, rows, rated=True)
    for row, films_of_person, score in zip(rows, retrieved, scores, strict=True):
        rated = np.isin(films_of_person, films_at_cut.known_films(row, rated=True))
        assert rated.sum() == 40  # all 60 films are candidates
        assert np.array_equal(np.isneginf(score), rated)
