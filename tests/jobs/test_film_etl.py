"""The split and what may be known at its cuts, held against a plain restatement of the rules."""

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
                    # Few moments, so that ties in time are broken by movieId.
                    "timestamp": rng.integers(0, 15, count),
                    "rating": rng.choice([0.5, 3.0, 3.5, 4.0, 5.0], count),
                }
            )
        )
    return pd.concat(rows).sample(frac=1, random_state=0)


def parts_by_the_rules(person: pd.DataFrame) -> dict[int, int]:
    """Part by movieId, by walking one person's ratings from the last to the first."""
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


def test_split_is_the_one_of_the_rules() -> None:
    ratings = ratings_of(np.random.default_rng(0), people=60)
    split = split_by_time(pa.Table.from_pandas(ratings, preserve_index=False)).to_pandas()
    assert len(split) == len(ratings)
    for user, person in ratings.groupby("userId"):
        mine = split[split["userId"] == user]
        assert dict(zip(mine["movieId"], mine["part"], strict=True)) == parts_by_the_rules(person)


def test_people_with_sets_have_five_favourites_in_each() -> None:
    ratings = ratings_of(np.random.default_rng(1), people=60)
    split = split_by_time(pa.Table.from_pandas(ratings, preserve_index=False)).to_pandas()
    likes = split[split["positive"]].groupby(["userId", "part"]).size().unstack(fill_value=0)
    total = likes.sum(axis=1)
    assert (likes.loc[total >= 15, [1, 2]] == 5).all(axis=None)
    assert (likes.loc[total < 15, [1, 2]] == 0).all(axis=None)


@pytest.mark.usefixtures("ray_cluster")
def test_movielens_has_568_people_with_a_test_set_and_features_know_only_their_cut() -> None:
    result, ratings, films, people = etl(None, blocks=2)
    assert (len(result.valid), len(result.quarantine)) == (100_004, 0)
    rows, by_film = ratings.to_pandas(), films.to_pandas().set_index("movieId")
    tested = rows[rows["positive"] & (rows["part"] == 2)]
    assert tested["userId"].nunique() == 568
    assert (tested.groupby("userId").size() == 5).all()
    for cut in (VALIDATION, TEST, NOW):
        known = rows[rows["part"] < cut]
        expected = known.groupby("movieId")["rating"].agg(["size", "sum"])
        found = by_film.loc[expected.index]
        assert (found[f"ratings_{cut}"] == expected["size"]).all()
        assert np.allclose(found[f"rating_sum_{cut}"], expected["sum"])
        assert by_film[f"ratings_{cut}"].sum() == len(known)
        last = known.groupby("userId")["timestamp"].max()
        of_people = people.to_pandas().set_index("userId")
        assert (of_people.loc[last.index, f"time_{cut}"] == last).all()
