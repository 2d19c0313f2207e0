import datetime
import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from raysys.data import (
    Splits,
    Table,
    split_by_group,
    split_by_hash,
    split_by_time,
    split_stratified,
)
from raysys.data.sampling._sample import random_key
from raysys.data.sampling._split import (
    _between,
    _stratified,
    cuts_of,
    hash_key,
    stratified_cuts,
    time_key,
)
from raysys.errors import DataError
from tests.data.cut import each_block

FRACTIONS = {"train": 0.7, "validation": 0.2, "test": 0.1}
UPTO = [0.7, 0.9]


def _rows(*parts: pa.Table) -> list[list[int]]:
    return [part["row"].to_pylist() for part in parts]


def _strata(table: pa.Table, seed: int, *cuts: int) -> list[pa.Table]:
    limits = stratified_cuts(each_block(table, *cuts), UPTO, ["c"], seed)
    return _stratified(table, 0, random_key(seed), ["c"], limits, 3)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_each_class_is_split_by_the_fractions_to_less_than_a_row(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300))
    classes = np.random.default_rng(n).choice(["a", "b", None], n, p=[0.6, 0.3, 0.1])
    table = pa.table({"row": np.arange(n), "c": classes})
    cuts, seed = data.draw(st.lists(st.integers(0, n), max_size=5)), data.draw(st.integers(0, 99))
    parts = _strata(table, seed)
    assert sorted(itertools.chain(*_rows(*parts))) == list(range(n))
    assert _rows(*_strata(table, seed, *cuts)) == _rows(*parts)
    for value in ("a", "b", None):
        total = classes.tolist().count(value)
        for part, share in zip(parts, FRACTIONS.values(), strict=True):
            assert abs(part["c"].to_pylist().count(value) - share * total) < 1


def test_a_class_of_one_row_is_in_a_split_as_often_as_its_fraction() -> None:
    classes = [f"class {n}" for n in range(2000)]
    parts = _strata(pa.table({"row": np.arange(2000), "c": classes}), 0)
    for part, share in zip(parts, FRACTIONS.values(), strict=True):
        assert abs(len(part) - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5


def test_a_stratified_split_counts_classes_as_scikit_learn(ray_cluster: None) -> None:
    classes = np.random.default_rng(0).choice([1, 2, 3], 997, p=[0.6, 0.3, 0.1])
    table = Table.from_arrow(pa.table({"row": np.arange(997), "c": classes}), 300)
    splits = split_stratified(table, {"train": 0.8, "test": 0.2}, ["c"], seed=1)
    theirs = train_test_split(classes, test_size=0.2, stratify=classes, random_state=0)
    for ours, counts in zip(splits.values(), theirs, strict=True):
        own = np.bincount(ours.to_arrow()["c"].to_numpy())
        assert np.abs(own - np.bincount(counts)).max() <= 1
    assert list(splits) == ["train", "test"]
    assert splits.description == "stratified by c, train 0.8, test 0.2, seed 1"
    plain = split_stratified(table, {"train": 0.8, "test": 0.2}, [])
    assert abs(len(plain.train) - 0.8 * 997) < 1


def test_a_row_never_changes_its_split_by_hash(ray_cluster: None) -> None:
    frame = pd.DataFrame({"id": [f"user {n}" for n in range(4000)], "row": np.arange(4000)})
    rows = pa.Table.from_pandas(frame)
    splits = split_by_hash(Table.from_arrow(rows.slice(0, 2500), 999), FRACTIONS, ["id"])
    more = split_by_hash(Table.from_arrow(rows.take(np.arange(4000)[::-1])), FRACTIONS, ["id"])
    for name, share in FRACTIONS.items():
        before, after = (set(s[name].to_arrow()["row"].to_pylist()) for s in (splits, more))
        assert before == {row for row in after if row < 2500}
        assert abs(len(after) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    reseeded = split_by_hash(Table.from_arrow(rows), FRACTIONS, ["id"], seed=1)
    assert _rows(reseeded.train.to_arrow()) != _rows(more.train.to_arrow())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=10, max_size=80), st.integers(0, 99))
def test_groups_are_not_split_and_fractions_are_nearly_met(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(groups)
    table = pa.table({"row": np.arange(len(groups)), "g": groups})
    key = hash_key(["g"], seed)
    cuts = cuts_of(each_block(table), key, UPTO)
    assert cuts_of(each_block(table, 3, len(table) // 2), key, UPTO) == cuts
    parts = _between(table, 0, key, cuts, cuts)
    assert sorted(itertools.chain(*_rows(*parts))) == list(range(len(table)))
    seen = [set(part["g"].to_pylist()) for part in parts]
    assert sum(map(len, seen)) == len(sizes)
    upto = 0
    for part, share in zip(parts, UPTO, strict=False):
        upto += len(part)
        assert abs(upto - share * len(table)) <= max(sizes) / 2 + 1


def test_no_group_is_in_two_splits_of_a_table(ray_cluster: None) -> None:
    groups = np.random.default_rng(0).integers(0, 50, 1000)
    table = Table.from_arrow(pa.table({"g": groups.astype(str), "row": np.arange(1000)}), 300)
    splits = split_by_group(table, FRACTIONS, ["g"])
    frames = [part.to_pandas() for part in splits.values()]
    assert sum(frame["g"].nunique() for frame in frames) == 50
    assert sum(map(len, frames)) == 1000
    assert abs(len(frames[0]) - 700) < 25


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=4, max_size=200))
def test_equal_times_stay_together_and_cuts_are_nearest_to_the_fractions(times: list[int]) -> None:
    table = pa.table({"row": np.arange(len(times)), "t": pa.array(times, pa.int64())})
    key = _time_key
    cuts = cuts_of(each_block(table, 2), key, UPTO)
    parts = [part["t"].to_pylist() for part in _between(table, 0, key, cuts, cuts)]
    assert sorted(itertools.chain(*parts)) == sorted(times)
    for earlier, later in itertools.pairwise(parts):
        assert not earlier or not later or max(earlier) < min(later)
    possible = [sum(time < cut for time in times) for cut in range(-10, 12)]
    for number, share in enumerate(UPTO):
        upto = sum(map(len, parts[: number + 1]))
        target = min(max(int(share * len(times) + 0.5), 1), len(times))
        assert abs(upto - target) == min(abs(rows - target) for rows in possible)


def _time_key(block: pa.Table, first: int) -> np.ndarray:
    return time_key(block, first, "t")


@pytest.fixture(scope="module")
def days(ray_cluster: None) -> Table:
    day = np.datetime64("2024-01-01") + np.random.default_rng(0).permutation(100)
    return Table.from_arrow(pa.table({"day": day.astype("datetime64[us]")}), 30)


def test_a_split_by_time_describes_its_cuts(days: Table) -> None:
    splits = split_by_time(days, "day", FRACTIONS)
    spans = {n: (part["day"].min(), part["day"].max(), len(part)) for n, part in _frames(splits)}
    first = pd.Timestamp("2024-01-01")
    assert spans == {
        "train": (first, first + pd.Timedelta(days=69), 70),
        "validation": (first + pd.Timedelta(days=70), first + pd.Timedelta(days=89), 20),
        "test": (first + pd.Timedelta(days=90), first + pd.Timedelta(days=99), 10),
    }
    assert "cut at 2024-03-10 00:00:00.000001, 2024-03-30" in splits.description


def test_a_split_may_have_empty_blocks(days: Table) -> None:
    blocks = Table.from_arrow(days.to_arrow().sort_by("day"), 10)
    splits = split_by_time(blocks, "day", {"train": 0.55, "test": 0.45})
    assert [meta.rows for meta in splits["test"].metas()] == [0, 0, 0, 0, 0, 5, 10, 10, 10, 10]
    again = Table.from_arrow(blocks.to_arrow().slice(55))
    assert splits["test"].fingerprint() == again.fingerprint()
    assert splits["test"].lineage.parameters["part"] == "test"
    assert [source.operation for source in splits["test"].lineage.inputs] == [
        blocks.lineage.operation
    ]


def test_a_gap_drops_the_rows_just_before_a_start(days: Table) -> None:
    starts = {"validation": datetime.datetime(2024, 3, 1), "test": datetime.datetime(2024, 4, 1)}
    gap = datetime.timedelta(days=7)
    splits = split_by_time(days, "day", starts=starts, gap=gap)
    day = days.to_pandas()["day"]
    expected = {
        "train": day[day < "2024-02-23"],
        "validation": day[(day >= "2024-03-01") & (day < "2024-03-25")],
        "test": day[day >= "2024-04-01"],
    }
    for name, frame in _frames(splits):
        assert frame["day"].tolist() == expected[name].tolist()


def _frames(splits: Splits) -> list[tuple[str, pd.DataFrame]]:
    return [(name, part.to_pandas()) for name, part in splits.items()]


def test_a_split_by_float_time_takes_a_float_gap(ray_cluster: None) -> None:
    times = np.linspace(-1, 1, 201)
    table = Table.from_arrow(pa.table({"t": times}))
    splits = split_by_time(table, "t", starts={"test": 0.5}, gap=0.25)
    assert splits.train.to_pandas()["t"].max() == times[times < 0.25].max()
    assert splits["test"].to_pandas()["t"].min() == 0.5


def test_invalid_splits_are_refused(days: Table) -> None:
    start = datetime.datetime(2024, 3, 1)
    for match, call in {
        "sum to 1": lambda: split_by_time(days, "day", {"train": 0.8, "test": 0.3}),
        "at least two positive fractions": lambda: split_by_time(days, "day", {"train": 1.0}),
        "no split 'train' in": lambda: split_by_hash(days, {"a": 0.5, "b": 0.5}, ["day"]),
        "either the fractions": lambda: split_by_time(days, "day"),
        "no such columns: .'night'": lambda: split_by_hash(days, FRACTIONS, ["night"]),
        r"splits \['validation', 'test'\] would be empty": lambda: split_by_group(
            days.map_blocks(_same_day), FRACTIONS, ["day"]
        ),
        "are not in order": lambda: split_by_time(days, "day", starts={"b": start, "c": start}),
        "'soon' is not a valid timestamp": lambda: split_by_time(
            days, "day", starts={"test": "soon"}
        ),
        "cannot subtract gap=7 from": lambda: split_by_time(
            days, "day", starts={"test": start}, gap=7
        ),
        "t: 1 rows of a block have no value": lambda: split_by_time(
            Table.from_arrow(pa.table({"t": [1, None]})), "t", FRACTIONS
        ),
        "by numbers or times, not by string": lambda: split_by_time(
            Table.from_arrow(pa.table({"t": ["1", "2"]})), "t", FRACTIONS
        ),
    }.items():
        with pytest.raises(DataError, match=match):
            call()


def _same_day(block: pa.Table) -> pa.Table:
    return pa.table({"day": np.zeros(len(block), int)})
