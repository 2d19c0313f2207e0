"""Joins, aggregates, sorting and the rest of Table's relational work against pandas and polars."""

import datetime as dt
import math
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import ray

from raysys.data import Table, _blocks, _join, _shuffle
from raysys.errors import DataError
from raysys.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins move both sides, and results have several parts."""
    monkeypatch.setattr(_join, "BROADCAST_BYTES", 0)
    monkeypatch.setattr(_blocks, "BLOCK_BYTES", 100)


def _normal(rows: pa.Table) -> list[tuple[Any, ...]]:
    """Rows in some order that does not depend on theirs."""
    return sorted((tuple(row.values()) for row in rows.to_pylist()), key=repr)


_LEFT = pa.table({
    "k": pa.array([1, 2, 2, None, 3, 5, None, 7], pa.int64()),
    "g": ["a", "b", "b", "c", None, "a", "d", "z"],
    "v": [10, 20, 21, 30, 40, 50, 60, 70],
})  # fmt: skip
_RIGHT = pa.table({
    "k": pa.array([2, 2, 3, None, 9, 1], pa.int64()),
    "g": ["b", "b", None, "c", "q", "x"],
    "v": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
})  # fmt: skip


@pytest.mark.parametrize("how", ["inner", "left", "semi", "anti", "full"])
@pytest.mark.parametrize("on", ["k", ["k", "g"]])
@pytest.mark.parametrize("moved", [False, True])
def test_join(how: Any, on: Any, moved: bool, request: pytest.FixtureRequest) -> None:
    if moved:
        request.getfixturevalue("shuffled")
    made = Table.from_arrow(_LEFT, 3).join(Table.from_arrow(_RIGHT, 4), on, how)
    names = made.schema.names
    got = made.to_arrow()
    keys = [on] if isinstance(on, str) else on
    left, right = _LEFT.to_pylist(), _RIGHT.to_pylist()
    rest = [name for name in _RIGHT.column_names if name not in keys]

    def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
        return all(a[key] is not None and a[key] == b[key] for key in keys)

    expected: list[dict[str, Any]] = []
    empty = dict.fromkeys(_RIGHT.column_names)
    for a in left:
        partners = [b for b in right if equal(a, b)]
        if how in ("semi", "anti"):
            expected += [a] if bool(partners) == (how == "semi") else []
            continue
        for b in partners or ([empty] if how != "inner" else []):
            expected.append({**a, **{f"{name}_right": b[name] for name in rest}})
    if how == "full":
        for b in right:
            if not any(equal(a, b) for a in left):
                row: dict[str, Any] = dict.fromkeys(_LEFT.column_names)
                row |= {key: b[key] for key in keys} | {f"{n}_right": b[n] for n in rest}
                expected.append(row)
    assert names == got.column_names == list(expected[0])
    assert _normal(got) == sorted((tuple(row.values()) for row in expected), key=repr)
    if not moved and how != "full":  # a small table leaves the rows in their order
        assert [r["v"] for r in got.to_pylist()] == [r["v"] for r in expected]


@pytest.mark.parametrize("moved", [False, True])
def test_join_of_other_names_and_widths(moved: bool, request: pytest.FixtureRequest) -> None:
    if moved:
        request.getfixturevalue("shuffled")
    left = Table.from_arrow(pa.table({"id": pa.array([1, 2, 300]), "x": [1, 2, 3]}), 2)
    right = Table.from_arrow(pa.table({"key": pa.array([1, 2], pa.int16()), "x": [7, 8]}))
    made = left.join(right, {"id": "key"}, "left", suffix="_r").to_arrow()
    assert made.schema.field("id").type == pa.int64()
    assert _normal(made) == [(1, 1, 7), (2, 2, 8), (300, 3, None)]
    back = right.join(left, {"key": "id"}, "full").to_arrow()
    assert _normal(back.select(["key", "x", "x_right"])) == [(1, 7, 1), (2, 8, 2), (300, None, 3)]


@pytest.mark.parametrize("moved", [False, True])
def test_text_joins_codes_of_text(moved: bool, request: pytest.FixtureRequest) -> None:
    if moved:
        request.getfixturevalue("shuffled")
    codes = pa.array(["x", "y", None, "x"]).dictionary_encode()
    left = Table.from_arrow(pa.table({"k": codes, "v": [1, 2, 3, 4]}), 2)
    right = Table.from_arrow(pa.table({"k": ["x", "z", None], "w": [7, 8, 9]}))
    assert _normal(left.join(right, "k", "inner").to_arrow()) == [("x", 1, 7), ("x", 4, 7)]
    assert _normal(right.join(left, "k", "semi").to_arrow()) == [("x", 7)]


def test_join_keys_must_fit() -> None:
    left, right = Table.from_arrow(_LEFT), Table.from_arrow(_RIGHT)
    with pytest.raises(DataError, match="no such column of the right table: 'q'; it has"):
        left.join(right, {"k": "q"})
    with pytest.raises(DataError, match="'k' is int64 on the left and 'g' is string on the right"):
        left.join(right, {"k": "g"})


@pytest.mark.parametrize("block", [3, 100])
def test_a_planned_side_of_a_join(block: int) -> None:
    left = Table.from_arrow(_LEFT, block).filter(pl.col("v") > 20).with_columns(w=pl.col("v") * 2)
    made = left.join(Table.from_arrow(_RIGHT).filter(pl.col("v") < 2), "k", "inner").select(["w"])
    assert made.to_arrow()["w"].to_pylist() == [42, 42]


def _numbers(rows: int = 400) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "g": generator.choice(["a", "b", "c", "only missing"], rows),
            "h": generator.choice([1.0, 2.0, np.nan], rows),
            "x": generator.normal(1e6, 1, rows),
            "n": generator.integers(-50, 50, rows).astype(float),
            "i": generator.integers(-128, 127, rows).astype(np.int8),
            "b": generator.random(rows) < 0.5,
        }
    )
    frame.loc[generator.random(rows) < 0.2, ["x", "n"]] = np.nan
    frame.loc[frame["g"] == "only missing", ["x", "n"]] = np.nan
    return frame


_PANDAS = {
    "count": "count", "sum": "sum", "mean": "mean", "min": "min", "max": "max", "var": "var",
    "std": "std", "first": "first", "last": "last", "any": "any", "all": "all",
    "median": "median", "n_unique": "nunique",
}  # fmt: skip


def _close(got: Any, expected: Any) -> bool:
    if got is None or pd.isna(expected):
        return got is None and bool(pd.isna(expected))
    return math.isclose(got, expected, rel_tol=1e-12, abs_tol=1e-9)


@pytest.mark.parametrize("block", [37, 1000])
@pytest.mark.parametrize("whole", [False, True], ids=["from parts", "of all rows"])
@pytest.mark.parametrize("by", [["g"], ["g", "h"], []])
def test_aggregates(block: int, whole: bool, by: list[str], shuffled: None) -> None:
    frame = _numbers()
    table = Table.from_arrow(pa.Table.from_pandas(frame, preserve_index=False), block)
    wanted = {
        f"{column}_{function}": (column, function)
        for column in ("x", "n", "i", "b")
        for function in _PANDAS
        if (function in ("any", "all")) == (column == "b")
        and (whole or function not in ("median", "n_unique"))
    }
    made = table.aggregate(by, size="rows", **wanted)
    assert made.schema.names == [*by, "size", *wanted]
    rows = {tuple(row[name] for name in by): row for row in made.to_arrow().to_pylist()}
    groups = frame.groupby(by, dropna=False) if by else [((), frame)]
    assert len(rows) == (len(groups) if by else 1)
    for key, group in groups:
        found = rows[tuple(None if pd.isna(value) else value for value in key)]
        assert found["size"] == len(group)
        for name, (column, function) in wanted.items():
            values = group[column].dropna()
            if function in ("first", "last"):
                at = 0 if function == "first" else -1
                expected = values.iloc[at] if len(values) else None
            else:
                expected = getattr(values, _PANDAS[function])()
            assert _close(found[name], expected), (key, name, found[name], expected)


def test_groups_are_ascending_and_missing_ones_come_first() -> None:
    table = Table.from_arrow(pa.table({"g": ["b", None, "a", "b"], "x": [1, 2, 3, None]}), 2)
    made = table.aggregate(["g"], s=("x", "sum"), all=("x", "list"))
    assert made.to_arrow().to_pylist() == [
        {"g": None, "s": 2, "all": [2]},
        {"g": "a", "s": 3, "all": [3]},
        {"g": "b", "s": 1, "all": [1, None]},
    ]


@pytest.mark.parametrize("kind", ["int8", "int32", "uint32", "float32"])
def test_sums_of_narrow_numbers_do_not_overflow(kind: str) -> None:
    most = 2**24 if kind == "float32" else np.iinfo(kind).max
    column = pa.array(np.array([most, most, 1] * 50, kind))
    table = Table.from_arrow(pa.table({"x": column}), 70)
    row = table.aggregate(s=("x", "sum"), m=("x", "mean"), v=("x", "var")).to_arrow().to_pylist()[0]
    values = np.array(column.to_pylist(), float)
    assert row["s"] == values.sum()
    assert row["m"] == pytest.approx(values.mean())
    assert row["v"] == pytest.approx(values.var(ddof=1), rel=1e-6)


def test_the_mean_of_large_integers_does_not_overflow() -> None:
    table = Table.from_arrow(pa.table({"x": [2**62, 2**62, 2**62]}), 2)
    assert table.means()["x"] == pytest.approx(2.0**62)
    assert table.aggregate([], m=("x", "median")).to_arrow()["m"].to_pylist() == [2.0**62]


def test_aggregates_of_no_rows() -> None:
    table = Table.from_arrow(pa.table({"g": pa.array([], pa.string()), "x": pa.array([], "f8")}))
    row = {"n": 0, "s": 0.0, "m": None, "v": None, "t": None}
    wanted: Any = {"n": "rows", "s": ("x", "sum"), "m": ("x", "mean"), "v": ("x", "var")}
    assert table.aggregate(**wanted, t=("g", "max")).to_arrow().to_pylist() == [row]
    assert len(table.aggregate(["g"], **wanted)) == 0


def test_aggregate_names_what_is_wrong() -> None:
    table = Table.from_arrow(pa.table({"g": ["a"], "x": [1]}))
    with pytest.raises(
        DataError, match=r"aggregate y: no such column: 'z'; there are \['g', 'x'\]"
    ):
        table.aggregate(["g"], y=("z", "sum"))
    with pytest.raises(DataError, match="the function one of"):
        table.aggregate(["g"], y=("x", "mode"))
    with pytest.raises(DataError, match="'q'"):
        table.aggregate(["q"], y="rows")
    with pytest.raises(DataError, match="g"):
        table.aggregate(["g"], g=("x", "sum"))
    with pytest.raises(DataError, match="g"):
        table.aggregate([], y=("g", "mean"))


@pytest.mark.parametrize("block", [7, 1000])
@pytest.mark.parametrize("nulls_last", [False, True])
def test_sort(block: int, nulls_last: bool, shuffled: None) -> None:
    generator = np.random.default_rng(1)
    rows = 300
    frame = pl.DataFrame(
        {
            "a": [None if v == 3 else int(v) for v in generator.integers(0, 6, rows)],
            "b": [None if v == 3 else "xyzuvw"[v] for v in generator.integers(0, 6, rows)],
            "c": generator.choice([0.5, np.nan, -1.0], rows),
            "row": range(rows),
        }
    )
    table = Table.from_arrow(frame.to_arrow(), block)
    for by, descending in (
        (["a"], [True]),
        (["b", "a"], [False, True]),
        (["c", "b"], [True, False]),
    ):
        made = table.sort(by, descending=descending, nulls_last=nulls_last)
        assert len(made.blocks()) > 1
        expected = frame.sort(by, descending=descending, nulls_last=nulls_last, maintain_order=True)
        assert made.to_arrow()["row"].to_pylist() == expected["row"].to_list()
        assert pl.DataFrame(made.to_arrow()).equals(expected)


def test_sort_of_codes_dates_and_lists_beside(shuffled: None) -> None:
    rows = pa.table({
        "day": pa.array([dt.date(2020, 1, 1 + n % 7) for n in range(40)]),
        "code": pa.array(["ba"[n % 2] for n in range(40)]).dictionary_encode(),
        "list": [[n, n + 1] for n in range(40)],
        "struct": [{"q": n} for n in range(40)],
    })  # fmt: skip
    made = Table.from_arrow(rows, 9).sort(["code", "day"]).to_arrow().to_pylist()
    expected = sorted(rows.to_pylist(), key=lambda row: (row["code"], row["day"]))
    assert made == expected


def test_sort_of_nothing() -> None:
    table = Table.from_arrow(pa.table({"a": pa.array([], pa.int64())}))
    assert table.sort("a").to_arrow().to_pydict() == {"a": []}
    with pytest.raises(DataError, match="'b'"):
        table.sort("b")


@pytest.mark.parametrize("columns", [None, ["k"], ["k", "g"]])
def test_distinct_keeps_the_first(columns: Any, shuffled: None) -> None:
    twice = pa.concat_tables([_LEFT, _LEFT.take([7, 6, 5, 4])])
    names = columns or twice.column_names
    seen: dict[Any, Any] = {}
    for row in twice.to_pylist():
        seen.setdefault(tuple(row[name] for name in names), tuple(row.values()))
    made = Table.from_arrow(twice, 5).distinct(columns)
    assert _normal(made.to_arrow()) == sorted(seen.values(), key=repr)


def test_distinct_keeps_the_order_of_a_small_table() -> None:
    made = Table.from_arrow(pa.table({"a": [3, 1, 3, 2, 1, 9]}), 2).distinct()
    assert made.to_arrow()["a"].to_pylist() == [3, 1, 2, 9]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize(("every", "period"), [("15m", None), ("15m", "40m"), ("1h", "3h")])
def test_windows(zone: str | None, every: str, period: str | None) -> None:
    start = pd.Timestamp("2024-03-30 22:01", tz=zone)
    times = [start + pd.Timedelta(minutes=17 * n) for n in range(40)]  # over a change of the clock
    column = pa.array(times, pa.timestamp("us", zone))
    table = Table.from_arrow(pa.table({"t": column, "g": [n % 2 for n in range(40)]}), 11)
    made = table.window("t", every, period=period, by=["g"], n="rows").to_arrow()
    step, length = pd.Timedelta(every), pd.Timedelta(period or every)
    expected: dict[tuple[Any, int], int] = {}
    for n, time in enumerate(times):
        window = time.tz_convert("UTC").floor(step) if zone else time.floor(step)
        while window + length > time:
            key = (window.tz_convert(zone) if zone else window, n % 2)
            expected[key] = expected.get(key, 0) + 1
            window -= step
    got = {(pd.Timestamp(row["window"]), row["g"]): row["n"] for row in made.to_pylist()}
    assert got == expected
    assert made["window"].type == column.type


def test_windows_keep_rows_without_a_time_once() -> None:
    times = pa.array([dt.datetime(2024, 1, 1, 5), None], pa.timestamp("us"))
    table = Table.from_arrow(pa.table({"t": times}))
    for period in (None, "2h"):
        made = table.window("t", "1h", period=period, n="rows").to_arrow().to_pylist()
        assert {"window": None, "n": 1} in made
    for every, period in (("1x", None), ("0h", None), ("1h", "1m")):
        with pytest.raises(DataError, match="window: "):
            table.window("t", every, period=period, n="rows")


def test_concat_widens_numbers_and_orders_columns() -> None:
    tables = [
        Table.from_arrow(pa.table({"a": pa.array([1], pa.int8()), "b": ["x"]})),
        Table.from_arrow(pa.table({"b": ["y"], "a": [0.5]})).filter(pl.col("a") > 0),
        Table.from_arrow(pa.table({"a": pa.nulls(1), "b": pa.array(["z"], pa.large_string())})),
    ]
    made = Table.concat(tables)
    assert made.schema.names == ["a", "b"]
    assert made.to_arrow().to_pydict() == {"a": [1.0, 0.5, None], "b": ["x", "y", "z"]}
    with pytest.raises(DataError, match="concat: Table 1 has the columns"):
        Table.concat([tables[0], tables[0].rename({"a": "c"})])
    with pytest.raises(DataError, match="concat"):
        Table.concat([])
    with pytest.raises(DataError, match=r"Table 1 does not fit .* Field a has"):
        Table.concat([tables[0], Table.from_arrow(pa.table({"a": ["text"], "b": ["x"]}))])


@pytest.mark.parametrize("block", [2, 3, 100])
@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_batches(block: int, rows: int) -> None:
    kept = Table.from_arrow(_LEFT, block)
    empty = Table.from_arrow(_LEFT.slice(0, 0))
    for table in (kept, kept.with_columns(w=pl.col("v") + 1), Table.concat([empty, kept, empty])):
        batches = list(table.iter_batches(rows))
        assert [len(b) for b in batches[:-1]] == [rows] * (8 // rows - (8 % rows == 0))
        assert sum(len(b) for b in batches) == 8
        assert [v for b in batches for v in b["v"].to_pylist()] == _LEFT["v"].to_pylist()
    assert list(empty.iter_batches(rows)) == []


def test_batches_have_one_schema() -> None:
    blocks = [pa.table({"a": pa.nulls(2)}), pa.table({"a": ["x", "y"]})]
    table = Table.concat([Table.from_arrow(block) for block in blocks])
    assert {batch.schema for batch in table.iter_batches(1)} == {table.schema}
    with pytest.raises(DataError, match="rows=0"):
        next(table.iter_batches(0))


def test_mistakes_raise_at_the_call() -> None:
    table = Table.from_arrow(_LEFT)
    calls: list[Any] = [
        lambda: table.select(["v", "nope"]),
        lambda: table.rename({"nope": "v"}),
        lambda: table.rename({"k": "v"}),
        lambda: table.filter(pl.col("nope") > 1),
        lambda: table.with_columns(w=pl.col("nope")),
        lambda: table.with_columns(w=pl.col("g") + 1),
        lambda: table.distinct(["nope"]),
        lambda: table.partition_by("nope", 2),
        lambda: table.with_row_number("k"),
        lambda: table.window("nope", "1h", n="rows"),
        lambda: table.select(["v", "v"]),
        lambda: table.sort("v", descending=[True, False]),
        lambda: table.join(table, "v", "nope"),  # type: ignore[arg-type]
        lambda: table.write_parquet(Storage("/nope"), "x", partition_by=["k", "g", "v"]),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(DataError) as caught:
            call()
        assert any(word in str(caught.value) for word in ("nope", "'v'", "'k'", "str")), number


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_fingerprint_does_not_depend_on_the_blocks(rows: int) -> None:
    assert Table.from_arrow(_LEFT, rows).fingerprint() == Table.from_arrow(_LEFT).fingerprint()


def test_the_fingerprint_is_of_every_value() -> None:
    seen = {Table.from_arrow(_LEFT).fingerprint()}
    for name in _LEFT.column_names:
        for row in range(len(_LEFT)):
            values = _LEFT[name].to_pylist()
            values[row] = {"g": "other"}.get(name, 99)
            place = _LEFT.column_names.index(name)
            changed = _LEFT.set_column(place, name, pa.array(values, _LEFT[name].type))
            seen.add(Table.from_arrow(changed).fingerprint())
    seen.add(Table.from_arrow(_LEFT.rename_columns(["k", "g", "w"])).fingerprint())
    seen.add(Table.from_arrow(_LEFT.select(["g", "k", "v"])).fingerprint())
    seen.add(Table.from_arrow(_LEFT.take([1, 0, *range(2, 8)])).fingerprint())
    seen.add(Table.from_arrow(_LEFT.slice(0, 7)).fingerprint())
    assert len(seen) == 1 + 3 * len(_LEFT) + 4


def test_a_planned_table_pickles_with_its_rows() -> None:
    table = Table.from_arrow(_LEFT, 3).filter(pl.col("v") > 20)
    back = ray.cloudpickle.loads(ray.cloudpickle.dumps(table))
    assert back.to_arrow().to_pylist() == table.to_arrow().to_pylist()
    assert back.lineage.id == table.lineage.id


def test_parts_of_a_sort_are_about_equal() -> None:
    how = {"descending": [False], "nulls_last": [False]}
    blocks = [pa.table({"a": np.random.default_rng(n).permutation(5000)}) for n in range(4)]
    keys = [_shuffle._sample_keys(block, ["a"], how) for block in blocks]
    cuts = _shuffle._bounds(["a"], how, 5, *keys)
    sizes = [0] * 5
    for block in blocks:
        pieces = _shuffle._split_by_range(block, cuts, ["a"], how, 5)
        sizes = [size + len(piece) for size, piece in zip(sizes, pieces, strict=True)]
    assert sum(sizes) == 20_000
    assert max(sizes) < 1.2 * 4000
