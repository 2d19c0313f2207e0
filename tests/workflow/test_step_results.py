"""Step results: written and read back."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.data import Table
from raysys.errors import StorageError
from raysys.storage import Storage
from raysys.workflow._step_results import load, require_intact, save

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = pa.table(
    {
        "x": pa.array([1, 2, None], pa.int16()),
        "text": pa.array(["a", "b", "a"]).dictionary_encode(),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(range(6), pa.float32()), 2),
        "many": pa.array([[{"a": 1}], [], None]),
    }
)


def test_tables_references_and_plain_values_come_back(storage: Storage) -> None:
    table = Table.from_arrow(ROWS, rows_per_block=2)
    held = ray.put(np.arange(5))
    value = {"tables": [table, table.select(["x"])], "held": (held, held), "n": 3}
    kept = save(storage, "steps/a", value)
    found = load(storage, kept)
    one, other = found["tables"]
    assert one.to_arrow().equals(ROWS)
    assert [meta.rows for meta in one.metas()] == [2, 1]
    assert one.fingerprint() == table.fingerprint()
    assert one.lineage.id == table.lineage.id
    assert other.to_arrow().column_names == ["x"]
    assert np.array_equal(ray.get(found["held"][0]), np.arange(5))
    assert found["held"][0] == found["held"][1]
    assert found["n"] == 3


def test_equal_values_have_equal_content(storage: Storage) -> None:
    def content(path: str, n: int) -> str:
        table = Table.from_arrow(ROWS.slice(0, n))
        return save(storage, path, {"t": table, "held": ray.put(n)}).content

    assert content("a", 3) == content("b", 3) != content("c", 2)


def test_one_column_of_a_stored_table_can_be_read(storage: Storage) -> None:
    save(storage, "a", Table.from_arrow(ROWS))
    table = Table.read_blocks(storage, "a/table-0")
    assert table.select(["x"]).to_arrow()["x"].to_pylist() == [1, 2, None]
    for file in Path(storage.uri("a/table-0")).glob("*.arrow"):
        file.unlink()
    with pytest.raises(StorageError, match="1 of its 1 blocks are missing"):
        Table.read_blocks(storage, "a/table-0")


def test_a_removed_result_is_reported(storage: Storage) -> None:
    kept = save(storage, "a", 1)
    storage.remove("a")
    with pytest.raises(StorageError, match="with `--from` that step"):
        load(storage, kept)


def test_a_planted_pickle_is_not_run(storage: Storage, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    kept = save(storage, "a", {"held": ray.put(1)})
    for name in ("value.pickle", "object-0"):
        storage.write_bytes(f"a/{name}", pickle.dumps(Planted()))
        with pytest.raises(StorageError, match="not written by this cluster"):
            load(storage, kept)
        kept = save(storage, "a", {"held": ray.put(1)})
    assert not (tmp_path / "run").exists()


def test_a_table_with_a_block_cut_off_is_refused(storage: Storage) -> None:
    save(storage, "a", Table.from_arrow(ROWS))
    require_intact(storage, "a")
    (block,) = Path(storage.uri("a/table-0")).glob("*.arrow")
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(StorageError, match="1 of its 1 blocks are missing or cut off"):
        require_intact(storage, "a")
