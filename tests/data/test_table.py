from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import ray

from raysys.data import Table
from raysys.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _table(*blocks: dict[str, Any]) -> Table:
    """A Table of these blocks."""
    parts = [Table.load(pa.table, block) for block in blocks]
    return Table(
        tuple(part.blocks()[0] for part in parts), tuple(part.metas()[0] for part in parts)
    )


def _rows(table: Table) -> list[dict[str, Any]]:
    return table.to_arrow().to_pylist()


def test_a_table_pickles_as_references() -> None:
    table = _table({"a": np.arange(1_000_000)}, {"a": np.arange(1_000_000)})
    assert (len(table), table.nbytes()) == (2_000_000, 16_000_000)
    assert len(ray.cloudpickle.dumps(table)) < 10_000


def test_arrow_maps_the_block_without_a_copy() -> None:
    table = _table({"a": np.arange(1_000_000)})
    first, second = (table.to_arrow()["a"].chunk(0).buffers()[1].address for _ in range(2))
    assert first == second


def test_map_blocks_gives_the_function_tables_and_values() -> None:
    table, addends = _table({"a": [1, 2]}, {"a": [3]}), _table({"b": [10]}, {"b": [20]})

    def add(block: pa.Table, addends: Table, factor: int, plain: int) -> pa.Table:
        total = sum(addends.to_arrow()["b"].to_pylist())
        return pa.table({"a": [total + factor * a.as_py() + plain for a in block["a"]]})

    result = table.map_blocks(add, addends, ray.put(100), 5)
    assert [meta.rows for meta in result.metas()] == [2, 1]
    assert result.to_arrow()["a"].to_pylist() == [135, 235, 335]


def test_an_error_in_map_blocks_reaches_the_caller_as_itself() -> None:
    def refuse(block: pa.Table) -> pa.Table:
        raise DataError("not these")

    with pytest.raises(DataError, match="not these"):
        _table({"a": [1]}).map_blocks(refuse)


def test_split_blocks_deals_rows_out_in_order() -> None:
    def split(block: pa.Table, at: int) -> tuple[pa.Table, pa.Table]:
        return block.slice(0, at), block.slice(at)

    left, right = _table({"a": [1, 2]}, {"a": [3, 4, 5]}).split_blocks(split, 1, name="split")
    assert left.to_arrow()["a"].to_pylist() == [1, 3]
    assert right.to_arrow()["a"].to_pylist() == [2, 4, 5]
    assert (len(left), len(right)) == (2, 3)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(
    "keys",
    [
        [[3, 1, 2, 3, 9], [9, 1, 1, 4], [3, 5]],
        [["c", "a", "b", "c"], ["a", None], ["c", "e", None]],
        [[3, 1, 2, 3, 9], [9, None, 1, 4], [3, None]],
    ],
    ids=["numbers", "text", "numbers with missing values"],
)
def test_partition_by_brings_equal_keys_together_in_row_order(
    keys: list[list[Any]], blocks: int
) -> None:
    table = _table(*({"key": part} for part in keys)).with_row_number("row")
    parts = [ray.get(block) for block in table.partition_by("key", blocks).blocks()]
    assert len(parts) == blocks
    seen = [set(part["key"].to_pylist()) for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen)), "a key is in two blocks"
    for part in parts:
        assert part["row"].to_pylist() == sorted(part["row"].to_pylist())
    rows = pa.concat_tables(parts).sort_by("row")
    assert rows.to_pylist() == _rows(table)


def test_row_numbers_continue_across_blocks() -> None:
    table = _table({"a": [5, 6]}, {"a": pa.array([], pa.int64())}, {"a": [7, 8, 9]})
    assert table.with_row_number("n").to_arrow()["n"].to_pylist() == [0, 1, 2, 3, 4]


def test_select_keeps_only_the_columns_named() -> None:
    table = _table({"a": [1], "b": [2], "c": [3]}).select(["c", "a"])
    assert _rows(table) == [{"c": 3, "a": 1}]
    assert table.schema.names == ["c", "a"]


def test_a_column_comes_as_values_and_columns_as_a_table() -> None:
    table = _table({"a": [1, 2], "b": ["x", "y"]}, {"a": [3], "b": ["z"]})
    for view in (table, table.filter(pl.col("a") > 0)):
        assert view["a"].to_pylist() == [1, 2, 3]
        assert view[["b"]].columns == view.drop("a").columns == ["b"]
    with pytest.raises(DataError, match=r"no such columns: \['c'\]; the table has \['a', 'b'\]"):
        table["c"]
    with pytest.raises(TypeError, match="not iterable"):
        list(table)


def test_a_table_is_neither_true_nor_false() -> None:
    with pytest.raises(TypeError, match="ambiguous: write `table is not None`"):
        bool(_table({"a": [1]}))


def test_frames_of_pandas_and_polars_and_back() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"]})
    table = Table.from_pandas(frame, rows_per_block=2)
    assert len(table.blocks()) == 2
    assert table.to_polars().equals(pl.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"]}))
    assert Table.from_polars(table.to_polars()).fingerprint() == table.fingerprint()


def test_head_has_the_first_rows_of_all_blocks() -> None:
    table = _table({"a": [1, 2]}, {"a": [3, 4]}, {"a": [5]})
    assert table.filter(pl.col("a") != 1).head(2)["a"].to_list() == [2, 3]
    assert table.head()["a"].to_list() == [1, 2, 3, 4, 5]
    assert table.head(0).columns == ["a"]
    with pytest.raises(DataError, match="rows=-1"):
        table.head(-1)


def test_describe_has_the_statistics_of_each_column() -> None:
    table = _table({"n": [1.0, None], "s": ["b", "a"]}, {"n": [3.0], "s": [None]})
    statistics = {row.pop("statistic"): row for row in table.describe().to_dicts()}
    assert statistics["count"] == {"n": 2.0, "s": "2"}
    assert statistics["null_count"] == {"n": 1.0, "s": "1"}
    assert statistics["mean"] == {"n": 2.0, "s": None}
    assert statistics["std"]["n"] == pytest.approx(2**0.5)
    assert (statistics["min"], statistics["max"]) == ({"n": 1.0, "s": "a"}, {"n": 3.0, "s": "b"})


def test_the_representation_says_what_is_planned_and_computes_nothing() -> None:
    table = _table({"a": [1, 2]}, {"a": [3]})
    assert repr(table) == "Table(3 rows, 2 blocks; a: int64)"
    planned = table.filter(pl.col("a") > 1).rename({"a": "<b>"})
    text = "rows unknown, 2 blocks, planned: filter > rename"
    assert repr(planned) == f"Table({text}; <b>: int64)"
    assert "&lt;b&gt;</td><td>int64" in planned._repr_html_()
    assert planned._metas is None


def test_means_are_over_all_rows() -> None:
    table = _table({"a": [1.0, 2.0], "b": [True, False]}, {"a": [6.0], "b": [True]})
    assert table.means() == {"a": 3.0, "b": pytest.approx(2 / 3)}


def test_means_leave_missing_values_out() -> None:
    table = _table(
        {"a": [1.0, None], "b": pa.array([None, None], pa.int64())}, {"a": [2], "b": [7]}
    )
    assert table.means() == {"a": 1.5, "b": 7.0}


def test_the_mean_of_nothing_is_nan() -> None:
    assert np.isnan(_table({"a": pa.array([], pa.float64())}).means()["a"])


def test_modin_and_back_keeps_rows_and_types() -> None:
    table = _table(
        {"id": [1, 2], "name": ["x", None], "score": [0.5, 1.0]},
        {"id": pa.array([], pa.int64()), "name": pa.array([], pa.string()), "score": [0.0][:0]},
        {"id": [3], "name": ["z"], "score": [2.0]},
    )
    frame = table.to_modin()
    assert frame.groupby("id")["score"].sum().to_numpy().tolist() == [0.5, 1.0, 2.0]
    back = Table.from_modin(frame, "back", [table])
    assert back.lineage.inputs == (table.lineage,)
    assert back.lineage.id != Table.from_modin(frame.head(1), "back", [table]).lineage.id
    assert _rows(back) == _rows(table)
    assert back.to_arrow().schema.types == [pa.int64(), pa.string(), pa.float64()]


def test_from_modin_keeps_row_order_over_partitions() -> None:
    import modin.pandas as mpd

    frame = pd.DataFrame({"a": np.arange(1000)[::-1], "b": [f"row {n}" for n in range(1000)]})
    table = Table.from_modin(mpd.DataFrame(frame))
    assert len(table.blocks()) > 1
    pd.testing.assert_frame_equal(table.to_pandas(), frame)


def test_from_modin_refuses_a_column_of_several_types() -> None:
    import modin.pandas as mpd

    frame = mpd.DataFrame({"a": [1, "one", 2.5]})
    with pytest.raises(DataError, match="a column holds values of more than one type"):
        Table.from_modin(frame)


def test_a_ray_dataset_sees_the_same_rows() -> None:
    dataset = _table({"a": [1, 2]}, {"a": [3]}).to_ray_dataset()
    assert dataset.count() == 3
    assert [row["a"] for row in dataset.take_all()] == [1, 2, 3]


def test_the_schema_is_that_of_all_blocks() -> None:
    table = _table({"a": pa.array([None]), "b": [1]}, {"a": ["x"], "b": [2]})
    assert table.schema.types == table.to_arrow().schema.types == [pa.string(), pa.int64()]


def test_the_fingerprint_is_of_the_rows() -> None:
    blocks: list[dict[str, Any]] = [{"a": [1, 2], "b": ["x", None]}, {"a": [3], "b": ["z"]}]
    same = _table(*blocks).fingerprint()
    assert _table(*blocks).fingerprint() == same
    assert _table(*blocks).map_blocks(_through_pandas).fingerprint() == same
    assert _table(*blocks[::-1]).fingerprint() != same
    assert _table(blocks[0], {"a": [3], "b": ["y"]}).fingerprint() != same
    assert _table(blocks[0], {"a": [3], "b": [None]}).fingerprint() != same


def test_the_fingerprint_is_of_the_columns_names_and_types() -> None:
    same = _table({"a": [1], "b": [2]}).fingerprint()
    assert _table({"b": [1], "a": [2]}).fingerprint() != same
    assert _table({"a": pa.array([1], pa.uint64()), "b": [2]}).fingerprint() != same


def _through_pandas(block: pa.Table) -> pa.Table:
    return pa.Table.from_pandas(block.to_pandas(), preserve_index=False)
