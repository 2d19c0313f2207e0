"""The split by time and the aggregates at its cuts, compared with a direct implementation."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jobs.film_etl import NOW, TEST, VALIDATION, etl, split_by_time


def ratings_of(rng: np.random.Generator, people: int) -> pd.DataFrame:
    rows = []
    for user in range(people):
        count = int(rng.integers(1, 80))
        rows.append(
            pd.DataFrame(
                {
                    "userId": user,
                    "movieId": rng.permutation(200)[:count],
                    # Few distinct times, so that movieId breaks ties.
                    "timestamp": rng.integers(0, 15, count),
                    "rating": rng.choice([0.5, 3.0, 3.5, 4.0, 5.0], count),
                }
            )
        )
    return pd.concat(rows).sample(frac=1, random_state=0)


def expected_parts(person: pd.DataFrame) -> dict[int, int]:
    """Part by movieId, by iteration over a person's ratings."""
    ordered = person.sort_values(["timestamp", "movieId"])
    likes = ordered[ordered["rating"] >= 4]["movieId"].tolist()
    if len(likes) < 15:
        return dict.fromkeys(ordered["movieId"], 0)
    first_test, first_validation = likes[-5], likes[-10]
    parts, part = {}, 0
    for movie in ordered["movieId"]:
        if movie == first_validation:
            part = 1
        if movie == first_test:
            part = 2
        parts[movie] = part
    return parts


def test_the_split_follows_the_rules() -> None:
    ratings = ratings_of(np.random.default_rng(0), people=60)
    split = split_by_time(pa.Table.from_pandas(ratings, preserve_index=False)).to_pandas()
    assert len(split) == len(ratings)
    for user, person in ratings.groupby("userId"):
        rows = split[split["userId"] == user]
        assert dict(zip(rows["movieId"], rows["part"], strict=True)) == expected_parts(person)


def test_people_with_sets_have_five_favourites_in_each() -> None:
    ratings = ratings_of(np.random.default_rng(1), people=60)
    split = split_by_time(pa.Table.from_pandas(ratings, preserve_index=False)).to_pandas()
    likes = split[split["positive"]].groupby(["userId", "part"]).size().unstack(fill_value=0)
    total = likes.sum(axis=1)
    assert (likes.loc[total >= 15, [1, 2]] == 5).all(axis=None)
    assert (likes.loc[total < 15, [1, 2]] == 0).all(axis=None)


@pytest.mark.usefixtures("ray_cluster")
def test_movielens_has_568_people_with_a_test_set_and_aggregates_end_at_their_cut() -> None:
    result, ratings, films, people = etl(None, blocks=2)
    assert (len(result.valid), len(result.quarantine)) == (100_004, 0)
    rows, by_film = ratings.to_pandas(), films.to_pandas().set_index("movieId")
    tested = rows[rows["positive"] & (rows["part"] == 2)]
    assert tested["userId"].nunique() == 568
    assert (tested.groupby("userId").size() == 5).all()
    for cut in (VALIDATION, TEST, NOW):
        past = rows[rows["part"] < cut]
        expected = past.groupby("movieId")["rating"].agg(["size", "sum"])
        actual = by_film.loc[expected.index]
        assert (actual[f"ratings_{cut}"] == expected["size"]).all()
        assert np.allclose(actual[f"rating_sum_{cut}"], expected["sum"])
        assert by_film[f"ratings_{cut}"].sum() == len(past)
        last = past.groupby("userId")["timestamp"].max()
        by_person = people.to_pandas().set_index("userId")
        assert (by_person.loc[last.index, f"time_{cut}"] == last).all()
