"""Aggregates of a block and of several, and windows of time; without a cluster."""

import datetime as dt
import itertools
import random
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from raysys.data import _aggregate
from raysys.data._lazy_plan import collect, frame_of, lazy
from raysys.errors import DataError

DAY = dt.timedelta(days=1)


def aggregate(blocks: list[pl.DataFrame], by: list[str], **results: tuple[str, str]) -> pa.Table:
    """Aggregates as tasks compute them: partial ones of each block, merged."""
    kinds = dict(blocks[0].schema)
    parts = [
        collect(_aggregate._partial(block.lazy(), by, results, kinds), "aggregate")
        for block in blocks
    ]
    merged = _aggregate._merged(lazy(pa.concat_tables(parts)), by, results, kinds)
    return collect(merged, "aggregate")


def test_a_sum_beyond_its_type_is_refused() -> None:
    big = pl.DataFrame({"g": [1], "x": [2**62]})
    total = aggregate([big, pl.DataFrame({"g": [1], "x": [2**62 - 1]})], ["g"], s=("x", "sum"))
    assert total.to_pydict() == {"g": [1], "s": [2**63 - 1]}
    assert total.schema.field("s").type == pa.int64()
    message = r"the sum 's?x?' is beyond i64. Convert the column to float64"
    for by in (["g"], []):
        with pytest.raises(DataError, match=message):
            aggregate([big, big], by, s=("x", "sum"))
        with pytest.raises(DataError, match=message):
            aggregate([pl.concat([big, big])], by, s=("x", "sum"))
    low = pl.DataFrame({"x": [-(2**62)] * 3})
    with pytest.raises(DataError, match=message):
        aggregate([low], [], s=("x", "sum"))
    unsigned = pl.DataFrame({"x": pl.Series([2**63, 2**63 - 1], dtype=pl.UInt64)})
    assert aggregate([unsigned], [], s=("x", "sum"))["s"].to_pylist() == [2**64 - 1]
    with pytest.raises(DataError, match="beyond u64"):
        aggregate([unsigned, unsigned], [], s=("x", "sum"))


def test_counts_are_int64_beside_any_other_aggregate() -> None:
    rows = pl.DataFrame({"x": [1.0, None, 3.0]})
    functions = [*_aggregate._FUNCTIONS]
    for function in functions:
        if function in ("any", "all"):
            continue
        table = aggregate([rows], [], other=("x", function), c=("x", "count"), n=("", "rows"))
        assert table.schema.field("c").type == table.schema.field("n").type == pa.int64()
        assert (table["c"][0].as_py(), table["n"][0].as_py()) == (2, 3)
    assert aggregate([rows], [], u=("x", "n_unique")).schema.field("u").type == pa.int64()


def test_the_mean_of_times_is_a_time() -> None:
    moment = dt.datetime(2020, 1, 1, 0, 0, 1, tzinfo=dt.UTC)
    columns = {
        "t": pl.Series([moment, moment + 3 * DAY, None]),
        "d": [dt.date(2020, 1, 1), dt.date(2020, 1, 2), None],
        "e": [dt.timedelta(seconds=1), dt.timedelta(seconds=2), None],
        "n": pl.Series([1, 4, None]).cast(pl.Datetime("ns")),
    }
    blocks = [pl.DataFrame(columns)[:1], pl.DataFrame(columns)[1:]]
    means = aggregate(blocks, [], **{name: (name, "mean") for name in columns})
    assert means.schema.field("t").type == pa.timestamp("us", "UTC")
    assert means.to_pylist() == [{
        "t": moment + 1.5 * DAY, "d": dt.datetime(2020, 1, 1, 12), "e": dt.timedelta(seconds=1.5),
        "n": means["n"][0].as_py(),
    }]  # fmt: skip
    assert means["n"].cast(pa.int64()).to_pylist() == [2]
    many = pl.DataFrame({"t": [moment] * 20_000})  # whose sum in microseconds overflows
    assert aggregate([many], [], t=("t", "mean"))["t"].to_pylist() == [moment]


ZONES = {
    "Europe/Berlin": [(2024, 3, 31), (2024, 10, 27)],
    "America/New_York": [(2024, 3, 10), (2024, 11, 3)],
    "Africa/Cairo": [(2024, 4, 26), (2024, 11, 1)],  # where midnight is skipped and repeated
    "America/Santiago": [(2024, 9, 8), (2024, 4, 7)],
    "Australia/Lord_Howe": [(2024, 10, 6), (2024, 4, 7)],  # by half an hour
    "Asia/Kathmandu": [(2024, 4, 7)],  # UTC+05:45
    "UTC": [(2024, 3, 31)],
}
WINDOWS = [
    ("6h", "12h"), ("1d", "2d"), ("1d", None), ("1h", "3h"), ("1h", None), ("2h", "4h"),
    ("15m", "1h"), ("6h", None), ("1w", "2w"), ("45m", "90m"), ("90m", None),
]  # fmt: skip


@pytest.mark.parametrize("zone", ZONES)
def test_at_a_change_of_clocks_each_row_is_in_period_over_step_windows(zone: str) -> None:
    rng = random.Random(0)
    for day, (every, period) in itertools.product(ZONES[zone], WINDOWS):
        start = dt.datetime(*day, tzinfo=dt.UTC) - dt.timedelta(hours=30)
        minutes = sorted(rng.randrange(80 * 60) for _ in range(200))
        times = pl.Series([start + dt.timedelta(minutes=m) for m in minutes])
        frame = pl.DataFrame({"t": times.dt.convert_time_zone(zone)}).with_row_index("row").lazy()
        rows = _aggregate.windows(frame, "t", every, period).collect()
        count = _aggregate._seconds(period or every) // _aggregate._seconds(every)
        windows = rows.group_by("row").agg(n=pl.col("window").n_unique(), size=pl.len())
        assert windows.height == 200
        assert set(windows["n"]) == set(windows["size"]) == {count}, (day, every, period)
        assert (rows["window"] <= rows["t"]).all()
        assert rows["window"].dtype == rows["t"].dtype
        if every in ("6h", "1d") and zone not in ("Africa/Cairo", "America/Santiago"):
            local = set(rows["window"].dt.strftime("%H:%M"))
            assert local <= {"00:00", "06:00", "12:00", "18:00"}, (day, every)


def test_a_day_without_midnight_starts_at_its_first_hour() -> None:
    noon = dt.datetime(2024, 4, 26, 10, tzinfo=dt.UTC)
    frame = pl.DataFrame({"t": pl.Series([noon]).dt.convert_time_zone("Africa/Cairo")}).lazy()
    windows = _aggregate.windows(frame, "t", "1d", "2d").collect()["window"]
    starts = [f"{start:%d %H:%M}" for start in sorted(windows)]
    assert starts == ["25 00:00", "26 01:00"]


def test_a_period_that_is_no_multiple_of_the_step() -> None:
    times = [dt.datetime(2024, 1, 1, 0, minute) for minute in (0, 10, 20)]
    rows = _aggregate.windows(pl.DataFrame({"t": times}).lazy(), "t", "20m", "30m").collect()
    by_time = rows.group_by("t", maintain_order=True).len()["len"].to_list()
    assert by_time == [2, 1, 2]
    any_type: Any = pl.DataFrame({"t": ["2024"]}).lazy()
    with pytest.raises(DataError, match=r"'t' is String; give a column of dates or times"):
        _aggregate.windows(any_type, "t", "1d", None)


def test_frames_of_blocks_keep_their_types() -> None:
    assert frame_of(pa.table({"x": pa.array([1], pa.uint64())})).schema == {"x": pl.UInt64}
